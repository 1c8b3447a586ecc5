"""Margin loss on the lengths of class capsules (Sabour et al. 2017, arXiv 1710.09829, §3).

    L = mean_i Σ_c T_c max(0, m⁺ - |v_c|)² + λ (1 - T_c) max(0, |v_c| - m⁻)²        Eq. (4)

T_c = [c = y], m⁺ = 0.9, m⁻ = 0.1, λ = 0.5. Both terms are squared: without the square, which many copies lose, the loss
has the same slope however small the violation.

Differs from the paper: a mean over examples; label smoothing does not act on it.
"""

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from nn.capsule_lstm import CapsuleLengths


def margin_loss(lengths: Tensor, labels: Tensor, upper: float = 0.9, lower: float = 0.1, weight: float = 0.5) -> Tensor:
    """lengths: |v_c| in [0, 1), [B, C];  labels: int64 [B] -> scalar, mean over examples."""
    true = F.one_hot(labels, lengths.size(1))  # [B, C]
    present = (upper - lengths).clamp(min=0).square()
    absent = (lengths - lower).clamp(min=0).square()
    return (true * present + weight * (1 - true) * absent).sum(1).mean()  # Eq. (4)


def objective(model: Module, batch, options) -> tuple[Tensor, Tensor]:
    """Returns (loss, lengths [B, C]). Raises ValueError for a model without class capsules."""
    if not isinstance(model.classifier, CapsuleLengths):
        raise ValueError("--loss margin needs class capsules: --model capsule_lstm --shape head=capsules")
    lengths = model(batch.input_ids, batch.mask)
    return margin_loss(lengths.float(), batch.labels), lengths
