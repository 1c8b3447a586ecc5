"""Tests of class names: which values are classes, their order, and how values map to them."""

from pathlib import Path

import pytest

from data import Source, labels, load_splits, load_table
from data.imdb import load_reviews
from data.labels import (
    SENTIMENT,
    UNKNOWN,
    all_hidden,
    canonical,
    class_numbers,
    few_names,
    find_classes,
    holds_sentiment,
    is_class_name,
    looks_like_labels,
    normalize,
    quoted,
)
from nn.class_matching import checked_names, published_names


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ("0 1 1", [0, 1, 1]),
        ("0.0 1.0 0.0", [0, 1, 0]),
        ("1 1 1", [1, 1, 1]),
        ("0 0", [0, 0]),
        ("False True TRUE", [0, 1, 1]),
        ("neg pos Neg", [0, 1, 0]),
        ("POSITIVE negative Positive", [1, 0, 1]),
        ("positive", [1]),
    ],
)
def test_the_spellings_of_two_sentiments_are_negative_and_positive(values: str, numbers: list[int]):
    assert find_classes(values.split(), "f") == SENTIMENT
    assert class_numbers(values.split(), SENTIMENT, "f") == numbers


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ("10 2 1 2", ("1", "2", "10")),
        ("1.0 2.0 1 5.0 +2", ("1", "2", "5")),
        ("0.5 -1 0 .5", ("-1", ".5", "0", "0.5")),  # .5 is no number here, so all are names
        ("-1 0 1", ("-1", "0", "1")),
        ("-0 2 0.0", ("0", "2")),
        ("1.5 1.50 -2.25", ("-2.25", "1.5")),
        ("007 7", ("007", "7")),
        ("1e5 1", ("1", "1e5")),
        ("good bad okay", ("bad", "good", "okay")),
        ("negative neutral positive", ("negative", "neutral", "positive")),
        ("0 1 2", ("0", "1", "2")),
        ("no yes", ("no", "yes")),
        ("été zèle Été2", ("zèle", "Été2", "été")),
        ("12345678901234567890 1", ("1", "12345678901234567890")),
        ("9007199254740993 9007199254740992", ("9007199254740992", "9007199254740993")),  # equal as floats
        ("① 1", ("1", "①")),  # NFKC would make one class of them
    ],
)
def test_other_values_are_classes_numbers_in_numeric_order(values: str, names: tuple[str, ...]):
    assert find_classes(values.split(), "f") == names
    for name in names:
        assert class_numbers([f" {name} "], names, "f") == [names.index(name)]


def test_empty_values_and_nan_are_unknown():
    values = ["", " ", "nan", "NaN", "<NA>", "3", "3.0", "4"]
    assert find_classes(values, "f") == ("3", "4")
    assert class_numbers(values, ("3", "4"), "f") == [UNKNOWN] * 5 + [0, 0, 1]
    assert find_classes(["", "nan"], "f") == ()
    assert find_classes(["none", "NA", "some"], "f") == ("NA", "none", "some")  # these are names


def test_a_mark_of_a_missing_label_is_no_third_class():
    for values in (["0", "1", "NA"], ["pos", "neg", "?"], ["positive", "unknown"], ["1", "2", "3", "NA"], ["0", "\\N"]):
        with pytest.raises(
            ValueError, match=r"^f has .(NA|\?|unknown|\\\\N). beside '.*: leave the cell of a missing label empty"
        ):
            find_classes(values, "f")
    for values in (["Negative", "neutral", "Positive", "unlabelled"], ["pos", "neg", "neutral", "unlabeled"]):
        with pytest.raises(ValueError, match=rf"^f has '{values[-1]}' beside '.*: leave the cell of a missing label"):
            find_classes(values, "f")
    assert find_classes(["none", "unknown"], "f") == ("none", "unknown")


def test_columns_that_are_no_labels_are_refused_with_their_name():
    with pytest.raises(ValueError, match=r"^x: column 'y' holds no labels: 101 distinct values in 1,010 rows"):
        find_classes([str(i) for i in range(101)] * 10, "x: column 'y'")
    with pytest.raises(ValueError, match=r"21 distinct values in 41 rows \('0', '1', '2', …\)"):
        find_classes([str(i % 21) for i in range(41)], "f")
    assert len(find_classes([str(i % 21) for i in range(42)], "f")) == 21
    assert len(find_classes([str(i) for i in range(100)] * 3, "f")) == 100
    assert len(find_classes([str(i) for i in range(20)], "f")) == 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("Good good bad", "spells one class in two ways, 'Good' and 'good'"),
        ("pos positive neutral", "spells one class in two ways, 'pos' and 'positive'"),
        ("İyi iyi kötü", "spells one class in two ways, 'İyi' and 'iyi'"),
        ("0 1 pos", "spells one class in two ways, '1' and 'pos'"),
        ("0 positive", "mixes the spellings '0', 'positive' of two classes"),
    ],
)
def test_two_spellings_of_a_class_are_refused(values: str, message: str):
    with pytest.raises(ValueError, match=message):
        find_classes(values.split(), "f")


def test_values_map_to_given_classes_by_name():
    assert class_numbers(["0", "neg", "TRUE", "Positive"], SENTIMENT, "f") == [0, 0, 1, 1]
    assert class_numbers(["1", "0", "pos", "negative"], ("POSITIVE", "NEGATIVE"), "f") == [0, 1, 0, 1]
    assert class_numbers(["1", "3.0"], ("1", "2", "3"), "f") == [0, 2]
    assert class_numbers(["GOOD", "bad"], ("bad", "good"), "f") == [1, 0]
    with pytest.raises(
        ValueError, match=r"^x has labels that are not classes: 'okay' \(2 rows\), 'x' \(1 row\); the classes are "
    ):
        class_numbers(["okay", "okay", "x", "bad"], ("bad", "good"), "x")
    with pytest.raises(ValueError, match="are not classes: '1'"):  # 1 may be the second or the third class
        class_numbers(["1"], ("negative", "neutral", "positive"), "f")
    with pytest.raises(ValueError, match=r"are not classes: 'a' \(2 rows\), .* and 3 more; the"):
        class_numbers([*"aabbccddeefgh"], ("z",), "f")
    with pytest.raises(ValueError, match=r"are not classes: 'f' \(3 rows\), 'a' \(1 row\), .* and 1 more; the"):
        class_numbers([*"abcdefff"], ("z",), "f")  # the most frequent first
    with pytest.raises(ValueError, match="are not classes: 'label2' "):  # LABEL_2 alone is a placeholder
        class_numbers(["LABEL_2", "label2"], ("1", "2"), "f")


def test_canonical_names_are_equal_across_spellings():
    assert [canonical(name) for name in ("NEG", "0", "0.0", "False", "Negative ")] == ["negative"] * 5
    assert [canonical(name) for name in ("Pos", "1", "true", "POSITIVE")] == ["positive"] * 4
    assert canonical("Very Good") == "very good"
    assert canonical("İYİ") == canonical("iyi") != canonical("ıyı")
    assert canonical("2.0") == "2"
    assert normalize(" 1.50 ") == "1.5"


def test_a_message_lists_eight_values():
    assert quoted("abcdefgh") == "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'"
    assert quoted("abcdefghi") == quoted("abcdefgh") + ", …"
    assert quoted(["x" * 60, "y" * 61]) == f"'{'x' * 60}', '{'y' * 60}…'"


def test_withheld_labels():
    assert all_hidden(["-1", "-1.0"], SENTIMENT)
    assert not all_hidden(["-1", "1"], SENTIMENT)
    assert not all_hidden(["-1"], ("-1", "0", "1"))
    assert not all_hidden([], SENTIMENT)


def test_columns_that_look_like_labels():
    assert looks_like_labels(["a", "b", "a"])
    assert looks_like_labels(["0", "1"])
    assert not looks_like_labels(["a", "b", "c"])  # nothing is repeated
    assert not looks_like_labels(["a", "a"])
    assert looks_like_labels([str(i) for i in range(20)] * 2)
    assert not looks_like_labels([str(i) for i in range(21)] * 2)
    assert looks_like_labels(["x" * 60, "b", "b"])
    assert not looks_like_labels(["x" * 61, "b", "b"])
    assert holds_sentiment(["neg", "pos", "", "pos"])
    assert not holds_sentiment(["1", "1"])
    assert not holds_sentiment(["1", "2"])
    assert looks_like_labels(["1", "2", "1.0"])  # one class in two spellings
    assert few_names(["1", " 1 ", "1.0", "", "2", "nan"]) == {"1": 3, "2": 1}


def test_each_spelling_of_a_label_is_read_once(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(labels, "normalize", lambda value: calls.append(value) or value)
    assert few_names(["a"] * 9 + ["b"]) == {"a": 9, "b": 1}
    assert calls == ["a", "b"]
    assert not few_names([str(i) for i in range(999)])
    assert len(calls) == 2 + 21  # no more than are needed to see that they are too many


# ------------------------------------------------------------------------------------------------------- in files


def write_csv(path: Path, labels: list[str], header: str = "review,label") -> Path:
    """Writes ten reviews for each label."""
    rows = [f"{label} film {number},{label}" for number in range(10) for label in labels]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_splits_have_the_names_of_the_training_file(tmp_path: Path):
    path = write_csv(tmp_path / "x.csv", ["good", "bad", "so-so"])
    splits = load_splits(Source(data=str(path)))
    assert splits.labels == ("bad", "good", "so-so")
    assert [len(frame) for frame in splits[:4]] == [24, 6, 0, 0]
    for frame in splits[:2]:
        assert [splits.labels[number] for number in frame["sentiment"]] == [t.split()[0] for t in frame["review"]]


def test_a_class_that_training_does_not_have_is_an_error_without_skip_bad_rows(tmp_path: Path):
    train = write_csv(tmp_path / "train.csv", ["good", "bad"])
    test = write_csv(tmp_path / "test.csv", ["good", "great"])
    for part in ("validation", "test"):
        source = Source(train=str(train), skip_bad_rows=True, **{part: str(test)})
        with pytest.raises(
            ValueError, match=r"test.csv: column 'label' has labels that are not classes: 'great' \(10 rows\)"
        ) as caught:
            load_splits(source)
        assert "skip-bad-rows" not in str(caught.value)
        assert "its header is 'review', 'label'; its first row is 'good film 0', 'good'" in str(caught.value)


def test_rows_without_a_label_are_unlabelled_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_csv(tmp_path / "x.csv", ["1", "2", ""])
    splits = load_splits(Source(data=str(path)))
    assert [len(frame) for frame in splits[:4]] == [16, 4, 0, 10]
    assert (splits.unlabelled["sentiment"] == UNKNOWN).all()
    assert "10 of 30 reviews have no label" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"none.csv: column 'label' has no labels; --label-column .* header is"):
        load_splits(Source(data=str(write_csv(tmp_path / "none.csv", [""]))))


def test_a_validation_file_needs_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train = write_csv(tmp_path / "train.csv", ["1", "0"])
    part = write_csv(tmp_path / "part.csv", ["1", "0", ""])
    splits = load_splits(Source(train=str(train), validation=str(part)), with_unlabelled=True)
    assert (len(splits.validation), len(splits.unlabelled)) == (20, 0)
    assert "part.csv: 10 of 30 reviews have no label and are not scored" in capsys.readouterr().out
    withheld = write_csv(tmp_path / "withheld.csv", ["-1"])
    with pytest.raises(ValueError, match=r"has no labels; .* a run holds out a fifth of the training reviews"):
        load_splits(Source(train=str(train), validation=str(withheld)))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_the_way_out_of_a_label_that_is_no_class_is_one(tmp_path: Path, part: str):
    """--label-column none is one for --predict, which needs no labels."""
    train, other = write_csv(tmp_path / "train.csv", ["1", "0"]), write_csv(tmp_path / "other.csv", ["1", "2"])
    with pytest.raises(ValueError, match=r"'2' \(10 rows\).*; correct these labels, or empty their cells") as caught:
        load_splits(Source(train=str(train), **{part: str(other)}))
    assert "--label-column none" not in str(caught.value)
    with pytest.raises(ValueError, match=r"--label-column none reads the texts alone"):
        load_table(other, Source(label_column="label"), labels=SENTIMENT, needs_labels=False)
    write_csv(tmp_path / "other.csv", ["1", ""])
    assert len(load_splits(Source(train=str(train), **{part: str(other)}))._asdict()[part]) == (
        10 if part == "validation" else 20
    )


def test_a_label_column_that_is_no_label_is_refused_with_ways_out(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text("review,label\n" + "".join(f"text {i},{i / 7}\n" for i in range(50)))
    with pytest.raises(ValueError, match="holds no labels: 50 distinct values") as caught:
        load_reviews(path)
    for part in ("column 'label'", "--label-column names another", "--label-column none", "its first row is 'text 0'"):
        assert part in str(caught.value)
    assert load_reviews(path, label_column="none")["sentiment"].tolist() == [UNKNOWN] * 50


def test_one_class_cannot_be_trained(tmp_path: Path):
    train = write_csv(tmp_path / "train.csv", ["good"])
    with pytest.raises(ValueError, match=r"train\.csv: all reviews have the class 'good'; two are needed to train"):
        load_splits(Source(data=str(train)))
    with pytest.raises(ValueError, match=r"train.csv: all reviews have the class 'good'; two are needed"):
        load_splits(Source(train=str(train), validation=str(train)))


def test_a_rare_class_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_csv(tmp_path / "x.csv", ["good", "bad"])
    path.write_text(path.read_text() + "typo,godo\n")
    assert load_splits(Source(data=str(path))).labels == ("bad", "godo", "good")
    assert "classes with very few reviews: 'godo' (1)" in capsys.readouterr().out


def test_withheld_labels_of_a_test_file_are_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train = write_csv(tmp_path / "train.csv", ["good", "bad"])
    write_csv(tmp_path / "test.csv", ["-1"])
    splits = load_splits(Source(data=str(tmp_path)))
    assert splits.test["sentiment"].tolist() == [UNKNOWN] * 10
    assert "all labels are -1: they are withheld" in capsys.readouterr().out
    assert load_table(train, Source(), labels=("good", "bad"))[0]["sentiment"].tolist() == [0, 1] * 10


def test_names_that_look_equal_are_one_class():
    values = ["bien", "bien\u200b", "\ufeffbien ", "n\u00e9gatif", "ne\u0301gatif"]  # one accent, in two forms
    names = find_classes(values, "f")
    assert names == ("bien", "n\u00e9gatif")
    assert class_numbers(values, names, "f") == [0, 0, 0, 1, 1]
    assert class_numbers(values, ("bien", "ne\u0301gatif"), "f") == [0, 0, 0, 1, 1]  # names of a published config
    assert class_numbers(["1.0", "2"], ("1.0", "2.0"), "f") == [0, 1]
    assert find_classes(["neg", "pos\u200b"], "f") == SENTIMENT
    assert find_classes(["cafe\u200b\u0301", "caf\u00e9", "bad"], "f") == ("bad", "caf\u00e9")
    assert find_classes(["a good", "a  good", "a\xa0good ", "a\u3000good", "bad"], "f") == ("a good", "bad")
    assert find_classes(["\u200fגרוע", "גרוע", "טוב"], "f") == ("גרוע", "טוב")
    with pytest.raises(ValueError, match="spells one class in two ways"):
        find_classes(["\u2764", "\u2764\ufe0f", "bad"], "f")
    joined = "\u062e\u06cc\u0644\u06cc\u200c\u062e\u0648\u0628"  # Persian "very good", with a zero-width non-joiner
    assert find_classes([joined, "bad"], "f") == ("bad", joined)


@pytest.mark.parametrize(
    "name", ["tr\xe8s\xa0bon", "خیلی\u200cخوب", "❤️\u200d🔥", "a\u3000b", "s\u00adb", "x" * 200, "\u061cx"]
)
def test_a_class_that_is_trained_can_be_opened_again(name: str):
    names = find_classes([name, "bad"], "f")
    assert checked_names(names) == names
    assert all(map(is_class_name, names))
    assert class_numbers([name, "bad"], names, "f") == [names.index(normalize(name)), names.index("bad")]
    assert published_names({"id2label": dict(enumerate(names))}, 2, Path("x")) == names
