"""Reads files of word vectors, those of GloVe and word2vec and this project's own safetensors file. Trains GloVe on a
corpus and caches the result (data/glove.py). nn/vectors.py copies vectors into a model.

    text      word v₁ … v_D, one word a line; word2vec's has a first line `count D`
    binary    first line `count D`, then for each word: the word, a space, D little-endian fp32 numbers
"""

import gzip
import hashlib
import json
import re
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.checked import has_type, parse_json, reading, show
from data.checksums import is_intact, seal_file
from data.files import open_tensors, write_tensors
from data.glove import count_pairs, train_glove
from data.tokenization import Tokenizer
from data.unpacking import GZIP, ZIP

VECTORS = "vectors"  # name of the tensor in the safetensors file
FIRST_LINES = 100  # the lines that determine the width of the vectors
BLOCK = 1 << 20  # bytes of a binary file that are read at a time
LONGEST_LINE = 1 << 22  # bytes of a line
WIDEST = 100_000  # numbers of a vector
LONGEST_WORD = 100_000  # bytes
EXPANSION = 100  # largest ratio of unpacked to packed size; text has about 3
NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
BOM = b"\xef\xbb\xbf"  # first bytes of a text in UTF-8, in some files
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


class Stream:
    """Reads bytes of a file. Raises ValueError for a compressed file that expands without end."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path
        self.left = EXPANSION * path.stat().st_size + BLOCK

    def counted(self, data: bytes) -> bytes:
        """Returns data. Raises ValueError if more than `left` bytes were read."""
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(
                f"{self.path} expands to more than {EXPANSION} times its size; unpack it, or fetch it again"
            )
        return data

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes."""
        return self.counted(self.file.read(size))

    def readline(self) -> bytes:
        """Reads a line. Raises ValueError for one that no file of word vectors has."""
        line = self.counted(self.file.readline(LONGEST_LINE))
        if len(line) == LONGEST_LINE:
            raise ValueError(f"{self.path} has a line of more than {LONGEST_LINE:,} bytes")
        return line

    def __iter__(self) -> Iterator[bytes]:
        """Reads all lines."""
        return iter(self.readline, b"")


@contextmanager
def open_stream(path: Path) -> Iterator[Stream]:
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
                yield Stream(file, path)
    else:
        with gzip.open(path) if start.startswith(GZIP) else path.open("rb") as file:
            yield Stream(file, path)


def read_header(line: bytes) -> tuple[int, int] | None:
    """Returns (count, D) of word2vec's first line, None for any other line. Raises ValueError for an unusual D."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        return None
    count, width = int(parts[0][:30]), int(parts[1][:30])
    if not 1 <= width <= WIDEST:
        raise ValueError(f"its first line announces vectors of {width:,} numbers; at most {WIDEST:,} are read")
    return count, width


def find_format(path: Path) -> str:
    """Returns `binary` for word2vec's binary format, otherwise `text`. Raises ValueError for formats that are not read.

    In a binary file, the numbers after the first word contain bytes that no text has.
    """
    with open_stream(path) as file:
        first, _, second = file.read(2 * BLOCK).partition(b"\n")
    for magic, reason in OTHER_FORMATS.items():
        if first.startswith(magic):
            raise ValueError(f"{path} {reason}")
    header = read_header(first)
    if header is None or has_numbers(second.split(b"\n")[0], header[1]):
        return "text"
    numbers = second.partition(b" ")[2][: 4 * header[1]]
    control = any(byte < 32 and byte not in b"\t\n\r" for byte in numbers)
    return "binary" if control or not is_utf8(numbers) else "text"


def has_numbers(line: bytes, width: int) -> bool:
    """Returns whether a line has a word and ends in `width` numbers."""
    parts = line.rstrip(b"\r ").split(b" ")
    return len(parts) > width and all(NUMBER.fullmatch(part) for part in parts[-width:])


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
    # the most frequent one: a word with spaces in it has more, a damaged line fewer
    widths = Counter(line.rstrip().count(b" ") for line in lines if line.strip())
    width = min(widths, key=lambda width: (-widths[width], width), default=0)
    if not 2 <= width <= WIDEST:
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
        raise ValueError(f"{line}, word {word!r}: {show(wrong, 40)} is not a finite number")
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
    if header and count != (announced := (read_header(first[0]) or (0, 0))[0]):
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
            if len(data) - at > LONGEST_WORD + size + BLOCK:
                raise ValueError(f"{path}: vector {number + 1} has a word of more than {LONGEST_WORD:,} bytes")
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
    with reading(path, "a file of word vectors"):
        try:
            binary = find_format(path) == "binary"
            with open_stream(path) as file:
                return parse_binary(file, path, words) if binary else parse_lines(iter(file), path, words)
        except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is cut short or damaged ({show(error)}); fetch it again") from error


def check_finite(vectors: WordVectors, path: Path) -> WordVectors:
    """Returns the vectors. Raises ValueError that names the file and the first word with NaN or infinity."""
    finite = vectors.vectors.isfinite().all(1)
    if not finite.all():
        word = show(repr(vectors.words[int(finite.int().argmin())]))
        raise ValueError(f"{path}: the vector of {word} holds NaN or infinity")
    return vectors


def save_vectors(path: str | Path, vectors: WordVectors) -> None:
    """Writes one safetensors file: the matrix, fp32 [V, D], and the words as JSON in its metadata."""
    metadata = {"format": "pt", "words": json.dumps(vectors.words)}
    write_tensors(Path(path), {VECTORS: vectors.vectors}, metadata=metadata)


def load_vectors(path: str | Path, way_out: str = "fetch it again") -> WordVectors:
    """Reads a file of `save_vectors`. Raises FileNotFoundError, or ValueError if it is damaged or another file."""
    with reading(path, "a file of word vectors", way_out), open_tensors(Path(path)) as file:
        words = parse_json((file.metadata() or {}).get("words", "null"), path, way_out)
        if words is None or VECTORS not in file.keys():  # noqa: SIM118
            raise ValueError(f"{path} contains no word vectors with their words")
        vectors = file.get_tensor(VECTORS)
    if not has_type(words, list[str]) or vectors.dim() != 2 or not 1 <= vectors.size(1) <= WIDEST:
        raise ValueError(f"{path} contains no matrix of word vectors with a list of words; {way_out}")
    if vectors.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{path} contains vectors of {vectors.dtype}, not of floating point numbers; {way_out}")
    if len(words) != len(vectors):
        raise ValueError(f"{path} contains {len(vectors)} vectors for {len(words)} words")
    return WordVectors(words, vectors.float())


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
    if not is_intact(path):
        begin = time.perf_counter()
        print(f"GloVe: counting co-occurrences in {len(texts):,} reviews")
        pairs = count_pairs(tokenizer.subword_ids(texts), tokenizer.vocab_size)
        print(f"GloVe: {len(pairs.counts):,} pairs after {time.perf_counter() - begin:.0f} s")
        if not len(pairs.counts):
            raise ValueError(
                "GloVe finds no two words of the vocabulary near each other; lower --min-count, or --word-vectors none"
            )

        def report(epoch: int, loss: float) -> None:
            print(f"GloVe: epoch {epoch}, loss {loss:.5f}, {time.perf_counter() - begin:.0f} s", flush=True)
            check()

        vectors = train_glove(pairs, tokenizer.vocab_size, width=width, report=report)
        save_vectors(path, WordVectors(tokenizer.tokens, vectors))
        seal_file(path)
    return load_vectors(path, way_out="delete it; it is made again")
