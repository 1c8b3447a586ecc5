"""Formats of tokenizers and data files for damage.py."""

import gzip
import importlib.util
import io
import json
import os
import random
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a forked child cannot use the threads of its parent

import pandas as pd
import tokenizer_cases as cases
from damage import Format
from tokenizers import Regex, normalizers, pre_tokenizers

from data import Source, load_splits, load_table
from data.demo import reviews
from data.download import unpack_archive
from data.pretraining_texts import load_texts
from data.tokenization import load_tokenizer
from losses import OBJECTIVES

TEXTS = [
    "A wonderful little film! 7/10",
    "",
    "na\u00efve \u2615 \uff21 [MOVIE] [CLS]",
    "x" * 300,
    "   1234 don't\n\tok",
]
ROWS = [(f"{number}_{9 if label else 2}", label, text) for number, (_, text, label) in enumerate(reviews("test")[:24])]
FRAME = pd.DataFrame(ROWS, columns=["id", "sentiment", "review"])


# --------------------------------------------------------------------------------------------------------- tokenizers


def use_tokenizer(folder: Path) -> None:
    """Loads a tokenizer, and does with it what training does: encodes texts, masks words, saves it."""
    tokenizer = load_tokenizer(folder)
    rows = list(tokenizer.encode(TEXTS, 60))
    rows += list(tokenizer.encode(TEXTS, 60, truncate="chunks"))
    size = tokenizer.vocab_size
    if max(map(max, rows)) >= size or len(tokenizer.tokens) != size or not tokenizer.fingerprint:
        raise AssertionError("an id outside the vocabulary")
    sum(tokenizer.starts_word(token) for token in tokenizer.tokens)
    tokenizer.encode_batch(TEXTS, 60)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save(temporary)
        if list(load_tokenizer(temporary).encode(TEXTS, 60)) != rows[: len(TEXTS)]:
            raise AssertionError("the saved tokenizer gives other ids")


def use_each(*names: str) -> Callable[[Path], None]:
    """Returns a function that loads the tokenizers of some subfolders."""

    def use(folder: Path) -> None:
        for name in names:
            use_tokenizer(folder / name)

    return use


def make_json_tokenizers(folder: Path) -> None:
    """Writes a tokenizer.json of each kind."""
    for name in ("wordpiece", "bpe", "unigram"):
        (folder / name).mkdir()
    generic = {"tokenizer_class": "PreTrainedTokenizerFast"}
    cases.whole(folder / "wordpiece", cases.wordpiece_json(), "bert", added=cases.TOKENS)
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Precompiled(character_map())])
    backend = cases.bpe_json("bert", normalizer=normalizer)
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    cases.whole(folder / "bpe", backend, "modernbert", config=generic | cases.named("bert"))
    config = generic | cases.named("roberta")
    cases.whole(folder / "unigram", cases.unigram_json("roberta"), "xlm-roberta", config=config)


HOSTILE = (
    "(a+)+$",
    "(\\w*)*x",
    "(x+x+)+y",
    ".*.*.*.*x",
    "(((a{1000}){1000}){1000})",
    "(",
    "a" * 100_000,
    "(?<=a+)b",
    "",
)


def damage_pipeline(folder: Path, stream: random.Random) -> bool:
    """Changes a number, a pattern or a replacement of a tokenizer.json."""
    path = folder / stream.choice(("wordpiece", "bpe", "unigram")) / "tokenizer.json"
    content = json.loads(path.read_bytes())
    model, kind = content["model"], stream.randrange(8)
    pattern = {"Regex": stream.choice(HOSTILE)}
    if kind == 0:
        content["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    elif kind == 1:
        content["normalizer"] = {"type": "Replace", "pattern": pattern, "content": "xx"}
    elif kind == 2:
        double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
        content["normalizer"] = {"type": "Sequence", "normalizers": [double] * stream.choice((3, 60))}
    elif kind == 3 and isinstance(model["vocab"], dict):
        model["vocab"][stream.choice(list(model["vocab"]))] = stream.choice((10**9, 2**32 - 1, 5))
    elif kind == 3:
        model["vocab"][stream.randrange(len(model["vocab"]))][1] = stream.choice((1e308, -1e308, 5))
        model["unk_id"] = stream.choice((None, 10**9, 7))
    elif kind == 4:
        content["added_tokens"].append(dict(content["added_tokens"][0], id=stream.choice((10**9, 5)), content="[X]"))
    elif kind == 5:
        content["pre_tokenizer"] = {"type": stream.choice(("Metaspace", "Digits", "BertPreTokenizer", "Nothing"))}
    elif kind == 6:
        model["vocab"] = type(model["vocab"])()
    else:
        content["post_processor"] = {"type": "BertProcessing", "sep": ["[X]", 10**9], "cls": ["[Y]", 2]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return True


def make_vocab(folder: Path) -> None:
    cases.vocab(
        folder, config={"tokenizer_class": "BertTokenizer"}, added_tokens=cases.numbered(len(cases.vocabulary()))
    )


def damage_vocab_json(folder: Path, stream: random.Random) -> bool:
    """Gives a token of vocab.json another id, or removes it."""
    path = folder / "vocab.json"
    vocabulary = json.loads(path.read_bytes())
    name = stream.choice(list(vocabulary))
    vocabulary[name] = stream.choice((10**9, 2**32 - 1, 2**32, 7, -1))
    if stream.random() < 0.3:
        del vocabulary[name]
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    return True


def make_settings(folder: Path) -> None:
    """Writes a vocab.txt with each of the JSON files of settings; one folder has added_tokens_decoder."""
    for name in ("map", "decoder"):
        (folder / name).mkdir()
    special = cases.named("bert") | {"additional_special_tokens": cases.LISTED}
    lines, config = cases.vocabulary(), {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    added = cases.numbered(len(lines))
    cases.vocab(
        folder / "map", config=config | {"model_max_length": 512}, special_tokens_map=special, added_tokens=added
    )
    config = config | {"added_tokens_decoder": cases.decoder(lines, "bert"), "strip_accents": None}
    cases.vocab(folder / "decoder", config=config)


def message(number: int, data: bytes) -> bytes:
    """Returns a field of a protobuf message."""
    size, varint = len(data), b""
    while size >= 128:
        varint, size = varint + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + varint + bytes([size]) + data


def character_map() -> bytes:
    """Returns a character map with one rule, "\uff21" -> "A": a double array of five blocks of 256 units."""
    units, node = [0] * 1280, 0
    for block, byte in enumerate("\uff21".encode(), 1):
        units[node] |= (node ^ 256 * block) << 10
        node = 256 * block + byte
        units[node] |= byte
    units[node] |= (node ^ 1024) << 10 | 256
    blob = struct.pack("<1280I", *units)
    return struct.pack("<I", len(blob)) + blob + b"A\0"


def make_spm(folder: Path) -> None:
    """Writes a spm.model with byte fallback and a character map, and a sentencepiece.bpe.model without."""
    (folder / "byte").mkdir()
    (folder / "xlm").mkdir()
    cases.spm(folder / "byte", "byte", added_tokens={"[MASK]": 1200, "[MOVIE]": 1201})
    path = folder / "byte" / "spm.model"
    path.write_bytes(path.read_bytes() + message(3, message(2, character_map())))
    cases.spm(folder / "xlm", "xlm", "xlm-roberta", config={"tokenizer_class": "XLMRobertaTokenizer"})


def damage_spm(folder: Path, stream: random.Random) -> bool:
    """Damages the character map, or appends subwords that a sound model does not have."""
    path = folder / "byte" / "spm.model"
    data, kind = path.read_bytes(), stream.randrange(6)
    if kind < 3:
        blob = bytearray(character_map())
        for _ in range(stream.choice((1, 3, 30))):
            blob[stream.choice((stream.randrange(4), stream.randrange(len(blob))))] = stream.randrange(256)
        blob = blob[: stream.choice((0, 3, 4, 100, len(blob) - 1, len(blob)))]
        data += message(3, message(2, bytes(blob)))
    elif kind == 3:
        data = data.replace(b"<0x4", stream.choice((b"<0xZ", b"<1x4", b"\xff0x4")), stream.choice((1, 16)))
    elif kind == 4:
        score = struct.pack("<f", stream.choice((float("nan"), float("inf"), -3e38, 3e38, 0.0)))
        name = stream.choice(("a", "", "\u2581a", "x" * 5000, "a" * 100_000)).encode()
        data += message(1, message(1, name) + b"\x15" + score + bytes([0x18, stream.choice((1, 2, 3, 4, 6, 9))]))
    else:
        data += b"\x80" * stream.choice((1, 100, 1_000_000))
    path.write_bytes(data)
    return True


# --------------------------------------------------------------------------------------------------------- data files


def use_file(path: Path, **options: str | bool) -> None:
    """Reads a file as train.py and as eval.py do, and as pretraining does."""
    splits = load_splits(Source(data=str(path), **options))
    if OBJECTIVES and splits.labels:
        print(f"labels: {', '.join(splits.labels)}")
    load_table(path, Source(**options), splits.labels, keep_empty=True)
    load_texts(Source(train=str(path), **options))


def use_files(*names: str) -> Callable[[Path], None]:
    """Returns a function that reads some files of a folder."""

    def use(folder: Path) -> None:
        for name in names:
            use_file(folder / name)
            use_file(folder / name, skip_bad_rows=True)

    return use


def literal_lines() -> str:
    """Returns the reviews in the form of Kaggle's files."""
    rows = ['"{}"\t{}\t"{}"'.format(key, label, text.replace('"', '\\"')) for key, label, text in ROWS]
    return "\n".join(["id\tsentiment\treview", *rows, ""])


def make_tables(folder: Path) -> None:
    FRAME.to_csv(folder / "reviews.csv", index=False)
    FRAME.to_csv(folder / "reviews.tsv", index=False, sep="\t")
    (folder / "labeledTrainData.tsv").write_text(literal_lines(), encoding="utf-8")


SNIPPETS = (
    "sep=\x01\n", 'sep="\n', "sep=\\\n", "\x1b[2J\x1b]0;x\x07", "\0", "\ufeff", "\u2028", "\r", "\ud83d", "<![CDATA[",
    "a" * 3_000_000, "," * 3_000_000, "\t" * 3_000_000, "\n" * 50_000, '"' * 300_001,
    "<b>" * 30_000, "&#" + "9" * 5000 + ";", "<a " + 'x="' * 9000, "&lt;" * 30_000, "<script>" * 3000, "</" * 9000,
    "".join(map(chr, range(0xE000, 0xF900))) + '\\"',
)  # fmt: skip


def damage_table(folder: Path, stream: random.Random) -> bool:
    """Puts a difficult text somewhere into a file: at the begin, into the header, or into a row."""
    path = folder / stream.choice(sorted(p.name for p in folder.iterdir()))
    text = path.read_text(encoding="utf-8")
    at = stream.choice((0, stream.randrange(10), stream.randrange(len(text))))
    content = text[:at] + stream.choice(SNIPPETS) + text[at:]
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    return True


def make_objects(folder: Path) -> None:
    FRAME.to_json(folder / "reviews.jsonl", orient="records", lines=True)
    FRAME.to_json(folder / "reviews.json", orient="records")


def damage_objects(folder: Path, stream: random.Random) -> bool:
    """Adds an object that has a difficult value, or rows whose keys all differ."""
    rows = [json.loads(line) for line in (folder / "reviews.jsonl").read_text(encoding="utf-8").splitlines()]
    values = (
        10**400,
        "\ud83d",
        "\x1b[2J",
        {"a": [1]},
        [[]],
        float("nan"),
        True,
        None,
        "a" * 11_000_000,
        "<b>" * 30_000,
    )
    kind = stream.randrange(4)
    if kind == 0:
        rows += [{f"key {number}": 1} for number in range(10_000)]
    elif kind == 1:
        rows[0]["\x1b[2J" * stream.choice((1, 10_000))] = 1
    else:
        stream.choice(rows)[stream.choice(("id", "review", "sentiment"))] = stream.choice(values)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    name, text = stream.choice((("reviews.jsonl", lines), ("reviews.json", json.dumps(rows))))
    text = text.replace("1" + "0" * 400, "1" * 5000) if stream.random() < 0.5 else text
    (folder / name).write_text(text, encoding="utf-8")
    return True


def make_archives(folder: Path) -> None:
    content = FRAME.to_csv(index=False).encode()
    (folder / "reviews.csv.gz").write_bytes(gzip.compress(content))
    write_zip(folder / "reviews.csv.zip", {"reviews.csv": content})
    write_tar(folder / "reviews.tar.gz", {f"aclImdb/train/pos/{key}.txt": text for key, _, text in ROWS})


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """Writes a .zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(path: Path, files: dict[str, str], size: int | None = None) -> None:
    """Writes a .tar.gz. size: what the headers say, if it is not the size of the content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
            if size is not None:
                packed.seek(-len(member.tobuf()) - 512 * -(-member.size // 512), io.SEEK_CUR)
                member.size = size
                packed.write(member.tobuf())
                packed.seek(0, io.SEEK_END)
    path.write_bytes(gzip.compress(packed.getvalue()))


def damage_archive(folder: Path, stream: random.Random) -> bool:
    """Writes an archive that is sound as an archive, and hostile."""
    kind, table = stream.randrange(6), FRAME.to_csv(index=False).encode()
    if kind == 0:
        write_zip(
            folder / "reviews.csv.zip", {stream.choice(("../../x.csv", "\x1b[2J.csv", "x.exe", "a/b.csv")): table}
        )
    elif kind == 1:
        write_zip(folder / "reviews.csv.zip", {"\x1b[2J": b"", "b": b""})
    elif kind == 2:
        (folder / "reviews.csv.gz").write_bytes(gzip.compress(table + b"\0" * 100_000_000, 1))
    elif kind == 3:
        write_zip(folder / "reviews.csv.zip", {"reviews.csv": table + b"a,1,b\n" * 10_000_000})
    elif kind == 4:
        name = stream.choice(
            ("aclImdb/../../x", "/x", "aclImdb/\x1b[2J", "aclImdb/a", "other/x", "aclImdb/" + "x" * 300)
        )
        write_tar(folder / "reviews.tar.gz", {"aclImdb/a/b": "x", name: "y"})
    else:
        write_tar(folder / "reviews.tar.gz", {"aclImdb/x": "y"}, stream.choice((10**10, 0, 2000)))
    return True


def use_archives(folder: Path) -> None:
    use_file(folder / "reviews.csv.gz")
    use_file(folder / "reviews.csv.zip")
    with tempfile.TemporaryDirectory() as temporary:
        unpack_archive(folder / "reviews.tar.gz", "aclImdb", Path(temporary))


def make_parquet(folder: Path) -> None:
    """Writes a Parquet file with the footer of Hugging Face's `datasets`."""
    import pyarrow
    import pyarrow.parquet

    names = {"info": {"features": {"sentiment": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pyarrow.Table.from_pandas(FRAME).replace_schema_metadata({"huggingface": json.dumps(names)})
    pyarrow.parquet.write_table(table, folder / "reviews.parquet")


def damage_parquet(folder: Path, stream: random.Random) -> bool:
    """Changes bytes of the footer only, or claims very many rows."""
    path = folder / "reviews.parquet"
    data = bytearray(path.read_bytes())
    if stream.random() < 0.2:
        import pyarrow
        import pyarrow.parquet

        column = pyarrow.array(["a"]).take(pyarrow.array([0] * 20_000_000))
        pyarrow.parquet.write_table(pyarrow.table({"review": column}), path)
        return True
    size = int.from_bytes(data[-8:-4], "little")
    for _ in range(stream.choice((1, 1, 3))):
        data[len(data) - 8 - stream.randrange(size)] = stream.choice((0, 255, stream.randrange(256)))
    path.write_bytes(data)
    return True


def make_acl(folder: Path) -> None:
    """Writes a folder as Stanford ships it, and a file outside it."""
    for part in ("train", "test"):
        for kind, label in (("neg", 0), ("pos", 1)):
            (folder / "data" / "aclImdb" / part / kind).mkdir(parents=True)
            for key, _, text in (row for row in ROWS if row[1] == label):
                (folder / "data" / "aclImdb" / part / kind / f"{key}.txt").write_text(text, encoding="utf-8")
    (folder / "secret").mkdir()
    (folder / "secret" / "1_1.txt").write_text("a secret of another folder")


ACL_FILE = "data/aclImdb/train/pos/" + next(f"{key}.txt" for key, label, _ in ROWS if label == 1)


def damage_acl(folder: Path, stream: random.Random) -> bool:
    """Replaces a review or a folder by a link, a pipe, a folder, a file with a hostile name or a large file."""
    acl, kind = folder / "data" / "aclImdb", stream.randrange(8)
    path = folder / ACL_FILE
    if kind == 0:
        path.unlink()
        path.symlink_to(folder / "secret" / "1_1.txt")
    elif kind == 1:
        path.unlink()
        os.mkfifo(path)
    elif kind == 2:
        (acl / "train" / "unsup").symlink_to(folder / "secret")
    elif kind == 3:
        path.rename(path.with_name(stream.choice(("\x1b[2J_9.txt", os.fsdecode(b"\xff_9.txt"), "\n.txt"))))
    elif kind == 4:
        path.unlink()
        path.mkdir()
    elif kind == 5:
        path.write_text(stream.choice(("a" * 11_000_000, "<b>" * 30_000, "&#" + "9" * 5000 + ";", "")))
    elif kind == 6:
        path.unlink()
        path.symlink_to(path)
    else:
        (acl / "test").rename(acl / "old")
        (acl / "test").symlink_to(folder / "secret")
    return True


def use_acl(folder: Path) -> None:
    """Reads the folder, writes the cache, and reads the cache."""
    for _ in range(2):
        load_splits(Source(data=str(folder / "data")), folder / "cache")


FORMATS: dict[str, Format] = {
    "tokenizer.json": Format(
        make_json_tokenizers,
        tuple(f"{name}/tokenizer.json" for name in ("wordpiece", "bpe", "unigram")),
        use_each("wordpiece", "bpe", "unigram"),
        damage_pipeline,
    ),
    "vocab.txt": Format(make_vocab, ("vocab.txt",), use_tokenizer),
    "vocab.json": Format(cases.merges, ("vocab.json", "merges.txt"), use_tokenizer, damage_vocab_json),
    "spm.model": Format(
        make_spm, ("byte/spm.model", "xlm/sentencepiece.bpe.model"), use_each("byte", "xlm"), damage_spm
    ),
    "tokenizer settings": Format(
        make_settings,
        (
            "map/tokenizer_config.json", "map/special_tokens_map.json", "map/added_tokens.json", "map/config.json",
            "decoder/tokenizer_config.json",
        ),
        use_each("map", "decoder"),
    ),
    "csv": Format(
        make_tables,
        ("reviews.csv", "reviews.tsv", "labeledTrainData.tsv"),
        use_files("reviews.csv", "reviews.tsv", "labeledTrainData.tsv"),
        damage_table,
    ),
    "json lines": Format(
        make_objects, ("reviews.jsonl", "reviews.json"), use_files("reviews.jsonl", "reviews.json"), damage_objects
    ),
    "archives": Format(
        make_archives, ("reviews.csv.gz", "reviews.csv.zip", "reviews.tar.gz"), use_archives, damage_archive
    ),
    "acl folder": Format(make_acl, (ACL_FILE,), use_acl, damage_acl),
}  # fmt: skip
if importlib.util.find_spec("pyarrow") is not None:
    FORMATS["parquet"] = Format(make_parquet, ("reviews.parquet",), use_files("reviews.parquet"), damage_parquet)
