"""Tests of tables with all their rows, and of data in several files."""

import io
from pathlib import Path

import pandas as pd
import pytest
from table_files import write

from data import Source, load_splits, load_table
from data.delimited import split_lines, unquote
from data.demo import reviews
from data.labels import UNKNOWN
from data.predictions import read_lines
from data.pretraining_texts import hold_out_texts, load_texts

# ---------------------------------------------------------------------------------------- all rows, several files


def test_a_table_keeps_empty_reviews_and_the_order(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'id,text\n3,c\n1,\n2,<br />\n9,"d"\n')
    frame, labels = load_table(path, Source(), keep_empty=True)
    assert frame.values.tolist() == [["3", "c", -1], ["1", "", -1], ["2", "", -1], ["9", "d", -1]]
    assert labels == ()
    with pytest.raises(ValueError, match=r"2 broken rows \(row 3: empty review; row 4: empty review\)"):
        load_table(path, Source())
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_table(tmp_path, Source())


def test_a_text_file_is_lines_or_a_table(tmp_path: Path):
    lines = write(tmp_path / "a.txt", "good film\n\nthe review, said\u2028twice\n")
    assert load_table(lines, Source())[0].values.tolist() == [
        ["1", "good film", -1],
        ["3", "the review, said\u2028twice", -1],
    ]
    assert load_table(lines, Source(), keep_empty=True)[0]["review"].tolist() == [
        "good film",
        "",
        "the review, said\u2028twice",
    ]
    table = write(tmp_path / "b.txt", "id\tReview\n7\tgood\n")
    assert load_table(table, Source())[0].values.tolist() == [["7", "good", -1]]


def test_a_line_with_very_many_tags_is_named(tmp_path: Path):
    many = "<b>x</b>" * 11_000
    with pytest.raises(ValueError, match=r"a\.txt: line 2: a review with 22,000 HTML tags; .*; correct it$"):
        load_table(write(tmp_path / "a.txt", f"good film\n{many}\n"), Source())
    with pytest.raises(ValueError, match=r"^standard input: line 2: a review with 22,000 HTML tags; .*; correct it$"):
        read_lines(io.BytesIO(f"good film\n{many}\n".encode()))
    most = "<b>x</b>" * 10_000
    assert load_table(write(tmp_path / "a.txt", f"good film\n{most}\n"), Source())[0]["review"][1] == "x" * 10_000


def test_a_line_of_standard_input_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.predictions.FIELD_LIMIT", 9)
    for end in ("", "\n", "\r\n"):
        frame = read_lines(io.BytesIO(f"good film\nbad films{end}".encode()))
        assert frame["review"].tolist() == ["good film", "bad films"]
        with pytest.raises(ValueError, match=r"^a line of standard input has more than 9 characters; split it$"):
            read_lines(io.BytesIO(f"good film\nbad  films{end}".encode()))


def make_files(folder: Path, endings: dict[str, str]) -> None:
    """Writes a file for each part: {name: ending}."""
    for number, (name, ending) in enumerate(endings.items()):
        frame = pd.DataFrame({"text": [f"{name} {i}" for i in range(10)], "label": ["good", "bad"] * 5})
        frame["id"] = [f"{number}_{i}" for i in range(10)]
        if ending == "jsonl":
            frame.to_json(folder / f"{name}.jsonl", orient="records", lines=True)
        else:
            frame.to_csv(folder / f"{name}.{ending}", sep="\t" if "tsv" in ending else ",", index=False)


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev", "Dev"])
def test_a_folder_of_split_files(tmp_path: Path, validation: str):
    make_files(tmp_path, {"train": "csv", validation: "tsv.gz", "test": "jsonl"})
    splits = load_splits(Source(data=str(tmp_path)))
    assert splits.labels == ("bad", "good")
    for frame, name in zip(splits[:3], ("train", validation, "test"), strict=True):
        assert frame["review"].tolist() == [f"{name} {i}" for i in range(10)]
        assert frame["sentiment"].tolist() == [1, 0] * 5
    assert len(splits.unlabelled) == 0
    assert sorted(map(Path, splits.files)) == sorted(tmp_path.iterdir())


def test_files_of_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_files(tmp_path, {"a": "csv", "b": "tsv", "c": "jsonl"})
    monkeypatch.chdir(tmp_path)
    splits = load_splits(Source(train="a.csv", validation="b.tsv", test="c.jsonl"))
    assert [frame["review"].tolist()[0] for frame in splits[:3]] == ["a 0", "b 0", "c 0"]
    assert [*splits.files] == [str(tmp_path / name) for name in ("a.csv", "c.jsonl", "b.tsv")]
    without = load_splits(Source(train="a.csv"))
    assert [len(frame) for frame in without[:4]] == [8, 2, 0, 0]
    assert load_splits(Source(data="a.csv", test="b.tsv")).test["review"].tolist()[0] == "b 0"
    make_files(tmp_path, {"train": "csv", "test": "csv"})
    replaced = load_splits(Source(data=str(tmp_path), test="b.tsv"))
    assert (replaced.train["review"][0], replaced.test["review"][0]) == ("train 0", "b 0")
    with pytest.raises(ValueError, match=r"--train a.csv replaces --data b.tsv; give one of them"):
        load_splits(Source(train="a.csv", data="b.tsv"))
    with pytest.raises(FileNotFoundError, match=r"--validation nope.csv does not exist"):
        load_splits(Source(train="a.csv", validation="nope.csv"))


def test_tables_of_a_folder_that_are_not_read_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = "review,label\n" + "".join(f"film {number},{number % 2}\n" for number in range(12))
    for name in ("train.csv", "held.csv", "devel.csv"):
        (tmp_path / name).write_text(rows)
    load_splits(Source(data=str(tmp_path), test=str(tmp_path / "held.csv")))
    note = f"note: {tmp_path}: not read: 'devel.csv'; a file of a part is named train, validation or test\n"
    assert capsys.readouterr().out.startswith(note)
    load_splits(Source(train=str(tmp_path / "train.csv")))
    assert "not read" not in capsys.readouterr().out


def test_reviews_in_files_of_their_own_are_decoded_as_named(tmp_path: Path):
    """A short text can be valid UTF-8 by chance."""
    for kind, text in (("pos", "Ã©Ã©Ã©Ã©Ã©Ã© fine"), ("neg", "très bad")):
        (tmp_path / "train" / kind).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "train" / kind / f"{number}_5.txt").write_bytes(f"{text} {number}".encode("latin-1"))
    splits = load_splits(Source(data=str(tmp_path), encoding="latin-1"))
    assert splits.train["review"].str.contains("Ã©|très").all()


def test_the_built_in_reviews_with_another_test_file(tmp_path: Path):
    path = write(tmp_path / "x.csv", "text,label\ngreat,pos\nawful,neg\n")
    assert load_splits(Source(data="demo", test=str(path))).test["sentiment"].tolist() == [1, 0]


def test_folders_that_are_not_clear_are_refused(tmp_path: Path):
    (tmp_path / "one").mkdir()
    make_files(tmp_path / "one", {"reviews": "csv"})
    with pytest.raises(FileNotFoundError, match=r"neither labeledTrainData.* it holds 'reviews.csv': name one"):
        load_splits(Source(data=str(tmp_path / "one")))
    with pytest.raises(FileNotFoundError, match="; it holds no table"):
        load_splits(Source(data=str(tmp_path)))
    (tmp_path / "two").mkdir()
    make_files(tmp_path / "two", {"train": "csv", "dev": "csv", "valid": "tsv"})
    with pytest.raises(
        ValueError,
        match=r"holds dev.csv, valid.tsv for one split; keep one of them, or name the files: train.py --train",
    ):
        load_splits(Source(data=str(tmp_path / "two")))


def test_hugging_faces_files_and_unlabelled_ones(tmp_path: Path):
    make_files(tmp_path, {"train-00000-of-00001": "csv", "unsupervised": "csv"})
    source = Source(data=str(tmp_path))
    splits = load_splits(source, with_unlabelled=True)
    assert [len(frame) for frame in splits[:4]] == [8, 2, 0, 10]
    assert (splits.unlabelled["sentiment"] == UNKNOWN).all()
    assert len(load_splits(source).files) == 1
    texts = load_texts(source)
    assert (len(texts.train), len(texts.validation)) == (19, 1)
    assert len(texts.files) == 2


def numbered(folder: Path, part: str, files: dict[int, str], count: int = 2) -> None:
    """Writes the numbered files of a part, as Hugging Face names them."""
    for number, text in files.items():
        write(folder / f"{part}-{number:05}-of-{count:05}.csv", text)


def test_a_folder_in_the_folder_is_named(tmp_path: Path):
    (tmp_path / "plain_text").mkdir()
    make_files(tmp_path / "plain_text", {"train-00000-of-00001": "csv"})
    with pytest.raises(FileNotFoundError, match=r"holds the folder plain_text: name it with --data .*plain_text"):
        load_splits(Source(data=str(tmp_path)))


def test_numbered_files_are_one_part(tmp_path: Path, capsys):
    numbered(tmp_path, "train", dict.fromkeys((0, 1), "text,label\n" + "fine,pos\npoor,neg\n" * 5))
    numbered(tmp_path, "test", {1: "text,label\nfair,neg\n", 0: "text,label\ngood,pos\n"})
    splits = load_splits(Source(data=str(tmp_path)))
    assert len(splits.train) + len(splits.validation) == 20
    assert {*splits.train["id"], *splits.validation["id"]} == {f"{n}-{row}" for n in (0, 1) for row in range(2, 12)}
    assert splits.test["review"].tolist() == ["good", "fair"]  # in the order of the numbers
    assert sorted(Path(name).name for name in splits.files) == [
        f"{part}-0000{n}-of-00002.csv" for part in ("test", "train") for n in (0, 1)
    ]
    assert "not read" not in capsys.readouterr().out


def test_ids_of_numbered_files_stay_if_they_differ(tmp_path: Path):
    numbered(tmp_path, "train", {n: f"id,text,label\n{n}a,fine,pos\n{n}b,poor,neg\n" for n in (0, 1)})
    numbered(tmp_path, "dev", {n: f"id,text,label\n{n}c,fine,pos\n" for n in (0, 1)})
    splits = load_splits(Source(data=str(tmp_path)))
    assert splits.train["id"].tolist() == ["0a", "0b", "1a", "1b"]
    assert splits.validation["id"].tolist() == ["0c", "1c"]


@pytest.mark.parametrize(
    ("files", "count", "error"),
    [
        ({0: "text,label\nfine,pos\n"}, 3, r"lacks 'train-00001-of-00003.csv', 'train-00002-of-00003.csv'; fetch"),
        (
            {0: "text,label\nfine,pos\n", 1: "text,sentiment\npoor,neg\n"},
            2,
            "columns are 'label' and 'sentiment'",
        ),
        ({0: "text,label\nfine,pos\n", 1: "text,label\ngood,pos\n"}, 2, r"train-\*-of-00002.csv: all reviews have the"),
        ({0: "text,label\nfine,pos\n", 2: "text,label\npoor,neg\n"}, 2, "for one split; keep one of them"),
    ],
    ids=["missing", "columns", "one class", "too many"],
)
def test_numbered_files_that_are_no_part(files: dict[int, str], count: int, error: str, tmp_path: Path):
    numbered(tmp_path, "train", files, count)
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        load_splits(Source(data=str(tmp_path)))


def test_texts_of_an_incomplete_part_can_be_pretrained_on(tmp_path: Path):
    path = write(tmp_path / "train-00001-of-00003.jsonl", "".join(f'{{"text": "text {n}"}}\n' for n in range(60)))
    shards = load_texts(Source(data=str(tmp_path)), tmp_path / "cache").shards
    assert shards is not None
    assert {part.path for part in shards.parts} == {path}


def test_digests_change_with_the_content(tmp_path: Path):
    make_files(tmp_path, {"train": "csv", "test": "csv"})
    before = load_splits(Source(data=str(tmp_path))).files
    path = tmp_path / "test.csv"
    path.write_text(path.read_text().replace("test 3", "test 33"))
    after = load_splits(Source(data=str(tmp_path)), cache=tmp_path / "cache").files
    assert {name for name in before if before[name] != after[name]} == {str(path)}
    assert load_splits(Source(data=str(tmp_path)), cache=tmp_path / "cache").files == after


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\r\r\n", "\n\r"])
def test_lines_end_as_in_universal_newlines(end: str):
    text = end.join(["a\tb", "c\x85\u2028d", "", '"\\"e"'])
    for part in (text, text + end, end + text, "", end):
        expected = [line.rstrip("\r\n") for line in io.StringIO(part, newline="")]
        found = list(split_lines(part, "\t"))
        assert [record.number for record in found] == list(range(1, len(expected) + 1))
        assert [record.fields for record in found] == [
            [unquote(field) for field in line.split("\t")] if line else [] for line in expected
        ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_header_within_joined_files_is_a_broken_row(name: str, end: str, tmp_path: Path):
    separator = "," if name == "x.csv" else "\t"
    rows = [("text", "label"), ("good", "pos"), ("bad", "neg"), ("text", "label"), ("fine", "pos")]
    path = write(tmp_path / name, end.join(map(separator.join, rows)) + end)
    with pytest.raises(ValueError, match=r"1 broken rows \(row 4: the header again\); --skip-bad-rows skips them"):
        load_table(path, Source())
    frame, labels = load_table(path, Source(skip_bad_rows=True))
    assert (frame["review"].tolist(), labels) == (["good", "bad", "fine"], ("negative", "positive"))
    column = write(tmp_path / "one.csv", "text\ngood\ntext\n")
    assert load_table(column, Source())[0]["review"].tolist() == ["good", "text"]


@pytest.mark.parametrize("header", ["text,label", "id;text", '"Review"|"label"'])
def test_a_text_file_with_the_header_of_a_table_is_one(header: str, tmp_path: Path):
    separator = next(mark for mark in ",;|" if mark in header)
    path = write(tmp_path / "a.txt", f"{header}\n0{separator}1\n1{separator}0\n")
    assert len(load_table(path, Source())[0]) == 2
    lines = write(tmp_path / "b.txt", f"A bad film{separator} text\ngood\n")
    assert len(load_table(lines, Source())[0]) == 2
    assert load_table(lines, Source())[0]["review"][0].startswith("A bad film")


def test_texts_with_one_id_are_held_out_by_their_text():
    texts = pd.DataFrame({"id": "x", "review": [f"text {n}" for n in range(100)], "sentiment": UNKNOWN})
    assert [len(part) for part in hold_out_texts(texts, "x.csv")] == [95, 5]
    texts["id"] = [str(n) for n in range(100)]
    assert [len(part) for part in hold_out_texts(texts, "x.csv")] == [95, 5]


def test_pretraining_on_reviews_takes_a_file_of_texts_to_validate_on(tmp_path: Path):
    file = write(tmp_path / "held.txt", "one text\nanother\n")
    found, own = load_texts(Source("demo", validation=str(file))), load_texts(Source("demo"))
    assert found.validation["review"].tolist() == ["one text", "another"]
    assert set(found.train["review"]) == {*own.train["review"], *own.validation["review"]}
    assert found.train["id"].tolist() == [key for key, _, _ in reviews("train")]  # the order of the source
    with pytest.raises(ValueError, match="holds one text a line, so --quoting has no effect"):
        load_texts(Source("demo", validation=str(file), quoting="backslash"))
    assert str(file) in found.files
