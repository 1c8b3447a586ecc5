"""Word vectors: their files, GloVe training, whitening, and runs that start from them."""

import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny, tiny_weights

import train
from data import glove, word_vectors
from data.checked import read_json
from data.glove import Glove, count_pairs, train_glove, weight
from data.old_pickle import ADMITTED, read_pickle3
from data.tokenization import load_tokenizer, train_tokenizer
from data.word_vectors import WordVectors, load_vectors, read_published_vectors, save_vectors, trained_vectors
from nn import vectors as nn_vectors
from nn.checkpoint import load_pretrained
from nn.vectors import put_vectors, read_vectors, start_from_vectors, whitened

GLOVE = b"the 0.1 0.2 0.3\n. . . 1 2 3\ncaf\xc3\xa9 -1e-3 5 6\n\xff\xfe 7 8 9\nthe 9 9 9\n"


# --------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".txt", ".gz", ".zip"])
def test_reads_glove_text(tmp_path: Path, suffix: str):
    path = tmp_path / f"glove{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("glove.txt", GLOVE)
    else:
        path.write_bytes(gzip.compress(GLOVE) if suffix == ".gz" else GLOVE)
    found = read_published_vectors(path, ["the", "café", ". . .", "absent"])
    assert found.words == ["the", ". . .", "café"]  # in the order of the file; the first line of a word counts
    torch.testing.assert_close(found.vectors, torch.tensor([[0.1, 0.2, 0.3], [1, 2, 3], [-1e-3, 5, 6]]))


def test_reads_word2vec_text_with_gensims_header(tmp_path: Path):
    (tmp_path / "w2v.txt").write_bytes(b"2 3\ngood 1.0 2.0 3.0 \nbad -1.0 0.5 1e-05 \n")
    found = read_published_vectors(tmp_path / "w2v.txt", ["bad", "2"])
    assert found.words == ["bad"]
    assert found.vectors.tolist() == [[-1.0, 0.5, pytest.approx(1e-5)]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "empty"),
        (b"one\ntwo\n", "not a file of word vectors"),
        (b"4 3\na 1 2 3\nb 1 2\n", "line 3 has fewer than 3 numbers"),
        (b"a 1 2 3\nb 1 2\nc 1 2 3\n", "line 2 has fewer than 3 numbers"),
        (b"a 1 2 3\nb 1 x 3\n", "line 2 does not end in 3 numbers"),
        (b"a 1 2 3\nb 1 nan 3\n", r"bad\.txt: line 2, word 'b': nan is not a finite number"),
        (b"a 1 2 3\nb 1 2 -inf\n", r"bad\.txt: line 2, word 'b': -inf is not a finite number"),
        (b"a 1 2 3\nb 1 1e39 3\n", r"bad\.txt: line 2, word 'b': 1e39 is not a finite number"),
        (b"3 3\na 1 2 3\nb 1 2 3\n", "has 2 vectors, its first line says 3; it may be cut short"),
        (b"1 3\na 1 2 3\nb 1 2 3\n", "has 2 vectors, its first line says 1"),
        (b"\xba\x16\x4f\x2f and so on\n", r"is a fastText model; use its text file \(\.vec\)"),
        (pickle.dumps([1]), r"is a pickle; gensim writes a file that is read with save_word2vec_format"),
        (b"\x93NUMPY\x01\x00", "is a numpy array without words"),
    ],
)
def test_errors_in_a_text_file_name_the_line(tmp_path: Path, text: bytes, message: str):
    (tmp_path / "bad.txt").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_published_vectors(tmp_path / "bad.txt", ["a", "b"])


def word2vec_file(path: Path, words: list[str], vectors: np.ndarray, newline: bytes = b"\n") -> Path:
    """Writes word2vec's binary format. newline: the program ends each vector with one, gensim does not."""
    lines = [
        word.encode() + b" " + vector.astype("<f4").tobytes() + newline
        for word, vector in zip(words, vectors, strict=True)
    ]
    data = f"{len(words)} {vectors.shape[1]}\n".encode() + b"".join(lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("newline", [b"\n", b""])
@pytest.mark.parametrize("name", ["w.bin", "w.bin.gz", "w.txt"])
def test_reads_word2vec_binary(tmp_path: Path, name: str, newline: bytes, monkeypatch: pytest.MonkeyPatch):
    """The format is recognized by what is in the file, and read in blocks that end anywhere."""
    monkeypatch.setattr(word_vectors, "BLOCK", 50)
    words = ["the", "café", *(f"w{k}" for k in range(200)), "the"]
    vectors = np.random.default_rng(0).normal(size=(len(words), 7)).astype(np.float32)
    path = word2vec_file(tmp_path / name, words, vectors, newline)
    found = read_vectors(path, ["w199", "the", "café", "absent"])
    assert found.words == ["the", "café", "w199"]
    assert np.array_equal(found.vectors.numpy(), vectors[[0, 1, 201]])


def test_errors_in_a_binary_file_name_the_vector(tmp_path: Path):
    vectors = np.random.default_rng(0).normal(size=(3, 5))
    vectors[1, 2] = np.nan
    path = word2vec_file(tmp_path / "w.bin", ["a", "b", "c"], vectors)
    assert read_vectors(path, ["a", "c"]).words == ["a", "c"]
    with pytest.raises(ValueError, match=r"w\.bin: vector 2, word 'b', holds NaN or infinity"):
        read_vectors(path, ["b"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="is cut short: it has 2 of the 3 vectors that line 1 announces"):
        read_vectors(path, ["a"])
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="has more than the 3 vectors that line 1 announces"):
        read_vectors(path, ["a"])


def test_numbers_that_are_not_finite_are_blamed_on_file_and_word(tmp_path: Path):
    vectors = torch.ones(3, 4)
    vectors[1, 2] = float("inf")
    save_vectors(tmp_path / "v.safetensors", WordVectors(["a", "b", "c"], vectors))
    with pytest.raises(ValueError, match=r"v\.safetensors: the vector of 'b' holds NaN or infinity"):
        read_vectors(tmp_path / "v.safetensors", [])


def test_a_mark_at_the_start_and_an_empty_line_at_the_end_are_no_words(tmp_path: Path):
    (tmp_path / "w.txt").write_bytes(b"\xef\xbb\xbfthe 1 2\nof 3 4\n\n")
    assert read_vectors(tmp_path / "w.txt", ["the", "of"]).words == ["the", "of"]


def test_cut_archives_and_missing_files_are_refused(tmp_path: Path):
    (tmp_path / "glove.gz").write_bytes(gzip.compress(GLOVE * 1000)[:-20])
    with pytest.raises(ValueError, match="cut short or damaged"):
        read_published_vectors(tmp_path / "glove.gz", ["the"])
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        read_vectors(tmp_path / "absent", [])


def test_a_saved_file_has_the_same_words_and_numbers(tmp_path: Path):
    vectors = WordVectors(["a b", "é", "c"], torch.randn(3, 5))
    save_vectors(tmp_path / "v.safetensors", vectors)
    again = load_vectors(tmp_path / "v.safetensors")
    assert again.words == vectors.words
    assert torch.equal(again.vectors, vectors.vectors)
    save_vectors(tmp_path / "v.safetensors", WordVectors(vectors.words, vectors.vectors.double()))
    assert load_vectors(tmp_path / "v.safetensors").vectors.dtype == torch.float32
    (tmp_path / "v.safetensors").write_bytes((tmp_path / "v.safetensors").read_bytes()[:-3])
    with pytest.raises(ValueError, match="cut short"):
        read_vectors(tmp_path / "v.safetensors", [])


def test_whitened_vectors_of_running_words_have_unit_covariance():
    torch.manual_seed(0)
    vectors = torch.randn(50, 7) @ torch.diag(10.0 ** torch.arange(-1.5, 2, 0.5)) + 5
    counts = np.arange(1, 51)
    out = whitened(vectors, torch.from_numpy(counts)).double()
    running = out[torch.from_numpy(np.repeat(np.arange(50), counts))]
    torch.testing.assert_close(running.T.cov(correction=0), torch.eye(7).double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(running.mean(0), torch.zeros(7).double(), atol=1e-5, rtol=0)


def test_put_vectors_whitens_if_counts_are_given():
    torch.manual_seed(0)
    table, vectors = torch.randn(9, 3), WordVectors(["a", "b", "c", "d", "e", "f"], torch.randn(6, 3))
    counts = np.arange(9)
    assert put_vectors(table, {word: 2 + k for k, word in enumerate("abcdef")}, vectors=vectors, counts=counts) == 6
    plain = whitened(vectors.vectors, torch.from_numpy(counts[2:8]))
    ratio = table[2:8] / plain
    torch.testing.assert_close(ratio, ratio[0, 0].expand(6, 3))


def test_put_vectors_scales_to_the_standard_deviation_of_the_table():
    torch.manual_seed(0)
    table = torch.randn(50, 30)
    before, std = table.clone(), table.std()
    vectors = WordVectors([f"w{k}" for k in range(40)] + ["other"], torch.randn(41, 30) * 7)
    assert put_vectors(table, {f"w{k}": k + 5 for k in range(40)}, vectors=vectors) == 40
    torch.testing.assert_close(table[5:45].std(), std)
    assert torch.equal(table[:5], before[:5])
    assert torch.cosine_similarity(table[5], vectors.vectors[0], dim=0) > 0.9999
    with pytest.raises(ValueError, match="30 dimensions, the model's embeddings 20"):
        put_vectors(torch.zeros(50, 20), {"w1": 3}, vectors=vectors)
    with pytest.raises(ValueError, match="none of the vocabulary"):
        put_vectors(table, {"absent": 3}, vectors=vectors)
    with pytest.raises(ValueError, match="have no spread: all their numbers are equal"):
        put_vectors(table, {"zero": 3}, vectors=WordVectors(["zero"], torch.zeros(1, 30)))


# ---------------------------------------------------------------------------------------------- the older project


def old_file(path: Path, protocol: int, table: Any) -> Path:
    """Writes a file in the format of the older project."""
    features, labels = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0, 1])
    words = {"<unk>": 0, "good": 1, "nowhere": 2, "bad": 3}
    names = {row: word for word, row in words.items()}
    values = [features, labels, features, labels, features, table, words, names, {"good", "bad", "nowhere"}]
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_reads_the_pickle_of_the_older_project(tmp_path: Path, protocol: int, kind: Callable):
    table = kind([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    words, vectors = read_pickle3(old_file(tmp_path / "imdb_glove.pickle3", protocol=protocol, table=table))
    assert words == ["good", "bad"]
    assert vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert read_vectors(tmp_path / "imdb_glove.pickle3", []).words == words


def test_names_of_older_versions_of_numpy_are_admitted():
    """numpy 2.0 and earlier write them."""
    names = {"multiarray": ("_reconstruct", "scalar"), "numeric": ("_frombuffer",)}
    assert {(f"numpy.core.{module}", name) for module in names for name in names[module]} <= ADMITTED.keys()


class Payload:
    """Creates a file when it is unpickled by pickle.load."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_refuses_a_pickle_that_runs_code(tmp_path: Path):
    path, touched = tmp_path / "evil.pickle3", tmp_path / "touched"
    path.write_bytes(pickle.dumps([torch.zeros(2, 2), Payload(touched)]))
    with pytest.raises(ValueError, match="system, which is not plain data"):
        read_pickle3(path)
    assert not touched.exists()
    for data in (b"", b"garbage", pickle.dumps([1, 2]), pickle.dumps({"a": 1})):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="pickle3"):
            read_pickle3(path)


# --------------------------------------------------------------------------------------------------------- GloVe


def dense_counts(reviews: list[list[int]], size: int, window: int) -> np.ndarray:
    """Computes X by its definition, one pair of positions at a time: float64 [V, V]."""
    x = np.zeros((size, size))
    for ids in reviews:
        for t, i in enumerate(ids):
            for s, j in enumerate(ids):
                if 0 < abs(t - s) <= window and i >= 2 and j >= 2:
                    x[i, j] += 1 / abs(t - s)
    return x


def test_co_occurrence_counts_equal_the_definition(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(glove, "BLOCK", 4)
    monkeypatch.setattr(glove, "CHUNK", 20)  # several chunks, which are merged
    stream = np.random.default_rng(0)
    reviews = [stream.integers(0, 11, size).tolist() for size in (7, 1, 13, 0, 30, 9)]
    pairs = count_pairs(reviews, 11, window=3)
    x = np.zeros((11, 11))
    for row, column, span in pairs.blocks:
        x[row * 4 + pairs.rows[span].astype(int), column * 4 + pairs.columns[span].astype(int)] = pairs.counts[span]
    np.testing.assert_allclose(x, dense_counts(reviews, size=11, window=3), rtol=1e-5)


def dense_loss(
    w: torch.Tensor, c: torch.Tensor, b: torch.Tensor, d: torch.Tensor, x: np.ndarray, x_max: float, alpha: float
) -> torch.Tensor:
    """Computes J, Eq. (8), by loops. w, c: [V, D];  b, d: [V];  x: [V, V] -> scalar"""
    total = torch.zeros((), dtype=w.dtype)
    for i in range(len(x)):
        for j in range(len(x)):
            if x[i, j] > 0:
                f = min(1.0, (float(x[i, j]) / x_max) ** alpha)
                total = total + f * (w[i] @ c[j] + b[i] + d[j] - np.log(x[i, j])) ** 2
    return total


def test_a_step_is_adagrad_on_the_dense_loss():
    torch.manual_seed(0)
    glove = Glove(5, 3, seed=0)
    for tensor in (*glove.vectors, *glove.biases):
        tensor.normal_()
    leaves = [t.double().clone().requires_grad_() for t in (*glove.vectors, *glove.biases)]
    x = np.random.default_rng(0).integers(0, 9, (5, 5)).astype(float)
    loss = dense_loss(*leaves, x=x, x_max=6.0, alpha=0.75)
    gradients = torch.autograd.grad(loss / 2, leaves)
    i, j = (torch.from_numpy(indices) for indices in np.nonzero(x))
    count = torch.tensor(x[i, j], dtype=torch.float32)
    f = weight(count, x_max=6.0, alpha=0.75)
    found = glove.step(slice(0, 5), slice(0, 5), i=i, j=j, x=count, f=f, rate=0.05)
    assert found == pytest.approx(loss.item(), rel=1e-4)
    for before, g, after in zip(leaves, gradients, (*glove.vectors, *glove.biases), strict=True):
        expected = before - 0.05 * g / (1 + g * g).sqrt()
        torch.testing.assert_close(after.double(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_words_with_the_same_contexts_get_similar_vectors(monkeypatch: pytest.MonkeyPatch):
    """Trains on sentences whose words all come from one of two sets: vectors within a set are closer."""
    monkeypatch.setattr(glove, "BLOCK", 8)
    stream = np.random.default_rng(0)
    word_sets = [range(2, 12), range(12, 22)]
    reviews = [stream.choice(word_sets[k % 2], 12).tolist() for k in range(200)]
    losses = []
    pairs = count_pairs(reviews, vocab_size=22, window=5)
    vectors = train_glove(pairs, 22, width=10, epochs=30, x_max=10, report=lambda epoch, loss: losses.append(loss))
    assert losses[-1] < 0.1 * losses[0]
    unit = torch.nn.functional.normalize(vectors, dim=1)
    cosine = unit @ unit.T
    assert cosine[2:12, 2:12].mean() > cosine[2:12, 12:22].mean() + 0.3


def test_a_vocabulary_without_pairs_is_refused(tmp_path: Path):
    tokenizer = train_tokenizer("wordlevel", ["one", "one", "two"], 10, 2)
    with pytest.raises(ValueError, match="no two words of the vocabulary near each other; lower --min-count"):
        trained_vectors(tokenizer, ["one two"], 4, tmp_path)


def test_trained_vectors_are_cached_and_reproducible(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = ["a fine film , a fine day", "a bad film", "bad day"] * 5
    tokenizer = train_tokenizer("wordlevel", texts, vocab_size=100)
    first = trained_vectors(tokenizer, texts, width=8, cache=tmp_path)
    assert "GloVe" in capsys.readouterr().out
    again = trained_vectors(tokenizer, texts, width=8, cache=tmp_path)
    assert capsys.readouterr().out == ""
    assert first.words == again.words == tokenizer.tokens
    other = trained_vectors(tokenizer, texts, width=8, cache=tmp_path / "other")
    assert torch.equal(first.vectors, other.vectors)
    narrow = trained_vectors(tokenizer, texts, width=5, cache=tmp_path)  # not the vectors that are cached
    assert narrow.vectors.shape == (tokenizer.vocab_size, 5)


# ------------------------------------------------------------------------------------------------------ in a run


def run_arguments(tmp_path: Path, *more: str) -> list[str]:
    """Returns the arguments of a short run of a small CNN over word vectors."""
    common = f"--model cnn --data demo --train-reviews 40 --epochs 1 --runs {tmp_path}/runs --name words"
    shape = "one_hot=false embedding_size=6 filters=5 widths=2,3"
    return [*common.split(), "--shape", shape, *more]


def test_a_run_with_frozen_vectors_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = ["the", "great", "awful", "movie"]
    save_vectors(tmp_path / "mine.safetensors", WordVectors(words, torch.randn(4, 6)))
    train.main(run_arguments(tmp_path, "--word-vectors", "mine.safetensors", "--no-train-vectors"))
    shown = capsys.readouterr().out
    assert f"word vectors: {tmp_path / 'mine.safetensors'}, for" in shown
    counts = read_json(tmp_path / "runs/words/result.json")["parameters"]
    frozen = counts["total"] - counts["trained"]
    assert frozen == 6 * load_tokenizer(tmp_path / "runs/words/tokenizer").vocab_size


def test_vectors_from_a_checkpoint_are_means_of_subword_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tokenizer, table = load_tokenizer("builtin"), load_pretrained("builtin").embeddings.word.weight
    words = ["<pad>", "film", "unwatchable"]
    found = read_vectors("builtin", words)
    assert found.words == words[1:]
    assert read_vectors("builtin", words[:1]).vectors.shape == (0, 256)
    for word, vector in zip(*found, strict=True):
        (ids,) = tokenizer.subword_ids([word])
        torch.testing.assert_close(vector, table[ids].mean(0))
    monkeypatch.chdir(tmp_path)
    more = ["--shape", "one_hot=false embedding_size=256 filters=5 widths=2,3"]
    train.main([*run_arguments(tmp_path, "--word-vectors", "builtin"), *more])
    assert "word vectors: builtin, for" in capsys.readouterr().out


def test_vectors_of_another_width_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_vectors(tmp_path / "wide.safetensors", WordVectors(["the"], torch.randn(1, 7)))
    with pytest.raises(ValueError, match="7 dimensions, the model's embeddings 6; use --shape embedding_size=7"):
        train.main(run_arguments(tmp_path, "--word-vectors", "wide.safetensors"))


def test_encoders_refuse_word_vectors(tmp_path: Path):
    with pytest.raises(ValueError, match="--word-vectors are for word networks"):
        train.main(["--model", "bert", "--weights", "none", "--word-vectors", "train", "--runs", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_models_over_one_hot_words_refuse_word_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="one-hot words have no vectors; use --shape one_hot=false"):
        train.main(run_arguments(tmp_path, "--word-vectors", "builtin", "--shape", "filters=5"))


def test_every_line_of_a_long_file_is_read(tmp_path: Path):
    (tmp_path / "long.txt").write_text("".join(f"w{k} {k} 1 2\n" for k in range(150)))
    found = read_published_vectors(tmp_path / "long.txt", [f"w{k}" for k in range(150)])
    assert found.vectors[:, 0].tolist() == list(range(150))


def test_whitened_vectors_of_few_dimensions_are_finite():
    """A direction without variance stays without it."""
    torch.manual_seed(0)
    vectors = torch.randn(9, 3)
    vectors[:, 1] = 0.5
    out = whitened(vectors, torch.ones(9))
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, [0, 2]].T.cov(correction=0), torch.eye(2), rtol=1e-4, atol=1e-4)


def test_as_many_words_as_dimensions_are_not_whitened():
    torch.manual_seed(0)
    table, vectors = torch.randn(9, 3), WordVectors(["a", "b", "c"], torch.randn(3, 3))
    put_vectors(table, {"a": 2, "b": 3, "c": 4}, vectors=vectors, counts=np.ones(9))
    ratio = table[2:5] / vectors.vectors
    torch.testing.assert_close(ratio, ratio[0, 0].expand(3, 3))


def test_words_that_a_checkpoint_does_not_know_have_no_vector(tmp_path: Path):
    folder = tiny_weights(tmp_path / "weights")
    assert read_vectors(folder, ["film", "หนัง", "good"]).words == ["film", "good"]


def test_a_word_has_its_row_in_the_checkpoint_of_a_network_over_words(tmp_path: Path):
    folder = tiny_weights(tmp_path / "weights", "gru")
    tokenizer, table = load_tokenizer(folder), load_pretrained(folder).embeddings.word.weight
    words, vectors = read_vectors(folder, ["good", "หนัง", "film"])
    assert words == ["good", "film"]
    assert torch.equal(vectors, table[[tokenizer.vocabulary[word] for word in words]])


def test_vectors_are_trained_on_all_reviews_except_those_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = train_tokenizer("wordlevel", ["one two three four"], 20)
    model, seen = tiny("lstm", vocab_size=tokenizer.vocab_size), []

    def trained(tokenizer, texts, width, **_) -> WordVectors:
        seen.extend(texts)
        return WordVectors(tokenizer.tokens, torch.randn(tokenizer.vocab_size, width))

    monkeypatch.setattr(nn_vectors, "trained_vectors", trained)
    parts = {"train": ["one"], "validation": ["two"], "test": ["three"], "unlabelled": ["four"]}
    splits = SimpleNamespace(**{name: pd.DataFrame({"review": texts}) for name, texts in parts.items()}, shards=None)
    how = {"source": "train", "whiten": False, "corpus": None, "cache": tmp_path, "check": lambda: None}
    start_from_vectors(model, splits=splits, tokenizer=tokenizer, **how)
    assert sorted(seen) == ["four", "one", "two"]


def test_of_two_widths_that_are_equally_frequent_the_smaller_is_meant(tmp_path: Path):
    """A word with a space in it looks like a wider line."""
    (tmp_path / "w.txt").write_bytes(b"at last 1 2 3\nfilm 4 5 6\n")
    found = read_published_vectors(tmp_path / "w.txt", ["film", "at last"])
    assert found.words == ["at last", "film"]
    assert found.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_binary_file_whose_first_vector_is_zero_is_binary(tmp_path: Path):
    """Its numbers are zero bytes, which are valid UTF-8."""
    vectors = np.zeros((2, 5), np.float32)
    vectors[1] = 7
    path = word2vec_file(tmp_path / "w.bin", ["</s>", "film"], vectors)
    assert read_vectors(path, ["film"]).vectors.tolist() == [[7] * 5]


def test_an_archive_may_have_a_folder_but_only_one_file(tmp_path: Path):
    path = tmp_path / "w.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vectors/", "")  # a folder
        archive.writestr("vectors/w.txt", GLOVE)
    assert read_vectors(path, ["the"]).words == ["the"]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("vectors/other.txt", GLOVE)
    with pytest.raises(ValueError, match=r"w\.zip contains 2 files; unpack it and name one of them"):
        read_vectors(path, ["the"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_in_another_precision_is_read(tmp_path: Path, dtype: torch.dtype):
    vectors = torch.tensor([[0.5, 2.0], [-1.0, 0.25]])
    save_vectors(tmp_path / "v.safetensors", WordVectors(["a", "b"], vectors.to(dtype)))
    found = load_vectors(tmp_path / "v.safetensors").vectors
    assert found.dtype == torch.float32
    assert torch.equal(found, vectors)


@pytest.mark.parametrize("words", [["a"], ["a", "b", "c"]])
def test_a_file_has_as_many_words_as_vectors(tmp_path: Path, words: list[str]):
    save_vectors(tmp_path / "v.safetensors", WordVectors(words, torch.ones(2, 4)))
    with pytest.raises(ValueError, match=f"contains 2 vectors for {len(words)} words"):
        load_vectors(tmp_path / "v.safetensors")
