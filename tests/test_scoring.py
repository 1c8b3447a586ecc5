"""Scoring: passes in several threads, and packed weights (nn/packed_linear.py)."""

import threading

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ADAPTERS, ENCODERS, adapt, tiny, token_batch
from torch.nn import Linear, Parameter, Sequential

from data.corpus import build_corpus
from data.errors import Diverged
from data.tokenization import train_tokenizer
from nn.packed_linear import can_pack, packed_weights
from nn.quant import Int8Linear, quantize_rows
from nn.runtime import Machine, cast_once, prepared_once
from peft.scoring import score

CPU = torch.device("cpu")
FP32, BF16 = Machine(CPU, torch.float32), Machine(CPU, torch.bfloat16)
packs = pytest.mark.skipif(not can_pack(CPU, torch.bfloat16), reason="oneDNN has no products in bf16 here")


def corpus_of(count: int):
    """Returns reviews of many lengths, in a vocabulary of the tiny models."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["a", "good", "bad", "film"], size)) for size in rng.integers(1, 12, count)]
    frame = pd.DataFrame({"review": texts, "sentiment": [n % 2 for n in range(count)]})
    tokenizer = train_tokenizer("wordpiece", frame["review"], 30)
    return build_corpus(tokenizer, frame, 12, "head", None)


@pytest.mark.parametrize("name", ["bert", "deberta", "lstm", "cnn", "nb_linear"])
def test_logits_in_threads_equal_those_of_one_thread(name: str, two_threads, monkeypatch):
    model, corpus = tiny(name), corpus_of(60)
    monkeypatch.setattr("peft.scoring.SCORING_TOKENS", 32)
    monkeypatch.setattr("nn.runtime.SCORING_TOKENS", 32)
    one = Machine(CPU, torch.float64)
    monkeypatch.setattr(Machine, "autocast", lambda self: torch.autocast("cpu", enabled=False))
    model.double()
    threads, barrier = set(), threading.Barrier(2, timeout=20)

    def meet(*_) -> None:
        if threading.current_thread() not in threads:
            threads.add(threading.current_thread())
            barrier.wait()

    handle = model.register_forward_hook(meet)
    many = score(model, corpus, one, bar=False)
    handle.remove()
    assert len(threads) == 2
    monkeypatch.setattr("peft.scoring.separate_threads", lambda *_: 1)
    np.testing.assert_allclose(score(model, corpus, one, bar=False), many, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("two_threads")
def test_a_sharded_model_has_one_thread(monkeypatch):
    """Its ranks gather the weights of each layer together."""
    model, threads = tiny("bert"), set()
    monkeypatch.setattr("peft.scoring.is_sharded", lambda _: True)
    monkeypatch.setattr("nn.runtime.SCORING_TOKENS", 32)
    model.register_forward_hook(lambda *_: threads.add(threading.current_thread()))
    score(model, corpus_of(60), FP32, bar=False)
    assert threads == {threading.current_thread()}


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_thread_is_raised_and_the_model_is_as_before(monkeypatch):
    model, corpus = tiny("bert").train(), corpus_of(60)
    monkeypatch.setattr("nn.runtime.SCORING_TOKENS", 32)
    handle = model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score(model, corpus, FP32, bar=False)
    handle.remove()
    model.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(Diverged, match="not finite for 60 of 60"):
        score(model, corpus, BF16, bar=False)
    assert model.training
    assert torch.get_num_threads() == 2
    assert all("forward" not in vars(module) for module in model.modules())


# ------------------------------------------------------------------------------------------------- packed weights


@packs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "width", "out"), [(1, 3, 2), (7, 64, 33), (300, 96, 128)])
def test_packed_products_equal_those_of_linear(bias: bool, rows: int, width: int, out: int):
    torch.manual_seed(0)
    layer, x = Linear(width, out, bias=bias), torch.randn(2, rows, width)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with packed_weights([layer], rows=64):
            found, half = layer(x), layer(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)
    assert torch.equal(found, half)
    assert "forward" not in vars(layer)
    assert layer.weight.dtype == torch.float32


@packs
@pytest.mark.parametrize("method", ["none", *ADAPTERS])
@pytest.mark.parametrize("name", ENCODERS)
def test_packed_models_equal_those_that_are_cast(name: str, method: str):
    if (name, method) == ("modernbert", "bitfit"):
        pytest.skip("has no biases")
    model = adapt(tiny(name), method).eval()
    before = {key: p.clone() for key, p in model.named_parameters()}
    ids, mask = token_batch([7, 5, 3])
    logits, calls = [], []
    for prepare in (cast_once, prepared_once):
        with torch.inference_mode(), prepare(model, BF16), BF16.autocast():
            calls.append(sum("forward" in vars(module) for module in model.modules()))
            logits.append(model(ids, mask).float())
    torch.testing.assert_close(*logits, rtol=0.02, atol=0.02)
    assert calls[0] == 0 < calls[1]
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


@packs
def test_a_layer_with_a_forward_of_its_own_keeps_it():
    layer = Linear(4, 3)
    layer.forward = lambda x: x + 1
    with packed_weights([layer], rows=2):
        assert torch.equal(layer(torch.zeros(2, 4)), torch.ones(2, 4))
    assert "forward" in vars(layer)


@packs
@pytest.mark.parametrize("path", ["auto", "bf16", "int8", "fp32"])
def test_8_bit_layers_that_multiply_in_bf16_are_packed(path: str):
    torch.manual_seed(0)
    layer = Int8Linear(*quantize_rows(torch.randn(33, 64)), bias=Parameter(torch.randn(33)), path=path)
    model, x = Sequential(layer), torch.randn(9, 64)
    expected = x @ layer.dequantized().T + layer.bias
    with torch.inference_mode(), prepared_once(model, BF16), BF16.autocast():
        assert ("forward" in vars(layer)) == (path in ("auto", "bf16"))
        torch.testing.assert_close(model(x).float(), expected, rtol=0.02, atol=0.1)
    assert "forward" not in vars(layer)


@packs
def test_hooks_of_packed_layers_are_called():
    layer, seen = Linear(4, 3), []
    layer.register_forward_hook(lambda _, __, y: seen.append(y.dtype))
    with torch.no_grad(), packed_weights([layer], rows=2):
        layer(torch.zeros(2, 4))
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_other_precisions_are_not_packed(dtype: torch.dtype):
    assert not can_pack(CPU, dtype)
    assert not can_pack(torch.device("meta"), torch.bfloat16)


@packs
def test_a_package_without_packed_products_casts(monkeypatch):
    monkeypatch.setattr("nn.packed_linear.FUNCTIONS", ("_no_such_function",))
    model = tiny("bert").eval()
    with prepared_once(model, BF16):
        assert model.classifier.weight.dtype == torch.bfloat16
