"""One experiment from top to bottom: options, data, model, method, optimizer, the loop, the score.

    python train.py --model deberta --peft lora
    python train.py --model bert --peft lora --weights DIR_OR_HUB_ID --data DIR
    python train.py --resume runs/NAME

Reading this file from here to the end is the run. The math is one table line away: nn/ (MODELS), peft/ (METHODS),
losses/ (OBJECTIVES).
"""

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import LayerNorm, Module
from tqdm import tqdm

import peft
from data import Splits, find_source, load_splits, overlap
from data.batches import Batch, shuffled_order
from data.imdb import UNKNOWN
from data.runs import Run, known, layer, option, parse_flags
from data.tokenization import Tokenizer, load_tokenizer, train_tokenizer
from eval import build_corpus, load_run, metrics, print_metrics, score
from losses import OBJECTIVES
from nn import MODELS
from nn.checkpoint import BUILTIN, load_pretrained, save_pretrained, write_json
from nn.runtime import (
    Interrupt,
    Stopped,
    autocast,
    choose_device,
    choose_precision,
    clean_exit,
    derive_seed,
    describe_device,
    keep_freed_memory,
    peak_memory,
    random_state,
    set_random_state,
)
from peft import METHODS

LOG_STEPS = 50
FROM_NOTHING = {"learning_rate": 5e-4, "epochs": 6}  # training defaults where the weights are random


@dataclasses.dataclass(frozen=True)
class Options:
    model: str = option("deberta", "what", f"architecture: {', '.join(MODELS)}")
    peft: str = option("none", "what", f"what is trained of it: {', '.join(METHODS)} (none: everything)")
    loss: str = option("ce", "what", f"objective: {', '.join(OBJECTIVES)}")
    weights: str = option("", "what", "none (random), a checkpoint directory, or a hub id; default: the model's own")
    num_labels: int = option(2, "what", "classes of the head")

    data: str = option("", "data", "IMDB folder, aclImdb, a TSV or CSV, or demo; default: $IMDB_DIR, data/imdb/, demo")
    text_column: str = option("", "data", "column of a TSV or CSV that holds the text")
    label_column: str = option("", "data", "column that holds the label, 0 or 1")
    skip_bad_rows: bool = option(False, "data", "leave broken rows out instead of stopping")
    train_reviews: int = option(0, "data", "train on this many reviews of the training split only; 0: on all")
    max_length: int = option(256, "data", "tokens a review is cut to, [CLS] and [SEP] included")
    vocab_size: int = option(4000, "data", "pieces of a tokenizer that is trained here")

    epochs: int = option(3, "training", "passes over the training split")
    batch_size: int = option(16, "training", "reviews in a forward pass")
    accumulation: int = option(1, "training", "forward passes in an optimizer step")
    learning_rate: float = option(3e-5, "training", "peak rate of AdamW")
    head_learning_rate: float = option(0.0, "training", "rate of the head; 0: the learning rate")
    weight_decay: float = option(0.01, "training", "of everything but biases and norms")
    warmup: float = option(
        0.06, "training", "part of all steps in which the rate rises; then it falls to 0, both linearly"
    )
    clip: float = option(1.0, "training", "largest norm of the gradient; 0: no limit")
    label_smoothing: float = option(0.0, "training", "ε of the cross-entropy")
    patience: int = option(0, "training", "stop after this many epochs without a better validation accuracy; 0: never")
    seed: int = option(42, "training", "feeds initialisation, order and dropout, each by a stream of its own")

    rank: int = option(8, "LoRA", "R")
    alpha: float = option(16.0, "LoRA", "the update is scaled by alpha / R")
    lora_dropout: float = option(0.0, "LoRA", "dropout on the input of the update")
    targets: str = option(
        "", "LoRA", "layers, with commas between (query,value), or all-linear; default: the model's own"
    )

    device: str = option("auto", "machine", "cpu, cuda, cuda:1, mps or auto")
    precision: str = option("auto", "machine", "fp32, bf16, fp16, or auto: bf16 where the hardware multiplies it")
    checkpointing: bool = option(False, "machine", "recompute each layer in the backward pass: less memory, more time")
    save_minutes: float = option(
        5.0, "machine", "how often the state to resume from is saved, beside every epoch's end"
    )

    name: str = option("", "run", "folder below --runs; default: made from model, method, data and time")
    runs: str = option("runs", "run", "where run folders are made")
    resume: str = option("", "run", "go on with this run folder, with its own options")


def resolve(argv: list[str] | None) -> tuple[Options, dict[str, str], Run | None]:
    """default < model < method < objective < random weights < command line. Returns the run too where one is resumed."""
    given = parse_flags(Options, argv, __doc__.splitlines()[0])
    if given.get("resume"):
        others = [f"--{name.replace('_', '-')}" for name in given if name != "resume"]
        if others:
            raise ValueError(f"--resume goes on with the run's own options; leave out {', '.join(others)}")
        run = Run.open(given["resume"])
        return Options(**run.config["options"]), run.config["origins"], run
    model = known("model", given.get("model", Options.model), MODELS)
    method = known("method", given.get("peft", Options.peft), METHODS)
    objective = known("objective", given.get("loss", Options.loss), OBJECTIVES)
    weights = given.get("weights", model.weights)
    if weights == "builtin":
        weights = str(BUILTIN) if BUILTIN.is_dir() else "none"
    layers = [("model", model.training | {"weights": weights}), ("method", method.training)]
    layers += [("objective", objective.training)]
    layers += [("random weights", FROM_NOTHING)] if weights == "none" else []
    options, origins = layer(Options, [*layers, ("command line", given)])
    for name in ("epochs", "batch_size", "accumulation", "max_length", "num_labels"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    return options, origins, None


def start_run(options: Options, origins: dict[str, str], device: torch.device, dtype: torch.dtype) -> Run:
    source = Path(options.data).name.split(".")[0] or "data"
    name = options.name or f"{options.model}-{options.peft}-{source}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = {"options": dataclasses.asdict(options), "origins": origins}
    return Run.create(
        Path(options.runs) / name,
        config | {"device": describe_device(device), "precision": str(dtype).removeprefix("torch.")},
    )


# ----------------------------------------------------------------------------------------- data, model and method


def load_data(options: Options, cache: Path) -> Splits:
    splits = load_splits(options.data, options.text_column, options.label_column, options.skip_bad_rows, cache)
    if options.train_reviews:
        splits = splits._replace(train=subset(splits.train, options.train_reviews, options.seed))
    print("reviews: " + ", ".join(f"{len(frame):,} {name}" for name, frame in zip(Splits._fields, splits, strict=True)))
    twice = ", ".join(f"{count} {where}" for where, count in overlap(splits).items() if count)
    if twice:
        print(f"the same text twice: {twice}")
    return splits


def subset(frame: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """`count` rows, the same number of each label, drawn by the seed."""
    groups = [group for _, group in frame.groupby("sentiment")]
    if count < len(groups) or count > len(frame):
        raise ValueError(f"--train-reviews {count} is outside {len(groups)} … {len(frame)}")
    shares = [count // len(groups) + (i < count % len(groups)) for i in range(len(groups))]
    parts = [g.sample(min(n, len(g)), random_state=seed) for g, n in zip(groups, shares, strict=True)]
    return pd.concat(parts).sort_index().reset_index(drop=True)


def prepare_tokenizer(options: Options, run: Run, train: pd.DataFrame) -> Tokenizer:
    """The one that comes with the weights; for random weights a new one, trained on the training split."""
    if (run.tokenizer / "tokenizer_config.json").is_file():
        return load_tokenizer(run.tokenizer)
    if options.weights == "none":
        tokenizer = train_tokenizer(MODELS[options.model].tokenizer, train["review"], options.vocab_size)
    else:
        tokenizer = load_tokenizer(options.weights)
    tokenizer.save(run.tokenizer)
    return tokenizer


def build_model(options: Options, tokenizer: Tokenizer) -> Module:
    """Published weights where there are any, then the method on top. `model.fresh` names what is random."""
    entry = MODELS[options.model]
    torch.manual_seed(derive_seed(options.seed, "initialisation"))
    if options.weights == "none":
        names = (
            ("negative", "positive") if options.num_labels == 2 else [f"LABEL_{i}" for i in range(options.num_labels)]
        )
        own = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id, "labels": tuple(names)}
        model = entry.build(entry.build.Config(**entry.shape | own))
        model.fresh = frozenset(name for name, _ in model.named_parameters())
        print(
            f"weights: none; {options.model} starts from random weights, with a tokenizer trained on the training split"
        )
        if options.peft != "none":
            print(
                f"warning: random weights are all trained, whatever --peft {options.peft} would freeze of pretrained ones"
            )
    else:
        model = load_pretrained(options.weights, options.num_labels)
        if not isinstance(model, entry.build):
            raise ValueError(
                f"{options.weights} holds a {model.model_type} model, not the one of --model {options.model}"
            )
        random = f"new and random: {', '.join(sorted(model.fresh))}" if model.fresh else "head included"
        print(f"weights: {options.weights} ({random})")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"the tokenizer knows {tokenizer.vocab_size} pieces, the model {model.config.vocab_size}")
    method = {name: getattr(options, name) for name in METHODS[options.peft].options}
    model = peft.apply(model, options.peft, **method)
    model.checkpointing = options.checkpointing
    return model


def parameter_groups(model: Module, options: Options) -> list[dict[str, Any]]:
    """AdamW groups {body, head} × {decay, no decay}: biases and norms do not decay, the head has its own rate."""
    norms = {id(p) for m in model.modules() if isinstance(m, LayerNorm) for p in m.parameters()}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = name.split(".")[0] in model.HEAD
            decays = not (name.endswith("bias") or id(parameter) in norms)
            groups.setdefault((head, decays), []).append(parameter)
    rates = {False: options.learning_rate, True: options.head_learning_rate or options.learning_rate}
    return [
        {
            "params": params,
            "peak": rates[head],
            "lr": rates[head],
            "weight_decay": options.weight_decay if decays else 0.0,
        }
        for (head, decays), params in groups.items()
    ]


def schedule(step: int, total: int, warmup: float) -> float:
    """Factor of the peak rate at step 0 … total-1: up linearly over warmup·total steps, then down linearly to 0."""
    rise = math.ceil(warmup * total)
    return (step + 1) / rise if step < rise else (total - step) / max(1, total - rise)


# ------------------------------------------------------------------------------------------- saving and resuming


def save_best(model: Module, run: Run, options: Options, tokenizer: Tokenizer) -> None:
    """best/: a model directory, or an adapter beside its backbone's name; a backbone that was trained goes to best/base."""
    if options.peft == "none":
        save_pretrained(model, run.best)
    elif peft.trains_backbone(model):
        peft.save_base(model, run.best / "base")
        peft.save_adapter(model, run.best, "base")
    else:
        directory = Path(options.weights)
        peft.save_adapter(model, run.best, str(directory.resolve()) if directory.is_dir() else options.weights)
    tokenizer.save(run.best)


def save_state(run: Run, model: Module, optimizer, scaler, progress: dict[str, Any], device: torch.device) -> None:
    tensors = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    run.save_state(tensors | random_state(device), progress | {"scaler": scaler.state_dict()})


def load_state(run: Run, model: Module, optimizer, scaler, device: torch.device) -> dict[str, Any] | None:
    """Puts everything back as `save_state` found it; returns the progress, or None where nothing was saved yet."""
    saved = run.load_state()
    if saved is None:
        return None
    tensors, progress = saved
    moments: dict[int, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(tensors[f"model.{name}"])
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    scaler.load_state_dict(progress["scaler"]) if progress["scaler"] else None
    set_random_state(tensors, device)
    return progress


# ------------------------------------------------------------------------------------------------------ the loop


def train(options: Options, run: Run, device: torch.device, dtype: torch.dtype, interrupt: Interrupt) -> None:
    splits = load_data(options, run.folder.parent / ".cache")
    tokenizer = prepare_tokenizer(options, run, splits.train)
    corpus, held_out = (build_corpus(tokenizer, frame, options.max_length) for frame in splits[:2])
    model = build_model(options, tokenizer).to(device).train()
    objective = OBJECTIVES[options.loss].objective
    optimizer = torch.optim.AdamW(parameter_groups(model, options), betas=(0.9, 0.999), eps=1e-6, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    trainable = [p for p in model.parameters() if p.requires_grad]
    counts = {
        "trained": sum(p.numel() for p in trainable),
        "total": sum(p.numel() for p in model.parameters()),
    }
    print(
        f"training {counts['trained']:,} of {counts['total']:,} parameters ({counts['trained'] / counts['total']:.2%})"
    )

    steps_per_epoch = math.ceil(math.ceil(len(corpus) / options.batch_size) / options.accumulation)
    total_steps = options.epochs * steps_per_epoch
    progress = {
        "epoch": 0,
        "step": 0,
        "sums": new_sums(),
        "best": 0.0,
        "best_epoch": 0,
        "history": [],
        "seconds": 0.0,
    }
    progress |= load_state(run, model, optimizer, scaler, device) or seed_dropout(options)
    clock = Clock(progress["seconds"], options.save_minutes)

    while progress["epoch"] < options.epochs and not out_of_patience(progress, options):
        epoch, sums = progress["epoch"], progress["sums"]
        order = shuffled_order(corpus.lengths, options.batch_size, options.seed, epoch)
        bar = tqdm(
            total=steps_per_epoch,
            initial=progress["step"],
            desc=f"epoch {epoch + 1}/{options.epochs}",
            leave=False,
            disable=None,
        )
        while progress["step"] < steps_per_epoch:
            step = progress["step"]
            micro = order[step * options.accumulation : (step + 1) * options.accumulation]
            count = sum(map(len, micro))
            factor = schedule(epoch * steps_per_epoch + step, total_steps, options.warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            for rows in micro:
                batch = corpus.batch(rows).to(device)
                with autocast(device, dtype):
                    loss, logits = objective(model, batch, options)
                if not torch.isfinite(loss):
                    save_state(run, model, optimizer, scaler, progress, device)
                    ids = splits.train["id"].iloc[rows].tolist()
                    raise ValueError(
                        f"loss {loss.item()} at epoch {epoch + 1}, step {step + 1}; the batch is {', '.join(ids)}"
                    )
                scaler.scale(loss * (len(rows) / count)).backward()  # the mean over the examples of the whole step
                add(sums, batch, loss, logits)
            if options.clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(trainable, options.clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            progress |= {"step": step + 1, "seconds": clock.seconds()}
            speed = sums["tokens"] / max(1e-9, sums["seconds"] + clock.lap())
            bar.set_postfix(
                loss=f"{sums['loss'] / sums['count']:.4f}",
                acc=f"{sums['correct'] / sums['count']:.4f}",
                tok_s=f"{speed:.0f}",
            )
            bar.update()
            if (step + 1) % LOG_STEPS == 0:
                run.log(
                    "step",
                    epoch=epoch + 1,
                    step=step + 1,
                    loss=loss.item(),
                    rate=factor,
                    tokens_per_second=round(speed),
                )
            if clock.due() or interrupt.asked or step + 1 == steps_per_epoch:
                sums["seconds"] += clock.lap(reset=True)
                save_state(run, model, optimizer, scaler, progress, device)
                interrupt.check()
        bar.close()

        found = metrics(score(model, held_out, device, dtype, interrupt), held_out.labels)
        record = {
            "epoch": epoch + 1,
            "train_loss": sums["loss"] / sums["count"],
            "train_acc": sums["correct"] / sums["count"],
            "val_loss": found["loss"],
            "val_acc": found["accuracy"],
            "tokens_per_second": round(sums["tokens"] / max(1e-9, sums["seconds"])),
            "seconds": round(clock.seconds(), 1),
        }
        if found["accuracy"] > progress["best"] or not progress["best_epoch"]:
            save_best(model, run, options, tokenizer)
            progress |= {"best": found["accuracy"], "best_epoch": epoch + 1}
        run.log("epoch", **record, best_epoch=progress["best_epoch"])
        print_epoch(record, found, options, progress)
        progress |= {"epoch": epoch + 1, "step": 0, "sums": new_sums(), "seconds": clock.seconds()}
        progress["history"].append(record)
        save_state(run, model, optimizer, scaler, progress, device)
        clock.lap(reset=True)

    del model, optimizer, trainable
    finish(options, run, splits, progress, counts, device, dtype, interrupt)


class Clock:
    """Seconds of work, over all sittings, and whether it is time to save."""

    def __init__(self, before: float, save_minutes: float) -> None:
        self.begin = self.mark = self.saved = time.perf_counter()
        self.before, self.save_seconds = before, 60 * save_minutes

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.begin

    def lap(self, reset: bool = False) -> float:
        now = time.perf_counter()
        elapsed, self.mark = now - self.mark, now if reset else self.mark
        return elapsed

    def due(self) -> bool:
        due = time.perf_counter() - self.saved >= self.save_seconds
        self.saved = time.perf_counter() if due else self.saved
        return due


def seed_dropout(options: Options) -> dict[str, Any]:
    torch.manual_seed(derive_seed(options.seed, "dropout"))
    return {}


def new_sums() -> dict[str, float]:
    return {"loss": 0.0, "correct": 0, "count": 0, "tokens": 0, "seconds": 0.0}


def add(sums: dict[str, float], batch: Batch, loss: Tensor, logits: Tensor) -> None:
    """Running totals of an epoch. Logits may repeat the batch (two dropout passes): the first rows count."""
    size = len(batch.labels)
    sums["loss"] += loss.item() * size
    sums["correct"] += int((logits[:size].argmax(-1) == batch.labels).sum())
    sums["count"] += size
    sums["tokens"] += int(batch.mask.sum())


def out_of_patience(progress: dict[str, Any], options: Options) -> bool:
    return bool(options.patience) and progress["epoch"] - progress["best_epoch"] >= options.patience


def print_epoch(record: dict[str, Any], found: dict[str, Any], options: Options, progress: dict[str, Any]) -> None:
    print(
        f"epoch {record['epoch']}/{options.epochs}: train_loss {record['train_loss']:.4f}, train_acc {record['train_acc']:.4f}, "
        f"val_loss {record['val_loss']:.4f}, val_acc {record['val_acc']:.4f}, {record['tokens_per_second']:,} tokens/s, "
        f"{record['seconds']:.0f} s" + (" (best)" if progress["best_epoch"] == record["epoch"] else ""),
        flush=True,
    )
    confusion = found.get("confusion")
    if confusion and 0 in [sum(column) for column in zip(*confusion, strict=True)]:
        print("warning: every validation review gets the same label; try another --learning-rate or more --epochs")


# ----------------------------------------------------------------------------------------------------- the score


def finish(options, run: Run, splits: Splits, progress, counts, device, dtype, interrupt: Interrupt) -> None:
    """Loads what was saved as best, scores the test split once and writes result.json."""
    model, tokenizer = load_run(run, device)
    result = {
        "command": run.config["command"],
        "model": options.model,
        "peft": options.peft,
        "loss": options.loss,
        "parameters": counts,
        "seconds": progress["seconds"],
        "peak_memory_bytes": peak_memory(device),
        "best_epoch": progress["best_epoch"],
        "history": progress["history"],
    }
    for name, frame in (("validation", splits.validation), ("test", splits.test)):
        frame = frame[frame["sentiment"] != UNKNOWN]
        if len(frame):
            corpus = build_corpus(tokenizer, frame, options.max_length)
            result[name] = metrics(score(model, corpus, device, dtype, interrupt), corpus.labels)
            print_metrics(name, result[name])
    keep = ("options", "origins", "started", "commit", "dirty", "versions", "device", "precision")
    write_json(run.folder / "result.json", result | {key: run.config[key] for key in keep})
    print(f'{run.folder}: python eval.py --run {run.folder} --text "…"')


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    options, origins, run = resolve(argv)
    device = choose_device(options.device)
    dtype = choose_precision(options.precision, device)
    if run is None:
        source, why = find_source(options.data)
        options = dataclasses.replace(options, data=source)
        print(f"data: {source} ({why})")
        run = start_run(options, origins, device, dtype)
    elif run.result is not None:
        print(f"{run.folder} is finished: test accuracy {run.result.get('test', {}).get('accuracy')}")
        return
    shown = {
        name: f"{value} ({origins[name]})"
        for name, value in dataclasses.asdict(options).items()
        if origins[name] != "default"
    }
    print(f"run: {run.folder} on {describe_device(device)}, {str(dtype).removeprefix('torch.')}")
    print("options: " + ", ".join(f"{name} {value}" for name, value in shown.items()))
    with Interrupt() as interrupt:
        try:
            train(options, run, device, dtype, interrupt)
        except Stopped:
            print(f"\nstopped and saved; go on with: python train.py --resume {run.folder}")
            sys.exit(130)


if __name__ == "__main__":
    with clean_exit():
        main(sys.argv[1:])
