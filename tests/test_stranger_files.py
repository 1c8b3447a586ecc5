"""Tests inputs that once gave a wrong number, or lost data, without a message."""

import codecs
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import train
from data import Source, load_splits, load_table
from data.compare import Entry, ScoredPart, files_of, same_data
from data.files import csv_text, write_problem
from data.imdb import load_reviews
from data.predictions import read_lines
from data.pretraining_texts import load_texts
from data.runs import Run
from data.splitting import split_train, subset
from data.text_lines import is_text_lines
from eval import main as evaluate

LINEAR = str(ROOT / "data/weights/nb-linear-imdb")
ROWS = [(f"i{n}", f"a {'good' if n % 2 else 'bad'} film {n}", "pos" if n % 2 else "neg") for n in range(40)]


def write_table(path: Path, rows=ROWS, header=("id", "review", "label"), start: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(start + csv_text([header, *rows]), encoding="utf-8")
    return path


def linear_run(folder: Path, name: str, *arguments: str) -> Run:
    """Trains the linear model for one epoch."""
    shape = "--shape min_reviews=1 --min-count 1 --epochs 1"
    command = f"--model nb_linear {shape} --runs {folder / 'runs'} --name {name}"
    train.main([*command.split(), *arguments])
    return Run.open(folder / "runs" / name)


# ---------------------------------------------------------------------------------------------- the split


@pytest.mark.parametrize("count", [1, 3, 37])
def test_the_split_does_not_depend_on_the_order_of_rows_with_one_id(count: int):
    frame = pd.DataFrame(
        {"id": [f"tt{n // count}" for n in range(400)], "review": [f"text {n}" for n in range(400)]}
    ).assign(sentiment=np.arange(400) % 2)
    shuffled = frame.sample(frac=1, random_state=1)
    for choose in (lambda x: split_train(x)[1], lambda x: subset(x, 90, 7)):
        first, second = (sorted(choose(one)["review"]) for one in (frame, shuffled))
        assert first == second


def test_validation_reviews_of_another_folder_that_were_trained_on_are_not_scored(tmp_path: Path, capsys):
    write_table(tmp_path / "v1/train.csv", [row[1:] for row in ROWS], ("review", "label"))
    write_table(tmp_path / "v2/train.csv", [row[1:] for row in ROWS[::-1]], ("review", "label"))
    write_table(tmp_path / "v2/test.csv", [(0, "a new film", "pos")])
    run = linear_run(tmp_path, "r", "--data", str(tmp_path / "v1"))
    capsys.readouterr()
    evaluate(["--run", str(run.folder), "--data", str(tmp_path / "v1")])
    assert "validation: accuracy" in capsys.readouterr().out
    evaluate(["--run", str(run.folder), "--data", str(tmp_path / "v2")])
    out = capsys.readouterr().out
    assert re.search(r"warning: [1-8] of 8 validation reviews were training reviews of .*r and are not scored\n", out)
    assert "test: accuracy" in out


# ---------------------------------------------------------------------------------------------- runs that are compared


def test_files_are_known_by_their_part_not_by_their_name(tmp_path: Path):
    for part in ("train", "val", "test", "hard"):
        write_table(tmp_path / part / "data.csv", [(key, f"{part} {text}", label) for key, text, label in ROWS])
    write_table(tmp_path / "copy.csv", [(key, f"train {text}", label) for key, text, label in ROWS])

    def run(name: str, train_file: str, test: str) -> Run:
        files = {"--train": train_file, "--validation": "val/data.csv", "--test": test}
        given = [word for flag, file in files.items() for word in (flag, str(tmp_path / file))]
        return linear_run(tmp_path, name, *given)

    easy, hard = run("easy", "train/data.csv", "test/data.csv"), run("hard", "train/data.csv", "hard/data.csv")
    copied = run("copied", "copy.csv", "test/data.csv")
    assert set(files_of(easy)) == {"train", "validation", "test"}
    assert not same_data(easy, hard)
    assert same_data(easy, copied)
    parts = [ScoredPart.of(Entry(run.folder.name, [run]), "test") for run in (easy, hard, copied)]
    assert [part.equals(parts[0]) for part in parts] == [True, False, True]


def test_no_output_replaces_the_reviews_of_compared_runs(tmp_path: Path):
    file = write_table(tmp_path / "a.csv")
    runs = [str(linear_run(tmp_path, name, "--train", str(file)).folder) for name in ("r", "s")]
    before = file.read_bytes()
    for task in (["--compare", *runs], ["--weights", f"{runs[0]}/best", "--predict", str(ROOT / "README.md")]):
        with pytest.raises(ValueError, match=r"--out .*a\.csv would replace what is read from .*a\.csv"):
            evaluate([*task, "--out", str(file)])
    assert file.read_bytes() == before


# ---------------------------------------------------------------------------------------------- byte order marks


@pytest.mark.parametrize("again", ["id,review,label", "ID,Review,Label", "id, review, label"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_within_a_file_is_a_broken_row(tmp_path: Path, again: str, mark: str):
    text = csv_text([("id", "review", "label"), *ROWS])
    (tmp_path / "joined.csv").write_text(f"\ufeff{text}{mark}{again}\nx,y,pos\n", encoding="utf-8")
    with pytest.raises(ValueError, match="row 42: the header again"):
        load_reviews(tmp_path / "joined.csv")


@pytest.mark.parametrize("title", ["\ufeffid", "\u200bid", "i\u00add", " ID "])
def test_invisible_characters_in_a_title(tmp_path: Path, title: str):
    path = write_table(tmp_path / "a.csv", header=(title, "review", "label"), start="\ufeff")
    assert load_reviews(path)["id"].tolist() == [row[0] for row in ROWS]


def test_a_decomposed_title_is_found_in_a_test_file(tmp_path: Path):
    path = write_table(tmp_path / "a.csv", header=("id", "review", "e\u0301tiquette"))
    source = Source(train=str(path), test=str(path), label_column="\u00e9tiquette")
    assert (load_splits(source).test["sentiment"] >= 0).all()


@pytest.mark.parametrize("encoding", ["", "utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_a_review(encoding: str, tmp_path: Path):
    content = codecs.BOM_UTF8 + b"good film\n" + codecs.BOM_UTF8 + b"bad film\n"
    (tmp_path / "x.txt").write_bytes(content)
    assert read_lines(io.BytesIO(content), encoding)["review"].tolist() == ["good film", "bad film"]
    frame, _ = load_table(tmp_path / "x.txt", Source(encoding=encoding))
    assert frame["review"].tolist() == ["good film", "bad film"]


@pytest.mark.parametrize("encoding", ["zip", "hex", "rot13", "base64"])
def test_a_codec_of_bytes_is_no_encoding(encoding: str):
    with pytest.raises(ValueError, match="is not an encoding; usual ones are"):
        read_lines(io.BytesIO(b"good film\n"), encoding)


# ---------------------------------------------------------------------------------------------- folders


def acl(folder: Path, *kinds: str) -> Path:
    """Writes a folder like aclImdb with three reviews of each kind."""
    for kind in kinds:
        for number in range(3):
            path = folder / kind / f"{number}_7.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{kind} review {number}")
    return folder


def test_other_classes_of_an_acl_folder_are_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match="train holds 'neu' beside pos and neg; only pos, neg and unsup are read"):
        load_splits(Source(data=str(acl(tmp_path, "train/pos", "train/neg", "train/neu"))))


def test_what_an_acl_folder_holds_besides_is_named(tmp_path: Path, capsys):
    acl(tmp_path, "train/pos", "train/neg", "validation/pos")
    write_table(tmp_path / "train.csv")
    (tmp_path / "train/pos/._0_7.txt").write_bytes(b"\0\5\26\7")  # of macOS
    (tmp_path / "train/pos/9_8.TXT").write_text("a ninth review")
    splits = load_splits(Source(data=str(tmp_path)))
    assert len(splits.train) + len(splits.validation) == 7
    assert "not read: 'train.csv', 'validation'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["validation.txt", "test.txt", "test (1).csv", "val.csv.bz2", "test.xlsx", "test/part.csv", "testData.txt"]
)
def test_what_is_named_as_a_part_but_not_read_is_noted(tmp_path: Path, capsys, name: str):
    write_table(tmp_path / "train.csv")
    write_table(tmp_path / name)
    load_splits(Source(data=str(tmp_path)))
    assert f"not read: '{name.partition('/')[0]}'" in capsys.readouterr().out


def test_kaggles_file_names_do_not_make_labels_from_ids_against_the_flag(tmp_path: Path, capsys):
    rows = [(f"{100 + n}_{n % 10 + 1}", text, label) for n, (_, text, label) in enumerate(ROWS)]
    path = tmp_path / "testData.tsv"
    path.write_text("id\treview\n" + "".join(f"{key}\t{text}\n" for key, text, _ in rows))
    assert (load_table(path, Source(label_column="none"))[0]["sentiment"] == -1).all()
    assert (load_table(path, Source())[0]["sentiment"] >= 0).all()
    assert "no column of labels; they are the ratings in the ids, such as 100_1" in capsys.readouterr().out
    named = tmp_path / "labeledTrainData.tsv"
    named.write_text("id\treview\tverdict\n" + "".join("\t".join(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="'verdict' looks like it: --label-column verdict"):
        load_splits(Source(data=str(tmp_path)))


@pytest.mark.parametrize(
    ("encoding", "given"), [("utf-16", ""), ("utf-16", "utf-16"), ("utf-16-be", "utf-16-be"), ("utf-16-le", "")]
)
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_shards_in_utf_16_are_refused(tmp_path: Path, ending: str, encoding: str, given: str):
    lines = [json.dumps({"text": text}) if ending == "jsonl" else text for _, text, _ in ROWS]
    (tmp_path / "data").mkdir()
    (tmp_path / f"data/x.{ending}").write_bytes("\n".join(lines).encode(encoding))
    with pytest.raises(ValueError, match=r"shards must be UTF-8: iconv -f utf-16"):
        load_texts(Source(data=str(tmp_path / "data"), encoding=given), tmp_path / "cache")


# ---------------------------------------------------------------------------------------------- quotes, JSON, CSV


def test_what_a_run_says_about_quotes_and_ids_is_said_where_it_matters(tmp_path: Path, capsys):
    path = tmp_path / "x.tsv"
    path.write_text('id\treview\tlabel\n1\t"great film\tpos\n2\tbad film"\tneg\n3\tlovely film\tpos\n')
    inherited = {"of_run": ("quoting", "id_column")}
    frame, _ = load_table(path, Source(quoting="rfc4180", **inherited), needs_labels=False)
    assert len(frame) == 2
    assert "quotes are read as the run did (--quoting rfc4180)" in capsys.readouterr().out
    load_table(write_table(tmp_path / "y.csv"), Source(quoting="rfc4180", id_column="none", **inherited))
    out = capsys.readouterr().out
    assert "quotes" not in out
    assert "ids are line numbers, as the run read them (--id-column id reads the column)" in out


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_key_twice_is_refused(tmp_path: Path, ending: str):
    line = '{"text": "great", "label": 1, "label": 0}'
    (tmp_path / f"x.{ending}").write_text(f"[{line}]" if ending == "json" else f"{line}\n{line}\n")
    with pytest.raises(ValueError, match="the key 'label' twice"):
        load_reviews(tmp_path / f"x.{ending}")


def test_numbers_of_json_keep_their_spelling(tmp_path: Path):
    ids = ["1.10", "1e5", "12345678901234567890.5", "7", "-0.0"]
    lines = [f'{{"id": {key}, "text": "a film", "label": {n % 2}}}\n' for n, key in enumerate(ids)]
    (tmp_path / "x.jsonl").write_text("".join(lines))
    assert load_reviews(tmp_path / "x.jsonl")["id"].tolist() == ids


def test_a_carriage_return_in_an_id_is_quoted():
    assert csv_text([("a\rb", "c"), ("d", "e\nf")]) == '"a\rb",c\nd,"e\nf"\n'


def test_a_zipped_text_file_is_known_by_the_name_inside(tmp_path: Path):
    pd.Series(["good film", "bad film"]).to_csv(
        tmp_path / "lines.zip", index=False, header=False, compression={"method": "zip", "archive_name": "lines.txt"}
    )
    assert is_text_lines(tmp_path / "lines.zip", Source())


# ---------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("flag", ["--train", "--test", "--validation", "--data"])
def test_a_file_twice_is_refused(flag: str, capsys):
    with pytest.raises(SystemExit):
        train.main([flag, "a", flag, "b"])
    assert f"{flag} is given twice" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_known_before_the_reviews_are_scored(tmp_path: Path):
    path = write_table(tmp_path / "a.csv")
    assert write_problem(tmp_path / "new/folder/o.csv") is None
    assert write_problem(tmp_path / ("b" * 245 + ".csv")) is None
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    targets = [str(tmp_path / ("b" * 300)), str(tmp_path / "loop.csv")]
    targets += ["/sys/p.csv"] if Path("/sys").is_dir() else []
    for target in targets:
        with pytest.raises(ValueError, match=r"--out .* cannot be written \(.+\); name another file"):
            evaluate(["--weights", LINEAR, "--predict", str(path), "--out", target])


def test_a_long_name_is_written(tmp_path: Path):
    out = tmp_path / ("b" * 245 + ".csv")
    evaluate(["--weights", LINEAR, "--predict", str(write_table(tmp_path / "a.csv")), "--out", str(out)])
    assert len(out.read_text().splitlines()) == 41


def test_a_loop_of_links_is_one_line(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((OSError, ValueError), match="loop"):
        evaluate(["--run", str(tmp_path / "loop"), "--text", "good"])


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_path_that_is_not_utf_8_is_refused_before_a_run_is_created(tmp_path: Path):
    path = write_table(Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.csv")))
    with pytest.raises(ValueError, match=r"is not UTF-8, as config\.json has to be; rename it"):
        linear_run(tmp_path, "r", "--train", str(path))
    assert not (tmp_path / "runs/r").exists()


def test_a_validation_file_of_one_class_is_no_failure_to_predict(tmp_path: Path, capsys):
    write_table(tmp_path / "a.csv")
    write_table(tmp_path / "v.csv", [row for row in ROWS if row[2] == "pos"])
    linear_run(tmp_path, "r", "--train", str(tmp_path / "a.csv"), "--validation", str(tmp_path / "v.csv"))
    assert "no validation review gets the label neg" not in capsys.readouterr().out


def test_test_reviews_without_a_label_are_counted(tmp_path: Path, capsys):
    write_table(tmp_path / "a.csv")
    rows = [(key, text, label if n % 4 else "") for n, (key, text, label) in enumerate(ROWS)]
    load_splits(Source(train=str(tmp_path / "a.csv"), test=str(write_table(tmp_path / "t.csv", rows))))
    assert "10 of 40 reviews have no label and are not scored" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- what must still work


def test_a_file_has_one_part_however_it_is_named(tmp_path: Path):
    file, other = write_table(tmp_path / "a.csv"), write_table(tmp_path / "y/a.csv", ROWS[:30])
    test = write_table(tmp_path / "t.csv", ROWS[20:])
    by_train = linear_run(tmp_path, "train", "--train", str(file), "--test", str(test))
    by_data = linear_run(tmp_path, "data", "--data", str(file), "--test", str(test))
    others = linear_run(tmp_path, "other", "--data", str(other), "--test", str(test))
    both = linear_run(tmp_path, "both", "--train", str(file), "--validation", str(test), "--test", str(test))
    assert files_of(by_train) == files_of(by_data)
    assert not same_data(by_train, others)
    assert files_of(both).keys() == {"train", "validation", "test"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_can_be_written(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert write_problem(tmp_path / "pipe") is None
    reader, writer = os.pipe()
    try:
        assert write_problem(Path(f"/dev/fd/{writer}")) is None
    finally:
        os.close(reader)
        os.close(writer)


def test_a_zero_byte_in_a_shard_is_no_utf_16(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.txt").write_text("\n".join(f"a film with number {n}" + "\0" * (n == 1) for n in range(300)))
    shards = load_texts(Source(data=str(tmp_path / "data")), tmp_path / "cache").shards
    assert shards is not None
    assert len(shards.sample()) > 250


def test_a_key_twice_within_a_value_that_is_not_read(tmp_path: Path):
    (tmp_path / "x.json").write_text(
        '[{"text": "great", "label": 1, "meta": {"a": 1, "a": 2}}, {"text": "b", "label": 0}]'
    )
    assert len(load_reviews(tmp_path / "x.json")) == 2


def test_hidden_folders_beside_pos_and_neg(tmp_path: Path):
    acl(tmp_path, "train/pos", "train/neg", "train/.AppleDouble")
    splits = load_splits(Source(data=str(tmp_path)))
    assert len(splits.train) + len(splits.validation) == 6


def test_a_stray_quote_that_joins_rows_is_refused(tmp_path: Path):
    """With quoted fields the first four lines are one row; with quotes as characters they are four."""
    rows = ['"Great they said,positive', "bad film,negative", 'I loved it",positive', "fine,positive"]
    path = tmp_path / "merged.csv"
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    with pytest.raises(
        ValueError, match=r"two readings: 4 rows with quotes as characters, 2 with quoted fields, .*--quoting"
    ):
        load_reviews(path)
    quoted = [[f"line one of {n},\nline two, {n}", "pos" if n % 2 else "neg"] for n in range(4)]
    assert len(load_reviews(write_table(tmp_path / "multi.csv", quoted, ("text", "label")))) == 4


@pytest.mark.parametrize("mark", ["unsup", "NULL", "none", "N/A"])
def test_a_mark_of_a_missing_label_is_no_class_beside_neutral(mark: str, tmp_path: Path):
    names = ["negative", "neutral", "positive", mark]
    rows = [[f"film {n}", names[n % 4]] for n in range(40)]
    with pytest.raises(ValueError, match=f"has '{mark}' beside 'negative', 'neutral', 'positive': leave the cell"):
        load_reviews(write_table(tmp_path / "x.csv", rows, ("text", "label")))


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("a good film {0}\t{1}", r"seems to end in a label \(separated by tabs\)"),
        ("a good film {0};{1}", r"seems to end in a label \(separated by semicolons\)"),
        ("a good film {0}@{1}", r"seems to end in a label \(separated by @\)"),
        ("__label__{1} a good film {0}", "begins with __label__"),
        ("a good film {0}", ""),
    ],
)
def test_labels_at_the_end_of_lines_are_noted(line: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "reviews.txt"
    path.write_text("".join(line.format(n, n % 2) + "\n" for n in range(20)))
    assert len(load_table(path, Source(), ("negative", "positive"))[0]) == 20
    assert re.search(note, printed := capsys.readouterr().out)
    assert bool(note) == bool(printed)
    with pytest.raises(ValueError, match="has no labels; labels need a table: a first line such as text<TAB>label"):
        evaluate(["--weights", LINEAR, "--data", str(path)])


def test_labels_of_one_kind_are_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_table(tmp_path / "stars.csv", [[f"film {n}", "1.0"] for n in range(5)], ("text", "label"))
    assert load_table(path, Source(), ("negative", "positive"))[0]["sentiment"].tolist() == [1] * 5
    assert "all labels are 1, which is read as positive; is it a number of stars?" in capsys.readouterr().out
    load_table(write_table(tmp_path / "one.csv", [["a film", "1"]], ("text", "label")), Source())
    assert capsys.readouterr().out == ""


def test_a_title_of_two_lines_is_named_by_one(tmp_path: Path):
    header = ("Review\nText", "Star \u00a0Rating")
    path = write_table(tmp_path / "excel.csv", [[f"film {n}", n % 2] for n in range(6)], header)
    frame, _ = load_table(path, Source(text_column="Review Text", label_column="Star Rating"))
    assert frame["sentiment"].tolist() == [0, 1] * 3
    with pytest.raises(ValueError, match="--label-column 'Star Rating'"):
        load_splits(Source(train=str(path), text_column="Review Text"))


def test_a_folder_without_tables_names_what_it_holds(tmp_path: Path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/train.txt").write_text("text\tlabel\n")
    with pytest.raises(FileNotFoundError, match=r"it holds 'train.txt': name one with --train"):
        load_splits(Source(data=str(tmp_path / "texts")))
    (tmp_path / "texts/train.txt").rename(tmp_path / "texts/train.txt.gz")
    with pytest.raises(FileNotFoundError, match=r"it holds 'train.txt.gz': name one with --train"):
        load_splits(Source(data=str(tmp_path / "texts")))
    for name in ("pos", "neg"):
        (tmp_path / "polarity/txt_sentoken" / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"'txt_sentoken/neg', 'txt_sentoken/pos': move their "):
        load_splits(Source(data=str(tmp_path / "polarity")))


def test_a_column_that_only_one_part_has(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_table(tmp_path / "train.csv", [row[1:] for row in ROWS], ("text", "label"))
    write_table(tmp_path / "test.csv", [row[1:] for row in ROWS], ("review", "sentiment"))
    assert (load_splits(Source(data=str(tmp_path))).test["sentiment"] >= 0).all()
    assert (load_splits(Source(data=str(tmp_path), label_column="label")).test["sentiment"] < 0).all()
    assert "give the columns of all files one title, or leave out --label-column" in capsys.readouterr().out


def test_a_tar_inside_gzip_is_named(tmp_path: Path):
    write_table(tmp_path / "x.csv")
    with tarfile.open(tmp_path / "b.csv.gz", "w:gz") as archive:
        archive.add(tmp_path / "x.csv", "x.csv")
    with pytest.raises(ValueError, match=r"b.csv.gz is an archive; unpack it"):
        load_reviews(tmp_path / "b.csv.gz")


def test_texts_of_a_single_column_have_a_way_out_that_loses_none(tmp_path: Path):
    lines = ["review", *(f"good, film {n}" if n % 2 else f"bad film {n}" for n in range(8))]
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(
        ValueError, match=r"4 broken rows .*; quote its texts, or name it .txt: then each line is a text"
    ):
        load_reviews(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text('review\n"&nbsp;"\ngood\n')
    with pytest.raises(ValueError, match=r"1 broken rows \(row 2: empty review\); --skip-bad-rows"):  # .txt has it too
        load_reviews(tmp_path / "y.csv")
    (tmp_path / "x.csv").rename(tmp_path / "x.txt")
    assert len(load_table(tmp_path / "x.txt", Source())[0]) == 8
