"""Gated recurrent units (Cho et al. 2014, arXiv 1406.1078, Eq. 5–8), stacked and bidirectional.

    r = σ(W_r x + U_r h₋ + b_r)      z = σ(W_z x + U_z h₋ + b_z)
    n = tanh(W_n x + b_n + r ⊙ (U_n h₋ + d_n))
    h = (1 - z) ⊙ n + z ⊙ h₋

h₋ is the step before, 0 at the start. W x + b of all steps is one product before the loop, and both directions run in
one loop, as in nn/lstm.py.

Backward through time, from the gradients δh of every output, with the step after written ₊ and m = U_n h₋ + d_n:

    δh ← δh + δh₊ ⊙ z₊ + U^T δs₊      δn = δh ⊙ (1-z) ⊙ (1-n²)
    δa = [δn ⊙ m ⊙ r(1-r),  δh ⊙ (h₋ - n) ⊙ z(1-z),  δn],   δs = [δa_r, δa_z, δn ⊙ r],   δU = Σ δs h₋^T,   δd_n = Σ δn
    ⊙ r

Differs from the paper: r acts behind U_n, not before it, and z keeps the old state where the paper has it take the new
one, as torch.nn.GRU and cuDNN have it.
"""

import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter

from nn.dropout import Dropout
from nn.lstm import reverse


def plain_scan(a: Tensor, u: Tensor, d: Tensor) -> Tensor:
    """The equations step by step, differentiated by autograd. a: W x + b, [T, N, B, 3D];  u: [N, 3D, D];  d: d_n, [N,
    D]; gates in the order r, z, n -> h of every step, [T, N, B, D]."""
    h = a.new_zeros(*a.shape[1:3], u.size(-1))
    out = []
    for a_t in a:
        a_r, a_z, a_n = a_t.chunk(3, -1)  # [N, B, D] each
        s_r, s_z, s_n = (h @ u.transpose(1, 2)).chunk(3, -1)
        r, z = (a_r + s_r).sigmoid(), (a_z + s_z).sigmoid()
        n = (a_n + r * (s_n + d[:, None])).tanh()
        h = (1 - z) * n + z * h
        out.append(h)
    return torch.stack(out)


class Scan(torch.autograd.Function):
    """`plain_scan` with the backward pass above: fewer and larger operations, and all of δU in one product."""

    @staticmethod
    def forward(ctx, a: Tensor, u: Tensor, d: Tensor) -> Tensor:
        steps, directions, batch, width = *a.shape[:3], u.size(-1)
        gates = a.clone()  # r, z, n behind their nonlinearities
        m = a.new_empty(steps, directions, batch, width)
        h = a.new_zeros(steps + 1, directions, batch, width)  # place 0: the start
        u_t, shift = u.transpose(1, 2), torch.zeros_like(u[..., 0])
        shift[:, 2 * width :] = d
        for t in range(steps):
            s = torch.baddbmm(shift[:, None], h[t], u_t)  # [N, B, 3D]
            gates[t][..., : 2 * width].add_(s[..., : 2 * width]).sigmoid_()
            r, z, n = gates[t].chunk(3, -1)
            m[t] = s[..., 2 * width :]
            n.addcmul_(r, m[t]).tanh_()
            torch.lerp(n, h[t], z, out=h[t + 1])
        ctx.save_for_backward(gates, m, h, u)
        return h[1:].clone()

    @staticmethod
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, m, h, u = ctx.saved_tensors
        r, z, n = gates.chunk(3, -1)
        # what δh is multiplied with to give δa_r, δa_z, δn, and δn ⊙ r, for all steps at once
        to_n = (1 - z) * (1 - n * n)
        to_gates = torch.stack(
            [to_n * m * r * (1 - r), (h[:-1] - n) * z * (1 - z), to_n * r, to_n], -2
        )  # [T, N, B, 4, D]
        ds, dn = torch.empty_like(gates), torch.empty_like(n)
        width, dh_after = u.size(-1), torch.zeros_like(dh[0])
        for t in range(len(dh) - 1, -1, -1):
            dh_t = dh[t] + dh_after
            torch.mul(to_gates[t][..., :3, :], dh_t[..., None, :], out=ds[t].unflatten(-1, (3, width)))
            torch.mul(to_gates[t][..., 3, :], dh_t, out=dn[t])
            dh_after = torch.baddbmm(dh_t * z[t], ds[t], u)  # [N, B, D]
        da = torch.cat([ds[..., : 2 * width], dn], -1)
        flat = (ds.transpose(0, 1).flatten(1, 2), h[:-1].transpose(0, 1).flatten(1, 2))  # [N, T·B, 3D], [N, T·B, D]
        return da, torch.bmm(flat[0].transpose(1, 2), flat[1]), ds[..., 2 * width :].sum((0, 2))


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
        lengths = mask.sum(1)
        inputs = [x, reverse(x, lengths)][: len(self.weight)]
        projected = [
            torch.nn.functional.linear(y, w, b) for y, w, b in zip(inputs, self.weight, self.bias, strict=True)
        ]
        a = torch.stack(projected).permute(2, 0, 1, 3).contiguous()  # [T, N, B, 3D]
        h = Scan.apply(a, self.recurrent.to(a.dtype), self.recurrent_bias.to(a.dtype)).permute(1, 2, 0, 3)
        outputs = [h[0]] if len(h) == 1 else [h[0], reverse(h[1], lengths)]  # [B, T, D] each
        return torch.cat(outputs, -1).masked_fill(~mask[..., None], 0)  # [B, T, N·D]


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
