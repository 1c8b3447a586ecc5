"""The account of a training step's memory, compared with measurements."""

import functools

import pytest
import torch
from conftest import adapt, tiny, token_batch
from memory_account import Live, account, saved_bytes

from nn.dropout import keep_mask
from nn.quant import quantize_int8
from nn.runtime import describe_memory, static_memory


def test_static_memory_counts_parameters():
    model = tiny("bert")
    count = sum(p.numel() for p in model.parameters())
    assert static_memory(model) == (4 * count, 4 * count, 8 * count)
    frozen = adapt(quantize_int8(tiny("bert")), "lora")
    trained = sum(p.numel() for p in frozen.parameters() if p.requires_grad)
    assert static_memory(frozen)[1:3] == (4 * trained, 8 * trained)
    assert static_memory(frozen).weights < 4 * count


def test_the_memory_line_of_a_run():
    model = tiny("bert", hidden_size=384, feed_forward_size=1536)
    size = 4 * sum(p.numel() for p in model.parameters()) / 2**20
    assert describe_memory(model) == f"memory: weights {size:,.0f} MiB, gradients and moments {3 * size:,.0f} MiB"
    assert describe_memory(model, average=True) == describe_memory(model) + f", running mean {size:,.0f} MiB"
    line = describe_memory(adapt(quantize_int8(model), "lora"))
    assert "(8 bits save 10)" in line
    assert line.endswith("gradients and moments 2 MiB (frozen weights save 43)"), line


def test_each_storage_counts_once_and_parameters_do_not_count():
    layer, x = torch.nn.Linear(5, 7), torch.randn(3, 5)
    assert saved_bytes(layer, lambda: layer(x).sum()) == 4 * 15
    assert saved_bytes(layer, lambda: (layer(x) + layer(x)).sum()) == 4 * 15
    assert saved_bytes(layer, lambda: layer(x).exp().sum()) == 4 * (15 + 21)


def test_live_bytes():
    with Live() as live:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)
        assert live.now == 4000
        del b, c
    assert (live.now, live.peak) == (0, 8000)
    with Live() as live:
        mask = keep_mask(torch.Size([1000]), 128)  # made by numpy
        assert live.now == 1000
        del mask
    assert (live.now, live.peak) == (0, 1000)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_the_account_equals_a_measured_step(name, mixed, checkpointing):
    """Equal within 15 %: the gradients of a layer exist briefly in addition to the saved activations.

    In addition to these, the backward pass of attention has tensors of a block's scores, one or, with relative terms,
    three.
    """
    sizes = {"hidden_size": 48, "num_layers": 5, "feed_forward_size": 192, "num_heads": 3}
    model = adapt(tiny(name, **sizes), "lora", targets="all-linear").train()
    model.checkpointing = checkpointing
    ids, mask = token_batch([60] * 8)
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=mixed)
    counted = account(model, ids, mask, autocast)
    with Live() as live:
        with autocast():
            loss = model(ids, mask).float().sum()
        loss.backward()
    scores = 8 * model.config.num_heads * 60**2 * (2 if mixed else 4)
    block = (3 if name == "deberta" else 1) * scores if checkpointing else 0
    assert 0.85 < (counted.saved + counted.gradients + block) / live.peak < 1.05
    assert model.checkpointing == checkpointing
    assert len(model.layers) == 5


def test_checkpointing_saves_memory():
    model, batch = tiny("bert", num_layers=6).train(), token_batch([50] * 4)
    autocast = functools.partial(torch.autocast, "cpu", enabled=False)
    plain = account(model, *batch, autocast)
    model.checkpointing = True
    assert account(model, *batch, autocast).saved < plain.saved / 3
    assert account(model, *batch, autocast, layers=12).saved > account(model, *batch, autocast).saved
