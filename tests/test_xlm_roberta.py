"""XLM-RoBERTa: RoBERTa under another name."""

from pathlib import Path

import pytest
import torch
from conftest import tiny, token_batch

from data.checked import read_json
from data.hub import CONFIG
from nn import MODELS
from nn.checkpoint import load_pretrained, save_pretrained
from nn.xlm_roberta import XLMRoberta


def test_logits_and_gradients_are_those_of_roberta():
    ours, roberta, (ids, mask) = tiny("xlm_roberta").eval(), tiny("roberta").eval(), token_batch([7, 4])
    assert ours.KEYS == roberta.KEYS
    roberta.load_state_dict(ours.state_dict())
    assert torch.equal(ours(ids, mask), roberta(ids, mask))
    gradients = (torch.autograd.grad(m(ids, mask).square().sum(), list(m.parameters())) for m in (ours, roberta))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_new_weights_are_those_of_roberta_with_the_same_seed():
    models = []
    for name in ("xlm_roberta", "roberta"):
        entry = MODELS[name]
        torch.manual_seed(0)
        models.append(entry.build(entry.build.Config(vocab_size=61, hidden_size=12, num_layers=2, num_heads=3)))
    for (key, a), (other, b) in zip(*(model.named_parameters() for model in models), strict=True):
        assert key == other
        assert torch.equal(a, b), key


def test_checkpoints_keep_the_model_type_and_the_published_prefix(tmp_path: Path):
    save_pretrained(tiny("xlm_roberta"), tmp_path)
    config = read_json(tmp_path / CONFIG)
    assert (config["model_type"], config["architectures"]) == ("xlm-roberta", ["XLMRobertaForSequenceClassification"])
    assert type(load_pretrained(tmp_path)) is XLMRoberta


@pytest.mark.parametrize("pad", [0, 1])
def test_the_first_position_follows_the_padding_row(pad):
    model = tiny("xlm_roberta", pad_token_id=pad).eval()
    ids, mask = token_batch([6])
    ids = ids.clamp(min=2)
    e = model.embeddings
    expected = e.norm(e.word(ids) + e.token_type.weight[0] + e.position.weight[pad + 1 : pad + 7])
    torch.testing.assert_close(model.embed(ids, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["roberta", "xlm_roberta"])
@pytest.mark.parametrize("shift", [0, 3])
def test_a_token_of_padding_inside_a_text_has_its_row_and_is_not_counted(name, shift):
    """As in the published code (create_position_ids_from_input_ids); some checkpoints pad with </s>."""
    model = tiny(name, pad_token_id=2).eval()
    ids, mask = torch.tensor([[7, 2, 9, 5, 2], [2, 8, 2, 0, 0]]), torch.ones(2, 5, dtype=torch.bool)
    rows = []
    for row in ids.tolist():
        number = 2 + shift
        rows.append([2 if token == 2 else (number := number + 1) for token in row])
    e = model.embeddings
    expected = e.norm(e.word(ids) + e.token_type.weight[0] + e.position.weight[torch.tensor(rows)])
    torch.testing.assert_close(model.embed(ids, mask, shift), expected, rtol=1e-5, atol=1e-5)
