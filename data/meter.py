"""Keeps the progress of a run, accumulates loss, accuracy, tokens and seconds, and decides when to save."""

import copy
import time
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from data.batches import Batch
from data.ranks import add


@dataclass
class Progress:
    """The position of a run and its results so far; together with tensors, all that resuming needs."""

    epoch: int = 0
    step: int = 0  # within the epoch
    best: float = -1.0  # validation accuracy
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    validation: dict[str, Any] | None = None  # all metrics of the best epoch
    num_splits: int = 1  # passes into which each micro-batch is split, since memory ran out

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "Progress":
        """Reads a saved state; older ones call num_splits `pieces`."""
        values = {"num_splits": saved.get("pieces", 1)} | saved
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def step_loss(passes: list[tuple[Batch, Tensor, dict[str, Tensor]]]) -> float:
    """Returns the mean loss over all examples of a step, of all ranks."""
    sums = add(
        {
            "loss": sum(loss.item() * batch.total for batch, loss, _ in passes),
            "count": sum(batch.counted for batch, _, _ in passes),
        }
    )
    return sums["loss"] / sums["count"]


class Meter:
    """Accumulates the sums of an epoch (`sums`, all that resuming needs), the run's time, and the time since saving.

    sums: of an interrupted epoch, None for a new one. seconds: time of the run before this process. save_minutes:
    interval of saving. The keys of `sums` are part of the saved state: "right NAME" and "of NAME" count the correct and
    all predictions.
    """

    def __init__(self, sums: dict[str, float] | None, seconds: float, save_minutes: float) -> None:
        self.sums = sums or self.zero()
        self.begin, self.before = time.perf_counter(), seconds
        self.mark = self.saved = self.begin
        self.save_seconds = 60 * save_minutes

    @staticmethod
    def zero() -> dict[str, float]:
        """Returns the sums at the start of an epoch."""
        return {"loss": 0.0, "count": 0, "tokens": 0, "seconds": 0.0}

    def add(self, batch: Batch, loss: Tensor, correct_predictions: dict[str, Tensor]) -> None:
        """Adds one forward pass. loss: mean over examples, or a rank's part of it.

        correct_predictions: by name, tensors of any shape: bool, or fp32 (nats).
        """
        self.sums["loss"] += loss.item() * batch.total
        self.sums["count"] += batch.counted
        for name, correct in correct_predictions.items():
            self.sums[f"right {name}"] = self.sums.get(f"right {name}", 0) + correct.sum().item()
            self.sums[f"of {name}"] = self.sums.get(f"of {name}", 0) + correct.numel()
        self.sums["tokens"] += int(batch.mask.sum()) if batch.counted else 0  # without padding

    def of_all_ranks(self) -> "Meter":
        """Returns a meter with the sums over all ranks, which must all call it. The seconds are this rank's."""
        meter = copy.copy(self)
        meter.sums = add(self.sums) | {"seconds": self.sums["seconds"]}
        return meter

    def tick(self) -> None:
        """Ends a step."""
        now = time.perf_counter()
        self.sums["seconds"] += now - self.mark
        self.mark = now

    def reset(self) -> None:
        """Ends an epoch."""
        self.sums, self.mark = self.zero(), time.perf_counter()

    def total(self) -> float:
        """Returns the seconds of the whole run, over all its processes."""
        return self.before + time.perf_counter() - self.begin

    def means(self) -> dict[str, float]:
        """Returns the mean loss over examples, and the fraction of correct predictions by name."""
        sums = self.sums
        names = [key.removeprefix("of ") for key in sums if key.startswith("of ")]
        accuracies = {name: sums[f"right {name}"] / max(1, sums[f"of {name}"]) for name in names}
        return {"loss": sums["loss"] / max(1, sums["count"])} | accuracies

    def record(self) -> dict[str, float]:
        """Returns the means with the prefix train_, and the tokens per second."""
        speed = {"tokens_per_second": round(self.sums["tokens"] / max(self.sums["seconds"], 1e-9))}
        return {f"train_{name}": value for name, value in self.means().items()} | speed

    def shown(self) -> dict[str, float]:
        """Returns `record` with five significant digits."""
        return {name: float(f"{value:.5g}") for name, value in self.record().items()}

    def save_is_due(self) -> bool:
        """Returns whether save_minutes have passed since the last time that this method returned True."""
        due = time.perf_counter() - self.saved >= self.save_seconds
        self.saved = time.perf_counter() if due else self.saved
        return due
