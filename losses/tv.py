"""Two-view embeddings (Johnson & Zhang 2015b, arXiv 1504.01255, §2): pretraining of the CNN without labels.

A region of words is one view of a text; the words next to it are the other. The embedding u_t of a region
(nn/regions.py) is trained to predict those words, so that it represents what the region implies about its context.

    s(u, w) = O[w]·u + c[w]
    L = mean over pairs of  -log σ(s(u_t, w)),  w within 2r + 1 words before or after the region of t
      + k · mean over t and over n words w' of  -log σ(-s(u_t, w'))

r: a region has 2r + 1 words;  k -> --negative-weight;  n -> --negatives. The words w' are drawn anew for each batch,
log-uniformly by their rank: p(w') ∝ log(1 + 1/w') for ranks from 1, about the frequency of words (Zipf's law). Regions
of the same batch share them, so that their scores are one matrix product. The most frequent words carry little
information about a text and are not predicted.

O and c exist during training only. In the CNN (nn/cnn.py), u_t is frozen and is a further input of a window, in
addition to its words.

Differs from the paper: logistic loss (Mikolov et al. 2013, arXiv 1310.4546, Eq. (4)), where Johnson & Zhang weight a
square loss; the words that are not predicted are the most frequent ones, where they use a list of function words.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Embedding, Module, Parameter
from torch.nn.functional import logsigmoid

from data.batches import Batch
from data.flags import option
from data.tokenization import Tokenizer
from nn import Model
from nn.cnn import CNN


@dataclass(frozen=True)
class TVOptions:
    skipped_words: int = option(
        100, "objective", "tv: number of lowest ids (<pad>, <unk>, frequent words) that are not predicted", "N"
    )
    negatives: int = option(256, "objective", "tv: n, words drawn for each batch", "N")
    negative_weight: float = option(5.0, "objective", "tv: k, weight of the words drawn", "X")

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.negative_weight <= 0:
            raise ValueError("--negatives and --negative-weight must be above 0")
        if self.skipped_words < 0:
            raise ValueError(f"--skipped-words {self.skipped_words} is negative")


class TwoViews(Module):
    """Holds the parameters of s, which exist during training only. word.weight -> O [V, D];  bias -> c [V]

    Initially O is uniform in (-0.1, 0.1), and c is -log k, which is optimal if regions carry no information and w' has
    the distribution of w.
    """

    def __init__(self, vocab_size: int, width: int, negative_weight: float) -> None:
        super().__init__()
        self.word = Embedding(vocab_size, width)
        self.word.weight.data.uniform_(-0.1, 0.1)
        self.bias = Parameter(torch.full((vocab_size,), -math.log(negative_weight)))


def prepare(model: Model, options: TVOptions, tokenizer: Tokenizer | None) -> None:
    """Adds O and c to `model`, and freezes all but them and the region embeddings.

    Raises ValueError for a model without region embeddings, and if all words of the vocabulary are skipped.
    """
    if not isinstance(model, CNN) or model.regions is None:
        raise ValueError(
            "--loss tv pretrains the regions of a CNN; this model has none: --model cnn --weights none --shape "
            "region_width=200 makes one with them"
        )
    if options.skipped_words >= model.config.vocab_size:
        words = f"--skipped-words {options.skipped_words} leaves no word of {model.config.vocab_size}"
        raise ValueError(f"{words}; give a lower one")
    model.requires_grad_(False)
    model.regions.requires_grad_(True)
    model.pretraining = TwoViews(model.config.vocab_size, model.config.region_width, options.negative_weight)


def draw_words(
    count: int, first: int, vocab_size: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draws word ids from first … vocab_size - 1, log-uniformly. Returns int64 [count]."""
    low, high = math.log(first + 1), math.log(vocab_size + 1)
    uniform = torch.rand(count, generator=generator, device=device)
    return (uniform * (high - low) + low).exp().long().sub_(1).clamp_(first, vocab_size - 1)


def neighbours(ids: Tensor, mask: Tensor, radius: int, first: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields, for each distance, the positions of regions and of words next to them, and which pairs are in a text.

    ids, mask: [B, T];  first: the lowest id that is predicted -> slices of T, bool [B, ·]
    """
    predicted = mask & (ids >= first)
    for distance in range(radius + 1, 3 * radius + 2):
        early, late = slice(None, -distance), slice(distance, None)
        for here, there in ((early, late), (late, early)):
            yield here, there, mask[:, here] & predicted[:, there]


def neighbour_scores(model: CNN, u: Tensor, ids: Tensor, mask: Tensor, first: int) -> Tensor:
    """Computes s(u_t, w) of all pairs of `neighbours`. u: [B, T, D];  ids, mask: [B, T] -> [pairs]"""
    o, c = model.pretraining.word(ids), model.pretraining.bias[ids]  # [B, T, D], [B, T]
    return torch.cat(
        [
            ((u[:, here] * o[:, there]).sum(-1) + c[:, there])[real]
            for here, there, real in neighbours(ids, mask, model.regions.radius, first)
        ]
    )


def objective(model: CNN, batch: Batch, options: TVOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes L, with several ranks this rank's part. Returns (loss, {"acc", "negative_acc"}).

    acc: bool [pairs], whether s > 0 for a word next to a region;  negative_acc: bool [regions · n], whether s < 0 for a
    word that was drawn. With k > 1 and little to predict, most s are below 0.
    """
    ids, whole, first, n = batch.input_ids, batch.whole, options.skipped_words, options.negatives
    mask = batch.own(whole.mask)
    u = model.regions(model.regions.word(ids))  # [B, T, D]
    near = neighbour_scores(model, u, ids, mask, first)
    drawn = draw_words(n, first, model.config.vocab_size, ids.device, batch.generator())
    far = u[mask] @ model.pretraining.word(drawn).T + model.pretraining.bias[drawn]  # [regions, n]
    found = [real.sum() for *_, real in neighbours(whole.input_ids, whole.mask, model.regions.radius, first)]
    positive = -logsigmoid(near).sum() / torch.stack(found).sum().clamp(min=1)  # over the pairs of all ranks
    negative = -logsigmoid(-far).sum() / (n * whole.mask.sum())
    return positive + options.negative_weight * negative, {"acc": near > 0, "negative_acc": (far < 0).flatten()}
