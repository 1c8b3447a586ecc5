"""The Triton kernels of disentangled attention on a GPU, against the plain form in float64 and FlexAttention.

    TRITON_INTERPRET=1 SENTIMENT_TEST_DEVICE=cpu python -m pytest -n 0 tests/gpu/test_gpu_attention.py

runs the tests of the kernels on a CPU, where the package triton is installed, with fp32 and fp16 at small sizes.
"""

import math
import os
from typing import Any

import pytest
import torch
from conftest import tiny, token_batch
from flex import compiled, flex_disentangled
from test_triton_attention import plain
from torch import Tensor

from nn.deberta import DisentangledAttention, rows_by_distance
from nn.triton_attention import disentangled_attention, has_triton, runs_on

ERROR = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}  # relative, of a result as one vector
FLEX_ERROR = 2e-3  # its products in fp32 may be rounded to TF32
SIZES = [(37, 41, 0, 5), (1, 41, 0, 64), (67, 67, 3, 64), (131, 257, 31, 24), (512, 512, 0, 64)]  # T, S, P, K
TENSORS = ("q", "k", "v", "k_r", "q_r")
B, H = 2, 3
INTERPRETED = has_triton() and os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def kernel_device(device: torch.device) -> torch.device:
    if not runs_on(device) and not INTERPRETED:
        pytest.skip("the kernels need a GPU, or Triton's interpreter")
    return device


def skip_if_interpreted(reason: str, condition: bool = True) -> None:
    if INTERPRETED and condition:
        pytest.skip(f"Triton's interpreter: {reason}")


def inputs(sizes: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Draws the arguments of `disentangled_attention` on a device; the second review has padding."""
    num_queries, length, prefix, head_size = sizes
    torch.manual_seed(0)
    index, first, last = rows_by_distance(num_queries, length, 64, 300, device)
    lengths = {"q": num_queries, "k": prefix + length, "v": prefix + length}
    made: dict[str, Any] = {name: torch.randn(B, H, size, head_size) for name, size in lengths.items()}
    made |= {name: torch.randn(1, H, last - first + 1, head_size) for name in ("k_r", "q_r")}
    for name in ("q", "q_r"):  # as with the scale of the layer
        made[name] /= math.sqrt(3 * head_size)
    made = {name: x.to(device, dtype).requires_grad_() for name, x in made.items()}
    mask = torch.arange(prefix + length) < torch.tensor([prefix + length, prefix + length // 2 + 1])[:, None]
    return made | {"index": index, "mask": mask.to(device), "num_prefix": prefix}


def on_cpu(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments on the CPU in float64; the gradients of the copies reach the originals."""
    moved = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in given.items()}
    return moved | {name: moved[name].double() for name in TENSORS}


def results(y: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    """Returns y and the gradients of a fixed random sum of y, in float64 on the CPU."""
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    found = torch.autograd.grad(y, [given[name] for name in TENSORS], upstream)
    return {name: x.detach().cpu().double() for name, x in zip(("y", *TENSORS), (y, *found), strict=True)}


def compare(ours: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    """Compares values and gradients, each as one vector."""
    for name, x in expected.items():
        error = ((ours[name] - x).norm() / x.norm()).item()
        assert error < bound, f"{name}: {error}"


@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients(sizes: tuple[int, int, int, int], dtype: torch.dtype, kernel_device: torch.device):
    skip_if_interpreted("no products in bf16", dtype == torch.bfloat16)
    skip_if_interpreted("slow", sizes[1] > 100)
    given = inputs(sizes, kernel_device, dtype)
    compare(results(disentangled_attention(**given), given), results(plain(**on_cpu(given)), given), ERROR[dtype])


@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_dropout_has_one_mask_in_all_passes(dtype: torch.dtype, kernel_device: torch.device):
    """v = 1 (identity) shows the mask: then the values and gradients for another v are those with this mask."""
    skip_if_interpreted("no products in bf16", dtype == torch.bfloat16)
    given, p, seed = inputs((61, 61, 3, 64), kernel_device, dtype), 0.1, torch.tensor([2**61], device=kernel_device)
    shown = torch.eye(64, device=kernel_device, dtype=dtype).expand(B, H, -1, -1)
    visible = torch.ones_like(given["mask"])
    keep = disentangled_attention(**given | {"v": shown, "mask": visible}, p=p, seed=seed) != 0
    sigma = math.sqrt(p * (1 - p) / keep.numel())
    assert abs(keep.float().mean().item() - (1 - p)) < 5 * sigma
    ours = results(disentangled_attention(**given, p=p, seed=seed), given)
    compare(ours, results(plain(**on_cpu(given), p=p, keep=keep.cpu()), given), ERROR[dtype])


def test_equal_inputs_give_equal_bits(kernel_device: torch.device):
    """No sum has an order that changes from run to run."""
    size, dtype = (67, torch.float16) if INTERPRETED else (257, torch.bfloat16)
    given, seed = inputs((size, size, 0, 64), kernel_device, dtype), torch.tensor([7], device=kernel_device)
    first, second = (results(disentangled_attention(**given, p=0.1, seed=seed), given) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_memory_does_not_grow_with_the_square_of_the_length(kernel_device: torch.device):
    """Forward and backward of 4,096 tokens take less than one matrix of scores in bf16, and four times 1,024 tokens."""
    skip_if_interpreted("measures the memory of a GPU")
    peaks = []
    for length in (1024, 4096):
        given = inputs((length, length, 0, 64), kernel_device, torch.bfloat16)
        torch.cuda.reset_peak_memory_stats(kernel_device)
        before = torch.cuda.memory_allocated(kernel_device)
        y = disentangled_attention(**given, p=0.1)
        torch.autograd.grad(y.sum(), [given[name] for name in TENSORS])
        peaks.append(torch.cuda.max_memory_allocated(kernel_device) - before)
    assert peaks[1] < B * H * 4096**2 * 2
    assert peaks[1] < 4.5 * peaks[0]


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("sizes", [(67, 67, 0, 16), (128, 128, 3, 64)], ids=str)
def test_flex_attention_agrees(sizes: tuple[int, int, int, int], device: torch.device):
    """Compiled on a GPU. On a CPU uncompiled and without gradients, which torch does not have there."""
    given = inputs(sizes, device, torch.float32)
    expected = results(plain(**on_cpu(given)), given)
    if device.type == "cpu":
        with torch.no_grad():
            y = flex_disentangled(**{name: x.detach() if name in TENSORS else x for name, x in given.items()})
        compare({"y": y.double()}, {"y": expected["y"]}, ERROR[torch.float32])
    else:
        compare(results(flex_disentangled(**given, attend=compiled()), given), expected, FLEX_ERROR)


@pytest.mark.parametrize("method", ["none", "prefix"])
@pytest.mark.parametrize("queries", [1, None, torch.tensor([[6, 0, 2], [3, 1, 0]])], ids=["[CLS]", "all", "explicit"])
def test_the_model_with_kernels_equals_the_plain_model(queries: Any, method: str, device: torch.device, monkeypatch):
    """On the CPU both are the plain form."""
    model = tiny("deberta").eval().to(device)
    ids, mask = (x.to(device) for x in token_batch([7, 4]))
    pair = tuple(torch.randn(1, 3, 5, 4, device=device) for _ in range(2))
    prefix = None if method == "none" else [pair] * 2
    queries = queries.to(device) if isinstance(queries, Tensor) else queries
    found = []
    for kernel in (True, False):
        monkeypatch.setattr(DisentangledAttention, "KERNEL", kernel)
        h = model.encode(model.embed(ids, mask), mask, prefix, queries)
        trained = [p for name, p in model.named_parameters() if name.split(".")[0] not in model.HEAD]
        found.append((h, *torch.autograd.grad(h.square().sum(), trained)))
    ours, expected = (torch.cat([x.flatten() for x in part]) for part in found)
    assert ((ours - expected).norm() / expected.norm()).item() < ERROR[torch.float32]
