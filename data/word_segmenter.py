r"""Segments texts with a Unigram model word by word, so that each distinct word is segmented once.

    segment(text) = segment(w₁) ++ … ++ segment(wₙ)      text = w₁ ++ … ++ wₙ, split before each space

100,000 reviews contain 23 million words, but only 0.7 million distinct ones. The equation holds for a pipeline that
normalizes each character with its combining marks by itself and then splits at spaces. A text with other whitespace
than single spaces is segmented as one word. `segment_texts` is the plain form. WordPiece, BPE and whole words are fast
in the `tokenizers` package, and gain nothing from it.
"""

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models

from data.pipelines import state

CACHED_WORDS = 2**18  # 40 to 60 MiB
LOCAL = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}  # normalizers
SPACES, ENDS = r"\s+", "^ | $"  # what a normalizer may replace
WITHIN_WORDS = {"Split", "Punctuation", "Digits"}  # pre-tokenizers that get each word by itself


def segment_texts(backend: Backend, texts: list[str]) -> list[list[int]]:
    """Returns the ids of each text, without special tokens."""
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def split_before_spaces(text: str) -> list[str]:
    """Splits a text before each space. A text with other or with repeated whitespace is one part.

    A "▁" beside a space would look like two spaces to Unigram, so a text that contains it is one part, too.
    """
    if "\0" in text or "▁" in text or text.split() != text.split(" "):
        return [text]
    return text.replace(" ", "\0 ").split("\0")


def steps(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the steps of a normalizer or a pre-tokenizer in their order. part: its `state`."""
    inner = part.get("normalizers", part.get("pretokenizers"))
    if inner is None:
        return [part] if part else []
    return [step for one in inner for step in steps(one)]


def are_local(normalizer: list[dict[str, Any]]) -> bool:
    """Returns whether a normalizer changes each word independently of its neighbours.

    A run of spaces may become one space. After that, and not before, a space at the ends of a text may be removed.
    """
    collapsed = False
    for step in normalizer:
        kind, content = step["type"], step.get("content", "")
        pattern = step["pattern"].get("Regex") if kind == "Replace" else ""
        if pattern == SPACES and content and not content.strip(" ▁"):
            collapsed = content == " "
        elif kind in LOCAL:
            collapsed = collapsed and kind not in ("NFKC", "NFKD")  # which make spaces of some characters
        elif not (pattern == ENDS and not content and collapsed):
            return False
    return True


def is_word_by_word(backend: Backend) -> bool:
    """Returns whether a pipeline is a Unigram model that is known to segment each word of a text by itself.

    False for tokens that match text before it is split, and for an unknown step.
    """
    added = backend.get_added_tokens_decoder().values()
    if not isinstance(backend.model, models.Unigram) or any(not token.special for token in added):
        return False
    if added and not backend.encode_special_tokens:
        return False
    first, *others = steps(state(backend.pre_tokenizer)) or [{"type": ""}]
    splits = first["type"] == "Metaspace" and first["split"] and first["prepend_scheme"] == "always"
    within = all(step["type"] in WITHIN_WORDS for step in others)
    return splits and within and are_local(steps(state(backend.normalizer)))


@dataclass
class WordSegmenter:
    """Converts texts to ids, as `segment_texts` does. words: word -> its ids; new ones are kept up to `limit`."""

    backend: Backend
    words: dict[str, list[int]] = field(default_factory=dict)
    limit: int = CACHED_WORDS

    def __post_init__(self) -> None:
        self.word_by_word = is_word_by_word(self.backend)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text, without special tokens. New words are segmented in parallel."""
        if not self.word_by_word:
            return segment_texts(self.backend, texts)
        rows = [split_before_spaces(text) for text in texts]
        new = list(set(chain.from_iterable(rows)).difference(self.words))
        self.words.update(zip(new, segment_texts(self.backend, new), strict=True))
        ids = [list(chain.from_iterable(map(self.words.__getitem__, row))) for row in rows]
        if len(self.words) > self.limit:
            for word in new:
                del self.words[word]
        return ids
