"""Semi-supervised training on embeddings: adversarial and virtual adversarial training, and entropy minimisation
(Miyato, Dai & Goodfellow 2017, arXiv 1605.07725; together: Sachan, Zaheer & Salakhutdinov 2019, arXiv 2009.04007, §3).

s: the embeddings of a review, [T, E];  p(·|s): the model's distribution;  θ̂: θ as a constant

    L_ML  = mean -log p(y|s)
    r_adv = -ε g/‖g‖,  g = ∇_s log p(y|s)                                        Miyato et al., Eq. (5)
    L_AT  = mean -log p(y|s + r_adv)                                             Eq. (6)
    r_v   = ε g/‖g‖,  g = ∇_d KL[p(·|s; θ̂) ‖ p(·|s + d; θ̂)],  d ~ N(0, I) of length ξ
                                                                                 Eq. (7): one power iteration
    L_VAT = mean KL[p(·|s; θ̂) ‖ p(·|s + r_v)]  over all reviews                  Eq. (8)
    L_EM  = mean -Σ_c p_c log p_c  over unlabelled reviews                       Sachan et al., Eq. (4)
    L     = L_ML + λ_AT L_AT + λ_VAT L_VAT + λ_EM L_EM                           Eq. (5)

`--loss adversarial` is L_ML + λ_AT L_AT, of labelled reviews alone. Norms run over a whole review. Clean and perturbed
passes share their dropout masks, so that the divergence is that of the perturbation alone.

Differs from the papers: they divide the embedding table by its spread so that ε means the same for every model; here
the table stays and ε counts in its spread: the standard deviation of the batch's embeddings.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from losses.cross_entropy import cross_entropy
from nn.runtime import random_state, set_random_state

XI = 0.1  # ξ, in the spread of embeddings a place


class Reviews(NamedTuple):
    """Embedded reviews, and the random state that gives their passes the same dropout masks."""

    model: Module
    x: Tensor  # [B, T, E]
    mask: Tensor  # bool [B, T]
    state: dict[str, Tensor]

    @classmethod
    def embed(cls, model: Module, input_ids: Tensor, mask: Tensor) -> "Reviews":
        x = model.embed(input_ids, mask)
        if not x.requires_grad:  # frozen below: its gradient is wanted all the same
            x = x.detach().requires_grad_(torch.is_grad_enabled())
        return cls(model, x, mask, random_state(input_ids.device))

    def logits(self, shift: Tensor | float = 0.0) -> Tensor:
        """[B, C], fp32, of the embeddings moved by `shift`, under the same dropout masks each time."""
        set_random_state(self.state, self.x.device)
        h = self.model.encode(self.x + shift, self.mask)
        return self.model.classifier(self.model.pool(h, self.mask)).float()

    def spread(self) -> Tensor:
        """Standard deviation of the embeddings of real tokens: a scalar."""
        return self.x.detach()[self.mask].float().std()


def of_length(direction: Tensor, mask: Tensor, length: Tensor | float) -> Tensor:
    """Each review's direction, [B, T, E], 0 at padding, scaled to `length` over the whole review; a direction of 0
    stays 0."""
    direction = direction.float().masked_fill(~mask[..., None], 0)
    norm = direction.flatten(1).norm(dim=1)[:, None, None]  # [B, 1, 1]
    return direction / norm.clamp(min=torch.finfo(norm.dtype).tiny) * length


def kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(P ‖ Q), mean over examples. logits: [B, C] -> scalar"""
    log_p = F.log_softmax(logits_p, -1)
    return (log_p.exp() * (log_p - F.log_softmax(logits_q, -1))).sum(-1).mean()


def entropy(logits: Tensor) -> Tensor:
    """-Σ p log p, mean over examples. logits: [B, C] -> scalar"""
    log_p = F.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def virtual_perturbation(reviews: Reviews, target: Tensor, radius: float) -> Tensor:
    """r_v: [B, T, E] by one power iteration. target: logits of p(·|s; θ̂), without gradient."""
    fixed = reviews._replace(x=reviews.x.detach())
    spread = reviews.spread()
    places = reviews.mask.sum(1).clamp(min=1).sqrt()[:, None, None]
    start = of_length(torch.randn_like(fixed.x, dtype=torch.float32), reviews.mask, XI * spread * places)
    start.requires_grad_()
    (g,) = torch.autograd.grad(kl(target, fixed.logits(start)), start)
    return of_length(g, reviews.mask, radius * spread)  # Eq. (7)


def vat_loss(reviews: Reviews, logits: Tensor, radius: float) -> Tensor:
    """L_VAT, Eq. (8). logits: those of the clean pass; they are a constant here."""
    target = logits.detach()
    return kl(target, reviews.logits(virtual_perturbation(reviews, target, radius)))


def adversarial_loss(reviews: Reviews, loss: Tensor, labels: Tensor, radius: float, smoothing: float) -> Tensor:
    """L_AT, Eq. (6). loss: the clean pass's, through reviews.x."""
    (g,) = torch.autograd.grad(loss, reviews.x, retain_graph=True)
    shift = of_length(g, reviews.mask, radius * reviews.spread())  # Eq. (5): the loss is -log p
    return cross_entropy(reviews.logits(shift), labels, smoothing)


def prepare(model: Module, options, tokenizer) -> None:
    """Raises ValueError for a model or settings that cannot do this."""
    if options.radius <= 0:
        raise ValueError(f"radius {options.radius} must be above 0")
    if getattr(model, "virtual", None) is not None:
        raise ValueError(f"--loss {options.loss} moves embeddings itself; it does not go with --peft {options.peft}")


def objective(model: Module, batch, options) -> tuple[Tensor, Tensor]:
    """L of the module docstring; batch.unlabelled may be None: L_VAT is then over labelled reviews. Returns (loss,
    logits [B, C])."""
    weights = (options.adversarial_weight, options.vat_weight, options.entropy_weight)
    labelled = Reviews.embed(model, batch.input_ids, batch.mask)
    logits = labelled.logits()
    ce = cross_entropy(logits, batch.labels, options.label_smoothing)
    loss = ce
    if weights[0] and torch.is_grad_enabled():
        loss = loss + weights[0] * adversarial_loss(labelled, ce, batch.labels, options.radius, options.label_smoothing)
    parts, sizes = [(labelled, logits)], [len(logits)]
    if batch.unlabelled is not None:
        unlabelled = Reviews.embed(model, batch.unlabelled.input_ids, batch.unlabelled.mask)
        parts.append((unlabelled, unlabelled.logits()))
        sizes.append(len(parts[1][1]))
        loss = loss + weights[2] * entropy(parts[1][1])
    if weights[1] and torch.is_grad_enabled():
        losses = [
            vat_loss(reviews, clean, options.radius) * size for (reviews, clean), size in zip(parts, sizes, strict=True)
        ]
        loss = loss + weights[1] * sum(losses) / sum(sizes)
    return loss, logits
