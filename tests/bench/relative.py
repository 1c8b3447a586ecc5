"""DeBERTa's relative terms gathered from the products with the rows that occur, or read through a view of the products
with a row for each distance: training steps and scoring of the same model, alternating, medians.

    python tests/bench/relative.py [--repeats N] | tee tests/bench/relative.txt
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python tests/bench/relative.py    as a CPU without matrix units would
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import peft
from losses.cross_entropy import cross_entropy
from nn.checkpoint import load_pretrained
from nn.deberta import DisentangledAttention
from nn.runtime import choose_machine, keep_freed_memory

BUILT_IN = Path(__file__).parent.parent.parent / "data" / "weights" / "deberta-mini"
FORMS = {"gather": (torch.float32, torch.bfloat16), "view": ()}


def measure(precision: str, method: str, batch: int, length: int, repeats: int) -> dict:
    torch.manual_seed(0)
    model, machine = load_pretrained(BUILT_IN).train(), choose_machine("cpu", precision)
    if method != "none":
        peft.apply(model, method)
    ids, labels = torch.randint(5, 8000, (batch, length)), torch.randint(0, 2, (batch,))
    mask = torch.ones_like(ids, dtype=torch.bool)

    def step() -> None:
        with machine.autocast():
            logits = model(ids, mask)
        cross_entropy(logits.float(), labels).backward()
        model.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def score() -> None:
        with machine.autocast():
            model.eval()(ids, mask)
        model.train()

    times: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for form, DisentangledAttention.GATHERED in FORMS.items():
            for work in (step, score):
                begin = time.perf_counter()
                work()
                times.setdefault(f"{work.__name__} {form}", []).append(time.perf_counter() - begin)
    medians = {key: statistics.median(values[1:]) for key, values in times.items()}  # the first warms up
    row = {key: round(value, 3) for key, value in medians.items()}
    for work in ("step", "score"):
        row[f"{work}, of the time"] = round(medians[f"{work} view"] / medians[f"{work} gather"], 2)
    return {"precision": precision, "peft": method, "batch": f"{batch} x {length}", **row}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    keep_freed_memory()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    print(f"{choose_machine('cpu', 'auto')}, torch {torch.__version__} {limit}".rstrip())
    for precision in ("bf16", "fp32"):
        for method in ("none", "lora"):
            for batch, length in ((8, 256), (4, 512)):
                print(json.dumps(measure(precision, method, batch, length, repeats)), flush=True)
