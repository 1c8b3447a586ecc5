"""SentencePiece's Unigram models (Kudo & Richardson 2018, arXiv 1808.06226), with SentencePiece's exact segmentation.

    x* = argmax over segmentations x of Σ log p(xᵢ)              Kudo 2018, arXiv 1804.10959, Eq. (2)

spm.model is a protobuf message (sentencepiece_model.proto). Field 1 repeats the subwords {1 text, 2 float32 score,
3 type}, field 2 is the trainer {3 model type, 35 byte fallback}, field 3 the normalizer {2 precompiled character map}.

Segmentation: the character map normalizes the text, runs of spaces become one space, and "▁" is put before each word.
Viterbi search in float32 finds the best segmentation. Of two segmentations with equal scores, the first one found wins;
it has the longer last subword. Characters that are in no subword become bytes.

The `tokenizers` package does the same in float64, in Rust. No subword contains a "▁" after its first character, so the
context of a word affects its segmentation by rounding errors only. The results can therefore differ only for words with
two segmentations of practically equal score: words that repeat themselves ("HOTTTTTT"). This file segments those words
again in float32.

Differs from SentencePiece: nothing (tests/test_tokenization.py, tests/golden/compare.py).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6  # types of subwords; 3 (control) and 5 (unused) match no text
UNIGRAM = 1  # model type
REPEATS = re.compile(r"(\S{1,6}?)\1\1")  # a unit three times in a row: a condition for tied segmentations
BEYOND_ASCII = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")  # with the ASCII letter that a combining mark would change
UNKNOWN_PENALTY = 10.0  # score of an unknown character: the lowest score of a subword minus this
FIXED_SIZES = {1: 8, 5: 4}  # protobuf wire type -> bytes
CACHED_STRINGS = 100_000  # of CharacterMap
ZERO = np.float32(0)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a protobuf varint: (value, position after it). Raises IndexError if the data ends in it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def read_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (field number, value) of a protobuf message: varints as int, other values as bytes.

    Raises ValueError if the message is cut short.
    """
    position = 0
    value: int | bytes
    try:
        while position < len(data):
            tag, position = read_varint(data, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == 0:
                value, position = read_varint(data, position)
            else:
                size, position = read_varint(data, position) if wire_type == 2 else (FIXED_SIZES[wire_type], position)
                if position + size > len(data):
                    raise IndexError
                value = data[position : position + size]
                position += size
            yield number, value
    except (IndexError, KeyError):
        raise ValueError("the file is cut short or not a SentencePiece model") from None


class CharacterMap:
    """Replaces the longest known byte sequence at each position by its normal form (nmt_nfkc and others).

    blob: u32 size of the trie in bytes, the trie (a darts-clone double array of u32), NUL-terminated replacements.
    A unit of the trie: bits 0-7 and 31 label, bit 8 a key ends here, bits 10-30 offset, shifted by 8 if bit 9 is set.
    """

    def __init__(self, blob: bytes) -> None:
        size = struct.unpack_from("<I", blob)[0] if blob else 0
        self.units = np.frombuffer(blob, dtype="<u4", count=size // 4, offset=4).tolist() if blob else []
        self.replacements = blob[4 + size :]
        self.cache: dict[str, str] = {}
        ascii_rules = {code: self.normalize(chr(code)) for code in range(128)}
        self.ascii = {code: text for code, text in ascii_rules.items() if text != chr(code)}

    def longest_match(self, data: bytes, start: int) -> tuple[int, str]:
        """Finds the longest key at data[start:]: (its length in bytes, its replacement), or (0, "") without a key."""
        node, length, value = 0, 0, 0
        unit = self.units[0]
        node ^= (unit >> 10) << ((unit & 512) >> 6)
        for end in range(start, len(data)):
            node ^= data[end]
            unit = self.units[node]
            if unit & 0x800000FF != data[end]:
                break
            node ^= (unit >> 10) << ((unit & 512) >> 6)
            if unit & 256:  # a key ends here
                length, value = end + 1 - start, self.units[node] & 0x7FFFFFFF
        if not length:
            return 0, ""
        return length, self.replacements[value : self.replacements.index(0, value)].decode()

    def normalize(self, text: str) -> str:
        """Replaces keys from left to right, without the cache. A character outside all keys stays as it is."""
        if not self.units:
            return text
        data, out, position = text.encode(), [], 0
        while position < len(data):
            length, replacement = self.longest_match(data, position)
            if not length:
                first = data[position]
                length = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4  # of a UTF-8 character
                replacement = data[position : position + length].decode()
            out.append(replacement)
            position += length
        return "".join(out)

    def cached(self, match: re.Match) -> str:
        """Returns the normal form of a match, computed once for each string."""
        text = match[0]
        if text not in self.cache:
            if len(self.cache) > CACHED_STRINGS:
                self.cache.clear()
            self.cache[text] = self.normalize(text)
        return self.cache[text]

    def __call__(self, text: str) -> str:
        """Returns the normal form of a text.

        An ASCII character costs one table lookup. Only other characters, and an ASCII letter before one, are searched
        in the trie.
        """
        if not text.isascii():
            text = BEYOND_ASCII.sub(self.cached, text)
        return text.translate(self.ascii)


@dataclass
class UnigramModel:
    """A vocabulary of subwords with scores, and SentencePiece's segmentation.

    subwords: (subword, log p) in the order of ids. types: NORMAL, UNKNOWN, … of each. charsmap: see CharacterMap.
    """

    subwords: list[tuple[str, float]]
    types: list[int]
    charsmap: bytes
    characters: CharacterMap = field(init=False, repr=False)
    subword_to_id: dict[str, int] = field(init=False, repr=False)  # only subwords that can match text
    longest: int = field(init=False)  # characters of the longest subword
    byte_ids: dict[int, int] = field(init=False, repr=False)  # byte -> token id
    unk_id: int = field(init=False)
    scores: np.ndarray = field(init=False, repr=False)  # float32 [V], what a token adds to the score of its path
    unknown_score: np.float32 = field(init=False)
    starts_word: np.ndarray = field(init=False, repr=False)  # bool [V]

    def __post_init__(self) -> None:
        self.characters = CharacterMap(self.charsmap)
        names = [subword for subword, _ in self.subwords]
        self.subword_to_id = {names[i]: i for i, kind in enumerate(self.types) if kind in (NORMAL, USER_DEFINED)}
        self.longest = max(map(len, self.subword_to_id))
        self.byte_ids = {int(name[3:5], 16): i for i, name in enumerate(names) if self.types[i] == BYTE}
        self.unk_id = self.types.index(UNKNOWN)
        self.scores = np.array([score for _, score in self.subwords], np.float32)
        self.unknown_score = self.scores[list(self.subword_to_id.values())].min() - np.float32(UNKNOWN_PENALTY)
        for byte, i in self.byte_ids.items():  # the first byte of a character has the score, its other bytes have 0
            self.scores[i] = 0 if 0x80 <= byte < 0xC0 else self.unknown_score
        self.starts_word = np.array([name.startswith("▁") for name in names])

    @classmethod
    def parse(cls, data: bytes) -> "UnigramModel":
        """Reads the bytes of an spm.model. Raises ValueError if it is not a Unigram model with byte fallback."""
        subwords: list[tuple[str, float]] = []
        types: list[int] = []
        charsmap, trainer = b"", {}
        for number, value in read_fields(data):
            if number == 1:
                subword = dict(read_fields(value))
                subwords.append((subword[1].decode(), struct.unpack("<f", subword.get(2, bytes(4)))[0]))
                types.append(subword.get(3, NORMAL))
            elif number == 2:
                trainer = dict(read_fields(value))
            elif number == 3:
                charsmap = dict(read_fields(value)).get(2, b"")
        if trainer.get(3, UNIGRAM) != UNIGRAM or not trainer.get(35, 0):
            raise ValueError("it is not a Unigram model with byte fallback")
        if UNKNOWN not in types or NORMAL not in types:
            raise ValueError("it has no subwords")
        return cls(subwords, types, charsmap=charsmap)

    def normalize(self, text: str) -> str:
        """Applies the character map and joins the words with single spaces."""
        return " ".join(word for word in self.characters(text).split(" ") if word)

    def repair(self, normalized: str, ids: list[int]) -> list[int]:
        """Corrects the float64 segmentation `ids` of a normalized text to SentencePiece's float32 segmentation."""
        if not REPEATS.search(normalized):
            return ids
        array, words = np.asarray(ids), normalized.split(" ")
        word_starts = np.append(np.flatnonzero(self.starts_word[array]), len(ids))
        assert len(word_starts) == len(words) + 1
        out, score, done = [], ZERO, 0
        for number, word in enumerate(words):
            if not REPEATS.search(word):
                continue
            before = array[done : word_starts[number]]
            score = self.add_scores(score, before)
            best = self.viterbi("▁" + word, score)
            score = self.add_scores(score, best)
            out += [*before.tolist(), *best]
            done = word_starts[number + 1]
        return out + array[done:].tolist()

    def add_scores(self, score: np.float32, ids: np.ndarray | list[int]) -> np.float32:
        """Adds the scores of `ids` one at a time, each sum rounded to float32 as in SentencePiece."""
        return np.cumsum(np.append(score, self.scores[ids]), dtype=np.float32)[-1]

    def viterbi(self, text: str, start: np.float32 = ZERO) -> list[int]:
        """Computes Eq. (2) for one word. start: the score of the path before it.

        Every sum is rounded to float32. Of paths with equal scores, the first one found wins.
        """
        # for each end position: (best score, start position of the last token, its id)
        best: list[Any] = [(start, -1, 0)] + [None] * len(text)
        for begin in range(len(text)):
            here, single = best[begin][0], False
            for end in range(begin + 1, min(len(text), begin + self.longest) + 1):
                number = self.subword_to_id.get(text[begin:end])
                if number is not None:
                    single |= end == begin + 1
                    candidate = here + self.scores[number]
                    if best[end] is None or candidate > best[end][0]:
                        best[end] = (candidate, begin, number)
            if not single and (best[begin + 1] is None or here + self.unknown_score > best[begin + 1][0]):
                best[begin + 1] = (here + self.unknown_score, begin, self.unk_id)
        return self.trace_back(text, [token[1:] for token in best])

    def trace_back(self, text: str, last_tokens: list[tuple[int, int]]) -> list[int]:
        """Returns the ids of the best path. last_tokens: (start position, id) for each end position. An unknown
        character becomes its UTF-8 bytes."""
        path, end = [], len(text)
        while end:
            begin, number = last_tokens[end]
            unknown = number == self.unk_id
            path.append([self.byte_ids[byte] for byte in text[begin:end].encode()] if unknown else [number])
            end = begin
        return [number for ids in reversed(path) for number in ids]
