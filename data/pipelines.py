"""Builds the `tokenizers` pipeline of each kind: normalizer, pre-tokenizer, model, decoder and special tokens.

The settings are those of the files that BERT (wordpiece), RoBERTa (bpe) and DeBERTa (unigram) publish. `wordlevel` is
the tokenizer of the word networks.
"""

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

SPECIAL = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
SPECIAL_WORDS = {"pad": "<pad>", "unk": "<unk>"}
SPECIAL_BPE = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}

# A word of `wordlevel`. Sentiment depends on ratings (7/10), the n't of don't, smileys, "!", "?", "…" and ".", so these
# are words too.
WORD = r"\d+(?:\.\d+)?/\d+|\w+(?=n't)|n't|'(?:s|m|re|ve|ll|d)\b|\w+|[:;=]-?[()dp](?!\w)|\.{2,}|[!?.]"


def special_tokens(kind: str) -> dict[str, str]:
    """Returns role -> special token of a kind of tokenizer."""
    return {"bpe": SPECIAL_BPE, "wordlevel": SPECIAL_WORDS}.get(kind, SPECIAL)


def wordlevel() -> Backend:
    """Builds a tokenizer of words with an empty vocabulary."""
    backend = Backend(models.WordLevel(unk_token="<unk>"))
    apostrophe = normalizers.Replace(Regex("[’`´]"), "'")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), apostrophe])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    return backend


def wordpiece(vocabulary: dict[str, int], lowercase: bool) -> Backend:
    """Builds BERT's WordPiece pipeline. vocabulary: subword -> id."""
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return add_special_tokens(backend, SPECIAL)


def bpe(model: models.BPE, prefix_space: bool = False) -> Backend:
    """Builds RoBERTa's byte-level BPE pipeline. prefix_space: insert a space before the first word."""
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return add_special_tokens(backend, SPECIAL_BPE)


def unigram(
    subwords: list[tuple[str, float]], unk_id: int, charsmap: bytes | None, byte_fallback: bool = True
) -> Backend:
    """Builds DeBERTa's Unigram pipeline. subwords: (subword, log probability) in the order of ids.

    charsmap: SentencePiece's character map; b"" means NFKC, None the normalizer that transformers 5 uses instead of the
    map. byte_fallback: encode unknown characters as bytes.
    """
    backend = Backend(models.Unigram(subwords, unk_id=unk_id, byte_fallback=byte_fallback))
    if charsmap is None:
        steps = [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(left=False)]
    else:
        steps = [normalizers.Precompiled(charsmap)] if charsmap else [normalizers.NFKC()]
        spaces = " {2,}" if charsmap else r"\s+"
        steps += [normalizers.Replace(Regex(spaces), " "), normalizers.Replace(Regex("^ | $"), "")]
    backend.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    # Splits text inside strings such as "<0x41>" and "[CLS]", so that byte tokens and special tokens never match it.
    # No ordinary subword contains such a string.
    token_names = Regex(r"<(?=0x[0-9A-F]{2}>)|\[(?=(?:CLS|SEP|PAD|UNK|MASK)\])")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Split(token_names, "merged_with_previous")])
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="always")])
    return add_special_tokens(backend, SPECIAL)


def without_normalizer(backend: Backend) -> Backend:
    """Returns a copy that does not normalize, for text that is already normalized."""
    copy = Backend.from_str(backend.to_str())
    copy.normalizer = None
    copy.encode_special_tokens = True
    return copy


def add_special_tokens(backend: Backend, special: dict[str, str]) -> Backend:
    """Adds the special tokens (role -> token) and the template [CLS] A [SEP], in place. Returns `backend`."""
    roberta = special is SPECIAL_BPE
    backend.add_special_tokens(
        [
            # RoBERTa's <mask> includes the space before it.
            AddedToken(token, normalized=False, special=True, lstrip=roberta and token == "<mask>")
            for token in special.values()
        ]
    )
    vocabulary = backend.get_vocab(with_added_tokens=True)
    cls, sep = ((special[role], vocabulary[special[role]]) for role in ("cls", "sep"))
    if roberta:
        backend.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=False)
    else:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[cls, sep]
        )
    return backend
