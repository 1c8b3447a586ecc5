"""Semi-supervised training on embeddings: adversarial training, virtual adversarial training, entropy minimization
(Miyato, Dai & Goodfellow 2017, arXiv 1605.07725; combined: Sachan, Zaheer & Salakhutdinov 2019, arXiv 2009.04007, §3).

s: the embeddings of a review, [T, E], as the layers get them: after dropout, and in encoders after positions and norm;
p(·|s): the model's distribution;  θ̂: θ as a constant

    L_ML  = mean -log p(y|s)
    r_adv = -ε g/‖g‖,  g = ∇_s log p(y|s)                                        Miyato et al., Eq. (5)
    L_AT  = mean -log p(y|s + r_adv)                                             Eq. (6)
    r_v   = ε g/‖g‖,  g = ∇_d KL[p(·|s; θ̂) ‖ p(·|s + d; θ̂)],  d ~ N(0, I), scaled to the length ξ √n
                                                                                 Eq. (7): one power iteration
    L_VAT = mean KL[p(·|s; θ̂) ‖ p(·|s + r_v)]  over all reviews                  Eq. (8)
    L_EM  = mean -Σ_c p_c log p_c  over unlabelled reviews                       Sachan et al., Eq. (4)
    L     = L_ML + λ_AT L_AT + λ_VAT L_VAT + λ_EM L_EM                           Eq. (5)

n: the tokens of the review;  ξ = 0.1. `--loss adversarial` is L_ML + λ_AT L_AT + λ_VAT L_VAT on labelled reviews only,
with λ_VAT = 0 by default. Norms are taken over a whole review. The clean and the perturbed pass use the same dropout
masks, so that the divergence measures the perturbation alone.

Differs from the papers: the papers normalize each dimension of the embedding table to mean 0 and variance 1 over the
words of the corpus, so that ε means the same for every model. Here the table is unchanged, and a perturbation r is
measured as r / σ, with σ the standard deviation of the batch's embeddings: one number for all dimensions, or with
--normalize-embeddings one for each dimension, which perturbs as the papers do. So r_v is ε σ ∘ h/‖h‖ with h = σ ∘ g,
r_adv is likewise, and it is d / σ that has the length ξ √n. L_EM leaves out the labelled reviews, which Sachan et al.
include.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.batches import Batch, Share
from data.flags import option
from data.ranks import alone
from data.seeds import random_state, set_random_state
from data.tokenization import Tokenizer
from losses.cross_entropy import CrossEntropyOptions, cross_entropy
from losses.divergence import entropy, kl_divergence
from nn import Model
from nn.autocast import at_least_fp32, product_dtype
from nn.distributed import draw_normal, standard_deviation

XI = 0.1  # ξ for each token position, in units of the embeddings' standard deviation


@dataclass(frozen=True)
class AdversarialOptions(CrossEntropyOptions):
    radius: float = option(5.0, "objective", "adversarial, mixed: ε in standard deviations of the embeddings")
    adversarial_weight: float = option(1.0, "objective", "adversarial, mixed: weight λ_AT of the adversarial loss")
    vat_weight: float = option(0.0, "objective", "adversarial, mixed: weight λ_VAT of the virtual adversarial loss")
    normalize_embeddings: bool = option(
        False, "objective", "adversarial, mixed: a standard deviation for each dimension of the embeddings"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius > 0:
            raise ValueError(f"radius {self.radius} must be above 0")


@dataclass(frozen=True)
class MixedOptions(AdversarialOptions):
    vat_weight: float = option(1.0, "objective", "adversarial, mixed: weight λ_VAT of the virtual adversarial loss")
    entropy_weight: float = option(1.0, "objective", "mixed: weight λ_EM of the entropy")
    unlabelled_batch: int = option(0, "objective", "mixed: unlabelled reviews in each pass; 0: as many as --batch-size")


class Reviews(NamedTuple):
    """Embedded reviews, with the seed that gives all their passes the same dropout masks."""

    model: Model
    x: Tensor  # [B, T, E]
    mask: Tensor  # bool [B, T]
    seed: int  # of the dropout masks
    by_dimension: bool = False  # whether each dimension has a standard deviation of its own
    share: Share | None = None  # of a batch that several ranks compute together

    @classmethod
    def embed(
        cls, model: Model, input_ids: Tensor, mask: Tensor, by_dimension: bool = False, share: Share | None = None
    ) -> "Reviews":
        """Embeds token ids [B, T]. The embeddings require a gradient even if the table is frozen."""
        x = model.embed(input_ids, mask)
        if not x.requires_grad:
            x = x.detach().requires_grad_(torch.is_grad_enabled())
        return cls(model, x, mask, int(torch.randint(2**62, ())), by_dimension, share)

    def logits(self, shift: Tensor | float = 0.0) -> Tensor:
        """Computes the logits of the embeddings plus `shift` [B, T, E] under fixed dropout masks: [B, C].

        The logits are fp32 or wider. The random state is restored, so that the seed of the masks does not affect later
        random numbers.
        """
        before = random_state(self.x.device)
        torch.manual_seed(self.seed)
        try:
            h = self.model.encode(self.x + shift, self.mask)
            return at_least_fp32(self.model.classifier(self.model.pool(h, self.mask)))
        finally:
            set_random_state(before, self.x.device)

    def spread(self) -> Tensor:
        """Computes σ of the embeddings of real tokens, of all ranks: a scalar, or [E] by dimension."""
        x = self.x.detach()[self.mask].float()
        if self.share is not None:
            return standard_deviation(x, self.share)  # `prepare` refuses by_dimension
        return x.std(0, correction=0) if self.by_dimension else x.std()


def scale_to_length(direction: Tensor, mask: Tensor, length: Tensor | float) -> Tensor:
    """Scales the direction of each review to `length`, with the norm taken over the whole review.

    direction: [B, T, E];  mask: bool [B, T] -> fp32 [B, T, E], 0 at padding; a direction of 0 stays 0
    """
    direction, tiny = direction.float().masked_fill(~mask[..., None], 0), torch.finfo(torch.float32).tiny
    # the squares of a small gradient underflow: its largest number becomes 1 first
    direction = direction / direction.abs().amax((1, 2), keepdim=True).clamp(min=tiny)
    norm = direction.flatten(1).norm(dim=1)[:, None, None]  # [B, 1, 1]
    return direction / norm.clamp(min=tiny) * length


def virtual_perturbation(reviews: Reviews, target: Tensor, radius: float) -> Tensor:
    """Computes r_v by one power iteration: [B, T, E]. target: logits of p(·|s; θ̂), without gradient.

    Under autocast, this is computed in fp32 with a target of its own: the KL of two distributions that differ by a
    short d is of second order in ξ, which half precision rounds to 0.
    """
    spread, share = reviews.spread(), reviews.share
    fixed = reviews._replace(x=at_least_fp32(reviews.x.detach()))
    root_tokens = reviews.mask.sum(1).clamp(min=1).sqrt()[:, None, None]
    start = torch.randn_like(fixed.x, dtype=torch.float32) if share is None else draw_normal(fixed.x, share)
    start = (scale_to_length(start, reviews.mask, XI * root_tokens) * spread).requires_grad_()
    rounded = product_dtype(fixed.x) != fixed.x.dtype
    with torch.autocast(fixed.x.device.type, enabled=False):
        if rounded:
            with torch.no_grad():
                target = fixed.logits()
        (g,) = torch.autograd.grad(kl_divergence(target, fixed.logits(start)).mean(), start)
    return scale_to_length(g * spread, reviews.mask, radius) * spread  # Eq. (7); the gradient of r / σ is σ g


def vat_loss(reviews: Reviews, logits: Tensor, radius: float) -> Tensor:
    """Computes L_VAT, Eq. (8). logits: those of the clean pass, [B, C], taken as a constant -> scalar"""
    target = logits.detach()
    return kl_divergence(target, reviews.logits(virtual_perturbation(reviews, target, radius))).mean()


def adversarial_perturbation(
    reviews: Reviews, loss: Tensor, of_logits: Callable[[Tensor], Tensor], radius: float
) -> Tensor:
    """Computes r_adv, Eq. (5): [B, T, E].

    loss: of the clean pass, a function of reviews.x;  of_logits: computes it from logits [B, C]. Under autocast to
    fp16, the clean pass is repeated in fp32: the gradient of a confident review is 0 in fp16.
    """
    x, repeated = reviews.x, product_dtype(reviews.x) == torch.float16
    with torch.autocast(x.device.type, enabled=False):  # which would cast in the backward pass too
        if repeated:
            exact = reviews._replace(x=at_least_fp32(x.detach()).requires_grad_())
            loss, x = of_logits(exact.logits()), exact.x
        (g,) = torch.autograd.grad(loss, x, retain_graph=True)
    spread = reviews.spread()
    return scale_to_length(g * spread, reviews.mask, radius) * spread  # the loss is -log p


def prepare(model: Model, options: AdversarialOptions, tokenizer: Tokenizer | None) -> None:
    """Raises ValueError for a model with virtual tokens, whose embeddings this objective does not control.

    Also raises it for normalized embeddings on several ranks.
    """
    if options.normalize_embeddings and not alone():
        raise ValueError("--normalize-embeddings cannot be computed by several ranks; leave out torchrun")
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
        raise ValueError("--loss adversarial and mixed need fp32 weights: half precision rounds small perturbations")
    if model.virtual is not None:
        method = model.adapter["method"]
        raise ValueError(f"--loss adversarial and mixed perturb the embeddings; they do not go with --peft {method}")


def objective(model: Model, batch: Batch, options: AdversarialOptions) -> tuple[Tensor, Tensor]:
    """Computes L of the module docstring. Returns (loss, logits [B, C]).

    If batch.unlabelled is None, L_VAT is over the labelled reviews and L_EM is omitted. With several ranks the loss is
    this rank's part.
    """
    labelled = Reviews.embed(model, batch.input_ids, batch.mask, options.normalize_embeddings, batch.share)
    logits = labelled.logits()

    def ce_of(logits: Tensor) -> Tensor:
        """Computes the cross-entropy of the labelled reviews."""
        return cross_entropy(logits, batch.labels, options.label_smoothing, batch.class_weights)

    ce = ce_of(logits)
    loss, training = batch.part(ce), torch.is_grad_enabled()
    if options.adversarial_weight and training:
        shift = adversarial_perturbation(labelled, ce, ce_of, options.radius)
        loss = loss + batch.part(options.adversarial_weight * ce_of(labelled.logits(shift)))  # Eq. (6)
    clean_passes = [(batch, labelled, logits)]
    if batch.unlabelled is not None and isinstance(options, MixedOptions):
        other = batch.unlabelled
        unlabelled = Reviews.embed(model, other.input_ids, other.mask, options.normalize_embeddings, other.share)
        clean_passes.append((other, unlabelled, unlabelled.logits()))
        loss = loss + other.part(options.entropy_weight * entropy(clean_passes[1][2]).mean())
    if options.vat_weight and training:
        losses = [vat_loss(reviews, clean, options.radius) * part.counted for part, reviews, clean in clean_passes]
        loss = loss + options.vat_weight * sum(losses) / sum(part.total for part, _, _ in clean_passes)
    return loss, logits
