"""Scores examples: their logits, with LoRA merged into copies of the weights, or the loss of held-out texts.

The examples are scored in batches of similar length, in eval() mode and without gradients. With several ranks each
computes its share, and all get the result.
"""

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from data.bars import progress_bar
from data.batches import no_check
from data.corpus import Corpus
from data.errors import Diverged
from data.meter import Meter
from data.orders import sorted_order
from data.ranks import add_rows, alone, fail, gather, is_first, own_share, rank, size
from data.seeds import random_state, set_random_state
from nn import Model
from nn.modes import evaluating
from nn.runtime import Machine, prepared_once, scoring_tokens
from nn.sharding import compute, is_sharded
from nn.threads import in_threads
from peft.lora import merged_copies

SCORING_TOKENS = 16_384  # tokens in a batch, including padding, if scoring_tokens sets no limit


@torch.no_grad()
def held_out_loss(
    model: Model,
    corpus: Corpus,
    objective: Callable,
    options: Any,
    machine: Machine,
    seed: int,
    check: Callable[[], None] = no_check,
) -> dict[str, float]:
    """Computes the loss and accuracies of a pretraining objective on held-out texts, in eval() mode.

    options: those of the objective.  seed: makes the masks the same in every call.  check: is called between batches.
    Returns the mean over texts of the loss of their batch, and the mean of each other value over its predictions. Warns
    if there was no token to predict. Restores the random state and the model's mode.
    """
    meter, state = Meter(None, 0.0, 0.0), random_state(machine.device)
    torch.manual_seed(seed)
    try:
        with evaluating(model):
            for rows in sorted_order(corpus.lengths, SCORING_TOKENS):
                whole = corpus.batch(rows)
                batch = (whole if alone() else own_share(whole)).to(machine.device)
                with machine.autocast():
                    loss, correct = compute(objective, model, batch, options)
                meter.add(batch, loss, correct if batch.counted else {})
                check()
    finally:
        set_random_state(state, machine.device)
    meter = meter.of_all_ranks()
    if not meter.sums.get("of guessed", meter.sums.get("of acc")):  # rtd: "of acc" is of all tokens
        print("warning: no token of the held-out texts was predicted, so their loss is meaningless; add more texts")
    return meter.means()


def without_gradients(model: Model) -> contextlib.AbstractContextManager:
    """Returns a context without gradients. It holds for the current thread only."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


@contextlib.contextmanager
def ready_to_score(model: Model, machine: Machine) -> Iterator[None]:
    """Disables gradients in the block. LoRA is merged into copies of the weights, unless the model is sharded."""
    with without_gradients(model):
        if is_sharded(model):
            yield
        else:
            with merged_copies(model, machine.dtype), prepared_once(model, machine):
                yield


def separate_threads(model: Model, machine: Machine) -> int:
    """Returns how many threads may compute passes at the same time: on a CPU as many as torch uses. The ranks of a
    sharded model exchange its weights in one order, so that it has one."""
    return 1 if machine.device.type != "cpu" or is_sharded(model) else torch.get_num_threads()


def score(
    model: Model, corpus: Corpus, machine: Machine, check: Callable[[], None] = no_check, bar: bool = True
) -> np.ndarray:
    """Computes the logits of all reviews in eval() mode, and restores the model's mode.

    LoRA is merged into copies of the weights, so that a pass costs what it costs without an adapter. check: called
    between batches.  bar: whether to show a progress bar. Returns fp32 [N, C] in the order of the reviews; those of a
    review in windows are pooled. Raises Diverged if the model computes NaN or infinity, and ValueError if the ranks
    have different texts.
    """
    if not alone() and len(set(gather(f"{len(corpus)} {zlib.crc32(corpus.ids.tobytes())}"))) > 1:
        fail(ValueError("the ranks read different texts; give them files that are equal on all machines"))
    logits = np.zeros((len(corpus), len(model.config.labels)), np.float32)
    order = sorted_order(corpus.lengths, scoring_tokens(model, machine) or SCORING_TOKENS)
    hidden = not (bar and is_first())
    own = order[rank() :: size()]  # batches as in one process, so that the logits are equal
    spare = order[: math.ceil(len(order) / size()) - len(own)] if is_sharded(model) else []  # as many on all ranks

    def logits_of(rows: np.ndarray) -> np.ndarray:
        batch = corpus.batch(rows).to(machine.device)
        with without_gradients(model), machine.autocast():
            return model(batch.input_ids, batch.mask).float().cpu().numpy()

    shown = progress_bar(hidden=hidden, total=len(corpus), desc="scoring", unit=" examples")
    results = contextlib.closing(in_threads(logits_of, own + spare, separate_threads(model, machine)))
    with shown as progress, evaluating(model), ready_to_score(model, machine), results as found:
        for number, part in enumerate(found):
            if number < len(own):
                logits[own[number]] = part
                progress.update(len(part))
            check()
    pooled = corpus.pool(add_rows(logits))
    if bad := int(np.sum(~np.isfinite(pooled).all(1))):
        way_out = "; --precision fp32 has a larger range" if machine.dtype == torch.float16 else ""
        problem = f"the model computes numbers that are not finite for {bad:,} of {len(pooled):,} texts"
        fail(Diverged(f"{problem}{way_out}"))
    return pooled
