"""Texts that are larger than memory: the ids are those of the path in memory, for any number of processes."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, rows_of

from data import Source, shard_reader
from data.orders import shuffled_order
from data.pretraining_texts import load_texts
from data.shard_reader import Part, documents, split_of
from data.shards import Job, Shards
from data.tokenization import Tokenizer, train_tokenizer

WORDS = ["a", "film", "with", "good", "actors", "and", "one", "bad", "plot", "again"]
MOST_MIB = 500  # of memory, of all processes together


def texts(count: int, first: int = 0) -> list[str]:
    return [" ".join(WORDS[(n * k) % 10] for k in range(3, 12)) + f" {n}" for n in range(first, first + count)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder with a text file and a file of JSON lines, which become several parts."""
    monkeypatch.setattr(shard_reader, "PART_BYTES", 2000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("\n\n".join(texts(150)))
    lines = [json.dumps({"text": f"{text} &amp; <br />"}) for text in texts(150, 150)]
    (tmp_path / "data/b.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def open_shards(folder: Path, **options) -> Shards:
    found = load_texts(Source(str(folder / "data"), **options), folder / "cache").shards
    assert found is not None
    return found


def tokenizer() -> Tokenizer:
    return train_tokenizer("wordpiece", texts(300), 200)


def test_ids_equal_those_of_texts_in_memory(folder: Path):
    found, t = open_shards(folder), tokenizer()
    assert len(found.parts) > 5
    train, held_out = found.corpora(t, 8, "chunks", folder / "cache", processes=1)
    expected = list(t.encode([*texts(150), *(f"{text} &" for text in texts(150, 150))], 8, "chunks"))
    assert sorted(rows_of(train) + rows_of(held_out)) == sorted(expected)
    assert len(held_out) > 0
    kept = iter(expected)
    assert all(row in kept for row in rows_of(train))  # in the order of the files
    assert isinstance(train.ids, np.memmap)
    assert train.batch(np.array([0, 1])).labels.tolist() == [-1, -1]


def test_the_files_do_not_depend_on_the_number_of_processes(folder: Path):
    found, t = open_shards(folder), tokenizer()
    for name, processes in (("one", 1), ("two", 2)):
        found.corpora(t, 8, "chunks", folder / name, processes=processes)
    one, two = (sorted((folder / name).rglob("*.npy")) for name in ("one", "two"))
    assert [path.name for path in one] == ["held_out.npy", "train.npy"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_a_build_goes_on_after_the_finished_parts_and_a_finished_one_reads_nothing(folder: Path, monkeypatch, capsys):
    found, t, encode, done = open_shards(folder), tokenizer(), Job.encode, []

    def failing(self, number, part, tokenizer):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(number)
        return encode(self, number, part, tokenizer)

    monkeypatch.setattr(Job, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        found.corpora(t, 8, "chunks", folder / "cache", processes=1)
    monkeypatch.setattr(Job, "encode", encode)
    capsys.readouterr()
    train, _ = found.corpora(t, 8, "chunks", folder / "cache", processes=1)
    assert f"tokenizing {len(found.parts) - 4} of {len(found.parts)} parts" in capsys.readouterr().out
    other, _ = found.corpora(t, 8, "chunks", folder / "other", processes=1)
    assert np.array_equal(train.ids, other.ids)
    monkeypatch.setattr(Job, "encode", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(shard_reader, "index_text", lambda _: pytest.fail("read again"))
    assert np.array_equal(open_shards(folder).corpora(t, 8, "chunks", folder / "cache")[0].ids, train.ids)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"good\n\nb\xffd\n", r"x.txt: line 3: not UTF-8 text"),
        ("x.txt", b"good\rbad\r", r"x.txt ends its lines with carriage returns; shards need line feeds: tr "),
        ("x.jsonl", b'{"text": "good"}\n{"text": \n', r"x.jsonl: line 2: not JSON"),
        ("x.jsonl", b'{"text": "good"}\n[1]\n', r"x.jsonl: line 2: list instead of an object"),
        ("x.jsonl", b'{"text": "good"}\n{"txt": "a"}\n', r"x.jsonl: line 2: no field 'text'"),
        ("x.jsonl", b"\n \r\n[1]\n", r"x.jsonl: line 3: list instead of an object"),
        (
            "x.jsonl",
            b'{"words": "good"}\n',
            r"x.jsonl: no column is read as the text; --text-column",
        ),
    ],
)
def test_a_broken_line_is_named(folder: Path, name: str, content: bytes, message: str):
    (folder / "data" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_shards(folder).corpora(tokenizer(), 8, "chunks", folder / "cache", processes=1)


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_a_shard_without_text_is_passed_over(folder: Path, name: str, content: bytes):
    expected, _ = open_shards(folder).corpora(tokenizer(), 8, "chunks", folder / "cache", processes=1)
    (folder / "data" / name).write_bytes(content)
    found, _ = open_shards(folder).corpora(tokenizer(), 8, "chunks", folder / "other", processes=1)
    assert np.array_equal(found.ids, expected.ids)


@pytest.mark.parametrize("blank", [b"\n", b" \r\n\t\n", b"\xef\xbb\xbf\n"])
def test_blank_lines_before_the_first_object_are_passed_over(folder: Path, blank: bytes):
    lines = b'{"text": "a good film"}\n' * 50
    found = []
    for start in (b"", blank):
        (folder / "data/x.jsonl").write_bytes(start + lines)
        parts = [part for part in open_shards(folder).parts if part.name == "x.jsonl"]
        found.append([(part.column, len(list(shard_reader.records(part, "")))) for part in parts])
    assert found[0] == found[1] == [("text", 50)]


def test_broken_lines_are_skipped_on_request(folder: Path, capsys):
    (folder / "data/x.txt").write_bytes(b"good\n\nb\xffd\n")
    open_shards(folder, skip_bad_rows=True).corpora(tokenizer(), 8, "chunks", folder / "cache", processes=1)
    assert "1 broken rows skipped" in capsys.readouterr().out


def test_parquet_without_pyarrow_names_the_package(folder: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (folder / "data/x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"x.parquet is a Parquet file; to read it: pip install pyarrow"):
        open_shards(folder)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("wiki.train.txt", "train"),
        ("part-00000.jsonl", "train"),
        ("validated.txt", "train"),
        ("devices.txt", "train"),
        ("unsupervised.jsonl", "train"),
        ("validation.txt", "validation"),
        ("valid_0001.jsonl", "validation"),
        ("en/Dev2.txt", "validation"),
        ("val/part-0.parquet", "validation"),
        ("test-00000-of-00002.parquet", "test"),
        ("wiki.test.txt", "test"),
    ],
)
def test_the_split_of_a_shard_is_a_word_of_its_path(name: str, split: str):
    assert split_of(name) == split


def add_splits(folder: Path) -> dict[str, list[str]]:
    """Adds files of a validation and a test split. Returns the texts of each split."""
    made = {"train": [*texts(150), *(f"{text} &" for text in texts(150, 150))]}
    for number, name in ((1000, "validation"), (2000, "test"), (3000, "given")):
        made[name] = texts(20, number)
    (folder / "data/validation-00000-of-00001.txt").write_text("\n".join(made["validation"]))
    (folder / "data/test").mkdir()
    (folder / "data/test/c.txt").write_text("\n".join(made["test"]))
    (folder / "given.txt").write_text("\n".join(made["given"]))
    return made


@pytest.mark.parametrize("given", [False, True])
def test_shards_of_other_splits_are_not_trained_on(folder: Path, capsys, given: bool):
    made, t = add_splits(folder), tokenizer()
    found = open_shards(folder, validation=str(folder / "given.txt") if given else "")
    train, held_out = found.corpora(t, 64, "chunks", folder / "cache", processes=1)
    assert rows_of(train) == list(t.encode(made["train"], 64))
    assert rows_of(held_out) == list(t.encode(made["given" if given else "validation"], 64))
    assert not set(found.sample()) & {*made["validation"], *made["test"], *made["given"]}
    expected = (
        "documents of 2 files; held out: given.txt; not read: test/c.txt, validation-00000-of-00001.txt"
        if given
        else "documents of 2 files; held out: validation-00000-of-00001.txt; not read: test/c.txt"
    )
    assert expected in capsys.readouterr().out


def test_a_folder_without_shards_to_train_on_is_refused(folder: Path):
    for name in ("a.txt", "b.jsonl"):
        (folder / "data" / name).rename(folder / "data" / f"test-{name}")
    with pytest.raises(ValueError, match="holds only files of validation and test splits"):
        open_shards(folder)


@pytest.mark.parametrize("name", ["train.jsonl", "train-00000-of-00001.jsonl"])
def test_a_large_table_named_train_is_streamed_a_small_one_is_not(folder: Path, monkeypatch, name: str):
    (folder / "data/a.txt").unlink()
    table = (folder / "data/b.jsonl").rename(folder / "data" / name)
    assert load_texts(Source(str(folder / "data")), folder / "cache").shards is None
    monkeypatch.setattr(shard_reader, "STREAM_BYTES", table.stat().st_size - 1)
    assert {part.path for part in open_shards(folder).parts} == {table}


def test_a_text_file_named_train_is_a_shard(folder: Path):
    (folder / "data/a.txt").rename(folder / "data/train.txt")
    assert {part.name for part in open_shards(folder).parts} == {"train.txt", "b.jsonl"}


def test_the_order_is_a_function_of_seed_and_epoch_and_resumes_in_the_middle(folder: Path, monkeypatch):
    found, t = open_shards(folder), tokenizer()
    train, _ = found.corpora(t, 8, "chunks", folder / "one", processes=1)
    order = shuffled_order(train.lengths, 16, seed=5, epoch=2)
    monkeypatch.setattr(Job, "encode", lambda *_: pytest.fail("read again"))
    again, _ = open_shards(folder).corpora(t, 8, "chunks", folder / "one")  # as a run that goes on finds it
    resumed = shuffled_order(again.lengths, 16, seed=5, epoch=2)
    assert [rows.tolist() for rows in resumed] == [rows.tolist() for rows in order]
    half = len(order) // 2
    for rows in resumed[half:]:
        assert np.array_equal(again.batch(rows).input_ids, train.batch(rows).input_ids)
    assert sorted(np.concatenate(order)) == list(range(len(train)))
    for seed, epoch in ((5, 3), (6, 2)):
        other = shuffled_order(train.lengths, 16, seed=seed, epoch=epoch)
        assert [rows.tolist() for rows in other] != [rows.tolist() for rows in order]


MEASURED = """
import sys
from pathlib import Path
from data import Source, shard_reader
from data.pretraining_texts import load_texts
from data.tokenization import train_tokenizer
cache = Path(sys.argv[2])
shard_reader.STREAM_BYTES = 2**20
shards = load_texts(Source(sys.argv[1]), cache).shards
tokenizer = train_tokenizer("wordpiece", ["a good film with one bad plot"] * 9, 300)
shards.corpora(tokenizer, 128, "chunks", cache, processes=2)
"""


def memory(process: int) -> float:
    """Returns the MiB of a process and its descendants: memory that n of them share counts 1/n for each (PSS)."""
    folder = Path(f"/proc/{process}")
    try:
        own = re.search(r"^Pss: *(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
        children = " ".join(path.read_text() for path in folder.glob("task/*/children")).split()
    except OSError:  # it has ended
        return 0
    return (int(own[1]) / 1024 if own else 0) + sum(memory(int(child)) for child in children)


@pytest.mark.skipif("SHARDS_MIB" not in os.environ, reason="takes many minutes: SHARDS_MIB=2048")
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of memory")
def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path):
    """A small file needs little memory in any case, so that only a large one can fail."""
    size = int(os.environ["SHARDS_MIB"]) * 2**20
    line = "a good film with one bad plot and actors that nobody knows, again and again. " * 12 + "\n"
    with (tmp_path / "big.txt").open("w") as file:
        for number in range(size // len(line)):
            file.write(f"{number} {line}")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "big.txt"), str(tmp_path / "cache")]
    most, seen = 0.0, 0
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            most, seen = max(most, memory(process.pid)), seen + 1
            time.sleep(0.2)
    assert process.returncode == 0
    assert seen > 5
    assert 100 < most < MOST_MIB


def test_flags_of_files_that_have_columns_may_stand_beside_a_text_file(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one text\nanother text\n" * 50)
    (tmp_path / "b.jsonl").write_text('{"body": "a third text"}\n' * 50)
    splits = load_texts(Source(data=str(tmp_path), text_column="body"), tmp_path / "cache")
    assert splits.shards is not None
    with pytest.raises(ValueError, match=r"a\.txt holds one text a line, so --text-column has no effect"):
        load_texts(Source(data=str(tmp_path / "a.txt"), text_column="body"), None)
    with pytest.raises(ValueError, match="--encoding 'nope' is not an encoding"):
        load_texts(Source(data=str(tmp_path), encoding="nope"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("kept", "options", "message"),
    [
        ("*", {"id_column": "nope"}, "--id-column has no effect here: only the texts of shards are read"),
        ("*", {"quoting": "backslash"}, "--quoting has no effect here: only the texts of shards are read"),
        ("*.txt", {"text_column": "nope"}, "--text-column has no effect here: a .txt shard holds one text a line"),
    ],
)
def test_flags_without_effect_are_noted(
    kept: str, options: dict[str, str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    for path in set((folder / "data").iterdir()) - set((folder / "data").glob(kept)):
        path.unlink()
    for of_run in ((), tuple(options)):
        assert open_shards(folder, **options, of_run=of_run).parts
        assert (f"note: {message}\n" in capsys.readouterr().out) == (not of_run)


def test_the_column_of_the_held_out_texts_alone_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "data/b.jsonl").unlink()
    held_out = folder / "held.jsonl"
    held_out.write_text("".join(json.dumps({"title": "x", "body": text}) + "\n" for text in texts(20)))
    found = open_shards(folder, validation=str(held_out), text_column="body")
    assert {part.column for part in found.parts} == {"", "body"}
    assert "no effect" not in capsys.readouterr().out


def test_a_shard_that_changes_while_it_is_read_is_refused(folder: Path):
    found = open_shards(folder)
    with (folder / "data/a.txt").open("a") as file:
        file.write("\na film")
    with pytest.raises(ValueError, match=r"a\.txt changed while it was read; start again"):
        found.corpora(tokenizer(), 8, "chunks", folder / "cache", processes=1)


def test_a_shard_that_changed_is_indexed_again(folder: Path):
    before = open_shards(folder)
    (folder / "data/a.txt").write_text("\n".join(texts(20)))
    found = open_shards(folder)
    assert found.digest != before.digest
    assert max(part.end for part in found.parts if part.name == "a.txt") == (folder / "data/a.txt").stat().st_size


def test_hidden_folders_are_not_read(folder: Path):
    found = open_shards(folder)
    (folder / "data/.cache").mkdir()
    (folder / "data/.cache/c.txt").write_text("\n".join(texts(9)))
    assert open_shards(folder).digest == found.digest


def test_each_way_to_tokenize_a_corpus_has_files_of_its_own(folder: Path):
    t = tokenizer()
    ways = [(8, "chunks", {}), (9, "chunks", {}), (8, "head", {}), (8, "chunks", {"encoding": "latin-1"})]
    ways += [(8, "chunks", {"skip_bad_rows": True}), (8, "chunks", {"text_column": "text"})]
    for max_length, truncate, options in ways:
        open_shards(folder, **options).corpora(t, max_length, truncate, folder / "cache", processes=1)
    assert len(list((folder / "cache/shards").glob("*/train.npy"))) == len(ways)


def test_lines_of_text_are_plain(folder: Path):
    """As those of small files; the texts of JSON and Parquet are HTML."""
    (folder / "data/a.txt").write_text("R&amp;D<br />film\n")
    (folder / "data/b.jsonl").write_text(json.dumps({"text": "R&amp;D<br />film"}) + "\n")
    found = [document.text for part in open_shards(folder).parts for document in documents(part, Source(), [])]
    assert found == ["R&amp;D<br />film", "R&D film"]


def test_rows_of_parquet_are_numbered_through_all_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    groups = [["a", "b"], ["c"]]

    class File:
        metadata = SimpleNamespace(num_row_groups=2, row_group=lambda n: SimpleNamespace(num_rows=len(groups[n])))

        def iter_batches(self, size: int, row_groups: list[int], columns: list[str]):
            for n in row_groups:
                yield SimpleNamespace(column=lambda _, n=n: SimpleNamespace(to_pylist=lambda: groups[n]))

    monkeypatch.setattr(shard_reader, "open_parquet", lambda path: File())
    path = tmp_path / "x.parquet"
    places = shard_reader.index_parquet(path)
    assert places == [(0, 1, 1), (1, 2, 3)]
    parts = [Part(path, path.name, "text", start, end, first, [], 0.0) for start, end, first in places]
    found = [(row.number, row.fields) for part in parts for row in shard_reader.records(part, "")]
    assert found == [(1, ["a"]), (2, ["b"]), (3, ["c"])]
