"""Prepares what the benchmarks measure: reviews, a checkpoint, and this project's own scoring and training.

The reviews are blocks of the first POOL reviews, sorted by length, at even distances. Sorting or bucketing them thus
leaves as little padding as in a large corpus, and every length of IMDB occurs. Ours is measured through the public
paths only: peft.scoring.score, and train.py's prepare_training and attempt_step.
"""

import atexit
import contextlib
import io
import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils import clip_grad_norm_

from data import LABELED, Splits, find_file
from data.corpus import Corpus, build_corpus
from data.errors import Interrupt
from data.imdb import load_reviews
from data.orders import shuffled_order, sorted_order, split_by_count
from data.preparation import prepare_tokenizer
from data.resolve import resolve
from data.tokenization import Tokenizer, train_tokenizer
from nn import MODELS
from nn.bert import Bert, BertConfig
from nn.checkpoint import load_pretrained, save_pretrained
from nn.deberta import Deberta, DebertaConfig
from nn.encoder import Encoder, init_weights
from nn.runtime import choose_machine
from nn.training import Training
from peft.scoring import score
from train import (
    TABLES,
    attempt_step,
    epoch_order,
    gradient,
    prepare_run,
    prepare_training,
)

POOL = 800  # reviews: the window that both data.batches and transformers' trainer sort, for batches of 16
STD = 0.08  # of random weights; 0.02 would give logits that are nearly equal for all reviews
BERT: dict[str, Any] = {"hidden_size": 384, "num_layers": 6, "num_heads": 12, "feed_forward_size": 1536}
V3: dict[str, Any] = {
    "vocab_size": 30522,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ("p2c", "c2p"),
    "position_biased_input": False,
}
XSMALL = V3 | {"hidden_size": 384, "num_layers": 12, "num_heads": 6, "feed_forward_size": 1536}
BASE = V3 | {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "feed_forward_size": 3072}
SHAPES: dict[str, tuple[str, Callable[[], Encoder]]] = {  # shape -> name for --model, constructor
    "bert": ("bert", lambda: Bert(BertConfig(**BERT))),
    "xsmall": ("deberta", lambda: Deberta(DebertaConfig(**XSMALL))),
    "base": ("deberta", lambda: Deberta(DebertaConfig(**BASE))),
}
run_numbers = itertools.count()


@dataclass(frozen=True)
class Workload:
    """Reviews, and a checkpoint that all libraries start from."""

    shape: str
    folder: Path
    model: Encoder
    tokenizer: Tokenizer
    frame: pd.DataFrame
    corpus: Corpus
    length: int

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def batches(self, size: str, order: str = "sorted") -> list[np.ndarray]:
        """Returns the rows of each batch.

        size: `16 reviews`, or `4096 tokens`, padding included, for which the order is sorted.  order: sorted by
        descending length, random, or grouped: batches of similar length in random order.
        """
        count, unit = int(size.split()[0]), size.split()[1]
        if unit == "tokens":
            return sorted_order(self.corpus.lengths, count)
        if order == "grouped":
            return shuffled_order(self.corpus.lengths, count, seed=0, epoch=0)
        rows = np.random.default_rng(0).permutation(len(self.corpus))
        if order == "sorted":
            rows = np.argsort(-self.corpus.lengths, kind="stable")
        return split_by_count(rows, count)


def sample_rows(lengths: np.ndarray, block: int, blocks: int) -> np.ndarray:
    """Returns `blocks` blocks of `block` examples with neighbouring lengths, at even distances among all lengths."""
    groups = len(lengths) // block
    order = np.argsort(lengths, kind="stable")
    chosen = [(2 * i + 1) * groups // (2 * blocks) for i in range(blocks)]
    return np.sort(np.concatenate([order[group * block : (group + 1) * block] for group in chosen]))


def new_folder() -> Path:
    """Creates a temporary folder, which is deleted when the process ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def full_rows(lengths: np.ndarray, count: int) -> np.ndarray:
    """Returns the first `count` examples of the largest length. Raises ValueError if there are fewer."""
    rows = np.flatnonzero(lengths == lengths.max())[:count]
    if len(rows) < count:
        raise ValueError(f"{len(rows)} reviews have {lengths.max()} tokens; {count} are needed")
    return rows


def prepare(imdb: str, shape: str, length: int, choose: Callable[[np.ndarray], np.ndarray]) -> Workload:
    """Returns reviews of at most `length` tokens and a checkpoint with random weights.

    choose: (lengths int64 [POOL]) -> rows. Raises ValueError if the folder has fewer than POOL labelled reviews.
    """
    frame = load_reviews(find_file(Path(imdb), LABELED)[0])[:POOL]
    if len(frame) < POOL:
        raise ValueError(f"{imdb} has {len(frame)} labelled reviews; the benchmark needs {POOL}")
    tokenizer = train_tokenizer("wordpiece", frame["review"], 8000)
    lengths = build_corpus(tokenizer, frame, length, "head", None).lengths
    frame = frame.iloc[choose(lengths)].reset_index(drop=True)
    torch.manual_seed(0)
    model = SHAPES[shape][1]()
    init_weights(model, STD)
    corpus = build_corpus(tokenizer, frame, length, "head", None)
    work = Workload(shape, new_folder(), model, tokenizer, frame, corpus, length)
    save_pretrained(model, work.checkpoint)
    tokenizer.save(work.checkpoint)
    return work


def scoring(work: Workload, precision: str, int8: bool = False) -> Callable[[], np.ndarray]:
    """Returns a function that computes the logits of all reviews, float32 [N, C], by peft.scoring.score."""
    model, machine = (
        load_pretrained(work.checkpoint, quantize="int8" if int8 else "none").eval(),
        choose_machine("cpu", precision),
    )
    return lambda: score(model, work.corpus, machine, bar=False)


def training(flags: list[str], frame: pd.DataFrame, tokenizer: Tokenizer | None, folder: Path) -> Training:
    """Prepares a run of train.py with these flags on the reviews of a frame.

    tokenizer: None: trained as train.py does.  folder: of the runs
    """
    settings, _ = resolve([*flags, "--runs", str(folder), "--name", f"{next(run_numbers)}"], TABLES)
    machine = choose_machine("cpu", settings.options.precision)
    splits = Splits(train=frame, validation=frame[:2], test=frame[:0], unlabelled=frame[:0])
    with contextlib.redirect_stdout(io.StringIO()):
        run = prepare_run(settings, machine)
        tokenizer = tokenizer or prepare_tokenizer(
            settings.options, run, splits, MODELS[settings.options.model].tokenizer
        )
        return prepare_training(settings, run, splits, tokenizer, machine, Interrupt())


def training_of(work: Workload, precision: str, batch: int, *flags: str) -> Training:
    """Prepares a run of train.py that starts from the checkpoint."""
    torch.manual_seed(0)
    fixed = {"model": SHAPES[work.shape][0], "weights": work.checkpoint, "max-length": work.length}
    fixed |= {"batch-size": batch, "precision": precision}
    given = [part for name, value in fixed.items() for part in (f"--{name}", str(value))]
    return training([*given, *flags], work.frame, work.tokenizer, work.folder / "runs")


def optimizer_step(t: Training, micro_batches: list[np.ndarray], number: int = 0) -> None:
    """Runs one step of train.py's loop. number: of the first micro-batch"""
    if attempt_step(t, micro_batches, first=number) is None:
        raise MemoryError("the step did not fit into memory")
    update(t)


def unsplit_step(t: Training, rows: np.ndarray) -> None:
    """Runs one step of train.py's loop with the whole batch in one pass."""
    gradient(t, [t.corpus.batch(rows)], len(rows))
    update(t)


def update(t: Training) -> None:
    """Runs the part of train.py's loop that follows the gradient."""
    t.scaler.unscale_(t.optimizer)
    if t.settings.options.clip:
        clip_grad_norm_(t.trainable, t.settings.options.clip)
    t.scaler.step(t.optimizer)
    t.scaler.update()
    t.optimizer.zero_grad(set_to_none=True)


def epoch(t: Training) -> Callable[[], None]:
    """Returns a function that runs one epoch of optimizer steps."""
    order = epoch_order(t.corpus, t.settings.options, 0)

    def run() -> None:
        for number, rows in enumerate(order):
            optimizer_step(t, [rows], number)

    return run
