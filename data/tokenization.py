"""Tokenizers convert text to token ids: subwords for the encoders, words for the word networks.

Reads spm.model (Unigram of SentencePiece: DeBERTa), tokenizer.json, vocab.txt (WordPiece: BERT, DistilBERT), and
vocab.json with merges.txt (byte-level BPE: RoBERTa). Trains each kind on a corpus for models without a published
tokenizer. The `tokenizers` package segments the text; data/sentencepiece.py corrects the few segmentations in which it
differs from SentencePiece.

WordPiece: Wu et al. 2016, arXiv 1609.08144, §4.1.  BPE: Sennrich et al. 2016, arXiv 1508.07909.  Unigram: Kudo 2018,
arXiv 1804.10959, §3.2.

Differs from the published code: a string in the text that spells a special token ("[SEP]", "<0x41>") is ordinary text
and never becomes that token.
"""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from torch import Tensor

from data.files import read_json, replacing, write_json, write_text
from data.hub import find_pretrained
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

BATCH = 1_000  # texts in one call of the parallel encoder
TRUNCATE = ("head", "tail", "head+tail", "chunks")
HEAD_TOKENS = 128  # first part of head+tail: Sun et al. 2019, arXiv 1905.05583, §5.3.1
SURROGATES = re.compile("[\ud800-\udfff]")  # UTF-8 cannot encode a lone surrogate
WORD_START = {"unigram": "▁", "bpe": "Ġ"}  # prefix of a subword that begins a word


def truncate_ids(ids: list[int], limit: int, truncate: str) -> list[int]:
    """Returns at most `limit` ids: the first (head), the last (tail), or both (head+tail).

    head+tail: min(128, limit // 4) first ids, and the last ids up to `limit`.
    """
    if len(ids) <= limit:
        return ids
    if truncate == "head":
        return ids[:limit]
    first = min(HEAD_TOKENS, limit // 4) if truncate == "head+tail" else 0
    return ids[:first] + ids[len(ids) - (limit - first) :]


def split_into_chunks(ids: list[int], limit: int) -> list[list[int]]:
    """Splits ids into the fewest chunks of at most `limit` ids, with lengths that differ by at most 1."""
    count = max(1, -(-len(ids) // limit))
    ends = [len(ids) * number // count for number in range(count + 1)]
    return [ids[start:end] for start, end in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Tokenizer:
    """Converts text to [CLS] subwords [SEP], or to words without special tokens.

    backend: the pipeline, which is also what `save` writes. kind: wordpiece, unigram, bpe or wordlevel (words).
    lowercase: stored for wordpiece. spm, spm_file: the published model and the bytes of its file, or None and b"". With
    them the ids equal SentencePiece's.
    """

    backend: Backend
    kind: str
    lowercase: bool = False
    spm: UnigramModel | None = None
    spm_file: bytes = b""
    segmenter: Backend = field(init=False, repr=False, compare=False)  # `backend`, without its normalizer if spm is set

    def __post_init__(self) -> None:
        required = (token for role, token in self.special.items() if role != "mask")
        missing = [token for token in required if self.id_of(token) is None]
        if missing:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}")
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = True  # "[SEP]" in a review is text
        object.__setattr__(self, "segmenter", self.backend if self.spm is None else without_normalizer(self.backend))

    @property
    def special(self) -> dict[str, str]:
        """Returns role (pad, unk, cls, sep, mask) -> special token."""
        return special_tokens(self.kind)

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token of the vocabulary, or None."""
        return self.backend.token_to_id(token)

    def special_id(self, role: str) -> int:
        """Returns the id of the special token with a role that the tokenizer has."""
        number = self.id_of(self.special[role])
        assert number is not None
        return number

    @property
    def pad_id(self) -> int:
        return self.special_id("pad")

    @property
    def unk_id(self) -> int:
        return self.special_id("unk")

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def tokens(self) -> list[str]:
        """Returns the vocabulary in the order of ids: words or subwords, and special tokens."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return sorted(vocabulary, key=vocabulary.__getitem__)

    def starts_word(self, token: str) -> bool:
        """Returns whether a token of the vocabulary begins a word."""
        if self.kind in WORD_START:
            return token.startswith(WORD_START[self.kind])
        return not token.startswith("##")

    @property
    def fingerprint(self) -> str:
        """Returns a hash of all that determines the ids."""
        return hashlib.sha256(self.backend.to_str().encode() + self.spm_file).hexdigest()

    def subword_ids(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Yields all token ids of each text, without special tokens and without truncation. Runs in parallel."""
        texts = [SURROGATES.sub("\ufffd", text) for text in texts]
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            if self.spm is not None:
                batch = [self.spm.normalize(text) for text in batch]
            encodings = self.segmenter.encode_batch_fast(batch, add_special_tokens=False)
            for text, encoding in zip(batch, encodings, strict=True):
                yield encoding.ids if self.spm is None else self.spm.repair(text, encoding.ids)

    def encode(self, texts: Iterable[str], max_length: int, truncate: str = "head") -> Iterator[list[int]]:
        """Yields examples of 1 to max_length ids, including [CLS] and [SEP].

        truncate: head, tail and head+tail yield one example for each text; chunks yields the whole text as one or more
        examples of nearly equal length. Raises ValueError for another value and for max_length < 3.
        """
        if max_length < 3:
            raise ValueError(f"max_length {max_length} leaves no room for text; it must be at least 3")
        if truncate not in TRUNCATE:
            raise ValueError(f"unknown truncation {truncate!r}; known: {', '.join(TRUNCATE)}")
        if self.kind == "wordlevel":
            start, end, empty = [], [], [self.unk_id]  # a text without words is one unknown word
        else:
            start, end, empty = [self.special_id("cls")], [self.special_id("sep")], []
        limit = max_length - len(start) - len(end)
        for ids in self.subword_ids(texts):
            whole = truncate == "chunks"
            chunks = split_into_chunks(ids, limit) if whole else [truncate_ids(ids, limit, truncate=truncate)]
            for chunk in chunks:
                yield [*start, *(chunk or empty), *end]

    def encode_batch(self, texts: Iterable[str], max_length: int, truncate: str = "head") -> tuple[Tensor, Tensor]:
        """Encodes texts as one batch: (ids int64 [B, T], mask bool [B, T]), padded on the right."""
        return pad(list(self.encode(texts, max_length=max_length, truncate=truncate)), self.pad_id)

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `load_tokenizer` and transformers read, and spm.model
        if the tokenizer was read from one."""
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
    """Pads rows on the right to the longest row: (ids int64 [B, T], mask bool [B, T])."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad_id)  # [B, T]
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.as_tensor(values)
    return ids, torch.arange(ids.size(1)) < lengths[:, None]


# ------------------------------------------------------------------------------------------------ published files


def load_tokenizer(source: str | Path, variant: str = "published") -> Tokenizer:
    """Loads the tokenizer of a checkpoint directory or hub id.

    Reads the first of spm.model, tokenizer.json, vocab.txt, and vocab.json with merges.txt that exists.
    variant: `published` segments text as in the pretraining of the weights. `hf5` segments with an spm.model as
    transformers 5 does, without its character map and without byte fallback, for comparisons.
    Raises FileNotFoundError if there is no tokenizer, ValueError if a file is damaged or `variant` is unknown.
    """
    if variant not in ("published", "hf5"):
        raise ValueError(f"unknown tokenizer {variant!r}; known: published, hf5")
    directory = find_pretrained(source)
    config_file = directory / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    lowercase = bool(config.get("do_lower_case", True))
    if (directory / "spm.model").is_file():
        return read_spm(directory / "spm.model", variant)
    if (directory / "tokenizer.json").is_file():
        return read_tokenizer_json(directory / "tokenizer.json", lowercase)
    if (directory / "vocab.txt").is_file():
        return Tokenizer(read_vocab(directory / "vocab.txt", lowercase), "wordpiece", lowercase=lowercase)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return Tokenizer(read_merges(directory, bool(config.get("add_prefix_space", False))), "bpe")
    raise FileNotFoundError(
        f"{directory} contains no tokenizer (spm.model, tokenizer.json, vocab.txt, or vocab.json with merges.txt)"
    )


def read_tokenizer_json(path: Path, lowercase: bool) -> Tokenizer:
    """Reads tokenizer.json. Raises ValueError if it is damaged."""
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the package raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer.json ({error})") from error
    kind = json.loads(backend.to_str())["model"]["type"].lower()
    return Tokenizer(backend, kind, lowercase=lowercase)


def read_vocab(path: Path, lowercase: bool) -> Backend:
    """Reads vocab.txt of a BERT: one subword on each line. Raises ValueError if a special token is missing."""
    subwords = path.read_text(encoding="utf-8").splitlines()
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in subwords]
    if missing:
        raise ValueError(f"{path} is not a WordPiece vocabulary: {', '.join(missing)} missing")
    return wordpiece({subword: number for number, subword in enumerate(subwords)}, lowercase)


def read_merges(directory: Path, prefix_space: bool) -> Backend:
    """Reads vocab.json and merges.txt of a RoBERTa. Raises ValueError if they are damaged."""
    try:
        model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    except Exception as error:  # the package raises a bare Exception
        raise ValueError(f"{directory}: vocab.json and merges.txt are not a BPE model ({error})") from error
    return bpe(model, prefix_space)


def read_spm(path: Path, variant: str) -> Tokenizer:
    """Reads spm.model of a DeBERTa. Raises ValueError if it is damaged or not a Unigram model."""
    data = path.read_bytes()
    try:
        spm = UnigramModel.parse(data)
        if variant == "hf5":
            return Tokenizer(unigram(spm.subwords, unk_id=spm.unk_id, charsmap=None, byte_fallback=False), "unigram")
        backend = unigram(spm.subwords, unk_id=spm.unk_id, charsmap=spm.charsmap)
        return Tokenizer(backend, "unigram", spm=spm, spm_file=data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a Unigram model: {error}") from error


# ------------------------------------------------------------------------------------------------------ training


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int, min_count: int = 1) -> Tokenizer:
    """Trains a tokenizer with a vocabulary of about `vocab_size` tokens. The same texts give the same tokenizer.

    kind: wordpiece, unigram, bpe or wordlevel. min_count: the least number of occurrences of a word, for wordlevel.
    Raises ValueError for an unknown kind.

    The WordPiece and Unigram trainers of the package iterate over randomly seeded hash maps, so their vocabulary
    changes with every call. Its BPE trainer is deterministic. Therefore BPE merges select the subwords of all kinds,
    and the score of a Unigram subword is the logarithm of its relative frequency.
    """
    texts = list(texts)
    if kind == "wordlevel":
        return train_wordlevel(texts, vocab_size=vocab_size, min_count=min_count)
    if kind == "wordpiece":
        return train_wordpiece(texts, vocab_size)
    if kind == "unigram":
        return train_unigram(texts, vocab_size)
    if kind == "bpe":
        return train_bpe(texts, vocab_size)
    raise ValueError(f"unknown tokenizer kind {kind!r}; known: wordpiece, unigram, bpe, wordlevel")


def train_wordlevel(texts: list[str], vocab_size: int, min_count: int) -> Tokenizer:
    """Collects <pad>, <unk>, and at most vocab_size - 2 words that occur at least min_count times, the most frequent
    first."""
    backend, special = wordlevel(), list(SPECIAL_WORDS.values())
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, "wordlevel")


def train_wordpiece(texts: list[str], vocab_size: int) -> Tokenizer:
    """Collects BPE subwords and converts them to WordPiece's notation: "▁film" -> "film", "ing" -> "##ing"."""
    template = wordpiece({"[UNK]": 0}, lowercase=True)
    words = pre_tokenizers.Sequence([template.pre_tokenizer, pre_tokenizers.Metaspace("▁", prepend_scheme="always")])
    counts = count_subwords(template.normalizer, words, texts=texts, vocab_size=vocab_size)
    starts = sorted(subword for subword in counts if subword.startswith("▁"))
    others = sorted(subword for subword in counts if not subword.startswith("▁"))
    subwords = [
        *SPECIAL.values(),
        *(subword[1:] for subword in starts if subword != "▁"),
        *(f"##{subword}" for subword in others),
    ]
    vocabulary = {subword: number for number, subword in enumerate(dict.fromkeys(subwords))}
    return Tokenizer(wordpiece(vocabulary, lowercase=True), "wordpiece", lowercase=True)


def train_unigram(texts: list[str], vocab_size: int) -> Tokenizer:
    """Collects BPE subwords and scores each with the logarithm of its relative frequency."""
    template = unigram([("[UNK]", 0.0)], unk_id=0, charsmap=b"")
    words = pre_tokenizers.Sequence([template.pre_tokenizer, pre_tokenizers.Punctuation("isolated")])
    counts = count_subwords(template.normalizer, words, texts=texts, vocab_size=vocab_size)
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    scores = [(subword, math.log(count / total)) for subword, count in ranked]
    # the order of DeBERTa-v3's spm.model
    fixed = [*list(SPECIAL.values())[:4], *(f"<0x{byte:02X}>" for byte in range(256))]
    subwords = [(token, 0.0) for token in fixed] + scores
    return Tokenizer(unigram(subwords, unk_id=fixed.index("[UNK]"), charsmap=b""), "unigram")


def train_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """Learns byte-level BPE merges. All 256 bytes are in the vocabulary."""
    backend = bpe(models.BPE())
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(SPECIAL_BPE.values())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(bpe(backend.model), "bpe")


def count_subwords(
    normalizer: Normalizer, pre_tokenizer: PreTokenizer, texts: list[str], vocab_size: int
) -> Counter[str]:
    """Learns BPE merges and counts each BPE subword in the texts.

    Every subword has a count of at least 1. All single characters of the texts are among the subwords.
    """
    draft = Backend(models.BPE())
    draft.normalizer, draft.pre_tokenizer = normalizer, pre_tokenizer
    draft.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
    counts = Counter(dict.fromkeys(draft.get_vocab(), 1))
    for encoding in draft.encode_batch_fast(texts):
        counts.update(encoding.tokens)
    return counts
