"""Long short-term memory (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000), stacked and bidirectional.

    i = σ(W_i x + U_i h₋ + b_i)      f = σ(W_f x + U_f h₋ + b_f)
    g = tanh(W_g x + U_g h₋ + b_g)   o = σ(W_o x + U_o h₋ + b_o)
    c = f ⊙ c₋ + i ⊙ g               h = o ⊙ tanh(c)

h₋ and c₋ are the step before, 0 at the start. W x of all steps and both directions is one product before the loops; the
second direction runs from the last step to the first. No padded step touches a real one: at padding the input gate is
shut, so that the second direction, which meets padding first, is still in its zero state when the review begins.

Backward through time, from the gradients δh of every output, with the step after written ₊:

    δh ← δh + U^T δa₊        δc = δh ⊙ o ⊙ (1 - tanh²c) + δc₊ ⊙ f₊
    δa = [δc ⊙ g ⊙ i(1-i),  δc ⊙ c₋ ⊙ f(1-f),  δc ⊙ i ⊙ (1-g²),  δh ⊙ tanh(c) ⊙ o(1-o)],   δU = Σ δa h₋^T

Differs from the papers: no peepholes (torch.nn.LSTM has none either).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

from nn.dropout import Dropout
from nn.words import Pooling, WordEmbedding

SHUT = -1e4  # σ(SHUT) = 0
MINUS_ONE = torch.tensor(-1.0)
sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # (δy, y) -> δy ⊙ y ⊙ (1 - y)
tanh_backward = torch.ops.aten.tanh_backward.grad_input  # (δy, y) -> δy ⊙ (1 - y²)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """W x of all steps and directions in one product. x: [T, B, in];  weight: [N, G, in] -> [T·B, N·G], fp32 also under
    autocast: the state of a long review needs its bits."""
    return torch.mm(x.flatten(0, 1), weight.flatten(0, 1).T).to(weight.dtype)


def plain_scan(a: Tensor, u: Tensor, b: Tensor, padding: Tensor) -> Tensor:
    """The equations step by step, differentiated by autograd. a: W x, [T·B, N·4D], N directions;  u: [N, 4D, D];  b:
    [N, 4D], gates in the order i, f, g, o;  padding: bool [T, B] -> h of every step, [T, B, N, D], 0 at padding."""
    sides = []
    for n, a_n in enumerate(a.view(*padding.shape, *u.shape[:2]).unbind(2)):
        h = c = a.new_zeros(padding.size(1), u.size(-1))
        out = []
        for a_t, padded in in_order(n, a_n, padding[..., None]):
            i, f, g, o = (a_t + h @ u[n].T + b[n]).chunk(4, -1)  # [B, D] each
            c = f.sigmoid() * c + i.sigmoid().masked_fill(padded, 0) * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h.masked_fill(padded, 0))
        sides.append(torch.stack(out[::-1] if n else out))
    return torch.stack(sides, 2)


def in_order(direction: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of the tensors, [T, ...] each, at each step, as a direction reads: the second has the last step first."""
    views = list(zip(*(x.unbind(0) for x in tensors), strict=True))
    return views[::-1] if direction else views


def room_for_states(gates: Tensor, width: int) -> Tensor:
    """[T + 2, B, N, D] for gates [T, B, N, G], 0 at both ends: before the first step and behind the last."""
    states = gates.new_empty(len(gates) + 2, *gates.shape[1:3], width)
    states[0], states[-1] = 0, 0
    return states


def before(states: Tensor, direction: int) -> Tensor:
    """The state before each step, as a direction reads. states: [T + 2, B, N, D], 0 at both ends -> [T, B, D]"""
    return states[2:, :, 1] if direction else states[:-2, :, 0]


def times_before(da: Tensor, h: Tensor) -> Tensor:
    """δU = Σ δa h₋^T over steps and reviews, one product a direction. da: [T, B, N, G];  h: [T + 2, B, N, D], 0 at both
    ends -> [N, G, D]"""
    ways = range(h.size(2))
    return torch.stack([da[:, :, n].flatten(0, 1).T @ before(h, n).flatten(0, 1) for n in ways])


def tanh_(x: Tensor) -> Tensor:
    """tanh in place, as 2σ(2x) - 1, which is off by 1e-7 at most in fp32: on some CPUs torch's σ takes a fifth of the
    time of its tanh, on none we had twice of it."""
    return torch.add(MINUS_ONE, x.mul_(2).sigmoid_(), alpha=2, out=x)


class Scan(torch.autograd.Function):
    """`plain_scan` with the backward pass above, in place and step by step while the numbers are in the cache; all of
    δU in one product. `a` is overwritten, with the gates, which are returned beside h (as autograd wants it)."""

    @staticmethod
    def forward(ctx, a: Tensor, u: Tensor, b: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        width = u.size(-1)
        gates = a.view(*padding.shape, *u.shape[:2])  # [T, B, N, 4D]
        gates[..., :width].masked_fill_(padding[..., None, None], SHUT)
        tanh_c = a.new_empty(*gates.shape[:3], width)
        h, c = (room_for_states(gates, width) for _ in range(2))
        for n, u_t in enumerate(u.transpose(1, 2).contiguous()):  # [D, 4D]
            now = (gates, gates[..., : 2 * width], *gates.chunk(4, -1), tanh_c, c[1:-1], h[1:-1])
            all_steps = in_order(n, before(c, n), before(h, n), *(x[:, :, n] for x in now))
            for c_before, h_before, a_t, i_and_f, i, f, g, o, tanh_c_t, c_t, h_t in all_steps:
                a_t.addmm_(h_before, u_t).add_(b[n])  # [B, 4D]
                i_and_f.sigmoid_()
                tanh_(g)
                o.sigmoid_()
                torch.mul(i, g, out=c_t).addcmul_(f, c_before)
                tanh_(tanh_c_t.copy_(c_t))
                torch.mul(o, tanh_c_t, out=h_t)
        h[1:-1].masked_fill_(padding[..., None, None], 0)
        ctx.mark_dirty(a)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, h, c, tanh_c, u, padding)
        return h[1:-1], a

    @staticmethod
    def backward(ctx, dh: Tensor, _) -> tuple[Tensor, Tensor, Tensor, None]:
        a, h, c, tanh_c, u, padding = ctx.saved_tensors
        gates = a.view(*tanh_c.shape[:3], -1)
        dh = dh.masked_fill(padding[..., None, None], 0)
        da = torch.empty_like(gates)
        for n, u_n in enumerate(u):
            dc, part, da_after = torch.zeros_like(c[0, :, n]), torch.empty_like(c[0, :, n]), None
            now = (x[:, :, n] for x in (dh, *gates.chunk(4, -1), tanh_c, da, *da.chunk(4, -1)))
            all_steps = in_order(1 - n, before(c, n), *now)
            for c_before, dh_t, i, f, g, o, tanh_c_t, da_t, da_i, da_f, da_g, da_o in all_steps:
                if da_after is not None:
                    dh_t.addmm_(da_after, u_n)  # [B, D]
                tanh_backward(torch.mul(dh_t, o, out=part), tanh_c_t, grad_input=part)
                dc += part
                sigmoid_backward(torch.mul(dc, g, out=part), i, grad_input=da_i)
                sigmoid_backward(torch.mul(dc, c_before, out=part), f, grad_input=da_f)
                tanh_backward(torch.mul(dc, i, out=part), g, grad_input=da_g)
                sigmoid_backward(torch.mul(dh_t, tanh_c_t, out=part), o, grad_input=da_o)
                dc *= f
                da_after = da_t
        return da.view_as(a), times_before(da, h), da.sum((0, 1)), None


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
        """x: [B, T, in];  mask: bool [B, T], padding on the right -> [B, T, N·D], 0 at padding."""
        x, padding = x.transpose(0, 1), ~mask.T  # [T, B, in], [T, B]
        a = project(x, self.weight)  # [T·B, N·4D]
        with torch.autocast(x.device.type, enabled=False):
            h, _ = Scan.apply(a, self.recurrent, self.bias, padding)  # [T, B, N, D]
        return h.flatten(2).transpose(0, 1)  # [B, T, N·D]


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
