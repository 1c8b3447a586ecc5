"""Margin loss on the lengths of class capsules (Sabour et al. 2017, arXiv 1710.09829, §3).

    L = mean_i Σ_c [T_c max(0, m⁺ - |v_c|)² + λ (1 - T_c) max(0, |v_c| - m⁻)²]      Eq. (4)

T_c = [c = y], m⁺ = 0.9, m⁻ = 0.1, λ = 0.5. Both terms are squared. Many implementations omit the square; the slope of
the loss is then the same for every violation, however small.

Differs from the paper: the loss is a mean over examples; the reconstruction loss (§4.1) is left out.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from data.batches import Batch
from losses.cross_entropy import check_rows
from nn import Model
from nn.autocast import at_least_fp32
from nn.capsule_lstm import CapsuleLengths


@dataclass(frozen=True)
class MarginOptions:
    """The margin loss has no options."""


def margin_loss(
    lengths: Tensor,
    labels: Tensor,
    upper: float = 0.9,
    lower: float = 0.1,
    weight: float = 0.5,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Computes L, the mean over examples, each multiplied by the weight of its class.

    lengths: |v_c| in [0, 1], [B, C];  labels: int64 [B];  upper, lower, weight: m⁺, m⁻, λ;
    class_weights: [C] -> scalar, fp32 or wider. Raises ValueError for other shapes.
    """
    check_rows(lengths, labels, class_weights)
    lengths = at_least_fp32(lengths)
    true = F.one_hot(labels.long(), lengths.size(1))  # [B, C]
    present = (upper - lengths).clamp(min=0).square()
    absent = (lengths - lower).clamp(min=0).square()
    losses = (true * present + weight * (1 - true) * absent).sum(1)  # [B], Eq. (4)
    return losses.mean() if class_weights is None else (class_weights[labels] * losses).mean()


def objective(model: Model, batch: Batch, options: MarginOptions) -> tuple[Tensor, Tensor]:
    """Returns (loss, lengths [B, C]). Raises ValueError for a model without class capsules."""
    if not isinstance(model.classifier, CapsuleLengths):
        raise ValueError("--loss margin needs class capsules: --model capsule_lstm --shape head=capsules")
    lengths = model(batch.input_ids, batch.mask)
    return margin_loss(lengths, batch.labels, class_weights=batch.class_weights), lengths
