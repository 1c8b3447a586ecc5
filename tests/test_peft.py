"""What every method of the table must do, on every encoder."""

import json
import subprocess
import sys
from itertools import product

import pytest
import torch
from conftest import ENCODERS, ROOT, adapt, tiny, token_batch
from safetensors.torch import load_file, save_file

import peft
from nn.checkpoint import load_pretrained, save_pretrained
from nn.files import read_json, write_json
from peft import METHODS, load_adapter, merge, put_on, save_adapter, take_off, unmerge
from peft.files import ADAPTER, ADAPTER_CONFIG, ENCODER

ADAPTERS = [name for name, entry in METHODS.items() if entry.apply is not None]
both = pytest.mark.parametrize(("name", "method"), [(n, m) for n in ENCODERS for m in ADAPTERS])


def train_steps(model, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        ids, mask = token_batch([7, 5, 3], seed=step)
        torch.nn.functional.cross_entropy(model.train()(ids, mask), torch.tensor([0, 1, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()


@both
def test_frozen_stays_and_trainable_moves(name, method):
    model = adapt(tiny(name), method)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train_steps(model)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) != parameter.requires_grad, key
    assert model.classifier.weight.requires_grad
    assert model.pooler.dense.weight.requires_grad


@both
def test_what_is_random_is_trained(name, method):
    model = tiny(name)
    model.fresh = frozenset({"embeddings.word.weight"})
    assert adapt(model, method).embeddings.word.weight.requires_grad
    assert peft.trains_backbone(model)
    assert not peft.trains_backbone(adapt(tiny(name), method))


def test_saved_and_loaded_in_a_new_process(tmp_path):
    """Every method on every encoder, all in one other process."""
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


def test_files_are_those_of_huggingface_peft(tmp_path):
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


def test_target_names_that_mean_these_layers_alone(tmp_path):
    """BERT calls three different layers `dense`, the pooler's among them."""
    save_adapter(peft.apply(tiny("bert"), "lora", targets="all-linear"), tmp_path, "base")
    targets = read_json(tmp_path / ADAPTER_CONFIG)["target_modules"]
    assert targets == ["intermediate.dense", "output.dense", "self.key", "self.query", "self.value"]
    load_adapter(tiny("bert"), tmp_path)


def test_a_file_that_does_not_fit_is_refused_whole(tmp_path):
    save_adapter(peft.apply(tiny("bert"), "lora"), tmp_path, "base")
    tensors = load_file(tmp_path / ADAPTER)
    del tensors["base_model.model.classifier.weight"]
    save_file(tensors | {"extra": torch.zeros(1)}, tmp_path / ADAPTER)
    with pytest.raises(ValueError, match=r"2 problems.*missing base_model.model.classifier.weight; surplus extra"):
        load_adapter(tiny("bert"), tmp_path)
    with pytest.raises(ValueError, match="none of its target_modules"):
        load_adapter(tiny("deberta"), tmp_path)
    write_json(tmp_path / ADAPTER_CONFIG, read_json(tmp_path / ADAPTER_CONFIG) | {"peft_type": "IA3"})
    with pytest.raises(ValueError, match="'IA3' is not supported"):
        load_adapter(tiny("bert"), tmp_path)


def test_wrong_calls_say_what_is_known():
    with pytest.raises(ValueError, match="unknown method 'lorra'; known: none, head, lora"):
        peft.apply(tiny("bert"), "lorra")
    with pytest.raises(ValueError, match="lora has no option ranks; it has: rank"):
        peft.apply(tiny("bert"), "lora", ranks=3)
    with pytest.raises(ValueError, match="carries a lora adapter already"):
        peft.apply(peft.apply(tiny("bert"), "lora"), "lora")


@both
def test_adapters_are_switched_on_one_backbone(name, method):
    model, batch = tiny(name).eval(), token_batch([7, 4])
    adapters, expected = [], []
    for k in range(2):
        torch.manual_seed(k)
        adapt(model, method)
        train_steps(model, 1)
        expected.append(model.eval()(*batch))
        adapters.append(take_off(model))
        assert [key for key, _ in model.named_parameters()] == [key for key, _ in tiny(name).named_parameters()]
    for k in (0, 1, 0):
        assert torch.equal(put_on(model, adapters[k])(*batch), expected[k])
        with pytest.raises(ValueError, match="take it off first"):
            put_on(model, adapters[1 - k])
        take_off(model)
    with pytest.raises(ValueError, match="no adapter"):
        take_off(model)


@pytest.mark.parametrize("options", [{"dora": True}, {"rslora": True}, {"lora_bias": "all"}, {"lora_bias": "lora_only"},
                                     {"rank_pattern": "value=3 layers.1=1", "alpha_pattern": "query=2.5"}])  # fmt: skip
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_every_kind_of_lora_is_saved_whole(name, options, tmp_path):
    model, batch = adapt(tiny(name), "lora", **options), token_batch([7, 4])
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train_steps(model)
    assert all(p.requires_grad != torch.equal(p, before[key]) for key, p in model.named_parameters())
    save_adapter(model, tmp_path, "base")
    assert torch.equal(load_adapter(tiny(name), tmp_path).eval()(*batch), model.eval()(*batch))


@pytest.mark.parametrize("method", ["prefix", "p_tuning", "p_tuning_v2", "prompt"])
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_training_goes_on_from_an_adapter_directory(name, method, tmp_path):
    model = adapt(tiny(name), method)
    save_adapter(model, tmp_path, "base")
    again = load_adapter(tiny(name), tmp_path, trainable=True)
    assert (tmp_path / ENCODER).is_file() == (method in ("prefix", "p_tuning"))
    assert {key for key, p in again.named_parameters() if p.requires_grad} == {
        key for key, p in model.named_parameters() if p.requires_grad
    }
    for one in (model, again):
        torch.manual_seed(5)
        train_steps(one)
    for (key, p), (_, q) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(p, q), key


def test_the_lstm_encoder_of_p_tuning_trains_and_is_saved(tmp_path):
    model, batch = adapt(tiny("bert"), "p_tuning", prompt_encoder="lstm"), token_batch([7, 4])
    train_steps(model)
    save_adapter(model, tmp_path, "base")
    assert torch.equal(load_adapter(tiny("bert"), tmp_path).eval()(*batch), model.eval()(*batch))
    assert load_adapter(tiny("bert"), tmp_path, trainable=True).virtual.source.lstm is not None


def test_a_file_without_debertas_pooler_is_warned_of(tmp_path, capsys):
    save_adapter(adapt(tiny("deberta"), "lora"), tmp_path, "base")
    tensors = {key: t for key, t in load_file(tmp_path / ADAPTER).items() if ".pooler." not in key}
    save_file(tensors, tmp_path / ADAPTER)
    load_adapter(tiny("deberta"), tmp_path)
    assert "warning" not in capsys.readouterr().out  # the weights brought a pooler
    model = tiny("deberta")
    model.fresh = frozenset({"pooler.dense.weight", "pooler.dense.bias"})
    load_adapter(model, tmp_path)
    assert "leaves the pooler out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_qalora": True}, "not implemented: use_qalora = True"),
        (
            {"layers_to_transform": [0], "init_lora_weights": "pissa"},
            "layers_to_transform.*init_lora_weights = 'pissa'",
        ),
        ({"target_modules": ["query", "classifier"]}, "adapts the head"),
    ],
)
def test_settings_that_are_not_implemented_are_named(tmp_path, changes, message):
    save_adapter(adapt(tiny("bert"), "lora"), tmp_path, "base")
    write_json(tmp_path / ADAPTER_CONFIG, read_json(tmp_path / ADAPTER_CONFIG) | changes)
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny("bert"), tmp_path)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_of_another_shape_are_refused(method, tmp_path):
    save_adapter(adapt(tiny("bert"), method), tmp_path, "base")
    changes = {"num_layers": 3} if method == "prefix" else {"hidden_size": 15}
    with pytest.raises(ValueError, match="this model needs rows of"):
        load_adapter(tiny("bert", **changes), tmp_path)


def test_virtual_tokens_need_positions():
    model = tiny("bert", max_position_embeddings=30)
    peft.check_room(model, 30)
    adapt(model, "prompt")
    peft.check_room(model, 26)
    with pytest.raises(ValueError, match="4 virtual tokens and --max-length 27 need 31 positions; bert has 30"):
        peft.check_room(model, 27)
    peft.check_room(adapt(tiny("deberta"), "prefix"), 10_000)


@pytest.mark.parametrize("method", ["prompt", "prefix", "p_tuning", "p_tuning_v2"])
def test_virtual_tokens_cannot_be_merged(method):
    with pytest.raises(ValueError, match=f"a {method} adapter cannot be merged"):
        merge(adapt(tiny("bert"), method))
