"""Every model, method and loss on a GPU against the numbers of the CPU."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import CLASSIFYING, adapt, both, required_shape, reviews_for, tiny, token_batch
from torch import Tensor
from torch.nn import Module

from data.flags import field_names
from losses import OBJECTIVES
from nn import MODELS
from nn.dropout import Dropout, set_dropout
from nn.quant import Int8Linear, int8_product, quantize_int8, quantize_rows
from nn.runtime import Machine, cast_once, describe_device, peak_memory
from peft import METHODS

FP32 = {"rtol": 1e-5, "atol": 1e-5}  # of logits and losses
FP32_GRADIENT = 1e-5  # relative error of all gradients as one vector
HALF = {torch.bfloat16: 0.05, torch.float16: 0.01}  # relative error of logits as one vector, against fp32 on the CPU
HALF_GRADIENT = {torch.bfloat16: 0.1, torch.float16: 0.02}
INT8 = 0.03  # of an 8-bit product against another of its paths, relative error as one vector
CPU = torch.device("cpu")
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
RANDOM = ("mixed",)  # losses with random draws: a GPU has other random numbers than a CPU


def still(model: Module) -> Module:
    """Sets all dropout rates to 0, so that the two devices compute the same function in training mode."""
    set_dropout(model, 0.0)
    for module in model.modules():
        for name in ("word_dropout", "embedding_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def relative_error(x: Tensor, expected: Tensor) -> float:
    """Returns ‖x - expected‖ / ‖expected‖."""
    x, expected = x.detach().cpu().double(), expected.detach().cpu().double()
    return ((x - expected).norm() / expected.norm()).item()


def on(device: torch.device, model: Module) -> Module:
    """Returns a copy of a model on a device."""
    return copy.deepcopy(model).to(device)


def gradients(model: Module) -> Tensor:
    """Returns the gradients of all trained parameters in one vector, and clears them."""
    found = [p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(found)


def step(model: Module, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Runs a training step of three reviews without an optimizer. Returns logits and all gradients, on the CPU."""
    ids, mask = (x.to(device) for x in token_batch([9, 7, 4]))
    with Machine(device, dtype).autocast():
        logits = model(ids, mask)
    logits.float().square().sum().backward()
    return logits.detach().float().cpu(), gradients(model)


def compare(model: Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Compares a step on the device with the step in fp32 on the CPU."""
    expected, expected_gradient = step(model, CPU)
    logits, gradient = step(on(device, model), device, dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(logits, expected, **FP32)
        assert relative_error(gradient, expected_gradient) < FP32_GRADIENT
    else:
        assert relative_error(logits, expected) < HALF[dtype]
        assert relative_error(gradient, expected_gradient) < HALF_GRADIENT[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_of_every_model(name: str, dtype: torch.dtype, device: torch.device):
    compare(still(tiny(name)).train(), device, dtype)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_a_method_is_applied_where_the_model_is(method: str, device: torch.device):
    model = adapt(tiny("bert").to(device), method)
    assert {parameter.device.type for parameter in model.parameters()} == {device.type}


@both
def test_logits_and_gradients_of_every_method(name: str, method: str, device: torch.device):
    compare(still(adapt(tiny(name), method)).train(), device)


def test_logits_and_gradients_of_dora(device: torch.device):
    compare(still(adapt(tiny("deberta"), "lora", dora=True, targets="all-linear")).train(), device)


@pytest.mark.parametrize("objective", CLASSIFYING)
@pytest.mark.parametrize("name", ["lstm", "capsule_lstm", "bert", "deberta"])
def test_every_loss(name: str, objective: str, device: torch.device):
    """Values and gradients; of a loss with random draws only that they are finite and as many."""
    shape, entry = required_shape(objective), OBJECTIVES[objective]
    if not shape.keys() <= field_names(MODELS[name].build.Config):
        pytest.skip(f"{objective} is for other models")
    options = entry.options()
    model = tiny(name, **shape)
    entry.prepare(model, options, None)
    results = []
    for place in (CPU, device):
        moved = on(place, still(model).train())
        loss, _ = entry.objective(moved, reviews_for(objective).to(place), options)
        loss.backward()
        results.append((loss.detach().cpu(), gradients(moved)))
    (expected, expected_gradient), (loss, gradient) = results
    if objective in RANDOM:
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert gradient.shape == expected_gradient.shape
    else:
        torch.testing.assert_close(loss, expected, **FP32)
        assert relative_error(gradient, expected_gradient) < FP32_GRADIENT


@pytest.mark.parametrize("dtype", PRECISIONS[:2], ids=str)
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_8_bit_models(name: str, dtype: torch.dtype, device: torch.device):
    """Logits without gradients, and LoRA's gradients through 8-bit layers."""
    model = still(adapt(quantize_int8(tiny(name)), "lora")).train()
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.path = "fp32"
    expected, expected_gradient = step(model, CPU)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.path = "auto"
    logits, gradient = step(on(device, model), device, dtype)
    bound = HALF_GRADIENT[torch.bfloat16]
    assert relative_error(logits, expected) < bound
    assert relative_error(gradient, expected_gradient) < bound
    with torch.inference_mode(), Machine(device, dtype).autocast():
        scored = on(device, model).eval()(*(x.to(device) for x in token_batch([9, 7, 4])))
    assert relative_error(scored, expected) < bound


@pytest.mark.parametrize("sizes", [(3, 5, 11), (17, 24, 16), (64, 96, 40)], ids=str)
def test_8_bit_products_of_any_size(sizes: tuple[int, int, int], device: torch.device):
    """The integer product is exact, with an outlier column and with sizes that torch._int_mm does not take."""
    rows, width, out = sizes
    torch.manual_seed(0)
    x, (q, s) = torch.randn(rows, width), quantize_rows(torch.randn(out, width))
    x[1, 2] = 9.0
    ours = int8_product(x.to(device), q.to(device), s.to(device)).cpu()
    torch.testing.assert_close(ours, int8_product(x, q, s), **FP32)
    assert relative_error(ours, x @ (q * s[:, None]).t()) < INT8


def moments(function: Callable[[Tensor], Tensor], device: torch.device) -> tuple[float, float]:
    """Returns the share of zeros and the mean of a function of a million ones."""
    y = function(torch.ones(1000, 1000, device=device))
    return (y == 0).float().mean().item(), y.mean().item()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_has_its_rate_and_expectation(p: float, device: torch.device):
    """Within five standard deviations; a CPU rounds p to 1/256."""
    layer = Dropout(p).train()
    sigma = (p * (1 - p) / 1e6) ** 0.5
    for function in (layer, lambda x: layer.mask(x)[0].float() / (1 - layer.mask(x)[1])):
        dropped, mean = moments(function, device)
        assert abs(dropped - p) < 5 * sigma + 1 / 512
        assert abs(mean - 1) < 6 * sigma / (1 - p)
    torch.manual_seed(5)
    first = layer(torch.ones(99, device=device))
    torch.manual_seed(5)
    assert torch.equal(layer(torch.ones(99, device=device)), first)


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_weights_that_are_cast_once_give_the_same_bits(name: str, device: torch.device):
    model = on(device, tiny(name)).eval()
    ids, mask = (x.to(device) for x in token_batch([7, 5, 3]))
    machine = Machine(device, torch.bfloat16)
    with torch.inference_mode(), machine.autocast():
        expected = model(ids, mask)
        with cast_once(model, machine):
            assert torch.equal(model(ids, mask), expected)


def test_a_batch_moves_with_all_its_parts(device: torch.device):
    batch = reviews_for("mixed")._replace(class_weights=torch.tensor([0.5, 2.0]))
    moved = batch.to(device).to(device)
    parts: list[Any] = [*moved[:4], moved.class_weights, moved.teacher, *moved.unlabelled[:4]]
    assert {x.device.type for x in parts} == {device.type}
    for x, expected in zip(parts, [*batch[:4], batch.class_weights, batch.teacher, *batch.unlabelled[:4]], strict=True):
        assert torch.equal(x.cpu(), expected)


def test_the_machine_is_described(device: torch.device):
    assert describe_device(device)
    assert peak_memory(device) is not None
