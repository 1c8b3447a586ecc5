"""Prints digests of what a run learns and draws before its first step: tokenizers, new layers, adapters.

tests/test_systems.py compares them under two values of PYTHONHASHSEED, which orders Python's sets.
"""

import hashlib
import json
import tempfile

import torch
from conftest import METHODS, MODELS, adapt, reviews, tiny

from data.tokenization import train_tokenizer
from nn.checkpoint import load_pretrained, save_pretrained


def digest(*parts: bytes) -> str:
    """Returns a short digest of bytes."""
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]


def of_weights(model: torch.nn.Module) -> str:
    """Returns a digest of all parameters."""
    return digest(*(p.detach().numpy().tobytes() for p in model.parameters()))


def starts() -> dict[str, str]:
    """Returns {what: digest}. Every model gets a new head, a BERT each method."""
    texts = [text for _, text, _ in reviews("train")][:150]
    found = {}
    for kind in sorted({entry.tokenizer for entry in MODELS.values()}):
        tokens = train_tokenizer(kind, texts, 500, 1).tokens
        found[kind] = digest(*(token.encode() for token in tokens))
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(tiny(name), folder, heads=False)
            torch.manual_seed(0)
            found[name] = of_weights(load_pretrained(folder))
    for method in METHODS:
        torch.manual_seed(0)
        found[method] = of_weights(adapt(tiny("bert"), method))
    return found


if __name__ == "__main__":
    print(json.dumps(starts()))
