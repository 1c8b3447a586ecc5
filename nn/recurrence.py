"""The recurrences of LSTM and GRU: plain loops over time, and fast loops whose backward pass is derived by hand.

The inputs are a = W x + b of all steps, computed in one product before the loop (`project_inputs`), and the recurrent
weights U. Both directions run in the same loop; the second one reads the sequence from its last step to its first.
`plain_lstm` and `plain_gru` are the equations, differentiated by autograd. `fast_lstm` and `fast_gru` compute the same
states and gradients in place. A compiled model computes the plain forms: torch.compile (torch 2.13) returns wrong
states for the loops that write into views of their buffers.

Notation: x₋ and x₊ are x at the step before and after. δx is the gradient of the loss with respect to x, `dx` in the
code. h₋ and c₋ are 0 at the first step, all terms with ₊ at the last one. On the right-hand side of ←, δh is the
gradient of the output h.

LSTM (nn/lstm.py), gates in the order i, f, g, o:

    i = σ(a_i + U_i h₋), f and o likewise    g = tanh(a_g + U_g h₋)    c = f ⊙ c₋ + i ⊙ g    h = o ⊙ tanh c

    δh ← δh + Uᵀ δa₊                          δc = δc₊ ⊙ f₊ + δh ⊙ o ⊙ (1 - tanh² c)
    δa_i = δc ⊙ g ⊙ i ⊙ (1 - i)               δa_f = δc ⊙ c₋ ⊙ f ⊙ (1 - f)
    δa_g = δc ⊙ i ⊙ (1 - g²)                  δa_o = δh ⊙ tanh c ⊙ o ⊙ (1 - o)
    δU = Σ_t δa h₋ᵀ

The fast form computes all four gates with one sigmoid, y = [i, f, s, o] = σ(a + U h₋), where the sums of g are doubled:
tanh x = 2σ(2x) - 1, so that g = 2s - 1. Then 1 - g² = 4s(1 - s), and the four gradients become

    δa = [δc ⊙ g, δc ⊙ c₋, δc ⊙ 4i, δh ⊙ tanh c] ⊙ y ⊙ (1 - y)

GRU (nn/gru.py), gates in the order r, z, n, with p = U h₋:

    r = σ(a_r + p_r)    z = σ(a_z + p_z)    m = p_n + d_n    n = tanh(a_n + r ⊙ m)    h = (1 - z) ⊙ n + z ⊙ h₋

    δh ← δh + δh₊ ⊙ z₊ + Uᵀ δp₊               δa_n = δh ⊙ (1 - z) ⊙ (1 - n²)
    δa_r = δa_n ⊙ m ⊙ r ⊙ (1 - r)             δa_z = δh ⊙ (h₋ - n) ⊙ z ⊙ (1 - z)
    δp = [δa_r, δa_z, δa_n ⊙ r]               δU = Σ_t δp h₋ᵀ        δd_n = Σ_t δa_n ⊙ r

Under autocast, the products of the loop are in its dtype: U, h₋ and δa₊ are rounded for them. States, gates and sums
stay in fp32, since the rounding errors of a long sequence would add up in them.

Padding is on the right, so the first direction reads it after all real steps. The second direction starts on padding;
its state stays 0 there, because the LSTM's input gate i is forced to 0 and the GRU's update gate z to 1.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear, pad

from nn.autocast import product_dtype, without_autocast
from nn.first_order import first_order
from nn.onednn import current_library, direct_calls, packed, product, same_library
from nn.tracing import is_traced

SATURATED = 1e4  # σ(-SATURATED) = 0 and σ(SATURATED) = 1 exactly
MINUS_ONE, TWO, FOUR = torch.tensor([-1.0, 2.0, 4.0])  # tensors: faster in each step than Python numbers
sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # (δy, y) -> δy ⊙ y ⊙ (1 - y)
tanh_backward = torch.ops.aten.tanh_backward.grad_input  # (δy, y) -> δy ⊙ (1 - y²)

Buffers = TypeVar("Buffers", bound=tuple)

# --------------------------------------------------------------------------------------- before and after the loop


def check_width(x: Tensor, weight: Tensor) -> None:
    """Raises ValueError for inputs of another width than the weights, which oneDNN and `project_inputs` do not notice.

    x: [..., in];  weight: W, [N, G, in]
    """
    if x.size(-1) != weight.size(-1):
        raise ValueError(f"the inputs have {x.size(-1)} numbers at each step, the weights are for {weight.size(-1)}")


def stack_directions(x: Tensor, directions: int) -> Tensor:
    """Stacks x for each direction in its reading order. [T, ...] -> [N, T, ...]; the second one is reversed in time."""
    return torch.stack([x, x.flip(0)][:directions])


def join_directions(h: Tensor, padding: Tensor) -> Tensor:
    """Restores the order of time and concatenates the directions. h: [N, T, B, D], each direction in its reading order;
    padding: bool [T, B] -> [B, T, N·D], 0 at padding."""
    first, *second = h.unbind(0)
    h = torch.cat([first, *(x.flip(0) for x in second)], -1)  # [T, B, N·D]
    return h.masked_fill_(padding[..., None], 0).transpose(0, 1)


def project_inputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes a = W x + b of all steps in one product of each direction. x: [T, B, in];  weight: [N, G, in];
    bias: [N, G] -> [N, T·B, G] in weight's dtype.

    The result is fp32 under autocast too, as the sums of the loop. Inputs are zero-padded to a multiple of 8 columns:
    with 300 columns, CPU products are up to 1.5 × slower.
    """
    columns = (0, -x.size(-1) % 8)
    x = stack_directions(pad(x, columns), len(weight)).flatten(1, 2)  # [N, T·B, in]
    return torch.stack([*map(linear, x, pad(weight, columns), bias)]).to(weight.dtype)  # [N, T·B, G]


def time_steps(buffers: Buffers, reverse: bool = False) -> Iterator[Buffers]:
    """Yields the views of all buffers at each step. A tuple of [N, T, ...] -> tuples of [N, ...].

    All views are made before the first step, which is faster than indexing inside the loop.
    """
    views = list(zip(*(x.unbind(1) for x in buffers), strict=True))
    kind: Any = type(buffers)  # a NamedTuple
    return map(kind._make, reversed(views) if reverse else views)


class StepProduct:
    """Computes y W of each step. W: [N, in, out], in the dtype of the product, to which y is rounded;  y: [N, B, in]"""

    def __init__(self, w: Tensor, batch: int) -> None:
        self.w = w.contiguous()
        self.packed = packed(self.w, rows=batch)  # one matrix for each direction, or None
        self.rounded = w.new_empty(len(w), batch, w.size(1))
        self.product = w.new_empty(len(w), batch, w.size(2))

    def of(self, y: Tensor) -> Tensor:
        """Returns y W, overwritten by the next step."""
        if self.packed:
            for out, y_n, w in zip(self.product.unbind(), y.unbind(), self.packed, strict=True):
                out.copy_(product(y_n, w))
            return self.product
        return torch.bmm(y if y.dtype == self.w.dtype else self.rounded.copy_(y), self.w, out=self.product)

    def add_to(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds y W to x in place, in the dtype of x."""
        if self.packed:
            for x_n, y_n, w in zip(x.unbind(), y.unbind(), self.packed, strict=True):
                x_n += product(y_n, w)
            return x
        return x.baddbmm_(y, self.w) if y.dtype == self.w.dtype else x.add_(self.of(y))


def gradient_of_u(da: Tensor, h_before: Tensor, dtype: torch.dtype) -> Tensor:
    """Computes δU = Σ_t δa h₋ᵀ in one product of `dtype`. da: [N, T·B, G];  h_before: [N, T, B, D] -> [N, G, D]"""
    return (da.to(dtype).transpose(1, 2) @ h_before.to(dtype).flatten(1, 2)).to(da.dtype)


# ------------------------------------------------------------------------------------------------------------ LSTM


def plain_lstm(a: Tensor, u: Tensor, padding: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Computes the LSTM step by step. a: [N, T·B, 4D];  u: [N, 4D, D];  padding: bool [N, T, B], in each direction's
    reading order;  dtype: of the products, by default that of u -> h of every step, [N, T, B, D]. States at padding are
    not specified."""
    dtype = dtype or u.dtype
    h = c = a.new_zeros(*padding.shape[::2], u.size(-1))
    out = []
    for a_t, padded in zip(a.unflatten(1, padding.shape[1:]).unbind(1), padding[..., None].unbind(1), strict=True):
        i, f, g, o = (a_t + h.to(dtype) @ u.to(dtype).transpose(1, 2)).chunk(4, -1)  # [N, B, D] each
        c = f.sigmoid() * c + i.sigmoid().masked_fill(padded, 0) * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


def fast_lstm(a: Tensor, u: Tensor, padding: Tensor) -> Tensor:
    """Computes `plain_lstm` and its gradients with the fast form; overwrites `a`. The dtype of the products is that of
    autocast, or else of u."""
    dtype = product_dtype(u)
    with without_autocast(u):
        if torch.compiler.is_compiling() or is_traced() or u.is_meta:
            return plain_lstm(a, u, padding, dtype)
        return LSTMFunction.apply(a, u, padding, dtype)[0]


class LSTMStep(NamedTuple):
    """Holds the buffers of the forward loop: all steps [N, T, B, ·], or the views of one step [N, B, ·].

    y has width 4D, the others D.
    """

    y: Tensor  # a, then a + U h₋, then the gates [i, f, s, o]
    i: Tensor
    f: Tensor
    s: Tensor
    o: Tensor
    g: Tensor
    four_i: Tensor
    tanh_c: Tensor
    c: Tensor
    h: Tensor


class LSTMBackwardStep(NamedTuple):
    """Holds the buffers of the backward loop: all steps [N, T, B, …], or the views of one step [N, B, …]."""

    dh: Tensor  # gradient of the output h, [N, B, D]
    y: Tensor  # [N, B, 4, D]
    f: Tensor  # [N, B, D]
    o: Tensor  # [N, B, D]
    factors: Tensor  # g, c₋, 4i: the factors of δc, [N, B, 3, D]
    tanh_c: Tensor  # [N, B, D]
    da: Tensor  # [N, B, 4, D]
    da_i_f_g: Tensor  # [N, B, 3, D]
    da_o: Tensor  # [N, B, D]


class LSTMFunction(Function):
    """Computes `plain_lstm`, and its gradients by the equations in the module's docstring.

    All operations are in place and act on one step, whose numbers stay in the cache. δU is one product after the loop.
    `factors` [N, T + 1, B, 4, D] holds g, c₋, 4i and tanh c of each step, so that one multiplication by δc serves three
    gates. h [N, T + 1, B, D] and c₋ are shifted by one step: index t holds the state before step t.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor, padding: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns h and the overwritten `a`, which autograd requires as an output."""
        (directions, length, batch), width = padding.shape, u.size(-1)
        y = a.view(directions, length, batch, 4 * width)
        factors = a.new_empty(directions, length + 1, batch, 4, width)
        h = a.new_empty(directions, length + 1, batch, width)
        h_before, c_before = h[:, 0].zero_(), factors[:, 0, :, 1].zero_()  # [N, B, D] each
        y[1:, ..., :width].masked_fill_(padding[1:, ..., None], -SATURATED)  # i = 0
        recurrent = StepProduct(u.to(dtype).transpose(1, 2), batch)
        with direct_calls():
            for step in time_steps(lstm_buffers(y=y, h=h, factors=factors)):
                recurrent.add_to(step.y, h_before)  # a + U h₋
                lstm_step(step, c_before=c_before)
                h_before, c_before = step.h, step.c
        ctx.mark_dirty(a)
        ctx.set_materialize_grads(False)
        ctx.library = current_library()
        ctx.save_for_backward(a, factors, h, u)
        ctx.dtype = dtype
        return h[:, 1:], a

    @staticmethod
    @first_order
    @same_library
    def backward(ctx: Any, dh: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, None, None]:
        """dh: [N, T, B, D] -> δa, δU"""
        if dh is None:
            return None, None, None, None
        a, factors, h, u = ctx.saved_tensors
        da, dh_total, da_after = torch.empty_like(a), torch.empty_like(h[:, 0]), None
        recurrent = StepProduct(u.to(ctx.dtype), batch=h.size(2))
        dc = torch.zeros_like(dh_total)
        with direct_calls():
            for step in time_steps(lstm_backward_buffers(dh=dh, a=a, factors=factors, da=da), reverse=True):
                dh_total.copy_(step.dh)
                if da_after is not None:
                    recurrent.add_to(dh_total, da_after.flatten(2))  # δh + Uᵀ δa₊
                lstm_backward_step(step, dh=dh_total, dc=dc)
                da_after = step.da
        return da, gradient_of_u(da, h_before=h[:, :-1], dtype=ctx.dtype), None, None


def lstm_buffers(y: Tensor, h: Tensor, factors: Tensor) -> LSTMStep:
    """Splits the forward buffers. y: [N, T, B, 4D];  h: [N, T + 1, B, D];  factors: [N, T + 1, B, 4, D]"""
    i, f, s, o = y.chunk(4, -1)
    g, _, four_i, tanh_c = factors[:, :-1].unbind(3)  # [N, T, B, D] each
    c = factors[:, 1:, :, 1]  # [N, T, B, D]
    return LSTMStep(y=y, i=i, f=f, s=s, o=o, g=g, four_i=four_i, tanh_c=tanh_c, c=c, h=h[:, 1:])


def lstm_step(step: LSTMStep, c_before: Tensor) -> None:
    """Computes the gates, c and h of one step in place. step.y: a + U h₋, [N, B, 4D];  c_before: c₋"""
    step.s.mul_(TWO)
    step.y.sigmoid_()  # i, f, s, o
    torch.add(MINUS_ONE, step.s, alpha=2, out=step.g)  # g = 2s - 1
    torch.mul(step.i, FOUR, out=step.four_i)
    torch.mul(step.i, step.g, out=step.c).addcmul_(step.f, c_before)  # c = i ⊙ g + f ⊙ c₋
    torch.add(step.c, step.c, out=step.tanh_c).sigmoid_()
    torch.add(MINUS_ONE, step.tanh_c, alpha=2, out=step.tanh_c)  # tanh c = 2σ(2c) - 1
    torch.mul(step.o, step.tanh_c, out=step.h)


def lstm_backward_buffers(dh: Tensor, a: Tensor, factors: Tensor, da: Tensor) -> LSTMBackwardStep:
    """Splits the buffers of the backward loop. dh: [N, T, B, D];  a (the gates), da: [N, T·B, 4D];
    factors: [N, T + 1, B, 4, D]"""
    shape = (*dh.shape[:3], 4, dh.size(-1))
    y, da, factors = a.view(shape), da.view(shape), factors[:, :-1]
    return LSTMBackwardStep(
        dh=dh, y=y, f=y[..., 1, :], o=y[..., 3, :], factors=factors[..., :3, :], tanh_c=factors[..., 3, :],
        da=da, da_i_f_g=da[..., :3, :], da_o=da[..., 3, :],
    )  # fmt: skip


def lstm_backward_step(step: LSTMBackwardStep, dh: Tensor, dc: Tensor) -> None:
    """Computes δa of one step in place. dh: δh + Uᵀ δa₊, overwritten;  dc: δc₊ ⊙ f₊, becomes δc ⊙ f."""
    torch.mul(dh, step.tanh_c, out=step.da_o)
    dc += tanh_backward(dh.mul_(step.o), step.tanh_c, grad_input=dh)  # δh ⊙ o ⊙ (1 - tanh² c)
    torch.mul(dc[:, :, None], step.factors, out=step.da_i_f_g)
    sigmoid_backward(step.da, step.y, grad_input=step.da)  # ⊙ y ⊙ (1 - y)
    dc *= step.f


# ------------------------------------------------------------------------------------------------------------- GRU


def plain_gru(a: Tensor, u: Tensor, d: Tensor, padding: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Computes the GRU step by step. a: [N, T·B, 3D];  u: [N, 3D, D];  d: d_n, [N, D];  padding: bool [N, T, B], in
    each direction's reading order;  dtype: of the products, by default that of u -> h of every step, [N, T, B, D].
    States at padding are not specified."""
    dtype = dtype or u.dtype
    h = a.new_zeros(*padding.shape[::2], u.size(-1))
    out = []
    for a_t, padded in zip(a.unflatten(1, padding.shape[1:]).unbind(1), padding[..., None].unbind(1), strict=True):
        a_r, a_z, a_n = a_t.chunk(3, -1)  # [N, B, D] each
        p_r, p_z, p_n = (h.to(dtype) @ u.to(dtype).transpose(1, 2)).chunk(3, -1)
        r, z = (a_r + p_r).sigmoid(), (a_z + p_z).sigmoid().masked_fill(padded, 1)
        n = (a_n + r * (p_n + d[:, None])).tanh()
        h = (1 - z) * n + z * h
        out.append(h)
    return torch.stack(out, 1)


def fast_gru(a: Tensor, u: Tensor, d: Tensor, padding: Tensor) -> Tensor:
    """Computes `plain_gru` and its gradients with the fast form; overwrites `a`. The dtype of the products is that of
    autocast, or else of u."""
    dtype = product_dtype(u)
    with without_autocast(u):
        if torch.compiler.is_compiling() or is_traced() or u.is_meta:
            return plain_gru(a, u, d, padding, dtype)
        return GRUFunction.apply(a, u, d, padding, dtype)[0]


class GRUStep(NamedTuple):
    """Holds the buffers of the forward loop: all steps [N, T, B, ·], or the views of one step [N, B, ·].

    r_z has width 2D, the others D.
    """

    r_z: Tensor  # a_r and a_z, then the gates
    r: Tensor
    z: Tensor
    n: Tensor  # a_n, then n
    m: Tensor
    h: Tensor


class GRUBackwardStep(NamedTuple):
    """Holds the buffers of the backward loop: all steps [N, T, B, ·], or the views of one step [N, B, ·].

    dp has width 3D, r_z, da_r_z and dp_r_z have 2D, the others D.
    """

    dh: Tensor  # gradient of the output h
    r_z: Tensor
    r: Tensor
    z: Tensor
    n: Tensor
    m: Tensor
    h_before: Tensor
    da_r_z: Tensor
    da_r: Tensor
    da_z: Tensor
    da_n: Tensor
    dp: Tensor
    dp_r_z: Tensor
    dp_n: Tensor


class GRUFunction(Function):
    """Computes `plain_gru`, and its gradients by the equations in the module's docstring, in place like LSTMFunction.

    h [N, T + 1, B, D] is shifted by one step: index t holds the state before step t.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, u: Tensor, d: Tensor, padding: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Returns h and the overwritten `a`, which autograd requires as an output."""
        (directions, length, batch), width = padding.shape, u.size(-1)
        gates = a.view(directions, length, batch, 3 * width)
        gates[1:, ..., width : 2 * width].masked_fill_(padding[1:, ..., None], SATURATED)  # z = 1
        m = a.new_empty(directions, length, batch, width)
        h = a.new_empty(directions, length + 1, batch, width)
        h_before = h[:, 0].zero_()  # [N, B, D]
        recurrent, d = StepProduct(u.to(dtype).transpose(1, 2), batch), d[:, None]  # d: [N, 1, D]
        p_r_z, p_n = recurrent.product.split([2 * width, width], -1)  # views of p = U h₋, [N, B, 2D] and [N, B, D]
        with direct_calls():
            for step in time_steps(gru_buffers(gates=gates, m=m, h=h)):
                recurrent.of(h_before)
                gru_step(step, p_r_z=p_r_z, m=torch.add(p_n, d, out=step.m), h_before=h_before)
                h_before = step.h
        ctx.mark_dirty(a)
        ctx.set_materialize_grads(False)
        ctx.library = current_library()
        ctx.save_for_backward(a, m, h, u)
        ctx.dtype = dtype
        return h[:, 1:], a

    @staticmethod
    @first_order
    @same_library
    def backward(ctx: Any, dh: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """dh: [N, T, B, D] -> δa, δU, δd_n"""
        if dh is None:
            return None, None, None, None, None
        a, m, h, u = ctx.saved_tensors
        da, dp = torch.empty_like(a), torch.empty_like(a)
        dh_total, dh_z, scratch = (torch.empty_like(h[:, 0]) for _ in range(3))
        recurrent, dp_after = StepProduct(u.to(ctx.dtype), batch=h.size(2)), None
        with direct_calls():
            for step in time_steps(gru_backward_buffers(dh=dh, a=a, m=m, h=h, da=da, dp=dp), reverse=True):
                dh_total.copy_(step.dh)
                if dp_after is not None:
                    recurrent.add_to(dh_total, dp_after).add_(dh_z)  # δh + Uᵀ δp₊ + δh₊ ⊙ z₊
                gru_backward_step(step, dh=dh_total, dh_z=dh_z, scratch=scratch)
                dp_after = step.dp
        du = gradient_of_u(dp, h_before=h[:, :-1], dtype=ctx.dtype)
        return da, du, dp[..., 2 * u.size(-1) :].sum(1), None, None


def gru_buffers(gates: Tensor, m: Tensor, h: Tensor) -> GRUStep:
    """Splits the forward buffers. gates: [N, T, B, 3D];  m: [N, T, B, D];  h: [N, T + 1, B, D]"""
    r, z, n = gates.chunk(3, -1)
    return GRUStep(r_z=gates[..., : -n.size(-1)], r=r, z=z, n=n, m=m, h=h[:, 1:])


def gru_step(step: GRUStep, p_r_z: Tensor, m: Tensor, h_before: Tensor) -> None:
    """Computes the gates, n and h of one step in place. p_r_z: [N, B, 2D];  m, h_before (h₋): [N, B, D]"""
    step.r_z.add_(p_r_z).sigmoid_()
    step.n.addcmul_(step.r, m)  # a_n + r ⊙ m
    torch.add(step.n, step.n, out=step.n).sigmoid_()
    torch.add(MINUS_ONE, step.n, alpha=2, out=step.n)  # tanh x = 2σ(2x) - 1
    torch.lerp(step.n, h_before, step.z, out=step.h)  # (1 - z) ⊙ n + z ⊙ h₋


def gru_backward_buffers(dh: Tensor, a: Tensor, m: Tensor, h: Tensor, da: Tensor, dp: Tensor) -> GRUBackwardStep:
    """Splits the buffers of the backward loop. dh, m: [N, T, B, D];  a (the gates), da, dp: [N, T·B, 3D];
    h: [N, T + 1, B, D]"""
    width = m.size(-1)
    gates, da, dp = (x.view(*m.shape[:3], 3 * width) for x in (a, da, dp))
    (r, z, n), (da_r, da_z, da_n) = gates.chunk(3, -1), da.chunk(3, -1)
    return GRUBackwardStep(
        dh=dh, r_z=gates[..., : 2 * width], r=r, z=z, n=n, m=m, h_before=h[:, :-1],
        da_r_z=da[..., : 2 * width], da_r=da_r, da_z=da_z, da_n=da_n,
        dp=dp, dp_r_z=dp[..., : 2 * width], dp_n=dp[..., 2 * width :],
    )  # fmt: skip


def gru_backward_step(step: GRUBackwardStep, dh: Tensor, dh_z: Tensor, scratch: Tensor) -> None:
    """Computes δa and δp of one step in place. dh: δh + Uᵀ δp₊ + δh₊ ⊙ z₊;  dh_z: becomes δh ⊙ z."""
    torch.mul(dh, step.z, out=dh_z)
    tanh_backward(torch.sub(dh, dh_z, out=scratch), step.n, grad_input=step.da_n)  # δh ⊙ (1 - z) ⊙ (1 - n²)
    torch.mul(step.da_n, step.m, out=step.da_r)
    torch.mul(torch.sub(step.h_before, step.n, out=scratch), dh, out=step.da_z)
    sigmoid_backward(step.da_r_z, step.r_z, grad_input=step.da_r_z)
    step.dp_r_z.copy_(step.da_r_z)
    torch.mul(step.da_n, step.r, out=step.dp_n)
