"""Measures our speed and memory against the fastest setting of other libraries, on reviews with IMDB's lengths.

    pip install transformers peft bitsandbytes scikit-learn openvino nncf onnx onnxruntime
    python tests/bench/peers.py IMDB_FOLDER [WORK …] [--repeats N] [--blocks N] [--out FILE.json]

WORK, the default is all:
    score-512, score-int8-512    logits of BERT, 6 layers, 384 wide, up to 512 tokens
    score-deberta-512            logits in the shape of DeBERTa-v3-xsmall; likewise score-deberta-int8-512
    finetune-512, finetune-256   all weights of the same BERT, batches of 16
    lora-512                     LoRA on query and value in the shape of DeBERTa-v3-xsmall, batches of 8, and the memory
                                 of one step
    int8-128                     LoRA on an 8-bit model in the shape of DeBERTa-v3-base, batches of 4 × 128
    mlm-128                      ours alone: --loss mlm, chunks of 128, batches of 128, 4 and 6 layers, 256 wide

All libraries have the same weights, reviews, optimizer and process. A search first finds the fastest setting of each
library (measure.py; the axes are in peer_models.py). Then the fastest settings and ours alternate, and medians are
compared: in fp32 with the fastest library in fp32, in bf16 with the fastest in bf16 or fp32, in int8 with the fastest
in int8. Logits are compared before they are timed.

In the output, `ours` is --precision fp32 and `ours, auto` is what --precision auto chooses here. Speeds are reviews, in
mlm-128 subwords, per second; `memory` is the peak of all tensors of one step, weights not counted, in MiB;
`search` has the seconds of every setting that was tried.
"""

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as train.py, for all libraries
sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from bench import peer_models as theirs
from bench.measure import Candidate, Run, alternate, compared_row, finalists, tune
from bench.workload import (
    Workload,
    epoch,
    full_rows,
    new_folder,
    optimizer_step,
    prepare,
    sample_rows,
    scoring,
    training,
    training_of,
    unsplit_step,
)
from memory_account import Live

from data import LABELED, find_file
from data.imdb import load_reviews
from nn.runtime import choose_machine, describe_device, keep_freed_memory
from train import epoch_order

Rows = list[dict[str, Any]]
OURS = ("ours", "ours, auto")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "openvino", "nncf", "onnxruntime")
SCORERS = {  # library -> builder of runs, axes, precisions
    "transformers": (theirs.transformers_scoring, theirs.transformers_axes, ("fp32", "bf16", "int8")),
    "OpenVINO": (theirs.openvino_scoring, theirs.openvino_axes, ("fp32", "bf16", "int8")),
    "ONNX Runtime": (theirs.onnxruntime_scoring, theirs.onnxruntime_axes, ("fp32", "int8")),
}
# largest difference from our fp32 logits, in standard deviations of the logits of all reviews; random weights amplify
# the rounding of bf16 and int8
TOLERANCE = {"fp32": 1e-3, "bf16": 0.5, "int8": 2.0}
MLM = "--model deberta --loss mlm --weights none --batch-size 128 --shape"
NO_DROPOUT = "hidden_dropout_prob=0 attention_probs_dropout_prob=0"  # as the built-in weights were pretrained
MLM_REVIEWS, MLM_BATCHES = 2000, 2


def has_bf16() -> bool:
    """Returns whether --precision auto is bf16 on this machine."""
    return choose_machine("cpu", "auto").dtype == torch.bfloat16


def precisions() -> dict[str, str]:
    """Returns our two runs and their --precision; without bf16 only the first."""
    return {"ours": "fp32", "ours, auto": "auto"} if has_bf16() else {"ours": "fp32"}


# ---------------------------------------------------------------------------------------------------------- scoring


def search_scorers(work: Workload, kinds: tuple[str, ...], log: dict[str, float]) -> dict[str, list[Candidate]]:
    """Returns the fastest setting of each library, for each precision. A library with other logits is left out."""
    want = scoring(work, "fp32")()
    found: dict[str, list[Candidate]] = {kind: [] for kind in kinds}
    for library, (scorer, axes, supported) in SCORERS.items():
        build = scorer(work)
        for kind in (kind for kind in kinds if kind in supported):
            best = tune(library, build, axes(work, kind), log)
            if logits_agree(best, want, kind):
                found[kind].append(best)
    return found


def logits_agree(candidate: Candidate, want: np.ndarray, kind: str) -> bool:
    """Returns whether the logits differ by at most TOLERANCE from `want`, float32 [N, C], and prints the difference."""
    error = np.abs(candidate.run() - want).max() / want.std(0).min()
    agree = bool(error <= TOLERANCE[kind])
    verdict = "" if agree else "; left out"
    print(f"  {candidate.name}: logits differ by up to {error:.2g} standard deviations{verdict}", flush=True)
    return agree


def score_rows(work: Workload, title: str, found: dict[str, list[Candidate]], repeats: int, int8: bool) -> Rows:
    """Alternates the fastest settings with ours and returns a row for each precision."""
    found = {kind: finalists(candidates) for kind, candidates in found.items()}
    mine: dict[str, Run] = {name: scoring(work, precision, int8) for name, precision in precisions().items()}
    if int8 and has_bf16():
        mine["ours, bf16 without int8"] = scoring(work, "bf16")
    medians = alternate(mine | {c.name: c.run for candidates in found.values() for c in candidates}, repeats)
    names = {kind: [c.name for c in candidates] for kind, candidates in found.items()}
    if int8:
        return [compared_row(f"{title}, int8", medians, tuple(mine), names["int8"], len(work.corpus))]
    return rows_by_precision(title, medians, names, len(work.corpus))


def rows_by_precision(title: str, medians: dict[str, float], names: dict[str, list[str]], amount: float) -> Rows:
    """Returns the row of fp32 and, where ours has one, of bf16, which is compared with fp32 as well."""
    rows = [compared_row(f"{title}, fp32", medians, ("ours",), names["fp32"], amount)]
    if "bf16" in names:
        both = names["fp32"] + names["bf16"]
        rows.append(compared_row(f"{title}, bf16", medians, ("ours, auto",), both, amount))
    return rows


def score(imdb: str, shape: str, int8: bool, repeats: int, blocks: int) -> Rows:
    """Computes logits, without gradients."""
    work = prepare(imdb, shape, 512, partial(sample_rows, block=32 if shape == "bert" else 16, blocks=blocks))
    kinds = ("int8",) if int8 else ("fp32", "bf16") if has_bf16() else ("fp32",)
    log: dict[str, float] = {}
    found = search_scorers(work, kinds, log)
    title = f"scoring, {'BERT' if shape == 'bert' else 'DeBERTa'}, 512"
    return with_search(score_rows(work, title, found, repeats, int8), log)


def with_search(rows: Rows, log: dict[str, float]) -> Rows:
    """Adds the seconds of all settings to the rows."""
    return [row | {"search": {name: round(value, 3) for name, value in log.items()}} for row in rows]


# --------------------------------------------------------------------------------------------------------- training


def train_rows(
    work: Workload, title: str, library: str, batch: int, repeats: int, make: Callable, flags: tuple[str, ...] = ()
) -> Rows:
    """Trains with the library's fastest settings and with ours. make: builds the library's model"""
    build, names = theirs.training_builder(work, batch, make), {}
    log: dict[str, float] = {}
    runs = {name: epoch(training_of(work, precision, batch, *flags)) for name, precision in precisions().items()}
    for kind in ("fp32", "bf16") if has_bf16() else ("fp32",):
        best = tune(library, build, theirs.training_axes(work, kind), log)
        runs[best.name], names[kind] = best.run, [best.name]
    return with_search(rows_by_precision(title, alternate(runs, repeats), names, len(work.corpus)), log)


def finetune(imdb: str, length: int, repeats: int, blocks: int) -> Rows:
    """Trains all weights of BERT."""
    work = prepare(imdb, "bert", length, partial(sample_rows, block=16, blocks=blocks))
    make = lambda attention: theirs.theirs_like(work.model, attention)  # noqa: E731
    return train_rows(work, f"fine-tuning, {length}", "transformers", 16, repeats, make)


LORA = ("--peft", "lora", "--rank", "8", "--alpha", "16")


def lora(imdb: str, length: int, repeats: int, blocks: int) -> Rows:
    """Trains LoRA on DeBERTa; measures the memory of a step with 8 × `length` tokens in one pass."""
    work = prepare(imdb, "xsmall", length, partial(sample_rows, block=8, blocks=blocks))
    make = lambda attention: theirs.with_lora(theirs.theirs_like(work.model, attention))  # noqa: E731
    rows = train_rows(work, f"DeBERTa LoRA, {length}", "peft", 8, repeats, make, LORA)
    full, longest = prepare(imdb, "xsmall", length, partial(full_rows, count=8)), np.arange(8)
    for row, name, precision in zip(rows, ("ours", "auto"), ("fp32", "bf16"), strict=False):
        step, mine = theirs.Step(make("eager"), precision), training_of(full, precision, 8, *LORA)
        row[f"memory {peer_of(row)}"] = peak(lambda step=step: step(full.corpus.batch(longest)))
        row[f"memory {name}"] = peak(lambda mine=mine: unsplit_step(mine, longest))
    return rows


def peer_of(row: dict[str, Any]) -> str:
    """Returns the library and setting of a row."""
    return next(name for name in row if name != "work")


def peak(step: Callable[[], Any]) -> int:
    """Measures the peak of all tensors that a step makes, in MiB. The first call makes the optimizer's moments."""
    step()
    with Live() as live:
        step()
    return round(live.peak / 2**20)


def int8(imdb: str, length: int, repeats: int, blocks: int) -> Rows:
    """Trains LoRA on an 8-bit DeBERTa; one step of four reviews."""
    work = prepare(imdb, "base", length, partial(sample_rows, block=4, blocks=1))
    peer = theirs.with_lora(theirs.bitsandbytes_int8(theirs.theirs_like(work.model)))
    rows, batch = np.arange(4), work.corpus.batch(np.arange(4))
    runs: dict[str, Run] = {}
    for precision in ("fp32", "bf16") if has_bf16() else ("fp32",):
        step = theirs.Step(peer, precision)
        runs[f"bitsandbytes, {precision}"] = lambda step=step: step(batch)
    peers = list(runs)
    for name, precision in precisions().items():
        mine = training_of(work, precision, 4, *LORA, "--quantize", "int8")
        runs[name] = lambda mine=mine: optimizer_step(mine, [rows])
    medians = alternate(runs, repeats)
    log = {name: medians[name] for name in peers}
    return with_search([compared_row(f"8-bit LoRA step, 4 x {length}", medians, OURS, peers, 4)], log)


def mlm(imdb: str, length: int, repeats: int, blocks: int) -> Rows:
    """Pretrains ours; subwords per second, padding not counted."""
    frame = load_reviews(find_file(Path(imdb), LABELED)[0])[:MLM_REVIEWS]
    tokenizer, folder, rows = None, new_folder(), []
    for layers in (4, 6):
        row: dict[str, Any] = {"work": f"pretraining, {layers} x 256, chunks of {length}"}
        runs: dict[str, Run] = {}
        for name, precision in precisions().items():
            flags = [*MLM.split(), f"num_layers={layers} {NO_DROPOUT}", "--max-length", str(length)]
            t = training([*flags, "--precision", precision], frame, tokenizer, folder)
            tokenizer = t.tokenizer
            steps = epoch_order(t.corpus, t.settings.options, 0)[:MLM_BATCHES]
            runs[name] = lambda t=t, steps=steps: [optimizer_step(t, [rows]) for rows in steps]
        subwords = int(sum(t.corpus.lengths[rows].sum() for rows in steps))
        row |= {name: round(subwords / value) for name, value in alternate(runs, repeats).items()}
        rows.append(row)
    return rows


WORKS: dict[str, Callable[..., Rows]] = {
    "score-512": partial(score, shape="bert", int8=False),
    "score-int8-512": partial(score, shape="bert", int8=True),
    "score-deberta-512": partial(score, shape="xsmall", int8=False),
    "score-deberta-int8-512": partial(score, shape="xsmall", int8=True),
    "finetune-512": partial(finetune, length=512),
    "finetune-256": partial(finetune, length=256),
    "lora-512": partial(lora, length=512),
    "int8-128": partial(int8, length=128),
    "mlm-128": partial(mlm, length=128),
}


def write_rows(path: Path, rows: Rows) -> None:
    """Writes the rows to a file: those with a compared library to `rows`, the others to `alone`. Rows of other works
    that it contains are kept."""
    known = json.loads(path.read_text()) if path.exists() else {}
    data: dict[str, Any] = {"machine": describe_device(torch.device("cpu"))}
    data |= {name: version(name) for name in PACKAGES}
    for key in ("rows", "alone"):
        new = [row for row in rows if any(name.startswith("ratio") for name in row) == (key == "rows")]
        data[key] = [old for old in known.get(key, []) if old["work"] not in {row["work"] for row in new}] + new
    path.write_text(json.dumps(data, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("work", nargs="*", help=", ".join(WORKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=2, help="batches, each of another length")
    parser.add_argument("--out", default="", help="rows of the same work are replaced")
    given = parser.parse_args()
    if unknown := [work for work in given.work if work not in WORKS]:
        parser.error(f"unknown work {unknown[0]!r}; known: {', '.join(WORKS)}")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # of the libraries
    keep_freed_memory()
    for work in given.work or WORKS:
        begin = time.perf_counter()
        rows = WORKS[work](given.folder, repeats=given.repeats, blocks=given.blocks)
        for row in rows:
            print(json.dumps({key: value for key, value in row.items() if key != "search"}), flush=True)
        print(f"{work}: {time.perf_counter() - begin:.0f} s", flush=True)
        if given.out:
            write_rows(Path(given.out), rows)


if __name__ == "__main__":
    main()
