"""Word vectors into a model's table: GloVe and word2vec text files of any size, a compact file of our own, a
checkpoint's table, and GloVe trained here (data/glove.py)."""

import gzip
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from data import Splits
from data.batches import Corpus
from data.glove import count_pairs, train_glove
from data.pipelines import SPECIAL_WORDS
from data.tokenization import Tokenizer, load_tokenizer
from nn.checkpoint import load_pretrained
from nn.encoder import SharedEmbedding
from nn.files import open_tensors, write_tensors

VECTORS = "vectors"


class WordVectors(NamedTuple):
    """vectors[k] belongs to words[k]."""

    words: list[str]
    vectors: Tensor  # fp32 [V, D]


# --------------------------------------------------------------------------------------------------------- files


@contextmanager
def open_lines(path: Path) -> Iterator[Iterable[bytes]]:
    """The lines of a text file, of a .gz, or of the only file inside a .zip, one at a time."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise ValueError(f"{path} holds {len(names)} files; unpack it and name the one you mean")
            with archive.open(names[0]) as file:
                yield file
    else:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file


def find_width(lines: list[bytes], path: Path) -> tuple[int, bool]:
    """(D, whether the first line is word2vec's header `count D`), from the first lines of a file."""
    header = lines[0].split()
    if len(header) == 2 and all(part.isdigit() for part in header):
        return int(header[1]), True
    width = min(line.rstrip().count(b" ") for line in lines)  # a token with spaces inside has more
    if width < 2:
        raise ValueError(f"{path} is no file of word vectors: line 1 is {lines[0][:60]!r}")
    return width, False


def read_text_vectors(path: str | Path, wanted: Iterable[str]) -> WordVectors:
    """The vectors of the words `wanted` from a GloVe or word2vec text file: `word v₁ … v_D` a line, the word itself may
    hold spaces, with or without word2vec's first line `count D`. Reads line by line: what is not wanted costs no
    memory.

    Raises FileNotFoundError, or ValueError naming the line that is cut short or holds no numbers.
    """
    path, wanted = Path(path), {word.encode(): word for word in wanted}
    found: dict[str, np.ndarray] = {}
    number = 0
    try:
        with open_lines(path) as lines:
            lines = iter(lines)
            first = [line for line, _ in zip(lines, range(100), strict=False)]
            if not first:
                raise ValueError(f"{path} is empty")
            width, header = find_width(first, path)
            for number, line in enumerate(chain(first[header:], lines), 1 + header):
                fields = line.rstrip(b"\r\n ").rsplit(b" ", width)
                if len(fields) <= width:
                    raise ValueError(f"{path}: line {number} has fewer than {width} numbers; is it cut?")
                word = wanted.get(fields[0])
                if word is not None and word not in found:
                    found[word] = np.array(fields[1:], dtype=np.float32)
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again") from error
    except ValueError as error:
        if "could not convert" in str(error):
            raise ValueError(f"{path}: line {number} holds no vector of {width} numbers") from error
        raise
    vectors = np.stack([*found.values()]) if found else np.zeros((0, width), np.float32)
    return WordVectors(list(found), torch.from_numpy(vectors))


def save_vectors(path: str | Path, vectors: WordVectors) -> None:
    """One safetensors file: the matrix, fp32 [V, D], and the words as JSON in its metadata."""
    write_tensors(Path(path), {VECTORS: vectors.vectors}, {"format": "pt", "words": json.dumps(vectors.words)})


def load_vectors(path: str | Path) -> WordVectors:
    """What `save_vectors` wrote. Raises FileNotFoundError, or ValueError where it is damaged or something else."""
    with open_tensors(Path(path)) as file:
        words = json.loads((file.metadata() or {}).get("words", "null"))
        if words is None or VECTORS not in file.keys():  # noqa: SIM118
            raise ValueError(f"{path} holds no word vectors with their words")
        vectors = file.get_tensor(VECTORS)
    if len(words) != len(vectors):
        raise ValueError(f"{path} holds {len(vectors)} vectors for {len(words)} words")
    return WordVectors(words, vectors)


def checkpoint_vectors(source: str | Path, wanted: Iterable[str]) -> WordVectors:
    """The embedding table of an encoder's checkpoint (a folder, or builtin), as vectors of words: of each word the mean
    of its pieces' rows. Words with unknown pieces are left out."""
    table, tokenizer = load_pretrained(source).embeddings.word.weight.detach(), load_tokenizer(source)
    words = [word for word in wanted if word not in SPECIAL_WORDS.values()]
    pairs = zip(words, tokenizer.pieces(words), strict=True)
    found = {word: table[ids].mean(0) for word, ids in pairs if ids and tokenizer.unk_id not in ids}
    return WordVectors(list(found), torch.stack([*found.values()]) if found else table[:0])


def read_vectors(path: str | Path, wanted: Iterable[str]) -> WordVectors:
    """Word vectors from whatever we read: our own .safetensors, the old project's .pickle3, text, a checkpoint."""
    if str(path) == "builtin" or Path(path).expanduser().is_dir():
        return checkpoint_vectors(path, wanted)
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--word-vectors {path} is neither a file nor a folder; none and train need none")
    if path.suffix == ".safetensors":
        return load_vectors(path)
    if path.suffix == ".pickle3":
        from data.old_pickle import read_pickle3

        return WordVectors(*read_pickle3(path))
    return read_text_vectors(path, wanted)


def trained_vectors(
    tokenizer: Tokenizer, texts: list[str], width: int, cache: Path, check: Callable[[], None] = lambda: None
) -> WordVectors:
    """GloVe of the tokenizer's words, trained on `texts`, once: kept in `cache` under the hash of both."""
    digest = hashlib.sha256(f"glove 3 {tokenizer.fingerprint} {width} ".encode())
    digest.update("\0".join(texts).encode("utf-8", "surrogatepass"))
    path = cache / f"{digest.hexdigest()[:24]}.glove.safetensors"
    if not path.exists():
        begin = time.perf_counter()
        print(f"GloVe: counting which words meet in {len(texts):,} reviews")
        pairs = count_pairs(tokenizer.pieces(texts), tokenizer.vocab_size)
        print(f"GloVe: {len(pairs.count):,} pairs after {time.perf_counter() - begin:.0f} s")

        def report(epoch: int, loss: float) -> None:
            print(f"GloVe: epoch {epoch}, loss {loss:.5f}, {time.perf_counter() - begin:.0f} s", flush=True)
            check()

        vectors = train_glove(pairs, tokenizer.vocab_size, width, report=report)
        save_vectors(path, WordVectors(tokenizer.words, vectors))
    return load_vectors(path)


def whitened(vectors: Tensor, counts: Tensor) -> Tensor:
    """(v - μ) Σ^(-1/2), μ and Σ the mean and covariance of the vectors of running words. vectors: [V, D]; counts: how
    often each word occurs, [V] -> fp32 [V, D].

    GloVe's vectors lie along few directions, which tell how frequent a word is; what tells good from bad has a
    thousandth of their variance, and gradient descent finds it late. Whitened, all directions count alike. (Mu &
    Viswanath 2018, arXiv 1702.01417, remove the mean and the largest directions alone.)
    """
    share = (counts.double() / counts.sum())[:, None]  # [V, 1]
    centred = vectors.double() - (share * vectors.double()).sum(0)
    variances, axes = torch.linalg.eigh(centred.t() @ (share * centred))  # [D], [D, D]
    inverse = variances.clamp(min=variances[-1] * 1e-9).rsqrt()
    return (centred @ axes * inverse @ axes.t()).float()


def put_vectors(
    table: Tensor, vocabulary: dict[str, int], vectors: WordVectors, counts: np.ndarray | None = None
) -> int:
    """Copies the vectors of the vocabulary's words into `table`, fp32 [V, D], in place, all scaled alike so that their
    numbers have the spread that the table has; returns how many. counts: how often each word of the vocabulary occurs,
    [V]; with it they are whitened, if they are more than a vector has numbers. Raises ValueError where the widths
    differ or no word is shared."""
    if vectors.vectors.size(1) != table.size(1):
        raise ValueError(
            f"the word vectors are {vectors.vectors.size(1)} wide, the model {table.size(1)}; "
            f"--shape embedding_size={vectors.vectors.size(1)} fits them"
        )
    pairs = [(vocabulary[word], k) for k, word in enumerate(vectors.words) if word in vocabulary]
    if not pairs:
        raise ValueError("the word vectors hold none of the vocabulary's words")
    ours, theirs = torch.tensor(pairs).unbind(1)
    chosen = vectors.vectors[theirs].float()
    if counts is not None and len(chosen) > chosen.size(1):
        chosen = whitened(chosen, torch.from_numpy(counts)[ours])
    table[ours] = chosen * (table.std() / chosen.std())
    return len(pairs)


def start_from_vectors(
    model: Module, options, splits: Splits, corpus: Corpus, tokenizer: Tokenizer, cache: Path, check: Callable[[], None]
) -> None:
    """--word-vectors into the model's table; corpus: what tells how often each word occurs. Raises ValueError where
    there is no table, or the vectors do not fit it."""
    if getattr(model.config, "one_hot", False):
        raise ValueError(
            "one-hot words have no vectors to start from; --shape one_hot=false has, or leave --word-vectors"
        )
    word = model.embeddings.word
    table = word.table if isinstance(word, SharedEmbedding) else word.weight
    if options.word_vectors == "train":
        texts = [text for frame in (splits.train, splits.validation, splits.unlabelled) for text in frame["review"]]
        vectors = trained_vectors(tokenizer, texts, table.size(1), cache, check)
    else:
        vectors = read_vectors(options.word_vectors, tokenizer.words)
    counts = np.bincount(corpus.ids, minlength=len(table)) if options.whiten_vectors else None
    count = put_vectors(table.data, {word: number for number, word in enumerate(tokenizer.words)}, vectors, counts)
    print(f"word vectors: {options.word_vectors}, for {count:,} of {tokenizer.vocab_size:,} words")
