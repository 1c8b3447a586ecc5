"""Word vectors: GloVe trained here, GloVe and word2vec text files of any size read, and a compact file of our own.

GloVe (Pennington, Socher & Manning 2014, D14-1162) fits the logarithm of how often two words meet:

    X_ij = Σ 1/d  over all places where i and j stand d <= window words apart                   §3, §4.2
    J = Σ_ij f(X_ij) (w_iᵀ w̃_j + b_i + b̃_j - log X_ij)²                                        Eq. (8)
    f(x) = min(1, (x / x_max)^α)                                                                Eq. (9)
    G ← G + g²,   θ ← θ - η g / √G     AdaGrad (Duchi et al. 2011), for each number θ with gradient g; G starts at 1

The vector of word i is w_i + w̃_i (§4.2).

Differs from the paper: x_max is 1, not 100, which suits corpora of 10⁹ words and more; in 17 million, most words that
belong together meet a few times. Differs from the published program: it steps after each pair, in random order; here a
step takes all pairs of a block of rows and a block of columns, whose gradients are three dense products, blocks in
random order.
"""

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

from data.tokenization import SPECIAL_WORDS, Tokenizer, load_tokenizer
from nn.checkpoint import load_pretrained
from nn.files import open_tensors, write_tensors

VECTORS = "vectors"
CHUNK = 1_000_000  # words whose pairs are counted together
BLOCK = 256  # words in a block of GloVe's training: with larger ones a word's vector moves too seldom


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


# --------------------------------------------------------------------------------------------------------- GloVe


class Pairs(NamedTuple):
    """X_ij for every pair that occurs, both (i, j) and (j, i), in blocks of BLOCK × BLOCK words."""

    rows: np.ndarray  # uint16 [N]: i within its block
    columns: np.ndarray  # uint16 [N]: j within its block
    count: np.ndarray  # fp32 [N]: X_ij
    blocks: list[tuple[int, int, slice]]  # (block of i, block of j, its pairs)


def count_chunk(ids: np.ndarray, vocab_size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ 1/d of each pair in one text. ids: int64 [M], negative where no word stands, reviews parted by `window` of
    those -> (keys lo·V + hi, sorted; sums)."""
    keys = []
    for d in range(1, window + 1):
        left, right = ids[:-d], ids[d:]
        both = (left >= 0) & (right >= 0)
        left, right = left[both], right[both]
        keys.append((np.minimum(left, right) * vocab_size + np.maximum(left, right)) * (window + 1) + d)
    keys = np.concatenate(keys)
    keys.sort()
    keys, distances = np.divmod(keys, window + 1)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat((1.0 / distances).astype(np.float32), starts)


def merge_counts(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The sum of two sorted lists of (keys, sums)."""
    keys, sums = (np.concatenate(pair) for pair in zip(a, b, strict=True))
    order = keys.argsort(kind="stable")
    keys, sums = keys[order], sums[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(sums, starts)


def count_pairs(reviews: Iterable[list[int]], vocab_size: int, window: int = 10, first_word: int = 2) -> Pairs:
    """X_ij over all reviews (lists of ids; ids below `first_word` are no words, but take a place)."""
    levels: list[tuple[np.ndarray, np.ndarray]] = []  # like binary carries: each list is about half of the one before
    gap = [-1] * window
    waiting: list[int] = []

    def add(ids: list[int]) -> None:
        array = np.asarray(ids, dtype=np.int64)
        levels.append(count_chunk(np.where(array < first_word, -1, array), vocab_size, window))
        while len(levels) > 1 and len(levels[-1][0]) * 2 > len(levels[-2][0]):
            levels.append(merge_counts(levels.pop(), levels.pop()))

    for ids in reviews:
        waiting += ids
        waiting += gap
        if len(waiting) >= CHUNK:
            add(waiting)
            waiting = []
    add(waiting + gap)
    while len(levels) > 1:
        levels.append(merge_counts(levels.pop(), levels.pop()))
    return into_blocks(*levels[0], vocab_size)


def into_blocks(keys: np.ndarray, sums: np.ndarray, vocab_size: int) -> Pairs:
    low, high = (part.astype(np.int32) for part in np.divmod(keys, vocab_size))
    same = low == high
    i = np.concatenate([low, high[~same]])
    j = np.concatenate([high, low[~same]])
    x = np.concatenate([np.where(same, 2 * sums, sums), sums[~same]])  # i beside i: once from each side
    across = -(-vocab_size // BLOCK)
    block = i // BLOCK * across + j // BLOCK
    order = block.argsort(kind="stable")
    ends = np.bincount(block, minlength=across * across).cumsum()
    blocks = [(k // across, k % across, slice(int(end - size), int(end))) for k, (end, size) in
              enumerate(zip(ends, np.diff(ends, prepend=0), strict=True)) if size]  # fmt: skip
    return Pairs((i % BLOCK).astype(np.uint16)[order], (j % BLOCK).astype(np.uint16)[order], x[order], blocks)


def weight(x: Tensor, x_max: float, alpha: float) -> Tensor:
    """f of Eq. (9)."""
    return (x / x_max).pow(alpha).clamp(max=1)


class Glove:
    """w, w̃ as vectors[0], vectors[1] [V, D] and b, b̃ as biases[0], biases[1] [V], each with its sum of squares G."""

    def __init__(self, vocab_size: int, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vectors = [(torch.rand(vocab_size, width, generator=generator) - 0.5) / width for _ in range(2)]
        self.biases = [torch.zeros(vocab_size) for _ in range(2)]
        self.squares = [torch.ones_like(t) for t in (*self.vectors, *self.biases)]

    def step(self, rows: slice, columns: slice, i: Tensor, j: Tensor, x: Tensor, rate: float, f: Tensor) -> float:
        """AdaGrad on the pairs (rows.start + i, columns.start + j) with counts x and weights f. Returns their part of
        J before the step."""
        (w, c), (b, d) = self.vectors, self.biases
        w_r, c_c = w[rows], c[columns]
        place = i * len(c_c) + j
        error = (w_r @ c_c.T).flatten()[place] + b[rows][i] + d[columns][j] - x.log()  # [n]
        slope = torch.zeros(len(w_r) * len(c_c))
        slope[place] = f * error  # half of ∂J/∂(wᵀw̃ + b + b̃): the published program leaves out the 2 as well
        slope = slope.view(len(w_r), len(c_c))
        gradients = (slope @ c_c, slope.T @ w_r, slope.sum(1), slope.sum(0))
        parts = (w_r, c_c, b[rows], d[columns])
        for theta, g, total, part in zip(parts, gradients, self.squares, (rows, columns) * 2, strict=True):
            total[part].addcmul_(g, g)
            theta.addcdiv_(g, total[part].sqrt(), value=-rate)
        return float((f * error * error).sum())


def train_glove(
    pairs: Pairs,
    vocab_size: int,
    width: int = 300,
    epochs: int = 25,
    rate: float = 0.07,
    x_max: float = 1.0,
    alpha: float = 0.75,
    seed: int = 42,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Tensor:
    """w + w̃ of every word, fp32 [V, D]. report(epoch, J over the number of pairs) is called after each epoch."""
    glove, generator = Glove(vocab_size, width, seed), torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        loss = 0.0
        for number in torch.randperm(len(pairs.blocks), generator=generator).tolist():
            row, column, part = pairs.blocks[number]
            rows, columns = (slice(k * BLOCK, min((k + 1) * BLOCK, vocab_size)) for k in (row, column))
            i, j = (torch.from_numpy(array[part].astype(np.int64)) for array in (pairs.rows, pairs.columns))
            x = torch.from_numpy(pairs.count[part])
            loss += glove.step(rows, columns, i, j, x, rate, weight(x, x_max, alpha))
        report(epoch + 1, loss / len(pairs.count))
    return glove.vectors[0] + glove.vectors[1]
