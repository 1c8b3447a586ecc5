"""Compares the two forms of DeBERTa's relative terms: training steps and scoring with the gather and with the view.

    python tests/bench/relative.py [--repeats N] | tee tests/bench/relative.txt
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python tests/bench/relative.py    as on a CPU without matrix units

Gather: products with the rows that occur, then a gather. View: products with one row per distance, then a strided view
(nn/deberta.py, `position_scores`). Both forms run on the same model in alternation; the times are medians in seconds,
and "gather / view" is the speed-up by the view.
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
FORMS = {"gather": (torch.float32, torch.bfloat16), "view": ()}  # values of GATHER_DTYPES


def measure(precision: str, method: str, batch: int, length: int, repeats: int) -> dict:
    """Measures both forms with the adaptation method `method` ("none": fine-tuning). Returns a row of results."""
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
        for form, DisentangledAttention.GATHER_DTYPES in FORMS.items():
            for work in (step, score):
                begin = time.perf_counter()
                work()
                times.setdefault(f"{work.__name__} {form}", []).append(time.perf_counter() - begin)
    medians = {key: statistics.median(values[1:]) for key, values in times.items()}  # the first call is a warm-up
    row = {key: round(value, 3) for key, value in medians.items()}
    for work in ("step", "score"):
        row[f"{work}, gather / view"] = round(medians[f"{work} gather"] / medians[f"{work} view"], 2)
    return {"precision": precision, "peft": method, "batch": f"{batch} x {length}", **row}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="measured calls of each form")
    repeats = parser.parse_args().repeats
    keep_freed_memory()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    print(f"{choose_machine('cpu', 'auto')}, torch {torch.__version__} {limit}".rstrip())
    for precision in ("bf16", "fp32"):
        for method in ("none", "lora"):
            for batch, length in ((8, 256), (4, 512)):
                row = measure(precision=precision, method=method, batch=batch, length=length, repeats=repeats)
                print(json.dumps(row), flush=True)
