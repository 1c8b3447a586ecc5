"""Properties of every method of the table on every encoder, and adapter files."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import ENCODERS, ROOT, adapt, tiny, token_batch
from safetensors.torch import load_file, save_file
from torch.nn import Module

import peft
from data.files import read_json, write_json
from nn.checkpoint import load_pretrained, save_pretrained
from peft import METHODS, attach_adapter, check_positions, detach_adapter, load_adapter, merge, save_adapter, unmerge
from peft.files import ADAPTER, ADAPTER_CONFIG, ENCODER

ADAPTERS = [name for name, entry in METHODS.items() if entry.apply is not None]
VIRTUAL = ["prefix", "prompt", "p_tuning", "p_tuning_v2"]
both = pytest.mark.parametrize(("name", "method"), [(n, m) for n in ENCODERS for m in ADAPTERS])


def train_steps(model: Module, steps: int = 3) -> None:
    """Trains `model` for a few steps, each on another batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        ids, mask = token_batch([7, 5, 3], seed=step)
        torch.nn.functional.cross_entropy(model.train()(ids, mask), torch.tensor([0, 1, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()


@both
def test_training_changes_exactly_the_trainable_parameters(name, method):
    model = adapt(tiny(name), method)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train_steps(model)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) != parameter.requires_grad, key
    assert model.classifier.weight.requires_grad
    assert model.pooler.dense.weight.requires_grad


@both
def test_newly_initialized_parameters_stay_trainable(name, method):
    model = tiny(name)
    model.newly_initialized = frozenset({"embeddings.word.weight"})
    assert adapt(model, method).embeddings.word.weight.requires_grad
    assert peft.trains_backbone(model)
    assert not peft.trains_backbone(adapt(tiny(name), method))


def test_an_adapter_loads_in_a_new_process(tmp_path):
    """One other process loads every method on every encoder."""
    ids, mask = token_batch([7, 4])
    expected = {}
    for name, method in product(ENCODERS, ADAPTERS):
        folder = tmp_path / f"{name}-{method}"
        save_pretrained(tiny(name), folder / "base")
        model = adapt(load_pretrained(folder / "base"), method)
        train_steps(model)
        save_adapter(model, folder / "adapter", str(folder / "base"))
        expected[folder.name] = model.eval()(ids, mask)
    program = f"""
import torch, peft
from nn.checkpoint import load_pretrained

ids, mask, out = torch.tensor({ids.tolist()}), torch.tensor({mask.tolist()}), {{}}
for name in {[*expected]}:
    folder = {str(tmp_path)!r} + "/" + name
    out[name] = peft.load_adapter(load_pretrained(folder + "/base"), folder + "/adapter").eval()(ids, mask)
torch.save(out, {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@both
def test_padding_changes_nothing(name, method):
    model = adapt(tiny(name), method).eval()
    ids, mask = token_batch([9, 4])
    torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :4], mask[1:, :4]), rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------- merge and exchange


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("method", [m for m in ADAPTERS if METHODS[m].merge])
def test_merged_equals_unmerged(name, method):
    model, batch = adapt(tiny(name), method).eval(), token_batch([9, 4])
    before, plain = model(*batch), tiny(name)
    torch.testing.assert_close(merge(model)(*batch), before, rtol=1e-5, atol=1e-6)
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]
    with pytest.raises(ValueError, match="no adapter to merge"):
        merge(model)
    torch.testing.assert_close(unmerge(model)(*batch), before, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="nothing was merged"):
        unmerge(model)


@pytest.mark.parametrize("method", VIRTUAL)
def test_virtual_tokens_cannot_be_merged(method):
    with pytest.raises(ValueError, match=f"a {method} adapter cannot be merged"):
        merge(adapt(tiny("bert"), method))


@both
def test_two_adapters_share_one_backbone(name, method):
    model, batch = tiny(name).eval(), token_batch([7, 4])
    adapters, expected = [], []
    for k in range(2):
        torch.manual_seed(k)
        adapt(model, method)
        train_steps(model, 1)
        expected.append(model.eval()(*batch))
        adapters.append(detach_adapter(model))
        assert [key for key, _ in model.named_parameters()] == [key for key, _ in tiny(name).named_parameters()]
    for k in (0, 1, 0):
        assert torch.equal(attach_adapter(model, adapters[k])(*batch), expected[k])
        with pytest.raises(ValueError, match=f"already has a {method} adapter; detach it first"):
            attach_adapter(model, adapters[1 - k])
        detach_adapter(model)
    with pytest.raises(ValueError, match="the model has no adapter"):
        detach_adapter(model)


def test_unknown_names_and_a_second_adapter_raise():
    with pytest.raises(ValueError, match="unknown method 'lorra'; known: none, head, lora"):
        peft.apply(tiny("bert"), "lorra")
    with pytest.raises(ValueError, match="lora has no option ranks; it has: rank"):
        peft.apply(tiny("bert"), "lora", ranks=3)
    with pytest.raises(ValueError, match="already has a lora adapter; detach it first"):
        peft.apply(peft.apply(tiny("bert"), "lora"), "lora")
    with pytest.raises(ValueError, match="lora is for pretrained encoders; lstm is trained whole"):
        peft.apply(tiny("lstm"), "lora")


# ------------------------------------------------------------------------------------------------- position table


@pytest.mark.parametrize(
    ("name", "method", "available"),
    [
        *((name, method, 30) for name in ("bert", "deberta", "distilbert") for method in ("prompt", "p_tuning")),
        *(("bert", method, 30) for method in ("prefix", "p_tuning_v2")),
        *(("roberta", method, 28) for method in VIRTUAL),  # its positions begin at pad_token_id + 1 = 2
    ],
)
def test_virtual_tokens_may_fill_the_position_table_and_no_more(name, method, available):
    """The check agrees with the model itself, which raises at the first input that is too long."""
    changes = {"position_biased_input": True} if name == "deberta" else {}
    model = adapt(tiny(name, max_position_embeddings=30, pad_token_id=int(name == "roberta"), **changes), method)
    longest = available - 4
    check_positions(model, longest)
    model(torch.full((1, longest), 5), torch.ones(1, longest, dtype=torch.bool))
    message = f"4 virtual tokens and --max-length {longest + 1} need {available + 1} positions; {model.model_type} has"
    with pytest.raises(ValueError, match=f"{message} {available}: lower"):
        check_positions(model, longest + 1)
    with pytest.raises(ValueError, match="positions; lower --max-length"):
        model(torch.full((1, longest + 1), 5), torch.ones(1, longest + 1, dtype=torch.bool))


@pytest.mark.parametrize("method", ["prefix", "p_tuning_v2"])
@pytest.mark.parametrize(("name", "changes"), [("deberta", {"position_biased_input": True}), ("distilbert", {})])
def test_a_prefix_that_shifts_no_positions_needs_none(name, changes, method):
    model = adapt(tiny(name, max_position_embeddings=30, **changes), method)
    assert model.embeddings.position.num_embeddings == 30
    check_positions(model, 30)
    model(torch.full((1, 30), 5), torch.ones(1, 30, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "method"),
    [("lstm", "none"), ("bert", "none"), ("bert", "head"), ("bert", "lora"), ("deberta", "prompt")],
)
def test_models_without_virtual_tokens_or_without_a_position_table_need_no_positions(name, method):
    check_positions(adapt(tiny(name), method), 10_000)


# ---------------------------------------------------------------------------------------------------------- files


def test_files_have_huggingface_pefts_layout(tmp_path):
    model = peft.apply(tiny("deberta"), "lora", rank=2)
    save_adapter(model, tmp_path, "some/base")
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert (config["peft_type"], config["task_type"], config["r"]) == ("LORA", "SEQ_CLS", 2)
    assert config["target_modules"] == ["query_proj", "value_proj"]
    assert config["modules_to_save"] == ["classifier", "pooler"]
    tensors = load_file(tmp_path / ADAPTER)
    layer = "base_model.model.deberta.encoder.layer.1.attention.self.query_proj"
    assert tensors[f"{layer}.lora_A.weight"].shape == (2, 12)
    assert tensors[f"{layer}.lora_B.weight"].shape == (12, 2)
    assert {"base_model.model.pooler.dense.weight", "base_model.model.classifier.bias"} < tensors.keys()
    assert len(tensors) == 2 * 2 * 2 + 4


def test_saved_target_names_select_the_adapted_layers_only(tmp_path):
    """In BERT three different layers are called `dense`, the pooler's among them."""
    save_adapter(peft.apply(tiny("bert"), "lora", targets="all-linear"), tmp_path, "base")
    targets = read_json(tmp_path / ADAPTER_CONFIG)["target_modules"]
    assert targets == ["intermediate.dense", "output.dense", "self.key", "self.query", "self.value"]
    load_adapter(tiny("bert"), tmp_path)


def test_a_file_that_does_not_fit_raises_with_all_problems(tmp_path):
    save_adapter(peft.apply(tiny("bert"), "lora"), tmp_path, "base")
    tensors = load_file(tmp_path / ADAPTER)
    del tensors["base_model.model.classifier.weight"]
    changes = {"extra": torch.zeros(1), "base_model.model.classifier.bias": torch.zeros(3)}
    save_file(tensors | changes, tmp_path / ADAPTER)
    message = (
        r"3 problems\): missing base_model.model.classifier.weight; surplus extra; "
        r"misshaped base_model.model.classifier.bias: \[3\], not \[2\]"
    )
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny("bert"), tmp_path)
    with pytest.raises(ValueError, match="none of its target_modules"):
        load_adapter(tiny("deberta"), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"dora": True},
        {"rslora": True},
        {"lora_bias": "all"},
        {"lora_bias": "lora_only"},
        {"rank_pattern": "value=3 layers.1=1", "alpha_pattern": "query=2.5"},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_every_kind_of_lora_is_saved_completely(name, options, tmp_path):
    model, batch = adapt(tiny(name), "lora", **options), token_batch([7, 4])
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train_steps(model)
    assert all(p.requires_grad != torch.equal(p, before[key]) for key, p in model.named_parameters())
    save_adapter(model, tmp_path, "base")
    assert torch.equal(load_adapter(tiny(name), tmp_path).eval()(*batch), model.eval()(*batch))


@pytest.mark.parametrize("method", VIRTUAL)
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_training_continues_from_an_adapter_directory(name, method, tmp_path):
    model = adapt(tiny(name), method)
    save_adapter(model, tmp_path, "base")
    again = load_adapter(tiny(name), tmp_path, trainable=True)
    assert (tmp_path / ENCODER).is_file() == (method in ("prefix", "p_tuning"))
    assert trainable_names(again) == trainable_names(model)
    for one in (model, again):
        torch.manual_seed(5)
        train_steps(one)
    for (key, p), (_, q) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(p, q), key


def trainable_names(model: Module) -> set[str]:
    """Returns the names of the trainable parameters."""
    return {key for key, p in model.named_parameters() if p.requires_grad}


def test_the_lstm_encoder_of_p_tuning_is_trained_and_saved(tmp_path):
    model, batch = adapt(tiny("bert"), "p_tuning", prompt_encoder="lstm"), token_batch([7, 4])
    train_steps(model)
    save_adapter(model, tmp_path, "base")
    assert torch.equal(load_adapter(tiny("bert"), tmp_path).eval()(*batch), model.eval()(*batch))
    assert load_adapter(tiny("bert"), tmp_path, trainable=True).virtual.source.lstm is not None


def test_a_file_without_debertas_pooler_gives_a_warning(tmp_path, capsys):
    save_adapter(adapt(tiny("deberta"), "lora"), tmp_path, "base")
    tensors = {key: t for key, t in load_file(tmp_path / ADAPTER).items() if ".pooler." not in key}
    save_file(tensors, tmp_path / ADAPTER)
    load_adapter(tiny("deberta"), tmp_path)
    assert "warning" not in capsys.readouterr().out  # the weights contain a pooler
    model = tiny("deberta")
    model.newly_initialized = frozenset({"pooler.dense.weight", "pooler.dense.bias"})
    load_adapter(model, tmp_path)
    assert f"warning: neither {tmp_path} nor the weights contain the pooler" in capsys.readouterr().out


def change_config(folder: Path, changes: dict[str, object]) -> None:
    """Changes fields of an adapter_config.json."""
    write_json(folder / ADAPTER_CONFIG, read_json(folder / ADAPTER_CONFIG) | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "'IA3' is not supported"),
        ({"use_qalora": True}, "not supported: use_qalora = True"),
        (
            {"layers_to_transform": [0], "init_lora_weights": "pissa"},
            r"layers_to_transform = \[0\], init_lora_weights = 'pissa'",
        ),
        ({"target_modules": ["query", "classifier"]}, "adapts the head"),
    ],
)
def test_unsupported_settings_of_a_file_raise(tmp_path, changes, message):
    save_adapter(adapt(tiny("bert"), "lora"), tmp_path, "base")
    change_config(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny("bert"), tmp_path)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_of_another_width_raise(method, tmp_path):
    save_adapter(adapt(tiny("bert"), method), tmp_path, "base")
    changes = {"num_layers": 3} if method == "prefix" else {"hidden_size": 15}
    with pytest.raises(ValueError, match="this model needs rows of"):
        load_adapter(tiny("bert", **changes), tmp_path)
