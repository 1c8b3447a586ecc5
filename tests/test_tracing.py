"""Models that torch.export, torch.jit.trace and torch.func record or transform: other inputs have the same numbers."""

import warnings

import pytest
import torch
from conftest import adapt, tiny, token_batch
from torch.export import Dim, export
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from nn.quant import quantize
from nn.tracing import cached, is_traced

FLOAT32 = {"rtol": 1e-4, "atol": 1e-6}
LENGTHS = ([7, 5, 2], [4, 6])


@pytest.mark.parametrize("name", ["deberta", "modernbert", "nb_linear"])
def test_an_exported_model_takes_other_batches_and_lengths(name: str):
    model, (ids, mask) = tiny(name).eval(), token_batch(LENGTHS[0])
    shape = {0: Dim("batch", max=64), 1: Dim("length", max=16)}
    exported = export(model, (ids, mask), dynamic_shapes=(shape, shape)).module()
    for lengths in LENGTHS:
        batch = token_batch(lengths)
        torch.testing.assert_close(exported(*batch), model(*batch), **FLOAT32)
        assert type(model(*batch)) is torch.Tensor  # the fake tensors of the export are not kept


@pytest.mark.parametrize("name", ["lstm", "cnn_lstm", "bert"])
def test_a_model_traced_without_padding_reads_padding(name: str):
    model, (ids, mask) = tiny(name).eval(), token_batch(LENGTHS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, torch.jit.TracerWarning))
        traced = torch.jit.trace(model, (ids, torch.ones_like(mask)), check_trace=False)
    torch.testing.assert_close(traced(ids, mask), model(ids, mask), **FLOAT32)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", ["deberta", "lstm", "gru", "nb_linear", "lora"])
def test_the_gradients_of_single_examples_add_up_to_that_of_the_batch(name: str):
    model = (adapt(tiny("bert"), "lora") if name == "lora" else tiny(name)).eval()
    (ids, mask), labels = token_batch(LENGTHS[0]), torch.tensor([0, 1, 1])
    weights = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}

    def loss(weights, ids, mask, label):
        return cross_entropy(functional_call(model, weights, (ids[None], mask[None])), label[None])

    singles = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, ids, mask, labels)
    cross_entropy(model(ids, mask), labels).backward()
    for key, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(singles[key].mean(0), p.grad, **FLOAT32)


def test_results_of_a_trace_are_not_kept():
    @cached
    def zeros(count: int) -> torch.Tensor:
        return torch.zeros(count)

    with torch._subclasses.FakeTensorMode():
        assert type(zeros(2)) is not torch.Tensor
    assert type(zeros(2)) is torch.Tensor
    assert zeros(2) is zeros(2)
    assert not is_traced()


def test_tables_of_4_bit_weights_survive_a_trace():
    model = quantize(tiny("bert", hidden_size=64, num_heads=2, feed_forward_size=64), "nf4").eval()
    batch = token_batch(LENGTHS[0])
    expected = model(*batch)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        model(*batch)
    torch.testing.assert_close(model(*batch), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lstm", "gru", "capsule_lstm", "deberta", "cnn"])
def test_shapes_are_computed_without_numbers(name: str):
    with torch.device("meta"):
        model = tiny(name).eval()
    ids, mask = (tensor.to("meta") for tensor in token_batch(LENGTHS[0]))
    assert model(ids, mask).shape == (3, 2)
