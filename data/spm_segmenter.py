"""Segments texts with a model of SentencePiece as the published tokenizers of DeBERTa-v2 and XLM-RoBERTa do.

    text -> parts between added tokens -> lowercase -> parts at punctuation marks -> SentencePiece, for each part

Source: DebertaV2Tokenizer and XLMRobertaTokenizer of transformers 4, which call the sentencepiece library. Added tokens
are matched as in the `tokenizers` package.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from data.sentencepiece import BYTE, NORMAL, UnigramModel
from data.word_segmenter import WordSegmenter

BYTE_NAMES = Regex(r"<(?=0x[0-9A-F]{2}>)")  # splits "<0x41>" in a text, so that no byte token matches it


def punctuation() -> re.Pattern[str]:
    """Returns an expression for a punctuation mark: ASCII without letters, digits and spaces, and Unicode's P*."""
    ascii_marks = [chr(i) for i in range(33, 127) if not chr(i).isalnum()]
    others = [chr(i) for i in range(127, sys.maxunicode + 1) if unicodedata.category(chr(i)).startswith("P")]
    return re.compile(f"([{''.join(map(re.escape, ascii_marks + others))}])")


def lower(text: str) -> str:
    """Converts each character to lowercase by itself: a Σ at the end of a word becomes σ, as in transformers."""
    return text.replace("Σ", "σ").lower()


def text_backend(model: UnigramModel) -> Backend:
    """Builds the pipeline for normalized text. Only subwords that can match text have their names in it."""
    subwords = [
        # "▁" after the first character is in no word
        (name if kind in (NORMAL, BYTE) else f"{name}▁", score)
        for (name, score), kind in zip(model.subwords, model.types, strict=True)
    ]
    backend = Backend(models.Unigram(subwords, unk_id=model.unk_id, byte_fallback=model.byte_fallback))
    words = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    cut = pre_tokenizers.Split(BYTE_NAMES, "merged_with_previous")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, cut])
    return backend


def added_token_backend(tokens: list[AddedToken], lowercase: bool) -> Backend:
    """Builds a pipeline that finds added tokens. All text between them is one token with the id 0."""
    backend = Backend(models.WordLevel({"": 0}, unk_token=""))
    backend.normalizer = normalizers.Lowercase() if lowercase else None
    backend.add_tokens(
        [
            AddedToken(t.content, single_word=t.single_word, lstrip=t.lstrip, rstrip=t.rstrip, normalized=t.normalized)
            for t in tokens
        ]
    )
    return backend


@dataclass(frozen=True)
class SpmSegmenter:
    """Converts texts to ids. file_name, data: the file of the model.

    added: id -> added token, without the special tokens that have a role. lowercase, split_by_punct: the options
    do_lower_case and split_by_punct of DeBERTa.
    """

    model: UnigramModel
    file_name: str
    data: bytes
    added: dict[int, AddedToken] = field(default_factory=dict)
    lowercase: bool = False
    split_by_punct: bool = False

    @cached_property
    def backend(self) -> Backend:
        return text_backend(self.model)

    @cached_property
    def words(self) -> WordSegmenter:
        return WordSegmenter(self.backend)

    @cached_property
    def finder(self) -> Backend:
        return added_token_backend(list(self.added.values()), self.lowercase)

    @cached_property
    def numbers(self) -> dict[int | None, int]:
        """Returns id in `finder` -> id."""
        return {self.finder.token_to_id(token.content): number for number, token in self.added.items()}

    @cached_property
    def marks(self) -> re.Pattern[str] | None:
        return punctuation() if self.split_by_punct else None

    def __call__(self, texts: list[str]) -> Iterator[list[int]]:
        """Yields the ids of each text."""
        rows = [list(self.split(text)) for text in texts]
        ids = self.segment([part for row in rows for part in row if isinstance(part, str)])
        for row in rows:
            yield [number for part in row for number in (next(ids) if isinstance(part, str) else [part])]

    def split(self, text: str) -> Iterator[str | int]:
        """Yields the parts of a text that are segmented separately, and the ids of added tokens."""
        for part in self.find_added(text) if self.added else [text]:
            if isinstance(part, int):
                yield part
                continue
            part = lower(part) if self.lowercase else part
            yield from filter(None, self.marks.split(part)) if self.marks else [part]

    def find_added(self, text: str) -> Iterator[str | int]:
        """Yields the ids of the added tokens in a text, and the text between them."""
        encoding = self.finder.encode(text, add_special_tokens=False)
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield self.numbers[i] if i else text[start:end]

    def segment(self, parts: list[str]) -> Iterator[list[int]]:
        """Yields the ids of each part, as SentencePiece does for a text."""
        normalized = [self.model.normalize(part) for part in parts]
        for text, ids in zip(normalized, self.words(normalized), strict=True):
            yield self.model.repair(text, ids)
