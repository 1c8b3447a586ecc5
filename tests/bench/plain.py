"""Measures a run on 226 plain sentences that were written by hand before the grammar of the built-in reviews.

    python tests/bench/plain.py runs/NAME

The grammar (data/demo_words.py) was written without them. Prints the accuracy and the sentences with a wrong answer.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from data.runs import Run  # noqa: E402
from eval import Scorer  # noqa: E402
from nn.runtime import choose_machine  # noqa: E402

SENTENCES = ROOT / "tests" / "golden" / "plain_sentences.tsv"


def main(folder: str) -> None:
    """Scores the sentences with the best model of a run."""
    _, *lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    labels, texts = zip(*(line.split("\t") for line in lines), strict=True)
    scorer = Scorer.of_run(Run.open(folder), choose_machine("auto", "fp32"))
    found = [scorer.labels[number] for number in scorer.score_texts(list(texts), bar=False).argmax(1)]
    wrong = [(text, answer) for text, label, answer in zip(texts, labels, found, strict=True) if label != answer]
    print(f"plain sentences: {1 - len(wrong) / len(texts):.4f} of {len(texts)}")
    for text, answer in wrong:
        print(f"  {answer}: {text}")


if __name__ == "__main__":
    main(sys.argv[1])
