"""R-Drop (Liang et al. 2021, arXiv 2106.14448, Eq. 2–4): two passes under different dropout masks must agree.

    CE = ½ mean_i [-log P₁(yᵢ) - log P₂(yᵢ)]                       Eq. (3), as a mean over both passes
    KL = mean_i ½ [KL(P₁ ‖ P₂) + KL(P₂ ‖ P₁)]                      Eq. (2)
    L  = CE + α·KL                                                  Eq. (4)

Both passes run as one doubled batch: each row has its own dropout mask.

Differs from the paper: the paper sums the cross-entropy of the two passes; this is their mean. For the same objective,
α here is half of the paper's α.
Differs from the published code for transformers: it sums KL over the batch, so that the strength of KL grows with the
batch size B (its α corresponds to α·B/2 here), and one of its models never adds the second cross-entropy.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from data.batches import Batch
from data.flags import option
from losses.cross_entropy import CrossEntropyOptions, cross_entropy
from losses.divergence import symmetric_kl
from nn import Model
from nn.dropout import Dropout


@dataclass(frozen=True)
class RDropOptions(CrossEntropyOptions):
    rdrop_alpha: float = option(0.5, "objective", "R-Drop: weight α of the KL term, half of the paper's α")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.rdrop_alpha)


def check_alpha(alpha: float) -> None:
    """Raises ValueError for α < 0."""
    if not alpha >= 0:
        raise ValueError(f"rdrop_alpha {alpha} is negative")


def rdrop_loss(
    logits_1: Tensor,
    logits_2: Tensor,
    labels: Tensor,
    alpha: float,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Computes L, the mean over examples.

    logits_1, logits_2: of the two passes, [B, C];  labels: int64 [B];  alpha: α;  smoothing, class_weights: ε and w of
    CE, [C] (losses/cross_entropy.py) -> scalar, fp32 or wider. Raises ValueError for a negative alpha, for ε outside
    [0, 1), and for other shapes.
    """
    check_alpha(alpha)
    logits, labels = torch.cat([logits_1, logits_2]), torch.cat([labels, labels])
    ce = cross_entropy(logits, labels, smoothing, class_weights)
    return ce + alpha * symmetric_kl(logits_1, logits_2).mean()


def objective(model: Model, batch: Batch, options: RDropOptions) -> tuple[Tensor, Tensor]:
    """Returns (loss, logits [2B, C]). Warns once if the model has no dropout."""
    warn_without_dropout(model)
    logits = model(batch.input_ids.repeat(2, 1), batch.mask.repeat(2, 1))  # [2B, C]
    first, second = logits.chunk(2)
    alpha, smoothing = options.rdrop_alpha, options.label_smoothing
    return rdrop_loss(first, second, batch.labels, alpha, smoothing, batch.class_weights), logits


def warn_without_dropout(model: Model) -> None:
    """Prints once that R-Drop has no effect on a training model without dropout: its two passes are equal."""
    dropouts = (module.active for module in model.modules() if isinstance(module, Dropout))
    if model.training and not (any(dropouts) or getattr(model.embeddings, "word_dropout", 0) > 0):
        print_warning()


@cache
def print_warning() -> None:
    """Prints the warning, once in a process."""
    print("warning: without dropout both passes of R-Drop are equal, and it has no effect; --dropout 0.1 adds dropout")
