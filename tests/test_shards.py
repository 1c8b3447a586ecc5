"""Texts that are larger than memory: the ids are those of the path in memory, for any number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import data.shards as shards_module
from data import Source, load_texts
from data.batches import Corpus
from data.shards import Job, Shards
from data.tokenization import Tokenizer, train_tokenizer

WORDS = ["a", "film", "with", "good", "actors", "and", "one", "bad", "plot", "again"]
LONGEST_MIB = 500  # of memory


def texts(count: int, first: int = 0) -> list[str]:
    return [" ".join(WORDS[(n * k) % 10] for k in range(3, 12)) + f" {n}" for n in range(first, first + count)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder with a text file and a file of JSON lines, which become several parts."""
    monkeypatch.setattr(shards_module, "PART_BYTES", 2000)
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


def rows(corpus: Corpus) -> list[list[int]]:
    return [corpus.ids[a:b].tolist() for a, b in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)]


def test_ids_equal_those_of_texts_in_memory(folder: Path):
    found, t = open_shards(folder), tokenizer()
    assert len(found.parts) > 5
    train, held_out = found.corpora(t, 8, "chunks", folder / "cache", processes=1)
    expected = list(t.encode([*texts(150), *(f"{text} &" for text in texts(150, 150))], 8, "chunks"))
    assert sorted(rows(train) + rows(held_out)) == sorted(expected)
    assert len(held_out) > 0
    kept = iter(expected)
    assert all(row in kept for row in rows(train))  # in the order of the files
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
    monkeypatch.setattr(shards_module, "index_text", lambda _: pytest.fail("read again"))
    assert np.array_equal(open_shards(folder).corpora(t, 8, "chunks", folder / "cache")[0].ids, train.ids)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"good\n\nb\xffd\n", r"x.txt: line 3: not UTF-8 text"),
        ("x.jsonl", b'{"text": "good"}\n{"text": \n', r"x.jsonl: line 2: not JSON"),
        ("x.jsonl", b'{"text": "good"}\n[1]\n', r"x.jsonl: line 2: list instead of an object"),
        ("x.jsonl", b'{"text": "good"}\n{"txt": "a"}\n', r"x.jsonl: line 2: no field 'text'"),
        (
            "x.jsonl",
            b'{"words": "good"}\n',
            r"x.jsonl: no column has a usual name for text; name it",
        ),
    ],
)
def test_a_broken_line_is_named(folder: Path, name: str, content: bytes, message: str):
    (folder / "data" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_shards(folder).corpora(tokenizer(), 8, "chunks", folder / "cache", processes=1)


def test_broken_lines_are_skipped_on_request(folder: Path, capsys):
    (folder / "data/x.txt").write_bytes(b"good\n\nb\xffd\n")
    open_shards(folder, skip_bad_rows=True).corpora(tokenizer(), 8, "chunks", folder / "cache", processes=1)
    assert "1 broken rows skipped" in capsys.readouterr().out


def test_parquet_without_pyarrow_names_the_package(folder: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (folder / "data/x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"x.parquet is a Parquet file; to read it: pip install pyarrow"):
        open_shards(folder)


MEASURED = """
import sys, resource
from pathlib import Path
from data import Source, load_texts
from data.tokenization import train_tokenizer
cache = Path(sys.argv[2])
shards = load_texts(Source(sys.argv[1]), cache).shards
tokenizer = train_tokenizer("wordpiece", ["a good film with one bad plot"] * 9, 300)
shards.corpora(tokenizer, 128, "chunks", cache)
print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024)
"""


@pytest.mark.slow
def test_two_gigabytes_are_read_in_bounded_memory(tmp_path: Path):
    size = int(os.environ.get("SHARDS_MIB", "2048")) * 2**20
    line = "a good film with one bad plot and actors that nobody knows, again and again. " * 12 + "\n"
    with (tmp_path / "big.txt").open("w") as file:
        for number in range(size // len(line)):
            file.write(f"{number} {line}")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "big.txt"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout.split()[-1]) < LONGEST_MIB
