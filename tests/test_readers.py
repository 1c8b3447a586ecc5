"""Tests of files as people have them: encodings, delimiters, quotes, JSON, Parquet, compression, columns, folders."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from data import Source, load_splits, load_table, load_texts
from data.delimited import FIELD_LIMIT, READINGS, split_lines, unquote
from data.imdb import load_reviews
from data.labels import UNKNOWN
from data.readers import Table, as_text, read_table

FRAME = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "label": [1, 0, 1, 0],
        "text": ['a "great" film', "two\nlines", "tab\there, comma; bar|", '"quoted"'],
    }
)
TEXTS = ['a "great" film', "two lines", "tab here, comma; bar|", '"quoted"']


def write(path: Path, content: str | bytes) -> Path:
    """Writes a file, text as UTF-8 with its own line ends."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, **options) -> Table:
    """Reads the table of a file."""
    return read_table(path, path.read_bytes(), Source(**options))


def fields(path: Path, **options) -> list[list[str | None]]:
    """Returns the fields of all rows."""
    return [record.fields for record in read(path, **options).records]


def zipped(files: dict[str, bytes]) -> bytes:
    """Returns a .zip that contains the files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_unicode_files_with_any_line_ends(tmp_path: Path, encoding: str, newline: str):
    text = newline.join(["id,label,review", "1,1,café ☕", "2,0,naïve", ""])
    path = write(tmp_path / "x.csv", text.encode(encoding))
    frame = load_reviews(path)
    assert frame.to_dict("list") == {"id": ["1", "2"], "review": ["café ☕", "naïve"], "sentiment": [1, 0]}
    assert load_reviews(path, encoding=encoding).equals(frame)


def test_utf16_of_either_order(tmp_path: Path):
    text = "review\tlabel\ngood\t1\nbad\t0\ncaf\u00e9\t0\n"  # with a byte that is not UTF-8
    for codec, bom in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        path = write(tmp_path / "x.tsv", bom + text.encode(codec))
        assert load_reviews(path)["review"].tolist() == ["good", "bad", "caf\u00e9"]
        path = write(tmp_path / "x.tsv", text.encode(codec))
        with pytest.raises(ValueError, match=f"as UTF-16 without a byte order mark; --encoding {codec} reads it"):
            load_reviews(path)
        assert load_reviews(path, encoding=codec)["review"].tolist() == ["good", "bad", "caf\u00e9"]


def test_latin1_is_read_only_if_named(tmp_path: Path):
    path = write(tmp_path / "x.csv", "review,label\nfine,1\ncaf\xe9,0\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"is not UTF-8 text: byte 0xe9 at offset 23 \(line 3\); --encoding latin-1"
    ) as e:
        load_reviews(path)
    assert "café" in str(e.value)
    assert "cp1252" not in str(e.value)
    for encoding in ("latin-1", "ISO-8859-1", "cp1252"):
        assert load_reviews(path, encoding=encoding)["review"].tolist() == ["fine", "café"]
    path = write(tmp_path / "x.csv", "review,label\n“fine”,1\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"--encoding latin-1 reads it as .*--encoding cp1252 \(Windows\) as .*“fine”"):
        load_reviews(path)


def test_wrong_encodings_are_refused(tmp_path: Path):
    path = write(tmp_path / "x.csv", "\ufeffreview,label\ncafé,1\n")
    with pytest.raises(ValueError, match="begins with the byte order mark of utf-8; leave out --encoding latin-1"):
        load_reviews(path, encoding="latin-1")
    for name in ("klingon", "hex"):
        with pytest.raises(ValueError, match=f"--encoding.*|{name}"):
            load_reviews(write(tmp_path / "y.csv", "review\nx\n"), encoding=name)
    with pytest.raises(ValueError, match="is not ascii text: byte 0xc3 at offset 7"):
        load_reviews(write(tmp_path / "z.csv", "review\né\n"), encoding="ascii")


# ---------------------------------------------------------------------------------------------------- delimiters


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.tsv", "x.TSV", "x.txt", "x.dat"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_line_shows_the_delimiter(tmp_path: Path, name: str, delimiter: str):
    buffer = io.StringIO()
    FRAME.to_csv(buffer, sep=delimiter, index=False)
    path = write(tmp_path / name, buffer.getvalue())
    assert load_reviews(path).to_dict("list") == {"id": [*"abcd"], "review": TEXTS, "sentiment": [1, 0, 1, 0]}
    is_default = name.lower() == "x.csv" and delimiter == ","
    assert bool(read(path).note) == (not is_default)


def test_other_forms_are_noted_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "x.csv", "review;label\na;1\n")
    load_reviews(path)
    assert capsys.readouterr().out == (
        f"{path}: separated by semicolons, quoted fields with doubled quotes (rfc4180)\n"
    )
    load_reviews(write(path, "review,label\na,1\n"))
    load_reviews(write(tmp_path / "x.tsv", 'review\tlabel\n"a"\t1\n'))
    assert capsys.readouterr().out == ""


def test_a_header_with_two_delimiters(tmp_path: Path):
    path = write(tmp_path / "x.csv", "id;old,review,label\n1,good,1\n")
    assert fields(path) == [["1", "good", "1"]]  # only commas separate a column of texts
    assert fields(path, text_column="review") == [["1", "good", "1"]]
    path = write(tmp_path / "x.csv", "a,b;c\n1;2\n3;4\n")
    assert read(path).header == ["a,b", "c"]  # only semicolons give all rows its width
    with pytest.raises(ValueError, match=r"commas and semicolons both split the header 'a,b;c'; rename"):
        read(write(tmp_path / "x.csv", "a,b;c\n1,2;3\n"))
    assert read(write(tmp_path / "x.csv", '"a,b";c\n1;2\n')).header == ["a,b", "c"]


def test_a_long_first_line_is_no_header(tmp_path: Path):
    with pytest.raises(ValueError, match="no column has a usual name for text"):
        load_reviews(write(tmp_path / "x.csv", "word, " * 100_000 + "\n"))


def test_a_single_column(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'text\ngood\n""\n"a, b"\n\n')
    assert fields(path) == [["good"], [""], ["a, b"]]
    with pytest.raises(ValueError, match=r"1 broken rows \(row 2: 2 fields instead of 1\)"):
        load_reviews(write(tmp_path / "x.csv", "text\na, b\nc\n"))


def test_a_line_that_names_the_delimiter_for_excel(tmp_path: Path):
    path = write(tmp_path / "x.csv", "sep=;\r\nreview;label\r\na;1\r\n")
    frame = load_reviews(path)
    assert frame.values.tolist() == [["3", "a", 1]]


def test_a_carriage_return_ends_a_line_only_if_nothing_else_does(tmp_path: Path):
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        path = write(tmp_path / name, f"label{delimiter}text\n1{delimiter}a\rb\n0{delimiter}c\r\r\n")
        assert load_reviews(path).values.tolist() == [["2", "a b", 1], ["3", "c", 0]]


def test_empty_lines_are_no_rows(tmp_path: Path):
    path = write(tmp_path / "x.csv", "\n\nreview,label\n\na,1\n\n\nb,0\n\n")
    assert load_reviews(path).values.tolist() == [["5", "a", 1], ["8", "b", 0]]
    path = write(tmp_path / "x.tsv", "review\tlabel\n\na\t1\n\n")
    assert load_reviews(path).values.tolist() == [["3", "a", 1]]


# -------------------------------------------------------------------------------------------------------- quotes


def test_pandas_files_with_tabs_are_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "x.tsv"
    for text, expected in zip(FRAME["text"], TEXTS, strict=True):
        pd.DataFrame({"id": ["a"], "label": [1], "text": [text]}).to_csv(path, sep="\t", index=False)
        assert load_reviews(path).values.tolist() == [["a", expected, 1]]
        assert "separated by tabs, quoted fields with doubled quotes (rfc4180)" in capsys.readouterr().out
    for quoting in (csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
        FRAME.to_csv(path, sep="\t", index=False, quoting=quoting)
        assert load_reviews(path)["review"].tolist() == TEXTS


@pytest.mark.parametrize("name", ["labeledTrainData.tsv", "x.tsv"])
@pytest.mark.parametrize(
    "rows",
    [
        [('"1_9"\t1\t"He said \\"go\\"."', 'He said "go".'), ('"2_1"\t0\t"\\"No\\""', '"No"')],
        [('1_9\t1\t"it \'s" great', '"it \'s" great'), ("2_1\t0\tno", "no")],
        [('1_9\t1\t"open', '"open'), ('2_1\t0\tcl"osed', 'cl"osed')],
        [('1_9\t1\tan \\"escaped\\" one', 'an "escaped" one'), ("2_1\t0\tx", "x")],
        [('1_9\t1\ta ""b"" c', 'a ""b"" c'), ("2_1\t0\t'", "'")],
        [('"1_9"\t1\t"plain"', "plain"), ('"2_1"\t0\t"text"', "text")],
    ],
)
def test_kaggles_form_is_read_line_by_line(
    tmp_path: Path, name: str, rows: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path / name, "\n".join(["id\tsentiment\treview", *(row for row, _ in rows)]) + "\n")
    assert load_reviews(path)["review"].tolist() == [text for _, text in rows]
    assert capsys.readouterr().out == ""


def test_doubled_quotes_on_single_lines_are_rfc4180(tmp_path: Path):
    """Rule 2: both readings are consistent and each record is one line."""
    path = write(tmp_path / "x.tsv", 'label\ttext\n1\t"say ""hi"""\n0\t""""\n')
    assert fields(path) == [["1", 'say "hi"'], ["0", '"']]
    assert fields(path, quoting="literal") == [["1", 'say ""hi""'], ["0", '""']]


def test_two_consistent_readings_with_different_rows_are_refused(tmp_path: Path):
    path = write(tmp_path / "x.tsv", 'text\n"two\nlines"\nthree\n')
    with pytest.raises(ValueError, match=r"two readings: 3 rows with quotes as characters, 2 with .*-quoting rfc4180"):
        load_reviews(path)
    assert fields(path, quoting="literal") == [['"two'], ['lines"'], ["three"]]
    assert fields(path, quoting="rfc4180") == [["two\nlines"], ["three"]]
    path = write(tmp_path / "y.tsv", 'text\tlabel\n"it\t1\nwas\t0\ngood"\t1\n')
    with pytest.raises(ValueError, match=r"two readings: 3 rows .* 1 with"):
        load_reviews(path)


def test_broken_rows_under_both_readings_need_a_choice(tmp_path: Path):
    path = write(tmp_path / "x.tsv", 'label\ttext\n1\t"two\nlines"\n0\n1\tx\n')
    with pytest.raises(ValueError, match=r"as characters, 2 rows do not have 2 fields \(row 3 first\).* 1 \(row 4"):
        load_reviews(path, skip_bad_rows=True)
    source = Source(quoting="rfc4180", skip_bad_rows=True)
    assert load_table(path, source)[0]["review"].tolist() == ["two lines", "x"]
    kaggle = write(tmp_path / "labeledTrainData.tsv", path.read_bytes())
    with pytest.raises(ValueError, match="2 broken rows"):
        load_reviews(kaggle)
    assert read(write(path, 'label\ttext\n1\t"a" b\n0\n')).note == ""  # wrong quotes: only the literal reading is left
    with pytest.raises(ValueError, match=r"--quoting 'none' is not one of rfc4180, literal, backslash"):
        read(path, quoting="none")


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_quotes_escaped_by_backslashes(tmp_path: Path, delimiter: str):
    rows = [["1", 'he said "go", and C:\\x'], ["0", "two\nlines"]]
    lines = ["label" + delimiter + "text"]
    lines += [f'"{label}"{delimiter}"{text}"'.replace('"go"', '\\"go\\"') for label, text in rows]
    path = write(tmp_path / "x.csv", "\n".join(lines) + "\n")
    assert fields(path) == rows
    assert "quoted fields with escaped quotes (backslash)" in read(path).note


def test_an_escaped_quote_at_the_begin_of_a_field(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'label,text\n1,"\\"\n,a \\""\n0,say \\"b\\"\n')
    assert fields(path) == [["1", '"\n,a "'], ["0", 'say "b"']]


def test_a_backslash_in_rfc4180_is_a_character(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'label,text\n1,"C:\\"\n0,"a ""b\\"" c"\n')
    assert fields(path) == [["1", "C:\\"], ["0", 'a "b\\" c']]
    assert read(path).note == ""


def test_wrong_quotes_are_broken_rows_and_an_open_quote_is_an_error(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'label,text\n1,"a" b\n0,c\n1,say "hi"\n')
    with pytest.raises(ValueError, match=r"1 broken rows \(row 2: a quote inside a quoted field is not doubled\)"):
        load_reviews(path)
    assert load_reviews(path, skip_bad_rows=True)["review"].tolist() == ["c", 'say "hi"']
    path = write(tmp_path / "x.csv", 'label,text\n1,a\n0,"open\n' + "1,b\n" * 9)
    with pytest.raises(ValueError, match=r"row 12: the quote that begins a field on line 3 is not closed") as caught:
        load_reviews(path, skip_bad_rows=True)
    assert "--quoting literal" in str(caught.value)
    with pytest.raises(ValueError, match="row 1: a quote inside a quoted field"):
        load_reviews(write(tmp_path / "x.csv", '"la"bel,text\n1,a\n'))


def test_fields_up_to_ten_megabytes(tmp_path: Path):
    limit = csv.field_size_limit()
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        path = write(tmp_path / name, f'label{delimiter}text\n1{delimiter}"{"w" * FIELD_LIMIT}"\n0{delimiter}b\n')
        assert [len(text) for text in load_reviews(path)["review"]] == [FIELD_LIMIT, 1]
        path = write(tmp_path / name, f'label{delimiter}text\n1{delimiter}"{"w" * FIELD_LIMIT}w"\n0{delimiter}b\n')
        with pytest.raises(ValueError, match=r"not closed within 10,485,760|a review of 10,485,761"):
            load_reviews(path)
    assert csv.field_size_limit() == limit


def test_every_reading_has_a_description():
    assert list(READINGS) == ["rfc4180", "literal", "backslash"]


# ---------------------------------------------------------------------------------------------------------- JSON


OBJECTS = [
    {"text": "gut\u2028so", "label": True, "extra": [1]},
    {"label": False, "text": "schlecht", "id": 7},
    {"text": 5, "label": None, "id": "x"},
]


def test_json_lines_and_lists(tmp_path: Path):
    expected = {"id": ["", "7", "x"], "review": ["gut\u2028so", "schlecht", "5"], "sentiment": [1, 0, UNKNOWN]}
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
    def missing(*_: object) -> None:
        raise ImportError("pyarrow")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(ValueError, match=r"x.parquet is a Parquet file; to read it: pip install pyarrow$"):
        load_reviews(write(tmp_path / "x.parquet", b"PAR1"))


def test_the_values_of_a_parquet_file_become_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frame = pd.DataFrame({"text": ["a", None, "c"], "label": [2.0, None, 10.0]}, index=pd.Index([7, 8, 9], name="id"))
    monkeypatch.setattr(pd, "read_parquet", lambda _: frame)
    table = read(write(tmp_path / "x.parquet", b""))
    assert table.header == ["id", "text", "label"]
    assert [r.fields for r in table.records] == [["7", "a", "2.0"], ["8", "", ""], ["9", "c", "10.0"]]
    read_back, labels = load_table(tmp_path / "x.parquet", Source(), keep_empty=True)
    assert labels == ("2", "10")
    assert read_back.values.tolist() == [["7", "a", 0], ["8", "", UNKNOWN], ["9", "c", 1]]
    assert [as_text(v) for v in (None, float("nan"), pd.NA, True, 3, [1], {}, b"x")] == ["", "", "", "True", "3"] + [
        None
    ] * 3


def test_class_names_of_a_parquet_file_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the footer, `datasets` calls class 0 `pos`: read as numbers, all labels would be inverted."""
    monkeypatch.setattr(pd, "read_parquet", lambda _: pd.DataFrame({"text": [*"abc"], "label": [0, 1, -1]}))
    features = {
        "info": {"features": {"label": {"names": ["pos", "neg"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}}
    }
    footer = b"\x18\x0bhuggingface\x18\xff" + json.dumps(features).encode() + b"\x00more"
    path = write(tmp_path / "x.parquet", b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert load_reviews(path)["sentiment"].tolist() == [1, 0, UNKNOWN]


def test_a_real_parquet_file(tmp_path: Path):
    pytest.importorskip("pyarrow")
    FRAME.to_parquet(tmp_path / "x.parquet")
    assert load_reviews(tmp_path / "x.parquet").to_dict("list") == {
        "id": [*"abcd"], "review": TEXTS, "sentiment": [1, 0, 1, 0]
    }  # fmt: skip
    with pytest.raises(ValueError, match="is not a Parquet file, or is damaged"):
        load_reviews(write(tmp_path / "y.parquet", b"PAR1" * 9))


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
    with pytest.raises(ValueError, match="no column has a usual name for text; name it with --text-column, or add"):
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
        ["0", "good film", -1],
        ["1", "the review, said\u2028twice", -1],
    ]
    assert load_table(lines, Source(), keep_empty=True)[0]["review"].tolist() == [
        "good film",
        "",
        "the review, said\u2028twice",
    ]
    table = write(tmp_path / "b.txt", "id\tReview\n7\tgood\n")
    assert load_table(table, Source())[0].values.tolist() == [["7", "good", -1]]


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


def test_the_built_in_reviews_with_another_test_file(tmp_path: Path):
    path = write(tmp_path / "x.csv", "text,label\ngreat,pos\nawful,neg\n")
    assert load_splits(Source(data="demo", test=str(path))).test["sentiment"].tolist() == [1, 0]


def test_folders_that_are_not_clear_are_refused(tmp_path: Path):
    (tmp_path / "one").mkdir()
    make_files(tmp_path / "one", {"reviews": "csv"})
    with pytest.raises(FileNotFoundError, match=r"neither labeledTrainData.* it holds 'reviews.csv': name one"):
        load_splits(Source(data=str(tmp_path / "one")))
    (tmp_path / "two").mkdir()
    make_files(tmp_path / "two", {"train": "csv", "dev": "csv", "valid": "tsv"})
    with pytest.raises(ValueError, match=r"holds dev.csv, valid.tsv for one split; name the files with --train"):
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
