"""Word-by-word segmentation equals the segmentation of whole texts."""

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from data.demo import reviews
from data.tokenization import Tokenizer, load_tokenizer, train_tokenizer
from data.word_segmenter import WordSegmenter, segment_texts, split_before_spaces

ROOT = Path(__file__).parent.parent
ALPHABET = [
    *"aBz' .,!?´’-_7/10Σς\u0301\xa0\x85\t\n\0\x01\u200b\u3000▁<>[]電é",
    "n't",
    "  ",
    " ",
    "[CLS]",
    "<0x41>",
    "ﷺ",
]


def hostile_texts() -> list[str]:
    """Returns random texts of letters, combining marks, all sorts of whitespace, and names of special tokens."""
    stream = random.Random(0)
    texts = ["".join(stream.choices(ALPHABET, k=stream.randrange(40))) for _ in range(3000)]
    return ["", " ", "a", *texts, *(" ".join(text.split()) for text in texts)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("unigram", [text for _, text, _ in reviews("train")[:500]], 400)


def test_words_give_the_ids_of_whole_texts(tokenizer: Tokenizer):
    texts = [*hostile_texts(), *(text for _, text, _ in reviews("test")[:200])]
    assert tokenizer.words.word_by_word
    expected = segment_texts(tokenizer.segmenter, texts)
    assert tokenizer.words(texts) == expected
    assert tokenizer.words(texts) == expected  # from the cache


def test_the_box_and_deberta(spm: Path):
    texts = hostile_texts()
    tokenizer = load_tokenizer(ROOT / "data/weights/deberta-mini")
    assert tokenizer.words.word_by_word
    assert tokenizer.segment(texts) == segment_texts(tokenizer.segmenter, texts)
    segmenter = load_tokenizer(spm).spm
    assert segmenter is not None
    assert segmenter.words.word_by_word
    normalized = [segmenter.model.normalize(text) for text in texts]
    assert segmenter.words(normalized) == segment_texts(segmenter.backend, normalized)


def test_the_number_of_cached_words_is_bounded(tokenizer: Tokenizer):
    words, texts = WordSegmenter(tokenizer.segmenter, limit=3), ["good x y z bad", "film"]
    assert words(["good film"]) == segment_texts(tokenizer.segmenter, ["good film"])
    assert words(texts) == segment_texts(tokenizer.segmenter, texts)
    assert sorted(words.words) == [" film", "good"]


def test_texts_are_split_before_single_spaces():
    assert split_before_spaces("one two, 3") == ["one", " two,", " 3"]
    for text in ("a  b", " a", "a ", "a \n", "a\0 b", "\n", "a\xa0 b", "a ▁b"):
        assert split_before_spaces(text) == [text]


def pipeline(**parts) -> Backend:
    """Returns a Unigram pipeline with other parts."""
    backend = Backend(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("▁b", -1.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": pre_tokenizers.Metaspace(split=False)},
        {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first")},
        {"pre_tokenizer": pre_tokenizers.Split(Regex("e"), "isolated")},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])},
        {"normalizer": normalizers.Replace("a b", "c")},
        {"normalizer": normalizers.Replace(Regex("a b"), "c")},
        {"normalizer": normalizers.Replace(Regex(r"\s+"), "")},
        {"normalizer": normalizers.Replace(Regex(r"\s+"), "-")},
        {"normalizer": normalizers.Replace(Regex("^ | $"), "")},
        {"normalizer": normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex("^ | $"), "")])},
        {
            "normalizer": normalizers.Sequence(
                [
                    normalizers.Replace(Regex(r"\s+"), " "),
                    normalizers.NFKC(),
                    normalizers.Replace(Regex("^ | $"), ""),
                ]
            )
        },
        {"model": models.BPE()},
    ],
)
def test_an_unknown_pipeline_segments_whole_texts(parts: dict):
    assert WordSegmenter(pipeline()).word_by_word
    assert not WordSegmenter(pipeline(**parts)).word_by_word


@pytest.mark.parametrize("content", [" ", "▁", "  "])
def test_a_replacement_that_leaves_the_space_is_word_by_word(content: str):
    words = WordSegmenter(pipeline(normalizer=normalizers.Replace(Regex(r"\s+"), content)))
    assert words.word_by_word
    texts = [*hostile_texts(), "¨a b", "a ¨b"]
    assert words(texts) == segment_texts(words.backend, texts)


def test_added_tokens_that_match_text_segment_whole_texts():
    backend = pipeline()
    backend.add_tokens([AddedToken("a b")])
    assert not WordSegmenter(backend).word_by_word
    assert WordSegmenter(backend)(["a b"]) == [[3]]
