"""Files of word vectors: GloVe and word2vec text files of any size, and this project's own safetensors file. Trains
GloVe on a corpus and caches the result (data/glove.py). nn/vectors.py copies vectors into a model.
"""

import gzip
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.files import open_tensors, write_tensors
from data.glove import count_pairs, train_glove
from data.tokenization import Tokenizer

VECTORS = "vectors"  # name of the tensor in the safetensors file
FIRST_LINES = 100  # the lines that determine the width of the vectors


class WordVectors(NamedTuple):
    """Words and their vectors: vectors[k] is the vector of words[k]."""

    words: list[str]
    vectors: Tensor  # fp32 [V, D]


# --------------------------------------------------------------------------------------------------------- files


@contextmanager
def open_lines(path: Path) -> Iterator[Iterable[bytes]]:
    """Opens the lines of a text file, of a .gz, or of the only file inside a .zip.

    Raises ValueError for a .zip with more than one file.
    """
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise ValueError(f"{path} contains {len(names)} files; unpack it and name one of them")
            with archive.open(names[0]) as file:
                yield file
    else:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file


def find_width(lines: list[bytes], path: Path) -> tuple[int, bool]:
    """Determines (D, whether the first line is word2vec's header `count D`) from the first lines of a file."""
    header = lines[0].split()
    if len(header) == 2 and all(number.isdigit() for number in header):
        return int(header[1]), True
    width = min(line.rstrip().count(b" ") for line in lines)  # a word with spaces in it has more
    if width < 2:
        raise ValueError(f"{path} is not a file of word vectors: line 1 is {lines[0][:60]!r}")
    return width, False


def parse_vector(numbers: list[bytes], line: str) -> np.ndarray:
    """Converts the numbers of a line to fp32 [D]. line: the file and the line, for the ValueError."""
    try:
        return np.array(numbers, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{line} does not end in {len(numbers)} numbers") from error


def parse_lines(lines: Iterator[bytes], path: Path, words: Iterable[str]) -> WordVectors:
    """Reads the vectors of `words` from the lines of a text file. The first line of a word counts."""
    first = list(islice(lines, FIRST_LINES))
    if not first:
        raise ValueError(f"{path} is empty")
    width, header = find_width(first, path)
    wanted, found = {word.encode(): word for word in words}, {}
    for number, line in enumerate(chain(first[header:], lines), 1 + header):
        name, *numbers = line.rstrip(b"\r\n ").rsplit(b" ", width)
        if len(numbers) < width:
            raise ValueError(f"{path}: line {number} has fewer than {width} numbers; the file may be cut short")
        word = wanted.get(name)
        if word is not None and word not in found:
            found[word] = parse_vector(numbers, f"{path}: line {number}")
    vectors = np.stack([*found.values()]) if found else np.zeros((0, width), np.float32)
    return WordVectors(list(found), torch.from_numpy(vectors))


def read_text_vectors(path: str | Path, words: Iterable[str]) -> WordVectors:
    """Reads the vectors of `words` from a GloVe or word2vec text file, in the order of the file.

    Each line is `word v₁ … v_D`; the word may contain spaces. The first line may be word2vec's header `count D`. Reads
    line by line and keeps only the vectors of `words` in memory.
    Raises FileNotFoundError, or ValueError with the number of the line that is cut short or has no numbers.
    """
    path = Path(path)
    try:
        with open_lines(path) as lines:
            return parse_lines(iter(lines), path, words=words)
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again") from error


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
