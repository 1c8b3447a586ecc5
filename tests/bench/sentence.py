"""Explains one sentence by the built-in linear model and by networks that weigh their words.

    python train.py --model attention_lstm --data demo --name attention_lstm
    python train.py --model capsule_lstm --data demo --name capsule_lstm
    python tests/bench/sentence.py runs/attention_lstm runs/capsule_lstm

It writes data/results/sentence.json, which data/sentence_picture.py draws: for each model the words, their tokens, the
effect of each word on the log-odds of "positive" by integrated gradients and by leaving it out, and the attention or
routing weights, each summed over the tokens of a word. The sentence was fixed before any model had read it.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from data.alignment import align
from data.checked import read_json
from data.files import write_json
from data.hub import LINEAR
from data.rows import RESULTS
from data.runs import Run, git, versions
from eval import TABLES
from nn.runtime import choose_machine, describe_device
from peft.classifier import Scorer, load_classifier

SENTENCE = "The plot is thin, but the acting is wonderful and I was never bored."
OUTPUT = RESULTS / "sentence.json"


def rounded(values: np.ndarray, sign: int = 1) -> list[float]:
    """Returns values with four digits, so that rounding errors of another machine rarely change the file."""
    return [round(sign * float(value), 4) + 0.0 for value in values]


def tokens_by_word(scorer: Scorer, text: str) -> list[str]:
    """Returns the tokens of each word, with spaces between them."""
    words, ids, word_of = align(scorer.tokenizer, text, *scorer.truncation[:2])
    tokens = np.array([scorer.tokenizer.tokens[number] for number in ids])
    return [" ".join(tokens[word_of == word]) for word in range(len(words))]


def measure(folder: str, text: str = SENTENCE) -> dict[str, Any]:
    """Explains a text by the model in a folder. For two classes the effect on "positive" is minus on "negative"."""
    scorer = load_classifier([folder], choose_machine("cpu", precision="fp32"), TABLES)
    assert isinstance(scorer, Scorer)  # one folder
    found = scorer.explain(text)
    sign = 1 if found.label == "positive" else -1
    return {
        "model": scorer.model.model_type,
        "words": found.words,
        "tokens": tokens_by_word(scorer, text),
        "probabilities": {name: round(p, 4) for name, p in found.probabilities.items()},
        "integrated gradients": rounded(found.gradients, sign),
        "leaving out": rounded(found.without, sign),
        "difference to the baseline": round(sign * found.difference, 4),
        "baseline": found.baseline,
        "weights": {title: rounded(values) for title, values in found.weights},
    }


def origin(result: dict[str, Any]) -> dict[str, Any]:
    """Returns how a run was trained and its test accuracy, from its result.json."""
    test = {name: result["test"][name] for name in ("accuracy", "count")}
    kept = {name: result[name] for name in ("command", "commit", "dirty", "versions", "machine")}
    return {**kept, "seed": result["options"]["seed"], "test": test}


def main(folders: list[str]) -> None:
    """Explains the sentence by each model and writes the file."""
    trained = origin(read_json(RESULTS / "nb_linear-box.json"))
    models = [{"trained by": trained, **measure(str(LINEAR))}]
    for folder in folders:
        trained = origin(Run.open(folder).result or {})
        models.append({"trained by": trained, **measure(folder)})
    about = {
        "command": " ".join(["python tests/bench/sentence.py", *folders]),
        "commit": git("rev-parse", "HEAD"),
        "versions": versions(),
        "machine": describe_device(torch.device("cpu")),
    }
    write_json(OUTPUT, {**about, "sentence": SENTENCE, "models": models})


if __name__ == "__main__":
    main(sys.argv[1:])
