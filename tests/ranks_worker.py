"""Computes the loss and gradients of each objective, and trains, with the ranks of torch.distributed or in one process.

`main`, in a process of each rank (tests/processes.py), writes RANK.safetensors, and trains the runs of
FOLDER/runs.json, a list of arguments of train.py.
"""

import contextlib
import itertools
import json
import math
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from conftest import adapt, tiny, token_batch
from safetensors.torch import save_file
from test_pretraining import FakeTokenizer

import train
from data import ranks
from data.batches import Batch
from data.corpus import Corpus
from data.errors import clean_exit
from data.ranks import add_rows, alone, leaving, own_share, rank, size
from losses import OBJECTIVES
from nn import Model, distributed
from nn.distributed import GradientSum
from nn.dropout import set_dropout
from nn.quant import quantize_int8
from nn.runtime import Machine
from nn.sharding import compute, release, shard, whole
from peft import scoring

OPTIONS = {"mixed": {"vat_weight": 0.0}, "adversarial": {"vat_weight": 1.0}, "mlm": {"bag_weight": 0.5}}
OPTIONS |= {"lm": {"cutoffs": "11,29"}, "tv": {"skipped_words": 7}}
CASES = dict.fromkeys(("supcon", "rdrop_supcon", "adversarial", "mixed", "mlm", "rtd"), ("bert", "none"))
CASES |= {"supcon lora": ("bert", "lora"), "supcon prefix": ("bert", "prefix")}
CASES |= {"lm": ("lstm", "none"), "lm cnn_lstm": ("cnn_lstm", "none"), "tv": ("cnn", "none")}
CHANGES = {"lm": {"num_layers": 1}, "tv": {"region_width": 5}}  # of the tiny model
SHARDED = {"ce": ("deberta", "none"), "mixed": ("bert", "none")}
SHARDED |= {"rdrop int8": ("bert", "lora"), "supcon modernbert": ("modernbert", "prefix")}
LENGTHS = {"even": [5, 7, 11, 13, 17, 19, 23], "one row": [13]}
SEED = 5


def example(lengths: list[int], seed: int) -> Batch:
    ids, mask = token_batch(lengths, seed=seed)
    ids[:, 0] = 1
    return Batch(ids, mask, torch.arange(len(lengths)) % 2, torch.arange(len(lengths)))


def gradients(case: str, lengths: list[int], sharded: bool = False) -> dict[str, torch.Tensor]:
    """Returns the loss and all gradients of one batch, summed over the ranks; of a sharded model, gathered."""
    name, (model_name, method) = case.split()[0], (CASES | SHARDED)[case]
    entry, model = OBJECTIVES[name], tiny(model_name, **CHANGES.get(name, {}))
    if name == "tv":
        model.regions.word.weight.data[0] = 0  # padding, whose number of columns differs by rank
    model = quantize_int8(model) if case.endswith("int8") else model
    model = model if method == "none" else adapt(model, method)
    options = entry.options(**OPTIONS.get(name, {}))
    entry.prepare(model, options, FakeTokenizer())
    set_dropout(model, 0)
    batch = example(lengths, 0)._replace(unlabelled=example([3, 9, 4], 1) if entry.unlabelled else None)
    torch.manual_seed(SEED)
    batch = batch if alone() else own_share(batch, SEED)
    if sharded:
        model.checkpointing = True
        shard(model, torch.device("cpu"))
    with mock.patch.object(torch, "randn_like", seeded_noise) if alone() else contextlib.nullcontext():
        loss, _ = compute(entry.objective, model.train(), batch, options)
    loss = batch.part(loss) if entry.additive else loss
    loss.backward()
    release(model)
    assert not sharded or kept_bytes(model) == ceil_bytes(model)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    GradientSum([] if sharded else list(trained.values())).finish()
    found = {key: whole(p.grad) for key, p in trained.items() if p.grad is not None}
    return found | {"loss": torch.from_numpy(add_rows(loss.detach().double().numpy().reshape(1)))}


def seeded_noise(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Draws the noise that the ranks draw for the whole batch."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED), dtype=dtype)


def kept_bytes(model: Model) -> int:
    """Returns the memory of the rows that this rank keeps of a sharded model."""
    return sum(p.to_local().untyped_storage().nbytes() for p in model.parameters())


def ceil_bytes(model: Model) -> int:
    """Returns the bytes of ⌈n / R⌉ rows of each parameter with n rows."""
    return sum(math.ceil(len(p) / size()) * p[0].numel() * p.element_size() for p in model.parameters())


def scores(sharded: bool = False) -> torch.Tensor:
    """Returns the logits of 10 reviews in batches of at most 64 tokens."""
    lengths = [5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
    ids, _ = token_batch(lengths, seed=2)
    corpus = Corpus.from_rows([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)], [0] * 10, 0)
    before, scoring.scoring_tokens = scoring.scoring_tokens, lambda *_: 64
    machine = Machine(torch.device("cpu"), torch.float32)
    model = shard(tiny("bert"), machine.device) if sharded else tiny("bert")
    logits = scoring.score(model, corpus, machine)
    scoring.scoring_tokens = before
    return torch.from_numpy(logits)


def all_cases(cases: Iterable[str] = CASES, sharded: bool = False) -> dict[str, torch.Tensor]:
    found = {
        f"{case}/{kind}/{name}": tensor
        for case in cases
        for kind, lengths in LENGTHS.items()
        for name, tensor in gradients(case, lengths, sharded).items()
    }
    return found | {"scores": scores(sharded)}


def train_all(runs: list[list[str]]) -> None:
    """Trains the runs, also RTD's generator without dropout; their logs contain the loss of every step."""
    place = train.place

    def place_without_dropout(model: Model, *arguments: Any) -> Model:
        """Places a model with all that its objective added to it."""
        set_dropout(model, 0)
        return place(model, *arguments)

    changes = {"LOG_STEPS": 1, "place": place_without_dropout}
    with mock.patch.multiple(train, **changes):
        for arguments in runs:
            train.main(arguments)


def count_early_buckets() -> list[int]:
    """Returns a list that grows by the number of buckets that each backward pass sent."""
    finish, numbers = GradientSum.finish, []

    def counting(gradient_sum: GradientSum) -> None:
        numbers.append(len(gradient_sum.sent))
        finish(gradient_sum)

    GradientSum.finish = counting
    return numbers


def fail(kind: str, number: int, step: int) -> None:
    """Makes rank `number` fail at a step: "nan", "memory", "killed", or "signal" after it."""
    gradient, compute, steps = train.gradient, train.compute, itertools.count(1)

    def without_loss(*arguments: Any) -> Any:
        loss, output = compute(*arguments)
        return loss * math.nan, output

    def failing(t: train.Training, *arguments: Any) -> list[train.Pass]:
        if next(steps) == step and rank() == number:
            if kind == "nan":
                train.compute = without_loss
                return gradient(t, *arguments)
            if kind == "memory":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGKILL if kind == "killed" else signal.SIGTERM)
        return gradient(t, *arguments)

    train.gradient = failing


def main(folder: Path, number: int, count: int, port: int, fault: str) -> None:
    """fault: "", "sharded": with sharded models, "train": only the runs; KIND RANK STEP: of `fail`, in the first run"""
    torch.set_num_threads(1)
    distributed.BUCKET_BYTES = 256  # several buckets
    early = count_early_buckets()
    group = {"RANK": number, "WORLD_SIZE": count, "LOCAL_RANK": number, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    runs = json.loads((folder / "runs.json").read_text())
    if fault not in ("", "sharded", "train"):
        os.environ |= {name: str(value) for name, value in group.items()}
        kind, *places = fault.split()
        fail(kind, *map(int, places))
        with leaving(), clean_exit():
            train.main(runs[0])
        return
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=number, world_size=count)
    assert (rank(), size()) == (number, count)
    with leaving():
        if fault != "train":
            found = all_cases(SHARDED, sharded=True) if fault else all_cases()
            save_file(found, folder / f"{number}.safetensors")
        train_all(runs)
        (folder / f"{number}.early.json").write_text(json.dumps(early))
        dist.barrier()


def join(seconds: float) -> None:
    """Waits for the other ranks for `seconds`."""
    ranks.JOINING, ranks.NOTICE = seconds, 0.1
    with leaving(), clean_exit(), ranks.joined("cpu"):
        pass
