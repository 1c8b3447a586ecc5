import json
import os
import pickle

import pytest
import torch
from conftest import ENCODERS, GOLDEN, tiny, token_batch
from hub_client import answers
from safetensors.torch import load_file, save_file

from data.checked import read_json
from data.files import write_json
from data.hub import CONFIG, INDEX, WEIGHTS, find_pretrained
from data.weight_files import weight_files
from nn import MODELS, checkpoint
from nn.checkpoint import load_pretrained, save_pretrained, translate
from nn.encoder import ACTIVATIONS
from nn.quant import quantize_int8


def rewrite(folder, change):
    """Saves the tensors of a checkpoint again after change(tensors)."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name, tmp_path):
    model = tiny(name)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    assert again.newly_initialized == frozenset()
    for (key, ours), (other, theirs) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert key == other
        assert torch.equal(ours, theirs)


def test_a_checkpoint_that_cannot_be_written_has_no_config(tmp_path, monkeypatch):
    """A later --merge into the same folder would take it for a checkpoint."""

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(tiny("bert"), tmp_path)
    assert not (tmp_path / CONFIG).exists()


@pytest.mark.parametrize("folder", sorted(path.parent for path in GOLDEN.glob("*/config.json")), ids=lambda p: p.name)
def test_published_to_ours_to_published_is_exact(folder, tmp_path):
    theirs = load_file(folder / WEIGHTS)
    save_pretrained(load_pretrained(folder), tmp_path)
    ours = load_file(tmp_path / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_published_names_are_unique():
    for name in ENCODERS:
        names = [translate(key, MODELS[name].build.KEYS) for key, _ in tiny(name).named_parameters()]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_a_missing_or_foreign_prefix_loads(checkpoint, prefix):
    before = load_pretrained(checkpoint).eval()(*token_batch([5]))
    rewrite(checkpoint, lambda tensors: {key.replace("bert.", prefix, 1): t for key, t in tensors.items()})
    assert torch.equal(load_pretrained(checkpoint).eval()(*token_batch([5])), before)


def test_legacy_names_and_pretraining_extras_load(checkpoint):
    before = load_pretrained(checkpoint).eval()(*token_batch([5]))

    def age(tensors):
        old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
               for k, t in tensors.items()}  # fmt: skip
        return old | {"cls.predictions.bias": torch.zeros(61), "bert.embeddings.position_ids": torch.arange(512)[None]}

    rewrite(checkpoint, age)
    assert torch.equal(load_pretrained(checkpoint).eval()(*token_batch([5])), before)


def test_fp16_files_become_fp32(checkpoint):
    rewrite(checkpoint, lambda tensors: {key: t.half() for key, t in tensors.items()})
    assert {p.dtype for p in load_pretrained(checkpoint).parameters()} == {torch.float32}
    assert {p.dtype for p in load_pretrained(checkpoint, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_numbers_beyond_the_format_are_not_written(tmp_path):
    model = tiny("bert")
    model.classifier.bias.data[0] = 1e6
    with pytest.raises(ValueError, match=r"classifier.bias has numbers beyond torch.float16; float32 and bfloat16"):
        save_pretrained(model, tmp_path, dtype=torch.float16)
    assert not any(tmp_path.iterdir())
    save_pretrained(model, tmp_path, dtype=torch.bfloat16)
    assert load_pretrained(tmp_path).classifier.bias[0] == torch.tensor(1e6).bfloat16()


def test_a_missing_head_is_initialized_and_named(checkpoint):
    head_names = ("classifier", "bert.pooler")
    rewrite(checkpoint, lambda tensors: {k: t for k, t in tensors.items() if not k.startswith(head_names)})
    model = load_pretrained(checkpoint, ("a", "b", "c"))
    head = {"classifier.weight", "classifier.bias", "pooler.dense.weight", "pooler.dense.bias"}
    assert model.newly_initialized == head
    assert model.classifier.weight.shape == (3, 12)
    assert 0 < model.pooler.dense.weight.std() < 0.04
    assert torch.equal(model.classifier.bias, torch.zeros(3))


@pytest.mark.parametrize("lacking", ["classifier.bias", "classifier.weight", "bert.pooler.dense.bias"])
def test_what_a_file_has_of_a_layer_is_kept(checkpoint, lacking):
    before = load_pretrained(checkpoint)
    rewrite(checkpoint, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != lacking})
    model, new = load_pretrained(checkpoint), lacking.removeprefix("bert.")
    assert model.newly_initialized == {new}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name)) == (name != new), name


def test_shards_load_like_one_file(checkpoint):
    tensors = load_file(checkpoint / WEIGHTS)
    before, keys = load_pretrained(checkpoint), sorted(tensors)
    where = {}
    for number in range(3):
        name = f"model-0000{number + 1}-of-00003.safetensors"
        save_file({key: tensors[key] for key in keys[number::3]}, checkpoint / name)
        where |= dict.fromkeys(keys[number::3], name)
    write_json(checkpoint / INDEX, {"weight_map": where})
    (checkpoint / WEIGHTS).unlink()
    after = load_pretrained(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    (checkpoint / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00003"):
        load_pretrained(checkpoint)


def test_pytorch_model_bin_is_converted_once_into_our_cache(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = load_pretrained(checkpoint)
    torch.save({key: t.half() for key, t in load_file(checkpoint / WEIGHTS).items()}, checkpoint / "pytorch_model.bin")
    (checkpoint / WEIGHTS).unlink()
    for _ in range(2):
        after = load_pretrained(checkpoint)
        for a, b in zip(before.parameters(), after.parameters(), strict=True):
            assert b.dtype == torch.float32
            assert torch.equal(a.half().float(), b)
    (converted,) = (tmp_path / "cache").rglob(WEIGHTS)
    assert weight_files(checkpoint) == [converted]
    assert sorted(path.name for path in checkpoint.iterdir()) == [CONFIG, "pytorch_model.bin"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "model."])
def test_the_prefix_of_a_wrapper_is_named(checkpoint, prefix):
    own = load_file(checkpoint / WEIGHTS) | {"cls.predictions.bias": torch.zeros(3)}  # of the pretraining, not read
    save_file({prefix + name: t for name, t in own.items()}, checkpoint / WEIGHTS)
    with pytest.raises(ValueError, match=rf"the name of every tensor begins with '{prefix}'; save the state"):
        load_pretrained(checkpoint)


def test_a_pickle_that_does_not_fit_is_not_converted(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (checkpoint / WEIGHTS).unlink()
    torch.save({"bert.something": torch.zeros(2)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"surplus bert\.something; missing"):
        load_pretrained(checkpoint)
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_malicious_pickle_is_refused_and_not_run(checkpoint, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'owned'}",)

    (checkpoint / WEIGHTS).unlink()
    torch.save({"bert.embeddings.LayerNorm.weight": Payload()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match="was refused"):
        load_pretrained(checkpoint)
    assert not (tmp_path / "owned").exists()


def test_all_problems_are_listed_at_once(checkpoint):
    def spoil(tensors):
        del tensors["bert.encoder.layer.1.output.dense.bias"]
        tensors["bert.encoder.layer.0.output.dense.weight"] = torch.zeros(3, 5)
        tensors["bert.embeddings.LayerNorm.bias"] = torch.zeros(12, dtype=torch.int64)
        return tensors | {"bert.something": torch.zeros(2)}

    rewrite(checkpoint, spoil)
    with pytest.raises(ValueError, match="4 problems") as caught:
        load_pretrained(checkpoint)
    for part in (
        "missing bert.encoder.layer.1.output.dense.bias",
        "misshaped bert.encoder.layer.0.output.dense.weight: [3, 5], the config implies [12, 17]",
        "bert.embeddings.LayerNorm.bias does not hold floating point numbers",
        "surplus bert.something",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(checkpoint, value):
    def spoil(tensors):
        tensors["bert.embeddings.LayerNorm.weight"][3] = value
        return tensors

    rewrite(checkpoint, spoil)
    with pytest.raises(ValueError, match=r"bert\.embeddings\.LayerNorm\.weight holds NaN or infinity"):
        load_pretrained(checkpoint)


def test_a_file_cut_short(checkpoint):
    data = (checkpoint / WEIGHTS).read_bytes()
    for size in (0, 5, 100, len(data) - 1):
        (checkpoint / WEIGHTS).write_bytes(data[:size])
        with pytest.raises(ValueError, match="cut short or damaged"):
            load_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported: attention_lstm, bert"),
        ({"hidden_act": "laplace"}, "unknown activation 'laplace'"),
        ({"hidden_size": 15}, "misshaped"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not supported"),
        ({"num_hidden_layers": 3}, "missing bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "surplus bert.encoder.layer.1"),
    ],
)
def test_a_config_that_does_not_fit(checkpoint, change, message):
    write_json(checkpoint / CONFIG, read_json(checkpoint / CONFIG) | change)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        load_pretrained(checkpoint)


def test_deberta_without_relative_attention_is_refused(tmp_path):
    save_pretrained(tiny("deberta"), tmp_path)
    config = read_json(tmp_path / CONFIG)
    for value in (
        config | {"relative_attention": False},
        {k: v for k, v in config.items() if k != "relative_attention"},
    ):
        write_json(tmp_path / CONFIG, value)
        with pytest.raises(ValueError, match="relative_attention = False is not supported"):
            load_pretrained(tmp_path)


def test_label_names_are_kept(checkpoint):
    config = read_json(checkpoint / CONFIG)
    write_json(checkpoint / CONFIG, config | {"id2label": {"0": "bad", "1": "good"}})
    assert load_pretrained(checkpoint).config.labels == ("bad", "good")
    write_json(checkpoint / CONFIG, config | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}})
    assert load_pretrained(checkpoint).config.labels == ("negative", "positive")


def test_sources_of_weights(tmp_path, checkpoint):
    assert find_pretrained(checkpoint) == checkpoint
    with pytest.raises(FileNotFoundError, match="is a file"):
        find_pretrained(checkpoint / WEIGHTS)
    for name in ("./nothing/here", "/nowhere", "a b", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="not a directory and does not look like a hub id"):
            find_pretrained(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        load_pretrained(tmp_path / "empty")


def test_offline_and_not_cached_is_one_line(tmp_path):
    settings = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    (line,) = answers(("find_pretrained", "some/model"), settings=settings)
    assert line.startswith("error 'some/model' is neither a directory here nor complete in the hub cache")
    assert "\n" not in line


def test_other_names_of_config_fields(tmp_path):
    """DistilBERT's config may have BERT's names; the number of heads leaves no trace in the tensors."""
    model, batch = tiny("distilbert").eval(), token_batch([7, 4])
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_attention_heads"] = config.pop("n_heads")
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(load_pretrained(tmp_path).eval()(*batch), model(*batch))
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_heads": 1}))
    with pytest.raises(ValueError, match="num_attention_heads and n_heads are one field; they have different values"):
        load_pretrained(tmp_path)


def test_the_saved_config_has_the_published_fields(checkpoint):
    config = json.loads((checkpoint / CONFIG).read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["num_hidden_layers"] == 2
    assert config["id2label"] == {"0": "negative", "1": "positive"}


def test_weights_that_two_layers_share_are_saved_for_both(tmp_path):
    model = tiny("bert").eval()
    model.layers[1].attention.key.weight = model.layers[0].attention.key.weight
    save_pretrained(model, tmp_path)
    ids, mask = token_batch([5, 3])
    torch.testing.assert_close(load_pretrained(tmp_path)(ids, mask), model(ids, mask))


def test_the_scales_of_8_bit_weights_are_not_rounded(tmp_path):
    model = tiny("bert")
    model.layers[0].attention.key.weight.data[0] = 1e-7  # its scale is 0 in fp16
    save_pretrained(quantize_int8(model), tmp_path, dtype=torch.float16)
    rows = load_pretrained(tmp_path).layers[0].attention.key.dequantized()
    torch.testing.assert_close(rows[0], torch.full_like(rows[0], 1e-7))
    with pytest.raises(TypeError, match=r"dtype torch\.int8 is not a floating-point dtype"):
        save_pretrained(tiny("bert"), tmp_path, dtype=torch.int8)


def test_every_activation_can_be_pickled():
    for name in ACTIVATIONS:
        pickle.dumps(tiny("bert", hidden_act=name))
