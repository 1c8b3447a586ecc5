"""Tokenizers convert text to token ids: subwords for the encoders, words for the word networks.

Reads published tokenizers (data/tokenizer_files.py): spm.model and sentencepiece.bpe.model (Unigram of SentencePiece:
DeBERTa, XLM-RoBERTa), tokenizer.json, vocab.txt (WordPiece: BERT, DistilBERT, ELECTRA), and vocab.json with merges.txt
(byte-level BPE: RoBERTa). Trains each kind on a corpus for models without a published tokenizer. The `tokenizers`
package segments the text; data/sentencepiece.py corrects the few segmentations in which it differs from SentencePiece.

WordPiece: Wu et al. 2016, arXiv 1609.08144, §4.1.  BPE: Sennrich et al. 2016, arXiv 1508.07909.  Unigram: Kudo 2018,
arXiv 1804.10959, §3.2.

Differs from the published code: a string in the text that spells a special token with a role ([CLS], [SEP], [PAD],
[UNK], [MASK], however they are called) or a byte ("<0x41>") is ordinary text and never becomes that token. Other added
tokens match.
"""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from torch import Tensor

from data.checked import listed, reading, show, silent_stderr, within
from data.files import replacing, write_json, write_text
from data.hub import find_tokenizer
from data.pipelines import (
    SPECIAL,
    SPECIAL_BPE,
    SPECIAL_WORDS,
    add_special_tokens,
    bpe,
    matching_text,
    special_tokens,
    spells_special_tokens,
    state,
    trained_normalizer,
    unigram,
    wordlevel,
    wordpiece,
)
from data.spm_segmenter import SpmSegmenter
from data.tokenizer_files import read_tokenizer
from data.word_segmenter import WordSegmenter

BATCH = 1_000  # texts in one call of the parallel encoder
BATCH_SECONDS, SLOWEST = 15, 20_000  # time limit of a call: 15 s, and 1 s more for every SLOWEST characters
# a tokenizer that is read must segment these: runs in which an expression may search without an end
PROBES = [*(character * 2000 for character in "a 1.\u00e9\n"), "An 'odd'  text, it's 10/10! \u96fb\x00\n" * 40]
PROBE_SECONDS = 5
TRUNCATE = ("head", "tail", "head+tail", "chunks")
HEAD_TOKENS = 128  # most tokens of the first part of head+tail (Sun et al. 2019, arXiv 1905.05583, §5.3.1)
SURROGATES = re.compile("[\ud800-\udfff]")  # UTF-8 cannot encode a lone surrogate
REQUIRED = {"wordlevel": ("pad", "unk")}  # roles of special tokens; for all other kinds also cls and sep


def replace_surrogates(text: str) -> str:
    """Replaces each lone surrogate by U+FFFD."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


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
    lowercase: whether the text is lowercased, for wordpiece, spm and words. spm: the published model of SentencePiece,
    or None. With it the ids equal SentencePiece's. special: role (pad, unk, cls, sep, mask, …) -> special token.
    template: the tokens before and after each text. model_max_length: tokens of an example, special tokens included,
    that the published model was made for, or None. truncation_side: the end at which the published model's texts lose
    tokens, right or left: the default of `--truncate` is head or tail. source: where it was read from, for messages.
    """

    backend: Backend
    kind: str
    lowercase: bool = False
    spm: SpmSegmenter | None = None
    special: dict[str, str] = field(default_factory=dict)
    template: tuple[list[str], list[str]] = ([], [])
    model_max_length: int | None = None
    truncation_side: str = "right"
    source: str = field(default="the tokenizer", compare=False)
    segmenter: Backend = field(init=False, repr=False, compare=False)  # `backend` without tokens that match no text
    words: WordSegmenter = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.special:
            object.__setattr__(self, "special", special_tokens(self.kind))
        missing = [role for role in REQUIRED.get(self.kind, ("pad", "unk", "cls", "sep")) if self.role_id(role) is None]
        if missing:
            names = ", ".join(self.special.get(role, f"{role}_token") for role in missing)
            raise ValueError(
                f"{self.source} has no {names}; name its special tokens in tokenizer_config.json ({missing[0]}_token)"
            )
        if self.kind != "wordlevel" and self.template == ([], []):
            object.__setattr__(self, "template", ([self.special["cls"]], [self.special["sep"]]))
        self.backend.no_padding()
        self.backend.no_truncation()
        segmenter = matching_text(self.backend, self.special) if self.spm is None else self.spm.backend
        single = {role: token for role, token in self.special.items() if len(token) == 1 and token.isprintable()}
        if self.spm is None and single and spells_special_tokens(segmenter, single):
            tokens = listed(token for role, token in single.items() if role != "unk")
            raise ValueError(
                f"{self.source} has the special token {tokens}: a text with this character would be read as the token; "
                "give it a longer name"
            )
        object.__setattr__(self, "segmenter", segmenter)
        object.__setattr__(self, "words", WordSegmenter(segmenter))

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token of the vocabulary, or None."""
        return self.backend.token_to_id(token)

    def role_id(self, role: str) -> int | None:
        """Returns the id of the special token with a role, or None."""
        return self.id_of(self.special[role]) if role in self.special else None

    def special_id(self, role: str) -> int:
        """Returns the id of the special token with a role that the tokenizer has."""
        number = self.role_id(role)
        assert number is not None
        return number

    @property
    def pad_id(self) -> int:
        return self.special_id("pad")

    @property
    def unk_id(self) -> int:
        return self.special_id("unk")

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Returns token -> id, special tokens and added tokens included."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Returns the number of ids: the largest id + 1."""
        return max(self.vocabulary.values()) + 1

    @property
    def tokens(self) -> list[str]:
        """Returns the vocabulary in the order of ids: words or subwords, and special tokens. "" is an unused id."""
        tokens = [""] * self.vocab_size
        for token, number in self.vocabulary.items():
            tokens[number] = token
        return tokens

    @cached_property
    def word_start(self) -> str:
        """Returns the prefix of a subword that begins a word, "" for a kind that marks the other subwords.

        Raises ValueError for a pipeline without such a prefix.
        """
        parts = f"{state(self.backend.normalizer)} {state(self.backend.pre_tokenizer)}"
        if self.kind != "bpe":
            return "▁" if self.kind == "unigram" else ""
        if "ByteLevel" not in parts and "Metaspace" not in parts:
            raise ValueError("the subwords of this BPE tokenizer do not show where a word begins")
        return "Ġ" if "ByteLevel" in parts else "▁"

    def starts_word(self, token: str) -> bool:
        """Returns whether a token of the vocabulary begins a word."""
        if self.word_start:
            return token.startswith(self.word_start)
        return self.kind != "wordpiece" or not token.startswith(self.backend.model.continuing_subword_prefix)

    @property
    def fingerprint(self) -> str:
        """Returns a hash of all that determines the ids."""
        digest = hashlib.sha256(self.backend.to_str().encode() + (self.spm.data if self.spm else b""))
        if set(self.special.values()) != set(special_tokens(self.kind).values()):  # these do not match text
            digest.update(json.dumps(self.special).encode())
        return digest.hexdigest()

    def subword_ids(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Yields all token ids of each text, without special tokens and without truncation. Runs in parallel.

        Raises ValueError if a damaged tokenizer fails or does not come to an end, TypeError for what is not a list of
        texts.
        """
        if isinstance(texts, str):
            raise TypeError("one text was given; put it into a list")
        remaining = iter(texts)
        while batch := [replace_surrogates(checked_text(text)) for text in itertools.islice(remaining, BATCH)]:
            seconds = BATCH_SECONDS + sum(map(len, batch)) / SLOWEST
            with reading(self.source, "a tokenizer"), silent_stderr():
                rows = within(seconds, partial(self.segment, batch), f"{self.source}: segmenting {len(batch):,} texts")
            yield from rows

    def segment(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text, without special tokens."""
        return self.words(texts) if self.spm is None else list(self.spm(texts))

    def text_limit(self, max_length: int) -> int:
        """Returns how many tokens of text fit into max_length tokens. Raises ValueError if max_length is below 3 or
        leaves no room for text."""
        special = sum(map(len, self.template))
        least = max(3, special + 1)
        if max_length < least:
            given = f" (model_max_length of {self.source}; --max-length replaces it)"
            origin = given if max_length == self.model_max_length else ""
            raise ValueError(f"max_length {max_length}{origin} leaves no room for text; it must be at least {least}")
        return max_length - special

    def encode(self, texts: Iterable[str], max_length: int, truncate: str = "head") -> Iterator[list[int]]:
        """Yields examples of 1 to max_length ids, including [CLS] and [SEP].

        truncate: head, tail and head+tail yield one example for each text; chunks yields the whole text as one or more
        examples of nearly equal length. Raises ValueError for another value, and if max_length is below 3 or leaves no
        room for text. Overlapping windows are made by `data.corpus.examples_of`.
        """
        limit = self.text_limit(max_length)
        if truncate not in TRUNCATE:
            raise ValueError(f"unknown truncation {truncate!r}; known: {', '.join(TRUNCATE)}")
        start, end = ([self.vocabulary[token] for token in tokens] for tokens in self.template)
        empty = [] if start else [self.unk_id]  # without [CLS], a text without words is one unknown word
        for ids in self.subword_ids(texts):
            whole = truncate == "chunks"
            chunks = split_into_chunks(ids, limit) if whole else [truncate_ids(ids, limit, truncate=truncate)]
            for chunk in chunks:
                yield [*start, *(chunk or empty), *end]

    def encode_batch(self, texts: Iterable[str], max_length: int, truncate: str = "head") -> tuple[Tensor, Tensor]:
        """Encodes texts as one batch: (ids int64 [B, T], mask bool [B, T]), padded on the right."""
        return pad(list(self.encode(texts, max_length=max_length, truncate=truncate)), self.pad_id)

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `load_tokenizer` and transformers read, and the model
        of SentencePiece if the tokenizer was read from one. `load_tokenizer` gives the same ids."""
        directory = Path(directory)
        if self.spm is not None:
            with replacing(directory / self.spm.file_name) as temporary:
                temporary.write_bytes(self.spm.data)
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=False))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "do_lower_case": self.lowercase,
            "padding_side": "right",
            "model_input_names": ["input_ids", "attention_mask"],  # DistilBERT takes no types; all types are 0
        }
        if state(self.backend.pre_tokenizer).get("add_prefix_space"):
            config["add_prefix_space"] = True  # version 4 of transformers sets it to False otherwise
        if self.spm is not None and self.spm.split_by_punct:
            config["split_by_punct"] = True
        if self.truncation_side != "right":
            config["truncation_side"] = self.truncation_side
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        names = {f"{role}_token": token for role, token in self.special.items()}
        write_json(directory / "tokenizer_config.json", config | names)


def checked_text(text: str) -> str:
    """Returns a text. Raises TypeError for anything else, such as bytes and NaN."""
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str, not {type(text).__name__}: {show(repr(text), 60)}")
    return text


def pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads rows on the right to the longest row: (ids int64 [B, T], mask bool [B, T])."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    ids = torch.full((len(rows), int(lengths.max()) if rows else 0), pad_id)  # [B, T]
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.as_tensor(values)
    return ids, torch.arange(ids.size(1)) < lengths[:, None]


# ------------------------------------------------------------------------------------------------ published files


def load_tokenizer(source: str | Path, variant: str = "published", base: str = "") -> Tokenizer:
    """Loads the tokenizer of a checkpoint directory or hub id.

    Reads the first of spm.model, sentencepiece.bpe.model, tokenizer.json, vocab.txt, and vocab.json with merges.txt
    that exists and that belongs to the tokenizer's class.
    variant: `published` segments text as in the pretraining of the weights. `hf5` segments with an spm.model as
    transformers 5 does, without its character map and without byte fallback, for comparisons.
    base: the backbone of an adapter, if it is not where the adapter's file says.
    Raises FileNotFoundError if there is no tokenizer, ValueError if a file is damaged or contains a setting that is not
    supported, or if `variant` is unknown.
    """
    if variant not in ("published", "hf5"):
        raise ValueError(f"unknown tokenizer {variant!r}; known: published, hf5")
    directory = find_tokenizer(source, base)
    read = read_tokenizer(directory, variant)
    present = {role: token for role, token in read.special.items() if read.backend.token_to_id(token) is not None}
    special = {role: present[role] for role in special_tokens(read.kind) if role in present} | present
    with reading(directory, "a tokenizer"), silent_stderr():
        tokenizer = Tokenizer(
            read.backend, read.kind, lowercase=read.lowercase, spm=read.spm, special=special, template=read.template,
            model_max_length=read.model_max_length, truncation_side=read.truncation_side, source=str(directory),
        )  # fmt: skip
        within(PROBE_SECONDS, partial(tokenizer.segment, PROBES), f"{directory}: the tokenizer")
    return tokenizer


# ------------------------------------------------------------------------------------------------------ training


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int, min_count: int = 1) -> Tokenizer:
    """Trains a tokenizer with a vocabulary of about `vocab_size` tokens. The same texts give the same tokenizer.

    All characters of the texts are in it (bpe: all bytes), even if they are more than vocab_size; except for wordlevel,
    which has whole words. unigram has the 256 bytes in addition.

    kind: wordpiece, unigram, bpe or wordlevel. min_count: the least number of occurrences of a word, for wordlevel.
    Raises ValueError for an unknown kind, and if no word is left.

    The WordPiece and Unigram trainers of the package iterate over randomly seeded hash maps, so their vocabulary
    changes with every call. Its BPE trainer is deterministic. Therefore BPE merges select the subwords of all kinds,
    and the score of a Unigram subword is the logarithm of its relative frequency.
    """
    if isinstance(texts, str):
        raise TypeError("one text was given; put it into a list")
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
    first. Raises ValueError if there is no word."""
    backend, special = wordlevel(), list(SPECIAL_WORDS.values())
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() == len(special):
        has_words = any(backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(t)) for t in texts)
        ways = [f"lower --min-count {min_count}"] if min_count > 1 and has_words else []
        if vocab_size <= len(special):
            ways.append(f"raise --vocab-size {vocab_size}, which counts {' and '.join(special)}")
        nothing = "they have no letter, digit, ! ? . or smiley, which words are made of; --model deberta reads all text"
        raise ValueError(f"no word of the training reviews is in the vocabulary; {' and '.join(ways) or nothing}")
    return Tokenizer(backend, "wordlevel", lowercase=True)


def train_wordpiece(texts: list[str], vocab_size: int) -> Tokenizer:
    """Collects BPE subwords and converts them to WordPiece's notation: "▁film" -> "film", "ing" -> "##ing".

    A single character is in both forms, so that it may begin a word.
    """
    template = wordpiece({"[UNK]": 0}, lowercase=True)
    words = pre_tokenizers.Sequence([template.pre_tokenizer, pre_tokenizers.Metaspace("▁", prepend_scheme="always")])
    counts = count_subwords(template.normalizer, words, texts=texts, vocab_size=vocab_size)
    starts = sorted(subword for subword in counts if subword.startswith("▁"))
    others = sorted(subword for subword in counts if not subword.startswith("▁"))
    subwords = [
        *SPECIAL.values(),
        *(subword[1:] for subword in starts if subword != "▁"),
        *(subword for subword in others if len(subword) == 1),
        *(f"##{subword}" for subword in others),
    ]
    vocabulary = {subword: number for number, subword in enumerate(dict.fromkeys(subwords))}
    return Tokenizer(add_special_tokens(wordpiece(vocabulary, lowercase=True), SPECIAL), "wordpiece", lowercase=True)


def train_unigram(texts: list[str], vocab_size: int) -> Tokenizer:
    """Collects BPE subwords and scores each with the logarithm of its relative frequency."""
    template = unigram([("[UNK]", 0.0)], unk_id=0, normalizer=trained_normalizer())
    words = pre_tokenizers.Sequence([template.pre_tokenizer, pre_tokenizers.Punctuation("isolated")])
    counts = count_subwords(template.normalizer, words, texts=texts, vocab_size=vocab_size)
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    scores = [(subword, math.log(count / total)) for subword, count in ranked]
    # the order of DeBERTa-v3's spm.model
    fixed = [*list(SPECIAL.values())[:4], *(f"<0x{byte:02X}>" for byte in range(256))]
    subwords = [(token, 0.0) for token in fixed] + scores
    backend = unigram(subwords, unk_id=fixed.index("[UNK]"), normalizer=trained_normalizer())
    return Tokenizer(add_special_tokens(backend, SPECIAL), "unigram")


def train_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """Learns byte-level BPE merges. All 256 bytes are in the vocabulary."""
    backend = add_special_tokens(bpe(models.BPE()), SPECIAL_BPE)
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(SPECIAL_BPE.values())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(add_special_tokens(bpe(backend.model), SPECIAL_BPE), "bpe")


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
    for start in range(0, len(texts), BATCH):  # an encoding takes about 100 bytes a token
        for encoding in draft.encode_batch_fast(texts[start : start + BATCH]):
            counts.update(encoding.tokens)
    return counts
