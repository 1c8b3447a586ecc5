"""Adapters and checkpoints that others saved: heads of other tasks, older files of peft, moved backbones."""

from pathlib import Path

import pytest
import torch
from conftest import adapt, change_json, tiny, tiny_weights, token_batch
from safetensors.torch import load_file, save_file

from data.checked import read_json
from data.files import write_json
from data.hub import ADAPTER, ADAPTER_CONFIG, CONFIG, WEIGHTS
from data.labels import SENTIMENT
from data.tokenization import Tokenizer, load_tokenizer
from data.windows import Truncation
from eval import main as evaluate
from nn.checkpoint import load_pretrained, save_pretrained
from nn.runtime import choose_machine
from peft import detach_adapter, load_adapted, load_adapter, save_adapter
from peft.classifier import Scorer
from peft.loading import plain_names


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Returns an adapter of a tiny BERT, with a tokenizer in the backbone's folder only."""
    base = tiny_weights(tmp_path / "base")
    save_adapter(adapt(load_pretrained(base), "lora"), tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


def one_output(adapter: Path) -> None:
    tensors = load_file(adapter / ADAPTER)
    save_file({name: t[:1].clone() if ".classifier." in name else t for name, t in tensors.items()}, adapter / ADAPTER)
    change_json(adapter / ADAPTER_CONFIG, id2label=None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_output, "has a head with one output"),
        (
            lambda a: change_json(a.parent / "base" / CONFIG, problem_type="multi_label_classification"),
            "has a head for multi_label_classification",
        ),
        (
            lambda a: change_json(a / ADAPTER_CONFIG, auto_mapping={"base_model_class": "BertForTokenClassification"}),
            "is a BertForTokenClassification, whose head does not classify texts",
        ),
    ],
)
def test_a_head_that_is_no_classifier_is_refused(adapter: Path, damage, message: str):
    """As in a plain checkpoint."""
    damage(adapter)
    with pytest.raises(ValueError, match=message + r".*train\.py --head new"):
        load_adapted(adapter)
    model = load_adapted(adapter, labels=("bad", "good"), new_head=True)  # the way out
    assert model.config.labels == ("bad", "good")
    assert model(*token_batch([5, 3])).shape == (2, 2)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"label2id": {"POSITIVE": 0, "NEGATIVE": 1}}, ("POSITIVE", "NEGATIVE")),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ("negative", "positive")),  # of another number of classes
        ({}, ("negative", "positive")),
        ({"id2label": ["neg", "pos"]}, "does not map class numbers to names"),
        ({"id2label": {"0": "a", "2": "b"}}, "names the classes .0, 2., but the head has 2"),
    ],
)
def test_the_backbone_names_the_classes_of_an_adapter(
    adapter: Path, names: dict, expected: object, capsys: pytest.CaptureFixture[str]
):
    path = adapter.parent / "base" / CONFIG
    config = {key: value for key, value in read_json(path).items() if key not in ("id2label", "label2id")}
    write_json(path, config | names)
    own = read_json(adapter / ADAPTER_CONFIG)  # peft writes no names, and no method
    write_json(adapter / ADAPTER_CONFIG, {k: v for k, v in own.items() if k not in ("id2label", "method", "labels")})
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            load_adapted(adapter)
        assert load_adapted(adapter, labels=("x", "y"), new_head=True).config.labels == ("x", "y")
    else:
        assert load_adapted(adapter).config.labels == expected
        noted = "does not name its classes; by position they are negative, positive" in capsys.readouterr().out
        assert noted == (expected == ("negative", "positive"))
        new = load_adapted(adapter, new_head=True)
        assert (new.config.labels, new.newly_initialized) == (SENTIMENT, {"classifier.weight", "classifier.bias"})


def test_the_base_that_is_given_has_the_tokenizer(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    evaluate(["--weights", str(adapter), "--text", "a good film"])
    expected = capsys.readouterr().out
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = ["--weights", str(adapter), "--base", str(tmp_path / "moved")]
    evaluate([*moved, "--text", "a good film"])
    assert capsys.readouterr().out == expected
    with pytest.raises(FileNotFoundError, match="name it with --base DIR_OR_ID"):
        load_tokenizer(adapter)


@pytest.mark.parametrize("which", ["all", "lora_only"])
def test_biases_have_the_names_of_older_versions_of_peft(which: str, tmp_path: Path):
    """peft 0.5 saved X.bias, where later versions save X.base_layer.bias."""
    save_pretrained(tiny("bert"), tmp_path / "base")
    model = adapt(tiny("bert"), "lora", lora_bias=which)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and parameter.requires_grad:
            parameter.data.normal_()
    save_adapter(model, tmp_path, str(tmp_path / "base"))
    tensors = load_file(tmp_path / ADAPTER)
    assert any(".base_layer.bias" in name for name in tensors)
    old = {name.replace(".base_layer.bias", ".bias"): t for name, t in tensors.items()}
    save_file(old, tmp_path / ADAPTER)
    batch = token_batch([7, 4])
    assert torch.equal(load_adapted(tmp_path).eval()(*batch), model.eval()(*batch))


def test_a_file_without_the_biases_of_lora_only_has_the_backbones(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """peft 0.7 to 0.19 did not save them."""
    save_pretrained(tiny("bert"), tmp_path / "base")
    model = adapt(tiny("bert"), "lora", lora_bias="lora_only")
    save_adapter(model, tmp_path, str(tmp_path / "base"))
    kept = {name: t for name, t in load_file(tmp_path / ADAPTER).items() if ".base_layer.bias" not in name}
    save_file(kept, tmp_path / ADAPTER)
    batch = token_batch([7, 4])
    assert torch.equal(load_adapted(tmp_path).eval()(*batch), model.eval()(*batch))
    assert "contains no biases" in capsys.readouterr().out


def test_a_token_without_a_row_of_the_word_table_is_one_line(tmp_path: Path):
    folder = tiny_weights(tmp_path / "weights")
    rows, tokenizer = load_pretrained(folder).config.vocab_size, load_tokenizer(folder)
    tokenizer.backend.add_tokens([f"token{n}" for n in range(rows)])
    tokenizer.save(folder)
    last = f"token{rows - 1}"
    for flags in ([], ["--explain"]):
        with pytest.raises(ValueError, match=r"has the id \d+, the model only .* tokens; they do not fit"):
            evaluate(["--weights", str(folder), "--text", f"a good {last}", *flags])


def test_a_padding_token_without_a_row_of_the_word_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also if a text has no padding, as a single one."""
    tokenizer = load_tokenizer(tiny_weights(tmp_path / "weights"))
    rows = tokenizer.vocab_size - 1
    monkeypatch.setattr(Tokenizer, "pad_id", rows)
    model = tiny("bert", vocab_size=rows).eval()
    scorer = Scorer(model, tokenizer, choose_machine("cpu", "fp32"), Truncation(16, "head"))
    with pytest.raises(ValueError, match=rf"has the id {rows}, the model only {rows} tokens; they do not fit"):
        scorer.score_texts(["a"])


def test_the_side_of_truncation_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tiny_weights(tmp_path / "weights")
    text = ["--text", " ".join(f"film number {n} is good" for n in range(60))]

    def answer(*flags: str) -> str:
        """Returns what eval.py prints."""
        evaluate(["--weights", str(folder), "--max-length", "9", *text, *flags])
        return capsys.readouterr().out

    right = answer()
    assert right == answer("--truncate", "head") != answer("--truncate", "tail")
    change_json(folder / "tokenizer_config.json", truncation_side="left")
    assert answer() == answer("--truncate", "tail") != right
    load_tokenizer(folder).save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").truncation_side == "left"
    change_json(folder / "tokenizer_config.json", truncation_side=None)
    how = {"direction": "Left", "max_length": 9, "stride": 0, "strategy": "LongestFirst"}
    change_json(folder / "tokenizer.json", truncation=how)
    assert load_tokenizer(folder).truncation_side == "left"
    change_json(folder / "tokenizer_config.json", truncation_side="middle")
    with pytest.raises(ValueError, match="truncation_side must be left or right, not 'middle'"):
        load_tokenizer(folder)


@pytest.mark.parametrize(("encoder", "hidden"), [("MLP", "mlp_head.0.weight"), ("LSTM", "lstm_head.bias_hh_l0")])
def test_the_encoder_of_virtual_tokens_in_a_file_is_left_out(encoder: str, hidden: str, tmp_path: Path):
    """Its output is prompt_embeddings. huggingface/peft writes it if modules_to_save names a `head`."""
    model = adapt(tiny("modernbert"), "p_tuning")
    save_adapter(model, tmp_path, "base")
    expected = load_adapter(tiny("modernbert"), tmp_path).eval()(*token_batch([5, 3]))
    change_json(tmp_path / ADAPTER_CONFIG, encoder_reparameterization_type=encoder)
    tensors = load_file(tmp_path / ADAPTER) | {f"prompt_encoder.default.{hidden}": torch.ones(3)}
    save_file(tensors, tmp_path / ADAPTER)
    assert torch.equal(load_adapter(tiny("modernbert"), tmp_path).eval()(*token_batch([5, 3])), expected)


def test_a_word_table_beside_virtual_tokens_of_peft_is_refused(tmp_path: Path):
    """huggingface/peft writes the table and embeds the words by that of the backbone."""
    model = adapt(tiny("modernbert"), "prompt")
    save_adapter(model, tmp_path, "base")
    (name,) = (key for key, plain in plain_names(model).items() if plain == "embeddings.word.weight")
    table = model.embeddings.word.weight.detach().clone()
    tensors = load_file(tmp_path / ADAPTER) | {name: table}
    save_file(tensors, tmp_path / ADAPTER)
    change_json(tmp_path / ADAPTER_CONFIG, method=None)
    with pytest.raises(ValueError, match="has a word table, which huggingface/peft does not use with virtual tokens"):
        load_adapter(tiny("modernbert"), tmp_path)


# ------------------------------------------------------------ adapters that change the classifier without containing it


@pytest.fixture
def partial(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """Returns an adapter with LoRA on the classifier of a backbone whose first class is the positive one, as peft
    writes it for target_modules="all-linear" without task_type; and its logits in the backbone's order."""
    base = tiny_weights(tmp_path / "base")
    change_json(base / CONFIG, id2label={"0": "POSITIVE", "1": "NEGATIVE"}, label2id={"POSITIVE": 0, "NEGATIVE": 1})
    torch.manual_seed(3)
    plain = load_pretrained(base)
    a, b = torch.randn(4, plain.classifier.in_features), torch.randn(2, 4)
    expected = plain.classifier.weight.data + 2 / 4 * b @ a  # alpha / r
    change_head = {"base_model.model.classifier.lora_A.weight": a, "base_model.model.classifier.lora_B.weight": b}
    folder = tmp_path / "partial"
    folder.mkdir()
    save_file(change_head, folder / ADAPTER)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 4, "lora_alpha": 2, "task_type": None}
    write_json(folder / ADAPTER_CONFIG, config | {"target_modules": ["classifier"]})
    features = plain.features(*token_batch([5, 3]))
    return folder, (features @ expected.T + plain.classifier.bias).detach()


@pytest.mark.parametrize("labels", [None, ("POSITIVE", "NEGATIVE"), ("negative", "positive")])
def test_a_changed_classifier_is_put_into_the_order_of_the_classes(partial, tmp_path: Path, labels):
    folder, expected = partial
    expected = expected.flip(1) if labels == ("negative", "positive") else expected
    model = load_adapted(folder, labels=labels)
    torch.testing.assert_close(model(*token_batch([5, 3])).detach(), expected)
    other = load_adapter(load_pretrained(tmp_path / "base", labels), folder)
    torch.testing.assert_close(other(*token_batch([5, 3])).detach(), expected)
    save_adapter(model, tmp_path / "again", str(tmp_path / "base"))
    torch.testing.assert_close(load_adapted(tmp_path / "again", labels=labels)(*token_batch([5, 3])).detach(), expected)
    detach_adapter(model)
    plain = load_pretrained(tmp_path / "base", labels)(*token_batch([5, 3]))
    torch.testing.assert_close(model(*token_batch([5, 3])), plain)


@pytest.mark.parametrize("labels", [("bad", "good"), ("a", "b", "c")])
def test_a_new_head_replaces_a_changed_classifier(partial, labels: tuple[str, ...], capsys):
    model = load_adapted(partial[0], labels=labels, new_head=True)
    assert "distinguishes" not in capsys.readouterr().out
    assert model.config.labels == labels
    assert model(*token_batch([5, 3])).shape == (2, len(labels))
    assert model.newly_initialized == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("equal", [True, False])
def test_copies_of_nested_modules_to_save(adapter: Path, equal: bool):
    """peft uses the copy if one of modules_to_save contains another."""
    tensors = load_file(adapter / ADAPTER)
    name = "base_model.model.classifier.weight"
    copy = tensors[name] + (0 if equal else 1)
    save_file(tensors | {"base_model.model.classifier.modules_to_save.default.weight": copy}, adapter / ADAPTER)
    if equal:
        load_adapted(adapter)
    else:
        with pytest.raises(ValueError, match="one of modules_to_save contains another; huggingface/peft can merge it"):
            load_adapted(adapter)


def test_quantized_weights_of_others_are_refused_by_name(tmp_path: Path):
    base = tiny_weights(tmp_path / "base")
    change_json(base / CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    load_pretrained(base)  # fp32, as after merging
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"x.weight.SCB": torch.ones(3, dtype=torch.uint8)}, base / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights quantized by bitsandbytes are not read; .*dequantize\(\)"):
        load_pretrained(base)


def test_an_adapter_that_cannot_be_merged_elsewhere_says_so(adapter: Path):
    change_json(adapter / ADAPTER_CONFIG, alora_invocation_tokens=[1, 2])
    with pytest.raises(ValueError, match=r"alora_invocation_tokens = \[1, 2\]; no program can merge it"):
        load_adapted(adapter)


def test_rank_and_alpha_of_an_adapter_that_names_none_are_8(tmp_path: Path):
    """As in huggingface/peft."""
    base = tiny_weights(tmp_path / "base")
    model = adapt(load_pretrained(base), "lora", rank=8, alpha=8.0)
    save_adapter(model, tmp_path / "adapter", str(base))
    config = read_json(tmp_path / "adapter" / ADAPTER_CONFIG)
    del config["r"], config["lora_alpha"]
    write_json(tmp_path / "adapter" / ADAPTER_CONFIG, config)
    batch = token_batch([7, 4])
    assert torch.equal(load_adapted(tmp_path / "adapter")(*batch), model.eval()(*batch))


def test_all_linear_may_be_written_in_capital_letters(tmp_path: Path):
    base = tiny_weights(tmp_path / "base")
    model = adapt(load_pretrained(base), "lora", targets="all-linear")
    save_adapter(model, tmp_path / "adapter", str(base))
    change_json(tmp_path / "adapter" / ADAPTER_CONFIG, target_modules="All-Linear")
    batch = token_batch([7, 4])
    assert torch.equal(load_adapted(tmp_path / "adapter")(*batch), model.eval()(*batch))


def test_rows_of_three_classes_are_in_the_order_of_the_backbone(tmp_path: Path):
    base = tiny_weights(tmp_path / "base")
    change_json(base / CONFIG, id2label={"0": "c", "1": "a", "2": "b"}, label2id={"c": 0, "a": 1, "b": 2})
    tensors = load_file(base / WEIGHTS)
    rows = {name: torch.cat([t, t[:1]]) if name.startswith("classifier.") else t for name, t in tensors.items()}
    save_file(rows, base / WEIGHTS)
    model = adapt(load_pretrained(base, ("a", "b", "c")), "head").eval()
    model.classifier.bias.data += torch.arange(3.0)
    save_adapter(model, tmp_path / "adapter", str(base))
    assert read_json(tmp_path / "adapter" / ADAPTER_CONFIG)["id2label"] == {"0": "c", "1": "a", "2": "b"}
    bias = next(t for name, t in load_file(tmp_path / "adapter" / ADAPTER).items() if name.endswith("classifier.bias"))
    assert torch.equal(bias, model.classifier.bias[[2, 0, 1]])
    batch = token_batch([7, 4])
    assert torch.equal(load_adapted(tmp_path / "adapter", labels=("a", "b", "c"))(*batch), model(*batch))


@pytest.mark.parametrize(("field", "value"), [("rank_pattern", 2**20 + 1), ("alpha_pattern", 2_000_000)])
def test_values_of_patterns_have_the_range_of_the_value_that_they_replace(adapter: Path, field: str, value: int):
    change_json(adapter / ADAPTER_CONFIG, **{field: {"query": value}})
    name = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}[field]
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {name} {value} is outside "):
        load_adapted(adapter)
