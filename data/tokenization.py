"""Tokenizers: published files in, token ids out; subwords for the encoders, words for the classical networks.

Reads spm.model (Unigram, SentencePiece: DeBERTa), tokenizer.json, vocab.txt (WordPiece: BERT, DistilBERT) and
vocab.json with merges.txt (byte-level BPE: RoBERTa); trains each kind on a corpus where no published one is used.
WordPiece, BPE and nearly all of Unigram are cut by the `tokenizers` package; what it cuts unlike SentencePiece is put
right by data/sentencepiece.py.

WordPiece: Wu et al. 2016, arXiv 1609.08144, §4.1.  BPE: Sennrich et al. 2016, arXiv 1508.07909.  Unigram: Kudo 2018,
arXiv 1804.10959, §3.2.
Differs from the published code: text that spells a special token ("[SEP]", "<0x41>") is text, never that token.
"""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

from data.pipelines import (
    SPECIAL,
    SPECIAL_BPE,
    SPECIAL_WORDS,
    bpe,
    special_tokens,
    unigram,
    without_normalizer,
    wordlevel,
    wordpiece,
)
from data.sentencepiece import UnigramModel
from nn.files import read_json, replacing, write_json, write_text
from nn.hub import find_pretrained

BATCH = 1_000  # reviews handed to the parallel encoder at a time
TRUNCATE = ("head", "tail", "head+tail", "chunks")
HEAD_TOKENS = 128  # of head+tail: Sun et al. 2019, arXiv 1905.05583, §5.3.1
SURROGATES = re.compile("[\ud800-\udfff]")


def cut(ids: list[int], room: int, truncate: str) -> list[int]:
    """At most `room` ids: the first, the last, or the first 128 (a quarter, if that is less) and the last."""
    if len(ids) <= room:
        return ids
    if truncate == "head":
        return ids[:room]
    first = min(HEAD_TOKENS, room // 4) if truncate == "head+tail" else 0
    return ids[:first] + ids[len(ids) - (room - first) :]


def parts(ids: list[int], room: int, truncate: str) -> list[list[int]]:
    """The one part of `ids` that is kept, or, for `chunks`, all of it in parts of at most `room`, alike in length."""
    if truncate != "chunks":
        return [cut(ids, room, truncate)]
    count = max(1, -(-len(ids) // room))
    ends = [len(ids) * number // count for number in range(count + 1)]
    return [ids[start:end] for start, end in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Tokenizer:
    """Text -> [CLS] pieces [SEP], or words alone.

    backend: what is saved. kind: wordpiece, unigram, bpe or wordlevel (words). lowercase matters to wordpiece alone.
    spm: the published model, where there is one, with the bytes of its file; its segmentation is then exact.
    """

    backend: Backend
    kind: str
    lowercase: bool = False
    spm: UnigramModel | None = None
    spm_file: bytes = b""

    def __post_init__(self) -> None:
        needed = (token for role, token in self.special.items() if role != "mask")
        missing = [token for token in needed if self.id_of(token) is None]
        if missing:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}")
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = True  # a review that spells [SEP] means the letters
        object.__setattr__(self, "fast", self.backend if self.spm is None else without_normalizer(self.backend))

    @property
    def special(self) -> dict[str, str]:
        return special_tokens(self.kind)

    def id_of(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    @property
    def pad_id(self) -> int:
        return self.id_of(self.special["pad"])

    @property
    def unk_id(self) -> int:
        return self.id_of(self.special["unk"])

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def words(self) -> list[str]:
        """The vocabulary in the order of ids."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return sorted(vocabulary, key=vocabulary.__getitem__)

    def starts_word(self, piece: str) -> bool:
        """Whether a piece of the vocabulary begins a word."""
        marks = {"unigram": "▁", "bpe": "Ġ"}
        return piece.startswith(marks[self.kind]) if self.kind in marks else not piece.startswith("##")

    @property
    def fingerprint(self) -> str:
        """The same for tokenizers that give the same ids."""
        return hashlib.sha256(self.backend.to_str().encode() + self.spm_file).hexdigest()

    def pieces(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Ids of each text, whole and without special tokens. Runs in parallel."""
        texts = [SURROGATES.sub("\ufffd", text) for text in texts]
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            if self.spm is not None:
                batch = [self.spm.normalize(text) for text in batch]
            for text, encoding in zip(batch, self.fast.encode_batch_fast(batch, add_special_tokens=False), strict=True):
                yield encoding.ids if self.spm is None else self.spm.repair(text, encoding.ids)

    def encode(self, texts: Iterable[str], max_length: int, truncate: str = "head") -> Iterator[list[int]]:
        """1 to max_length ids of each text, [CLS] and [SEP] included. truncate: head, tail, head+tail, or chunks: each
        text becomes as many examples as it takes, alike in length."""
        if max_length < 3:
            raise ValueError(f"max_length {max_length} leaves no room for text; it must be at least 3")
        if truncate not in TRUNCATE:
            raise ValueError(f"unknown truncation {truncate!r}; known: {', '.join(TRUNCATE)}")
        if self.kind == "wordlevel":
            for ids in self.pieces(texts):
                yield from (part or [self.unk_id] for part in parts(ids, max_length, truncate))
            return
        first, last = self.id_of(self.special["cls"]), self.id_of(self.special["sep"])
        for ids in self.pieces(texts):
            yield from ([first, *part, last] for part in parts(ids, max_length - 2, truncate))

    def encode_batch(self, texts: Iterable[str], max_length: int, truncate: str = "head") -> tuple[Tensor, Tensor]:
        """(ids int64 [B, T], mask bool [B, T]), padded on the right to the longest text."""
        return pad(list(self.encode(texts, max_length, truncate)), self.pad_id)

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `load_tokenizer` and transformers read, and spm.model
        where there is one."""
        directory = Path(directory)
        if self.spm_file:
            with replacing(directory / "spm.model") as temporary:
                temporary.write_bytes(self.spm_file)
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=False))
        names = {f"{role}_token": token for role, token in self.special.items()}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "do_lower_case": self.lowercase,
            "padding_side": "right",
        }
        write_json(directory / "tokenizer_config.json", config | names)


def pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ragged rows -> (ids int64 [B, T], mask bool [B, T]), T the longest row."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad_id)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.as_tensor(values)
    return ids, torch.arange(ids.size(1)) < lengths[:, None]


# ------------------------------------------------------------------------------------------------ published files


def load_tokenizer(source: str | Path, like: str = "published") -> Tokenizer:
    """The tokenizer of a checkpoint directory or hub id. Where several files are there, spm.model counts before
    tokenizer.json, that before vocab.txt, that before vocab.json with merges.txt.

    like: `published` cuts as the weights were trained; `hf5` cuts an spm.model as transformers 5 does (its character
    map dropped, no byte fallback), for comparisons. Raises FileNotFoundError where there is none, ValueError where it
    is damaged.
    """
    if like not in ("published", "hf5"):
        raise ValueError(f"unknown tokenizer {like!r}; known: published, hf5")
    directory = find_pretrained(source)
    config_file = directory / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    lowercase = bool(config.get("do_lower_case", True))
    if (directory / "spm.model").is_file():
        return read_spm(directory / "spm.model", like)
    if (directory / "tokenizer.json").is_file():
        return read_tokenizer_json(directory / "tokenizer.json", lowercase)
    if (directory / "vocab.txt").is_file():
        return Tokenizer(read_vocab(directory / "vocab.txt", lowercase), "wordpiece", lowercase)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return Tokenizer(read_merges(directory, bool(config.get("add_prefix_space", False))), "bpe")
    raise FileNotFoundError(
        f"{directory} holds no tokenizer (spm.model, tokenizer.json, vocab.txt, or vocab.json with merges.txt)"
    )


def read_tokenizer_json(path: Path, lowercase: bool) -> Tokenizer:
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the package raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer.json ({error})") from error
    return Tokenizer(backend, json.loads(backend.to_str())["model"]["type"].lower(), lowercase)


def read_vocab(path: Path, lowercase: bool) -> Backend:
    """vocab.txt, one piece a line, as BERT publishes it."""
    pieces = path.read_text(encoding="utf-8").splitlines()
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in pieces]
    if missing:
        raise ValueError(f"{path} is not a WordPiece vocabulary: {', '.join(missing)} missing")
    return wordpiece({piece: number for number, piece in enumerate(pieces)}, lowercase)


def read_merges(directory: Path, prefix_space: bool) -> Backend:
    """vocab.json with merges.txt, as RoBERTa publishes them."""
    try:
        model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    except Exception as error:  # the package raises a bare Exception
        raise ValueError(f"{directory}: vocab.json and merges.txt are no BPE model ({error})") from error
    return bpe(model, prefix_space)


def read_spm(path: Path, like: str) -> Tokenizer:
    data = path.read_bytes()
    try:
        spm = UnigramModel.parse(data)
        if like == "hf5":
            return Tokenizer(unigram(spm.pieces, spm.unknown, None, byte_fallback=False), "unigram")
        return Tokenizer(unigram(spm.pieces, spm.unknown, spm.charsmap), "unigram", spm=spm, spm_file=data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a Unigram model: {error}") from error


# ------------------------------------------------------------------------------------------------------ training


def train_words(texts: Iterable[str], vocab_size: int, min_count: int) -> Tokenizer:
    """The vocabulary of the networks over words: <pad>, <unk>, then at most vocab_size - 2 words that occur at least
    min_count times, the most frequent first."""
    backend, special = wordlevel(), list(SPECIAL_WORDS.values())
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, "wordlevel")


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int, min_count: int = 1) -> Tokenizer:
    """A new tokenizer of about `vocab_size` pieces from `texts`. kind: wordpiece, unigram, bpe or wordlevel, whose
    words occur at least min_count times.

    The package's own WordPiece and Unigram trainers give other pieces at every call, because they iterate over randomly
    seeded hash maps. Its BPE trainer (Sennrich et al. 2016, arXiv 1508.07909) does not, so its merges choose the
    pieces, and for Unigram the logarithm of their relative frequency is their score: the same texts give the same
    tokenizer.
    """
    texts = list(texts)
    if kind == "wordlevel":
        return train_words(texts, vocab_size, min_count)
    if kind == "wordpiece":
        frame = wordpiece({"[UNK]": 0}, lowercase=True)
        words = pre_tokenizers.Sequence([frame.pre_tokenizer, pre_tokenizers.Metaspace("▁", prepend_scheme="always")])
        counts = count_pieces(frame.normalizer, words, texts, vocab_size)
        starts, others = (sorted(p for p in counts if p.startswith("▁") is start) for start in (True, False))
        pieces = [
            *SPECIAL.values(),
            *(piece[1:] for piece in starts if piece != "▁"),
            *(f"##{piece}" for piece in others),
        ]
        vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        return Tokenizer(wordpiece(vocab, lowercase=True), kind, lowercase=True)
    if kind == "unigram":
        frame = unigram([("[UNK]", 0.0)], 0, b"")
        words = pre_tokenizers.Sequence([frame.pre_tokenizer, pre_tokenizers.Punctuation("isolated")])
        counts = count_pieces(frame.normalizer, words, texts, vocab_size)
        total = sum(counts.values())
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        scores = [(piece, math.log(count / total)) for piece, count in ranked]
        fixed = [
            *list(SPECIAL.values())[:4],
            *(f"<0x{byte:02X}>" for byte in range(256)),
        ]  # the order of DeBERTa-v3's spm.model
        backend = unigram([(piece, 0.0) for piece in fixed] + scores, fixed.index("[UNK]"), b"")
        return Tokenizer(backend, kind)
    if kind == "bpe":
        backend = bpe(models.BPE())
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(SPECIAL_BPE.values())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return Tokenizer(bpe(backend.model), kind)
    raise ValueError(f"unknown tokenizer kind {kind!r}; known: wordpiece, unigram, bpe, wordlevel")


def count_pieces(normalizer, pre_tokenizer, texts: list[str], vocab_size: int) -> Counter[str]:
    """How often each BPE piece occurs in the texts, cut by the merges that were learned from them; single characters,
    of which any text is made, count at least once."""
    draft = Backend(models.BPE())
    draft.normalizer, draft.pre_tokenizer = normalizer, pre_tokenizer
    draft.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
    counts = Counter(dict.fromkeys(draft.get_vocab(), 1))
    for encoding in draft.encode_batch_fast(texts):
        counts.update(encoding.tokens)
    return counts
