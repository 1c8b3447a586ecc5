"""Passes that are computed at the same time (nn/threads.py), in training with dropout masks of their own."""

import threading
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ENCODERS, adapt, tiny, training_of
from torch import Tensor

import train
from data.batches import Batch
from data.corpus import Corpus
from data.errors import NotFinite, Stopped
from data.orders import step_batches
from nn.dropout import Dropout, mask_generator, set_dropout
from nn.encoder import checkpointed
from nn.runtime import Machine
from nn.threads import ITEMS_PER_THREAD, in_threads
from nn.training import add_gradients

FP32 = Machine(torch.device("cpu"), torch.float32)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [2, 4, 2 * ITEMS_PER_THREAD, 2 * ITEMS_PER_THREAD + 1])
def test_items_are_shared_among_single_threads_in_order(count: int):
    barrier = threading.Barrier(2, timeout=20)  # two items are computed at the same time

    def square(n: int) -> tuple[int, int, bool]:
        if n < 2:
            barrier.wait()
        return n * n, torch.get_num_threads(), torch.is_inference_mode_enabled()

    with torch.inference_mode():
        found = list(in_threads(square, list(range(count)), 2))
    assert found == [(n * n, 1, False) for n in range(count)]
    assert torch.get_num_threads() == 2


def test_the_threads_of_torch_are_divided():
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert list(in_threads(lambda _: torch.get_num_threads(), [0, 1], 2)) == [2, 2]
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [0, 1, 3, 2 * ITEMS_PER_THREAD - 1])
def test_a_few_items_are_computed_by_this_thread(count: int):
    names = in_threads(lambda _: threading.current_thread().name, list(range(count)), 2)
    expected = [threading.current_thread().name] * count
    assert list(names) == expected


@pytest.mark.usefixtures("two_threads")
def test_few_results_are_computed_before_they_are_asked_for():
    """Each may be the gradient of a whole model."""
    begun: list[int] = []
    with closing(in_threads(lambda n: begun.append(n) or n, list(range(100)), 2)) as results:
        assert next(results) == 0
        time.sleep(0.1)
        assert sorted(begun) == [0, 1, 2]


@pytest.mark.usefixtures("two_threads")
def test_an_interrupt_cancels_the_items_that_have_not_begun():
    begun = []
    results = in_threads(lambda n: begun.append(n) or time.sleep(0.01) or n, list(range(1000)), 2)
    with pytest.raises(KeyboardInterrupt), closing(results):
        interrupted_at(results, begun)
    assert len(begun) < 1000
    assert torch.get_num_threads() == 2
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def interrupted_at(results, begun: list[int]) -> None:
    """Raises KeyboardInterrupt after the third result."""
    for number in results:
        assert number in begun
        if number == 2:
            raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------- masks of a thread


def test_the_masks_of_a_thread_depend_on_its_generator_only():
    dropout, x, state = Dropout(0.5).train(), torch.ones(1000), torch.get_rng_state()
    masks = []
    for _ in range(2):
        with mask_generator(torch.Generator().manual_seed(1)):
            masks += [dropout(x), dropout(x)]
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(torch.get_rng_state(), state)
    other: list[Tensor] = []
    with mask_generator(torch.Generator().manual_seed(1)):
        thread = threading.Thread(target=lambda: other.append(dropout(x)))  # draws from the default generator
        thread.start()
        thread.join()
        assert torch.equal(dropout(x), masks[0])
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), other[0])


def test_checkpointing_leaves_the_generator_of_all_threads_alone(monkeypatch):
    """Of two threads that restored its state, one would restore that of the other."""
    layer, x = Dropout(0.5).train(), torch.ones(100, requires_grad=True)
    y = checkpointed(layer, True)(x)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_rng_state", lambda state: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # the default generator is restored
            y.square().sum().backward()
        with mask_generator(torch.Generator().manual_seed(1)):
            y = checkpointed(layer, True)(x)
        y.square().sum().backward()
    assert torch.equal(x.grad, 4 * y.detach())


# ------------------------------------------------------------------------------------------------- gradients of a step


def passes_of_step(count: int = 4) -> list[Batch]:
    """Returns a step of 2 * count examples in `count` passes."""
    rows = [[number % 7 + 1] * (number % 3 + 2) for number in range(2 * count)]
    corpus = Corpus.from_rows(rows, labels=[number % 2 for number in range(len(rows))], pad_id=0)
    return list(step_batches(corpus, None, [np.arange(len(rows))], number=0, num_splits=count))


def gradients(
    t: SimpleNamespace, batches: list[Batch], seed: int = 3
) -> tuple[list[Tensor | None], list[float], Tensor]:
    """Returns the gradients of a step, the losses of its passes, and the random state after it."""
    torch.manual_seed(seed)
    for p in t.trainable:
        p.grad = None
    passes = train.gradient(t, batches, sum(len(batch.labels) for batch in batches))
    return [p.grad for p in t.trainable], [loss.item() for _, loss, _ in passes], torch.get_rng_state()


def check_equal(found: tuple, expected: tuple) -> None:
    """Checks two results of `gradients`, which may differ by the rounding of sums."""
    assert torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)
    for own, other in zip(found[0], expected[0], strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "peft", "loss"),
    [(name, "none", "ce") for name in ENCODERS] + [("deberta", "lora", "rdrop"), ("bert", "prefix", "ce")],
)
def test_two_threads_give_the_gradient_of_one(
    name: str, peft: str, loss: str, checkpointing: bool, two_threads, monkeypatch
):
    model = tiny(name)
    if peft != "none":
        adapt(model, peft)
    set_dropout(model.train(), 0.3)
    model.checkpointing = checkpointing
    t, batches, used = training_of(model, loss), passes_of_step(), set()
    barrier = threading.Barrier(2, timeout=20)

    def meet(*_) -> None:
        if threading.current_thread() not in used:
            used.add(threading.current_thread())
            barrier.wait()

    handle = model.register_forward_hook(meet)
    found = gradients(t, batches)
    handle.remove()
    assert len(used) == 2
    assert any(gradient is not None for gradient in found[0])
    monkeypatch.setattr(train, "passes_at_once", lambda _: 1)
    check_equal(found, gradients(t, batches))
    model.checkpointing = not checkpointing
    check_equal(found, gradients(t, batches))
    other = [(a, b) for a, b in zip(found[0], gradients(t, batches, seed=4)[0], strict=True) if a is not None]
    assert not all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in other)  # other masks


@pytest.mark.usefixtures("two_threads")
def test_gradients_in_threads_are_the_same_in_every_run():
    """The sum of several passes has one order."""
    model = tiny("bert").train()
    t, batches = training_of(model), passes_of_step(12)
    first = gradients(t, batches)
    for _ in range(3):
        for own, other in zip(gradients(t, batches)[0], first[0], strict=True):
            assert torch.equal(own, other)


def test_word_networks_other_objectives_and_one_thread_have_one_pass_at_a_time(two_threads, monkeypatch):
    assert train.passes_at_once(training_of(tiny("bert"))) == 2
    assert train.passes_at_once(training_of(tiny("lstm"))) == 1
    assert train.passes_at_once(training_of(tiny("bert"), "supcon")) == 1
    torch.set_num_threads(8)
    assert train.passes_at_once(training_of(tiny("bert"))) == 2
    torch.set_num_threads(1)
    assert train.passes_at_once(training_of(tiny("bert"))) == 1
    torch.set_num_threads(2)
    monkeypatch.setattr(train, "is_sharded", lambda _: True)
    assert train.passes_at_once(training_of(tiny("bert"))) == 1


@pytest.mark.usefixtures("two_threads")
def test_a_loss_that_is_not_finite_and_an_interrupt_in_threads():
    model = tiny("bert").train()
    t, batches = training_of(model), passes_of_step()
    t.interrupt.received = 15
    with pytest.raises(Stopped):
        gradients(t, batches)
    t.interrupt.received = 0
    model.classifier.bias.data.fill_(torch.nan)
    with pytest.raises(NotFinite) as found:
        gradients(t, batches)
    assert found.value.rows == batches[0].rows.tolist()
    assert torch.get_num_threads() == 2


def test_gradients_of_passes_are_added():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    add_gradients([a, b], [torch.ones(2), None])
    add_gradients([a, b], [torch.full((2,), 2.0), None])
    assert a.grad.tolist() == [3, 3]
    assert b.grad is None
