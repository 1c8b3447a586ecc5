"""Reads files of word vectors, those of GloVe and word2vec and this project's own safetensors file. Trains GloVe on a
corpus and caches the result (data/glove.py). nn/vectors.py copies vectors into a model.

    text      word v₁ … v_D, one word a line; word2vec's has a first line `count D`
    binary    first line `count D`, then for each word: the word, a space, D little-endian fp32 numbers
"""

import gzip
import hashlib
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.files import open_tensors, write_tensors
from data.glove import count_pairs, train_glove
from data.tokenization import Tokenizer

VECTORS = "vectors"  # name of the tensor in the safetensors file
FIRST_LINES = 100  # the lines that determine the width of the vectors
BLOCK = 1 << 20  # bytes of a binary file that are read at a time
GZIP, ZIP, BOM = b"\x1f\x8b", b"PK\x03\x04", b"\xef\xbb\xbf"  # first bytes of a file
# first bytes of formats that are not read, and the way out
OTHER_FORMATS = {
    b"\xba\x16\x4f\x2f": "is a fastText model; use its text file (.vec)",
    b"\x80": "is a pickle; gensim writes a file that is read with save_word2vec_format(FILE)",
    b"\x93NUMPY": "is a numpy array without words; write a text file with a line `word v1 v2 …` for each",
}


class WordVectors(NamedTuple):
    """Words and their vectors: vectors[k] is the vector of words[k]."""

    words: list[str]
    vectors: Tensor  # fp32 [V, D]


# --------------------------------------------------------------------------------------------------------- files


@contextmanager
def open_stream(path: Path) -> Iterator[Any]:
    """Opens a file for reading bytes, or what is inside a gzip file or a zip archive with one file.

    Raises ValueError for an archive with more than one file.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start == ZIP:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise ValueError(f"{path} contains {len(names)} files; unpack it and name one of them")
            with archive.open(names[0]) as file:
                yield file
    else:
        with gzip.open(path) if start.startswith(GZIP) else path.open("rb") as file:
            yield file


def read_header(line: bytes) -> tuple[int, int] | None:
    """Returns (count, D) of word2vec's first line, None for any other line."""
    parts = line.split()
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdigit() for part in parts) else None


def find_format(path: Path) -> str:
    """Returns `binary` for word2vec's binary format, otherwise `text`. Raises ValueError for formats that are not read.

    In a binary file, the numbers after the first word contain bytes that no text has.
    """
    with open_stream(path) as file:
        first = file.readline(BLOCK)
        for magic, reason in OTHER_FORMATS.items():
            if first.startswith(magic):
                raise ValueError(f"{path} {reason}")
        header = read_header(first)
        if header is None:
            return "text"
        second = file.read(4 * header[1] + BLOCK)
    line = second.split(b"\n")[0].rstrip(b"\r ")
    numbers = second.partition(b" ")[2][: 4 * header[1]]
    control = any(byte < 32 and byte not in b"\t\n\r" for byte in numbers)
    return "binary" if line.count(b" ") < header[1] and (control or not is_utf8(numbers)) else "text"


def is_utf8(text: bytes) -> bool:
    """Returns whether bytes are UTF-8, except for a character that is cut at the end."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.start > len(text) - 4 and error.reason == "unexpected end of data"
    return True


def find_width(lines: list[bytes], path: Path) -> tuple[int, bool]:
    """Determines (D, whether the first line is word2vec's header `count D`) from the first lines of a file."""
    if (header := read_header(lines[0])) is not None:
        return header[1], True
    width = min(line.rstrip().count(b" ") for line in lines if line.strip())  # a word with spaces in it has more
    if width < 2:
        raise ValueError(
            f"{path} is not a file of word vectors: line 1 is {lines[0][:60]!r}, not a word and its numbers, with "
            "spaces between them"
        )
    return width, False


def parse_vector(numbers: list[bytes], line: str, word: str) -> np.ndarray:
    """Converts the numbers of a line to fp32 [D]. line: the file and the line, for the ValueError."""
    try:
        with np.errstate(over="ignore"):  # infinity is refused below
            vector = np.array([float(number) for number in numbers], dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{line} does not end in {len(numbers)} numbers") from error
    if not np.isfinite(vector).all():
        wrong = numbers[int(np.isfinite(vector).argmin())].decode("utf-8", "replace")
        raise ValueError(f"{line}, word {word!r}: {wrong} is not a finite number")
    return vector


def parse_lines(lines: Iterator[bytes], path: Path, words: Iterable[str]) -> WordVectors:
    """Reads the vectors of `words` from the lines of a text file. The first line of a word counts."""
    first = list(islice(lines, FIRST_LINES))
    if not first:
        raise ValueError(f"{path} is empty")
    first[0] = first[0].removeprefix(BOM)
    width, header = find_width(first, path)
    word_of, found, count = {word.encode(): word for word in words}, {}, 0
    for number, line in enumerate(chain(first[header:], lines), 1 + header):
        if not line.strip():
            continue
        count += 1
        name, *numbers = line.rstrip(b"\r\n ").rsplit(b" ", width)
        if len(numbers) < width:
            raise ValueError(f"{path}: line {number} has fewer than {width} numbers; the file may be cut short")
        word = word_of.get(name)
        if word is not None and word not in found:
            found[word] = parse_vector(numbers, f"{path}: line {number}", word)
    if header and count != (announced := int(first[0].split()[0])):
        raise ValueError(f"{path} has {count} vectors, its first line says {announced}; it may be cut short")
    vectors = np.stack([*found.values()]) if found else np.zeros((0, width), np.float32)
    return WordVectors(list(found), torch.from_numpy(vectors))


def binary_vectors(file: Any, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields the words of a word2vec binary file with the bytes of their vectors. Raises ValueError if it is cut."""
    count, width = read_header(file.readline()) or (0, 0)
    size, data, at = 4 * width, b"", 0
    for number in range(count):
        end = data.find(b" ", at)
        while end < 0 or len(data) < end + 1 + size:
            more = file.read(BLOCK)
            if not more:
                raise ValueError(f"{path} is cut short: it has {number} of the {count} vectors that line 1 announces")
            data, at = data[at:] + more, 0
            end = data.find(b" ")
        yield data[at:end].lstrip(b"\n"), data[end + 1 : end + 1 + size]
        at = end + 1 + size
    if (data[at:] + file.read(2)).strip():
        raise ValueError(f"{path} has more than the {count} vectors that line 1 announces")


def parse_binary(file: Any, path: Path, words: Iterable[str]) -> WordVectors:
    """Reads the vectors of `words` from a word2vec binary file. The first vector of a word counts."""
    word_of, found = {word.encode(): word for word in words}, {}
    width = 0
    for number, (name, data) in enumerate(binary_vectors(file, path), 1):
        word, width = word_of.get(name), len(data) // 4
        if word is not None and word not in found:
            found[word] = np.frombuffer(data, "<f4").astype(np.float32)
            if not np.isfinite(found[word]).all():
                raise ValueError(f"{path}: vector {number}, word {word!r}, holds NaN or infinity")
    vectors = np.stack([*found.values()]) if found else np.zeros((0, width), np.float32)
    return WordVectors(list(found), torch.from_numpy(vectors))


def read_published_vectors(path: str | Path, words: Iterable[str]) -> WordVectors:
    """Reads the vectors of `words` from a GloVe or word2vec file, in the order of the file; also from .gz and .zip.

    A word of a text file may contain spaces. Reads in parts and keeps only the vectors of `words` in memory.
    Raises FileNotFoundError, or ValueError that names the line or vector that is cut short, is no number or is not
    finite, and for formats that are not read.
    """
    path = Path(path)
    try:
        binary = find_format(path) == "binary"
        with open_stream(path) as file:
            return parse_binary(file, path, words) if binary else parse_lines(iter(file), path, words)
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again") from error


def check_finite(vectors: WordVectors, path: Path) -> WordVectors:
    """Returns the vectors. Raises ValueError that names the file and the first word with NaN or infinity."""
    finite = vectors.vectors.isfinite().all(1)
    if not finite.all():
        raise ValueError(f"{path}: the vector of {vectors.words[int(finite.int().argmin())]!r} holds NaN or infinity")
    return vectors


def save_vectors(path: str | Path, vectors: WordVectors) -> None:
    """Writes one safetensors file: the matrix, fp32 [V, D], and the words as JSON in its metadata."""
    metadata = {"format": "pt", "words": json.dumps(vectors.words)}
    write_tensors(Path(path), {VECTORS: vectors.vectors}, metadata=metadata)


def load_vectors(path: str | Path) -> WordVectors:
    """Reads a file of `save_vectors`. Raises FileNotFoundError, or ValueError if it is damaged or another file."""
    with open_tensors(Path(path)) as file:
        words = json.loads((file.metadata() or {}).get("words", "null"))
        if words is None or VECTORS not in file.keys():  # noqa: SIM118
            raise ValueError(f"{path} contains no word vectors with their words")
        vectors = file.get_tensor(VECTORS)
    if len(words) != len(vectors):
        raise ValueError(f"{path} contains {len(vectors)} vectors for {len(words)} words")
    return WordVectors(words, vectors)


# ------------------------------------------------------------------------------------------------------ training


def trained_vectors(
    tokenizer: Tokenizer, texts: list[str], width: int, cache: Path, check: Callable[[], None] = lambda: None
) -> WordVectors:
    """Trains GloVe vectors of the tokenizer's tokens on `texts`, or loads them if `cache` contains them.

    width: numbers of a vector. cache: a folder; the name of the file is a hash of tokenizer, width and texts. check is
    called after each epoch and may raise an exception to stop.
    """
    digest = hashlib.sha256(f"glove 3 {tokenizer.fingerprint} {width} ".encode())
    digest.update("\0".join(texts).encode("utf-8", "surrogatepass"))
    path = cache / f"{digest.hexdigest()[:24]}.glove.safetensors"
    if not path.exists():
        begin = time.perf_counter()
        print(f"GloVe: counting co-occurrences in {len(texts):,} reviews")
        pairs = count_pairs(tokenizer.subword_ids(texts), tokenizer.vocab_size)
        print(f"GloVe: {len(pairs.counts):,} pairs after {time.perf_counter() - begin:.0f} s")

        def report(epoch: int, loss: float) -> None:
            print(f"GloVe: epoch {epoch}, loss {loss:.5f}, {time.perf_counter() - begin:.0f} s", flush=True)
            check()

        vectors = train_glove(pairs, tokenizer.vocab_size, width=width, report=report)
        save_vectors(path, WordVectors(tokenizer.tokens, vectors))
    return load_vectors(path)
