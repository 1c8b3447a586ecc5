"""Subword tokenizers: published files in, token ids out.

Reads tokenizer.json, vocab.txt (WordPiece, BERT) and spm.model (Unigram, SentencePiece: DeBERTa); trains WordPiece or
Unigram on a corpus where no published one is used. Segmentation itself is done by the `tokenizers` package.

WordPiece: Wu et al. 2016, arXiv 1609.08144, §4.1.  Unigram: Kudo 2018, arXiv 1804.10959, §3.2.
Differs from SentencePiece: normalisation goes grapheme by grapheme and ties between segmentations may fall the other
way; 1 of 5,000 IMDB reviews is cut differently.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from torch import Tensor

from nn.files import read_json, write_json, write_text
from nn.hub import find_pretrained

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
BATCH = 2_000  # reviews handed to the parallel encoder at a time
CLASSES = {"wordpiece": "BertTokenizer", "unigram": "DebertaV2Tokenizer"}


@dataclass(frozen=True)
class Tokenizer:
    """Text -> [CLS] pieces [SEP]. `kind` is wordpiece, unigram or bpe; `lowercase` matters to wordpiece alone."""

    backend: Backend
    kind: str
    pad_id: int
    lowercase: bool = False

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Iterable[str], max_length: int) -> Iterator[list[int]]:
        """Ids of each text, at most max_length with [CLS] and [SEP], which truncation keeps. Runs in parallel."""
        if max_length < 3:
            raise ValueError(f"max_length {max_length} leaves no room for text between [CLS] and [SEP]")
        self.backend.no_padding()
        self.backend.enable_truncation(max_length)
        texts = list(texts)
        for start in range(0, len(texts), BATCH):
            for encoding in self.backend.encode_batch_fast(texts[start : start + BATCH]):
                yield encoding.ids

    def encode_batch(self, texts: Iterable[str], max_length: int) -> tuple[Tensor, Tensor]:
        """(ids int64 [B, T], mask bool [B, T]), padded on the right to the longest text."""
        return pad(list(self.encode(texts, max_length)), self.pad_id)

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `load_tokenizer` and transformers read."""
        directory = Path(directory)
        self.backend.no_padding()
        self.backend.no_truncation()
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=False))
        config = {
            "tokenizer_class": CLASSES.get(self.kind, "PreTrainedTokenizerFast"),
            "do_lower_case": self.lowercase,
        }
        names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token", "mask_token"), SPECIAL, strict=True))
        write_json(directory / "tokenizer_config.json", config | names | {"padding_side": "right"})


def pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ragged rows -> (ids int64 [B, T], mask bool [B, T]), T the longest row."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad_id)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.as_tensor(values)
    return ids, torch.arange(ids.size(1)) < lengths[:, None]


# ------------------------------------------------------------------------------------------------ published files


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory or hub id: tokenizer.json, else spm.model, else vocab.txt.

    Raises FileNotFoundError where there is none, ValueError where it is damaged.
    """
    directory = find_pretrained(source)
    config_file = directory / "tokenizer_config.json"
    lowercase = bool((read_json(config_file) if config_file.is_file() else {}).get("do_lower_case", True))
    for name, read in (
        ("tokenizer.json", read_tokenizer_json),
        ("spm.model", read_spm),
        ("vocab.txt", read_vocab),
    ):
        path = directory / name
        if path.is_file():
            backend, kind = read(path, lowercase)
            pad_id = backend.token_to_id("[PAD]") if kind != "bpe" else backend.token_to_id("<pad>")
            if pad_id is None:
                raise ValueError(f"{path} has no padding token")
            return Tokenizer(backend, kind, pad_id, lowercase)
    raise FileNotFoundError(f"{directory} holds no tokenizer (tokenizer.json, spm.model or vocab.txt)")


def read_tokenizer_json(path: Path, lowercase: bool) -> tuple[Backend, str]:
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the package raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer.json ({error})") from error
    return backend, json.loads(backend.to_str())["model"]["type"].lower()


def read_vocab(path: Path, lowercase: bool) -> tuple[Backend, str]:
    """vocab.txt, one piece a line, as BERT publishes it."""
    pieces = path.read_text(encoding="utf-8").splitlines()
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in pieces]
    if missing:
        raise ValueError(f"{path} is not a WordPiece vocabulary: {', '.join(missing)} missing")
    return wordpiece({piece: number for number, piece in enumerate(pieces)}, lowercase), "wordpiece"


def wordpiece(vocab: dict[str, int], lowercase: bool) -> Backend:
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return finish(backend)


def finish(backend: Backend) -> Backend:
    """Special tokens, and the template [CLS] A [SEP]."""
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    return backend


# ------------------------------------------------------------------------------------------------- SentencePiece


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


def read_spm(path: Path, lowercase: bool) -> tuple[Backend, str]:
    """spm.model (sentencepiece_model.proto): field 1 the pieces {1 text, 2 float32 score}, field 3 the normaliser
    {2 precompiled character map}."""
    pieces, charsmap = [], b""
    try:
        for number, value in fields(path.read_bytes()):
            if number == 1:
                piece = dict(fields(value))
                pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
            elif number == 3:
                charsmap = dict(fields(value)).get(2, b"")
        names = [piece for piece, _ in pieces]
        backend = unigram(pieces, names.index("[UNK]"), charsmap)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a Unigram model: {error}") from error
    return backend, "unigram"


def unigram(pieces: list[tuple[str, float]], unknown: int, charsmap: bytes) -> Backend:
    """Built-in steps that come closest to SentencePiece with nmt_nfkc, byte fallback and a dummy prefix."""
    backend = Backend(models.Unigram(pieces, unk_id=unknown, byte_fallback=True))
    steps = [normalizers.Precompiled(charsmap)] if charsmap else [normalizers.NFKC()]
    steps += [normalizers.Replace(Regex(r"\s+"), " ")] if not charsmap else []
    steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ | $"), "")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="always")])
    return finish(backend)


# ------------------------------------------------------------------------------------------------------ training


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A new tokenizer of about `vocab_size` pieces from `texts`. kind: wordpiece or unigram.

    The package's own WordPiece and Unigram trainers give other pieces at every call, because they iterate over randomly
    seeded hash maps. Its BPE trainer (Sennrich et al. 2016, arXiv 1508.07909) does not, so its merges choose the
    pieces, and for Unigram the logarithm of their relative frequency is their score: the same texts give the same
    tokenizer.
    """
    texts = list(texts)
    if kind == "wordpiece":
        frame = wordpiece({"[UNK]": 0}, lowercase=True)
        words = pre_tokenizers.Sequence([frame.pre_tokenizer, pre_tokenizers.Metaspace("▁", prepend_scheme="always")])
        counts = count_pieces(frame.normalizer, words, texts, vocab_size)
        starts, others = (sorted(p for p in counts if p.startswith("▁") is start) for start in (True, False))
        pieces = [*SPECIAL, *(piece[1:] for piece in starts if piece != "▁"), *(f"##{piece}" for piece in others)]
        vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        return Tokenizer(wordpiece(vocab, lowercase=True), kind, vocab["[PAD]"], lowercase=True)
    if kind == "unigram":
        frame = unigram([("[UNK]", 0.0)], 0, b"")
        words = pre_tokenizers.Sequence([frame.pre_tokenizer, pre_tokenizers.Punctuation("isolated")])
        counts = count_pieces(frame.normalizer, words, texts, vocab_size)
        total = sum(counts.values())
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        scores = [(piece, math.log(count / total)) for piece, count in ranked]
        fixed = [*SPECIAL[:4], *(f"<0x{byte:02X}>" for byte in range(256))]  # the order of DeBERTa-v3's spm.model
        backend = unigram([(piece, 0.0) for piece in fixed] + scores, fixed.index("[UNK]"), b"")
        return Tokenizer(backend, kind, fixed.index("[PAD]"))
    raise ValueError(f"unknown tokenizer kind {kind!r}; known: wordpiece, unigram")


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
