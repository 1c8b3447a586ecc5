"""The state of a training run: saved, restored, and kept when a step fails.

A step fails if the loss or the gradient is not finite, if memory runs out, or if a signal stops the run. All ranks then
do the same.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, get_total_norm

from data import Splits, ranks
from data.batches import Batch
from data.checked import show
from data.corpus import Corpus
from data.errors import Diverged, Interrupt, NotFinite, Stopped, out_of_memory
from data.files import in_shell
from data.meter import Meter, Progress
from data.options import Settings
from data.orders import Stream
from data.runs import Run
from data.seeds import random_state, set_random_state
from data.tokenization import Tokenizer
from nn import Model
from nn.distributed import GradientSum
from nn.optim import Average
from nn.runtime import Machine
from nn.sharding import is_sharded, rows_like, whole, whole_tensors

# options that determine the examples of each step, the number of steps, and the tensors of a saved state
FIXED = (
    "model", "peft", "loss", "train_reviews", "train_on_validation", "max_length", "truncate", "epochs", "batch_size",
    "tokens_per_batch", "accumulation", "average", "unfreeze", "seed",
)  # fmt: skip
Pass = tuple[Batch, Tensor, dict[str, Tensor]]  # of one forward pass: batch, loss, values of its predictions by name


def state_parameters(model: Model, optimizer: torch.optim.Optimizer) -> list[tuple[str, Parameter]]:
    """Returns (name, parameter) of the parameters that a saved state contains.

    With an adapter: those of the optimizer, including those frozen in this epoch (nn/unfreezing.py), without the frozen
    backbone. Without an adapter: all parameters, including frozen word vectors and regions.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    plain = model.adapter is None
    return [(name, p) for name, p in model.named_parameters() if plain or id(p) in trained]


def training_state(model: Model, optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Tensor]:
    """Returns what a run continues from: parameters, the optimizer's moments, random states."""
    tensors = {f"model.{name}": p for name, p in state_parameters(model, optimizer)}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    return tensors | random_state(device)


def restore_training_state(
    tensors: dict[str, Tensor], model: Model, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Restores what `training_state` returned, bit for bit. Raises ValueError if it belongs to another model."""
    moments: dict[int, dict[str, Tensor]] = {}
    members = [p for group in optimizer.param_groups for p in group["params"]]  # in the order of their numbers
    trained = set(map(id, members))
    for name, parameter in state_parameters(model, optimizer):
        saved = tensors.get(f"model.{name}")
        if saved is None and id(parameter) not in trained:
            continue  # frozen; a state may lack it
        if saved is None or saved.shape != parameter.shape:
            raise ValueError(f"the saved state does not fit the model: {name} is missing or misshaped")
        parameter.data.copy_(rows_like(saved, parameter))
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = rows_like(tensor, members[int(number)])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    set_random_state(tensors, device)


@dataclass
class Training:
    """Holds the objects and the state of the training loop."""

    settings: Settings
    entry: Any  # of the objective, in the table OBJECTIVES
    run: Run
    machine: Machine
    interrupt: Interrupt
    splits: Splits
    tokenizer: Tokenizer
    corpus: Corpus
    held_out: Corpus
    stream: Stream | None
    model: Model
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    average: Average
    trainable: list[Parameter]
    gradient_sum: GradientSum
    keeps_last: bool  # whether best/ is the last epoch, not the one with the best validation accuracy
    before: dict[str, Tensor] = field(default_factory=dict)  # the random state before the step
    never: list[str] = field(default_factory=list)  # the labels that the last warning names as never predicted
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=lambda: Meter(None, 0.0, 0.0))

    def save(self) -> None:
        """Saves the state to resume from."""
        state = {
            "sums": self.meter.of_all_ranks().sums,
            "seconds": self.meter.total(),
            "scaler": self.scaler.state_dict(),
            "options": {name: getattr(self.settings.options, name) for name in FIXED},
        }
        tensors = training_state(self.model, self.optimizer, self.machine.device) | self.average.state()
        tensors = whole_tensors(tensors) | ranks.random_states(self.machine.device)
        ranks.by_first(lambda: self.run.save_state(tensors, asdict(self.progress) | state))

    def load(self) -> None:
        """Restores the saved state, if there is one."""
        sums, seconds = None, 0.0
        if (saved := ranks.in_turn(self.run.load_state)) is not None:
            tensors, state = saved
            self.check_options(state.get("options", {}))
            if missing := [name for name in ("scaler", "seconds") if name not in state]:
                way_out = "restore it, or start again with another --name"
                problem = f"{self.run.state_file} is damaged: its progress has no {missing[0]}"
                ranks.fail(ValueError(f"{problem}; {way_out}"))
            restore_training_state(tensors, self.model, self.optimizer, self.machine.device)
            ranks.restore_random_state(tensors, self.machine.device)
            self.average.restore(tensors)
            self.scaler.load_state_dict(state["scaler"])
            self.progress, seconds = Progress.load(state), state["seconds"]
            ranks.by_first(lambda: self.run.restore_log(state))
            sums = state.get("sums") if ranks.is_first() else None  # each rank adds its own
        self.meter = Meter(sums, seconds, self.settings.options.save_minutes)

    def check_options(self, before: dict[str, Any]) -> None:
        """Raises ValueError if the options of config.json are not those with which the state was saved."""
        changed = [name for name in before if getattr(self.settings.options, name, None) != before[name]]
        if changed:
            file, was = self.run.folder / "config.json", show(before[changed[0]])
            problem = f"{file} changed since the state was saved: its {changed[0]} was {was}"
            best = f" --weights {in_shell(self.run.best)}" if self.run.best.is_dir() else ""
            other = f"start another run:{best} --name NAME"
            ranks.fail(ValueError(f"{problem}; restore it, or {other}"))


def add_gradients(parameters: list[Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Adds the gradients of one pass to `grad`, in place. A parameter on which the pass does not depend has None."""
    for p, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)


def epoch_name(t: Training) -> str:
    """Returns the number of the epoch, as it is printed."""
    return f"epoch {t.progress.epoch + 1}/{t.settings.options.epochs}"


def norm_of(parameters: list[Parameter]) -> float:
    """Returns the norm of all parameters together. All ranks must call it."""
    return whole(get_total_norm([p.detach() for p in parameters])).item()


def clip(t: Training) -> None:
    """Scales the gradient down to the norm that --clip allows.

    Raises Diverged, after saving the state, for a gradient that is not finite; in fp16 the scaler skips such a step.
    """
    norm = clip_grad_norm_(t.trainable, t.settings.options.clip or math.inf)
    if not (t.scaler.is_enabled() or math.isfinite(whole(norm).item())):
        set_random_state(t.before, t.machine.device)
        t.save()
        where = f"{epoch_name(t)}, step {t.progress.step + 1}"
        ranks.fail(Diverged(f"the gradient is not finite at {where}; the state before it is saved"))


def attempt(t: Training, batches: list[Batch], work: Callable[[], list[Pass]]) -> list[Pass] | None:
    """Returns work(), the forward passes of one optimizer step over `batches`, or None if memory ran out.

    After that, every later micro-batch is split into twice as many passes. Raises Diverged for a loss that is not
    finite, after saving the state.
    """
    options, progress = t.settings.options, t.progress
    before = t.before = random_state(t.machine.device)
    message = None

    def agreed(own: int) -> int:
        """Returns how the step went on all ranks."""
        if t.entry.additive:  # no exchange in the forward pass: the sums may begin in the backward pass
            t.gradient_sum.finish()
        return ranks.agree(own)[0]

    try:
        passes = work()
        status = agreed(ranks.FINE)
    except ranks.Elsewhere as other:
        status = other.status
    except Stopped:  # between two passes of a long step, which is done again after --resume
        set_random_state(before, t.machine.device)
        t.save()
        raise
    except NotFinite as error:
        status = agreed(ranks.NOT_FINITE)
        reviews = np.unique(t.corpus.reviews_of(np.array(error.rows)))
        known = pd.concat([t.splits.train["id"], t.splits.unlabelled["id"]])  # as the corpus has them
        ids = f"{error.rows}" if t.entry.pretraining else ", ".join(known.iloc[reviews])
        where = f"{epoch_name(t)}, step {progress.step + 1}"
        message = f"the loss is {error.loss} at {where}; the state before it is saved; batch: {ids}"
    except (RuntimeError, MemoryError) as error:
        if is_sharded(t.model):  # the others wait for a layer of this rank, and end when it does
            raise
        single = max((len(batch.labels) for batch in batches), default=2) == 1
        halve = out_of_memory(error) and not single and options.out_of_memory != "stop"
        traceback.clear_frames(error.__traceback__)  # they keep the failed pass, and the exchange needs memory
        status = agreed(ranks.HALVE if halve else ranks.END)
        if not halve:
            raise
    if status == ranks.FINE:
        if not t.entry.additive:
            t.gradient_sum.finish()
        return passes
    if status == ranks.NOT_FINITE:
        set_random_state(before, t.machine.device)
        t.save()
        raise Diverged(ranks.first_message(message))
    if status == ranks.END:
        ranks.end()
    progress.num_splits *= 2
    t.optimizer.zero_grad(set_to_none=True)
    print(f"warning: out of memory; from here on each forward pass is split into {progress.num_splits}")
    return None
