"""Tokenizers: special tokens, truncation, files, training, and SentencePiece's exact segmentation."""

import gzip
import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, folder_from, tiny_weights
from tokenizers import Tokenizer as Backend

import train
from data.demo import reviews
from data.imdb import load_reviews
from data.sentencepiece import UnigramModel, read_fields, read_varint
from data.spm_segmenter import SpmSegmenter
from data.tokenization import Tokenizer, load_tokenizer, split_into_chunks, train_tokenizer, truncate_ids

TEXTS = ["A wonderful little film!", "", "Naïve  café — ☕ 😀", "x" * 300, "don't, won't"]
CORPUS = [text for _, text, _ in reviews("train")[:500]]


@pytest.fixture(scope="module", params=["wordpiece", "unigram", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(request.param, CORPUS, vocab_size=500)


@pytest.fixture(scope="module")
def published() -> Tokenizer:
    """Returns DeBERTa-v3's tokenizer, which takes more than a second to load."""
    return load_tokenizer(folder_from("TOKENIZERS_DIR") / "deberta-v3")


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_every_character_of_the_texts_is_in_a_vocabulary_that_is_too_small(kind: str):
    texts = ["abc xyz q", "7/10"]
    tokenizer = train_tokenizer(kind, texts, vocab_size=5)
    assert tokenizer.special["unk"] not in [tokenizer.tokens[n] for row in tokenizer.encode(texts, 99) for n in row]


def test_words_are_described_as_they_are_read_back(tmp_path: Path):
    tokenizer = train_tokenizer("wordlevel", CORPUS, 300)
    tokenizer.save(tmp_path)
    before = (tmp_path / "tokenizer_config.json").read_bytes()
    load_tokenizer(tmp_path).save(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == before


def test_special_tokens_enclose_the_text_and_survive_truncation(tokenizer: Tokenizer):
    cls, sep = (tokenizer.id_of(tokenizer.special[role]) for role in ("cls", "sep"))
    for max_length in (3, 8, 100):
        for row in tokenizer.encode(TEXTS, max_length):
            assert (row[0], row[-1]) == (cls, sep)
            assert len(row) <= max_length
    assert list(tokenizer.encode([""], 9)) == [[cls, sep]]
    with pytest.raises(ValueError, match="max_length 2 leaves no room"):
        list(tokenizer.encode(["a"], 2))
    with pytest.raises(ValueError, match=r"max_length 1 \(model_max_length of .*; --max-length replaces it\)"):
        list(replace(tokenizer, model_max_length=1).encode(["a"], 1))


def test_a_batch_is_padded_on_the_right(tokenizer: Tokenizer):
    ids, mask = tokenizer.encode_batch(TEXTS, 50)
    rows = list(tokenizer.encode(TEXTS, 50))
    assert ids.shape == mask.shape == (5, max(map(len, rows)))
    for row, padded, real in zip(rows, ids, mask, strict=True):
        assert padded[: len(row)].tolist() == row
        assert (padded[len(row) :] == tokenizer.pad_id).all()
        assert real[: len(row)].all()
        assert real.sum() == len(row)
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_training_is_deterministic_and_independent_of_the_order_of_texts(tokenizer: Tokenizer):
    for corpus in (CORPUS, CORPUS, list(reversed(CORPUS))):
        assert train_tokenizer(tokenizer.kind, corpus, vocab_size=500).backend.to_str() == tokenizer.backend.to_str()
    assert 400 < tokenizer.vocab_size <= 500 + 300  # 300: special tokens, bytes, single characters


def test_frequent_words_are_single_subwords(tokenizer: Tokenizer):
    counts = Counter(word for text in CORPUS for word in text.lower().split() if word.isalpha())
    text = " ".join(word for word, _ in counts.most_common(12))
    ids = next(tokenizer.encode([text], 50))
    assert len(ids) <= 12 + 2 + 3  # at most three of the twelve words are two subwords
    assert tokenizer.backend.decode(ids).lower() == text


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.kind, again.pad_id, again.lowercase) == (tokenizer.kind, tokenizer.pad_id, tokenizer.lowercase)
    assert list(again.encode(TEXTS, 50)) == list(tokenizer.encode(TEXTS, 50))


def test_unknown_characters_become_bytes_in_unigram():
    tokenizer = train_tokenizer("unigram", CORPUS, vocab_size=500)
    assert "<0xE2>" in tokenizer.backend.encode("☕").tokens
    assert tokenizer.backend.decode(tokenizer.backend.encode("good ☕").ids) == "good ☕"


def test_vocab_txt_is_read_with_and_without_lowercasing(tmp_path: Path):
    subwords = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "##ness", "cafe", "Good", "!", "1"]
    (tmp_path / "vocab.txt").write_text("\n".join(subwords))
    uncased = load_tokenizer(tmp_path)
    assert list(uncased.encode(["Goodness! Café", "zzz"], 20)) == [[2, 5, 6, 9, 7, 3], [2, 1, 3]]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert list(load_tokenizer(tmp_path).encode(["Good good"], 20)) == [[2, 8, 5, 3]]
    (tmp_path / "vocab.txt").write_text("good\nbad\n")
    with pytest.raises(ValueError, match=r"not a WordPiece vocabulary: \[PAD\], \[UNK\]"):
        load_tokenizer(tmp_path)


def test_missing_and_damaged_files_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="contains no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "spm.model").write_bytes(b"\x0a\xff\xff")
    with pytest.raises(ValueError, match=r"spm\.model cannot be read as a Unigram model"):
        load_tokenizer(tmp_path)
    (tmp_path / "spm.model").unlink()
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Other"}}')
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_protobuf_fields_are_read_and_a_cut_message_is_refused():
    message = bytes([0x08, 0x96, 0x01, 0x12, 0x02]) + b"hi" + bytes([0x1D, 0, 0, 0x80, 0x3F])
    assert list(read_fields(message)) == [(1, 150), (2, b"hi"), (3, bytes([0, 0, 0x80, 0x3F]))]
    for size in (1, 2, 4, 6, len(message) - 1):
        with pytest.raises(ValueError, match="cut short"):
            list(read_fields(message[:size]))


def test_a_number_of_more_than_ten_bytes_is_no_protobuf():
    assert read_varint(b"\xff" * 9 + b"\x01", 0) == (2**64 - 1, 10)
    with pytest.raises(IndexError):
        read_varint(b"\xff" * 10 + b"\x01", 0)


@pytest.mark.slow
def test_published_deberta_model_equals_golden_ids(published: Tokenizer, spm: Path, tmp_path: Path):
    assert (published.kind, published.vocab_size, published.pad_id) == ("unigram", 128001, 0)
    golden = json.loads((GOLDEN / "spm.json").read_text(encoding="utf-8"))
    for text, ids in golden.items():
        assert list(published.encode([text], 500)) == [[1, *ids, 2]], text
    data = (spm / "spm.model").read_bytes()
    (tmp_path / "spm.model").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut short"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_vocab_txt_equals_tokenizer_json_of_a_published_bert(minilm: Path, tmp_path: Path):
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    theirs = Backend.from_file(str(minilm / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    ours = load_tokenizer(tmp_path)
    texts = CORPUS + TEXTS
    assert list(ours.encode(texts, 512)) == [encoding.ids for encoding in theirs.encode_batch(texts)]


def test_truncation_keeps_head_tail_or_both():
    ids = list(range(1000))
    assert truncate_ids(ids, 1000, truncate="tail") is ids
    assert truncate_ids(ids, 10, truncate="head") == ids[:10]
    assert truncate_ids(ids, 10, truncate="tail") == ids[990:]
    assert truncate_ids(ids, 510, truncate="head+tail") == ids[:127] + ids[1000 - 383 :]
    assert truncate_ids(ids, 900, truncate="head+tail") == ids[:128] + ids[1000 - 772 :]
    assert truncate_ids(ids, 1, truncate="tail") == [999]


def test_chunks_contain_the_whole_text_in_nearly_equal_lengths():
    ids = list(range(1000))
    chunks = split_into_chunks(ids, 300)
    assert [len(chunk) for chunk in chunks] == [250, 250, 250, 250]
    assert sum(chunks, []) == ids  # noqa: RUF017
    assert [len(chunk) for chunk in split_into_chunks(ids, 999)] == [500, 500]
    assert [len(chunk) for chunk in split_into_chunks(ids[:7], 3)] == [2, 2, 3]
    assert split_into_chunks([], 3) == [[]]


def test_text_that_spells_a_special_token_is_text(tokenizer: Tokenizer):
    special = {tokenizer.id_of(token) for token in tokenizer.special.values()}
    for text in ("[SEP]", "a [CLS] b", "<s></s><pad>", "[MASK][PAD]", "<0x41>"):
        (ids,) = tokenizer.subword_ids([text])
        unknown = tokenizer.id_of(tokenizer.special["unk"])
        assert not set(ids) & (special - {unknown}), text
        assert len(ids) > 1


EXTREME = [
    "a\x00b",
    "lone \ud800 surrogate",
    "\ud83d\ude00"[:1],
    "x" * 1_000_000,
    " " * 10_000,
    "é" * 50_000,
    "\u200b\ufeff",
]


def test_extreme_text_is_encoded(tokenizer: Tokenizer):
    for row in tokenizer.encode(EXTREME, 64):
        assert 2 <= len(row) <= 64


def test_a_vocabulary_larger_than_the_embedding_table_is_refused(tmp_path: Path):
    weights = tiny_weights(tmp_path / "weights")
    train_tokenizer("wordpiece", CORPUS, vocab_size=900).save(weights)
    arguments = ["--model", "bert", "--weights", str(weights), "--data", "demo", "--runs", str(tmp_path / "runs")]
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ .*model.* \d+"):
        train.main(arguments)


def test_byte_level_bpe_files_are_read(tmp_path: Path):
    tokenizer = train_tokenizer("bpe", CORPUS, vocab_size=500)
    tokenizer.backend.model.save(str(tmp_path))
    again = load_tokenizer(tmp_path)
    assert again.kind == "bpe"
    assert list(again.encode(TEXTS + CORPUS, 60)) == list(tokenizer.encode(TEXTS + CORPUS, 60))
    assert tokenizer.backend.decode(next(tokenizer.subword_ids(["naïve ☕ café"]))) == "naïve ☕ café"
    (tmp_path / "merges.txt").write_text("a b c d\n")
    with pytest.raises(ValueError, match=r"merges\.txt: line 1 is 'a b c d', not two subwords"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_the_published_model_is_saved_and_hf5_differs_from_it(published: Tokenizer, spm: Path, tmp_path: Path):
    published.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == published.fingerprint
    assert list(again.encode(CORPUS, 60)) == list(published.encode(CORPUS, 60))
    theirs = load_tokenizer(spm, variant="hf5")
    assert list(theirs.subword_ids(["ＡＢＣ"])) != list(published.subword_ids(["ＡＢＣ"]))
    assert list(theirs.subword_ids(["plain words"])) == list(published.subword_ids(["plain words"]))


@pytest.mark.slow
def test_agrees_with_sentencepiece_on_reviews(published: Tokenizer, imdb: Path, tmp_path: Path):
    """Compares the hash of the ids of the first 5,000 test reviews with sentencepiece 0.2.3 (golden/make_golden.py)."""
    golden = json.loads((GOLDEN / "spm_reviews.json").read_text())
    with gzip.open(imdb / "testData.tsv.gz") as file:
        (tmp_path / "testData.tsv").write_bytes(b"".join(islice(file, 1 + golden["reviews"])))  # a line is a review
    test_reviews = load_reviews(tmp_path / "testData.tsv")["review"]
    assert len(test_reviews) == golden["reviews"]
    digest = hashlib.sha256()
    for ids in published.subword_ids(test_reviews):
        digest.update(np.asarray(ids, "<i4").tobytes() + b"\xff\xff\xff\xff")
    assert digest.hexdigest() == golden["sha256"]


def spm_bytes(subwords: list[tuple[str, float, int]], trainer: bytes = bytes([0x18, 1, 0x98, 0x02, 1])) -> bytes:
    """Builds a small spm.model: field 1 subwords {1 text, 2 score, 3 type}, field 2 trainer {3 model type, 35 byte
    fallback}."""

    def message(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    out = b""
    for text, score, kind in subwords:
        fields = message(1, text.encode()) + bytes([0x15]) + struct.pack("<f", score) + bytes([0x18, kind])
        out += message(1, fields)
    return out + message(2, trainer)


@pytest.fixture
def toy() -> UnigramModel:
    """A model of ten subwords of a and b with random scores."""
    special = [("[PAD]", 0.0, 3), ("[CLS]", 0.0, 3), ("[SEP]", 0.0, 3), ("[UNK]", 0.0, 2)]
    special += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    names = ["▁", "a", "b", "▁a", "ab", "ba", "aba", "▁ab", "bb", "▁abb"]
    costs = np.random.default_rng(0).uniform(1, 6, 10)
    return UnigramModel.parse(
        spm_bytes(special + [(name, float(-cost), 1) for name, cost in zip(names, costs, strict=True)])
    )


def all_segmentations(text: str, subwords: set[str]) -> Iterator[list[str]]:
    """Yields every segmentation into subwords. A character that is not a subword is one unknown token."""
    if not text:
        yield []
    for end in range(1, len(text) + 1):
        if text[:end] in subwords or (end == 1 and text[0] not in subwords):
            yield from ([text[:end], *rest] for rest in all_segmentations(text[end:], subwords))


def test_viterbi_equals_trying_every_segmentation(toy: UnigramModel):
    """The best of all segmentations by Σ log p(xᵢ), Kudo 2018, §3.2, is found by enumeration."""

    def total(segmentation: list[str]) -> float:
        ids = [toy.subword_to_id.get(subword) for subword in segmentation]
        return sum(float(toy.unknown_score if i is None else toy.scores[i]) for i in ids)

    def ids_of(subword: str) -> list[int]:
        known = subword in toy.subword_to_id
        return [toy.subword_to_id[subword]] if known else [toy.byte_ids[byte] for byte in subword.encode()]

    for word in ("▁abab", "▁", "▁bbabba", "▁axb", "▁é", "▁aaaaaa", "▁abbabbabb"):
        best = max(all_segmentations(word, set(toy.subword_to_id)), key=total)
        assert toy.viterbi(word) == [i for subword in best for i in ids_of(subword)], word


def test_repair_changes_only_words_with_nearly_equal_segmentations(toy: UnigramModel):
    assert toy.repair("ab ba", [1, 2, 3]) == [1, 2, 3]
    before, word = toy.viterbi("▁ab"), toy.viterbi("▁aaaa")
    wrong = [toy.subword_to_id["▁a"]] + [toy.subword_to_id["a"]] * 3
    toy.margins["aaaa"] = 0.0
    assert toy.repair("ab aaaa ab", before + wrong + before) == before + word + before


def test_the_margin_equals_that_of_all_segmentations(toy: UnigramModel):
    for word in ("▁abab", "▁bbabba", "▁axb", "▁é", "▁aaaaaa", "▁abbabbabb"):
        log_probabilities = sorted(
            sum(float(toy.scores[i]) if i is not None else float(toy.unknown_score) for i in ids)
            for ids in (
                [toy.subword_to_id.get(part) for part in s] for s in all_segmentations(word, set(toy.subword_to_id))
            )
        )
        expected = log_probabilities[-1] - log_probabilities[-2] if len(log_probabilities) > 1 else np.inf
        assert toy.margin(word) == pytest.approx(expected, abs=1e-12)


def test_a_model_without_byte_fallback_has_one_unknown_token_for_a_run_of_characters():
    subwords = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁", -1.0, 1), ("a", -2.0, 1), ("▁a", -2.5, 1)]
    data = spm_bytes(subwords, trainer=bytes([0x18, 1]))
    segment = SpmSegmenter(UnigramModel.parse(data), "spm.model", data)
    texts = ["xyz", "axyz a", "x y", "aaaaaa x aaaa", "<s> </s>", "a▁a"]
    assert list(segment(texts)) == [
        [3, 0],
        [5, 0, 5],
        [3, 0, 3, 0],
        [5, *[4] * 5, 3, 0, 5, 4, 4, 4],
        [3, 0, 3, 0],
        [5, 5],
    ]
    xlm = UnigramModel.parse(data).with_fairseq_ids()
    assert [name for name, _ in xlm.subwords] == ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "▁a", "<mask>"]
    assert list(SpmSegmenter(xlm, "sentencepiece.bpe.model", data)(texts[:2])) == [[4, 3], [6, 3, 6]]


def test_models_of_another_kind_are_refused():
    subwords = [("[UNK]", 0.0, 2), ("a", -1.0, 1)]
    for data, message in (
        (spm_bytes(subwords, trainer=bytes([0x18, 2])), "it is a BPE model"),
        (spm_bytes(subwords, trainer=bytes([0xC0, 0x01, 1])), "treat_whitespace_as_suffix = 1 is not supported"),
        (spm_bytes(subwords) + bytes([0x1A, 2, 0x18, 0]), "add_dummy_prefix = 0 is not supported"),
        (spm_bytes(subwords) + bytes([0x1A, 2, 0x20, 0]), "remove_extra_whitespaces = 0 is not supported"),
        (spm_bytes([*subwords, ("a▁b", -1.0, 1)]), "extends over more than one word"),
        (spm_bytes(subwords[:1]), "it has no subwords"),
    ):
        with pytest.raises(ValueError, match=message):
            UnigramModel.parse(data)
    with pytest.raises(ValueError, match=r"it begins with \[UNK\], a"):
        UnigramModel.parse(spm_bytes(subwords, trainer=bytes([0x18, 1]))).with_fairseq_ids()


# --------------------------------------------------------------------------------------------------------- words


def words_of(text: str) -> list[str]:
    """Returns the words of a text."""
    tokenizer = train_tokenizer("wordlevel", [text], vocab_size=1000)
    return [tokenizer.tokens[i] for i in next(tokenizer.encode([text], 400))]


def test_ratings_negations_smileys_and_punctuation_are_words():
    words = " ".join(words_of("I DON'T like it!! 3/10… it's well-made?"))
    assert words == "i do n't like it ! ! 3/10 ... it 's well made ?"
    words = " ".join(words_of("Can’t wait :) but, alas, :-( 7.5/10. Don tone"))
    assert words == "ca n't wait :) but alas :-( 7.5/10 . don tone"


def test_the_vocabulary_of_words_is_sorted_by_count(tmp_path: Path):
    texts = ["b b b a a c", "a d"]
    tokenizer = train_tokenizer("wordlevel", texts, vocab_size=5, min_count=1)
    assert tokenizer.tokens == ["<pad>", "<unk>", "a", "b", "c"]  # ties are in alphabetical order
    assert train_tokenizer("wordlevel", texts, vocab_size=9, min_count=2).tokens == ["<pad>", "<unk>", "a", "b"]
    ways = {
        (9, 50): "; lower --min-count 50$",
        (2, 1): "; raise --vocab-size 2, which counts <pad> and <unk>$",
        (2, 3): "; lower --min-count 3 and raise --vocab-size 2, ",
    }
    for (size, count), way_out in ways.items():
        with pytest.raises(ValueError, match=f"no word of the training reviews is in the vocabulary{way_out}"):
            train_tokenizer("wordlevel", texts, vocab_size=size, min_count=count)
    with pytest.raises(ValueError, match=r"they have no letter, digit, .*; --model deberta reads all text"):
        train_tokenizer("wordlevel", ["😍 😍", "👍"], vocab_size=9, min_count=1)
    with pytest.raises(ValueError, match=r"in the vocabulary; they have no letter, digit, "):
        train_tokenizer("wordlevel", ["😍 😍", "👍"], vocab_size=9, min_count=2)
    assert (tokenizer.pad_id, tokenizer.unk_id) == (0, 1)
    assert list(tokenizer.encode(["a d b", "", "# %"], 400)) == [[2, 1, 3], [1], [1]]
    assert list(tokenizer.encode(["a b c a b c"], max_length=4, truncate="head+tail")) == [[2, 2, 3, 4]]
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.kind == "wordlevel"
    assert again.fingerprint == tokenizer.fingerprint
