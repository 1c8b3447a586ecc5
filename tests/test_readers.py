"""Tests of delimited files as people have them: encodings, delimiters, quotes."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from table_files import FRAME, TEXTS, fields, read, write

from data import Source, load_table
from data.delimited import FIELD_LIMIT
from data.imdb import load_reviews

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


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "mac-roman", "cp1251", "shift-jis"])
def test_utf8_is_not_read_in_another_encoding(encoding: str, tmp_path: Path):
    path = write(tmp_path / "x.csv", "review,label\n" + "café,1\n" * 5)
    with pytest.raises(ValueError, match=rf"is UTF-8 text, not {encoding}; --encoding utf-8 reads it"):
        load_reviews(path, encoding=encoding)
    assert load_reviews(path, encoding="utf-8")["review"].tolist() == ["café"] * 5
    plain = write(tmp_path / "y.csv", "review,label\ncoffee,1\n")
    assert load_reviews(plain, encoding=encoding)["review"].tolist() == ["coffee"]
    of_run = Source(encoding=encoding, of_run=("encoding",))
    with pytest.raises(ValueError, match=rf"is UTF-8 text, not {encoding}; --encoding utf-8 reads it"):
        load_table(write(tmp_path / "u.csv", "review,label\ncafé,1\n"), of_run)
    chance = write(tmp_path / "z.csv", "review,label\n模式,1\n".encode("gbk"))  # which is valid UTF-8
    assert load_reviews(chance, encoding="gbk")["review"].tolist() == ["模式"]


def test_utf8_is_not_read_in_utf16_of_a_run(tmp_path: Path):
    path = write(tmp_path / "x.txt", "great film.bad film!")
    with pytest.raises(ValueError, match="is UTF-8 text, not utf-16-le; --encoding utf-8 reads it"):
        load_table(path, Source(encoding="utf-16-le", of_run=("encoding",)))


def test_utf16_that_is_named_may_consist_of_ascii_bytes(tmp_path: Path):
    path = write(tmp_path / "x.txt", "\u4e2d\u592e".encode("utf-16-le"))
    assert path.read_bytes() == b"-N.Y"
    assert load_table(path, Source(encoding="utf-16-le"))[0]["review"].tolist() == ["\u4e2d\u592e"]


def test_wrong_encodings_are_refused(tmp_path: Path):
    path = write(tmp_path / "x.csv", "\ufeffreview,label\ncafé,1\n")
    with pytest.raises(ValueError, match="begins with the byte order mark of utf-8; --encoding utf-8 reads it"):
        load_reviews(path, encoding="latin-1")
    for name in ("klingon", "hex"):
        with pytest.raises(ValueError, match=f"--encoding '{name}' is not an encoding"):
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
    with pytest.raises(ValueError, match=r"each of commas, semicolons splits the header 'a,b;c'; rename"):
        read(write(tmp_path / "x.csv", "a,b;c\n1,2;3\n"))
    assert read(write(tmp_path / "x.csv", '"a,b";c\n1;2\n')).header == ["a,b", "c"]


def test_a_long_first_line_is_no_header(tmp_path: Path):
    with pytest.raises(ValueError, match="no column is read as the text"):
        load_reviews(write(tmp_path / "x.csv", "word, " * 100_000 + "\n"))


def test_a_single_column(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'text\ngood\n""\n"a, b"\n\n')
    assert fields(path) == [["good"], [""], ["a, b"]]
    with pytest.raises(ValueError, match=r"1 broken rows \(row 2: 2 fields instead of 1\)"):
        load_reviews(write(tmp_path / "x.csv", "text\na, b\nc\n"))


def test_a_text_may_be_the_title_of_a_single_column(tmp_path: Path):
    path = write(tmp_path / "x.csv", "review\ngood\nReview\n")
    assert load_reviews(path)["review"].tolist() == ["good", "Review"]


def test_a_line_that_names_the_delimiter_for_excel(tmp_path: Path):
    path = write(tmp_path / "x.csv", "sep=;\r\nreview;label\r\na;1\r\n")
    frame = load_reviews(path)
    assert frame.values.tolist() == [["3", "a", 1]]


def test_a_carriage_return_ends_a_line_only_if_nothing_else_does(tmp_path: Path):
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        path = write(tmp_path / name, f"label{delimiter}text\n1{delimiter}a\rb\n0{delimiter}c\r\r\n")
        assert load_reviews(path).values.tolist() == [["2", "a b", 1], ["3", "c", 0]]


def test_a_quoted_line_feed_is_no_line_end_of_a_file_with_carriage_returns(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'text,label\r"one\ntwo",1\rthree,0\r')
    assert [record.fields for record in read(path).records] == [["one\ntwo", "1"], ["three", "0"]]


@pytest.mark.parametrize("delimiter", ["", ",label"])
def test_doubled_carriage_returns_of_windows_end_one_line(delimiter: str, tmp_path: Path):
    """Python's csv writes them on Windows into a file that was opened without newline=""."""
    path = tmp_path / "x.csv"
    path.write_bytes(f"text{delimiter}\r\r\ngood{delimiter and ',1'}\r\r\nbad{delimiter and ',0'}\r\r\n".encode())
    assert load_reviews(path)["id"].tolist() == ["2", "3"]


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
    for end in ("", '4,"",fine too,1\n'):  # an empty field is no doubled quote
        with pytest.raises(ValueError, match=r"two readings: \d rows with quotes as characters, \d with"):
            load_reviews(write(tmp_path / "x.csv", f'id,title,text,label\n1,A,"Great,1\n2,B,Bad",0\n3,C,fine,1\n{end}'))
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


def test_an_escaped_backslash_at_the_end_of_a_field(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'label,text\n1,"a \\"q\\" b"\n0,"ends in \\\\"\n1,"x, \\\\\\"y"\n')
    rows = [["1", 'a "q" b'], ["0", "ends in \\\\"], ["1", 'x, \\\\"y']]
    assert fields(path, quoting="backslash") == rows


def test_a_backslash_in_rfc4180_is_a_character(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'label,text\n1,"C:\\"\n0,"a ""b\\"" c"\n')
    assert fields(path) == [["1", "C:\\"], ["0", 'a "b\\" c']]
    assert read(path).note == ""


def test_spaces_between_a_delimiter_and_a_quote(tmp_path: Path):
    path = write(tmp_path / "x.csv", 'label, text\n1, "a, ""b"" c"\n0, "two\nlines"\n1, say "hi"\n')
    assert fields(path) == [["1", 'a, "b" c'], ["0", "two\nlines"], ["1", 'say "hi"']]
    broken = write(tmp_path / "x.csv", 'label, text\n1, "a, b"\n0, "c, d"\n1, "e" f\n')
    assert load_reviews(broken, skip_bad_rows=True)["review"].tolist() == ["a, b", "c, d"]
    stray = write(tmp_path / "x.csv", 'label,text\n1, "tis good\n0, bad\n1, fine\n0, a fish of 6"\n1, best\n')
    assert [text for _, text in fields(stray)] == [' "tis good', " bad", " fine", ' a fish of 6"', " best"]
    path = write(tmp_path / "x.csv", 'label,text\n1, "a" b\n0,"c, ""d"""\n')  # the first quote opens no field
    assert fields(path) == [["1", ' "a" b'], ["0", 'c, "d"']]


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
        with pytest.raises(ValueError, match=r"has over 10,485,760 characters|a review of 10,485,761"):
            load_reviews(path)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_field_that_is_too_long_is_one_broken_row(tmp_path: Path, quote: str):
    """Its length is the fault, not a quote that is not closed: that one would go on in the next line."""
    long = f'1,"a\nb"\n1,{quote}{"w" * FIELD_LIMIT}w{quote}\n0,c\n'
    path = write(tmp_path / "x.csv", f"label,text\n{long}")
    assert load_reviews(path, skip_bad_rows=True)["review"].tolist() == ["a b", "c"]
    with pytest.raises(ValueError, match="row 4: a field of line 4 has over") as caught:
        load_reviews(path)
    assert "quot" not in str(caught.value)
    path = write(tmp_path / "x.csv", f'label,text\n1,"a\nb",{"w" * FIELD_LIMIT}w\n0,c\n')  # is the quote closed?
    with pytest.raises(ValueError, match=r"row 3: a field of lines 2 to 3 has over .*, or its quote is not closed"):
        load_reviews(path)


@pytest.mark.parametrize(
    ("reading", "content"),
    [
        ("quoted fields with doubled quotes (rfc4180)", 'label\ttext\n1\t"say ""hi"""\n'),
        ("quotes as characters (literal)", "label\ttext\n1\tplain\n"),
        ("quoted fields with escaped quotes (backslash)", 'label\ttext\n1\t"say\t\\"hi\\""\n'),
    ],
)
def test_the_note_describes_the_reading(tmp_path: Path, reading: str, content: str):
    assert read(write(tmp_path / "x.csv", content)).note == f"separated by tabs, {reading}"


def test_escaped_quotes_are_not_looked_for_in_kaggles_files(tmp_path: Path):
    """Their backslashes are characters, so that this row is broken."""
    text = 'id\treview\tlabel\n1\t"a \\"b\tc\\" d"\t0\n'
    assert load_reviews(write(tmp_path / "x.tsv", text))["review"].tolist() == ['a "b c" d']
    with pytest.raises(ValueError, match="row 2: 4 fields instead of 3"):
        load_reviews(write(tmp_path / "labeledTrainData.tsv", text))
