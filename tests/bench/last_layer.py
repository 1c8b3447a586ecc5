"""Measures what is saved by a single query, [CLS], in the last layer: training steps and scoring.

    python tests/bench/last_layer.py [--repeats N] | tee tests/bench/last_layer.txt

The same model runs with `queries=1` and with all queries in the last layer, in alternation; the times are medians in
seconds, and "whole / [CLS]" is the speed-up by the single query.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import seconds, speed_ups

from losses.cross_entropy import cross_entropy
from nn.attention import Prefix, Queries
from nn.bert import Bert, BertConfig
from nn.checkpoint import load_pretrained
from nn.encoder import Encoder
from nn.runtime import keep_freed_memory

BERT: dict[str, Any] = {"hidden_size": 384, "num_layers": 6, "num_heads": 12, "feed_forward_size": 1536}
BUILT_IN = Path(__file__).parent.parent.parent / "data" / "weights" / "deberta-mini"
MODELS = {"BERT, 6 layers": lambda: Bert(BertConfig(**BERT)), "built-in, 4 layers": lambda: load_pretrained(BUILT_IN)}


def measure(name: str, batch: int, length: int, repeats: int) -> dict:
    """Measures the model `name` in both forms. Returns a row of results."""
    torch.manual_seed(0)
    model = MODELS[name]()
    assert isinstance(model, Encoder)
    model.train()
    ids, labels = torch.randint(5, 8000, (batch, length)), torch.randint(0, 2, (batch,))
    mask, encode = torch.ones_like(ids, dtype=torch.bool), model.encode

    def whole(x: Tensor, mask: Tensor, prefix: list[Prefix] | None = None, queries: Queries = None) -> Tensor:
        return encode(x, mask, prefix=prefix)

    def step() -> None:
        cross_entropy(model(ids, mask), labels).backward()
        model.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def score() -> None:
        model.eval()(ids, mask)
        model.train()

    times: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for last in ("whole", "[CLS]"):
            model.encode = whole if last == "whole" else encode
            for work in (step, score):
                times.setdefault(f"{work.__name__} {last}", []).append(seconds(work))
    row = speed_ups(times, works=("step", "score"), slow="whole", fast="[CLS]")
    return {"model": name, "batch": f"{batch} x {length}", **row}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measured calls of each form")
    repeats = parser.parse_args().repeats
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for model in MODELS:
        for batch, length in ((16, 128), (4, 512)):
            print(json.dumps(measure(model, batch=batch, length=length, repeats=repeats)), flush=True)
