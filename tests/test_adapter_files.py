"""Adapter files: their layout, what huggingface/peft writes, class names, and adapters in runs."""

import json
from pathlib import Path

import pytest
import torch
from conftest import (
    ADAPTERS,
    SMALL_OPTIONS,
    VIRTUAL,
    adapt,
    assert_same,
    change_json,
    tiny,
    token_batch,
    train_steps,
    weights,
)
from safetensors.torch import load_file, save_file
from torch.nn import Module

import eval as evaluation
import peft
import train
from data.checked import read_json
from data.files import write_json
from data.flags import field_names
from data.hub import ADAPTER, ADAPTER_CONFIG, ENCODER, WEIGHTS, adapter_options
from data.resolve import resolve
from nn.checkpoint import load_pretrained, save_pretrained
from nn.quant import quantize_int8
from peft import (
    METHODS,
    attach_adapter,
    detach_adapter,
    load_adapted,
    load_adapter,
    save_adapter,
)
from peft.files import save_base
from peft.rules import in_layers

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


@pytest.mark.parametrize(("first", "second"), [("prefix", "p_tuning_v2"), ("p_tuning", "prompt")])
def test_an_adapter_is_saved_over_one_with_an_encoder(first: str, second: str, tmp_path):
    """The encoder of the first would compute the virtual tokens of the second, if it is trained further."""
    width = {"prefix_hidden": tiny("bert").config.hidden_size} if first == "prefix" else {}
    save_adapter(adapt(tiny("bert"), first, **width), tmp_path, "base")
    trained = adapt(tiny("bert"), second).eval()
    save_adapter(trained, tmp_path, "base")
    again = load_adapter(tiny("bert"), tmp_path, trainable=True).eval()
    torch.testing.assert_close(again(*token_batch([7, 4])), trained(*token_batch([7, 4])))


@pytest.mark.parametrize("method", ["prefix", "p_tuning_v2"])
def test_a_prefix_keeps_its_dropout(method: str, tmp_path):
    save_adapter(adapt(tiny("bert"), method, prefix_dropout=0.5), tmp_path, "base")
    assert load_adapter(tiny("bert"), tmp_path, trainable=True).virtual.dropout.p == 0.5


def test_a_prefix_for_another_number_of_heads_is_refused(tmp_path):
    model = adapt(tiny("bert"), "p_tuning_v2")
    save_adapter(model, tmp_path, "base")
    other = tiny("bert", num_heads=2)
    with pytest.raises(ValueError, match="the prefix is for 3 heads; the backbone has 2"):
        load_adapter(other, tmp_path)
    with pytest.raises(ValueError, match="the prefix is for 3 heads; the model has 2"):
        peft.attach_adapter(other, peft.detach_adapter(model))


def test_a_quantized_backbone_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="quantized weights are not saved as a backbone"):
        save_base(adapt(quantize_int8(tiny("bert")), "lora"), tmp_path)


def test_a_resized_word_table_is_explained(tmp_path):
    """huggingface/peft saves the whole table if tokens were added."""
    save_adapter(peft.apply(tiny("bert"), "lora"), tmp_path, "base")
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    rows, width = tiny("bert").embeddings.word.weight.shape
    save_file(load_file(tmp_path / ADAPTER) | {name: torch.zeros(rows + 1, width)}, tmp_path / ADAPTER)
    with pytest.raises(
        ValueError, match=r"misshaped .* \(if tokens were added .* resize the backbone's embeddings, load"
    ):
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


@pytest.mark.parametrize(("adapted", "backbone", "method"), [
    ("bert", "deberta", "lora"),
    ("modernbert", "bert", "lora"),
    ("electra", "distilbert", "ia3"),
    ("roberta", "modernbert", "bitfit"),
])  # fmt: skip
def test_an_adapter_of_another_architecture_is_one_line(tmp_path, adapted, backbone, method):
    save_adapter(peft.apply(tiny(adapted), method), tmp_path, "base")
    save_pretrained(tiny(backbone), tmp_path / "backbone")
    model = load_pretrained(tmp_path / "backbone")
    message = f"it adapts layers of {adapted}, but the backbone .*backbone has those of {backbone}; --base names the"
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"dora": True},
        {"rslora": True},
        {"lora_bias": "all"},
        {"lora_bias": "lora_only"},
        {"rank_pattern": "layers.0=3 layers.1=1", "alpha_pattern": "layers.1=2.5"},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["bert", "deberta", "modernbert"])
def test_every_kind_of_lora_is_saved_completely(name, options, tmp_path):
    if name == "modernbert" and "lora_bias" in options:
        pytest.skip("modernbert has no biases")
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
    change_json(tmp_path / ADAPTER_CONFIG, modules_to_save=["classifier", "score"])  # as huggingface/peft writes it
    load_adapter(tiny("deberta"), tmp_path)
    assert "warning" not in capsys.readouterr().out  # the weights contain a pooler
    model = tiny("deberta")
    model.newly_initialized = frozenset({"pooler.dense.weight", "pooler.dense.bias"})
    load_adapter(model, tmp_path)
    assert f"warning: neither {tmp_path} nor the weights contain the pooler" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "ADALORA"}, "'ADALORA' is not supported"),
        ({"use_qalora": True}, "not supported: use_qalora = True"),
        (
            {"lora_bias": True, "init_lora_weights": "pissa"},
            "init_lora_weights = 'pissa', lora_bias = True; huggingface",
        ),
        ({"task_type": "TOKEN_CLS"}, "task_type = 'TOKEN_CLS'"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices = \[3\]"),
        ({"target_modules": ["classifier"]}, r"none of its target_modules \(classifier\) is in this model"),
        ({"target_modules": []}, r"names no target_modules; add the layers"),
    ],
)
def test_unsupported_settings_of_a_file_raise(tmp_path, changes, message):
    save_adapter(adapt(tiny("bert"), "lora"), tmp_path, "base")
    change_json(tmp_path / ADAPTER_CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny("bert"), tmp_path)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_of_another_width_raise(method, tmp_path):
    save_adapter(adapt(tiny("bert"), method), tmp_path, "base")
    changes = {"num_layers": 3} if method == "prefix" else {"hidden_size": 15}
    with pytest.raises(ValueError, match="this model needs rows of"):
        load_adapter(tiny("bert", **changes), tmp_path)


# ---------------------------------------------------------------------- what huggingface/peft writes besides the usual
# its own files are read in tests/test_golden.py


def pefts_file(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """Writes an adapter as huggingface/peft does, with LoRA of rank 2 and alpha 6."""
    common = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 6, "target_modules": ["query"]}
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / ADAPTER)
    write_json(folder / ADAPTER_CONFIG, common | {"modules_to_save": ["classifier", "score"]} | config)
    return folder


def low_rank(*modules: str) -> dict[str, torch.Tensor]:
    """Returns A and B of layers with 12 inputs and 12 outputs."""
    shapes = {"lora_A": (2, 12), "lora_B": (12, 2)}
    return {f"{module}.{name}.weight": torch.randn(shape) for module in modules for name, shape in shapes.items()}


def head() -> dict[str, torch.Tensor]:
    """Returns the tensors of BERT's classifier."""
    return {"classifier.weight": torch.randn(2, 12), "classifier.bias": torch.randn(2)}


QUERIES = [f"bert.encoder.layer.{layer}.attention.self.query" for layer in range(2)]
OUR_QUERIES = [f"layers.{layer}.attention.query" for layer in range(2)]


def test_lora_on_the_pooler_is_merged_into_it(tmp_path: Path):
    tensors = low_rank(*QUERIES, "bert.pooler.dense") | head()
    pefts_file(tmp_path, tensors, target_modules=["query", "pooler.dense"])
    model, plain = load_adapter(tiny("bert"), tmp_path), tiny("bert")
    a, b = (tensors[f"bert.pooler.dense.lora_{letter}.weight"] for letter in "AB")
    torch.testing.assert_close(model.pooler.dense.weight, plain.pooler.dense.weight + 3 * b @ a)
    assert model.adapter["names"] == OUR_QUERIES
    assert model.pooler.dense.weight.requires_grad
    save_adapter(model, tmp_path / "again", "base")
    batch = token_batch([7, 4])
    assert torch.equal(load_adapter(tiny("bert"), tmp_path / "again").eval()(*batch), model.eval()(*batch))
    detach_adapter(model)
    assert torch.equal(model.pooler.dense.weight, plain.pooler.dense.weight)
    pefts_file(tmp_path, low_rank("bert.pooler.dense") | head(), target_modules=["pooler.dense"])
    assert load_adapter(tiny("bert"), tmp_path).adapter["method"] == "head"


def test_a_target_that_is_saved_whole_gets_no_lora(tmp_path: Path):
    """huggingface/peft leaves modules_to_save out, and writes them without A and B."""
    pefts_file(tmp_path, low_rank(*QUERIES) | head(), target_modules=["query", "classifier"])
    assert load_adapter(tiny("bert"), tmp_path).adapter["names"] == OUR_QUERIES


def test_all_linear_in_a_file_leaves_the_classifier_out(tmp_path: Path):
    save_adapter(peft.apply(tiny("bert"), "lora", rank=2, targets="all-linear"), tmp_path, "base")
    tensors = {k.removeprefix("base_model.model."): t for k, t in load_file(tmp_path / ADAPTER).items()}
    del tensors["bert.pooler.dense.weight"], tensors["bert.pooler.dense.bias"]
    pefts_file(tmp_path, tensors | low_rank("bert.pooler.dense"), target_modules="all-linear")
    assert len(load_adapter(tiny("bert"), tmp_path).adapter["names"]) == 2 * 6


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"layers_to_transform": [1]}, [1]),
        ({"layers_to_transform": 0}, [0]),
        ({"layers_to_transform": [0, 1], "layers_pattern": "layer"}, [0, 1]),
        ({"layers_to_transform": [1], "layers_pattern": ["blocks", "layer"]}, [1]),
        ({"layers_to_transform": [1], "layers_pattern": "blocks"}, []),
        ({"layers_to_transform": []}, [0, 1]),
        (
            {"layers_to_transform": [1], "target_modules": [QUERIES[0], "query", "bert.pooler.dense"]},
            [0, 1],
        ),  # whole names
        ({"layers_to_transform": [1], "target_modules": ".*query"}, [0, 1]),  # no effect on a pattern
    ],
)
def test_layers_to_transform(config: dict[str, object], layers: list[int]):
    assert [layer for layer, query in enumerate(QUERIES) if in_layers(query, config)] == layers
    assert in_layers("bert.pooler.dense", config) == (config["layers_to_transform"] == [] or "target_modules" in config)


def test_modules_of_the_backbone_are_loaded_trained_and_saved(tmp_path: Path):
    word, norm = "bert.embeddings.word_embeddings", "bert.embeddings.LayerNorm"
    modules = {f"{word}.weight": torch.randn(61, 12)}
    modules |= {f"{norm}.{leaf}": torch.randn(12) for leaf in ("weight", "bias")}
    saved = ["word_embeddings", norm, "classifier", "score"]
    pefts_file(tmp_path, modules | low_rank(*QUERIES) | head(), modules_to_save=saved)
    model, batch = load_adapter(tiny("bert"), tmp_path), token_batch([7, 4])
    assert torch.equal(model.embeddings.word.weight, modules[f"{word}.weight"])
    assert torch.equal(model.embeddings.norm.bias, modules[f"{norm}.bias"])
    assert trainable_names(model) >= {"embeddings.word.weight", "embeddings.norm.weight", "embeddings.norm.bias"}
    assert not peft.trains_backbone(model)
    train_steps(model)
    save_adapter(model, tmp_path / "again", "base")
    assert {norm, word} < set(read_json(tmp_path / "again" / ADAPTER_CONFIG)["modules_to_save"])
    assert torch.equal(load_adapter(tiny("bert"), tmp_path / "again").eval()(*batch), model.eval()(*batch))
    detach_adapter(model)
    assert_same(weights(model), weights(tiny("bert")))
    del modules[f"{word}.weight"]
    pefts_file(tmp_path, modules | low_rank(*QUERIES) | head(), modules_to_save=saved)
    with pytest.raises(ValueError, match=rf"\(1 problems\): missing base_model\.model\.{word}\.weight$"):
        load_adapter(tiny("bert"), tmp_path)


def test_what_cannot_be_loaded_is_refused_with_the_way_out(tmp_path: Path):
    name = "bert.embeddings.word_embeddings"
    table = {f"{name}.lora_embedding_A": torch.randn(2, 61), f"{name}.lora_embedding_B": torch.randn(12, 2)}
    pefts_file(tmp_path, low_rank(*QUERIES) | table | head(), target_modules=["query", "word_embeddings"])
    with pytest.raises(ValueError, match=r"lora_embedding_A \(LoRA on embeddings is not supported; hugging"):
        load_adapter(tiny("bert"), tmp_path)
    pefts_file(tmp_path, table | head(), target_modules=["word_embeddings"])
    with pytest.raises(ValueError, match=r": LoRA on embeddings is not supported; hugging"):
        load_adapter(tiny("bert"), tmp_path)
    pefts_file(tmp_path, low_rank(*QUERIES) | {f"{name}.weight": torch.randn(61, 12)} | head())
    with pytest.raises(ValueError, match=r"\.weight \(it would replace quantized weights; load without --quantize\)"):
        load_adapter(quantize_int8(tiny("bert")), tmp_path)
    pefts_file(tmp_path, low_rank(*QUERIES) | head() | {"classifier.bias": torch.tensor([1.0, float("nan")])})
    with pytest.raises(ValueError, match=r"classifier\.bias holds NaN or infinity"):
        load_adapter(tiny("bert"), tmp_path)


def test_without_a_task_the_weights_have_the_head(tmp_path: Path):
    pefts_file(tmp_path, low_rank(*QUERIES), task_type=None, modules_to_save=None)
    model, plain = load_adapter(tiny("bert"), tmp_path), tiny("bert")
    assert torch.equal(model.classifier.weight, plain.classifier.weight)
    plain.newly_initialized = frozenset({"classifier.weight", "classifier.bias"})
    with pytest.raises(ValueError, match=f"neither {tmp_path} nor the weights contain a classifier"):
        load_adapter(plain, tmp_path)


def test_a_pickled_adapter_is_read(tmp_path: Path):
    model, batch = adapt(tiny("bert"), "lora"), token_batch([7, 4])
    save_adapter(model, tmp_path, "base")
    torch.save(load_file(tmp_path / ADAPTER), tmp_path / "adapter_model.bin")
    (tmp_path / ADAPTER).unlink()
    assert torch.equal(load_adapter(tiny("bert"), tmp_path).eval()(*batch), model.eval()(*batch))


def test_a_folder_without_an_adapter_says_what_is_missing(tmp_path: Path):
    save_adapter(adapt(tiny("bert"), "prompt"), tmp_path / "checkpoint-500", "base")
    message = r"holds no adapter: adapter_config\.json and .* are missing; its folder checkpoint-500 has one"
    with pytest.raises(FileNotFoundError, match=message):
        load_adapter(tiny("bert"), tmp_path)
    (tmp_path / "checkpoint-500" / ADAPTER).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors \(nor .*\.bin\); fetch"):
        load_adapter(tiny("bert"), tmp_path / "checkpoint-500")
    with pytest.raises(FileNotFoundError, match="is not a directory and does not look like a hub id"):
        load_adapter(tiny("bert"), tmp_path / "absent")


def test_a_number_of_virtual_tokens_that_is_not_the_files_is_refused(tmp_path: Path):
    save_adapter(adapt(tiny("bert"), "prompt"), tmp_path, "base")
    change_json(tmp_path / ADAPTER_CONFIG, num_virtual_tokens=5)
    with pytest.raises(ValueError, match=r"has 4 virtual tokens, its adapter_config\.json says 5"):
        load_adapter(tiny("bert"), tmp_path)


# ----------------------------------------------------------------------------------------------------- class names

SENTIMENT = ("negative", "positive")


@pytest.fixture
def positive_first(tmp_path: Path) -> Path:
    """Returns the folder of a tiny checkpoint whose class 0 is POSITIVE."""
    save_pretrained(tiny("bert", labels=("POSITIVE", "NEGATIVE")), tmp_path / "base")
    return tmp_path / "base"


def test_a_file_has_the_order_of_the_backbone(positive_first: Path, tmp_path: Path):
    """huggingface/peft takes the names of the classes from the backbone's config."""
    model, batch = adapt(load_pretrained(positive_first, SENTIMENT), "lora").eval(), token_batch([7, 4])
    expected = model(*batch)  # negative, positive
    save_adapter(model, tmp_path, str(positive_first))
    assert read_json(tmp_path / ADAPTER_CONFIG)["id2label"] == {"0": "POSITIVE", "1": "NEGATIVE"}
    saved = load_file(tmp_path / ADAPTER)["base_model.model.classifier.weight"]
    assert torch.equal(saved, model.classifier.weight[[1, 0]])
    for labels, order in ((SENTIMENT, [0, 1]), (SENTIMENT[::-1], [1, 0]), (None, [1, 0])):
        loaded = load_adapted(tmp_path, labels=labels).eval()
        assert torch.equal(loaded(*batch), expected[:, order])
        assert loaded.config.labels == tuple(("NEGATIVE", "POSITIVE")[row] for row in order)
        again = load_adapter(load_pretrained(positive_first, labels), tmp_path).eval()
        assert torch.equal(again(*batch), expected[:, order])
        save_adapter(loaded, tmp_path / "again", str(positive_first))
        assert read_json(tmp_path / "again" / ADAPTER_CONFIG)["id2label"] == {"0": "POSITIVE", "1": "NEGATIVE"}


def test_adapters_without_names(positive_first: Path, tmp_path: Path):
    """Those of huggingface/peft have the backbone's order; those of this project once had negative, positive."""
    folder, batch = pefts_file(tmp_path, low_rank(*QUERIES) | head()), token_batch([7, 4])
    change_json(folder / ADAPTER_CONFIG, base_model_name_or_path=str(positive_first))
    plain = load_adapter(load_pretrained(positive_first), folder).eval()
    in_file = load_file(folder / ADAPTER)["base_model.model.classifier.weight"]
    assert torch.equal(plain.classifier.weight, in_file)
    assert load_adapted(folder).config.labels == ("POSITIVE", "NEGATIVE")
    for changes, order in (({}, [1, 0]), ({"method": "lora"}, [0, 1])):
        change_json(folder / ADAPTER_CONFIG, **changes)
        for model in (
            load_adapter(load_pretrained(positive_first, SENTIMENT), folder),
            load_adapted(folder, labels=SENTIMENT),
        ):
            assert torch.equal(model.eval()(*batch), plain(*batch)[:, order])


def three_classes(folder: Path) -> Module:
    """Returns a model with LoRA that distinguishes other classes than its backbone, both saved."""
    save_pretrained(tiny("bert"), folder / "base")
    model = adapt(load_pretrained(folder / "base", ("bad", "good", "so so"), new_head=True), "lora")
    save_adapter(model, folder, str(folder / "base"))
    return model


def test_an_adapter_with_other_classes_brings_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, batch = three_classes(tmp_path).eval(), token_batch([7, 4])
    expected = model(*batch)
    assert load_adapted(tmp_path).config.labels == ("bad", "good", "so so")
    assert torch.equal(load_adapted(tmp_path).eval()(*batch), expected)
    permuted = load_adapted(tmp_path, labels=("Good", "So so", "Bad")).eval()
    assert torch.equal(permuted(*batch), expected[:, [1, 2, 0]])
    with pytest.raises(ValueError, match=r"distinguishes bad, good, so so; the data has negative, positive; .*--head"):
        load_adapted(tmp_path, labels=SENTIMENT)
    with pytest.raises(ValueError, match=r"misshaped base_model\.model\.classifier\.bias: \[3\], not \[2\]"):
        load_adapter(tiny("bert"), tmp_path)
    save_adapter(adapt(tiny("bert", labels=("bad", "good")), "lora"), tmp_path, "base")
    other = load_adapter(tiny("bert"), tmp_path)
    assert other.config.labels == ("bad", "good")
    assert "labels: the adapter distinguishes bad, good" in capsys.readouterr().out
    detach_adapter(other)
    assert other.config.labels == SENTIMENT


def test_an_adapter_with_a_new_head(tmp_path: Path):
    model, batch = three_classes(tmp_path).eval(), token_batch([7, 4])
    new = load_adapted(tmp_path, labels=SENTIMENT, new_head=True)
    assert (new.config.labels, new.classifier.weight.shape) == (SENTIMENT, (2, 12))
    assert trainable_names(new) >= {"classifier.weight", "classifier.bias"}
    assert torch.equal(new.eval().features(*batch), model.features(*batch))
    expected = new(*batch)
    save_adapter(new, tmp_path / "again", str(tmp_path / "base"))
    assert torch.equal(load_adapted(tmp_path / "again").eval()(*batch), expected)
    attach_adapter(new, detach_adapter(new))
    assert torch.equal(new(*batch), expected)


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_options_in_a_file_are_those_of_the_method(method: str, tmp_path: Path):
    """A run that continues an adapter records the options that its file fixes."""
    special = {"lora": {"rank": 3, "dora": True, "lora_bias": "all"}, "p_tuning": {"prompt_encoder": "lstm"}}
    save_adapter(adapt(tiny("bert"), method, **special.get(method, {})), tmp_path, "base")
    found = adapter_options(tmp_path)
    options = METHODS[method].options(**found)
    given = {key: value for key, value in SMALL_OPTIONS.items() if key in field_names(METHODS[method].options)}
    for key, value in (given | special.get(method, {})).items():
        assert getattr(options, key) == value


def test_a_moved_backbone_is_named(tmp_path: Path):
    save_pretrained(tiny("bert"), tmp_path / "moved")
    model, batch = adapt(tiny("bert"), "lora"), token_batch([7, 4])
    save_adapter(model, tmp_path, "/nowhere/base")
    with pytest.raises(FileNotFoundError, match=r"the backbone /nowhere/base of the adapter .* name it with --base"):
        load_adapted(tmp_path)
    assert torch.equal(load_adapted(tmp_path, base=str(tmp_path / "moved")).eval()(*batch), model.eval()(*batch))


# ----------------------------------------------------------------------------------------------------------- in runs


def adapter_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "best" / ADAPTER)


def test_a_run_continues_an_adapter(small_run: list[str], tmp_path: Path):
    """With a learning rate of 0 the adapter stays as it was; its backbone is that of the first run."""
    train.main(small_run)
    first, weights = tmp_path / "runs/small", small_run.index("--weights") + 1
    again = [*small_run, "--epochs", "1", "--learning-rate", "0", "--head-learning-rate", "0", "--name", "again"]
    again[weights] = str(first / "best")
    del again[again.index("--peft") : again.index("--peft") + 2]
    train.main(again)
    assert_same(adapter_tensors(tmp_path / "runs/again"), adapter_tensors(first))
    for name in ("small", "again"):
        config = read_json(tmp_path / "runs" / name / "best" / ADAPTER_CONFIG)
        assert config["base_model_name_or_path"] == small_run[weights]
    train.main([*again, "--learning-rate", "1e-3", "--name", "more"])
    before, after = adapter_tensors(first), adapter_tensors(tmp_path / "runs/more")
    assert before.keys() == after.keys()
    assert not any(torch.equal(tensor, after[key]) for key, tensor in before.items() if ".lora_" in key)
    with pytest.raises(ValueError, match="is a lora adapter; leave out --peft prefix"):
        train.main([*again, "--peft", "prefix", "--name", "other"])


def test_a_run_that_continues_an_adapter_records_its_options(tmp_path: Path):
    save_adapter(adapt(tiny("bert"), "lora", rank=3, alpha=5, dora=True), tmp_path, "base")
    settings, _ = resolve(["--model", "bert", "--weights", str(tmp_path)], train.TABLES)
    assert (settings.method.rank, settings.method.alpha, settings.method.dora) == (3, 5, True)
    assert settings.origins["peft"] == settings.origins["rank"] == "adapter"
    config = {
        "peft_type": "LORA",
        "lora_alpha": -16,
        "target_modules": ["query", "value"],
        "rank_pattern": {"query": 2},
    }
    write_json(tmp_path / ADAPTER_CONFIG, config)
    method = resolve(["--model", "bert", "--weights", str(tmp_path)], train.TABLES)[0].method
    assert (method.rank, method.alpha, method.targets, method.rank_pattern) == (8, -16, "query,value", "query=2")
    write_json(tmp_path / ADAPTER_CONFIG, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3})
    method = resolve(["--model", "bert", "--weights", str(tmp_path)], train.TABLES)[0].method
    assert (method.virtual_tokens, method.pool) == (3, "virtual")
    save_adapter(adapt(tiny("bert"), "lora"), tmp_path, "base")
    with pytest.raises(ValueError, match="is an adapter with settings of its own; leave out --rank"):
        resolve(["--model", "bert", "--weights", str(tmp_path), "--rank", "3"], train.TABLES)


def test_a_run_over_8_bit_weights_merges_into_the_backbone(small_run: list[str], tmp_path: Path):
    train.main([*small_run, "--epochs", "1", "--quantize", "int8"])
    weights, moved, run = Path(small_run[small_run.index("--weights") + 1]), tmp_path / "moved", tmp_path / "runs/small"
    weights.rename(moved)
    with pytest.raises(
        FileNotFoundError, match=f"the backbone {weights} of the adapter .* name it with --base DIR_OR_ID$"
    ):
        evaluation.main(["--run", str(run), "--merge", str(tmp_path / "out")])
    evaluation.main(["--run", str(run), "--base", str(moved), "--merge", str(tmp_path / "out")])
    merged, plain, adapter = load_file(tmp_path / "out" / WEIGHTS), load_file(moved / WEIGHTS), adapter_tensors(run)
    name = "bert.encoder.layer.1.attention.self.query"
    a, b = (adapter[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    scale = read_json(run / "best" / ADAPTER_CONFIG)["lora_alpha"] / len(a)
    torch.testing.assert_close(merged[f"{name}.weight"], plain[f"{name}.weight"] + scale * b @ a)
    untouched = "bert.encoder.layer.1.intermediate.dense.weight"
    assert torch.equal(merged[untouched], plain[untouched])
