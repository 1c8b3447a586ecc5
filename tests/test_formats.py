"""Tests of JSON, Parquet and compressed files, and of the columns that are read."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pandas as pd
import pytest
from table_files import FRAME, TEXTS, read, write, zipped

from data import Source, load_splits, load_table
from data.imdb import load_reviews
from data.labels import UNKNOWN
from data.readers import as_text

# ---------------------------------------------------------------------------------------------------------- JSON


OBJECTS = [
    {"text": "gut\u2028so", "label": True, "extra": [1]},
    {"label": False, "text": "schlecht", "id": 7},
    {"text": 5, "label": None, "id": "x"},
]


def test_json_lines_and_lists(tmp_path: Path):
    expected = {"id": ["row 1", "7", "x"], "review": ["gut\u2028so", "schlecht", "5"], "sentiment": [1, 0, UNKNOWN]}
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in OBJECTS)
    files = {
        "a.jsonl": lines,
        "a.ndjson": lines + "\n",
        "a.json": json.dumps(OBJECTS, indent=1),
        "b.json": json.dumps({"version": 1, "data": OBJECTS}),
        "c.json": lines,  # the other form, under the wrong ending
        "d.jsonl": json.dumps(OBJECTS, indent=1),
    }
    for name, text in files.items():
        path = write(tmp_path / name, text)
        assert load_reviews(path).to_dict("list") == expected, name
        assert bool(read(path).note) == (name in ("c.json", "d.jsonl")), name
    FRAME.to_json(tmp_path / "e.jsonl", orient="records", lines=True)
    assert load_reviews(tmp_path / "e.jsonl")["review"].tolist() == TEXTS


def test_broken_json_lines_are_listed(tmp_path: Path):
    lines = [
        '{"text": "a", "label": 1}',
        '{"text": ',
        "[1]",
        '{"text": ["b"], "label": 0}',
        '{"text": "\\ud83d"}',
        "",
        '{"label": 0}',
    ]
    path = write(tmp_path / "x.jsonl", "\n".join(lines))
    with pytest.raises(ValueError, match="5 broken rows") as caught:
        load_reviews(path)
    for part in ("row 2: not JSON (Expecting value", "row 3: list instead of an object", "row 4: a list or an object",
                 "row 5: half of a surrogate pair", "row 7: empty review", "header is 'text', 'label'"):  # fmt: skip
        assert part in str(caught.value)
    assert load_reviews(path, skip_bad_rows=True).values.tolist() == [["1", "a", 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"text": {"0": "a"}, "label": {"0": 1}}',
            r'object with text, label, not a list of objects; pandas .*"records"',
        ),
        ('["a", "b"]', "not a list of objects"),
        ("5", "is int, not a list"),
        ('[{"text": "a"', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("", "is empty"),
        ("[]", "is empty"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_reviews(write(tmp_path / "x.json", text))


# ------------------------------------------------------------------------------------------------------- Parquet


def test_parquet_without_pyarrow_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object, **__: object) -> None:
        raise ImportError("pyarrow")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(ValueError, match=r"x.parquet is a Parquet file; to read it: pip install pyarrow$"):
        load_reviews(write(tmp_path / "x.parquet", b"PAR1"))


def test_the_values_of_a_parquet_file_become_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frame = pd.DataFrame({"text": ["a", None, "c"], "label": [2.0, None, 10.0]}, index=pd.Index([7, 8, 9], name="id"))
    monkeypatch.setattr(pd, "read_parquet", lambda _, **__: frame)
    table = read(write(tmp_path / "x.parquet", b""))
    assert table.header == ["id", "text", "label"]
    assert [r.fields for r in table.records] == [["7", "a", "2.0"], ["8", "", ""], ["9", "c", "10.0"]]
    read_back, labels = load_table(tmp_path / "x.parquet", Source(), keep_empty=True)
    assert labels == ("2", "10")
    assert read_back.values.tolist() == [["7", "a", 0], ["8", "", UNKNOWN], ["9", "c", 1]]
    values = (None, float("nan"), pd.NA, pd.NaT, True, 3, b"x", b"\xff", [1], {})
    assert [as_text(value) for value in values] == ["", "", "", "", "True", "3", "x", None, None, None]


def test_an_index_of_a_parquet_file_may_be_a_column_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frame = pd.DataFrame({"id": [7, 8], "text": ["a", "b"]}).set_index("id", drop=False)
    monkeypatch.setattr(pd, "read_parquet", lambda _, **__: frame)
    table = read(write(tmp_path / "x.parquet", b""))
    assert (table.header, [r.fields for r in table.records]) == (["id", "text"], [["7", "a"], ["8", "b"]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bz2.compress(b"text\nx\n"), "compressed in a form that is not read; unpack it"),
        (lzma.compress(b"text\nx\n"), "compressed in a form that is not read; unpack it"),
        (gzip.compress(gzip.compress(b"text\nx\n")), "compressed twice; unpack it"),
        (zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}), "a workbook; save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "a workbook; save the sheet as CSV"),
        (b"ORC\x0a\x00\x01", "not a table in text"),
    ],
    ids=["bzip2", "xz", "gzip twice", "workbook", "old workbook", "ORC"],  # gzip contains the time
)
def test_binary_files_under_the_name_of_a_table_are_named(content: bytes, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"x\.csv is {message}"):
        load_table(write(tmp_path / "x.csv", content), Source())


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_one_object_is_one_row(name: str, tmp_path: Path):
    for text in ('{"text": "good"}', '{"text": "good"}\n', '[{"text": "good"}]'):
        assert load_reviews(write(tmp_path / name, text))["review"].tolist() == ["good"]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_an_item_that_is_no_object_is_a_broken_row(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / name, '[{"text": "good"}, null, {"text": "bad"}]')
    with pytest.raises(ValueError, match=r"row 2: NoneType instead of an object"):
        load_reviews(path)
    assert load_reviews(path, skip_bad_rows=True)["review"].tolist() == ["good", "bad"]
    assert "1 broken row" in capsys.readouterr().out


def test_json_within_a_packed_text_file_names_the_file_inside(tmp_path: Path):
    path = write(tmp_path / "reviews.zip", zipped({"data.txt": b'{"text": "good"}\n{"text": "bad"}\n'}))
    with pytest.raises(ValueError, match=r"not one text a line; unpack it and name the file data\.jsonl$"):
        load_table(path, Source())


def test_the_size_of_a_file_above_the_limit_is_not_the_limit(tmp_path: Path):
    path = write(tmp_path / "x.csv", "text\n" + "good film\n" * 120_000)
    with pytest.raises(ValueError, match=r"x\.csv has 2 MiB; --max-file-mib 1 is the limit"):
        load_table(path, Source(max_file_mib=1))


def test_a_text_may_begin_as_a_binary_file(tmp_path: Path):
    assert len(load_table(write(tmp_path / "x.csv", b"ORC,text\n1,fine\n"), Source())[0]) == 1


def test_class_names_of_a_parquet_file_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the footer, `datasets` calls class 0 `pos`: read as numbers, all labels would be inverted."""
    frame = pd.DataFrame({"text": [*"abcd"], "label": pd.array([0, 1, -1, None], dtype="Int64")})
    monkeypatch.setattr(pd, "read_parquet", lambda _, **__: frame)
    features = {
        "info": {"features": {"label": {"names": ["pos", "neg"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}}
    }
    footer = b"\x18\x0bhuggingface\x18\xff" + json.dumps(features).encode() + b"\x00more"
    path = write(tmp_path / "x.parquet", b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert load_reviews(path)["sentiment"].tolist() == [1, 0, UNKNOWN, UNKNOWN]
    for names in ("pos", ["pos", 1]):
        features["info"]["features"]["label"]["names"] = names
        footer = b"\x18\x0bhuggingface\x18\xff" + json.dumps(features).encode()
        write(path, b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        with pytest.raises(ValueError, match=r"x\.parquet .*the class names in its footer are not lists of names"):
            load_reviews(path)


def test_a_real_parquet_file(tmp_path: Path):
    pytest.importorskip("pyarrow")
    FRAME.to_parquet(tmp_path / "x.parquet")
    assert load_reviews(tmp_path / "x.parquet").to_dict("list") == {
        "id": [*"abcd"], "review": TEXTS, "sentiment": [1, 0, 1, 0]
    }  # fmt: skip
    with pytest.raises(ValueError, match="is not a Parquet file, or is damaged"):
        load_reviews(write(tmp_path / "y.parquet", b"PAR1" * 9))


def test_a_missing_label_leaves_the_class_names_of_a_parquet_file(tmp_path: Path):
    """Integers with a missing one stay integers, ids too."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    features = {"label": {"names": ["positive", "negative"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    ids = [1234567890123456789, 2, None]
    for labels, found in (([0, 1, None], [1, 0, UNKNOWN]), ([0, 7, None], None)):
        table = pyarrow.table({"id": ids, "text": [*"abc"], "label": labels})
        footer = {"huggingface": json.dumps({"info": {"features": features}})}
        parquet.write_table(table.replace_schema_metadata(footer), tmp_path / "x.parquet")
        if found is None:
            with pytest.raises(ValueError, match="column 'label' has the class 7, which the file does not name"):
                load_reviews(tmp_path / "x.parquet")
        else:
            frame = load_reviews(tmp_path / "x.parquet")
            assert frame["sentiment"].tolist() == found
            assert frame["id"].tolist()[:2] == ["1234567890123456789", "2"]


# --------------------------------------------------------------------------------------------------- compression


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.json"])
def test_compressed_files(tmp_path: Path, name: str):
    writers = {
        "x.csv": lambda path: FRAME.to_csv(path, index=False),
        "x.tsv": lambda path: FRAME.to_csv(path, sep="\t", index=False),
        "x.jsonl": lambda path: FRAME.to_json(path, orient="records", lines=True),
        "x.json": lambda path: FRAME.to_json(path, orient="records"),
    }
    writers[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    plain = load_reviews(tmp_path / name)
    assert plain["review"].tolist() == TEXTS
    write(tmp_path / f"{name}.gz", gzip.compress(content))
    write(tmp_path / f"{name}.zip", zipped({"folder/": b"", f"folder/{name}": content, f"__MACOSX/._{name}": b"?"}))
    write(tmp_path / f"plain_{name}.gz", content)  # a browser unpacked the download and kept its name
    for packed in (f"{name}.gz", f"{name}.zip", f"plain_{name}.gz"):
        assert load_reviews(tmp_path / packed).equals(plain), packed


def test_damaged_and_other_files_are_named(tmp_path: Path):
    several = write(tmp_path / "x.zip", zipped({"a.csv": b"x", "b.csv": b"y"}))
    with pytest.raises(ValueError, match=r"x.zip contains 2 files \(a.csv, b.csv\); unpack it"):
        load_reviews(several)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        load_reviews(write(tmp_path / "x.csv.zip", several.read_bytes()[:40]))
    with pytest.raises(ValueError, match="is not a zip file"):
        load_reviews(write(tmp_path / "x.csv.zip", b"review,label\n"))
    with pytest.raises(ValueError, match="is damaged or cut short"):
        load_reviews(write(tmp_path / "x.csv.gz", gzip.compress(b"review,label\na,1\n")[:20]))
    for name, message in (
        ("x.xlsx", "a workbook; save the sheet as CSV"),
        ("x.csv.bz2", "unpack it"),
        ("x.tgz", "an archive"),
    ):
        with pytest.raises(ValueError, match=message):
            load_reviews(write(tmp_path / name, zipped({"a": b"x"})))
    with pytest.raises(ValueError, match="is an archive; unpack it and name the folder"):
        load_reviews(write(tmp_path / "aclImdb_v1.tar.gz", gzip.compress(b"x" * 512)))


# ------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("title", ["id", "Id", "ID", " id "])
def test_spellings_of_id(tmp_path: Path, title: str):
    path = write(tmp_path / "x.csv", f"\ufeff{title},Review,LABEL\n12311_10,good,1\n8348_2,bad,0\n")
    assert load_reviews(path).values.tolist() == [["12311_10", "good", 1], ["8348_2", "bad", 0]]


def test_columns_are_named_by_options(tmp_path: Path):
    path = write(tmp_path / "x.csv", "key,text,content,stars,label\nk1,a,b,5,0\nk2,c,d,3,1\n")
    frame = load_reviews(path, text_column="content", label_column="stars", id_column="key")
    assert frame.values.tolist() == [["k1", "b", 1], ["k2", "d", 0]]
    with pytest.raises(ValueError, match=r"several columns \(text, content\) have a usual name; .* --text"):
        load_reviews(path)
    with pytest.raises(
        ValueError, match=r"no column 'nope', which --id-column names; .* is 'key', .* first row is 'k1'"
    ):
        load_reviews(path, text_column="text", id_column="nope")
    twice = write(tmp_path / "y.csv", "text,text,label\na,b,1\n")
    with pytest.raises(ValueError, match="has 2 columns 'text'; rename"):
        load_reviews(twice, text_column="text")
    both = write(tmp_path / "z.csv", "id,ID,text\n1,2,a\n")
    with pytest.raises(ValueError, match=r"several columns \(id, ID\)"):
        load_reviews(both)
    assert load_reviews(both, id_column="ID")["id"].tolist() == ["2"]
    assert load_reviews(both, id_column="none")["id"].tolist() == ["2"]  # the number of the line
    with pytest.raises(ValueError, match="no column is read as the text; --text-column COLUMN names it, or add"):
        load_reviews(write(tmp_path / "no_header.csv", "1,a fine film\n0,a bad film\n"))


@pytest.mark.parametrize("name", ["class", "klass", "stars", "Category"])
def test_labels_under_another_name_are_named_and_never_taken_from_ids(tmp_path: Path, name: str):
    path = write(tmp_path / "x.csv", f"id,{name},review\n17_1,1,great\n17_9,0,awful\n18_2,1,great\n")
    with pytest.raises(ValueError, match=rf"'{name}' looks like it: --label-column {name};.*first row is '17_1', '1'"):
        load_reviews(path)
    with pytest.raises(ValueError, match=f"--label-column {name}"):
        load_splits(Source(data=str(path)))
    assert load_reviews(path, label_column=name)["sentiment"].tolist() == [1, 0, 1]
    assert load_reviews(path, label_column="none")["sentiment"].tolist() == [UNKNOWN] * 3


def test_a_column_with_few_values_is_noted_where_labels_are_not_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path / "x.csv", "review,lang\na,de\nb,en\nc,de\n")
    frame, labels = load_table(path, Source())
    assert (frame["sentiment"].tolist(), labels) == ([UNKNOWN] * 3, ())
    assert "note: " in (printed := capsys.readouterr().out)
    assert "'lang' looks like it: --label-column lang" in printed
    load_table(path, Source(label_column="none"))
    assert capsys.readouterr().out == ""
    load_table(path, Source(label_column="stars"), labels=("1", "2"))
    assert "no column 'stars', so there are no labels; the header is 'review', 'lang'" in capsys.readouterr().out


def test_ids_of_other_files_are_no_labels(tmp_path: Path):
    text = "id\treview\n12311_10\tgood\n8348_2\tbad\n"
    for name in ("x.tsv", "testdata.tsv", "myTestData.tsv"):
        assert load_reviews(write(tmp_path / name, text))["sentiment"].tolist() == [UNKNOWN, UNKNOWN]
    for name, content in (
        ("testData.tsv", text.encode()),
        ("testData.tsv.gz", gzip.compress(text.encode())),
        ("testData.tsv.zip", zipped({"testData.tsv": text.encode()})),
    ):
        path = write(tmp_path / name, content)
        assert load_reviews(path)["sentiment"].tolist() == [1, 0]
        assert load_table(path, Source(), labels=("POSITIVE", "NEGATIVE"))[0]["sentiment"].tolist() == [0, 1]
        assert load_table(path, Source(), labels=("1", "2", "3"))[0]["sentiment"].tolist() == [UNKNOWN] * 2


def test_repeated_ids_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "x.csv", "id,review,label\na,x,1\na,y,0\nb,z,1\na,u,0\n")
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        assert load_reviews(path, cache=cache)["id"].tolist() == ["a", "a", "b", "a"]
        assert capsys.readouterr().out == f"{path}: 2 rows repeat an id of an earlier row (column 'id')\n"


def test_if_all_rows_are_broken_skipping_is_not_offered(tmp_path: Path):
    """R's write.table leaves out the title of its first column."""
    path = write(tmp_path / "x.tsv", "review\tlabel\n1\tgood\t1\n2\tbad\t0\n")
    for skip in (False, True):
        with pytest.raises(ValueError, match=r"3 fields instead of 2\); no row is left; its header is 'review'"):
            load_reviews(path, skip_bad_rows=skip)


def test_a_row_without_an_id_is_numbered_by_its_line(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text("id,review,label\n1,good,1\n,bad,0\n3,fine,1\n")
    assert load_reviews(path)["id"].tolist() == ["1", "row 3", "3"]


def test_none_names_a_column_of_this_title(tmp_path: Path):
    path = write(tmp_path / "x.csv", "text,none,label\na,1,0\nb,0,0\n")
    assert load_reviews(path, label_column="none")["sentiment"].tolist() == [1, 0]
    assert load_reviews(path, id_column="none")["id"].tolist() == ["1", "0"]


def test_a_column_with_another_use_is_no_column_of_texts_or_labels(tmp_path: Path):
    path = write(tmp_path / "x.csv", "text,comment\na,good\nb,bad\nc,good\n")
    assert load_reviews(path, label_column="comment")["sentiment"].tolist() == [1, 0, 1]
    path = write(tmp_path / "y.csv", "id,text\n1,a\n0,b\n")  # ids, which look like labels
    assert load_reviews(path)["sentiment"].tolist() == [UNKNOWN] * 2
