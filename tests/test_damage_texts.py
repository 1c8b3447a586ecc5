"""Damaged and hostile tokenizers and data files: each of the smallest inputs ends in one error that names the file."""

import gzip
import json
import os
import sys
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import damage_texts as texts
import numpy as np
import pytest
import tokenizer_cases as cases

import data.readers
from data import Source, load_splits, load_table
from data.checked import within
from data.checksums import is_intact, seal_file
from data.cleaning import MOST_TAGS, clean
from data.corpus import Corpus
from data.delimited import MOST_COLUMNS
from data.download import unpack_archive
from data.files import check_inside, write_stdout
from data.imdb import load_reviews
from data.labels import find_classes
from data.patterns import check_pattern, growth
from data.pipelines import WORD
from data.sentencepiece import CharacterMap, UnigramModel
from data.tokenization import load_tokenizer
from data.unpacking import LINE_BYTES, UNCHECKED


def refused(work: Callable[[], Any], *parts: str) -> None:
    """Checks that a ValueError or OSError in one printable line contains all parts."""
    with pytest.raises((ValueError, OSError)) as caught:
        work()
    message = " ".join(str(caught.value).split())
    assert message.isprintable()
    assert len(message) < 2000
    for part in parts:
        assert part in message


# ------------------------------------------------------------------------------------------------------ tokenizer.json


def change(folder: Path, *keys: Any, value: Any) -> None:
    """Writes a value into the tokenizer.json of a folder."""
    path = folder / "tokenizer.json"
    content = inner = json.loads(path.read_bytes())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("kind", "keys", "value", "message"),
    [
        ("wordpiece", ("model", "vocab", "good"), 10**9, "but the id 1,000,000,000"),
        ("wordpiece", ("model", "vocab"), {}, "wordpiece"),
        ("wordpiece", ("pre_tokenizer",), split("(a+)+$"), "a repetition of a repetition"),
        ("wordpiece", ("pre_tokenizer",), split("((a{100}){100})"), "nested counts of 10,000"),
        ("wordpiece", ("pre_tokenizer",), split("(a|aa)+[xy]"), "retry-limit"),
        ("wordpiece", ("pre_tokenizer",), split("("), "damaged or not a tokenizer.json"),
        ("wordpiece", ("normalizer",), {"type": "Sequence", "normalizers": [DOUBLE] * 60}, "may lengthen a text"),
        ("wordpiece", ("post_processor", "special_tokens", "[CLS]", "ids"), [7], "gives '[CLS]' the id 7"),
        ("wordpiece", ("added_tokens", 0), "x", "tokenizer.json is damaged"),
        ("wordpiece", ("added_tokens",), 1.5, "tokenizer.json is damaged"),
        ("unigram", ("model", "unk_id"), 10**9, "damaged or not a tokenizer"),
        ("unigram", ("model", "vocab"), [], "tokenizer"),
        ("bpe", ("model", "merges", 0), ["zz", "qq"], "damaged or not a tokenizer.json"),
        ("bpe", ("normalizer", "normalizers", 1, "precompiled_charsmap"), "AAAA", "damaged or not a tokenizer"),
    ],
)
def test_a_hostile_tokenizer_json_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, keys: tuple, value: Any, message: str
):
    texts.make_json_tokenizers(tmp_path)
    change(tmp_path / kind, *keys, value=value)
    refused(lambda: load_tokenizer(tmp_path / kind), str(tmp_path / kind), message)
    assert capfd.readouterr().err == ""


def test_a_panic_while_text_is_segmented_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """The expression fails on a text that is in no probe."""
    texts.make_json_tokenizers(tmp_path)
    change(tmp_path / "wordpiece", "pre_tokenizer", value=split("(z|zz)+[xy]"))
    tokenizer = load_tokenizer(tmp_path / "wordpiece")
    refused(lambda: list(tokenizer.encode(["z" * 100], 20)), str(tmp_path / "wordpiece"), "retry-limit")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "pattern", ["(a+)+", "(a*)*", "(a{2,})+", "(?:x(?:a|b+)c){2,}", "(a+){9}", "[(]?(a+]?)*", "a{2,}+"]
)
def test_nested_repetitions_are_refused(pattern: str):
    with pytest.raises(ValueError, match="a repetition of a repetition"):
        check_pattern(pattern)


def test_calls_of_groups_are_refused():
    with pytest.raises(ValueError, match=r"a call of a group, as in \(a\+\)\\g<1>\*"):
        check_pattern(r"(z+)\g<1>*y")


@pytest.mark.parametrize(
    "pattern",
    [
        WORD,
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"(?=(\d{3})+(?!\d))",
        r"\d{1,3}(?=(?:\d{3})*\b)",
        r"<(?=0x[0-9A-F]{2}>)|\[(?=(?:CLS|SEP|PAD|UNK|MASK)\])",
        r"(?:a+)?b{3}\(+\)*",
        r"{a}{,}",
    ],
)
def test_published_expressions_are_read(pattern: str):
    check_pattern(pattern)


def test_growth_of_a_chain_of_replacements():
    assert growth({"type": "Sequence", "normalizers": [DOUBLE, DOUBLE, {"type": "NFC"}]}) == 4
    assert growth({"type": "Replace", "pattern": {"Regex": " +"}, "content": "\u2581"}) == 1
    assert growth(None) == 1


def test_work_without_an_end_is_given_up():
    """Waiting, as on a machine whose processors others use, is counted as a tenth of its time."""
    event = threading.Event()

    def compute() -> None:
        while not event.is_set():
            pass

    for work in (event.wait, compute):
        with pytest.raises(ValueError, match="the work is not finished after 0 s"):
            within(0.01, work, "the work")
    event.set()
    assert within(0.1, lambda: time.sleep(0.3) or 4, "the work") == 4
    assert within(9, lambda: 5, "the work") == 5
    with pytest.raises(ZeroDivisionError):
        within(9, lambda: 1 // 0, "the work")


# ------------------------------------------------------------------------------------- vocab.txt, vocab.json, settings


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (7, "several tokens with the id 7"),
        (10**9, "but the id 1,000,000,000"),
        (2**32, "is not a whole number from 0 on"),
        (-1, "is not a whole number from 0 on"),
        (True, "is not a whole number from 0 on"),
        ("1", "is not a whole number from 0 on"),
    ],
)
def test_ids_of_vocab_json_are_checked_before_a_table_is_made(tmp_path: Path, number: Any, message: str):
    cases.merges(tmp_path)
    vocabulary = cases.bpe_vocabulary()
    cases.dump(tmp_path, "vocab.json", vocabulary | {"\x1b[31m": number})
    tracemalloc.start()
    refused(lambda: load_tokenizer(tmp_path), str(tmp_path / "vocab.json"), message)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_merges_that_name_unknown_tokens(tmp_path: Path):
    cases.merges(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nzz \x1b[31m\n")
    refused(lambda: load_tokenizer(tmp_path), "merges.txt: 'zz' is not in vocab.json")
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    refused(lambda: load_tokenizer(tmp_path), "merges.txt is not UTF-8")


@pytest.mark.parametrize(
    ("config", "others", "message"),
    [
        ({"tokenizer_class": ["x"]}, {}, "tokenizer_class must be a name"),
        ({"tokenizer_class": "\x1b[31m"}, {}, "tokenizer_class must be a name"),
        ({"added_tokens_decoder": "x"}, {}, "added_tokens_decoder must be an object"),
        ({"added_tokens_decoder": {"9" * 5000: "[X]"}}, {}, "the ids of added tokens must be integers"),
        ({"additional_special_tokens": 5}, {}, "additional_special_tokens must be a list"),
        ({"cls_token": "\x1b[31m"}, {}, "vocab.txt is not a WordPiece vocabulary"),
        ({"cls_token": {"content": "x" * 9000}}, {}, "vocab.txt is not a WordPiece vocabulary"),
        ({"do_lower_case": "\x1b" * 900}, {}, "do_lower_case must be true or false"),
        ({"model_max_length": "9" * 900}, {}, "model_max_length must be a positive number"),
        ({}, {"added_tokens": {"[X]": [1]}}, "added_tokens.json: the ids of added tokens must be integers"),
        ({}, {"added_tokens": {"[X]": float("inf")}}, "added_tokens.json: the ids of added tokens must be integers"),
        ({}, {"added_tokens": {"\x1b[31m": 10**9}}, "has the id 1000000000 in its file"),
        ({}, {"added_tokens": [[]]}, "added_tokens.json must be an object"),
        ({}, {"special_tokens_map": {"cls_token": [1]}}, "is not a token"),
    ],
)
def test_hostile_settings_are_one_line(tmp_path: Path, config: dict, others: dict, message: str):
    cases.vocab(tmp_path, config=config, **others)
    refused(lambda: load_tokenizer(tmp_path), str(tmp_path), message)


# ------------------------------------------------------------------------------------------------------ SentencePiece


def subword(name: str | bytes, score: float, kind: int) -> bytes:
    """Returns a subword of a model of SentencePiece."""
    text = name.encode() if isinstance(name, str) else name
    fields = texts.message(1, text) + b"\x15" + np.float32(score).tobytes() + bytes([0x18, kind])
    return texts.message(1, fields)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (subword("zz", float("nan"), 1), "the score of its subword 'zz' is not a finite number"),
        (subword("zz", 0.0, 9), "cut short or not a SentencePiece model"),
        (subword("", 0.0, 1), "has 0 characters"),
        (subword("z" * 200, 0.0, 1), "has 200 characters, not 1 to 128"),
        (subword("a", 0.0, 1) * 2, "its subword 'a' is listed twice"),
        (subword("<0xZZ>", 0.0, 6), "it has 256 of the 256 subwords for bytes, and 1 others"),
        (subword("<u>", 0.0, 2), "it has 2 unknown tokens, not one"),
        (subword(b"\xff", 0.0, 1), "can't decode byte"),
        (texts.message(1, b"\x0a\x01z\x10\x05"), "cut short or not a SentencePiece model"),
        (b"\x80" * 1_000_000, "cut short or not a SentencePiece model"),
        (texts.message(3, texts.message(2, b"\0")), "character map is cut short"),
        (texts.message(3, texts.message(2, b"\xff\xff\xff\x7f")), "character map is cut short"),
        (texts.message(3, texts.message(2, b"\4\0\0\0\0\0\0\1")), "character map is damaged"),
    ],
)
def test_a_hostile_spm_model_is_one_line(tmp_path: Path, more: bytes, message: str):
    texts.make_spm(tmp_path)
    path = tmp_path / "byte" / "spm.model"
    path.write_bytes(path.read_bytes() + more)
    refused(lambda: load_tokenizer(tmp_path / "byte"), str(path), message)


def test_missing_byte_subwords_are_refused(tmp_path: Path):
    texts.make_spm(tmp_path)
    data = (tmp_path / "byte" / "spm.model").read_bytes()
    refused(lambda: UnigramModel.parse(data.replace(b"<0x41>", b"<0x40>")), "it has 255 of the 256 subwords for bytes")
    data = (tmp_path / "xlm" / "sentencepiece.bpe.model").read_bytes() + subword("<0x041>", 0.0, 6)  # no byte fallback
    refused(lambda: UnigramModel.parse(data), "it has 0 of the 256 subwords for bytes, and 1 others")


def test_the_character_map_of_the_tests_has_one_rule():
    assert CharacterMap(texts.character_map())("\uff21B\uff22") == "AB\uff22"


# --------------------------------------------------------------------------------------------------------- data files


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


ROWS = "review,label\na,1\nb,0\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "review,label," + "," * 10_000_000 + "\na,1\n", "its first line has 10,000,003 fields"),
        ("x.csv", '"review","label"\n"a",1' + ",b" * MOST_COLUMNS, "row 2: 10,002 fields; at most 10,000 are read"),
        ("x.tsv", "review\tlabel\na\t1" + "\tb" * MOST_COLUMNS, "row 2: 10,002 fields; at most 10,000 are read"),
        ("x.csv", "sep=\x01\n" + ROWS, "no column is read as the text"),
        ("x.csv", 'sep="\n' + ROWS, "sep="),
        ("x.csv", 'review,label\n"\\""' + "".join(map(chr, range(0xE000, 0xF900))) + ',1\n', "for private use"),
        ("x.csv", "review,label\n" + "<b>" * (MOST_TAGS + 1) + ",1\n", "a review with 20,001 HTML tags"),
        ("x.csv", "\x1b[2J,label\na,1\n", r"its header is '\x1b[2J'"),
        ("x.csv", "review,label\na,\x1b[2J\nb,1\n", r"has the class '\x1b[2J', which contains a control character"),
        ("x.csv", "review,label\na," + "x" * 2000 + "\nb,1\n", "has 2,000 characters"),
        ("x.csv", "review,\x0btext\na,1\n", "several columns"),
        ("x.csv", "review,\x1b[2J\na,1\nb,0\n", r"--label-column '\x1b[2J';"),
        ("x.jsonl", '{"review": "a", "label": 1, "id": "\\ud83d"}', "half of a surrogate pair"),
        ("x.jsonl", '{"review": ' + "9" * 5000 + "}", "no row that can be read (row 1: not JSON"),
        ("x.json", '{"review": ' + "9" * 5000 + "}", "is not valid JSON"),
        ("x.json", '{"\\u001b[2J": 1}', r"its header is '\x1b[2J'"),
        ("x.jsonl", "[" * 100_000, "not JSON"),
        ("x.jsonl", "".join(f'{{"k{i}": 1}}\n' for i in range(5000)), "5,000 objects have 5,000 different keys"),
        ("x.jsonl", json.dumps(dict.fromkeys(map(str, range(MOST_COLUMNS + 1)))), "10,001 different keys"),
        ("x.csv", b"\x1f\x8b", "is damaged or cut short"),
        ("x.csv", b"PK\x03\x04", "is damaged or cut short"),
        ("x.csv", gzip.compress(b"review,label\n" + b"\0" * 20_000_000, mtime=0), "times its size"),
    ],
)  # fmt: skip
def test_a_hostile_table_is_one_line(tmp_path: Path, name: str, content: str | bytes, message: str):
    path = write(tmp_path / name, content)
    refused(lambda: load_reviews(path), str(path), message)


def test_entities_of_any_length_are_text():
    assert clean("a &#" + "9" * 5000 + "; &#99999999; &lt;b") == "a &#" + "9" * 5000 + "; \ufffd <b"


def test_a_line_without_an_end_stops_the_reader(tmp_path: Path):
    """A sparse file of 2 GiB: reading stops after LINE_BYTES."""
    path = write(tmp_path / "x.csv", "review,label\n")
    os.truncate(path, 2**31)
    tracemalloc.start()
    refused(lambda: load_reviews(path), str(path), f"a line of more than {LINE_BYTES:,} bytes")
    assert tracemalloc.get_traced_memory()[1] < 3 * LINE_BYTES
    tracemalloc.stop()


def test_the_limit_of_a_file_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = "review,label\n" + ("word " * 40 + ",1\n") * 6000  # 1.2 MiB
    for name, content in (("x.csv", lines.encode()), ("x.csv.gz", gzip.compress(lines.encode()))):
        path = write(tmp_path / name, content)
        refused(lambda path=path: load_table(path, Source(max_file_mib=1)), str(path), "--max-file-mib 1 is the limit")
        assert len(load_table(path, Source(max_file_mib=2, quoting="rfc4180", label_column="none"))[0]) == 6000
    path = tmp_path / "x.csv.zip"
    texts.write_zip(path, {"x.csv": lines.encode()})
    refused(lambda: load_table(path, Source(max_file_mib=1)), str(path), "--max-file-mib 1 is the limit")
    monkeypatch.setattr(data.readers, "MOST_LINES", 5000)
    refused(lambda: load_table(tmp_path / "x.csv", Source(max_file_mib=2)), "6,001 lines; 5,000 are", "--max-file-mib")


@pytest.mark.parametrize("ending", ["gz", "zip"])
def test_an_archive_that_unpacks_to_very_much_is_refused_at_once(tmp_path: Path, ending: str):
    """Ten members of 100 MB, and one of 1 GB with the size in its header."""
    path = tmp_path / f"x.csv.{ending}"
    if ending == "gz":
        path.write_bytes(gzip.compress(b"a,1\n" * 25_000_000, 1, mtime=0) * 10)
    else:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("x.csv", "w") as f,
        ):
            for _ in range(100):
                f.write(b"a,1\n" * 250_000)
    tracemalloc.start()
    refused(lambda: load_reviews(path), str(path), "times its size")
    assert tracemalloc.get_traced_memory()[1] < 4 * UNCHECKED
    tracemalloc.stop()


def test_names_inside_an_archive_are_no_paths_and_no_commands(tmp_path: Path):
    path = tmp_path / "x.zip"
    texts.write_zip(path, {"../../y.csv": ROWS.encode()})
    assert len(load_reviews(path)) == 2
    texts.write_zip(path, {"\x1b[2J": b"", "b": b""})
    refused(lambda: load_reviews(path), str(path), r"contains 2 files (\x1b[2J, b)")


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"x" * 1000, gzip.compress(b"x" * 2000, mtime=0), gzip.compress(b"", mtime=0)[:12]]
)
def test_a_damaged_tar_is_one_line(tmp_path: Path, content: bytes):
    path = write(tmp_path / "x.tar.gz", content)
    refused(lambda: unpack_archive(path, "aclImdb", tmp_path / "out"), str(path), "is damaged")


def test_sizes_of_a_tar_are_checked(tmp_path: Path):
    texts.write_tar(tmp_path / "x.tar.gz", {"aclImdb/x": "y"}, size=10**10)
    refused(lambda: unpack_archive(tmp_path / "x.tar.gz", "aclImdb", tmp_path / "out"), "unpacks to more than")


# ------------------------------------------------------------------------------------------------------------- links


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_links_out_of_aclimdb_are_refused(tmp_path: Path):
    texts.make_acl(tmp_path)
    acl, path = tmp_path / "data" / "aclImdb", tmp_path / texts.ACL_FILE

    def read() -> None:
        load_splits(Source(data=str(tmp_path / "data")))

    read()
    content = path.read_bytes()
    path.unlink()
    path.symlink_to(acl / "train" / "neg" / "1_2.txt")
    for make, part in (
        (lambda: path.symlink_to(tmp_path / "secret" / "1_1.txt"), "leads out of"),
        (lambda: os.mkfifo(path), "is not a file"),
        (path.mkdir, "is not a file"),
        (lambda: path.symlink_to(path), "is not a file"),
    ):
        path.unlink(missing_ok=True)
        make()
        refused(read, str(path), part)
        path.rmdir() if path.is_dir() and not path.is_symlink() else None
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    (acl / "train" / "unsup").symlink_to(tmp_path / "secret")
    refused(read, str(acl / "train" / "unsup"), "leads out of")
    (acl / "train" / "unsup").unlink()
    path.rename(path.with_name("\x1b[2J.txt"))
    read()
    write(path, "")
    path.rename(path.with_name("\x1b[3J.txt"))
    refused(read, r"pos/\x1b[3J.txt: empty review")


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_tables_of_a_folder_are_not_read_through_links_out_of_it(tmp_path: Path):
    secret = write(tmp_path / "secret.csv", ROWS)
    for name in ("train.csv", "labeledTrainData.tsv"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).symlink_to(secret)
        refused(lambda folder=folder: load_splits(Source(data=str(folder))), "leads out of", "--train")
    snapshot = tmp_path / "hub" / "snapshots" / "5f3a"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    blob = write(tmp_path / "hub" / "blobs" / "9c1b", ROWS)
    (snapshot / "train.csv").symlink_to(blob)
    assert check_inside(snapshot / "train.csv", snapshot, "") == snapshot / "train.csv"


# ------------------------------------------------------------------------------------------------------- cache, output


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_of_the_ids_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, rows = tmp_path / "ids.npy", [[1, 2, 3], [4, 5]]

    def ids() -> list[int]:
        return Corpus.cached(path, make=lambda: rows, labels=[], pad_id=0).ids.tolist()

    for damage in (lambda: flip(path), lambda: flip(path.with_name("ids.npy.sha256")), lambda: path.write_bytes(b"")):
        assert ids() == [1, 2, 3, 4, 5]
        assert capsys.readouterr().out == ""
        damage()
        assert ids() == [1, 2, 3, 4, 5]
        assert capsys.readouterr().out == f"{path} is damaged or was not finished; it is made again\n"


def test_one_flipped_bit_of_cleaned_text_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "x.csv", ROWS)
    first = load_reviews(path, cache=tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.jsonl")
    flip(stored)
    assert load_reviews(path, cache=tmp_path / "cache").equals(first)
    assert "is made again" in capsys.readouterr().out
    assert load_reviews(path, cache=tmp_path / "cache").equals(first)
    assert capsys.readouterr().out == ""


def test_a_file_is_intact_if_its_digest_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert not is_intact(tmp_path / "x")
    assert capsys.readouterr().out == ""
    path = write(tmp_path / "x", "1")
    assert not is_intact(path)
    assert is_intact(seal_file(path))


def test_a_class_is_printable():
    for value in ("a\x1b[2J", "a\x00", "a\x9b", "\u202eab", "a\ue000"):
        with pytest.raises(ValueError, match="contains a control character"):
            find_classes([value, "b"], "x.csv")
    with pytest.raises(ValueError, match="has 201 characters"):
        find_classes(["a" * 201, "b"], "x.csv")
    assert find_classes(["tr\xe8s\xa0bon", "a\u2028b", "\ufeffc"], "x.csv") == ("a b", "c", "tr\xe8s bon")


def test_a_console_receives_no_control_characters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write_stdout("id,label\n\x1b[2J,0\n")
    assert capsys.readouterr().out == "id,label\n\ufffd[2J,0\n"


def test_a_second_message_of_a_field_changes_what_it_has_alone(tmp_path: Path):
    """As in protobuf: byte fallback is in the first message of the trainer, and stays."""
    texts.make_spm(tmp_path)
    data = (tmp_path / "byte" / "spm.model").read_bytes()
    assert UnigramModel.parse(data + texts.message(2, b"")).byte_fallback
