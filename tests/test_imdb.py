"""Reading, cleaning, splitting and finding the reviews: Kaggle's files, Stanford's folder, CSV."""

import gzip
import hashlib
import random
import re
import unicodedata
import warnings
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

import data
from data import Source, Splits, find_source, load_splits, load_table, overlap
from data.checksums import seal_file
from data.cleaning import BREAKS, NO_ENTITY, NO_TAG, clean
from data.imdb import as_frame, load_reviews, rating_label, read_reviews
from data.labels import SENTIMENT, UNKNOWN
from data.options import Options, read_splits
from data.splitting import hash_order, split_train, subset


def kaggle(rows: list[str], header: str = "id\tsentiment\treview") -> str:
    """Returns the text of a file in Kaggle's format."""
    return "\n".join([header, *rows]) + "\n"


def write(path: Path, text: str) -> Path:
    """Writes text, compressed if the name ends in .gz, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Plain.", "Plain."),
        ("one<br /><br />two", "one two"),
        ("an <i>italic</i>. word", "an italic. word"),
        ("Tom &amp; Jerry &lt;3 AT&T", "Tom & Jerry <3 AT&T"),
        ("a < b and 3<5, I <3 it", "a < b and 3<5, I <3 it"),
        ("  many \t\n blanks  ", "many blanks"),
        ("<p>one</p><p>two</p>", "one two"),
        ("<script>code</script>text", "text"),
        ("<dl><dt>Good</dt><dd>bad</dd></dl><pre>a</pre>b", "Good bad a b"),
        ("<tr><th>one</th><th>two</th></tr><SECTION id=1>three</SECTION>four", "one two three four"),
        ("the <pretty> and <thin> film, <title>s", "the and film, s"),
        ("According to <RT> this is <b>bad</b>", "According to <RT> this is bad"),
        ("<ruby>a<rp>(</rp><rt>b</rt><rp>)</rp></ruby> film, <rp> too", "a film, <rp> too"),
        ("I loved the <style> of this film.<br />Great.", "I loved the <style> of this film. Great."),
        ("<style>a</style> The <SCRIPT> was bad", "The <SCRIPT> was bad"),
        ("<style>a</style foo>A <b>film</b><script>f()</script-x>, good", "A film, good"),
        ("<STYLE>a</Style/>b </style> c", "b c"),
        ("<script>x<script>y</script> z", "z"),
        ("<template>a<template>b</template>c</template>d <Template>e", "d <Template>e"),
        ("<rt>a<rt>b</rt> great film", "<rt>a great film"),
        ("<iframe src=x> great <b>film</b> <textarea>a &amp; b</textarea>", "great film a & b"),
        ("NBSP\xa0and\x85C1 stay", "NBSP\xa0and\x85C1 stay"),
        ("http://example.org/<br />", "http://example.org/"),
    ],
)
def test_clean_converts_html_to_text(raw: str, cleaned: str):
    assert clean(raw) == cleaned


def plain_clean(text: str) -> str:
    """Cleans a text as `clean` does, with all steps for every text."""
    text = NO_TAG.sub("&lt;", NO_ENTITY.sub("&amp;", BREAKS.sub(" ", text)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        text = BeautifulSoup(text, "html.parser").get_text()
    text = re.sub(r"[ \t\r\n]+", " ", text).strip(" ")
    return "" if all(c.isspace() or unicodedata.category(c) == "Cf" for c in text) else text


def test_shortcuts_do_not_change_cleaned_text():
    stream = random.Random(0)
    parts = [*"ab. \t\r\n\xa0&<>;/\0\x0b\u3000", "<br />", "<br", "&amp;", "&#9;", "&lt;", "<i>", "</p>", "  ", "<!--"]
    for _ in range(3000):
        text = "".join(stream.choices(parts, k=stream.randrange(30)))
        assert clean(text) == plain_clean(text), text


def test_reviews_of_one_megabyte_are_read(tmp_path: Path):
    huge = "word <br />" * 100_000
    path = write(tmp_path / "a.csv", f'text,label\n"{huge}",1\nshort,0\n')
    frame = load_reviews(path)
    assert len(frame["review"][0]) == len("word ") * 100_000 - 1
    tsv = write(tmp_path / "a.tsv", kaggle([f'"1_9"\t1\t"{huge}"']))
    assert load_reviews(tsv)["review"][0] == frame["review"][0]


@pytest.mark.parametrize("name", ["labeledTrainData.tsv", "labeledTrainData.tsv.gz"])
def test_kaggle_file(tmp_path: Path, name: str):
    rows = ['"5_8"\t1\t"He said \\"go\\".<br />Fine, \'really\'"', '"7_2"\t0\t"Bad"']
    frame = load_reviews(write(tmp_path / name, kaggle(rows)))
    assert frame.to_dict("list") == {
        "id": ["5_8", "7_2"],
        "review": ["He said \"go\". Fine, 'really'", "Bad"],
        "sentiment": [1, 0],
    }


def test_test_labels_are_read_from_the_rating(tmp_path: Path):
    rows = [f'"{i}_{rating}"\t"text"' for i, rating in enumerate((1, 4, 5, 10, 0))]
    frame = load_reviews(write(tmp_path / "testData.tsv", kaggle(rows, "id\treview")))
    assert frame["sentiment"].tolist() == [0, 0, 1, 1, UNKNOWN]
    assert rating_label("other") == UNKNOWN
    assert load_table(tmp_path / "testData.tsv", Source(), ("bad", "good"))[0]["sentiment"].tolist() == [UNKNOWN] * 5


BROKEN = [
    '"1_9"\t1\t"good"',
    '"2_9"\t1',
    '"3_9"\t1\t""',
    '"4_9"\t0\t"x"',
    '"5_9"\t1\t"a\tb"',
    '"6_1"\t0\t"<br />"',
    '"7_1"\t0\t"y"',
]


def test_broken_rows_are_listed_by_number_and_can_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "labeledTrainData.tsv", kaggle(BROKEN))
    with pytest.raises(ValueError, match="4 broken rows") as caught:
        load_reviews(path)
    for message in ("row 3: 2 fields instead of 3", "row 4: empty review", "row 6: 4 fields", "row 7: empty review",
                 "--skip-bad-rows skips", "its first row is '1_9', '1', 'good'"):  # fmt: skip
        assert message in str(caught.value)
    assert load_reviews(path, skip_bad_rows=True)["review"].tolist() == ["good", "x", "y"]
    assert "4 broken rows skipped" in capsys.readouterr().out


def test_csv_with_quotes_commas_and_line_breaks(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'review,sentiment\n"a, ""b""\nc",positive\nplain,negative\n')
    assert load_reviews(path)["review"].tolist() == ['a, "b" c', "plain"]
    assert load_reviews(path)["sentiment"].tolist() == [1, 0]
    other = write(tmp_path / "y.tsv", "when\tbody\tclass\n1\tgood\tpos\n2\tbad\tneg\n")
    with pytest.raises(ValueError, match=r"no column is read as the text.* header is 'when', 'body', 'class'"):
        load_reviews(other)
    assert load_reviews(other, text_column="body", label_column="class")["sentiment"].tolist() == [1, 0]
    with pytest.raises(ValueError, match="has no column 'nope', which --text-column names; its header is 'when'"):
        load_reviews(other, "nope")
    twice = write(tmp_path / "z.csv", "text,review,label\na,b,1\n")
    with pytest.raises(ValueError, match=r"several columns \(text, review\) have a usual name.*--text-column"):
        load_reviews(twice)


def test_unreadable_files_raise(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_reviews(tmp_path / "none.tsv")
    with pytest.raises(ValueError, match="is empty"):
        load_reviews(write(tmp_path / "empty.tsv", ""))
    with pytest.raises(ValueError, match="contains no review"):
        load_reviews(write(tmp_path / "header.tsv", "id\tsentiment\treview\n"))
    (tmp_path / "latin.tsv").write_bytes("review\tlabel\ncaf\xe9\t1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_reviews(tmp_path / "latin.tsv")
    (tmp_path / "cut.tsv.gz").write_bytes(gzip.compress(b"review\tlabel\n" + b"a\t1\n" * 10_000)[:60])
    with pytest.raises(ValueError, match="is damaged"):
        load_reviews(tmp_path / "cut.tsv.gz")


def test_cleaned_text_is_cached_by_the_hash_of_the_file(tmp_path: Path):
    path = write(tmp_path / "labeledTrainData.tsv", kaggle(['"1_9"\t1\t"a<br />b"']))
    first = load_reviews(path, cache=tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.jsonl")
    stored.write_text(stored.read_text().replace("a b", "from the cache"))
    seal_file(stored)
    assert load_reviews(path, cache=tmp_path / "cache")["review"][0] == "from the cache"
    write(path, kaggle(['"1_9"\t1\t"changed"']))
    assert load_reviews(path, cache=tmp_path / "cache")["review"][0] == "changed"
    assert first["review"][0] == "a b"


def test_split_is_stratified_and_independent_of_the_order_of_rows():
    frame = as_frame([(f"{i}_{i % 10 + 1}", f"text {i}", i % 2) for i in range(500)])
    train, held_out = split_train(frame)
    assert (len(train), len(held_out)) == (400, 100)
    assert held_out["sentiment"].mean() == train["sentiment"].mean() == 0.5
    again, other = split_train(frame.sample(frac=1, random_state=1))
    assert set(again["id"]) == set(train["id"])
    assert set(other["id"]) == set(held_out["id"])
    assert sorted(held_out["id"])[:4] == [
        "113_4",
        "117_8",
        "123_4",
        "124_5",
    ]  # fixed: a change would invalidate all published rows
    with pytest.raises(ValueError, match=r"^cannot split 250 reviews with labels \{'positive': 250\} .*two labels"):
        split_train(frame[frame["sentiment"] == 1])
    with pytest.raises(ValueError, match=r"a label needs three to give one to validation; add .* with --validation$"):
        split_train(frame[:4])
    assert [len(part) for part in split_train(frame.iloc[[0, 1, 3, 5]])] == [3, 1]
    with pytest.raises(ValueError, match=r"into training and validation: a label needs three to give one"):
        split_train(frame.iloc[[0, 1, 2, 4, 6, 8, 10]], fraction=0.6)  # the only review of one label is held out


def test_the_parts_of_a_split_are_numbered_from_0():
    frame = as_frame([(str(i), f"text {i}", i % 2) for i in range(20)])
    for part in split_train(frame[::-1]):
        assert part.index.tolist() == list(range(len(part)))


def test_subsets_are_balanced_and_nested():
    frame = as_frame([(str(i), f"text {i}", i % 2) for i in range(500)])
    small, large = subset(frame, count=30, seed=42), subset(frame, count=101, seed=42)
    assert small["sentiment"].sum() == 15
    assert set(small["id"]) < set(large["id"])
    assert set(subset(frame, count=30, seed=43)["id"]) != set(small["id"])
    with pytest.raises(ValueError, match=r"--train-reviews 501 is outside 2 … 500"):
        subset(frame, count=501, seed=42)
    with pytest.raises(ValueError, match=r"--test-reviews 1 is outside 2 … 500"):
        subset(frame, count=1, seed=42, flag="--test-reviews")
    with pytest.raises(ValueError, match=r"--train-reviews 3: there are no such reviews"):
        subset(frame[:0], count=3, seed=42)
    assert sorted(subset(frame, count=2, seed=42)["sentiment"]) == [0, 1]
    assert subset(frame, count=500, seed=42).equals(frame)


def test_a_subset_is_in_the_order_of_the_file_and_the_first_label_has_one_more():
    frame = as_frame([(str(i), f"text {i}", i % 2) for i in range(500)])
    for count in (31, 101):
        found = subset(frame, count=count, seed=42)
        assert found["id"].astype(int).is_monotonic_increasing
        assert found["sentiment"].value_counts().to_dict() == {0: count // 2 + 1, 1: count // 2}


def test_reviews_without_a_label_are_no_part_of_a_subset_that_is_scored(tmp_path: Path):
    rows = ["id,text,label", *(f"{i},text {i},{'' if i % 2 else i % 4 // 2}" for i in range(40))]
    (tmp_path / "test.csv").write_text("\n".join(rows))
    (tmp_path / "train.csv").write_text("\n".join(row for row in rows if not row.endswith(",")))
    options = Options(train=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"), test_reviews=14)
    assert read_splits(options, None).test["sentiment"].value_counts().to_dict() == {0: 7, 1: 7}


def test_stanford_folder(tmp_path: Path):
    for split in ("train", "test"):
        for kind in ("pos", "neg"):
            for i in range(10):
                name = f"{i}_{9 if kind == 'pos' else 2}.txt"
                write(tmp_path / "aclImdb" / split / kind / name, f"{split} {kind} {i}")
    write(tmp_path / "aclImdb/train/unsup/0_0.txt", "unlabelled")
    splits = load_splits(Source(data=str(tmp_path)))
    assert [len(frame) for frame in splits[:4]] == [16, 4, 20, 1]
    assert splits.test["sentiment"].sum() == 10
    assert splits.labels == SENTIMENT
    assert [*splits.files] == [str(tmp_path / "aclImdb")]
    again = load_splits(Source(data=str(tmp_path / "aclImdb")))
    assert [len(frame) for frame in again[:4]] == [16, 4, 20, 1]
    assert again.files == splits.files
    write(tmp_path / "aclImdb/test/pos/3_9.txt", "changed")
    assert load_splits(Source(data=str(tmp_path))).files != splits.files
    write(tmp_path / "aclImdb/test/pos/3_9.txt", "<br />")
    with pytest.raises(ValueError, match=r"1 broken rows \(pos/3_9.txt: empty review\)"):
        load_splits(Source(data=str(tmp_path)))
    assert len(load_splits(Source(data=str(tmp_path), skip_bad_rows=True)).test) == 19


def test_files_that_are_left_out_of_a_folder_of_reviews_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for kind in ("pos", "neg"):
        for i in range(5):
            write(tmp_path / "train" / kind / f"{i}.TXT", f"film {kind} {i}")
            write(tmp_path / "train" / kind / f"{i}.html", "left out")
        write(tmp_path / "train" / kind / ".DS_Store", "of a system")
    assert len(load_splits(Source(data=str(tmp_path))).train) == 8
    assert "only files that end in .txt are: '0.html', '0.html', '1.html', … (10 in all)" in capsys.readouterr().out
    write(tmp_path / "train/neutral/1.TXT", "so so")
    with pytest.raises(ValueError, match=r"holds 'neutral' beside pos and neg"):
        load_splits(Source(data=str(tmp_path)))
    (tmp_path / "train/neutral/1.TXT").unlink()
    write(tmp_path / "test/1.txt", "unlabelled")
    with pytest.raises(ValueError, match=r"test contains no review; those in its folders pos, neg and unsup are read"):
        load_splits(Source(data=str(tmp_path)))


def test_kaggle_folder_and_overlap(tmp_path: Path):
    rows = [f'"{i}_{9 if i % 2 else 2}"\t{i % 2}\t"review {i % 19}"' for i in range(20)]
    write(tmp_path / "labeledTrainData.tsv", kaggle(rows))
    write(tmp_path / "testData.tsv.gz", kaggle(['"9_9"\t"review 3"', '"8_1"\t"new"'], "id\treview"))
    write(tmp_path / "unlabeledTrainData.tsv", kaggle(['"9_0"\t"x"'], "id\treview"))
    source = Source(data=str(tmp_path))
    splits = load_splits(source)
    assert [len(frame) for frame in splits[:4]] == [16, 4, 2, 0]
    assert [Path(path).name for path in splits.files] == ["labeledTrainData.tsv", "testData.tsv.gz"]
    assert len(load_splits(source, with_unlabelled=True).unlabelled) == 1
    path = tmp_path / "labeledTrainData.tsv"
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:  # as Kaggle ships it
        archive.write(path, path.name)
    path.unlink()
    assert load_splits(source).train.equals(splits.train)
    found = overlap(splits)
    assert found["duplicates among the labelled reviews"] == 1
    assert found["test reviews that are also labelled"] == 1


def test_every_review_that_is_also_in_training_counts():
    train, validation, test = (as_frame([("1", text, 0) for text in texts]) for texts in ("xz", "xxy", "xxyw"))
    assert overlap(Splits(train, validation, test, as_frame([]))) == {
        "duplicates among the labelled reviews": 2,
        "validation reviews that are also in training": 2,
        "test reviews that are also labelled": 3,
    }


def test_find_source_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("IMDB_DIR", raising=False)
    monkeypatch.setattr(data, "HERE", tmp_path / "data")
    reason = "the built-in reviews; --data imdb downloads IMDB; --data DIR or $IMDB_DIR reads it"
    assert find_source("") == ("demo", reason)
    assert find_source("demo")[0] == "demo"
    (tmp_path / "data" / "imdb").mkdir(parents=True)
    assert find_source("") == (str(tmp_path / "data" / "imdb"), "data/imdb/ exists")
    monkeypatch.setenv("IMDB_DIR", str(tmp_path))
    assert find_source("") == (str(tmp_path), "$IMDB_DIR")
    assert find_source(str(tmp_path / "data")) == (str(tmp_path / "data"), "--data")
    monkeypatch.setenv("IMDB_DIR", "/nowhere")
    with pytest.raises(FileNotFoundError, match=r"\$IMDB_DIR names /nowhere, which does not exist"):
        find_source("")
    with pytest.raises(FileNotFoundError, match="holds neither labeledTrainData"):
        load_splits(Source(data=str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    assert find_source("data") == (str(tmp_path / "data"), "--data")  # absolute, for use from any folder
    (tmp_path / "imdb").mkdir()
    assert find_source("imdb") == (str(tmp_path / "imdb"), "--data")  # a folder of this name is not downloaded


def digest(frame: pd.DataFrame) -> str:
    """Hashes ids, cleaned texts and labels, in their order."""
    rows = map(repr, zip(frame["id"], frame["review"], frame["sentiment"].tolist(), strict=True))
    return hashlib.sha256("".join(rows).encode()).hexdigest()[:24]


@pytest.mark.slow
def test_full_data_set(imdb: Path, tmp_path: Path):
    splits = load_splits(Source(data=str(imdb)), cache=tmp_path, with_unlabelled=True)
    assert [len(frame) for frame in splits[:4]] == [20_000, 5_000, 25_000, 50_000]
    assert [digest(frame) for frame in splits[:4]] == [
        "40de32ae6ddcf411cb7349cc", "77194a9f1e9e387283746d07", "ec379b51945e63b8e859e547", "34c8a9c7ee078839980943cf"
    ]  # fmt: skip  # of the splits of all published rows
    assert splits.test["sentiment"].sum() == 12_500
    assert splits.train["sentiment"].sum() == 10_000
    assert (splits.unlabelled["sentiment"] == UNKNOWN).all()
    assert not splits.train["review"].str.contains("<br", regex=False).any()


def test_the_rating_that_is_noted_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "testData.tsv"
    path.write_text("id\treview\nabc\tso so\n123_9\tgood\n5_2\tbad\n")
    assert load_reviews(path)["sentiment"].tolist() == [UNKNOWN, 1, 0]
    assert "they are the ratings in the ids, such as 123_9" in capsys.readouterr().out


def test_labels_in_a_column_without_a_title(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text(",text\n" + "0,a bad film\n1,a good film\n" * 5)
    with pytest.raises(ValueError, match=r"one without a title looks like it; give it a title, such as label$"):
        load_splits(Source(train=str(path)))


def test_reviews_with_one_id_are_ordered_by_their_texts():
    frame = as_frame([("1", "b", 0), ("2", "x", 0), ("1", "a", 0), ("1", "c", 0)])
    order = dict(zip(frame["review"], hash_order(frame, "42"), strict=True))
    assert order["a"] < order["b"] < order["c"]
    turned = frame[::-1].reset_index(drop=True)
    assert dict(zip(turned["review"], hash_order(turned, "42"), strict=True)) == order


def test_each_way_to_read_a_file_has_a_cache_file_of_its_own(tmp_path: Path):
    path = write(tmp_path / "a.csv", "id,other,text,label,stars\n" + "7,x,a film,1,5\n8,y,a plot,0,1\n")
    ways: list[dict] = [{"text_column": "other"}, {"label_column": "stars"}, {"id_column": "other"}]
    ways += [{"encoding": "latin-1"}, {"quoting": "literal"}, {"skip_bad_rows": True}, {"max_file_mib": 9}]
    read_reviews(path, Source(), tmp_path / "cache")
    for way in ways:
        read_reviews(path, Source(**way), tmp_path / "cache")
    for how in ({"keep_empty": True}, {"optional_label": True}):
        read_reviews(path, Source(), tmp_path / "cache", **how)
    assert len(list((tmp_path / "cache").glob("*.jsonl"))) == 1 + len(ways) + 2
