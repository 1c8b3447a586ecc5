"""The head of a checkpoint and the classes of the data are matched by name."""

from pathlib import Path

import pytest
import torch
from conftest import tiny, token_batch
from safetensors.torch import load_file, save_file

import train
from data.checked import read_json
from data.files import write_json
from data.hub import CONFIG, WEIGHTS
from data.labels import SENTIMENT
from nn.checkpoint import load_pretrained, save_pretrained
from nn.class_matching import match_head, names_of_backbone, published_names


def named(folder, table, count: int = 2, name: str = "bert"):
    """Writes a tiny checkpoint whose config has `table` as id2label; returns its logits for a batch."""
    model = tiny(name, labels=tuple(f"LABEL_{i}" for i in range(count))).eval()
    save_pretrained(model, folder)
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"id2label": table})
    return model(*token_batch([5, 3]))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "lstm"])
def test_a_head_in_another_order_is_permuted(name, tmp_path, capsys):
    expected = named(tmp_path, {"0": "POSITIVE", "1": "NEGATIVE"}, name=name)
    model = load_pretrained(tmp_path, ("negative", "positive")).eval()
    assert model.config.labels == ("NEGATIVE", "POSITIVE")
    assert torch.equal(model(*token_batch([5, 3])), expected[:, [1, 0]])
    assert "its rows are put into the data's order" in capsys.readouterr().out
    save_pretrained(model, tmp_path / "again")
    assert read_json(tmp_path / "again" / CONFIG)["id2label"] == {"0": "NEGATIVE", "1": "POSITIVE"}
    again = load_pretrained(tmp_path / "again").eval()
    assert torch.equal(again(*token_batch([5, 3])), expected[:, [1, 0]])


def test_class_capsules_are_permuted(tmp_path):
    model = tiny("capsule_lstm", head="capsules", labels=("POSITIVE", "NEGATIVE")).eval()
    save_pretrained(model, tmp_path)
    expected = model(*token_batch([5, 3]))[:, [1, 0]]
    loaded = load_pretrained(tmp_path, ("negative", "positive")).eval()
    torch.testing.assert_close(loaded(*token_batch([5, 3])), expected)


def test_without_classes_of_data_the_file_has_its_own(tmp_path):
    expected = named(tmp_path, {"0": "POSITIVE", "1": "NEGATIVE"})
    model = load_pretrained(tmp_path).eval()
    assert model.config.labels == ("POSITIVE", "NEGATIVE")
    assert torch.equal(model(*token_batch([5, 3])), expected)


USUAL = [{"0": "neg", "1": "pos"}, {"1": "Positive", "0": "Negative"}, {"0": 0, "1": 1}, None]


@pytest.mark.parametrize("table", [*USUAL, {"0": "LABEL_0", "1": "LABEL_1"}])
def test_usual_and_missing_names_are_negative_and_positive(table, tmp_path):
    expected = named(tmp_path, table)
    assert torch.equal(load_pretrained(tmp_path, ("negative", "positive")).eval()(*token_batch([5, 3])), expected)


def test_other_classes_by_name_and_by_position(tmp_path, capsys):
    expected = named(tmp_path, {"0": "Neutral", "1": "Bad", "2": "Good"}, 3)
    model = load_pretrained(tmp_path, ("bad", "good", "neutral")).eval()
    assert model.config.labels == ("Bad", "Good", "Neutral")
    assert torch.equal(model(*token_batch([5, 3])), expected[:, [1, 2, 0]])
    named(tmp_path, {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, 3)
    capsys.readouterr()
    assert load_pretrained(tmp_path, ("1", "2", "3")).config.labels == ("1", "2", "3")
    assert "by position they are 1, 2, 3" in capsys.readouterr().out


def test_numbered_classes_have_the_row_of_their_number(tmp_path, capsys):
    """As text, LABEL_10 comes before LABEL_2."""
    count = 12
    expected = named(tmp_path, {str(i): f"LABEL_{i}" for i in range(count)}, count)
    capsys.readouterr()
    labels = tuple(sorted(f"LABEL_{i}" for i in range(count)))
    model = load_pretrained(tmp_path, labels).eval()
    assert model.config.labels == labels
    assert torch.equal(model(*token_batch([5, 3])), expected[:, [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]])
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "count", "labels", "message"),
    [
        ({"0": "sport", "1": "news"}, 2, SENTIMENT, "distinguishes sport, news, but not negative"),
        ({"0": "a", "1": "b", "2": "c"}, 3, SENTIMENT, "distinguishes a, b, c; the data has negative, positive"),
        (None, 3, SENTIMENT, "distinguishes 3 classes without names; the data has"),
        ({"0": "LABEL_0"}, 1, SENTIMENT, "one output"),
        ({"0": "a", "1": "b"}, 3, None, r"names the classes \[0, 1\], but the head has 3"),
        ({"0": "a", "1": "a"}, 2, None, "uses a name twice"),
        ({"0": "a", "1": " "}, 2, None, "has no name for class 1"),
        ([], 2, None, "does not map class numbers to names"),
        ({"x": "a"}, 2, None, "does not map class numbers to names"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit_are_refused_and_a_new_head_is_the_way_out(table, count, labels, message, tmp_path):
    named(tmp_path, table, count)
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(tmp_path, labels)
    assert "--head new" in str(caught.value) or "config.json" in str(caught.value)
    model = load_pretrained(tmp_path, labels or ("x", "y"), new_head=True)
    assert model.config.labels == (labels or ("x", "y"))
    assert model.newly_initialized == {"classifier.weight", "classifier.bias"}
    assert 0 < model.classifier.weight.std() < 0.04


def test_another_architecture_is_named_before_its_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(tiny("gru", labels=("a", "b", "c")), tmp_path / "gru")
    with pytest.raises(ValueError, match=r"gru holds a gru model, which --model bert is not; use --model gru$"):
        train.main(["--model", "bert", "--weights", "gru", "--data", "demo"])
    assert not (tmp_path / "runs").exists()


def test_other_problem_types_are_refused(tmp_path):
    named(tmp_path, {"0": "a", "1": "b"})
    write_json(tmp_path / CONFIG, read_json(tmp_path / CONFIG) | {"problem_type": "multi_label_classification"})
    with pytest.raises(ValueError, match=r"multi_label_classification, which is not supported; train\.py --head new"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("task", ["TokenClassification", "QuestionAnswering", "MultipleChoice"])
def test_the_head_of_another_task_is_not_a_classifier(task, tmp_path):
    named(tmp_path, None)  # in BERT, the last layer for tokens has the name and the shape of a classifier's
    write_json(tmp_path / CONFIG, read_json(tmp_path / CONFIG) | {"architectures": [f"BertFor{task}"]})
    with pytest.raises(ValueError, match=f"is a BertFor{task}, whose head does not classify texts; .*--head new"):
        load_pretrained(tmp_path, SENTIMENT)
    assert "classifier.weight" in load_pretrained(tmp_path, SENTIMENT, new_head=True).newly_initialized


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_new_head_replaces_that_of_another_task(name, tmp_path):
    model = tiny(name)
    save_pretrained(model, tmp_path, heads=False)
    tensors = load_file(tmp_path / WEIGHTS)
    extra = {f"{key}.{leaf}": torch.zeros(2, 3) for key in ("qa_outputs", "classifier") for leaf in ("weight", "bias")}
    save_file(tensors | extra, tmp_path / WEIGHTS)
    loaded = load_pretrained(tmp_path, SENTIMENT, new_head=True)
    assert {name.split(".")[0] for name in loaded.newly_initialized} == {"pooler", "classifier"}
    assert torch.equal(loaded.layers[0].feed_forward.up.weight, model.layers[0].feed_forward.up.weight)


@pytest.mark.parametrize("table", [None, {"0": "LABEL_0", "1": "LABEL_1"}])
def test_classes_without_names_are_noted(table, tmp_path, capsys):
    named(tmp_path, table)
    for labels in (None, SENTIMENT):
        load_pretrained(tmp_path, labels)
        assert "does not name its classes; by position they are negative, positive" in capsys.readouterr().out
    named(tmp_path, {"0": "0", "1": "1", "2": "2"}, count=3)  # as a run on a column of numbers saves its classes
    assert load_pretrained(tmp_path).config.labels == ("0", "1", "2")
    assert "by position" not in capsys.readouterr().out


@pytest.mark.parametrize("table", [None, {"0": "LABEL_0", "1": "LABEL_1"}])
def test_label2id_names_the_classes_where_id2label_does_not(table):
    config = {"id2label": table, "label2id": {"positive": 0, "negative": 1}}
    assert published_names(config, 2, Path("x")) == ("positive", "negative")
    assert published_names(config | {"label2id": {"LABEL_0": 0, "LABEL_1": 1}}, 2, Path("x")) is None
    for spelled in (
        {"positive": "0", "negative": "1"},
        {"positive": 0.0, "negative": 1.0},
        {"0": "positive", "1": "negative"},
    ):
        assert published_names(config | {"label2id": spelled}, 2, Path("x")) == ("positive", "negative")
    for unclear in (
        {"good": 0, "fine": 0},
        {"good": "a", "fine": "b"},
        {"good": True, "fine": False},
        {"good": 0.5, "fine": 1.5},
        ["good"],
        "good",
    ):
        with pytest.raises(
            ValueError, match=r"x: label2id .* does not map names to class numbers; correct it in config"
        ):
            published_names(config | {"label2id": unclear}, 2, Path("x"))
    given = {"0": "bad", "1": "good"}
    assert published_names(config | {"id2label": given}, 2, Path("x")) == ("bad", "good")
    rotated = {"1": 0, "2": 1, "0": 2}  # names that are numbers too
    assert published_names({"label2id": rotated}, 3, Path("x")) == ("1", "2", "0")


def test_numbers_and_empty_names_are_no_names():
    for table in ({"0": "0", "1": "1", "2": "2"}, {"0": "", "1": " ", "2": ""}):
        assert published_names({"id2label": table}, 3, Path("x")) is None


def test_two_spellings_of_a_class_are_one_name():
    with pytest.raises(ValueError, match=r"x: id2label uses a name twice: neg, Negative; .*--head new"):
        published_names({"id2label": {"0": "neg", "1": "Negative"}}, 2, Path("x"))


def test_a_backbone_of_another_number_of_classes_does_not_name_those_of_an_adapter():
    names = {"0": "a", "1": "b", "2": "c"}
    assert names_of_backbone({"id2label": names}, 3, Path("x")) == ("a", "b", "c")
    assert names_of_backbone({"id2label": names}, 2, Path("x")) is None
    with pytest.raises(ValueError, match=r"names the classes \[0, 1, 5\], but the head has 2"):
        names_of_backbone({"id2label": {"0": "a", "1": "b", "5": "c"}}, 2, Path("x"))


def test_classes_that_are_one_number_in_two_spellings_are_matched_by_position():
    assert match_head({}, 2, ("1", "LABEL_1"), Path("x")).order == (0, 1)
    assert match_head({}, 2, ("LABEL_1", "0"), Path("x")).order == (1, 0)
