"""SentencePiece's Unigram models (Kudo & Richardson 2018, arXiv 1808.06226), read and applied exactly.

    x* = argmax over segmentations x of Σ log p(xᵢ)              Kudo 2018, arXiv 1804.10959, Eq. (2)

spm.model is a protobuf message (sentencepiece_model.proto): field 1 the pieces {1 text, 2 float32 score, 3 type},
field 3 the normaliser {2 precompiled character map}. Text is normalised by the character map, runs of spaces become
one, words get a "▁" in front, and the best segmentation is found by Viterbi in float32, ties going to the longer
earlier piece that was seen first. Characters that no piece covers become bytes.

The `tokenizers` package does the same in float64, in Rust. No piece crosses a "▁", so a word's segmentation depends on
what stands before it through rounding alone: it can differ only where two segmentations are as good as equal, which is
where a word repeats itself ("HOTTTTTT"). Those words, and only those, are segmented here.

Differs from SentencePiece: nothing (tests/test_tokenization.py, tests/golden/compare.py).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6  # types of pieces that matter here; 3 control, 5 unused
REPEATS = re.compile(r"(\S{1,6}?)\1\1")  # a unit three times: only there can two segmentations tie
BEYOND_ASCII = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")  # with the letter that a combining mark would change
UNKNOWN_PENALTY = 10.0  # an unknown character scores the lowest piece's score less this


def fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) of a protobuf message: varints as int, the rest as bytes. Raises ValueError if cut
    short."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    try:
        while place < len(data):
            tag = varint()
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                yield number, varint()
                continue
            size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
            if place + size > len(data):
                raise IndexError
            yield number, data[place : place + size]
            place += size
    except (IndexError, KeyError):
        raise ValueError("the file is cut short or no SentencePiece model") from None


class CharacterMap:
    """Replaces the longest known byte sequence at each place by its normal form (nmt_nfkc and the like).

    blob: u32 size of the trie, the trie (a darts-clone double array of u32), then NUL-terminated replacements.
    """

    def __init__(self, blob: bytes) -> None:
        size = struct.unpack_from("<I", blob)[0] if blob else 0
        self.units = np.frombuffer(blob, "<u4", size // 4, 4).tolist() if blob else []
        self.replacements = blob[4 + size :]
        self.known: dict[str, str] = {}
        ascii_rules = {code: self.walk(chr(code)) for code in range(128)}
        self.ascii = {code: text for code, text in ascii_rules.items() if text != chr(code)}

    def longest(self, data: bytes, start: int) -> tuple[int, str]:
        """(bytes matched, replacement) of the longest key at data[start:]; (0, "") where none begins there."""
        place, best, value = 0, 0, 0
        unit = self.units[0]
        place ^= (unit >> 10) << ((unit & 512) >> 6)
        for end in range(start, len(data)):
            place ^= data[end]
            unit = self.units[place]
            if unit & 0x800000FF != data[end]:
                break
            place ^= (unit >> 10) << ((unit & 512) >> 6)
            if unit & 256:  # a key ends here
                best, value = end + 1 - start, self.units[place] & 0x7FFFFFFF
        if not best:
            return 0, ""
        return best, self.replacements[value : self.replacements.index(0, value)].decode()

    def walk(self, text: str) -> str:
        if not self.units:
            return text
        data, out, place = text.encode(), [], 0
        while place < len(data):
            matched, replacement = self.longest(data, place)
            if matched:
                out.append(replacement)
                place += matched
            else:
                width = 1 if data[place] < 0x80 else 2 if data[place] < 0xE0 else 3 if data[place] < 0xF0 else 4
                out.append(data[place : place + width].decode())
                place += width
        return "".join(out)

    def remembered(self, match: re.Match) -> str:
        text = match[0]
        if text not in self.known:
            if len(self.known) > 100_000:
                self.known.clear()
            self.known[text] = self.walk(text)
        return self.known[text]

    def __call__(self, text: str) -> str:
        """Normal form. ASCII takes one table lookup; only other characters, and a letter before one, walk the trie."""
        if not text.isascii():
            text = BEYOND_ASCII.sub(self.remembered, text)
        return text.translate(self.ascii)


@dataclass
class UnigramModel:
    """Pieces with their scores, and the two tables that exact segmentation needs."""

    pieces: list[tuple[str, float]]
    types: list[int]
    charsmap: bytes
    normal: dict[str, int] = field(init=False)  # pieces that text can match -> id
    scores: np.ndarray = field(init=False)  # float32, what a token adds to its path
    starts: np.ndarray = field(init=False)  # bool, whether a token begins a word

    def __post_init__(self) -> None:
        self.characters = CharacterMap(self.charsmap)
        names = [piece for piece, _ in self.pieces]
        self.normal = {names[i]: i for i, kind in enumerate(self.types) if kind in (NORMAL, USER_DEFINED)}
        self.longest = max(map(len, self.normal))
        self.bytes = {int(name[3:5], 16): i for i, name in enumerate(names) if self.types[i] == BYTE}
        self.unknown = next(i for i, kind in enumerate(self.types) if kind == UNKNOWN)
        self.scores = np.array([score for _, score in self.pieces], np.float32)
        self.unknown_score = self.scores[list(self.normal.values())].min() - np.float32(UNKNOWN_PENALTY)
        for byte, i in self.bytes.items():  # a character is one unknown, however many bytes it has
            self.scores[i] = 0 if 0x80 <= byte < 0xC0 else self.unknown_score
        self.starts = np.array([name.startswith("▁") for name in names])

    @classmethod
    def parse(cls, data: bytes) -> "UnigramModel":
        """Raises ValueError for anything but a Unigram model with byte fallback."""
        pieces, types, charsmap, trainer = [], [], b"", {}
        for number, value in fields(data):
            if number == 1:
                piece = dict(fields(value))
                pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
                types.append(piece.get(3, NORMAL))
            elif number == 2:
                trainer = dict(fields(value))
            elif number == 3:
                charsmap = dict(fields(value)).get(2, b"")
        if trainer.get(3, 1) != 1 or not trainer.get(35, 0):
            raise ValueError("it is not a Unigram model with byte fallback")
        if UNKNOWN not in types or NORMAL not in types:
            raise ValueError("it has no pieces")
        return cls(pieces, types, charsmap)

    def normalize(self, text: str) -> str:
        """Words with one space between them."""
        return " ".join(word for word in self.characters(text).split(" ") if word)

    def repair(self, normalized: str, ids: list[int]) -> list[int]:
        """The float32 segmentation, given `ids`, the float64 one, of a normalized text."""
        if not REPEATS.search(normalized):
            return ids
        array, words = np.asarray(ids), normalized.split(" ")
        begins = np.append(np.flatnonzero(self.starts[array]), len(ids))
        assert len(begins) == len(words) + 1
        out, score, done = [], np.float32(0), 0
        for number, word in enumerate(words):
            if not REPEATS.search(word):
                continue
            before = array[done : begins[number]]
            out += before.tolist()
            # the sum of all scores so far, each step rounded to float32 as SentencePiece has it
            score = np.cumsum(np.append(score, self.scores[before]), dtype=np.float32)[-1]
            best = self.viterbi("▁" + word, score)
            out += best
            score = np.cumsum(np.append(score, self.scores[best]), dtype=np.float32)[-1]
            done = begins[number + 1]
        return out + array[done:].tolist()

    def viterbi(self, text: str, start: np.float32 = np.float32(0)) -> list[int]:  # noqa: B008
        """Eq. (2) for one word after a path that scored `start`; every sum rounded to float32, the first of equals
        wins."""
        best: list[tuple[np.float32, int, int] | None] = [(start, -1, 0)] + [None] * len(text)  # score, from, id
        for begin in range(len(text)):
            here, single = best[begin][0], False
            for end in range(begin + 1, min(len(text), begin + self.longest) + 1):
                number = self.normal.get(text[begin:end])
                if number is not None:
                    single |= end == begin + 1
                    candidate = here + self.scores[number]
                    if best[end] is None or candidate > best[end][0]:
                        best[end] = (candidate, begin, number)
            if not single and (best[begin + 1] is None or here + self.unknown_score > best[begin + 1][0]):
                best[begin + 1] = (here + self.unknown_score, begin, self.unknown)
        path, place = [], len(text)
        while place:
            _, begin, number = best[place]
            character = text[begin:place].encode()
            path.append([number] if number != self.unknown else [self.bytes[byte] for byte in character])
            place = begin
        return [number for part in reversed(path) for number in part]
