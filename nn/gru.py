"""Gated recurrent units (Cho et al. 2014, arXiv 1406.1078, Eq. 5–8), stacked and bidirectional.

    r = σ(W_r x + U_r h₋ + b_r)      z = σ(W_z x + U_z h₋ + b_z)
    n = tanh(W_n x + b_n + r ⊙ (U_n h₋ + d_n))
    h = (1 - z) ⊙ n + z ⊙ h₋

h₋ is the step before, 0 at the start. W x + b of all steps is one product before the loop, and both directions run in
one loop, as in nn/lstm.py. At padding z is 1 for the second direction, which meets padding first and so keeps its zero
state until the review begins.

Backward through time, from the gradients δh of every output, with the step after written ₊ and m = U_n h₋ + d_n:

    δh ← δh + δh₊ ⊙ z₊ + U^T δs₊      δn = δh ⊙ (1-z) ⊙ (1-n²)
    δa = [δn ⊙ m ⊙ r(1-r),  δh ⊙ (h₋ - n) ⊙ z(1-z),  δn]
    δs = [δa_r, δa_z, δn ⊙ r]        δU = Σ δs h₋^T        δd_n = Σ δn ⊙ r

Differs from the paper: r acts behind U_n, not before it, and z keeps the old state where the paper has it take the new
one, as torch.nn.GRU and cuDNN have it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

from nn.dropout import Dropout
from nn.lstm import MINUS_ONE, SHUT, both_ways, join_ways, project, sigmoid_backward, steps, tanh_backward
from nn.words import Pooling, WordEmbedding


def plain_scan(a: Tensor, u: Tensor, d: Tensor, padding: Tensor) -> Tensor:
    """The equations step by step, differentiated by autograd. a: W x + b, [N, T·B, 3D], N directions;  u: [N, 3D, D];
    gates in the order r, z, n;  d: d_n, [N, D];  padding: bool [N, T, B], as each direction reads -> h of every step,
    [N, T, B, D]."""
    h = a.new_zeros(*padding.shape[::2], u.size(-1))
    out = []
    for a_t, padded in steps(a.unflatten(1, padding.shape[1:]), padding[..., None]):
        a_r, a_z, a_n = a_t.chunk(3, -1)  # [N, B, D] each
        s_r, s_z, s_n = (h @ u.transpose(1, 2)).chunk(3, -1)
        r, z = (a_r + s_r).sigmoid(), (a_z + s_z).sigmoid().masked_fill(padded, 1)
        n = (a_n + r * (s_n + d[:, None])).tanh()
        h = (1 - z) * n + z * h
        out.append(h)
    return torch.stack(out, 1)


class Scan(torch.autograd.Function):
    """`plain_scan` with the backward pass above, in place and step by step while the numbers are in the cache; all of
    δU in one product. `a` is overwritten, with the gates, which are returned beside h (as autograd wants it)."""

    @staticmethod
    def forward(ctx, a: Tensor, u: Tensor, d: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        (directions, length, batch), width = padding.shape, u.size(-1)
        gates = a.view(directions, length, batch, 3 * width)  # W x + b, then r, z, n
        gates[1:, ..., width : 2 * width].masked_fill_(padding[1:, ..., None], -SHUT)
        m = a.new_empty(directions, length, batch, width)  # U_n h₋ + d_n
        h = a.new_empty(directions, length + 1, batch, width)  # at its next step
        h[:, 0] = 0
        u_t, s = u.transpose(1, 2).contiguous(), a.new_empty(directions, batch, 3 * width)
        s_r_z, s_n, d = s[..., : 2 * width], s[..., 2 * width :], d[:, None]
        now = (gates[..., : 2 * width], *gates.chunk(3, -1), m, h[:, :-1], h[:, 1:])
        for r_z, r, z, n, m_t, h_before, h_t in steps(*now):
            torch.bmm(h_before, u_t, out=s)  # [N, B, 3D]
            r_z.add_(s_r_z).sigmoid_()
            n.addcmul_(r, torch.add(s_n, d, out=m_t))
            torch.add(n, n, out=n).sigmoid_()  # tanh(x) = 2σ(2x) - 1
            torch.add(MINUS_ONE, n, alpha=2, out=n)
            torch.lerp(n, h_before, z, out=h_t)
        ctx.mark_dirty(a)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, m, h, u)
        return h[:, 1:], a

    @staticmethod
    def backward(ctx, dh: Tensor, _) -> tuple[Tensor, Tensor, Tensor, None]:
        a, m, h, u = ctx.saved_tensors
        width, shape = u.size(-1), (*m.shape[:3], 3 * m.size(-1))
        da, ds = torch.empty_like(a), torch.empty_like(a)
        dh_now, part = torch.empty_like(h[:, 0]), torch.empty_like(h[:, 0])
        through, ds_after = None, None
        gates, da_all, ds_all = (x.view(shape) for x in (a, da, ds))
        now = (dh, gates[..., : 2 * width], *gates.chunk(3, -1), m, h[:, :-1], da_all[..., : 2 * width])
        now += (*da_all.chunk(3, -1), ds_all, ds_all[..., : 2 * width], ds_all[..., 2 * width :])
        for dh_t, r_z, r, z, n, m_t, h_before, da_r_z, da_r, da_z, da_n, ds_t, ds_r_z, ds_n in reversed([*steps(*now)]):
            if ds_after is None:
                dh_now.copy_(dh_t)
            else:
                torch.baddbmm(dh_t, ds_after, u, out=dh_now).add_(through)  # [N, B, D]
            through = dh_now * z
            tanh_backward(torch.sub(dh_now, through, out=part), n, grad_input=da_n)
            torch.mul(da_n, m_t, out=da_r)
            torch.mul(torch.sub(h_before, n, out=part), dh_now, out=da_z)
            sigmoid_backward(da_r_z, r_z, grad_input=da_r_z)
            ds_r_z.copy_(da_r_z)
            torch.mul(da_n, r, out=ds_n)
            ds_after = ds_t
        du = torch.bmm(ds.transpose(1, 2), h[:, :-1].flatten(1, 2))  # Σ over T·B
        return da, du, ds[..., 2 * width :].sum(1), None


class GRULayer(Module):
    """One layer, one or two directions. W -> weight [N, 3D, in], U -> recurrent [N, 3D, D], b -> bias [N, 3D], d_n ->
    recurrent_bias [N, D]; rows in the order r, z, n. U starts orthogonal (Saxe et al. 2014), W by Glorot & Bengio 2010.
    """

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool = True) -> None:
        super().__init__()
        directions = 1 + bidirectional
        self.weight = Parameter(torch.empty(directions, 3 * hidden_size, input_size))
        self.recurrent = Parameter(torch.empty(directions, 3 * hidden_size, hidden_size))
        self.bias = Parameter(torch.zeros(directions, 3 * hidden_size))
        self.recurrent_bias = Parameter(torch.zeros(directions, hidden_size))
        for n in range(directions):
            for gate in range(3):
                rows = slice(gate * hidden_size, (gate + 1) * hidden_size)
                torch.nn.init.xavier_uniform_(self.weight.data[n, rows])
                torch.nn.init.orthogonal_(self.recurrent.data[n, rows])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, in];  mask: bool [B, T], padding on the right -> [B, T, N·D], 0 at padding."""
        x, padding = x.transpose(0, 1), ~mask.T  # [T, B, in], [T, B]
        a = project(x, self.weight, self.bias)  # [N, T·B, 3D]
        with torch.autocast(x.device.type, enabled=False):
            h, _ = Scan.apply(a, self.recurrent, self.recurrent_bias, both_ways(padding, len(a)))  # [N, T, B, D]
        return join_ways(h, padding)  # [B, T, N·D]


class GRU(Module):
    """Layers on top of each other, dropout between them."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [input_size] + [hidden_size * (1 + bidirectional)] * (num_layers - 1)
        self.layers = ModuleList(GRULayer(width, hidden_size, bidirectional) for width in widths)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, in];  mask: bool [B, T] -> [B, T, N·D], 0 at padding."""
        for number, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if number else x, mask)
        return x


@dataclass(frozen=True)
class GRUConfig:
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


class GRUClassifier(Module):
    """[B, T] word ids -> [B, C] logits: embedding, GRU, pooling over time."""

    model_type, architecture = "gru", "GRUClassifier"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = GRUConfig, {}, (), {}, {}
    HEAD = ("classifier",)

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        c = self.config = config
        special = (c.pad_token_id, c.unk_token_id)
        dropouts = (c.word_dropout, c.embedding_dropout)
        self.embeddings = WordEmbedding(c.vocab_size, c.embedding_size, c.embedding_range, *special, *dropouts)
        self.gru = GRU(c.embedding_size, c.hidden_size, c.num_layers, c.bidirectional, c.dropout)
        self.pooling = Pooling(c.pooling, c.hidden_size * (1 + c.bidirectional), c.bidirectional)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, E]"""
        return self.embeddings(input_ids, mask)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, E] -> [B, T, N·D]"""
        return self.gru(x, mask)

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T, N·D] -> [B, n·N·D], n poolings side by side."""
        return self.dropout(self.pooling(h, mask))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the classifier sees."""
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
