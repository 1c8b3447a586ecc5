"""Disentangled attention (`nn.deberta`, Eq. 4) as Triton kernels, which never store the [T, S] scores in memory.

    A[t,s] = q[t]·k[s] + q[t]·K_r[δ(t-s)] + k[s]·Q_r[δ(t-s)],   y = dropout(softmax(A)) v

q and Q_r are already divided by √(3K).

The kernels process tiles of N queries × N keys and keep the running maximum m and sum l of every softmax row (Dao et
al. 2022, arXiv 2205.14135, Algorithm 1; backward pass: Algorithm 4, which computes the tile again from m and l).
The pairs of a tile have 2N - 1 distances, which are consecutive. So a relative term is one product with 2N rows of the
table, skewed so that every pair reads the column of its distance:

    q [N, K] ──┐             window: rows for the distances low … low + 2N - 1
               ├─▶ G = q K_dᵀ [N, 2N] ──▶ skew ──▶ G[t, t - s + N - 1]  [N, N]  = q[t]·K_r[δ(t-s)]
    K_d [2N, K]┘

p2c is the same with the roles of query and key exchanged and the distances in descending order. The backward pass uses
the inverse of the skew. Every gradient is summed by one program in a fixed order, without atomic additions, so equal
inputs give equal bits:

    program of          sums over                gives
    query tile          key tiles                y; ∂q
    key tile            query tiles              ∂k, ∂v
    diagonal of tiles   its tiles, reviews       ∂K_r, ∂Q_r   all tiles of a diagonal have the same distances

Dropout: the mask is a function of (seed, review and head, t, s) by the counter-based generator Philox4x32-7 (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so it is drawn again in the backward pass and never stored.
Four neighbouring keys share one counter.

Triton is part of torch's builds for CUDA on Linux. On a CPU its interpreter runs these kernels
(tests/test_triton_attention.py). Differs from the plain form: the scores stay in fp32 in half precision; p of dropout
is exact, where a CPU rounds it.
"""

from __future__ import annotations  # the annotations below name `tl`, which a machine without Triton does not have

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nn.autocast import product_dtype
from nn.first_order import first_order
from nn.triton_compiler import can_compile_kernels

try:
    import triton  # type: ignore[import-not-found, unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    triton = None

PROGRAMS = 1024  # upper bound of the programs of the table kernel: a few for each multiprocessor of a large GPU
# Dtypes of the products, with the widest heads whose tiles fit into the shared memory of every GPU of `runs_on`
MAX_HEAD_SIZE = {torch.float32: 128, torch.bfloat16: 256, torch.float16: 256}


def has_triton() -> bool:
    """Returns whether Triton is installed."""
    return triton is not None


def runs_on(device: torch.device) -> bool:
    """Returns whether the kernels run on a device: a GPU of compute capability 8.0 or above, with Triton and
    what it needs to compile."""
    if triton is None or device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return can_compile_kernels()


def is_suitable(x: Tensor, head_size: int) -> bool:
    """Returns whether the kernels compute the attention of heads of this size, with the dtype and the device of x."""
    return x.dtype in MAX_HEAD_SIZE and head_size <= MAX_HEAD_SIZE[product_dtype(x)] and runs_on(x.device)


def jit(kernel: Callable) -> Any:
    """Compiles a kernel when it is called first. Returns the plain function on a machine without Triton."""
    return kernel if triton is None else triton.jit(kernel)


# ----------------------------------------------------------------------------------------------------------- tiles


@jit
def load_rows(
    x: tl.tensor, rows: tl.tensor, valid: tl.tensor, stride: int, K: tl.constexpr, BLOCK_K: tl.constexpr
) -> tl.tensor:
    """Loads rows of K numbers; invalid rows and the columns from K on are 0. rows: [R] -> [R, BLOCK_K]"""
    column = tl.arange(0, BLOCK_K)
    inside = valid[:, None] & (column < K)[None, :]
    return tl.load(x + rows[:, None] * stride + column[None, :], mask=inside, other=0.0)


@jit
def store_rows(
    x: tl.tensor,
    rows: tl.tensor,
    valid: tl.tensor,
    stride: int,
    value: tl.tensor,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Stores `value` [R, BLOCK_K] in the valid rows."""
    column = tl.arange(0, BLOCK_K)
    inside = valid[:, None] & (column < K)[None, :]
    tl.store(x + rows[:, None] * stride + column[None, :], value.to(x.dtype.element_ty), mask=inside)


@jit
def load_window(
    table: tl.tensor,
    index: tl.tensor,
    distance: tl.tensor,
    num_queries: int,
    num_tokens: int,
    stride: int,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """Loads the rows of K_r or Q_r for distances; 0 for a distance that does not occur. distance: [2N] -> [2N, K]"""
    valid = (distance < num_queries) & (distance > -num_tokens)
    rows = tl.load(index + (num_queries - 1 - distance), mask=valid, other=0)
    return load_rows(table, rows, valid, stride, K, BLOCK_K)


@jit
def skew(x: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Selects y[i, j] = x[i, i - j + N - 1]. x: [N, 2N] -> [N, N]"""
    i = tl.arange(0, BLOCK)
    return tl.gather(x, i[:, None] - i[None, :] + (BLOCK - 1), 1)


@jit
def unskew(x: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Inverts `skew`: y[i, w] = x[i, i - w + N - 1], and 0 where there is no such column. x: [N, N] -> [N, 2N]"""
    i, w = tl.arange(0, BLOCK), tl.arange(0, 2 * BLOCK)
    column = i[:, None] - w[None, :] + (BLOCK - 1)
    inside = (column >= 0) & (column < BLOCK)
    return tl.where(inside, tl.gather(x, tl.where(inside, column, 0), 1), 0.0)


@jit
def tile_scores(
    q: tl.tensor,
    k: tl.tensor,
    k_d: tl.tensor,
    q_d: tl.tensor,
    visible: tl.tensor,
    first_key: int,
    num_prefix: int,
    num_keys: int,
    C2P: tl.constexpr,
    P2C: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Computes A for N queries and N keys. q, k: [N, K];  k_d, q_d: windows [2N, K], ascending and descending ->
    fp32 [N, N], -3e38 at masked keys, -inf beyond the last key"""
    key = first_key + tl.arange(0, BLOCK)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    is_token = (key >= num_prefix)[None, :]  # a prefix has no position
    if C2P:
        c2p = skew(tl.dot(q, tl.trans(k_d), input_precision=PRECISION), BLOCK)
        scores += tl.where(is_token, c2p, 0.0)
    if P2C:
        p2c = skew(tl.dot(k, tl.trans(q_d), input_precision=PRECISION), BLOCK)
        scores += tl.where(is_token, tl.trans(p2c), 0.0)
    is_visible = tl.load(visible + key, mask=key < num_keys, other=0) != 0
    scores = tl.where(is_visible[None, :], scores, -3.0e38)  # a row that is masked everywhere is uniform, not NaN
    return tl.where((key < num_keys)[None, :], scores, float("-inf"))


@jit
def keep_mask(
    seed: int, batch_head: int, first_query: int, first_key: int, num_keys: int, p: float, BLOCK: tl.constexpr
) -> tl.tensor:
    """Draws the dropout mask of a tile: True with probability 1 - p, bool [N, N]."""
    query = first_query + tl.arange(0, BLOCK)
    group = first_key // 4 + tl.arange(0, BLOCK // 4)  # of four keys
    counter = query[:, None] * tl.cdiv(num_keys, 4) + group[None, :]
    a, b, c, d = tl.rand4x(seed + batch_head, counter, n_rounds=7)
    uniform = tl.join(tl.join(a, c), tl.join(b, d))  # [N, N / 4, 2, 2]: a, b, c, d in this order
    return tl.reshape(uniform, (BLOCK, BLOCK)) >= p


@jit
def tile_gradient(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    k_d: tl.tensor,
    q_d: tl.tensor,
    dy: tl.tensor,
    row_max: tl.tensor,
    row_sum: tl.tensor,
    delta: tl.tensor,
    visible: tl.tensor,
    seed: tl.tensor,
    batch_head: int,
    first_query: int,
    first_key: int,
    num_prefix: int,
    num_keys: int,
    p: float,
    C2P: tl.constexpr,
    P2C: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Computes the weights after dropout and ∂A = w ⊙ (∂w - δ), w the weights before dropout, δ[t] = ∂y[t]·y[t].

    q, k, v, dy: [N, K];  k_d, q_d: windows [2N, K];  row_max, row_sum, delta: [N] -> fp32 [N, N] twice
    """
    scores = tile_scores(q, k, k_d, q_d, visible, first_key, num_prefix, num_keys, C2P, P2C, BLOCK, PRECISION)
    weights = tl.exp(scores - row_max[:, None]) / row_sum[:, None]
    d_weights = tl.dot(dy, tl.trans(v), input_precision=PRECISION)
    dropped = weights
    if DROPOUT:
        keep = keep_mask(tl.load(seed), batch_head, first_query, first_key, num_keys, p, BLOCK)
        dropped = tl.where(keep, weights / (1 - p), 0.0)
        d_weights = tl.where(keep, d_weights / (1 - p), 0.0)
    return dropped, weights * (d_weights - delta[:, None])


# --------------------------------------------------------------------------------------------------------- kernels
#
# q, y, dy: [B, T, H, K];  k, v: [B, P + S, H, K];  k_r, q_r: [N, H, K];  row_max, row_sum, delta: fp32 [B, H, T];
# index: int32 [T + S - 1];  visible: int8 [B, P + S];  seed: int64 [1];  all contiguous


@jit
def forward_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, k_r: tl.tensor, q_r: tl.tensor,
    index: tl.tensor, visible: tl.tensor, seed: tl.tensor,
    y: tl.tensor, row_max: tl.tensor, row_sum: tl.tensor,
    num_queries: int, num_tokens: int, num_prefix: int, p: float,
    H: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
    C2P: tl.constexpr, P2C: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Computes y and the maximum and sum of every row of the softmax. Program: (query tile, review and head)."""
    tiles = tl.cdiv(num_queries, BLOCK)
    first_query, batch_head = tl.program_id(0) % tiles * BLOCK, tl.program_id(0) // tiles
    batch, head = (batch_head // H).to(tl.int64), batch_head % H
    num_keys = num_prefix + num_tokens
    query = first_query + tl.arange(0, BLOCK)
    offset = batch * num_queries * H * K + head * K
    key_offset = batch * num_keys * H * K + head * K
    q_tile = load_rows(q + offset, query, query < num_queries, H * K, K, BLOCK_K)
    maximum = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    result = tl.zeros((BLOCK, BLOCK_K), tl.float32)
    ascending = tl.arange(0, 2 * BLOCK)
    descending = 2 * BLOCK - 2 - ascending
    for first_key in range(0, num_keys, BLOCK):
        key = first_key + tl.arange(0, BLOCK)
        k_tile = load_rows(k + key_offset, key, key < num_keys, H * K, K, BLOCK_K)
        v_tile = load_rows(v + key_offset, key, key < num_keys, H * K, K, BLOCK_K)
        low = first_query - first_key - (BLOCK - 1) + num_prefix  # the smallest distance of the tile
        k_d = load_window(k_r + head * K, index, low + ascending, num_queries, num_tokens, H * K, K, BLOCK_K)
        q_d = load_window(q_r + head * K, index, low + descending, num_queries, num_tokens, H * K, K, BLOCK_K)
        scores = tile_scores(
            q_tile, k_tile, k_d, q_d, visible + batch * num_keys, first_key, num_prefix, num_keys,
            C2P, P2C, BLOCK, PRECISION,
        )  # fmt: skip
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp(scores - new_maximum[:, None])
        decay = tl.exp(maximum - new_maximum)
        total = total * decay + tl.sum(weights, 1)
        if DROPOUT:
            keep = keep_mask(tl.load(seed), batch_head, first_query, first_key, num_keys, p, BLOCK)
            weights = tl.where(keep, weights / (1 - p), 0.0)
        result = result * decay[:, None] + tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION)
        maximum = new_maximum
    store_rows(y + offset, query, query < num_queries, H * K, result / total[:, None], K, BLOCK_K)
    tl.store(row_max + batch_head * num_queries + query, maximum, mask=query < num_queries)
    tl.store(row_sum + batch_head * num_queries + query, total, mask=query < num_queries)


@jit
def query_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, k_r: tl.tensor, q_r: tl.tensor,
    index: tl.tensor, visible: tl.tensor, seed: tl.tensor,
    dy: tl.tensor, row_max: tl.tensor, row_sum: tl.tensor, delta: tl.tensor, dq: tl.tensor,
    num_queries: int, num_tokens: int, num_prefix: int, p: float,
    H: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
    C2P: tl.constexpr, P2C: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Computes ∂q = ∂A k + unskew(∂A) K_d. Program: (query tile, review and head)."""
    tiles = tl.cdiv(num_queries, BLOCK)
    first_query, batch_head = tl.program_id(0) % tiles * BLOCK, tl.program_id(0) // tiles
    batch, head = (batch_head // H).to(tl.int64), batch_head % H
    num_keys = num_prefix + num_tokens
    query = first_query + tl.arange(0, BLOCK)
    is_query = query < num_queries
    offset = batch * num_queries * H * K + head * K
    key_offset = batch * num_keys * H * K + head * K
    q_tile = load_rows(q + offset, query, is_query, H * K, K, BLOCK_K)
    dy_tile = load_rows(dy + offset, query, is_query, H * K, K, BLOCK_K)
    maximum = tl.load(row_max + batch_head * num_queries + query, mask=is_query, other=float("inf"))
    total = tl.load(row_sum + batch_head * num_queries + query, mask=is_query, other=1.0)
    delta_tile = tl.load(delta + batch_head * num_queries + query, mask=is_query, other=0.0)
    result = tl.zeros((BLOCK, BLOCK_K), tl.float32)
    ascending = tl.arange(0, 2 * BLOCK)
    descending = 2 * BLOCK - 2 - ascending
    for first_key in range(0, num_keys, BLOCK):
        key = first_key + tl.arange(0, BLOCK)
        k_tile = load_rows(k + key_offset, key, key < num_keys, H * K, K, BLOCK_K)
        v_tile = load_rows(v + key_offset, key, key < num_keys, H * K, K, BLOCK_K)
        low = first_query - first_key - (BLOCK - 1) + num_prefix
        k_d = load_window(k_r + head * K, index, low + ascending, num_queries, num_tokens, H * K, K, BLOCK_K)
        q_d = load_window(q_r + head * K, index, low + descending, num_queries, num_tokens, H * K, K, BLOCK_K)
        _, d_scores = tile_gradient(
            q_tile, k_tile, v_tile, k_d, q_d, dy_tile, maximum, total, delta_tile, visible + batch * num_keys, seed,
            batch_head, first_query, first_key, num_prefix, num_keys, p, C2P, P2C, DROPOUT, BLOCK, PRECISION,
        )  # fmt: skip
        result += tl.dot(d_scores.to(k_tile.dtype), k_tile, input_precision=PRECISION)
        if C2P:
            d_c2p = unskew(tl.where((key >= num_prefix)[None, :], d_scores, 0.0), BLOCK)  # [N, 2N]
            result += tl.dot(d_c2p.to(k_d.dtype), k_d, input_precision=PRECISION)
    store_rows(dq + offset, query, is_query, H * K, result, K, BLOCK_K)


@jit
def key_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, k_r: tl.tensor, q_r: tl.tensor,
    index: tl.tensor, visible: tl.tensor, seed: tl.tensor,
    dy: tl.tensor, row_max: tl.tensor, row_sum: tl.tensor, delta: tl.tensor, dk: tl.tensor, dv: tl.tensor,
    num_queries: int, num_tokens: int, num_prefix: int, p: float,
    H: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
    C2P: tl.constexpr, P2C: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Computes ∂v = w̃ᵀ ∂y, w̃ the weights after dropout, and ∂k = ∂Aᵀ q + unskew(∂Aᵀ) Q_d.

    Program: (key tile, review and head).
    """
    tiles = tl.cdiv(num_prefix + num_tokens, BLOCK)
    first_key, batch_head = tl.program_id(0) % tiles * BLOCK, tl.program_id(0) // tiles
    batch, head = (batch_head // H).to(tl.int64), batch_head % H
    num_keys = num_prefix + num_tokens
    key = first_key + tl.arange(0, BLOCK)
    is_key = key < num_keys
    offset = batch * num_queries * H * K + head * K
    key_offset = batch * num_keys * H * K + head * K
    k_tile = load_rows(k + key_offset, key, is_key, H * K, K, BLOCK_K)
    v_tile = load_rows(v + key_offset, key, is_key, H * K, K, BLOCK_K)
    d_key = tl.zeros((BLOCK, BLOCK_K), tl.float32)
    d_value = tl.zeros((BLOCK, BLOCK_K), tl.float32)
    ascending = tl.arange(0, 2 * BLOCK)
    descending = 2 * BLOCK - 2 - ascending
    for first_query in range(0, num_queries, BLOCK):
        query = first_query + tl.arange(0, BLOCK)
        is_query = query < num_queries
        q_tile = load_rows(q + offset, query, is_query, H * K, K, BLOCK_K)
        dy_tile = load_rows(dy + offset, query, is_query, H * K, K, BLOCK_K)
        maximum = tl.load(row_max + batch_head * num_queries + query, mask=is_query, other=float("inf"))
        total = tl.load(row_sum + batch_head * num_queries + query, mask=is_query, other=1.0)
        delta_tile = tl.load(delta + batch_head * num_queries + query, mask=is_query, other=0.0)
        low = first_query - first_key - (BLOCK - 1) + num_prefix
        k_d = load_window(k_r + head * K, index, low + ascending, num_queries, num_tokens, H * K, K, BLOCK_K)
        q_d = load_window(q_r + head * K, index, low + descending, num_queries, num_tokens, H * K, K, BLOCK_K)
        weights, d_scores = tile_gradient(
            q_tile, k_tile, v_tile, k_d, q_d, dy_tile, maximum, total, delta_tile, visible + batch * num_keys, seed,
            batch_head, first_query, first_key, num_prefix, num_keys, p, C2P, P2C, DROPOUT, BLOCK, PRECISION,
        )  # fmt: skip
        d_value += tl.dot(tl.trans(weights).to(dy_tile.dtype), dy_tile, input_precision=PRECISION)
        d_scores = tl.trans(d_scores)  # [keys, queries]
        d_key += tl.dot(d_scores.to(q_tile.dtype), q_tile, input_precision=PRECISION)
        if P2C:
            d_p2c = unskew(tl.where((key >= num_prefix)[:, None], d_scores, 0.0), BLOCK)
            d_key += tl.dot(d_p2c.to(q_d.dtype), q_d, input_precision=PRECISION)
    store_rows(dk + key_offset, key, is_key, H * K, d_key, K, BLOCK_K)
    store_rows(dv + key_offset, key, is_key, H * K, d_value, K, BLOCK_K)


@jit
def table_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, k_r: tl.tensor, q_r: tl.tensor,
    index: tl.tensor, visible: tl.tensor, seed: tl.tensor,
    dy: tl.tensor, row_max: tl.tensor, row_sum: tl.tensor, delta: tl.tensor, dk_d: tl.tensor, dq_d: tl.tensor,
    num_queries: int, num_tokens: int, num_prefix: int, p: float, num_reviews: int,
    H: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
    C2P: tl.constexpr, P2C: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    TRAIN_C2P: tl.constexpr, TRAIN_P2C: tl.constexpr,
) -> None:  # fmt: skip
    """Computes ∂K_d = unskew(∂A)ᵀ q and ∂Q_d = unskew(∂Aᵀ)ᵀ k of a diagonal.

    Program: (diagonal, head, part of the reviews).

    dk_d, dq_d: fp32 [parts, diagonals, 2N, H, K]
    """
    head, part, parts = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    num_keys = num_prefix + num_tokens
    query_tiles, key_tiles = tl.cdiv(num_queries, BLOCK), tl.cdiv(num_keys, BLOCK)
    diagonal = tl.program_id(0) - (key_tiles - 1)  # number of the query tile - number of the key tile
    low = diagonal * BLOCK - (BLOCK - 1) + num_prefix
    ascending = tl.arange(0, 2 * BLOCK)
    descending = 2 * BLOCK - 2 - ascending
    k_d = load_window(k_r + head * K, index, low + ascending, num_queries, num_tokens, H * K, K, BLOCK_K)
    q_d = load_window(q_r + head * K, index, low + descending, num_queries, num_tokens, H * K, K, BLOCK_K)
    d_k_d = tl.zeros((2 * BLOCK, BLOCK_K), tl.float32)
    d_q_d = tl.zeros((2 * BLOCK, BLOCK_K), tl.float32)
    for review in range(part, num_reviews, parts):
        batch, batch_head = tl.cast(review, tl.int64), review * H + head
        offset = batch * num_queries * H * K + head * K
        key_offset = batch * num_keys * H * K + head * K
        for tile in range(tl.maximum(diagonal, 0), tl.minimum(query_tiles, key_tiles + diagonal)):
            first_query, first_key = tile * BLOCK, (tile - diagonal) * BLOCK
            query, key = first_query + tl.arange(0, BLOCK), first_key + tl.arange(0, BLOCK)
            is_query = query < num_queries
            q_tile = load_rows(q + offset, query, is_query, H * K, K, BLOCK_K)
            dy_tile = load_rows(dy + offset, query, is_query, H * K, K, BLOCK_K)
            k_tile = load_rows(k + key_offset, key, key < num_keys, H * K, K, BLOCK_K)
            v_tile = load_rows(v + key_offset, key, key < num_keys, H * K, K, BLOCK_K)
            maximum = tl.load(row_max + batch_head * num_queries + query, mask=is_query, other=float("inf"))
            total = tl.load(row_sum + batch_head * num_queries + query, mask=is_query, other=1.0)
            delta_tile = tl.load(delta + batch_head * num_queries + query, mask=is_query, other=0.0)
            _, d_scores = tile_gradient(
                q_tile, k_tile, v_tile, k_d, q_d, dy_tile, maximum, total, delta_tile, visible + batch * num_keys, seed,
                batch_head, first_query, first_key, num_prefix, num_keys, p, C2P, P2C, DROPOUT, BLOCK, PRECISION,
            )  # fmt: skip
            d_scores = tl.where((key >= num_prefix)[None, :], d_scores, 0.0)
            if TRAIN_C2P:
                d_c2p = unskew(d_scores, BLOCK).to(q_tile.dtype)  # [queries, 2N]
                d_k_d += tl.dot(tl.trans(d_c2p), q_tile, input_precision=PRECISION)
            if TRAIN_P2C:
                d_p2c = unskew(tl.trans(d_scores), BLOCK).to(k_tile.dtype)  # [keys, 2N]
                d_q_d += tl.dot(tl.trans(d_p2c), k_tile, input_precision=PRECISION)
    rows = (part * tl.num_programs(0) + tl.program_id(0)) * 2 * BLOCK
    everywhere = ascending >= 0
    if TRAIN_C2P:
        store_rows(dk_d + head * K, rows + ascending, everywhere, H * K, d_k_d, K, BLOCK_K)
    if TRAIN_P2C:
        ascending_again = (descending + 2 * BLOCK) % (2 * BLOCK)  # the last row, which has no pair, stays the last
        store_rows(dq_d + head * K, rows + ascending_again, everywhere, H * K, d_q_d, K, BLOCK_K)


# -------------------------------------------------------------------------------------------------------- autograd


def tile_settings(head_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the padded head size, the tile size N, the rounding of products, and how Triton compiles.

    Tiles of 64 halve the loads, but double the cost of a skew per pair and need more registers than there are.
    """
    padded = max(16, 1 << (head_size - 1).bit_length())  # products have at least 16 columns
    half = dtype != torch.float32
    exact = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    return {
        "BLOCK_K": padded,
        "BLOCK": 32 if padded <= (128 if half else 64) else 16,
        "PRECISION": None if half else exact,
        "num_warps": 4 if half else 8,
        "num_stages": 1,
        "enable_fp_fusion": True,  # a·b + c in one operation; Triton 3.9 warns if it is not given
    }


class DisentangledAttentionFunction(torch.autograd.Function):
    """y of the module docstring, and its gradients with respect to q, k, v, K_r and Q_r."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_r: Tensor | None,
        q_r: Tensor | None,
        index: Tensor,
        visible: Tensor,
        num_prefix: int,
        p: float,
        seed: Tensor | None,
    ) -> Tensor:
        """q: [B, T, H, K];  k, v: [B, P + S, H, K];  k_r, q_r: [N, H, K];  index: int32 [T + S - 1];
        visible: int8 [B, P + S];  seed: int64 [1], None without dropout -> y [B, T, H, K]"""
        batch, num_queries, heads, head_size = q.shape
        ctx.sizes = (num_queries, k.size(1) - num_prefix, num_prefix, p)
        ctx.settings = {
            "H": heads,
            "K": head_size,
            "C2P": k_r is not None,
            "P2C": q_r is not None,
            "DROPOUT": seed is not None,
            **tile_settings(head_size, q.dtype),
        }
        y = torch.empty_like(q)
        row_max, row_sum = q.new_empty(2, batch, heads, num_queries, dtype=torch.float32)
        # an absent table or seed is never read; any tensor stands in for its address
        tables = (q if k_r is None else k_r, q if q_r is None else q_r)
        tensors = (q, k, v, *tables, index, visible, index if seed is None else seed)
        tiles = -(-num_queries // ctx.settings["BLOCK"])
        forward_kernel[(tiles * batch * heads,)](*tensors, y, row_max, row_sum, *ctx.sizes, **ctx.settings)
        ctx.save_for_backward(*tensors, y, row_max, row_sum)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dy: [B, T, H, K] -> the gradients of q, k, v, k_r, q_r"""
        *tensors, y, row_max, row_sum = ctx.saved_tensors
        q, k, v, k_r, q_r, index = tensors[:6]
        dy = dy.contiguous()
        delta = (dy.float() * y.float()).sum(-1).transpose(1, 2).contiguous()  # [B, H, T]
        inputs, block = (*tensors, dy, row_max, row_sum, delta), ctx.settings["BLOCK"]
        query_tiles, key_tiles = -(-q.size(1) // block), -(-k.size(1) // block)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        batch_heads = q.size(0) * q.size(2)
        query_kernel[(query_tiles * batch_heads,)](*inputs, dq, *ctx.sizes, **ctx.settings)
        key_kernel[(key_tiles * batch_heads,)](*inputs, dk, dv, *ctx.sizes, **ctx.settings)
        trains = [ctx.settings[name] and ctx.needs_input_grad[at] for name, at in (("C2P", 3), ("P2C", 4))]
        dk_r = dq_r = None
        if any(trains):
            diagonals = query_tiles + key_tiles - 1
            parts = min(q.size(0), max(1, PROGRAMS // (diagonals * q.size(2))))
            shape = (2, parts, diagonals, 2 * block, *q.shape[2:])
            windows = torch.empty(shape, device=q.device, dtype=torch.float32)
            flags = {"TRAIN_C2P": trains[0], "TRAIN_P2C": trains[1]}
            grid = (diagonals, q.size(2), parts)
            table_kernel[grid](*inputs, *windows, *ctx.sizes, q.size(0), **ctx.settings, **flags)
            rows = window_rows(index, q.size(1), key_tiles, block, ctx.sizes[2], diagonals)  # [diagonals · 2N]
            dk_r, dq_r = (
                sum_windows(window, rows, like=table) if trained else None
                for window, table, trained in zip(windows, (k_r, q_r), trains, strict=True)
            )
        return dq, dk, dv, dk_r, dq_r, None, None, None, None, None


def window_rows(index: Tensor, num_queries: int, key_tiles: int, block: int, num_prefix: int, diagonals: int) -> Tensor:
    """Returns the row of K_r of each row of the windows, -1 for a distance that does not occur: [diagonals · 2N]"""
    diagonal = torch.arange(diagonals, device=index.device) - (key_tiles - 1)
    low = diagonal * block - (block - 1) + num_prefix
    at = num_queries - 1 - (low[:, None] + torch.arange(2 * block, device=index.device)).flatten()
    occurs = (at >= 0) & (at < len(index))
    return torch.where(occurs, index[at.clamp(0, len(index) - 1)], -1)


def sum_windows(windows: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Sums the rows of the windows that belong to the same row of a table, by a product with 0 and 1: `index_add_` has
    no fixed order on a GPU.

    windows: fp32 [parts, diagonals, 2N, H, K];  rows: [diagonals · 2N] -> the shape and dtype of `like`, [N, H, K]
    """
    number = torch.arange(len(like), device=rows.device)[:, None]
    with torch.autocast(rows.device.type, enabled=False):
        total = (number == rows).float() @ windows.sum(0).flatten(0, 1).flatten(1)  # [N, H · K]
    return total.view(like.shape).to(like.dtype)


def disentangled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_r: Tensor | None,
    q_r: Tensor | None,
    index: Tensor,
    mask: Tensor,
    num_prefix: int = 0,
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Computes disentangled attention for the first T positions as queries.

    q: [B, H, T, K], divided by the scale;  k, v: [B, H, P + S, K], those of a prefix first;  k_r, q_r: [1, H, N, K]
    or None, q_r divided by the scale;  index: rows of k_r and q_r for the distances T - 1 … 1 - S, int32 [T + S - 1];
    mask: bool [B, P + S];  p, seed: of dropout, int64 [1], by default drawn from torch's default generator of the
    device -> [B, H, T, K], under autocast in its dtype. Raises ValueError for another dtype than those of
    MAX_HEAD_SIZE and for a machine without Triton.
    """
    if triton is None:
        raise ValueError("the package triton is not installed; it is part of torch for CUDA on Linux")
    if q.dtype not in MAX_HEAD_SIZE:
        raise ValueError(f"dtype {q.dtype} is not supported; supported: {', '.join(map(str, MAX_HEAD_SIZE))}")

    dtype = product_dtype(q)

    def token_major(x: Tensor) -> Tensor:
        """[B, H, T, K] -> [B, T, H, K], contiguous: no copy of what `split_heads` returns. Casts as autocast does."""
        return x.to(dtype).transpose(1, 2).contiguous()

    k_r, q_r = (None if table is None else token_major(table)[0] for table in (k_r, q_r))  # [N, H, K]
    if p > 0 and seed is None:
        seed = torch.randint(2**62, (1,), device=q.device)
    y = DisentangledAttentionFunction.apply(
        token_major(q), token_major(k), token_major(v), k_r, q_r,
        index, mask.contiguous().view(torch.int8), num_prefix, p, seed if p > 0 else None,
    )  # fmt: skip
    return y.transpose(1, 2)
