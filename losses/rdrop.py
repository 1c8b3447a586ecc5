"""R-Drop (Liang et al. 2021, arXiv 2106.14448, Eq. 1–4): two passes under different dropout masks must agree.

    CE = ½ mean_i [-log P₁(yᵢ) - log P₂(yᵢ)]                       Eq. (2), as a mean over both passes
    KL = mean_i ½ [KL(P₁ ‖ P₂) + KL(P₂ ‖ P₁)]                      Eq. (1)
    L  = CE + α·KL                                                  Eq. (3), (4)

Both passes are one doubled batch: its rows get masks of their own.

Differs from the paper: it adds up the CE of the passes where this takes their mean, so α here is half of the paper's α
for the same objective. Differs from the published code: that sums KL over the batch, so that its strength grows with
the batch size (α there, at batch size B, is α·B/2 here), and one of its models never adds the second CE.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from losses.cross_entropy import cross_entropy


def symmetric_kl(logits_1: Tensor, logits_2: Tensor) -> Tensor:
    """½ [KL(P₁ ‖ P₂) + KL(P₂ ‖ P₁)] = ½ Σ_c (P₁ - P₂)(log P₁ - log P₂), mean over examples. logits: [B, C] -> scalar,
    fp32 or wider, at least 0."""
    log_p, log_q = (F.log_softmax(x if x.dtype.itemsize >= 4 else x.float(), -1) for x in (logits_1, logits_2))
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


def rdrop_loss(logits_1: Tensor, logits_2: Tensor, labels: Tensor, alpha: float, smoothing: float = 0.0) -> Tensor:
    """logits: [B, C];  labels: int64 [B] -> scalar, mean over examples. Raises ValueError for a negative alpha."""
    if alpha < 0:
        raise ValueError(f"rdrop_alpha {alpha} is negative")
    ce = cross_entropy(torch.cat([logits_1, logits_2]), torch.cat([labels, labels]), smoothing)
    return ce + alpha * symmetric_kl(logits_1, logits_2)


def objective(model: Module, batch, options) -> tuple[Tensor, Tensor]:
    """Returns (loss, logits [2B, C]). Warns where both passes are equal: dropout is off."""
    logits = model(batch.input_ids.repeat(2, 1), batch.mask.repeat(2, 1))  # [2B, C]
    first, second = logits.chunk(2)
    warn_if_equal(model, first, second)
    return rdrop_loss(first, second, batch.labels, options.rdrop_alpha, options.label_smoothing), logits


def warn_if_equal(model: Module, first: Tensor, second: Tensor) -> None:
    """Equal but for the last bits, in which a review may differ between two rows of a batch."""
    if model.training and torch.allclose(first, second, rtol=1e-6, atol=1e-6):
        warnings.warn("R-Drop: both passes are equal, so its KL is 0: this model has no dropout", stacklevel=2)
