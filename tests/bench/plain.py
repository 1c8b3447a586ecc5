"""Measures a run on four sets of plain English sentences about films.

    python tests/bench/plain.py runs/NAME
    python tests/bench/plain.py data/weights/imdb

plain_sentences.tsv: 226, written by hand before the grammar of the built-in reviews (data/demo_words.py); the scores of
its versions were known to those who made it.  plain_sentences_2.tsv: 240, written by someone who saw neither; they were
scored after the grammar was finished. 60 of the 466 are, but for case and punctuation, labelled built-in reviews.
plain_sentences_3.tsv: 200, written by someone who saw nothing of the project.  plain_sentences_4.tsv: 200, written by
someone who knew the grammar, with constructions that it lacks ("No film has ever made me laugh so hard."). 34 of these
400 are, but for case and punctuation, labelled built-in reviews.

Prints the accuracy on each set, and the sentences with a wrong answer.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from eval import TABLES  # noqa: E402
from nn.runtime import choose_machine  # noqa: E402
from peft.classifier import load_classifier  # noqa: E402

NAMES = ("plain_sentences.tsv", "plain_sentences_2.tsv", "plain_sentences_3.tsv", "plain_sentences_4.tsv")
FILES = [ROOT / "tests" / "golden" / name for name in NAMES]


def main(folder: str) -> None:
    """Scores the sentences with the best model of a run, or with a checkpoint."""
    scorer = load_classifier([folder], choose_machine("auto", "fp32"), TABLES)
    for path in FILES:
        _, *lines = path.read_text(encoding="utf-8").splitlines()
        labels, texts = zip(*(line.split("\t") for line in lines), strict=True)
        found = [scorer.labels[number] for number in scorer.score_texts(list(texts), bar=False).argmax(1)]
        wrong = [(text, answer) for text, label, answer in zip(texts, labels, found, strict=True) if label != answer]
        print(f"{path.name}: {1 - len(wrong) / len(texts):.4f} of {len(texts)}")
        for text, answer in wrong:
            print(f"  {answer}: {text}")


if __name__ == "__main__":
    main(sys.argv[1])
