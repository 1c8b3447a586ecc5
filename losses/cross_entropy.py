"""Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv 1512.00567, §7).

    q_c = (1 - ε)·[c = y] + ε/C,    L = mean_i -w_{y_i} Σ_c q_c log softmax(logits_i)_c

w_c is the weight of class c, 1 without class weights. With balanced weights w_c = N / (C·N_c), the mean of w over the
training examples is 1.

Differs from the paper: the class weights w. The loss is a mean over examples.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from data.batches import Batch
from data.flags import option
from nn import Model
from nn.autocast import at_least_fp32


@dataclass(frozen=True)
class CrossEntropyOptions:
    label_smoothing: float = option(0.0, "objective", "ε of the cross-entropy, in [0, 1)")

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)


def check_smoothing(smoothing: float) -> None:
    """Raises ValueError for ε outside [0, 1)."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing {smoothing} is outside [0, 1)")


def check_rows(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> None:
    """Raises ValueError unless logits are [B, C], labels [B] and class_weights [C]: torch would broadcast some other
    shapes to a wrong number."""
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {list(logits.shape)} and labels {list(labels.shape)} are not [B, C] and [B]")
    if class_weights is not None and class_weights.shape != logits.shape[1:]:
        raise ValueError(f"{list(class_weights.shape)} class weights for {logits.size(1)} classes")


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Computes L, the mean over examples.

    logits: [B, C];  labels: int64 [B], 0 … C - 1;  smoothing: ε;  class_weights: w, [C] -> scalar, fp32 or wider.
    Raises ValueError for ε outside [0, 1), and for other shapes.
    """
    check_smoothing(smoothing)
    check_rows(logits, labels, class_weights)
    log_p = F.log_softmax(at_least_fp32(logits), dim=-1)  # [B, C]
    log_p_true = log_p.gather(1, labels[:, None]).squeeze(1)  # [B]
    losses = -(1 - smoothing) * log_p_true  # [B]
    if smoothing:  # 0 times the log-probability of an excluded class, -∞, would be NaN
        losses = losses - smoothing * log_p.mean(-1)
    return losses.mean() if class_weights is None else (class_weights[labels] * losses).mean()


def objective(model: Model, batch: Batch, options: CrossEntropyOptions) -> tuple[Tensor, Tensor]:
    """Returns (loss, logits [B, C])."""
    logits = model(batch.input_ids, batch.mask)
    return cross_entropy(logits, batch.labels, options.label_smoothing, batch.class_weights), logits
