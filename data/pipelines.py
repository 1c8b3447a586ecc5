"""Builds the `tokenizers` pipeline of each kind: normalizer, pre-tokenizer, model, decoder and special tokens.

The settings are those of the files that BERT (wordpiece), RoBERTa (bpe), and DeBERTa and XLM-RoBERTa (unigram) publish.
`wordlevel` is the tokenizer of the word networks.
"""

import json
import re
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

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


def wordpiece(
    vocabulary: dict[str, int],
    lowercase: bool,
    strip_accents: bool | None = None,
    chinese_chars: bool = True,
    special: dict[str, str] = SPECIAL,
) -> Backend:
    """Builds BERT's WordPiece pipeline. vocabulary: subword -> id.

    strip_accents: None means the value of `lowercase`. chinese_chars: each Chinese character is a word. special: role
    -> token, as in `Tokenizer`.
    """
    backend = Backend(models.WordPiece(vocabulary, unk_token=special["unk"], max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese_chars
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def bpe(model: models.BPE, prefix_space: bool = False) -> Backend:
    """Builds RoBERTa's byte-level BPE pipeline. prefix_space: insert a space before the first word."""
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def unigram(
    subwords: list[tuple[str, float]],
    unk_id: int,
    normalizer: list[Normalizer],
    byte_fallback: bool = True,
    split_by_punct: bool = False,
    special: dict[str, str] = SPECIAL,
) -> Backend:
    """Builds DeBERTa's Unigram pipeline. subwords: (subword, log probability) in the order of ids.

    normalizer: its steps. byte_fallback: encode unknown characters as bytes. split_by_punct: a punctuation mark is a
    word.
    """
    backend = Backend(models.Unigram(subwords, unk_id=unk_id, byte_fallback=byte_fallback))
    backend.normalizer = normalizers.Sequence(normalizer)
    words: list[PreTokenizer] = []
    if split_by_punct:  # without the space before a mark, which would become a subword
        words += [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Split(Regex(" +$"), "removed")]
    words.append(pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True))
    # No ordinary subword contains such a string.
    cut = pre_tokenizers.Split(token_names(special), "merged_with_previous")
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, cut])
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="always")])
    return backend


def trained_normalizer() -> list[Normalizer]:
    """Returns the steps for a Unigram tokenizer that this project trains."""
    return [normalizers.NFKC(), *single_spaces(r"\s+")]


def spm_normalizer(charsmap: bytes, lowercase: bool) -> list[Normalizer]:
    """Returns the steps that come close to SentencePiece's. charsmap: its character map."""
    steps: list[Normalizer] = [normalizers.Lowercase()] if lowercase else []
    return steps + ([normalizers.Precompiled(charsmap)] if charsmap else []) + single_spaces(" {2,}")


def hf5_normalizer(lowercase: bool) -> list[Normalizer]:
    """Returns the steps of DebertaV2Tokenizer of transformers 5, which has no character map."""
    steps: list[Normalizer] = [normalizers.Lowercase()] if lowercase else []
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    return [*steps, spaces, normalizers.NFC(), normalizers.Strip(left=False)]


def single_spaces(spaces: str) -> list[Normalizer]:
    """Returns the steps that replace each match of `spaces` by one space and remove it at both ends."""
    return [normalizers.Replace(Regex(spaces), " "), normalizers.Replace(Regex("^ | $"), "")]


def token_names(special: dict[str, str]) -> Regex:
    """Returns an expression that splits strings such as "<0x41>" and "[CLS]" after their first character, so that byte
    tokens and special tokens never match text."""
    if special == SPECIAL:
        return Regex(r"<(?=0x[0-9A-F]{2}>)|\[(?=(?:CLS|SEP|PAD|UNK|MASK)\])")
    return Regex(rf"<(?=0x[0-9A-F]{{2}}>)|{inside(special)}")


def inside(special: dict[str, str]) -> str:
    """Returns an expression that matches the first character of each special token, if the others follow."""
    escaped = [(re.escape(token[0]), re.escape(token[1:])) for token in sorted(special.values()) if len(token) > 1]
    return "|".join(f"{first}(?={rest})" for first, rest in escaped)


def special_added_tokens(special: dict[str, str]) -> list[AddedToken]:
    """Returns the special tokens (role -> token) as the package represents them."""
    return [
        # RoBERTa's <mask> includes the space before it.
        AddedToken(token, normalized=False, special=True, lstrip=token == "<mask>")
        for token in special.values()
    ]


def add_special_tokens(backend: Backend, special: dict[str, str]) -> Backend:
    """Adds the special tokens (role -> token) and the template [CLS] A [SEP], in place. Returns `backend`."""
    backend.add_special_tokens(special_added_tokens(special))
    return add_template(backend, special)


def id_of(backend: Backend, token: str) -> int:
    """Returns the id of a token. Raises KeyError if the pipeline does not have it."""
    number = backend.token_to_id(token)
    if number is None:
        raise KeyError(token)
    return number


def add_template(backend: Backend, special: dict[str, str]) -> Backend:
    """Sets the template [CLS] A [SEP], in place. Returns `backend`."""
    cls, sep = ((special[role], id_of(backend, special[role])) for role in ("cls", "sep"))
    if special == SPECIAL_BPE:
        backend.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=False)
    else:
        first, last = cls[0], sep[0]
        backend.post_processor = processors.TemplateProcessing(
            single=[f"{first}:0", "$A:0", f"{last}:0"],
            pair=[f"{first}:0", "$A:0", f"{last}:0", "$B:1", f"{last}:1"],
            special_tokens=[cls, sep],
        )
    return backend


# ------------------------------------------------------------------------------------------- parts of a pipeline


def state(part: Any) -> dict[str, Any]:
    """Returns the settings of a part of a pipeline as tokenizer.json contains them, {} for None."""
    return json.loads(part.__getstate__()) if part is not None else {}


def template_tokens(post_processor: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the tokens that a post-processor puts before and after a text. post_processor: its `state`.

    Raises ValueError for a type that is not supported.
    """
    kind = post_processor.get("type", "ByteLevel")
    if kind == "ByteLevel":  # changes offsets only
        return [], []
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [post_processor["cls"][0]], [post_processor["sep"][0]]
    if kind == "TemplateProcessing":
        text = [i for i, part in enumerate(post_processor["single"]) if "Sequence" in part]
        if len(text) != 1:
            raise ValueError("its post_processor does not contain the text exactly once")
        if types := {next(iter(part.values())).get("type_id", 0) for part in post_processor["single"]} - {0}:
            raise ValueError(f"its post_processor gives tokens the type {max(types)}; only type 0 is supported")
        parts = post_processor["single"][: text[0]], post_processor["single"][text[0] + 1 :]
        before, after = ([part["SpecialToken"]["id"] for part in side] for side in parts)
        tokens = {name: value["tokens"] for name, value in post_processor["special_tokens"].items()}
        return [t for name in before for t in tokens[name]], [t for name in after for t in tokens[name]]
    if kind == "Sequence":
        sides = [template_tokens(part) for part in post_processor["processors"]]
        before = [token for side, _ in reversed(sides) for token in side]
        return before, [token for _, side in sides for token in side]
    raise ValueError(f"its post_processor {kind} is not supported")


def matching_text(backend: Backend, special: dict[str, str]) -> Backend:
    """Returns the pipeline that segments text: special tokens (role -> token) never match it, other added tokens do.

    Returns `backend` itself where it does that already.
    """
    names = set(special.values())
    backend.encode_special_tokens = True  # tokens with the flag `special` do not match text
    if any(token.special != (token.content in names) for token in backend.get_added_tokens_decoder().values()):
        content = json.loads(backend.to_str())
        for token in content["added_tokens"]:
            token["special"] = token["content"] in names
        backend = Backend.from_str(json.dumps(content))
    if spells_special_tokens(backend, special):
        backend = Backend.from_str(backend.to_str())
        steps = [] if backend.pre_tokenizer is None else [backend.pre_tokenizer]
        steps.append(pre_tokenizers.Split(Regex(inside(special)), "merged_with_previous"))
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.encode_special_tokens = True
    return backend


def spells_special_tokens(backend: Backend, special: dict[str, str]) -> bool:
    """Returns whether the model of a pipeline finds a special token, other than unk, in a text that spells it."""
    names = [token for role, token in special.items() if role != "unk"]
    texts = [[name, f"a {name} b", f"a{name}b"] for name in names]
    encodings = (backend.encode_batch(spellings, add_special_tokens=False) for spellings in texts)
    return any(name in part.tokens for name, parts in zip(names, encodings, strict=True) for part in parts)
