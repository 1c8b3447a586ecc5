"""One experiment from top to bottom: options, data, model, method, optimizer, the loop, the score.

    python train.py --model deberta --peft lora
    python train.py --model bert --peft lora --weights DIR_OR_HUB_ID --data DIR
    python train.py --resume runs/NAME

Reading this file from here to the end is the run. The math is one table line away: nn/ (MODELS), peft/ (METHODS),
losses/ (OBJECTIVES).
"""

import dataclasses
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read with torch: a waiting thread soon leaves its core to others

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

import peft
from data import Splits, load_splits, load_texts, overlap
from data.batches import Batch, Corpus, Stream, shuffled_order, step_batches
from data.flags import parse_fields
from data.imdb import UNKNOWN, subset
from data.options import Options, find_data, repeats, resolve
from data.runs import Meter, Run
from data.tokenization import Tokenizer, load_tokenizer, train_tokenizer
from data.word_vectors import start_from_vectors
from eval import build_corpus, held_out_loss, load_run, metrics, places_at_once, print_metrics, score
from losses import OBJECTIVES
from nn import MODELS, memory
from nn.checkpoint import default_labels, load_pretrained, restore_training_state, save_pretrained, training_state
from nn.dropout import Dropout, set_dropout
from nn.files import write_json
from nn.optim import Average, describe_groups, parameter_groups, reinitialise, schedule
from nn.runtime import (
    Interrupt,
    Machine,
    NotFinite,
    Stopped,
    choose_machine,
    clean_exit,
    derive_seed,
    keep_freed_memory,
    out_of_memory,
    peak_memory,
    release_freed_memory,
)
from peft import METHODS

LOG_STEPS = 50


def start_run(options: Options, origins: dict[str, str], machine: Machine) -> Run:
    source = Path(options.data).name.split(".")[0] or "data"
    name = options.name or f"{options.model}-{options.peft}-{source}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = {"options": dataclasses.asdict(options), "origins": origins, "machine": str(machine)}
    return Run.create(Path(options.runs) / name, config)


# ----------------------------------------------------------------------------------------- data, model and method


def prepare_data(options: Options, run: Run) -> tuple[Splits, Tokenizer]:
    """The reviews, and the tokenizer of the weights; for random weights a new one, trained on the training split."""
    how = (options.text_column, options.label_column, options.skip_bad_rows, run.cache)
    if OBJECTIVES[options.loss].pretraining:
        splits = load_texts(options.data, *how)
    else:
        unlabelled = options.word_vectors == "train" or OBJECTIVES[options.loss].unlabelled
        splits = load_splits(options.data, *how, unlabelled)
    for part, seed in (("train", options.seed), ("validation", 42), ("test", 42)):  # every seed is judged by the same
        if count := getattr(options, f"{part}_reviews"):
            splits = splits._replace(**{part: subset(getattr(splits, part), count, seed, f"--{part}-reviews")})
    print("reviews: " + ", ".join(f"{len(frame):,} {name}" for name, frame in splits._asdict().items() if len(frame)))
    if twice := ", ".join(f"{count} {where}" for where, count in overlap(splits).items() if count):
        print(f"the same text twice: {twice}")
    if (run.tokenizer / "tokenizer_config.json").is_file():  # the last file that saving one writes
        return splits, load_tokenizer(run.tokenizer)
    if options.weights == "none":
        kind, texts = MODELS[options.model].tokenizer, splits.train["review"]
        tokenizer = train_tokenizer(kind, texts, options.vocab_size, options.min_count)
    else:
        tokenizer = load_tokenizer(options.weights, options.tokenizer)
    tokenizer.save(run.tokenizer)
    return splits, tokenizer


def build_model(options: Options, tokenizer: Tokenizer) -> Module:
    """Published weights where there are any, then the method on top. `model.fresh` names what is random."""
    entry = MODELS[options.model]
    torch.manual_seed(derive_seed(options.seed, "initialisation"))
    if options.weights == "none":
        values = entry.shape | parse_fields(entry.build.Config, options.shape)
        values |= {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
        values |= {"unk_token_id": tokenizer.unk_id} if entry.tokenizer == "wordlevel" else {}
        model = entry.build(entry.build.Config(**values, labels=default_labels(options.num_labels or 2)))
        model.fresh = frozenset(name for name, _ in model.named_parameters())
        print(f"weights: none; {options.model} starts at random, with a vocabulary from the training split")
        if options.peft != "none":
            print(f"warning: random weights are trained, all of them, whatever --peft {options.peft} would freeze")
    else:
        model = load_pretrained(options.weights, options.num_labels, int8=options.quantize == "int8")
        if not isinstance(model, entry.build):
            raise ValueError(f"{options.weights} holds a {model.model_type} model, not what --model {options.model} is")
        print(f"weights: {options.weights}; new and random: {', '.join(sorted(model.fresh)) or 'nothing'}")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model {model.config.vocab_size}")
    if options.dropout >= 0:
        set_dropout(model, options.dropout)
    if options.classifier_dropout >= 0:
        model.dropout = Dropout(options.classifier_dropout)
    if options.checkpointing and not hasattr(model, "checkpointing"):
        raise ValueError(f"--checkpointing recomputes layers of the encoders; {options.model} has none")
    reinitialise(model, options.reinit_layers)
    text = list(*tokenizer.pieces([options.prompt_text])) if peft.takes_text(options.peft) else None
    peft.apply(model, options.peft, text, **{name: getattr(options, name) for name in METHODS[options.peft].options})
    peft.check_room(model, options.max_length)
    OBJECTIVES[options.loss].prepare(model, options, tokenizer)
    model.checkpointing = options.checkpointing
    return model


def save_best(model: Module, run: Run, options: Options, tokenizer: Tokenizer) -> None:
    """best/: a model directory, or an adapter that names its backbone. A backbone that was trained is in best/base.
    Pretraining leaves no classifier."""
    tokenizer.save(run.best)
    if options.peft == "none":
        save_pretrained(model, run.best, heads=not OBJECTIVES[options.loss].pretraining)
    elif peft.trains_backbone(model):
        peft.save_base(model, run.best / "base")
        peft.save_adapter(model, run.best, "base")
    else:
        directory = Path(options.weights)
        peft.save_adapter(model, run.best, str(directory.resolve()) if directory.is_dir() else options.weights)


# ------------------------------------------------------------------------------------------------------ the loop


def train(
    options: Options, run: Run, splits: Splits, tokenizer: Tokenizer, machine: Machine, interrupt: Interrupt
) -> dict[str, Any]:
    """Trains, and keeps the best epoch by validation accuracy in best/ (of pretraining: the last). Returns what
    result.json says of it."""
    device, entry = machine.device, OBJECTIVES[options.loss]
    corpus, held_out = (build_corpus(tokenizer, frame, dataclasses.asdict(options), run.cache) for frame in splits[:2])
    model = build_model(options, tokenizer)
    if options.word_vectors != "none" and options.weights == "none":
        start_from_vectors(model, options, splits, corpus, tokenizer, run.cache, interrupt.check)
    if not options.train_vectors:
        model.embeddings.word.weight.requires_grad_(False)
    model = model.to(device).train()
    stream = unlabelled_stream(options, splits, tokenizer, run) if entry.unlabelled else None
    groups = parameter_groups(model, options)
    optimizer = torch.optim.AdamW(groups, eps=options.adam_epsilon, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=machine.dtype == torch.float16)
    trainable = [p for p in model.parameters() if p.requires_grad]
    average = Average(trainable, options.average)
    counts = {"trained": sum(p.numel() for p in trainable), "total": sum(p.numel() for p in model.parameters())}
    print(describe_groups(groups, counts["total"]))
    print(memory.describe(model, average=options.average > 0))

    orders = [
        shuffled_order(corpus.lengths, options.batch_size, options.seed, epoch, options.tokens_per_batch)
        for epoch in range(options.epochs)
    ]
    counts_of_steps = [math.ceil(len(order) / options.accumulation) for order in orders]
    places = places_at_once(model, machine) if entry.additive else 0
    progress = {"epoch": 0, "step": 0, "best": -1.0, "best_epoch": 0, "history": [], "seconds": 0.0, "pieces": 1}
    torch.manual_seed(derive_seed(options.seed, "dropout"))
    if (saved := run.load_state()) is not None:
        tensors, progress = saved
        restore_training_state(tensors, model, optimizer, device)
        average.restore(tensors)
        scaler.load_state_dict(progress["scaler"])
    meter = Meter(progress.get("sums"), progress["seconds"], options.save_minutes)

    def save() -> None:
        now = {"sums": meter.sums, "seconds": meter.total(), "scaler": scaler.state_dict()}
        run.save_state(training_state(model, optimizer, device) | average.state(), progress | now)

    while progress["epoch"] < options.epochs and not out_of_patience(progress, options):
        epoch, name = progress["epoch"], f"epoch {progress['epoch'] + 1}/{options.epochs}"
        order, steps, before = orders[epoch], counts_of_steps[epoch], sum(counts_of_steps[:epoch])
        bar = tqdm(total=steps, initial=progress["step"], desc=name, leave=False, disable=None)
        while progress["step"] < steps:
            step = progress["step"]
            micro_batches = order[step * options.accumulation : (step + 1) * options.accumulation]
            factor = schedule(before + step, sum(counts_of_steps), options.warmup, options.schedule)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor

            number = (before + step) * options.accumulation
            batches = list(step_batches(corpus, stream, micro_batches, number, progress["pieces"], places))
            try:
                passes = gradient(model, entry.objective, batches, scaler, machine, options)
            except NotFinite as error:
                save()
                ids = ", ".join(splits.train["id"].iloc[error.rows]) if not entry.pretraining else f"{error.rows}"
                what = f"the loss is {error.loss} at {name}, step {step + 1}; saved before it; batch: {ids}"
                raise ValueError(what) from error
            except (RuntimeError, MemoryError) as error:
                alone = max(len(batch.labels) for batch in batches) == 1
                if not out_of_memory(error) or alone or options.out_of_memory == "stop":
                    raise
                progress["pieces"] *= 2
                optimizer.zero_grad(set_to_none=True)
                print(f"warning: out of memory; from here on each forward pass is cut into {progress['pieces']} pieces")
                continue
            for batch, loss, right in passes:
                meter.add(batch, loss, right)
            scaler.unscale_(optimizer)
            if options.clip:
                clip_grad_norm_(trainable, options.clip)
            scaler.step(optimizer)
            scaler.update()
            average.update(before + step)
            optimizer.zero_grad(set_to_none=True)

            progress["step"] += 1
            meter.tick()
            bar.set_postfix(meter.shown(), refresh=False)
            bar.update()
            if progress["step"] % LOG_STEPS == 0:
                release_freed_memory()
                run.log("step", epoch=epoch + 1, step=step + 1, rate_factor=factor, loss=loss.item(), **meter.shown())
            if progress["step"] == steps or meter.save_is_due() or interrupt.asked:
                save()
                interrupt.check()
        bar.close()

        with average.in_place():
            shown, found = evaluate(model, held_out, options, machine, interrupt)
            if better := entry.pretraining or shown["acc"] > progress["best"]:
                save_best(model, run, options, tokenizer)
                progress |= {"best": shown["acc"], "best_epoch": epoch + 1, "validation": found}
        record = meter.record() | {f"val_{key}": value for key, value in shown.items()}
        record |= {"seconds": round(meter.total(), 1)}
        run.log("epoch", epoch=epoch + 1, **record)
        print(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in record.items()) + ", best" * better)
        progress |= {"epoch": epoch + 1, "step": 0, "history": [*progress["history"], {"epoch": epoch + 1, **record}]}
        meter.reset()
        save()

    kept = {key: progress[key] for key in ("best_epoch", "history", "validation")}
    return {"parameters": counts, "seconds": meter.total(), **kept}


def evaluate(
    model: Module, held_out: Corpus, options: Options, machine: Machine, interrupt
) -> tuple[dict[str, float], dict[str, Any]]:
    """loss and acc on what is held out, for the log, and all metrics; of pretraining, what its objective tells."""
    entry = OBJECTIVES[options.loss]
    if entry.pretraining:
        found = held_out_loss(model, held_out, entry.objective, machine, options, interrupt)
        return found, found
    found = metrics(score(model, held_out, machine, interrupt), held_out.labels)
    if "confusion" in found and 0 in map(sum, zip(*found["confusion"], strict=True)):
        print("warning: all validation reviews get one label; try another --learning-rate or more --epochs")
    return {"loss": found["loss"], "acc": found["accuracy"]}, found


def gradient(model: Module, objective, batches: list[Batch], scaler, machine: Machine, options: Options):
    """Adds the gradient of the mean over all examples of a step. Returns (batch, loss, decisions) of each pass. Raises
    NotFinite."""
    size, passes = sum(len(batch.labels) for batch in batches), []
    for batch in (batch.to(machine.device) for batch in batches):
        with machine.autocast():
            loss, found = objective(model, batch, options)
        if not torch.isfinite(loss):
            raise NotFinite(loss.item(), batch.rows.cpu().numpy())
        scaler.scale(loss * (len(batch.labels) / size)).backward()
        passes.append((batch, loss.detach(), decisions(found, batch)))
    return passes


def decisions(found: Tensor | dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Which decisions of a pass were right, from what an objective returns beside its loss. Logits may hold the batch
    twice (two dropout passes): the first rows count."""
    return found if isinstance(found, dict) else {"acc": found[: len(batch.labels)].argmax(-1) == batch.labels}


def unlabelled_stream(options: Options, splits: Splits, tokenizer: Tokenizer, run: Run) -> Stream:
    if not len(splits.unlabelled):
        raise ValueError(f"--loss {options.loss} needs unlabelled reviews: unlabeledTrainData.tsv or train/unsup")
    corpus = build_corpus(tokenizer, splits.unlabelled, dataclasses.asdict(options), run.cache)
    return Stream(corpus, options.unlabelled_batch or options.batch_size, options.seed)


def out_of_patience(progress: dict[str, Any], options: Options) -> bool:
    return 0 < options.patience <= progress["epoch"] - progress["best_epoch"]


def finish(trained: dict[str, Any], options: Options, run: Run, splits: Splits, machine: Machine, interrupt) -> None:
    """Loads what was saved as best, scores the test reviews with it, once, and writes result.json. What was pretrained
    has no classifier to score."""
    if OBJECTIVES[options.loss].pretraining:
        trained["peak_memory_bytes"] = peak_memory(machine.device)
        write_json(run.folder / "result.json", run.config | trained)
        print(f"finished: python train.py --model {options.model} --weights {run.best} starts from it")
        return
    model, tokenizer = load_run(run, machine.device)
    print_metrics("validation", trained["validation"])
    frame = splits.test[splits.test["sentiment"] != UNKNOWN]
    if len(frame):
        corpus = build_corpus(tokenizer, frame, dataclasses.asdict(options), run.cache)
        trained["test"] = metrics(score(model, corpus, machine, interrupt), corpus.labels)
        print_metrics("test", trained["test"])
    trained["peak_memory_bytes"] = peak_memory(machine.device)
    write_json(run.folder / "result.json", run.config | trained)
    print(f'finished: python eval.py --run {run.folder} --text "…" uses it')


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    options, origins, run = resolve(argv)
    if run is None:
        options, origins, why = find_data(options, origins)
    machine = choose_machine(options.device, options.precision)
    if run is None:
        print(f"data: {options.data} ({why})")
        run = start_run(options, origins, machine)
        if repeats(options):
            print(f"warning: {options.weights} saw the same batches under the same dropout masks; take another --seed")
    elif run.result is not None:
        raise ValueError(f"{run.folder} is finished; python eval.py --run {run.folder} scores it")
    given = {name: value for name, value in dataclasses.asdict(options).items() if origins[name] != "default"}
    print(f"run: {run.folder} on {machine}")
    print("options: " + ", ".join(f"{name} {value} ({origins[name]})" for name, value in given.items()))
    with Interrupt() as interrupt:
        try:
            splits, tokenizer = prepare_data(options, run)
            trained = train(options, run, splits, tokenizer, machine, interrupt)
            finish(trained, options, run, splits, machine, interrupt)
        except Stopped:
            print(f"\nstopped and saved; go on with: python train.py --resume {run.folder}")
            sys.exit(130)


if __name__ == "__main__":
    with clean_exit():
        main(sys.argv[1:])
