"""Runs one experiment from top to bottom: options, data, model, method, optimizer, the training loop, the score.

    python train.py --model deberta --peft lora
    python train.py --model bert --peft lora --weights DIR_OR_HUB_ID --data DIR
    python train.py --resume runs/NAME

Reading this file from here to the end is the run. The math is one table line away: nn/ (MODELS), peft/ (METHODS),
losses/ (OBJECTIVES). data/preparation.py reads the reviews and the tokenizer, peft/build.py builds the model,
data/teacher.py adds a teacher's logits; nn/training.py saves the state and handles failed steps.
"""

import contextlib
import math
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # OpenMP: idle threads of torch soon release their cores
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports prints no traceback

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.amp import GradScaler

import peft
from data import Splits, jobs, ranks
from data.bars import progress_bar
from data.batches import Batch
from data.checked import read_object, reading
from data.checksums import write_checksums
from data.corpus import Corpus
from data.errors import Diverged, Interrupt, NotFinite, Stopped, clean_exit, is_closed_pipe, printable, user_message
from data.files import in_shell, write_json
from data.held_out import check_start
from data.hub import fetch_config, recorded_base
from data.labels import SENTIMENT, UNKNOWN
from data.meter import Progress, step_loss
from data.metrics import metrics, print_metrics, softmax
from data.options import Options, Settings, Tables, truncation_of
from data.orders import shuffled_order
from data.preparation import (
    make_corpora,
    naming_run,
    prepare_tokenizer,
    read_data,
    start_run,
    unlabelled_corpus,
    unlabelled_stream,
)
from data.resolve import adapter_folder, find_data, recorded_settings, repeats_batches, resolve
from data.runs import Run
from data.seeds import derive_seed
from data.teacher import with_teacher
from data.tokenization import Tokenizer
from data.weight_files import backbone_digests
from data.windows import write_truncation
from losses import OBJECTIVES
from nn import MODELS, Model
from nn.build import check_architecture
from nn.checkpoint import model_class, save_pretrained
from nn.distributed import GradientSum
from nn.dropout import mask_generator
from nn.encoder import Encoder, SharedEmbedding
from nn.optim import Average, describe_groups, parameter_groups, schedule
from nn.quant import describe_products, form_of, is_quantized
from nn.runtime import (
    Machine,
    check_checkpointing,
    describe_memory,
    keep_freed_memory,
    machine_of,
    num_weights,
    peak_memory,
    release_freed_memory,
    tokens_per_pass,
)
from nn.sharding import compute, describe_shards, gathered, is_sharded, place, release
from nn.threads import in_threads
from nn.training import Pass, Training, add_gradients, attempt, clip, epoch_name, norm_of
from nn.unfreezing import describe_epoch, unfreeze
from nn.vectors import embedding_table, start_from_vectors
from nn.words import WordClassifier
from peft import METHODS
from peft.build import build_model
from peft.classifier import Scorer, is_pretraining, load_classifier
from peft.scoring import held_out_loss, score

TABLES = Tables(MODELS, METHODS, OBJECTIVES)
LOG_STEPS = 50

# --------------------------------------------------------------------------------------------- what the loop needs


def prepare_training(
    settings: Settings, run: Run, splits: Splits, tokenizer: Tokenizer, machine: Machine, interrupt: Interrupt
) -> Training:
    """Builds model, optimizer and data, prints what is trained, and restores the state of a stopped run."""
    options, entry = settings.options, OBJECTIVES[settings.options.loss]
    labelled, corpus, held_out = training_corpora(settings, run, splits, tokenizer, machine, interrupt)
    with naming_run(run):
        labels = None if entry.pretraining else splits.labels
        model = ranks.in_turn(lambda: build_model(settings, tokenizer, labels))
    ranks.in_turn(lambda: entry.prepare(model, settings.objective, tokenizer))
    frozen = isinstance(model, Encoder) and model.adapter is not None and not peft.trains_backbone(model)
    if frozen and (backbone := model.source) is not None:
        ranks.by_first(lambda: run.record_backbone(backbone_digests(backbone)))
    initialize_words(model, options, run, splits, tokenizer, labelled, interrupt)
    model = place(model, machine.device, options.shard).train()
    stream = unlabelled_stream(settings, splits, tokenizer, run) if entry.unlabelled else None
    lora_plus = getattr(settings.method, "lora_plus", 1.0)
    groups = parameter_groups(model, options, peft.is_adapter_parameter, lora_plus)
    trainable = [p for p in model.parameters() if p.requires_grad]
    print(describe_groups(groups, num_weights(model)))
    print(describe_memory(model, average=options.average > 0))
    if is_sharded(model):
        print(describe_shards(model))
    if is_quantized(model):
        print(describe_products(machine.device, mixed=machine.dtype != torch.float32, form=form_of(model)))
    training = Training(
        settings, entry, run, machine, interrupt, splits, tokenizer, corpus, held_out, stream, model,
        optimizer=torch.optim.AdamW(groups, eps=options.adam_epsilon, fused=True),
        scaler=GradScaler(machine.device.type, enabled=machine.dtype == torch.float16),
        average=Average(trainable, options.average),
        trainable=trainable,
        gradient_sum=GradientSum([] if is_sharded(model) else trainable),  # FSDP2 sums gradients itself
        keeps_last=entry.pretraining or options.train_on_validation,
    )  # fmt: skip
    ranks.seed_dropout(options.seed)
    training.load()
    progress = training.progress
    ranks.by_first(lambda: run.keep_best(progress.best_epoch))
    if problem := ranks.by_first(lambda: run.problem_of_best(progress.best_epoch)):
        if progress.epoch >= options.epochs:
            way_out = "no epoch is left that could replace it: start again with another --name"
            ranks.fail(ValueError(f"{problem}; {way_out}"))
        print(f"warning: {printable(problem.partition(';')[0])}; the best of the next epochs replaces it")
        progress.best, progress.best_epoch = -1.0, progress.epoch
    return training


def training_corpora(
    settings: Settings, run: Run, splits: Splits, tokenizer: Tokenizer, machine: Machine, interrupt: Interrupt
) -> tuple[Corpus, Corpus, Corpus]:
    """Returns the examples of the training reviews, the examples to train on, and the held-out examples.

    The first two differ with a teacher only: the examples to train on carry its logits and, with --distill-unlabelled,
    include the unlabelled reviews.
    """
    options = settings.options
    release_freed_memory()  # the processes that tokenize inherit this one's memory
    labelled, held_out = ranks.in_turn(lambda: make_corpora(tokenizer, splits, options, run.cache))
    if options.class_weights == "balanced":
        labelled = labelled.balanced(len(splits.labels))
    if not OBJECTIVES[options.loss].teacher:
        return labelled, labelled, held_out
    corpus, reviews = labelled, splits.train
    if settings.objective.distill_unlabelled:
        corpus = corpus.joined(ranks.in_turn(lambda: unlabelled_corpus(settings, splits, tokenizer, run)))
        reviews = pd.concat([reviews, splits.unlabelled], ignore_index=True)
    load = partial(load_classifier, machine=machine, tables=TABLES)
    return labelled, with_teacher(corpus, reviews, settings.objective.teacher, load, run, interrupt.check), held_out


def initialize_words(
    model: Model, options: Options, run: Run, splits: Splits, tokenizer: Tokenizer, corpus: Corpus, interrupt: Interrupt
) -> None:
    """Initializes what depends on the words of the training reviews, `corpus`, in place: the statistics of `fit` and
    the word vectors. Freezes the embedding table with --no-train-vectors."""
    if isinstance(model, WordClassifier) and options.weights == "none":
        model.fit(corpus)
    if options.word_vectors != "none" and options.weights == "none":
        start = partial(start_from_vectors, model, source=options.word_vectors, whiten=options.whiten_vectors)
        reads: dict[str, Any] = {"splits": splits, "corpus": corpus, "tokenizer": tokenizer, "cache": run.cache}
        with naming_run(run):
            ranks.in_turn(lambda: start(**reads, check=interrupt.check))
    if not options.train_vectors:
        embedding_table(model).requires_grad_(False)
        if isinstance(model.embeddings.word, SharedEmbedding):  # E_G + E_Δ
            model.embeddings.word.delta.requires_grad_(False)


# ------------------------------------------------------------------------------------------------------ the loop


def train(t: Training) -> None:
    """Trains, and keeps the best epoch by validation accuracy in best/, or the last (Training.keeps_last)."""
    options, progress = t.settings.options, t.progress
    steps = steps_of_epochs(t.corpus, options)
    total = sum(steps)
    while progress.epoch < options.epochs and not out_of_patience(progress, options):
        order, before = epoch_order(t.corpus, options, progress.epoch), sum(steps[: progress.epoch])
        if options.unfreeze == "gradual":
            unfreeze(t.model, t.trainable, progress.epoch + 1)
            print(f"{epoch_name(t)}: {describe_epoch(t.model, progress.epoch + 1, options.epochs)}")
        hidden = not ranks.is_first()
        shown = progress_bar(
            hidden=hidden, total=steps[progress.epoch], initial=progress.step, desc=epoch_name(t), unit=" steps"
        )
        with shown as bar, t.interrupt.deferred():  # a signal ends the run between two steps, with its state saved
            while progress.step < steps[progress.epoch]:
                step = before + progress.step  # counted over the whole run
                rate_factor = schedule(step, total, options.warmup, options.schedule)
                for group in t.optimizer.param_groups:
                    group["lr"] = group["peak"] * rate_factor
                micro_batches = order[progress.step * options.accumulation : (progress.step + 1) * options.accumulation]
                passes = attempt_step(t, list(micro_batches), first=step * options.accumulation)  # sums the gradient
                if passes is None:  # out of memory: the same step again, in smaller passes
                    continue
                t.scaler.unscale_(t.optimizer)
                clip(t)
                t.scaler.step(t.optimizer)
                t.scaler.update()
                t.average.update(step)
                t.optimizer.zero_grad(set_to_none=True)
                progress.step += 1
                finish_step(t, passes, rate_factor, last=progress.step == steps[progress.epoch])
                bar.set_postfix(t.meter.shown(), refresh=False)
                bar.update()
        finish_epoch(t)


def epoch_order(corpus: Corpus, options: Options, epoch: int) -> list[np.ndarray]:
    """Returns the micro-batches of epoch 0, 1, …, as rows of the corpus."""
    return shuffled_order(corpus.lengths, options.batch_size, options.seed, epoch, options.tokens_per_batch)


def steps_of_epochs(corpus: Corpus, options: Options) -> list[int]:
    """Returns the number of optimizer steps of each epoch. The epochs differ only with tokens_per_batch."""
    epochs = range(options.epochs if options.tokens_per_batch else 1)
    steps = [math.ceil(len(epoch_order(corpus, options, epoch)) / options.accumulation) for epoch in epochs]
    return steps if options.tokens_per_batch else steps * options.epochs


def out_of_patience(progress: Progress, options: Options) -> bool:
    """Returns whether the last `patience` epochs brought no better validation accuracy."""
    return 0 < options.patience <= progress.epoch - progress.best_epoch


def attempt_step(t: Training, micro_batches: list[Any], first: int) -> list[Pass] | None:
    """Computes the gradient of one optimizer step; returns its forward passes, or None if memory ran out.

    first: number of the first micro-batch, counted over the whole run.
    """
    additive = t.entry.additive and not is_sharded(t.model)  # sharded layers are exchanged in every pass
    limit, seed = tokens_per_pass(t.model, t.machine) if additive else 0, t.settings.options.seed
    splits = t.progress.num_splits
    batches = list(ranks.rank_batches(t.corpus, t.stream, micro_batches, first, splits, limit, additive, seed))
    size = sum(len(rows) for rows in micro_batches)  # examples of all ranks
    return attempt(t, batches, lambda: gradient(t, batches, size))


def gradient(t: Training, batches: list[Batch], size: int) -> list[Pass]:
    """Adds the gradient of the mean loss over all examples of a step, or this rank's part of it.

    size: number of examples of the step, of all ranks. Returns (batch, loss, correct predictions) of each forward
    pass. Raises NotFinite if a loss is not finite, after all passes.
    """
    passes: list[Pass] = []
    problem: NotFinite | None = None
    weights = [p for p in t.trainable if p.requires_grad]
    threads = passes_at_once(t)
    own = t.entry.additive and t.machine.device.type == "cpu"  # dropout masks that do not depend on the threads
    seeds = torch.randint(2**62, (len(batches),)).tolist() if own else []

    def run(number: int) -> tuple[Pass, Sequence[Tensor | None]]:
        """Computes a pass and its gradients. Returns the gradients, or adds them if no other thread does."""
        batch = batches[number].to(t.machine.device)
        masks = torch.Generator().manual_seed(seeds[number]) if own else None
        with t.machine.autocast(), mask_generator(masks):
            loss, output = compute(t.entry.objective, t.model, batch, t.settings.objective)
        if t.entry.additive:
            loss = batch.part(loss)
        done = (batch, loss.detach(), correct_predictions(output, batch))
        part = t.scaler.scale(loss * (batch.total / size))
        if threads > 1:
            return done, torch.autograd.grad(part, weights, allow_unused=True)
        if t.entry.additive and number == len(batches) - 1:
            t.gradient_sum.start()
        part.backward()
        return done, ()

    with contextlib.closing(in_threads(run, list(range(len(batches))), threads)) as results:
        for done, gradients in results:
            if threads > 1:
                add_gradients(weights, gradients)
            batch, loss, _ = done
            if not torch.isfinite(loss):
                problem = problem or NotFinite(loss.item(), batch.rows.tolist())
            passes.append(done)
            if len(passes) < len(batches) and ranks.alone():
                t.interrupt.check()
    release(t.model)
    if problem is not None:  # raised after all passes, in which sharded layers are exchanged
        raise problem
    return passes


def passes_at_once(t: Training) -> int:
    """Returns how many threads compute passes at the same time: two for an encoder on a CPU, if torch has as many.

    Each further thread would need memory for the activations of another pass.
    """
    whole = t.entry.additive and ranks.alone() and not is_sharded(t.model)
    return min(2, torch.get_num_threads()) if whole and tokens_per_pass(t.model, t.machine) else 1


def correct_predictions(output: Tensor | dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Returns which predictions of a pass are correct, or a pretraining objective's values of each prediction.

    output: the second value of an objective. Logits may contain the batch twice (two dropout passes); the first half
    counts.
    """
    if not batch.counted:
        return {}
    if isinstance(output, dict):
        return output
    labelled = batch.labels >= 0
    return {"acc": (output[: len(batch.labels)].argmax(-1) == batch.labels)[labelled]}


def finish_step(t: Training, passes: list[Pass], rate_factor: float, last: bool) -> None:
    """Measures and logs a step; saves the state at the end of an epoch, after save_minutes, and before stopping."""
    progress, meter = t.progress, t.meter
    for batch, loss, correct in passes:
        meter.add(batch, loss, correct)
    meter.tick()
    if progress.step % LOG_STEPS == 0:
        release_freed_memory()
        values = {"epoch": progress.epoch + 1, "step": progress.step, "rate_factor": rate_factor}
        values |= {"loss": step_loss(passes), **meter.of_all_ranks().shown()}
        if ranks.is_first():
            t.run.log("step", **values)
    received, due = ranks.agree(t.interrupt.received, meter.save_is_due())
    if last or due or received:
        t.save()
        t.interrupt.received = received or t.interrupt.received  # a signal to one rank stops all
        t.interrupt.check()


def finish_epoch(t: Training) -> None:
    """Validates, keeps the best weights, logs the epoch, and saves the state."""
    progress, name = t.progress, epoch_name(t)
    with t.average.applied():
        found, logits = validate(t)
        release(t.model)
        if not math.isfinite(found["loss"] if found else norm_of(t.trainable)):
            what = f"the held-out loss is {found['loss']}" if found else "the norm of the weights is not finite"
            ranks.fail(Diverged(f"{what} after {name}; best/ is as before"))
        shown = {"loss": found["loss"], "acc": found["accuracy"]} if "accuracy" in found else found
        better = t.keeps_last or shown["acc"] > progress.best
        if better:
            with gathered(t.model):
                if ranks.is_first():
                    save_best(t)
            if logits is not None and ranks.is_first():
                t.run.save_probabilities("validation", softmax(logits), t.held_out.labels)
            progress.best = shown.get("acc", progress.best)
            progress.best_epoch, progress.validation = progress.epoch + 1, found
    record = t.meter.of_all_ranks().record() | {f"val_{key}": value for key, value in shown.items()}
    record |= {"seconds": round(t.meter.total(), 1)}
    if ranks.is_first():
        t.run.log("epoch", epoch=progress.epoch + 1, **record)
    digits = {key: ",.0f" if value >= 10_000 else ",.4g" for key, value in record.items()}
    line = ", ".join(f"{key} {value:{digits[key]}}" for key, value in record.items())
    print(f"{name}: {line}" + (", saved" if t.keeps_last else ", best" if better else ""))
    progress.history = [*progress.history, {"epoch": progress.epoch + 1, **record}]
    progress.epoch, progress.step = progress.epoch + 1, 0
    t.meter.reset()
    with t.interrupt.deferred():  # no signal ends the run between the state and best/
        t.save()
        ranks.by_first(lambda: t.run.keep_best(progress.best_epoch))


def validate(t: Training) -> tuple[dict[str, Any], np.ndarray | None]:
    """Returns the metrics of held-out data, and the logits except in pretraining. Warns of classes never predicted.

    The metrics are {} with --train-on-validation, which holds out none.
    """
    if not len(t.held_out):
        return {}, None
    if t.entry.pretraining:
        seed, options = derive_seed(t.settings.options.seed, "held out"), t.settings.objective
        found = held_out_loss(t.model, t.held_out, t.entry.objective, options, t.machine, seed, t.interrupt.check)
        return found, None
    logits = score(t.model, t.held_out, t.machine, t.interrupt.check)
    found = metrics(logits, t.held_out.labels)
    predicted = np.sum(found["confusion"], axis=0)
    reviews = np.bincount(t.held_out.labels, minlength=len(predicted))
    of_class = zip(t.splits.labels, predicted, reviews, strict=True)
    never = [name for name, count, present in of_class if present and not count]
    if never and never != t.never:
        counts = t.splits.train["sentiment"].value_counts()
        is_uneven = counts.max() > 1.5 * counts.min() and t.settings.options.class_weights == "none"
        ways = ", more --epochs or --class-weights balanced" if is_uneven else " or more --epochs"
        print(f"warning: no validation review gets the label {', '.join(never)}; try another --learning-rate{ways}")
    t.never = never
    return found, logits


def save_best(t: Training) -> None:
    """Saves the model, or the adapter and the name of its backbone, in the folder that becomes best/.

    A trained backbone is saved in best/base. Pretraining saves no classifier.
    """
    options, model, folder = t.settings.options, t.model, t.run.next_best / f"{t.progress.epoch + 1}"
    t.tokenizer.save(folder)
    if not isinstance(model, Encoder) or model.adapter is None:
        save_pretrained(model, folder, heads=not t.entry.pretraining)
    elif peft.trains_backbone(model):
        peft.save_base(model, folder / "base")
        peft.save_adapter(model, folder, "base")
    else:
        peft.save_adapter(model, folder, recorded_base(options.weights, options.base))
    if not t.entry.pretraining:
        write_truncation(folder, truncation_of(options))
    write_checksums(folder)


# ------------------------------------------------------------------------------------------------------ the score


def finish(t: Training) -> None:
    """Scores the test reviews once with the best model, and writes result.json. Pretraining has no test score."""
    options, run, progress = t.settings.options, t.run, t.progress
    if options.unfreeze == "gradual":
        unfreeze(t.model, t.trainable, progress.epoch)  # what the last epoch trained, also if a resumed run trains none
    result: dict[str, Any] = {
        "parameters": {
            "trained": sum(p.numel() for p in t.trainable if p.requires_grad),
            "total": num_weights(t.model),
        },
        "seconds": t.meter.total(),
        "best_epoch": progress.best_epoch,
        "history": progress.history,
        "validation": progress.validation,
    }
    pretraining = t.entry.pretraining
    if not pretraining:
        if progress.validation:
            print_metrics("validation", progress.validation, t.splits.labels)
        result |= test_scores(t)
    result["peak_memory_bytes"] = peak_memory(t.machine.device)
    if ranks.is_first():
        write_json(run.folder / "result.json", run.config | result)
    if pretraining:
        print(f"finished: python train.py --model {options.model} --weights {in_shell(run.best)} starts from it")
    else:
        print(f'finished: python eval.py --run {in_shell(run.folder)} --text "…" uses it')


def print_result(run: Run) -> None:
    """Prints the scores of a finished run, and writes a damaged log again. Raises ValueError for a damaged
    result.json."""
    result, labels = run.result or {}, run.labels or SENTIMENT
    with reading(run.folder / "result.json", "the result of a run", "delete it: --resume then scores again"):
        for split in ("validation", "test"):
            if "accuracy" in (result.get(split) or ()):
                print_metrics(split, result[split], labels)
        if "history" in result and not run.has_sound_log():
            run.rewrite_log(result["history"])
    print(f"{run.folder} is finished; python eval.py --run {in_shell(run.folder)} scores it again")


def test_scores(t: Training) -> dict[str, Any]:
    """Returns {"test": metrics} of the best model and keeps the probabilities; {} if no test review has a label."""
    frame = t.splits.test[t.splits.test["sentiment"] != UNKNOWN]
    if not len(frame):
        return {}
    options, cpu = t.settings.options, t.machine._replace(device=torch.device("cpu"))
    scorer = Scorer.of_run(t.run, options, cpu, base=options.base)
    scorer.model, scorer.machine = place(scorer.model, t.machine.device, is_sharded(t.model)), t.machine
    corpus = ranks.in_turn(lambda: scorer.corpus(frame, t.run.cache))
    logits = scorer.logits(corpus, t.interrupt.check)
    if ranks.is_first():
        t.run.save_probabilities("test", softmax(logits), corpus.labels)
    found = metrics(logits, corpus.labels)
    print_metrics("test", found, t.splits.labels)
    return {"test": found}


def prepare_run(settings: Settings, machine: Machine, agents: list[str] | None = None) -> Run:
    """Checks the config of the weights and the teacher, and creates the run folder. agents: of torchrun"""
    options = settings.options
    if options.weights != "none" and adapter_folder(options.weights) is None:
        config_file = fetch_config(options.weights)  # checked before a run folder is created
        check_architecture(model_class(read_object(config_file), config_file), options.model, options.weights)
    if OBJECTIVES[options.loss].teacher:
        load_classifier(settings.objective.teacher, machine, TABLES)  # checked before a run folder is created
    if repeats_batches(options):
        print(f"warning: {options.weights} saw the same batches under the same dropout masks; use another --seed")
    return start_run(settings, str(machine), agents or [])


def train_and_score(settings: Settings, run: Run, machine: Machine) -> None:
    """Runs one experiment in its folder, from the start or from its saved state."""
    options, entry = settings.options, OBJECTIVES[settings.options.loss]
    unlabelled = entry.unlabelled or (entry.teacher and settings.objective.distill_unlabelled)
    given = {name: value for name, value in settings.values().items() if settings.origins[name] != "default"}
    together = "" if ranks.alone() else f", {ranks.size()} rank{'s' * (ranks.size() > 1)}"
    print(f"run: {run.folder} on {machine}{together}")
    values = {name: " ".join(value) if isinstance(value, tuple | list) else value for name, value in given.items()}
    shown = ", ".join(f"{name} {value} ({settings.origins[name]})" for name, value in values.items())
    print(f"options: {printable(shown)}")
    training: Training | None = None
    with Interrupt() as interrupt:
        try:
            check_checkpointing(options.checkpointing, machine)
            with ranks.naming_lost_ranks():
                kind = MODELS[options.model].tokenizer
                splits = ranks.in_turn(lambda: read_data(options, run, entry.pretraining, unlabelled))
                if not entry.pretraining:
                    ranks.by_first(lambda: check_start(run, partial(is_pretraining, tables=TABLES)))
                tokenizer = ranks.in_turn(lambda: prepare_tokenizer(options, run, splits, kind))
                training = prepare_training(settings, run, splits, tokenizer, machine, interrupt)
                with ranks.training():
                    train(training)
                finish(training)
        except Stopped as stopped:
            print(f"\nstopped and saved; continue with: python train.py --resume {in_shell(run.folder)}")
            sys.exit(stopped.exit_code)
        except Exception as error:
            interrupt.deferring = True  # torchrun stops all ranks when one has failed
            updated = training is None or training.progress.epoch + training.progress.step > 0
            if is_closed_pipe(error):
                command = f"python train.py --resume {in_shell(run.folder)}"
                print(f"the output was closed; continue with: {command}", file=sys.stderr)
            elif isinstance(error, Diverged):
                way_out = "a lower --learning-rate" if updated else "other options of the loss"
                way_out += "" if machine.dtype == torch.float32 else " or --precision fp32"
                print(
                    f"--resume {in_shell(run.folder)} would fail at this step again; start another run with {way_out}"
                )
            elif user_message(error) and not run.discard() and run.created is not None:
                again = f"--resume {in_shell(run.folder)} continues the run, another --name starts a new one"
                print(f"{run.folder} keeps what was done; {again}")
            raise


def main(argv: list[str] | None = None) -> None:
    """Runs the command line. argv: the arguments; None: those of the process"""
    keep_freed_memory()
    with ranks.only_first_prints():
        settings, run = resolve(argv, TABLES)
    with ranks.joined(settings.options.device):
        run_experiment(settings, run)


def check_repeats(options: Options, agents: list[str]) -> None:
    """Raises ValueError if torchrun may repeat the command of a new run, and the repeated command would not find it."""
    if not (flag := jobs.repeated_by()):
        return
    if not options.name:
        raise ValueError(f"torchrun {flag} needs --name, by which the run is found again")
    if not agents:
        way_out = f"by which the run is found again; leave out --log-dir {os.devnull}"
        raise ValueError(f"torchrun {flag} needs its log folder, {way_out}")


def run_experiment(settings: Settings, run: Run | None) -> None:
    """Creates or resumes the run folder, on rank 0, and trains in it.

    Raises ValueError for an objective that several ranks cannot compute, and for --shard without torchrun.
    """
    options, entry = settings.options, OBJECTIVES[settings.options.loss]
    if not (ranks.alone() or entry.additive or entry.ranks):
        raise ValueError(f"--loss {options.loss} cannot be computed by several ranks; leave out torchrun")
    if options.shard and ranks.alone() and run is None:
        raise ValueError("--shard divides a model among ranks: torchrun --standalone --nproc_per_node 2 train.py …")
    machine = machine_of(options, run if run is not None and run.result is None else None)
    agents = sorted({*ranks.gather(jobs.agent())} - {""})

    def start() -> str:
        """Creates, resumes or reopens the run, on rank 0, and locks it. Returns its folder."""
        nonlocal settings, run, machine
        if run is None:
            check_repeats(options, agents)
        named = Path(options.runs) / options.name
        exists = bool(options.name and agents) and (named / "config.json").is_file()
        if run is None and exists and Run.open(named).is_of_job(agents):  # torchrun repeats the command
            settings, run = resolve(["--resume", str(named)], TABLES)
            machine = machine_of(settings.options, run)
        if run is None:
            settings, why = find_data(settings, TABLES)  # the built-in reviews have defaults of their own
            print(f"data: {settings.options.train or settings.options.data} ({why})")
            machine = machine_of(settings.options)
            run = prepare_run(settings, machine, agents)
        elif run.result is None:
            run.lock()
            run.record_agents(agents)
        return str(run.folder)

    folder = ranks.by_first(start)
    if problem := ranks.problem_of_shared(Path(folder) / "config.json"):
        if run is not None:
            run.discard()
            run.release()
        ranks.fail(ValueError(problem))
    if not ranks.is_first():
        run = Run.open(folder)
        settings = recorded_settings(run, TABLES)
        machine = machine_of(settings.options, run)
    assert run is not None
    if run.result is not None:
        print_result(run)
        return
    try:
        train_and_score(settings, run, machine)
    finally:
        run.release()


if __name__ == "__main__":
    with ranks.leaving(), clean_exit():
        main(sys.argv[1:])
