"""Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362), for fine-tuning as in Gunel et al. 2021
(arXiv 2011.01403).

    z_i = features_i / ‖features_i‖,   A(i): all other rows,   P(i): the rows of A(i) that have the label of i
    L_out = mean_i -1/|P(i)| Σ_{p ∈ P(i)} log [exp(z_i·z_p/τ) / Σ_{a ∈ A(i)} exp(z_i·z_a/τ)]        Eq. (2)
    L_in  = mean_i -log [1/|P(i)| Σ_{p ∈ P(i)} exp(z_i·z_p/τ) / Σ_{a ∈ A(i)} exp(z_i·z_a/τ)]        Eq. (3), <= L_out
    L     = (1 - λ)·CE + λ·L_out                                                                  Gunel et al., Eq. (1)

Several views of an example are separate rows with the same label. The means run over the anchors that have a positive.
The loss is 0 if no anchor has one. With gradient accumulation, the contrast set is the micro-batch; if memory runs out,
the micro-batch is split, and the contrast set is one pass. With several ranks, it is the micro-batch of all ranks; the
features are gathered with their gradients. An optional projection head (Khosla et al., §3) computes the vectors to
compare; it exists during training only.

Differs from the paper: the loss is a mean over anchors, not a sum.
Differs from the published code: anchors without a positive are excluded from the mean (the published code counts them
as 0), and the factor τ/τ_base, which only scales the loss, is 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module

from data.batches import Batch
from data.flags import option
from data.ranks import size
from data.tokenization import Tokenizer
from losses.cross_entropy import CrossEntropyOptions, cross_entropy
from losses.divergence import symmetric_kl
from losses.rdrop import RDropOptions, warn_without_dropout
from nn import Model
from nn.autocast import at_least_fp32
from nn.distributed import gather_features


@dataclass(frozen=True)
class SupConOptions(CrossEntropyOptions):
    supcon_weight: float = option(0.1, "objective", "SupCon: λ in (1 - λ)·CE + λ·SupCon, in [0, 1]; 1: no classifier")
    temperature: float = option(0.3, "objective", "SupCon: τ, above 0")
    projection: int = option(0, "objective", "SupCon: width of a projection head, discarded after training; 0: none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.supcon_weight <= 1:
            raise ValueError(f"supcon_weight {self.supcon_weight} is outside [0, 1]")
        check_temperature(self.temperature)


def check_temperature(temperature: float) -> None:
    """Raises ValueError for τ <= 0."""
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be above 0")


@dataclass(frozen=True)
class RDropSupConOptions(SupConOptions, RDropOptions):
    """The options of both losses, each checked by its own class."""


def supcon_loss(features: Tensor, labels: Tensor, temperature: float, inside: bool = False) -> Tensor:
    """Computes L_out, or L_in with `inside`, the mean over anchors that have a positive.

    features: [N, D];  labels: int64 [N];  temperature: τ -> scalar, fp32 or wider. Returns 0 if no anchor has a
    positive (one example, or all labels different). Raises ValueError for τ <= 0 and for other shapes, and on a CPU for
    negative labels.
    """
    check_temperature(temperature)
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {list(features.shape)} and labels {list(labels.shape)} are not [N, D] and [N]")
    if labels.device.type == "cpu" and len(labels) and labels.min() < 0:  # on a GPU, the check would synchronize
        raise ValueError(f"label {int(labels.min())} is not a class")
    with torch.autocast(features.device.type, enabled=False):
        z = F.normalize(at_least_fp32(features), dim=-1)  # [N, D]
        diagonal = torch.eye(len(z), dtype=torch.bool, device=z.device)
        scores = (z @ z.T / temperature).masked_fill(diagonal, torch.finfo(z.dtype).min)  # [N, N]
        log_p = scores - scores.logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~diagonal
    count = positive.sum(1)  # |P(i)|
    anchors = count > 0
    if not anchors.any():
        return z.sum() * 0
    log_p, positive, count = log_p[anchors], positive[anchors], count[anchors]
    if inside:
        inner = log_p.masked_fill(~positive, torch.finfo(log_p.dtype).min).logsumexp(1)  # log Σ_p
        return -(inner - count.to(inner.dtype).log()).mean()  # Eq. (3)
    return -(log_p.masked_fill(~positive, 0).sum(1) / count).mean()  # Eq. (2)


class Projection(Module):
    """Computes W₂ ReLU(W₁ f): [B, D] -> [B, size] (Khosla et al., §3)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.first, self.second = Linear(width, width), Linear(width, size)

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, D] -> [B, size]"""
        return self.second(self.first(features).relu())


def prepare(model: Model, options: SupConOptions, tokenizer: Tokenizer | None) -> None:
    """Adds the projection head to `model` if options.projection is not 0. Warns if the classifier is not trained."""
    if options.supcon_weight == 1:
        way_out = "a further run with --weights RUN/best --head new trains one"
        print(f"warning: --supcon-weight 1 trains no classifier, so the accuracies are meaningless; {way_out}")
    if options.projection:
        model.projection = Projection(model.classifier.in_features, options.projection)


def contrast(model: Model, features: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Computes L_out of the features, or of their projection if the model has a projection head.

    features: [V B, D], V views of each example. With several ranks every rank computes an equal part of L_out.
    """
    projected = features if model.projection is None else model.projection(features)
    views = len(features) // len(batch.labels)
    if batch.share is None:
        return supcon_loss(projected, batch.labels.repeat(views), temperature)
    gathered = gather_features(projected, batch.share)  # [V N, D]
    return supcon_loss(gathered, batch.share.whole.labels.repeat(views), temperature) / size()


def objective(model: Model, batch: Batch, options: SupConOptions) -> tuple[Tensor, Tensor]:
    """Returns ((1 - λ)·CE + λ·L_out, logits [B, C]); with several ranks this rank's part of the loss."""
    features = model.features(batch.input_ids, batch.mask)
    logits, weight = model.classifier(features), options.supcon_weight
    ce = cross_entropy(logits, batch.labels, options.label_smoothing, batch.class_weights)
    return batch.part((1 - weight) * ce) + weight * contrast(model, features, batch, options.temperature), logits


def rdrop_objective(model: Model, batch: Batch, options: RDropSupConOptions) -> tuple[Tensor, Tensor]:
    """Returns ((1 - λ)·CE + λ·L_out + α·KL, logits [2B, C]) of one doubled batch.

    The two passes of an example are two views, so that every anchor has a positive. With several ranks the loss is this
    rank's part. Warns once if the model has no dropout.
    """
    warn_without_dropout(model)
    features = model.features(batch.input_ids.repeat(2, 1), batch.mask.repeat(2, 1))  # [2B, D]
    labels, logits, weight = batch.labels.repeat(2), model.classifier(features), options.supcon_weight
    first, second = logits.chunk(2)
    ce = cross_entropy(logits, labels, options.label_smoothing, batch.class_weights)
    loss = batch.part((1 - weight) * ce) + weight * contrast(model, features, batch, options.temperature)
    return loss + batch.part(options.rdrop_alpha * symmetric_kl(first, second).mean()), logits
