"""Writes word vectors into a model's embedding table. The vectors come from a file, from the embedding table of a
checkpoint, or from GloVe training on the run's reviews (data/glove.py).

    e_w = s · (v_w - μ) Σ^(-1/2)        cf. Mu & Viswanath 2018, arXiv 1702.01417

v_w: vector of word w;  μ, Σ: mean and covariance of the vectors over all occurrences of words in the corpus;  s: makes
the standard deviation of the numbers equal to the table's.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import Splits
from data.corpus import Corpus
from data.files import user_path
from data.old_pickle import read_pickle3
from data.pipelines import SPECIAL_WORDS
from data.tokenization import Tokenizer, load_tokenizer
from data.word_vectors import WordVectors, check_finite, load_vectors, read_published_vectors, trained_vectors
from nn import Model
from nn.checkpoint import load_pretrained
from nn.encoder import SharedEmbedding

SMALLEST_VARIANCE = 1e-9  # lower bound in `whitened`, relative to the largest variance


def checkpoint_vectors(source: str | Path, words: Iterable[str]) -> WordVectors:
    """Computes the vectors of words from the embedding table of a checkpoint: the mean of a word's rows of subwords.

    source: a folder, or `builtin`. Words that the tokenizer does not know are left out. In a network over words, a word
    has one row.
    """
    embedding, tokenizer = load_pretrained(source).embeddings.word, load_tokenizer(source)
    table = embedding(torch.arange(embedding.num_embeddings)).detach()  # not its weight, which may be in 8 bits
    words = [word for word in words if word not in SPECIAL_WORDS.values()]
    pairs = zip(words, tokenizer.subword_ids(words), strict=True)
    found = {word: table[ids].mean(0) for word, ids in pairs if ids and tokenizer.unk_id not in ids}
    return WordVectors(list(found), torch.stack([*found.values()]) if found else table[:0])


def read_vectors(source: str | Path, words: Iterable[str]) -> WordVectors:
    """Reads word vectors: this project's .safetensors, an older project's .pickle3, a file of GloVe or word2vec, or a
    checkpoint.

    Of the last two, reads only the vectors of `words`. Raises FileNotFoundError, or ValueError if the file is damaged
    or a number is not finite.
    """
    path = user_path(source)
    if str(source) == "builtin" or path.is_dir():
        return checkpoint_vectors(source, words)
    if not path.is_file():
        raise FileNotFoundError(
            f"--word-vectors {path} is neither a file nor a folder; the other values are none, train and builtin"
        )
    if path.suffix == ".safetensors":
        return check_finite(load_vectors(path), path)
    if path.suffix == ".pickle3":
        return check_finite(WordVectors(*read_pickle3(path)), path)
    return read_published_vectors(path, words)


def whitened(vectors: Tensor, counts: Tensor) -> Tensor:
    """Computes (v - μ) Σ^(-1/2): fp32 [V, D]. vectors: [V, D];  counts: occurrences of each word, [V].

    Most of the variance of GloVe vectors is in a few directions, which encode the frequency of a word. The directions
    that separate positive from negative words have a thousandth of that variance, so gradient descent learns them
    late. After whitening, all directions have the same variance. Mu & Viswanath 2018 only remove the mean and the
    largest directions.
    """
    share = (counts.double() / counts.sum())[:, None]  # [V, 1]
    centred = vectors.double() - (share * vectors.double()).sum(0)
    variances, axes = torch.linalg.eigh(centred.t() @ (share * centred))  # [D], [D, D]
    inverse = variances.clamp(min=variances[-1] * SMALLEST_VARIANCE).rsqrt()
    return (centred @ axes * inverse @ axes.t()).float()


def put_vectors(
    table: Tensor,
    vocabulary: dict[str, int],
    vectors: WordVectors,
    counts: np.ndarray | None = None,
    field: str = "embedding_size",
) -> int:
    """Copies the vectors of the vocabulary's words into `table`, in place. Returns the number of copied vectors.

    All vectors are scaled by one factor, so that their numbers have the standard deviation of the table's.
    table: fp32 [V, D];  vocabulary: word -> row;  counts: occurrences of the word of each row, [V], or None. With
    counts, the vectors are whitened if more than D words have one.  field: the config field that determines D.
    Raises ValueError if D differs, no word is in both, or all numbers are equal.
    """
    if vectors.vectors.size(1) != table.size(1):
        raise ValueError(
            f"the word vectors have {vectors.vectors.size(1)} dimensions, the model's embeddings {table.size(1)}; "
            f"use --shape {field}={vectors.vectors.size(1)}"
        )
    pairs = [(vocabulary[word], k) for k, word in enumerate(vectors.words) if word in vocabulary]
    if not pairs:
        raise ValueError("the word vectors contain none of the vocabulary's words")
    ours, theirs = torch.tensor(pairs).unbind(1)
    chosen = vectors.vectors[theirs].float()
    if counts is not None and len(chosen) > chosen.size(1):
        chosen = whitened(chosen, torch.from_numpy(counts)[ours])
    factor = table.std() / chosen.std()
    if not factor.isfinite() or factor <= 0:
        raise ValueError("the word vectors of the vocabulary's words have no spread: all their numbers are equal")
    table[ours] = chosen * factor
    return len(pairs)


def embedding_table(model: Model) -> Tensor:
    """Returns the weight of the model's word embeddings, [V, D]: of a SharedEmbedding, the shared table.

    Raises ValueError for a model over one-hot words.
    """
    if getattr(model.config, "one_hot", False):
        raise ValueError(
            "one-hot words have no vectors; use --shape one_hot=false, or leave out --word-vectors (--no-train-vectors)"
        )
    word = model.embeddings.word
    return word.table if isinstance(word, SharedEmbedding) else word.weight


def start_from_vectors(
    model: Model,
    *,
    source: str,
    whiten: bool,
    splits: Splits,
    corpus: Corpus,
    tokenizer: Tokenizer,
    cache: Path,
    check: Callable[[], None],
) -> None:
    """Initializes the model's embedding table with word vectors (`--word-vectors`).

    source: `train` trains GloVe on all reviews except the test set and caches it in the folder `cache`; for other
    values see `read_vectors`. whiten: whiten the vectors by the occurrences of words in `corpus`.
    check: called after each epoch of GloVe; it may raise an exception to stop.
    Raises ValueError if the model has no table or the vectors do not fit it.
    """
    table, tokens = embedding_table(model), tokenizer.tokens
    if source == "train":
        texts = [text for frame in (splits.train, splits.validation, splits.unlabelled) for text in frame["review"]]
        texts += [] if splits.shards is None else splits.shards.sample()
        vectors = trained_vectors(tokenizer, texts, width=table.size(1), cache=cache, check=check)
    else:
        vectors = read_vectors(source, tokens)
    counts = np.bincount(corpus.ids, minlength=len(table)) if whiten else None
    vocabulary = {token: number for number, token in enumerate(tokens)}
    field = "embedding_size" if hasattr(model.config, "embedding_size") else "hidden_size"
    count = put_vectors(table.data, vocabulary, vectors=vectors, counts=counts, field=field)
    print(f"word vectors: {source}, for {count:,} of {tokenizer.vocab_size:,} words")
