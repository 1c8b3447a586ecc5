"""Inputs of other dtypes and shapes than usual: the same numbers, or one clear error."""

import pytest
import torch
from conftest import adapt, tiny, token_batch

import peft
from losses.margin import margin_loss
from nn.quant import int8_product


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_narrow_word_ids_of_a_one_hot_cnn_do_not_overflow(dtype: torch.dtype):
    model, (ids, mask) = tiny("cnn", one_hot=True, filters=50).eval(), token_batch([7, 5, 2])
    assert torch.equal(model(ids.to(dtype), mask), model(ids, mask))


@pytest.mark.parametrize("name", ["bert", "gru", "cnn"])
def test_features_check_their_inputs(name: str):
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 5])
    with pytest.raises(ValueError, match="padding is on the right"):
        model.features(ids.flip(1), mask.flip(1))
    with pytest.raises(TypeError, match=r"not torch\.bool"):
        model.features(ids, mask.long())
    with pytest.raises(ValueError, match="the texts have no tokens"):
        model(ids[:, :0], mask[:, :0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dora_is_unmerged_after_a_cast(dtype: torch.dtype):
    model, batch = adapt(tiny("bert"), "lora", dora=True).eval(), token_batch([7, 5])
    before = model(*batch).float()
    peft.merge(model)
    peft.unmerge(model.to(dtype))
    torch.testing.assert_close(model(*batch).float(), before, rtol=0.05, atol=0.05)


def test_labels_of_the_margin_loss_may_be_int32():
    lengths, labels = torch.rand(4, 3), torch.tensor([0, 2, 1, 1])
    assert torch.equal(margin_loss(lengths, labels.int()), margin_loss(lengths, labels))


def test_outliers_of_float64_are_multiplied():
    x, q, s = torch.eye(3).double() * 9, torch.ones(2, 3, dtype=torch.int8), torch.ones(2).double()
    torch.testing.assert_close(int8_product(x, q, s), torch.full((3, 2), 9.0))
