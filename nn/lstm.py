"""Long short-term memory (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000), stacked and bidirectional.

    i = σ(W_i x + U_i h₋ + b_i)      f = σ(W_f x + U_f h₋ + b_f)
    g = tanh(W_g x + U_g h₋ + b_g)   o = σ(W_o x + U_o h₋ + b_o)
    c = f ⊙ c₋ + i ⊙ g               h = o ⊙ tanh(c)

h₋ and c₋ are the step before, 0 at the start. W x + b of all steps is one product before the loop. Both directions run
in one loop, the second over the review turned round. No padded step touches a real one: at padding the second
direction, which meets padding first, has its input gate shut, so that it is in its zero state when the review begins.

Since tanh(x) = 2σ(2x) - 1, one σ serves all four gates: the rows of g in W, U and b are doubled on the way in,
s = σ(2x) stands for g among the gates y = [i, f, s, o], and g = 2s - 1.

Backward through time, from the gradients δh of every output, with the step after written ₊ (δa is of the sums, so with
the rows of g doubled):

    δh ← δh + U^T δa₊        δc = δh ⊙ o ⊙ (1 - tanh²c) + δc₊ ⊙ f₊
    δa = [δc ⊙ g,  δc ⊙ c₋,  δc ⊙ 2i,  δh ⊙ tanh c] ⊙ y ⊙ (1 - y),   δU = Σ δa h₋^T

Differs from the papers: no peepholes (torch.nn.LSTM has none either).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter
from torch.nn.functional import pad

from nn.dropout import Dropout
from nn.words import Pooling, WordEmbedding

SHUT = -1e4  # σ(SHUT) = 0
MINUS_ONE = torch.tensor(-1.0)
sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # (δy, y) -> δy ⊙ y ⊙ (1 - y)
tanh_backward = torch.ops.aten.tanh_backward.grad_input  # (δy, y) -> δy ⊙ (1 - y²)


def both_ways(x: Tensor, directions: int) -> Tensor:
    """What each direction reads, step by step. [T, ...] -> [N, T, ...]; the second has the last step first."""
    return torch.stack([x, x.flip(0)][:directions])


def join_ways(h: Tensor, padding: Tensor) -> Tensor:
    """States of each direction, in the order that it reads, [N, T, B, D] -> side by side, [B, T, N·D], 0 where padding,
    bool [T, B], is."""
    first, *second = h.unbind(0)
    h = torch.cat([first, *(x.flip(0) for x in second)], -1)  # [T, B, N·D]
    return h.masked_fill_(padding[..., None], 0).transpose(0, 1)


def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b of all steps in one product. x: [T, B, in];  weight: [N, G, in];  bias: [N, G] -> [N, T·B, G], fp32 also
    under autocast: the state of a long review needs its bits.

    Rows become a multiple of 8 numbers long: of 300, which are not, a CPU's products take up to half as long again.
    """
    spare = (0, -x.size(-1) % 8)
    x = both_ways(pad(x, spare), len(weight)).flatten(1, 2)  # [N, T·B, in]
    return torch.baddbmm(bias[:, None], x, pad(weight, spare).transpose(1, 2)).to(weight.dtype)


def steps(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the tensors at each step, all made before the loop. [N, T, ...] each -> [N, ...] each."""
    return zip(*(x.unbind(1) for x in tensors), strict=True)


def plain_scan(a: Tensor, u: Tensor, padding: Tensor) -> Tensor:
    """The equations step by step, differentiated by autograd. a: W x + b, [N, T·B, 4D], N directions;  u: [N, 4D, D],
    gates in the order i, f, g, o, the rows of g doubled in both;  padding: bool [N, T, B], as each direction reads -> h
    of every step, [N, T, B, D]."""
    h = c = a.new_zeros(*padding.shape[::2], u.size(-1))
    out = []
    for a_t, padded in steps(a.unflatten(1, padding.shape[1:]), padding[..., None]):
        i, f, g, o = (a_t + h @ u.transpose(1, 2)).chunk(4, -1)  # [N, B, D] each
        c = f.sigmoid() * c + i.sigmoid().masked_fill(padded, 0) * (g / 2).tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


class Scan(torch.autograd.Function):
    """`plain_scan` with the backward pass above, in place and step by step while the numbers are in the cache; all of
    δU in one product. `a` is overwritten, with the gates y, which are returned beside h (as autograd wants it)."""

    @staticmethod
    def forward(ctx, a: Tensor, u: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        (directions, length, batch), width = padding.shape, u.size(-1)
        y = a.view(directions, length, batch, 4 * width)
        y[1:, ..., :width].masked_fill_(padding[1:, ..., None], SHUT)
        factors = a.new_empty(directions, length + 1, batch, 4, width)  # of δc and δh, in the order of the gates
        g, c, twice_i, tanh_c = factors.unbind(3)  # [N, T + 1, B, D] each; c at its next step
        h = a.new_empty(directions, length + 1, batch, width)  # at its next step
        h[:, 0] = c[:, 0] = 0
        u_t, sums = u.transpose(1, 2).contiguous(), a.new_empty(directions, batch, 4 * width)
        now = (y, *y.chunk(4, -1), *(x[:, :-1] for x in (h, c, g, twice_i, tanh_c)), c[:, 1:], h[:, 1:])
        for y_t, i, f, s, o, h_before, c_before, g_t, twice_i_t, tanh_c_t, c_t, h_t in steps(*now):
            torch.sigmoid(torch.baddbmm(y_t, h_before, u_t, out=sums), out=y_t)  # [N, B, 4D]
            torch.add(MINUS_ONE, s, alpha=2, out=g_t)
            torch.add(i, i, out=twice_i_t)
            torch.mul(i, g_t, out=c_t).addcmul_(f, c_before)
            torch.add(c_t, c_t, out=tanh_c_t).sigmoid_()
            torch.add(MINUS_ONE, tanh_c_t, alpha=2, out=tanh_c_t)
            torch.mul(o, tanh_c_t, out=h_t)
        ctx.mark_dirty(a)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, factors, h, u)
        return h[:, 1:], a

    @staticmethod
    def backward(ctx, dh: Tensor, _) -> tuple[Tensor, Tensor, None]:
        a, factors, h, u = ctx.saved_tensors
        directions, length, batch, width = dh.shape
        da, dh_now = torch.empty_like(a), torch.empty_like(h[:, 0])
        dc, da_after = torch.zeros_like(dh_now), None
        y, da_all = (x.view(directions, length, batch, 4, width) for x in (a, da))
        factors, tanh_c = factors[:, :-1, :, :3], factors[:, :-1, :, 3]
        now = (dh, y, y[..., 1, :], y[..., 3, :], factors, tanh_c, da_all, da_all[..., :3, :], da_all[..., 3, :])
        for dh_t, y_t, f, o, factors_t, tanh_c_t, da_t, da_i_f_s, da_o in reversed([*steps(*now)]):
            if da_after is None:
                dh_now.copy_(dh_t)
            else:
                torch.baddbmm(dh_t, da_after.flatten(2), u, out=dh_now)  # [N, B, D]
            torch.mul(dh_now, tanh_c_t, out=da_o)
            dc += tanh_backward(dh_now.mul_(o), tanh_c_t, grad_input=dh_now)
            torch.mul(dc[:, :, None], factors_t, out=da_i_f_s)  # [N, B, 3, D]
            dc *= f
            da_after = sigmoid_backward(da_t, y_t, grad_input=da_t)
        return da, torch.bmm(da.transpose(1, 2), h[:, :-1].flatten(1, 2)), None  # Σ over T·B


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
        twice_g = self.bias.new_tensor([1, 1, 2, 1]).repeat_interleave(self.recurrent.size(-1))  # [4D]
        a = project(x, self.weight * twice_g[:, None], self.bias * twice_g)  # [N, T·B, 4D]
        with torch.autocast(x.device.type, enabled=False):
            h, _ = Scan.apply(a, self.recurrent * twice_g[:, None], both_ways(padding, len(a)))  # [N, T, B, D]
        return join_ways(h, padding)  # [B, T, N·D]


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
