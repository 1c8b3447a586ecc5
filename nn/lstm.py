"""Long short-term memory (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000), stacked and bidirectional.

    i = σ(W_i x + U_i h₋ + b_i)      f = σ(W_f x + U_f h₋ + b_f)
    g = tanh(W_g x + U_g h₋ + b_g)   o = σ(W_o x + U_o h₋ + b_o)
    c = f ⊙ c₋ + i ⊙ g               h = o ⊙ tanh(c)

h₋ and c₋ are the step before, 0 at the start. W x + b of all steps is one product before the loop. Both directions run
in one loop, the second from the last step to the first. No padded step touches a real one.

Backward through time, from the gradients δh of every output, with the step after written ₊:

    δh ← δh + U^T δa₊        δc = δh ⊙ o ⊙ (1 - tanh²c) + δc₊ ⊙ f₊
    δa = [δc ⊙ g ⊙ i(1-i),  δc ⊙ c₋ ⊙ f(1-f),  δc ⊙ i ⊙ (1-g²),  δh ⊙ tanh(c) ⊙ o(1-o)],   δU = Σ δa h₋^T

Differs from the papers: no peepholes (torch.nn.LSTM has none either).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

from nn.dropout import Dropout
from nn.words import Pooling, WordEmbedding

SHUT = -1e4  # σ(SHUT) = 0
sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # (δy, y) -> δy ⊙ y ⊙ (1 - y)
tanh_backward = torch.ops.aten.tanh_backward.grad_input  # (δy, y) -> δy ⊙ (1 - y²)


def both_ways(x: Tensor, directions: int) -> Tensor:
    """What each direction reads, step by step. x: [B, T, D] -> [N, T, B, D]; the second has the last step first."""
    x = x.transpose(0, 1)  # [T, B, D]
    return torch.stack([x, x.flip(0)][:directions])


def join_ways(h: Tensor) -> Tensor:
    """The inverse: [N, T, B, D] -> [B, T, N·D]"""
    return torch.cat([h[0], h[1].flip(0)] if len(h) == 2 else [h[0]], -1).transpose(0, 1)


def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b of all steps in one product. x: [N, T, B, in];  weight: [N, G, in];  bias: [N, G] -> [N, T, B, G], fp32
    also under autocast: the state of a long review needs its bits."""
    a = torch.baddbmm(bias[:, None], x.flatten(1, 2), weight.transpose(1, 2))  # [N, T·B, G]
    return a.unflatten(1, x.shape[1:3]).to(weight.dtype)


def plain_scan(a: Tensor, u: Tensor) -> Tensor:
    """The equations step by step, differentiated by autograd. a: W x + b, [N, T, B, 4D], N directions;  u: [N, 4D, D];
    gates in the order i, f, g, o -> h of every step, [N, T, B, D]."""
    h = c = a.new_zeros(len(a), a.size(2), u.size(-1))
    out = []
    for a_t in a.unbind(1):
        i, f, g, o = (a_t + h @ u.transpose(1, 2)).chunk(4, -1)  # [N, B, D] each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


def steps(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the tensors at each step, all made before the loop. [N, T, ...] each."""
    return zip(*(x.unbind(1) for x in tensors), strict=True)


def tanh_(x: Tensor) -> Tensor:
    """tanh in place, as 2σ(2x) - 1, which is off by 1e-7 at most in fp32: on a CPU torch's σ takes a fifth of the time
    of its tanh."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


class Scan(torch.autograd.Function):
    """`plain_scan` with the backward pass above, in place and step by step while the numbers are in the cache; all of
    δU in one product."""

    @staticmethod
    def forward(ctx, a: Tensor, u: Tensor) -> Tensor:
        directions, length, batch, width = *a.shape[:3], u.size(-1)
        gates = torch.empty_like(a)  # i, f, g, o behind their nonlinearities
        h, c = (a.new_zeros(directions, length + 1, batch, width) for _ in range(2))  # place 0: the start
        tanh_c = torch.empty_like(h[:, 1:])
        u_t = u.transpose(1, 2)  # [N, D, 4D]
        now = (a, gates, gates[..., : 2 * width], *gates.chunk(4, -1), c[:, :-1], c[:, 1:], tanh_c, h[:, :-1], h[:, 1:])
        for a_t, gates_t, i_and_f, i, f, g, o, c_before, c_t, tanh_c_t, h_before, h_t in steps(*now):
            torch.baddbmm(a_t, h_before, u_t, out=gates_t)  # [N, B, 4D]
            i_and_f.sigmoid_()
            tanh_(g)
            o.sigmoid_()
            torch.mul(i, g, out=c_t).addcmul_(f, c_before)
            tanh_(tanh_c_t.copy_(c_t))
            torch.mul(o, tanh_c_t, out=h_t)
        ctx.save_for_backward(gates, h, c, tanh_c, u)
        return h[:, 1:]

    @staticmethod
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor]:
        gates, h, c, tanh_c, u = ctx.saved_tensors
        da = torch.empty_like(gates)
        dc, da_after, part = torch.zeros_like(c[:, 0]), None, torch.empty_like(c[:, 0])
        now = (dh, *gates.chunk(4, -1), c[:, :-1], tanh_c, da, *da.chunk(4, -1))
        for dh_t, i, f, g, o, c_before, tanh_c_t, da_t, da_i, da_f, da_g, da_o in reversed([*steps(*now)]):
            if da_after is not None:
                dh_t = torch.baddbmm(dh_t, da_after, u)  # [N, B, D]
            tanh_backward(torch.mul(dh_t, o, out=part), tanh_c_t, grad_input=part)
            dc += part
            sigmoid_backward(torch.mul(dc, g, out=part), i, grad_input=da_i)
            sigmoid_backward(torch.mul(dc, c_before, out=part), f, grad_input=da_f)
            tanh_backward(torch.mul(dc, i, out=part), g, grad_input=da_g)
            sigmoid_backward(torch.mul(dh_t, tanh_c_t, out=part), o, grad_input=da_o)
            dc *= f
            da_after = da_t
        return da, torch.bmm(da.flatten(1, 2).transpose(1, 2), h[:, :-1].flatten(1, 2))  # Σ over T·B


class LSTMLayer(Module):
    """One layer, one or two directions. W -> weight [N, 4D, in], U -> recurrent [N, 4D, D], b -> bias [N, 4D]; rows in
    the order i, f, g, o. U starts orthogonal (Saxe et al. 2014), b_f at 1 (Jozefowicz et al. 2015), W by Glorot &
    Bengio 2010.
    """

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool = True) -> None:
        super().__init__()
        directions = 1 + bidirectional
        self.weight = Parameter(torch.empty(directions, 4 * hidden_size, input_size))
        self.recurrent = Parameter(torch.empty(directions, 4 * hidden_size, hidden_size))
        self.bias = Parameter(torch.zeros(directions, 4 * hidden_size))
        for n in range(directions):
            for gate in range(4):
                rows = slice(gate * hidden_size, (gate + 1) * hidden_size)
                torch.nn.init.xavier_uniform_(self.weight.data[n, rows])
                torch.nn.init.orthogonal_(self.recurrent.data[n, rows])
        self.bias.data[:, hidden_size : 2 * hidden_size] = 1.0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, in];  mask: bool [B, T], padding on the right -> [B, T, N·D], 0 at padding.

        At padding the input gate is shut, so that the backward direction, which meets padding first, is still in its
        zero state when the review begins: c = f ⊙ 0 + 0 ⊙ g.
        """
        directions, _, width = self.recurrent.shape[0], *self.recurrent.shape[1:]
        a = project(both_ways(x, directions), self.weight, self.bias)  # [N, T, B, 4D]
        padding = ~both_ways(mask[..., None], directions)  # [N, T, B, 1]
        a[..., :width].masked_fill_(padding, SHUT)
        with torch.autocast(x.device.type, enabled=False):
            h = Scan.apply(a, self.recurrent)  # [N, T, B, D]
        return join_ways(h.masked_fill(padding, 0))  # [B, T, N·D]


class LSTM(Module):
    """Layers on top of each other, dropout between them."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [input_size] + [hidden_size * (1 + bidirectional)] * (num_layers - 1)
        self.layers = ModuleList(LSTMLayer(width, hidden_size, bidirectional) for width in widths)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, in];  mask: bool [B, T] -> [B, T, N·D], 0 at padding."""
        for number, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if number else x, mask)
        return x


@dataclass(frozen=True)
class LSTMConfig:
    vocab_size: int = 30000
    embedding_size: int = 300
    embedding_range: float = 1.0
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = True
    pooling: str = "max+mean"  # last, mean, max, attention, or several: max+mean
    word_dropout: float = 0.3
    embedding_dropout: float = 0.5
    dropout: float = 0.5
    pad_token_id: int = 0
    unk_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class LSTMClassifier(Module):
    """[B, T] word ids -> [B, C] logits: embedding, LSTM, pooling over time."""

    model_type, architecture = "lstm", "LSTMClassifier"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = LSTMConfig, {}, (), {}, {}
    HEAD = ("classifier",)

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        c = self.config = config
        special = (c.pad_token_id, c.unk_token_id)
        dropouts = (c.word_dropout, c.embedding_dropout)
        self.embeddings = WordEmbedding(c.vocab_size, c.embedding_size, c.embedding_range, *special, *dropouts)
        self.lstm = LSTM(c.embedding_size, c.hidden_size, c.num_layers, c.bidirectional, c.dropout)
        self.pooling = Pooling(c.pooling, c.hidden_size * (1 + c.bidirectional), c.bidirectional)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, E]"""
        return self.embeddings(input_ids, mask)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, E] -> [B, T, N·D]"""
        return self.lstm(x, mask)

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T, N·D] -> [B, n·N·D], n poolings side by side."""
        return self.dropout(self.pooling(h, mask))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the classifier sees."""
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
