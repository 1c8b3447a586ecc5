"""Long short-term memory (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000), stacked and bidirectional.

    i = σ(W_i x + U_i h₋ + b_i)      f = σ(W_f x + U_f h₋ + b_f)
    g = tanh(W_g x + U_g h₋ + b_g)   o = σ(W_o x + U_o h₋ + b_o)
    c = f ⊙ c₋ + i ⊙ g               h = o ⊙ tanh(c)

h₋ and c₋ are the step before, 0 at the start. W x + b of all steps is one product before the loop. Both directions run
in one loop: the second reads each review from its own end, so padding always comes last and never touches a real step.

Backward through time, from the gradients δh of every output, with the step after written ₊:

    δh ← δh + U^T δa₊        δc = δh ⊙ o ⊙ (1 - tanh²c) + δc₊ ⊙ f₊
    δa = [δc ⊙ g ⊙ i(1-i),  δc ⊙ c₋ ⊙ f(1-f),  δc ⊙ i ⊙ (1-g²),  δh ⊙ tanh(c) ⊙ o(1-o)],   δU = Σ δa h₋^T

Differs from the papers: no peepholes (torch.nn.LSTM has none either).
"""

import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter

from nn.dropout import Dropout


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Turns each row around within its length. x: [B, T, ...];  lengths: [B]. Its own inverse."""
    place = torch.arange(x.size(1), device=x.device)
    source = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)  # [B, T]
    return x.gather(1, source.view(*source.shape, *[1] * (x.dim() - 2)).expand_as(x))


def plain_scan(a: Tensor, u: Tensor) -> Tensor:
    """The equations step by step, differentiated by autograd. a: W x + b, [T, N, B, 4D];  u: [N, 4D, D], N directions;
    gates in the order i, f, g, o -> h of every step, [T, N, B, D]."""
    h = c = a.new_zeros(*a.shape[1:3], u.size(-1))
    out = []
    for a_t in a:
        i, f, g, o = (a_t + h @ u.transpose(1, 2)).chunk(4, -1)  # [N, B, D] each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out)


class Scan(torch.autograd.Function):
    """`plain_scan` with the backward pass above: fewer and larger operations, and all of δU in one product."""

    @staticmethod
    def forward(ctx, a: Tensor, u: Tensor) -> Tensor:
        steps, directions, batch, width = *a.shape[:3], u.size(-1)
        gates = torch.empty_like(a)  # i, f, g, o behind their nonlinearities
        h, c = (a.new_zeros(steps + 1, directions, batch, width) for _ in range(2))  # place 0: the start
        u_t = u.transpose(1, 2)  # [N, D, 4D]
        tanh_c = torch.empty_like(h[1:])
        for t in range(steps):
            torch.baddbmm(a[t], h[t], u_t, out=gates[t])  # [N, B, 4D]
            i, f, g, o = gates[t].chunk(4, -1)
            gates[t][..., : 2 * width].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(i, g, out=c[t + 1]).addcmul_(f, c[t])
            torch.tanh(c[t + 1], out=tanh_c[t])
            torch.mul(o, tanh_c[t], out=h[t + 1])
        ctx.save_for_backward(gates, h, c, tanh_c, u)
        return h[1:].clone()

    @staticmethod
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor]:
        gates, h, c, tanh_c, u = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, -1)
        # what δc and δh are multiplied with, for all steps at once
        to_gates = torch.cat([g * i * (1 - i), c[:-1] * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], -1)
        to_cell = o * (1 - tanh_c * tanh_c)
        da, width = torch.empty_like(gates), u.size(-1)
        dh_after, dc = torch.zeros_like(dh[0]), torch.zeros_like(dh[0])  # U^T δa₊ and δc₊ ⊙ f₊
        for t in range(len(dh) - 1, -1, -1):
            dh_t = dh[t] + dh_after
            dc = dc.addcmul(dh_t, to_cell[t])
            inner = da[t][..., : 3 * width].unflatten(-1, (3, width))
            torch.mul(to_gates[t][..., : 3 * width].unflatten(-1, (3, width)), dc[..., None, :], out=inner)
            torch.mul(to_gates[t][..., 3 * width :], dh_t, out=da[t][..., 3 * width :])
            dh_after = torch.bmm(da[t], u)  # [N, B, D]
            dc = dc * f[t]
        flat = (da.transpose(0, 1).flatten(1, 2), h[:-1].transpose(0, 1).flatten(1, 2))  # [N, T·B, 4D], [N, T·B, D]
        return da, torch.bmm(flat[0].transpose(1, 2), flat[1])


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
        lengths = mask.sum(1)
        inputs = [x, reverse(x, lengths)][: len(self.weight)]
        projected = [
            torch.nn.functional.linear(y, w, b) for y, w, b in zip(inputs, self.weight, self.bias, strict=True)
        ]
        a = torch.stack(projected).permute(2, 0, 1, 3).contiguous()  # [T, N, B, 4D]
        h = Scan.apply(a, self.recurrent.to(a.dtype)).permute(1, 2, 0, 3)  # [N, B, T, D]
        outputs = [h[0]] if len(h) == 1 else [h[0], reverse(h[1], lengths)]
        return torch.cat(outputs, -1).masked_fill(~mask[..., None], 0)  # [B, T, N·D]


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


def last_states(h: Tensor, mask: Tensor, bidirectional: bool = True) -> Tensor:
    """The state after each direction's last real step: the forward one at the review's end, the backward one at its
    start. h: [B, T, N·D] -> [B, N·D]"""
    end = (mask.sum(1) - 1).clamp(min=0)
    at_end = h[torch.arange(len(h), device=h.device), end]  # [B, N·D]
    if not bidirectional:
        return at_end
    forward, _ = at_end.chunk(2, -1)
    _, backward = h[:, 0].chunk(2, -1)
    return torch.cat([forward, backward], -1)
