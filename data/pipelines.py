"""What the `tokenizers` package is told for each kind of tokenizer: how text is normalised and cut into words, which
model cuts these, how pieces become text again, and the special tokens. As BERT's, RoBERTa's and DeBERTa's files say."""

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

SPECIAL = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
SPECIAL_WORDS = {"pad": "<pad>", "unk": "<unk>"}
SPECIAL_BPE = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}

# a word of the classical networks; what matters for sentiment stays: ratings, the n't of don't, smileys, ! ? … and .
WORD = r"\d+(?:\.\d+)?/\d+|\w+(?=n't)|n't|'(?:s|m|re|ve|ll|d)\b|\w+|[:;=]-?[()dp](?!\w)|\.{2,}|[!?.]"


def special_tokens(kind: str) -> dict[str, str]:
    return {"bpe": SPECIAL_BPE, "wordlevel": SPECIAL_WORDS}.get(kind, SPECIAL)


def wordlevel() -> Backend:
    """An empty vocabulary of words."""
    backend = Backend(models.WordLevel(unk_token="<unk>"))
    plain = normalizers.Replace(Regex("[’`´]"), "'")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), plain])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    return backend


def wordpiece(vocab: dict[str, int], lowercase: bool) -> Backend:
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return finish(backend, SPECIAL)


def bpe(model: models.BPE, prefix_space: bool = False) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return finish(backend, SPECIAL_BPE)


def unigram(
    pieces: list[tuple[str, float]], unknown: int, charsmap: bytes | None, byte_fallback: bool = True
) -> Backend:
    """charsmap: SentencePiece's character map; b"" stands for NFKC, None for what transformers 5 puts in its place."""
    backend = Backend(models.Unigram(pieces, unk_id=unknown, byte_fallback=byte_fallback))
    if charsmap is None:
        steps = [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(left=False)]
    else:
        steps = [normalizers.Precompiled(charsmap)] if charsmap else [normalizers.NFKC()]
        spaces = " {2,}" if charsmap else r"\s+"
        steps += [normalizers.Replace(Regex(spaces), " "), normalizers.Replace(Regex("^ | $"), "")]
    backend.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    # no ordinary piece holds "<0x41>" or "[CLS]": cut there, those of these names cannot match text
    letters = Regex(r"<(?=0x[0-9A-F]{2}>)|\[(?=(?:CLS|SEP|PAD|UNK|MASK)\])")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Split(letters, "merged_with_previous")])
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="always")])
    return finish(backend, SPECIAL)


def without_normalizer(backend: Backend) -> Backend:
    """A copy for text that is normalised already."""
    copy = Backend.from_str(backend.to_str())
    copy.normalizer = None
    copy.encode_special_tokens = True
    return copy


def finish(backend: Backend, special: dict[str, str]) -> Backend:
    """Special tokens, and the template [CLS] A [SEP]."""
    lstrip = special is SPECIAL_BPE  # RoBERTa's mask takes the space before it
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True, lstrip=lstrip and t == "<mask>") for t in special.values()]
    )
    cls, sep = ((special[role], backend.token_to_id(special[role])) for role in ("cls", "sep"))
    if special is SPECIAL_BPE:
        backend.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=False)
    else:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[cls, sep]
        )
    return backend
