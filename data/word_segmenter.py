r"""Segments texts word by word, so that each distinct word is segmented once.

    segment(text) = segment(w₁) ++ … ++ segment(wₙ)      text = w₁ ++ … ++ wₙ, split before each single space

100,000 reviews contain 23 million words, but only 0.7 million distinct ones. The equation holds for a pipeline whose
pre-tokenizer never joins a space with the character before it, and whose normalizer changes each word by itself. A text
that has other spaces than single ones between words is one word. `segment_texts` is the plain form.
"""

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tokenizers import Tokenizer as Backend

from data.pipelines import WORD, state

CACHED_WORDS = 2**18  # about 60 MiB
IRREGULAR = re.compile(r"\s\s|^\s|\s\Z|[\0▁]")  # "▁" beside a space looks like two spaces to Unigram
# Normalizers that change a character, or a character with its combining marks. The compatibility forms (NFKC) convert
# characters to spaces, which is safe for a pre-tokenizer that drops spaces.
LOCAL = {"NFC", "NFD", "Lowercase", "StripAccents"}
LOCAL_TO_WORDS = LOCAL | {"NFKC", "NFKD", "BertNormalizer"}
REPLACED = {r"\s+", "^ | $", "[’`´]"}
WITHIN_WORDS = {"Split", "Punctuation", "Digits"}  # of the words that the first pre-tokenizer found


def segment_texts(backend: Backend, texts: list[str]) -> list[list[int]]:
    """Returns the ids of each text, without special tokens."""
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def split_before_spaces(text: str) -> list[str]:
    """Splits a text before each space. A text with irregular whitespace is one part."""
    return [text] if IRREGULAR.search(text) else text.replace(" ", "\0 ").split("\0")


def steps(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the steps of a normalizer or a pre-tokenizer in their order. part: its `state`."""
    inner = part.get("normalizers", part.get("pretokenizers"))
    return [part] * bool(part) if inner is None else [step for one in inner for step in steps(one)]


def drops_spaces(step: dict[str, Any]) -> bool:
    """Returns whether a pre-tokenizer splits a text at spaces and leaves each word without them, or marked by "▁"."""
    if step["type"] == "Metaspace":
        return step["prepend_scheme"] == "always" and step["split"]
    if step["type"] == "Split":  # of `wordlevel`
        return step["pattern"] == {"Regex": WORD} and step["behavior"] == "Removed" and step["invert"]
    return step["type"] in ("BertPreTokenizer", "WhitespaceSplit")


def is_local(step: dict[str, Any], kinds: set[str]) -> bool:
    """Returns whether a step of a normalizer is one of `kinds`, or a known replacement within words."""
    replaced = step["type"] == "Replace" and step["pattern"].get("Regex") in REPLACED
    return step["type"] in kinds or (replaced and kinds is LOCAL_TO_WORDS)


def is_word_by_word(backend: Backend) -> bool:
    """Returns whether a pipeline is known to segment each word of a text by itself.

    False for an unknown step, for tokens that match text before it is split, and for random merges (BPE dropout).
    """
    if any(not token.special for token in backend.get_added_tokens_decoder().values()):
        return False
    if not backend.encode_special_tokens and backend.get_added_tokens_decoder():
        return False
    first, *others = steps(state(backend.pre_tokenizer)) or [{"type": ""}]
    byte_level = first["type"] == "ByteLevel" and first["use_regex"]
    if not (byte_level or drops_spaces(first)) or any(step["type"] not in WITHIN_WORDS for step in others):
        return False
    kinds = LOCAL if byte_level else LOCAL_TO_WORDS
    local = all(is_local(step, kinds) for step in steps(state(backend.normalizer)))
    return local and getattr(backend.model, "dropout", None) is None


@dataclass
class WordSegmenter:
    """Converts texts to ids, as `segment_texts` does. words: word -> its ids, at most CACHED_WORDS between calls."""

    backend: Backend
    words: dict[str, list[int]] = field(default_factory=dict)

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
        if len(self.words) > CACHED_WORDS:
            for word in new:
                del self.words[word]
        return ids
