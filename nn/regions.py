"""Region embeddings: vectors of a few words in any order (Johnson & Zhang 2015b, arXiv 1504.01255, §2).

    u_t = ReLU(Σ_{|j| ≤ r} E[w_{t+j}] + b)

The region of word t has 2r + 1 words, without those beyond the ends of the text. u_t is learned without labels, from
the words around the region (losses/tv.py).
"""

import torch
from torch import Tensor
from torch.nn import Embedding, Module, Parameter
from torch.nn.functional import pad


class RegionEmbedding(Module):
    """Embeds each word together with its neighbours: [B, T] -> [B, T, D].

    radius -> r;  word.weight -> E [V, D];  bias -> b [D]. Initially E is uniform in (-0.02, 0.02), and b is 0.
    """

    def __init__(self, vocab_size: int, width: int, radius: int, pad_id: int) -> None:
        super().__init__()
        self.radius = radius
        self.word = Embedding(vocab_size, width, padding_idx=pad_id)
        self.word.weight.data.uniform_(-0.02, 0.02)[pad_id] = 0
        self.bias = Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns u. x: [B, T, D], the rows of E, 0 at padding -> [B, T, D]"""
        length = x.size(1)
        x = pad(x, (0, 0, self.radius, self.radius))
        return sum((x[:, j : j + length] for j in range(2 * self.radius + 1)), self.bias).relu()
