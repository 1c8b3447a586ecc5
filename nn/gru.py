"""Gated recurrent units (Cho et al. 2014, arXiv 1406.1078, Eq. 5–8), stacked and bidirectional.

    r = σ(W_r x + U_r h₋ + b_r)      z = σ(W_z x + U_z h₋ + b_z)
    n = tanh(W_n x + b_n + r ⊙ (U_n h₋ + d_n))
    h = (1 - z) ⊙ n + z ⊙ h₋

h₋ is the step before, 0 at the start. W x of all steps and both directions is one product before the loops, as in
nn/lstm.py. At padding z is 1, so that the second direction, which meets padding first, keeps its zero state until the
review begins.

Backward through time, from the gradients δh of every output, with the step after written ₊ and m = U_n h₋ + d_n:

    δh ← δh + δh₊ ⊙ z₊ + U^T δs₊      δn = δh ⊙ (1-z) ⊙ (1-n²)
    δa = [δn ⊙ m ⊙ r(1-r),  δh ⊙ (h₋ - n) ⊙ z(1-z),  δn],   δs = [δa_r, δa_z, δn ⊙ r],   δU = Σ δs h₋^T,   δd_n = Σ δn
    ⊙ r

Differs from the paper: r acts behind U_n, not before it, and z keeps the old state where the paper has it take the new
one, as torch.nn.GRU and cuDNN have it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

from nn.dropout import Dropout
from nn.lstm import (
    SHUT,
    before,
    in_order,
    project,
    room_for_states,
    sigmoid_backward,
    tanh_,
    tanh_backward,
    times_before,
)
from nn.words import Pooling, WordEmbedding


def plain_scan(a: Tensor, u: Tensor, b: Tensor, d: Tensor, padding: Tensor) -> Tensor:
    """The equations step by step, differentiated by autograd. a: W x, [T·B, N·3D], N directions;  u: [N, 3D, D];  b:
    [N, 3D], gates in the order r, z, n;  d: d_n, [N, D];  padding: bool [T, B] -> h of every step, [T, B, N, D], 0 at
    padding."""
    sides = []
    for side, a_side in enumerate(a.view(*padding.shape, *u.shape[:2]).unbind(2)):
        h = a.new_zeros(padding.size(1), u.size(-1))
        out = []
        for a_t, padded in in_order(side, a_side, padding[..., None]):
            a_r, a_z, a_n = (a_t + b[side]).chunk(3, -1)  # [B, D] each
            s_r, s_z, s_n = (h @ u[side].T).chunk(3, -1)
            r, z = (a_r + s_r).sigmoid(), (a_z + s_z).sigmoid().masked_fill(padded, 1)
            n = (a_n + r * (s_n + d[side])).tanh()
            h = (1 - z) * n + z * h
            out.append(h.masked_fill(padded, 0))
        sides.append(torch.stack(out[::-1] if side else out))
    return torch.stack(sides, 2)


class Scan(torch.autograd.Function):
    """`plain_scan` with the backward pass above, in place and step by step while the numbers are in the cache; all of
    δU in one product. `a` is overwritten, with the gates, which are returned beside h (as autograd wants it)."""

    @staticmethod
    def forward(ctx, a: Tensor, u: Tensor, b: Tensor, d: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        width, hidden = u.size(-1), padding[..., None, None]
        gates = a.view(*padding.shape, *u.shape[:2])  # [T, B, N, 3D]: W x, then r, z, n
        gates[..., width : 2 * width].masked_fill_(hidden, -SHUT)
        m = a.new_empty(*gates.shape[:3], width)  # U_n h₋ + d_n
        h = room_for_states(gates, width)
        for side, u_t in enumerate(u.transpose(1, 2).contiguous()):  # [D, 3D]
            u_r_z, u_n = u_t[:, : 2 * width], u_t[:, 2 * width :]
            now = (x[:, :, side] for x in (gates, gates[..., : 2 * width], *gates.chunk(3, -1), m, h[1:-1]))
            for h_before, a_t, r_z, r, z, n, m_t, h_t in in_order(side, before(h, side), *now):
                a_t.add_(b[side])
                r_z.addmm_(h_before, u_r_z).sigmoid_()
                torch.addmm(d[side], h_before, u_n, out=m_t)
                tanh_(n.addcmul_(r, m_t))
                torch.lerp(n, h_before, z, out=h_t)
        h[1:-1].masked_fill_(hidden, 0)
        ctx.mark_dirty(a)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, m, h, u, padding)
        return h[1:-1], a

    @staticmethod
    def backward(ctx, dh: Tensor, _) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        a, m, h, u, padding = ctx.saved_tensors
        width, gates = u.size(-1), a.view(*m.shape[:3], -1)
        dh = dh.masked_fill(padding[..., None, None], 0)
        da, ds = torch.empty_like(gates), torch.empty_like(gates)
        for side, u_side in enumerate(u):
            through, ds_after, part = None, None, torch.empty_like(m[0, :, side])
            now = (dh, *gates.chunk(3, -1), m, ds, da[..., : 2 * width], *da.chunk(3, -1))
            now += (ds[..., : 2 * width], ds[..., 2 * width :])
            all_steps = in_order(1 - side, before(h, side), *(x[:, :, side] for x in now))
            for h_before, dh_t, r, z, n, m_t, ds_t, da_r_z, da_r, da_z, da_n, ds_r_z, ds_n in all_steps:
                if ds_after is not None:
                    dh_t.addmm_(ds_after, u_side).add_(through)  # [B, D]
                through = dh_t * z
                tanh_backward(torch.sub(dh_t, through, out=part), n, grad_input=da_n)
                sigmoid_backward(torch.mul(da_n, m_t, out=part), r, grad_input=da_r)
                sigmoid_backward(torch.sub(h_before, n, out=part).mul_(dh_t), z, grad_input=da_z)
                ds_r_z.copy_(da_r_z)
                torch.mul(da_n, r, out=ds_n)
                ds_after = ds_t
        return da.view_as(a), times_before(ds, h), da.sum((0, 1)), ds[..., 2 * width :].sum((0, 1)), None


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
        a = project(x, self.weight)  # [T·B, N·3D]
        with torch.autocast(x.device.type, enabled=False):
            h, _ = Scan.apply(a, self.recurrent, self.bias, self.recurrent_bias, padding)  # [T, B, N, D]
        return h.flatten(2).transpose(0, 1)  # [B, T, N·D]


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
