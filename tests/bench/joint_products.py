"""Measures what one product for Q, K and V together would save, over three: training steps and scoring.

    python tests/bench/joint_products.py [--repeats N] | tee tests/bench/joint_products.txt

The same BERT runs in both forms, in alternation. Times are medians in seconds; "three / one" is the speed-up by one
product. One product reads x once, but its outputs are views with the stride of all three. The last layer, which has a
single query, keeps three products. bf16 is measured if the CPU has bf16 products.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import seconds, speed_ups

from losses.cross_entropy import cross_entropy
from nn.attention import MultiHeadAttention, Prefix, Queries, attend, merge_heads, split_heads
from nn.bert import Bert, BertConfig
from nn.runtime import keep_freed_memory, native_bf16

three_forward = MultiHeadAttention.forward
BERT: dict[str, Any] = {"hidden_size": 384, "num_layers": 6, "num_heads": 12, "feed_forward_size": 1536}


def joint_forward(
    self: MultiHeadAttention, x: Tensor, mask: Tensor, prefix: Prefix | None = None, queries: Queries = None
) -> Tensor:
    """Computes `MultiHeadAttention.forward` with one product for Q, K and V, if all tokens are queries."""
    if queries is not None:
        return three_forward(self, x, mask, prefix=prefix, queries=queries)
    layers = (self.query, self.key, self.value)
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    q, k, v = (split_heads(y, self.num_heads) for y in F.linear(x, weight, bias).chunk(3, -1))
    return self.output(merge_heads(attend(q, k, v, mask=mask[:, None, None, :], dropout=self.dropout)))


def measure(batch: int, length: int, dtype: torch.dtype, repeats: int) -> dict:
    """Measures both forms in one precision. Returns a row of results."""
    torch.manual_seed(0)
    model = Bert(BertConfig(**BERT))
    ids, labels = torch.randint(5, 8000, (batch, length)), torch.randint(0, 2, (batch,))
    mask = torch.ones_like(ids, dtype=torch.bool)
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)

    def step() -> None:
        with autocast:
            loss = cross_entropy(model.train()(ids, mask), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def score() -> None:
        with autocast:
            model.eval()(ids, mask)

    forms: dict[str, Callable[..., Tensor]] = {"three": three_forward, "one": joint_forward}
    times: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for name, forward in forms.items():
            MultiHeadAttention.forward = forward
            for work in (step, score):
                times.setdefault(f"{work.__name__} {name}", []).append(seconds(work))
    MultiHeadAttention.forward = three_forward
    row = speed_ups(times, works=("step", "score"), slow="three", fast="one")
    return {"batch": f"{batch} x {length}", "precision": str(dtype).removeprefix("torch."), **row}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measured calls of each form")
    repeats = parser.parse_args().repeats
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for dtype in (torch.float32, torch.bfloat16)[: 2 if native_bf16(torch.device("cpu")) else 1]:
        for batch, length in ((16, 128), (4, 512)):
            print(json.dumps(measure(batch, length, dtype=dtype, repeats=repeats)), flush=True)
