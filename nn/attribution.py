"""Attributes the label of a review to its words, by integrated gradients and by leaving words out.

Integrated gradients (Sundararajan, Taly & Yan 2017, arXiv 1703.01365, §3):

    a_t = Σ_e (x_te - x'_te) ∫₀¹ ∂F(x' + α(x - x'))/∂x_te dα           Eq. (1), summed over the embedding
    Σ_t a_t = F(x) - F(x')                                             completeness, Proposition 1

x: word embeddings of the tokens, [T, E];  x': the baseline;  F: log-odds of the label, log p/(1 - p).

Baseline: the embedding of [MASK] for each token of the text; of <unk> if there is no [MASK]. [CLS], [SEP], positions
and virtual tokens stay. Both tokens were trained to represent a missing word: [MASK] in pretraining, <unk> by word
dropout. A zero vector does not occur in training, and a norm after the embeddings, LN(αx) = LN(x), would move all of
F's change to α ≈ 0. The baseline of nb_linear is the review without n-grams; for two classes F is linear, and the sum
is exact.

Quadrature: [0, 1] is split into intervals with four Gauss-Legendre nodes each. Completeness holds on each interval, so
its error is known, |Σ_t a_t - F(end) + F(start)|. Intervals with an error above their share are halved until the errors
sum to at most TOLERANCE · |F(x) - F(x')|, or SMALLEST_ERROR if that is more, or until there are MOST_INTERVALS. This
resolves the kinks of ReLU and maximum, and steep parts of the path.

Leaving out (Li, Monroe & Jurafsky 2016, arXiv 1612.08220, Eq. (1)): F of the text minus F of the text without the word.

Differs from the papers: Sundararajan et al. use a Riemann sum with a fixed number of steps. Li et al. take the
log-likelihood and divide by it, which is not informative if the model is certain.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.tokenization import Tokenizer
from nn import Model
from nn.attention_lstm import AttentionLSTM
from nn.capsule_lstm import CapsuleLSTM
from nn.encoder import Encoder
from nn.modes import evaluating
from nn.nb_linear import NBLinear
from nn.quant import Int8Linear

TOLERANCE = 0.005  # of |F(x) - F(x')|; half of the error of 1 % that the tests allow
SMALLEST_ERROR = 1e-4  # in log-odds; smaller errors are below the precision of fp32
START_INTERVALS, MOST_INTERVALS = 4, 512
PASS_TOKENS = 4_096  # in one forward and backward pass
# nodes and weights on [-1, 1]: exact for polynomials of degree 7
NODES, WEIGHTS = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(4))
CAPSULES = 3  # capsules whose routing is returned

Function = Callable[[Tensor], Tensor]


class Attribution(NamedTuple):
    """Integrated gradients of one review."""

    effects: Tensor  # a, fp64 [T], of n-grams [M]; on the CPU
    difference: float  # F(x) - F(x')

    @property
    def error(self) -> float:
        """Returns |Σ a - (F(x) - F(x'))|."""
        return abs(float(self.effects.sum()) - self.difference)


def log_odds(logits: Tensor, label: int) -> Tensor:
    """Computes log p/(1 - p) of one label: [N]. logits: [N, C]. Raises ValueError for a label outside 0 … C - 1."""
    if not 0 <= label < logits.size(1):
        raise ValueError(f"label {label} is outside 0 … {logits.size(1) - 1}")
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
    return logits[:, label] - others.logsumexp(1)


def erasure(logits: Tensor, without: Tensor, label: int) -> Tensor:
    """Computes the effect of each word on a label of a text: its log-odds minus those without the word, [N]

    logits: of the whole text, [1, C];  without: of the text without its first word, second word, …, [N, C]
    """
    return log_odds(logits, label) - log_odds(without, label)


# --------------------------------------------------------------------------------------------- integrated gradients


def integrated_gradients(function: Function, x: Tensor, baseline: Tensor) -> Attribution:
    """Computes a of the module docstring. function: F, [n, T, E] -> [n];  x, baseline: [T, E]"""
    delta, rows = x - baseline, max(1, PASS_TOKENS // max(1, len(x)))

    def points(alpha: Tensor) -> Iterator[Tensor]:
        """Yields the embeddings on the path, [n, T, E], a few points per pass. alpha: [N]"""
        for part in alpha.to(x).split(rows):
            yield baseline + part[:, None, None] * delta

    def values(alpha: Tensor) -> Tensor:
        """Computes F: fp64 [N]"""
        with torch.no_grad():
            return torch.cat([function(point).cpu().double() for point in points(alpha)])

    def slopes(alpha: Tensor) -> Tensor:
        """Computes Σ_e (x - x') ∂F/∂x: fp64 [N, T]"""
        found = []
        for point in points(alpha):
            (g,) = torch.autograd.grad(function(point.requires_grad_()).sum(), point)
            found.append((g * delta).sum(-1).cpu().double())
        return torch.cat(found)

    first, last = values(torch.tensor([0.0, 1.0])).tolist()
    return Attribution(
        integrate(values, slopes, allowed=max(TOLERANCE * abs(last - first), SMALLEST_ERROR)), last - first
    )


def integrate(values: Function, slopes: Function, allowed: float) -> Tensor:
    """Integrates slopes over [0, 1] by halving intervals until their errors sum to at most `allowed`: fp64 [T]

    values: F, [N] -> [N];  slopes: the parts of its derivative, [N] -> [N, T]. Stops at MOST_INTERVALS.
    """

    def measure(start: Tensor, end: Tensor) -> tuple[Tensor, ...]:
        """Computes the integral over each interval, [N, T], and its error, [N]. Returns them after start and end."""
        half = (end - start)[:, None] / 2  # [N, 1]
        nodes = start[:, None] + half * (1 + NODES)  # [N, 4]
        parts = (half * WEIGHTS)[..., None] * slopes(nodes.flatten()).unflatten(0, nodes.shape)  # [N, 4, T]
        effects = parts.sum(1)  # [N, T]
        return start, end, effects, (effects.sum(1) - values(end) + values(start)).abs()

    edges = torch.linspace(0, 1, START_INTERVALS + 1, dtype=torch.float64)
    intervals = measure(edges[:-1], edges[1:])
    while True:
        start, end, effects, errors = intervals
        if not errors.sum() > allowed or len(errors) >= MOST_INTERVALS:  # NaN ends the loop too
            return effects.sum(0)
        split = errors > allowed / len(errors)
        middle = (start + end)[split] / 2
        halves = measure(torch.cat([start[split], middle]), torch.cat([middle, end[split]]))
        intervals = tuple(torch.cat([old[~split], new]) for old, new in zip(intervals, halves, strict=True))


@contextmanager
def differentiable(model: Model) -> Iterator[None]:
    """Puts a model into eval() mode and its 8-bit layers on the path fp32 for the block.

    The other paths round the activations, which makes F a step function: its gradient does not integrate to F.
    """
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    paths = [layer.path for layer in layers]
    try:
        for layer in layers:
            layer.path = "fp32"
        with evaluating(model):
            yield
    finally:
        for layer, path in zip(layers, paths, strict=True):
            layer.path = path


def logits_of_embeddings(model: Model, input_ids: Tensor, x: Tensor) -> Tensor:
    """Computes the logits of reviews whose word embeddings are x: [n, C]. input_ids: [T];  x: [n, T, E]"""
    ids = input_ids.expand(len(x), -1)  # [n, T]
    mask = torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(model, Encoder):
        return model.classifier(model.pool(model.encode(x, mask), mask))
    own = threading.get_ident()  # other threads' passes through the same model keep their embeddings
    replace = lambda *_: x if threading.get_ident() == own else None  # noqa: E731
    hook = model.embeddings.word.register_forward_hook(replace)  # virtual tokens join its output
    try:
        return model(ids, mask)
    finally:
        hook.remove()


def baseline_id(tokenizer: Tokenizer) -> int:
    """Returns the id of [MASK], or of <unk> if the tokenizer has no [MASK]."""
    mask = tokenizer.role_id("mask")
    return tokenizer.unk_id if mask is None else mask


def token_effects(model: Model, input_ids: Tensor, in_text: Tensor, label: int, blank: int) -> Attribution:
    """Computes integrated gradients of the tokens of one review, in fp32. They are 0 outside the text.

    input_ids: int64 [T];  in_text: bool [T], False for [CLS] and [SEP];  blank: id of the baseline's token
    """
    with torch.inference_mode(False), torch.enable_grad(), differentiable(model):
        table = model.embeddings.word if isinstance(model, Encoder) else model.rows
        rows = [table(ids).detach() for ids in (input_ids, input_ids.masked_fill(in_text, blank))]
        dtype = rows[0].dtype  # of the model

        def odds(x: Tensor) -> Tensor:
            return log_odds(logits_of_embeddings(model, input_ids, x.to(dtype)).float(), label)

        return integrated_gradients(odds, *(row.float() for row in rows))


def ngram_effects(model: NBLinear, input_ids: Tensor, label: int) -> tuple[list[range], Attribution]:
    """Computes integrated gradients of the n-grams of one review. input_ids: [T]

    Returns the token positions of each n-gram and its effect. For two classes the effect is what the n-gram adds to the
    label's logit minus what it adds to the other.
    """
    with torch.no_grad():
        spans, x = model.ngrams(input_ids)  # [M, C]
    return spans, integrated_gradients(
        lambda x: log_odds(model.classifier(x.sum(1)), label), x.float(), torch.zeros_like(x.float())
    )


def shared_by_tokens(spans: list[range], effects: Tensor, length: int) -> Tensor:
    """Divides the effect of each n-gram equally among its tokens: [T]. effects: [M];  length: T

    The integrated gradients of a product of n indicators are 1/n of it for each.
    """
    shared = torch.zeros(length, dtype=effects.dtype)
    for span, effect in zip(spans, effects, strict=True):
        shared[span.start : span.stop] += effect / len(span)
    return shared


# ----------------------------------------------------------------------------------------- weights of the model itself


@torch.no_grad()
def pooling_weights(model: Model, input_ids: Tensor, label: int) -> list[tuple[str, Tensor]]:
    """Returns the weights by which a model pools its tokens, each with a title: [T] each, none for most models.

    attention_lstm: α, which sums to 1.  capsule_lstm: c_tj, the part of token t that is routed to capsule j, for the
    capsules with the largest contributions to the label.
    """
    ids = input_ids[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    with differentiable(model):
        if isinstance(model, AttentionLSTM):
            return [("attention", model.attention_weights(ids, mask)[0].cpu())]
        if not isinstance(model, CapsuleLSTM):
            return []
        v, c = model.routing(ids, mask)  # [1, J, K], [1, T, J]
        scores = model.capsule_scores(v)[0, :, label]  # [J]
        strongest = scores.abs().argsort(descending=True)[:CAPSULES].tolist()
        return [(f"routing to capsule {j} ({scores[j]:+.2f})", c[0, :, j].cpu()) for j in strongest]
