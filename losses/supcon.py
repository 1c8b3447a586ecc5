"""Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362), for fine-tuning as Gunel et al. 2021
(arXiv 2011.01403) use it.

    z_i = features_i / ‖features_i‖,   A(i): all others,   P(i): those of A(i) with the label of i
    L_out = mean_i -1/|P(i)| Σ_{p ∈ P(i)} log [exp(z_i·z_p/τ) / Σ_{a ∈ A(i)} exp(z_i·z_a/τ)]        Eq. (2)
    L_in  = mean_i -log [1/|P(i)| Σ_{p ∈ P(i)} exp(z_i·z_p/τ) / Σ_{a ∈ A(i)} exp(z_i·z_a/τ)]        Eq. (3), <= L_out
    L     = (1 - λ)·CE + λ·L_out                                                                  Gunel et al., Eq. (1)

Several views of an example are rows of their own, with its label. The means run over the anchors that have a positive;
where none has, the loss is 0.

With gradient accumulation the contrast set is the micro-batch. A projection head (Khosla et al., §3) stands between
features and loss while training, and is dropped afterwards.

Differs from the paper: mean over anchors, not sum. Differs from the published code: anchors without a positive are left
out of the mean (there they count as 0), and τ/τ_base, which only scales the loss, is 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module

from losses.cross_entropy import cross_entropy
from losses.rdrop import symmetric_kl, warn_if_equal


def supcon_loss(features: Tensor, labels: Tensor, temperature: float, inside: bool = False) -> Tensor:
    """features: [N, D];  labels: int64 [N] -> scalar, fp32 or wider; inside: L_in instead of L_out.

    0 where no anchor has a positive (a batch of one, or all labels different). Raises ValueError for τ <= 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be above 0")
    with torch.autocast(features.device.type, enabled=False):
        z = F.normalize(features if features.dtype.itemsize >= 4 else features.float(), dim=-1)  # [N, D]
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        scores = (z @ z.T / temperature).masked_fill(itself, torch.finfo(z.dtype).min)  # [N, N]
        log_p = scores - scores.logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)  # |P(i)|
    anchors = count > 0
    if not anchors.any():
        return features.sum() * 0
    log_p, positive, count = log_p[anchors], positive[anchors], count[anchors]
    if inside:
        return -(
            log_p.masked_fill(~positive, torch.finfo(log_p.dtype).min).logsumexp(1) - count.log()
        ).mean()  # Eq. (3)
    return -(log_p.masked_fill(~positive, 0).sum(1) / count).mean()  # Eq. (2)


class Projection(Module):
    """W₂ ReLU(W₁ f): [B, D] -> [B, size] (Khosla et al., §3)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.first, self.second = Linear(width, width), Linear(width, size)

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features).relu())


def prepare(model: Module, options, tokenizer) -> None:
    """Puts the projection head on a model where one is asked for. Raises ValueError for λ outside [0, 1]."""
    if not 0 <= options.supcon_weight <= 1:
        raise ValueError(f"supcon_weight {options.supcon_weight} is outside [0, 1]")
    if options.projection:
        model.projection = Projection(model.classifier.in_features, options.projection)


def contrast(model: Module, features: Tensor, labels: Tensor, options) -> Tensor:
    projected = model.projection(features) if hasattr(model, "projection") else features
    return supcon_loss(projected, labels, options.temperature)


def objective(model: Module, batch, options) -> tuple[Tensor, Tensor]:
    """(1 - λ)·CE + λ·L_out. Returns (loss, logits [B, C])."""
    features = model.features(batch.input_ids, batch.mask)
    logits, weight = model.classifier(features), options.supcon_weight
    ce = cross_entropy(logits, batch.labels, options.label_smoothing)
    return (1 - weight) * ce + weight * contrast(model, features, batch.labels, options), logits


def rdrop_objective(model: Module, batch, options) -> tuple[Tensor, Tensor]:
    """(1 - λ)·CE + λ·L_out + α·KL on one doubled batch: each example's two passes are two views, so that every anchor
    has a positive. Returns (loss, logits [2B, C])."""
    if options.rdrop_alpha < 0:
        raise ValueError(f"rdrop_alpha {options.rdrop_alpha} is negative")
    features = model.features(batch.input_ids.repeat(2, 1), batch.mask.repeat(2, 1))  # [2B, D]
    labels, logits, weight = batch.labels.repeat(2), model.classifier(features), options.supcon_weight
    first, second = logits.chunk(2)
    warn_if_equal(model, first, second)
    ce = cross_entropy(logits, labels, options.label_smoothing)
    loss = (1 - weight) * ce + weight * contrast(model, features, labels, options)
    return loss + options.rdrop_alpha * symmetric_kl(first, second), logits
