"""SentencePiece's Unigram models (Kudo & Richardson 2018, arXiv 1808.06226), with SentencePiece's exact segmentation.

    x* = argmax over segmentations x of Σ log p(xᵢ)              Kudo 2018, arXiv 1804.10959, §3.2

spm.model is a protobuf message (sentencepiece_model.proto). Field 1 repeats the subwords {1 text, 2 float32 score,
3 type}, field 2 is the trainer {3 model type, 35 byte fallback}, field 3 the normalizer {2 precompiled character map}.

Segmentation: the character map normalizes the text, runs of spaces become one space, and "▁" is put before each word.
Viterbi search in float32 finds the best segmentation. Of two segmentations with equal scores, the first one found wins;
it has the longer last subword. Characters that are in no subword become bytes; in a model without byte fallback, a run
of them becomes one unknown token. A user-defined subword is never normalized or split.

The `tokenizers` package does the same in float64, in Rust. No subword contains a "▁" after its first character, so the
context of a word affects its segmentation by rounding errors only. The results can therefore differ only for words with
two segmentations whose scores differ by less than these errors, mostly words that repeat themselves ("HOTTTTTT"). This
file segments those words again in float32, and whole texts that contain a user-defined subword or the character "▁".

Differs from SentencePiece: models that it segments otherwise (BPE, whitespace that is kept or that ends a word) are
refused (tests/test_tokenizer_golden.py, tests/golden/compare.py).
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.checked import show

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of subwords; 3 and 5 (unused) match no text
MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
# field of the normalizer -> (its name, the only value that is supported, which is also the default)
NORMALIZER_FLAGS = {3: ("add_dummy_prefix", 1), 4: ("remove_extra_whitespaces", 1), 5: ("escape_whitespaces", 1)}
TRAINER_FLAGS = {24: ("treat_whitespace_as_suffix", 0)}
BEYOND_ASCII = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")  # with the ASCII letter that a combining mark would change
UNKNOWN_PENALTY = 10.0  # score of an unknown character: the lowest score of a subword minus this
FIXED_SIZES = {1: 8, 5: 4}  # protobuf wire type -> bytes
LONGEST_SUBWORD = 128  # characters; SentencePiece's default is 16
BYTE_NAMES = {f"<0x{byte:02X}>" for byte in range(256)}
CACHED_STRINGS = 100_000  # of CharacterMap
CACHED_WORDS = 1_000_000  # of UnigramModel
ZERO = np.float32(0)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a protobuf varint: (value, position after it). Raises IndexError if the data ends in it or it is longer
    than 64 bits."""
    value = shift = 0
    while True:
        byte = data[position]
        if shift > 63:
            raise IndexError
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
        size = int.from_bytes(blob[:4], "little")
        if blob and (size % 4 or not 4 <= size <= len(blob) - 4):
            raise ValueError("its character map is cut short")
        self.units = np.frombuffer(blob, dtype="<u4", count=size // 4, offset=4).tolist() if blob else []
        self.replacements = blob[4 + size :]
        self.cache: dict[str, str] = {}
        ascii_rules = {code: self.normalize(chr(code)) for code in range(128)}
        self.ascii = {code: text for code, text in ascii_rules.items() if text != chr(code)}

    def longest_match(self, data: bytes, start: int) -> tuple[int, str]:
        """Finds the longest key at data[start:]: (its length in bytes, its replacement), or (0, "") without a key.

        Raises ValueError if the map is damaged.
        """
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
        """Replaces keys from left to right, without the cache. A character outside all keys stays as it is.

        Raises ValueError if the map is damaged.
        """
        if not self.units:
            return text
        data, out, position = text.encode(), [], 0
        while position < len(data):
            try:
                length, replacement = self.longest_match(data, position)
            except (IndexError, ValueError) as error:
                raise ValueError(f"its character map is damaged ({error})") from error
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


def merge_runs(ids: list[int], number: int) -> list[int]:
    """Replaces each run of `number` by a single one."""
    return [i for i, before in zip(ids, [None, *ids], strict=False) if i != number or before != number]


def check_flags(message: dict[int, Any], flags: dict[int, tuple[str, int]]) -> None:
    """Raises ValueError for a flag of the normalizer or the trainer with an unsupported value."""
    for number, (name, supported) in flags.items():
        if message.get(number, supported) != supported:
            raise ValueError(f"{name} = {message[number]} is not supported, only {supported}")


def read_subword(data: bytes) -> tuple[str, float, int]:
    """Reads (subword, log p, type) from a message of field 1. Raises ValueError for fields of another form."""
    fields = dict(read_fields(data))
    name, score, kind = fields.get(1), fields.get(2, bytes(4)), fields.get(3, NORMAL)
    if not isinstance(name, bytes) or not isinstance(score, bytes) or len(score) != 4 or kind not in range(1, 7):
        raise ValueError("the file is cut short or not a SentencePiece model")
    return name.decode(), struct.unpack("<f", score)[0], kind


def check_subwords(subwords: list[tuple[str, float]], types: list[int], byte_fallback: bool) -> None:
    """Raises ValueError for a vocabulary that SentencePiece would not write.

    It has one unknown token, and all 256 bytes with byte fallback. A subword is not empty, not too long and listed
    once, and its score is finite.
    """
    if types.count(UNKNOWN) != 1:
        raise ValueError(f"it has {types.count(UNKNOWN)} unknown tokens, not one")
    matching = [name for (name, _), kind in zip(subwords, types, strict=True) if kind in (NORMAL, USER_DEFINED)]
    if wrong := [name for name in matching if not 0 < len(name) <= LONGEST_SUBWORD]:
        raise ValueError(
            f"its subword '{show(wrong[0], 40)}' has {len(wrong[0]):,} characters, not 1 to {LONGEST_SUBWORD}"
        )
    if twice := [name for name, count in Counter(matching).items() if count > 1]:
        raise ValueError(f"its subword '{show(twice[0])}' is listed twice")
    if wrong := [name for name, score in subwords if not math.isfinite(score)]:
        raise ValueError(f"the score of its subword '{show(wrong[0])}' is not a finite number")
    found = {name for (name, _), kind in zip(subwords, types, strict=True) if kind == BYTE}
    if found - BYTE_NAMES or (byte_fallback and found != BYTE_NAMES):
        raise ValueError(
            f"it has {len(found & BYTE_NAMES)} of the 256 subwords for bytes, and {len(found - BYTE_NAMES)} others"
        )


@dataclass
class UnigramModel:
    """A vocabulary of subwords with scores, and SentencePiece's segmentation.

    subwords: (subword, log p) in the order of ids. types: NORMAL, UNKNOWN, … of each. charsmap: see CharacterMap.
    byte_fallback: encode unknown characters as bytes.
    """

    subwords: list[tuple[str, float]]
    types: list[int]
    charsmap: bytes
    byte_fallback: bool = True
    characters: CharacterMap = field(init=False, repr=False)
    subword_to_id: dict[str, int] = field(init=False, repr=False)  # only subwords that can match text
    longest: int = field(init=False)  # characters of the longest subword
    byte_ids: dict[int, int] = field(init=False, repr=False)  # byte -> token id
    unk_id: int = field(init=False)
    scores: np.ndarray = field(init=False, repr=False)  # float32 [V], what a token adds to the score of its path
    float_scores: dict[str, float] = field(init=False, repr=False)  # of the subwords that can match text
    unknown_score: np.float32 = field(init=False)
    starts_word: np.ndarray = field(init=False, repr=False)  # bool [V]
    user_defined: re.Pattern[str] | None = field(init=False, repr=False)  # the longest one at each position
    margins: dict[str, float] = field(init=False, repr=False, compare=False)  # word -> its `margin`

    def __post_init__(self) -> None:
        self.characters = CharacterMap(self.charsmap)
        names = [subword for subword, _ in self.subwords]
        self.subword_to_id = {names[i]: i for i, kind in enumerate(self.types) if kind in (NORMAL, USER_DEFINED)}
        self.longest = max(map(len, self.subword_to_id))
        self.byte_ids = {int(name[3:5], 16): i for i, name in enumerate(names) if self.types[i] == BYTE}
        self.unk_id = self.types.index(UNKNOWN)
        self.set_scores()
        self.starts_word = np.array([name.startswith("▁") for name in names])
        found = sorted((n for n, kind in zip(names, self.types, strict=True) if kind == USER_DEFINED), key=len)
        self.user_defined = re.compile(f"({'|'.join(map(re.escape, reversed(found)))})") if found else None
        self.margins = {}

    def set_scores(self) -> None:
        """Sets `unknown_score` and `scores`, with SentencePiece's scores of unknown characters and user-defined
        subwords."""
        self.scores = np.array([score for _, score in self.subwords], np.float32)
        normal = self.scores[[kind == NORMAL for kind in self.types]]
        self.unknown_score = normal.min() - np.float32(UNKNOWN_PENALTY)
        for i, kind in enumerate(self.types):
            if kind == USER_DEFINED:  # a positive score, so that it is in every best path (SentencePiece 0.2.3)
                self.scores[i] = len(self.subwords[i][0].encode()) * 0.1 - 0.1
        self.scores[self.unk_id] = self.unknown_score
        self.float_scores = {name: float(self.scores[i]) for name, i in self.subword_to_id.items()}
        for byte, i in self.byte_ids.items():  # the first byte of a character has the score, its other bytes have 0
            self.scores[i] = 0 if 0x80 <= byte < 0xC0 else self.unknown_score

    @classmethod
    def parse(cls, data: bytes) -> "UnigramModel":
        """Reads the bytes of a model file. Raises ValueError if it is not a Unigram model or has another setting that
        is not supported."""
        subwords: list[tuple[str, float]] = []
        types: list[int] = []
        normalizer: dict[int, Any] = {}
        trainer: dict[int, Any] = {}
        for number, value in read_fields(data):
            if number == 1:
                name, score, kind = read_subword(value)
                subwords.append((name, score))
                types.append(kind)
            elif number == 2:
                trainer |= dict(read_fields(value))
            elif number == 3:
                normalizer |= dict(read_fields(value))  # a second message of a field changes the first
        if trainer.get(3, 1) != 1:
            raise ValueError(f"it is a {MODEL_TYPES.get(trainer[3], trainer[3])} model, not a Unigram model")
        check_flags(normalizer, NORMALIZER_FLAGS)
        check_flags(trainer, TRAINER_FLAGS)
        if UNKNOWN not in types or NORMAL not in types:
            raise ValueError("it has no subwords")
        across = [name for (name, _), kind in zip(subwords, types, strict=True) if kind == NORMAL and "▁" in name[1:]]
        if across:
            raise ValueError(f"its subword '{show(across[0])}' extends over more than one word, which is not supported")
        fallback = bool(trainer.get(35, 0))
        check_subwords(subwords, types, fallback)
        return cls(subwords, types, charsmap=normalizer.get(2, b""), byte_fallback=fallback)

    def with_fairseq_ids(self) -> "UnigramModel":
        """Returns a copy with the ids of XLM-RoBERTa: <s>, <pad>, </s>, <unk>, all others + 1, and <mask> at the end.

        Raises ValueError unless the model begins with <unk>, <s>, </s>.
        """
        start = [name for name, _ in self.subwords[:3]]
        if start != ["<unk>", "<s>", "</s>"]:
            raise ValueError(f"it begins with {show(', '.join(start))}, a model of XLM-RoBERTa with <unk>, <s>, </s>")
        special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        subwords = [*special, *self.subwords[3:], ("<mask>", 0.0)]
        types = [CONTROL, CONTROL, CONTROL, UNKNOWN, *self.types[3:], CONTROL]
        return UnigramModel(subwords, types, charsmap=self.charsmap, byte_fallback=self.byte_fallback)

    def normalize(self, text: str) -> str:
        """Applies the character map, except to user-defined subwords, and joins the words with single spaces."""
        if self.user_defined is None:
            text = self.characters(text)
        else:
            parts = self.user_defined.split(text)
            text = "".join(part if i % 2 else self.characters(part) for i, part in enumerate(parts))
        return " ".join(word for word in text.split(" ") if word)

    def repair(self, normalized: str, ids: list[int]) -> list[int]:
        """Corrects the float64 segmentation `ids` of a normalized text to SentencePiece's float32 segmentation."""
        whole = "▁" + normalized.replace(" ", "▁")
        if "▁" in normalized or (self.user_defined is not None and self.user_defined.search(whole)):
            return self.viterbi(whole.rstrip("▁"))  # SentencePiece removes spaces at the end, which it writes as "▁"
        words = normalized.split(" ")
        doubtful = self.doubtful_words(words, ids)
        ids = self.segment_again(words, ids, doubtful) if doubtful else ids
        return ids if self.byte_fallback else merge_runs(ids, self.unk_id)

    def doubtful_words(self, words: list[str], ids: list[int]) -> list[int]:
        """Returns the positions of the words whose segmentation can differ by rounding errors.

        A sum of scores has an error of at most half a unit in the last place for each of its terms. A word of n
        characters has at most n + 1 subwords in each of two segmentations.
        """
        unit = float(np.spacing(np.abs(self.scores[ids]).sum(dtype=np.float32)))
        margins, out = self.margins, []
        for position, word in enumerate(words):
            margin = margins.get(word)
            if margin is None:
                if len(margins) > CACHED_WORDS:
                    margins.clear()
                margin = margins[word] = self.margin("▁" + word)
            if margin <= (len(word) + 1) * unit:
                out.append(position)
        return out

    def margin(self, text: str) -> float:
        """Returns the difference of the scores of the two best segmentations of a word, inf if it has only one.

        It is -1 if the word has a character that is unknown to a model without byte fallback.
        """
        # for each end position: scores of the best and of the second best path
        best, second = [-np.inf] * (len(text) + 1), [-np.inf] * (len(text) + 1)
        best[0] = 0.0
        scores, unknown = self.float_scores, float(self.unknown_score)
        for begin in range(len(text)):
            single = False
            for end in range(begin + 1, min(len(text), begin + self.longest) + 1):
                score = scores.get(text[begin:end])
                if score is None:
                    if end > begin + 1 or single:
                        continue
                    if not self.byte_fallback:
                        return -1.0
                    score = unknown
                for path in (best[begin] + score, second[begin] + score):
                    if path > best[end]:
                        best[end], second[end] = path, best[end]
                    elif path > second[end]:
                        second[end] = path
        return best[-1] - second[-1]

    def segment_again(self, words: list[str], ids: list[int], positions: list[int]) -> list[int]:
        """Segments the words at some positions again, each with the score of the path before it."""
        array = np.asarray(ids)
        word_starts = np.append(np.flatnonzero(self.starts_word[array]), len(ids))
        if len(word_starts) != len(words) + 1:  # "▁" itself is unknown to the model
            return self.viterbi("▁" + "▁".join(words))
        out, score, done = [], ZERO, 0
        for number in positions:
            before = array[done : word_starts[number]]
            score = np.cumsum(np.append(score, self.scores[before]), dtype=np.float32)[-1]  # one at a time, in float32
            best, score = self.best_path("▁" + words[number], score)
            out += [*before.tolist(), *best]
            done = word_starts[number + 1]
        return out + array[done:].tolist()

    def viterbi(self, text: str) -> list[int]:
        """Computes x* for one or more words. Returns the ids."""
        return self.best_path(text)[0]

    def best_path(self, text: str, start: np.float32 = ZERO) -> tuple[list[int], np.float32]:
        """Computes x* for one or more words: (ids, score). start: the score of the path before them.

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
        return self.trace_back(text, [token[1:] for token in best]), best[-1][0]

    def trace_back(self, text: str, last_tokens: list[tuple[int, int]]) -> list[int]:
        """Returns the ids of the best path. last_tokens: (start position, id) for each end position. An unknown
        character becomes its UTF-8 bytes, or a run of them one unknown token."""
        path, end = [], len(text)
        while end:
            begin, number = last_tokens[end]
            as_bytes = number == self.unk_id and self.byte_fallback
            path.append([self.byte_ids[byte] for byte in text[begin:end].encode()] if as_bytes else [number])
            end = begin
        ids = [number for ids in reversed(path) for number in ids]
        return ids if self.byte_fallback else merge_runs(ids, self.unk_id)
