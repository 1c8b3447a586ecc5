"""Adaptive softmax (Grave et al. 2017, arXiv 1609.04309, §4.2–4.3): a softmax over a large vocabulary, whose cost
follows the frequencies of the words.

Word ids are in order of decreasing frequency. The head has the n_0 most frequent words and one entry for each of the J
clusters of rarer words; cluster j has the words n_{j-1} … n_j - 1:

    p(w|h) = p_0(w|h)                       w < n_0,            p_0(·|h) = softmax(W_0 h)
    p(w|h) = p_0(n_0 + j - 1|h) p_j(w|h)    w in cluster j,     p_j(·|h) = softmax(W_j P_j h)

P_j maps D to D / 4^j numbers, since rare words have too few examples to train more parameters. Without clusters this is
the dense softmax.
W_0 -> head,  [P_j, W_j] -> tails[j - 1].

Differs from the paper: nothing. As in the paper's code and torch.nn.AdaptiveLogSoftmaxWithLoss, no layer has a bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Sequential

from nn.autocast import at_least_fp32

SHRINK = 4  # factor of the width from each cluster to the next


class AdaptiveSoftmax(Module):
    """Computes -log p(w|h).

    cutoffs: n_0, n_1, … in ascending order; those that are not below vocab_size are left out. Raises ValueError
    unless the cutoffs are positive and ascending.
    """

    def __init__(self, width: int, vocab_size: int, cutoffs: list[int]) -> None:
        super().__init__()
        if not cutoffs or cutoffs != sorted(set(cutoffs)) or cutoffs[0] < 1:
            raise ValueError(f"the cutoffs {cutoffs} are not positive numbers in ascending order")
        self.ends = [*(n for n in cutoffs if n < vocab_size), vocab_size]  # n_0 … n_J, and n_J = V
        sizes = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]
        self.head = Linear(width, self.ends[0] + len(sizes), bias=False)
        widths = [max(1, width // SHRINK**j) for j in range(1, len(sizes) + 1)]
        self.tails = ModuleList(
            Sequential(Linear(width, narrow, bias=False), Linear(narrow, size, bias=False))
            for narrow, size in zip(widths, sizes, strict=True)
        )

    def forward(self, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """h: [N, D];  targets: w, int64 [N] -> -log p(w|h), fp32 or wider [N], and whether w has the highest
        probability among the words of the head, bool [N]"""
        n_0 = self.ends[0]
        logits = at_least_fp32(self.head(h))  # [N, n_0 + J]
        cluster = torch.bucketize(targets, torch.tensor(self.ends, device=h.device), right=True)  # [N], 0: the head
        loss = F.cross_entropy(logits, torch.where(cluster == 0, targets, n_0 + cluster - 1), reduction="none")  # [N]
        for j, tail in enumerate(self.tails, 1):
            rows = (cluster == j).nonzero().squeeze(1)
            within = F.cross_entropy(at_least_fp32(tail(h[rows])), targets[rows] - self.ends[j - 1], reduction="none")
            loss = loss.index_add(0, rows, within)
        return loss, logits.detach()[:, :n_0].argmax(-1) == targets

    def log_probabilities(self, h: Tensor) -> Tensor:
        """Computes log p(w|h) of all words, the dense form. h: [N, D] -> [N, V]"""
        n_0 = self.ends[0]
        head = at_least_fp32(self.head(h)).log_softmax(-1)  # [N, n_0 + J]
        tails = [head[:, n_0 + j, None] + at_least_fp32(tail(h)).log_softmax(-1) for j, tail in enumerate(self.tails)]
        return torch.cat([head[:, :n_0], *tails], -1)
