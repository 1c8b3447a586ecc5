"""Compares the forms of attention on a CPU: forward, and forward with backward, plain, fused and block by block.

    python tests/bench/attention.py [--repeats N] | tee tests/bench/attention.txt

bert: 12 heads of 32; plain: `attention` in nn/attention.py; fused: torch's kernel (without dropout only); blocks:
nn/block_attention.py. deberta: 6 heads of 64 with relative terms; plain: `DisentangledAttention.attend`, which gathers
the terms from products with the rows that occur. Both are 8 × 512 tokens, in one review padding. The forms alternate;
times are medians in milliseconds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from nn.attention import attention, fused_attention, merge_heads, split_heads
from nn.block_attention import block_attention
from nn.deberta import DebertaConfig, DisentangledAttention
from nn.dropout import Dropout
from nn.runtime import choose_machine, keep_freed_memory

BATCH, LENGTH = 8, 512
Form = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v, each [B, T, H·K], to [B, T, H·K]


def bert_forms(mask: Tensor, p: float) -> dict[str, Form]:
    """Returns the forms of plain attention."""
    dropout = Dropout(p).train()

    def on_heads(form: Callable) -> Form:
        return lambda *qkv: merge_heads(form(*(split_heads(x, 12) for x in qkv)))

    forms = {
        "plain": on_heads(lambda q, k, v: attention(q, k, v, mask=mask, dropout=dropout)),
        "blocks": on_heads(lambda q, k, v: block_attention(q / 32**0.5, k, v, mask=mask, dropout=dropout)),
    }
    return forms | ({} if p else {"fused": on_heads(lambda q, k, v: fused_attention(q, k, v, mask=mask))})


def deberta_forms(mask: Tensor, p: float) -> dict[str, Form]:
    """Returns the forms of disentangled attention."""
    config = DebertaConfig(
        hidden_size=384,
        num_heads=6,
        relative_attention=True,
        position_buckets=256,
        share_att_key=True,
        pos_att_type=("p2c", "c2p"),
        attention_probs_dropout_prob=p,
        hidden_dropout_prob=p,
    )
    layer, table = DisentangledAttention(config).train(), torch.randn(512, 384)

    def on_heads(form: Callable) -> Form:
        return lambda *qkv: merge_heads(form(*(split_heads(x, 6) for x in qkv), mask[:, 0, 0], None, None, table))

    return {"plain": on_heads(layer.attend), "blocks": on_heads(layer.attend_fast)}


def measure(name: str, precision: str, p: float, repeats: int) -> dict:
    """Measures all forms of one kind of attention. Returns a row of results."""
    torch.manual_seed(0)
    machine = choose_machine("cpu", precision)
    mask = torch.ones(BATCH, 1, 1, LENGTH, dtype=torch.bool)
    mask[0, ..., -5:] = False
    qkv = [torch.randn(BATCH, LENGTH, 384, dtype=machine.dtype, requires_grad=True) for _ in range(3)]
    forms = (bert_forms if name == "bert" else deberta_forms)(mask, p)
    times: dict[str, list[float]] = {f"{kind} {form}": [] for form in forms for kind in ("forward", "both")}
    for _ in range(repeats + 1):
        for form, call in forms.items():
            begin = time.perf_counter()
            with torch.no_grad(), machine.autocast():
                call(*qkv)
            middle = time.perf_counter()
            with machine.autocast():
                out = call(*qkv)
            out.backward(torch.ones_like(out))
            times[f"forward {form}"].append(middle - begin)
            times[f"both {form}"].append(time.perf_counter() - middle)
    medians = {key: round(1000 * statistics.median(values[1:]), 1) for key, values in times.items()}
    return {"attention": name, "precision": precision, "dropout": p, **medians}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    keep_freed_memory()
    print(f"{choose_machine('cpu', 'auto')}, torch {torch.__version__}")
    for name in ("bert", "deberta"):
        for precision in ("bf16", "fp32"):
            for p in (0.0, 0.1):
                print(json.dumps(measure(name, precision, p, given.repeats)), flush=True)
