"""Configurations of published tokenizers, and the texts on which they are compared with published code.

`write(name, folder)` writes the files of a configuration. Small base files are in golden/tokenizers/, written by
golden/make_tokenizer_golden.py, which also writes the ids of transformers and sentencepiece.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from data.sentencepiece import UnigramModel, read_fields

BASE = Path(__file__).parent / "golden" / "tokenizers"
MAPS = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "roberta": {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"},
    "other": {"pad": "<P>", "unk": "<U>", "cls": "<C>", "sep": "<S>", "mask": "<M>"},
}
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, "special": False}
FRAGILE = [
    "A wonderful little film! 7/10",
    "Caf\u00e9 na\u00efve e\u0301 \u00c9COLE \u1ea4",
    "\u96fb\u5f71 \u7535\u5f71good film\u96fb",
    "good\u2028bad\u0085ugly\u2029end",
    "tab\tand\nline\r\nbreak  two   spaces ",
    " [MOVIE] good[MOVIE]bad [movie] [TAG] x[TAG]y  [TAG] ",
    "[CLS] a [SEP] b [PAD][MASK] <s>c</s> <pad><mask>",
    "GOOD Good good goodness UNBELIEVABLE",
    "zero\u200bwidth\u200d\ufeff soft\u00adhyphen",
    "\U0001f600 \U0001f44d\U0001f3fd \u2615 \u16a0\u16db",
    "\x00nul \x07bell \x7fdel \x9c",
    "\uff21\uff22\uff23 \ufb01ne \u2460 \u00bd",
    "don't, won't; it's... \u201cquoted\u201d \u2014 dash",
    "x" * 120 + " y" * 3,
    "hahahahahahaha HOTTTTTTT sooooo",
    "\u03a3\u03a3 \u039f\u0394\u039f\u03a3 \u0130stanbul \u00df \u01c5",
    "under_score @user #tag http://a.b/c?d=e&f=g",
    "<br /><br />good<br />",
    "\u2581block\u2581 \u2581 a\u2581b",
    "<0x41> <unk> [UNK] <|endoftext|>",
    "",
    "   ",
    "\u00a0\u3000",
    "\u0e01\u0e38\u0e49 \u0928\u092e\u0938\u094d\u0924\u0947 \u05e9\u05c1",
]


@cache
def made_texts(count: int = 1000) -> list[str]:
    """Returns FRAGILE and random texts: mixtures of words and difficult characters. The same in every version."""
    stream = random.Random(0)
    words = [word for text in FRAGILE for word in text.split(" ")] + [
        "film", "great", "bad", "the", "of", "wonderful", "acting", "plot.", "movie,", "1999", "not", "\u00e9t\u00e9",
        "Se\u00f1or", "\u96fb\u5f71", "\u30ab\u30bf", "\ud55c\uad6d\uc5b4", "\u0438\u043b\u0438", "\u0391\u03a3",
        "[MOVIE]", "[TAG]", "(good)", "a/b", "--", "...", "!!!", "don't", "\u2019s", "MOVIE", "[movie]", "   ",
    ]  # fmt: skip
    spaces = [" "] * 12 + ["", "\n", "\t", "  ", "\u00a0", "\u2028", "\u0085", "\u200b", "\u3000", "\r\n", "-", "'"]
    ranges = [
        (32, 127),
        (160, 592),
        (768, 880),
        (0x2000, 0x2070),
        (0x3040, 0x30FF),
        (0x4E00, 0x9FFF),
        (0x1F600, 0x1F64F),
    ]
    texts = list(FRAGILE)
    while len(texts) < count:
        parts = []
        for _ in range(stream.randrange(1, 25)):
            low, high = ranges[stream.randrange(len(ranges))]
            word = chr(stream.randrange(low, high)) if stream.randrange(5) == 0 else words[stream.randrange(len(words))]
            parts += [word, spaces[stream.randrange(len(spaces))]]
        texts.append("".join(parts))
    return texts


def spells(text: str, names: list[str]) -> bool:
    """Returns whether a text contains a special token, which is ordinary text here and a token in transformers."""
    return any(name.lower() in text.lower() for name in names)


# -------------------------------------------------------------------------------------------------------------- files


def dump(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def vocabulary() -> list[str]:
    """Returns the lines of the base vocab.txt."""
    return (BASE / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]


def renamed(lines: list[str], style: str) -> list[str]:
    """Returns lines with the special tokens of another style."""
    names = {MAPS["bert"][role]: token for role, token in MAPS[style].items()}
    return [names.get(line, line) for line in lines]


def vocab(
    folder: Path, lines: list[str] | None = None, end: str = "\n", model: str = "bert", config: dict | None = None,
    **others: Any,
) -> None:  # fmt: skip
    """Writes vocab.txt, tokenizer_config.json and other JSON files (name without .json)."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes("".join(line + end for line in lines or vocabulary()).encode())
    settings(folder, model, config, **others)


def settings(folder: Path, model: str, config: dict | None = None, **others: Any) -> None:
    dump(folder, "config.json", {"model_type": model} if model else {})
    dump(folder, "tokenizer_config.json", config or {})
    for name, value in others.items():
        dump(folder, f"{name}.json", value)


def merges(
    folder: Path, style: str = "roberta", model: str = "roberta", config: dict | None = None, **others: Any
) -> None:
    """Writes vocab.json and merges.txt."""
    names = {MAPS["roberta"][role]: token for role, token in MAPS[style].items()}
    dump(folder, "vocab.json", {names.get(token, token): number for token, number in bpe_vocabulary().items()})
    (folder / "merges.txt").write_bytes((BASE / "merges.txt").read_bytes())
    settings(folder, model, config, **others)


def spm(folder: Path, base: str, model: str = "deberta-v2", config: dict | None = None, **others: Any) -> None:
    """Writes a model of SentencePiece."""
    folder.mkdir(exist_ok=True)
    name = "spm.model" if model == "deberta-v2" else "sentencepiece.bpe.model"
    (folder / name).write_bytes((BASE / f"{base}.model").read_bytes())
    settings(folder, model, config, **others)


def bpe_vocabulary() -> dict[str, int]:
    """Returns the base vocab.json, in the order of ids."""
    return json.loads((BASE / "vocab.json").read_text(encoding="utf-8"))


def template(backend: Backend, style: str) -> Any:
    cls, sep = (MAPS[style][role] for role in ("cls", "sep"))
    tokens = [(token, backend.token_to_id(token)) for token in (cls, sep)]
    return processors.TemplateProcessing(
        single=[cls, "$A", sep], pair=[cls, "$A", sep, "$B", sep], special_tokens=tokens
    )


def wordpiece_json(style: str = "bert", post: str = "template", **normalizer: Any) -> Backend:
    """Builds a WordPiece pipeline with BertNormalizer."""
    lines = renamed(vocabulary(), style)
    model = models.WordPiece({line: i for i, line in enumerate(lines)}, unk_token=MAPS[style]["unk"])
    backend = Backend(model)
    backend.normalizer = normalizers.BertNormalizer(**normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(MAPS[style].values()))
    if post == "bert":
        sep, cls = ((MAPS[style][role], backend.token_to_id(MAPS[style][role])) for role in ("sep", "cls"))
        backend.post_processor = processors.BertProcessing(sep, cls)
    elif post == "template":
        backend.post_processor = template(backend, style)
    return backend


def bpe_json(style: str, prefix_space: bool = False, normalizer: Any = None) -> Backend:
    """Builds a byte-level BPE pipeline."""
    names = {MAPS["roberta"][role]: token for role, token in MAPS[style].items()}
    lines = (BASE / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    pairs = [tuple(line.split(" ")) for line in lines]
    backend = Backend(
        models.BPE({names.get(token, token): number for token, number in bpe_vocabulary().items()}, pairs)
    )
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.add_special_tokens(list(MAPS[style].values()))
    after = processors.ByteLevel(trim_offsets=True), template(backend, style)
    backend.post_processor = processors.Sequence(list(after)) if style == "bert" else roberta_processing(backend)
    return backend


def roberta_processing(backend: Backend) -> Any:
    return processors.RobertaProcessing(("</s>", backend.token_to_id("</s>")), ("<s>", backend.token_to_id("<s>")))


def unigram_json(style: str) -> Backend:
    """Builds a Unigram pipeline as converters of SentencePiece models do. Subwords: those of byte.model."""
    model = UnigramModel.parse((BASE / "plain.model").read_bytes())
    subwords = [(token, 0.0) for token in MAPS[style].values()] + model.subwords[3:]
    backend = Backend(models.Unigram(subwords, unk_id=1))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    words = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("\u2581", prepend_scheme="always")
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(words))
    backend.add_special_tokens(list(MAPS[style].values()))
    backend.post_processor = template(backend, style)
    return backend


def whole(
    folder: Path, backend: Backend, model: str, config: dict | None = None, added: list[AddedToken] | None = None,
    **others: Any,
) -> None:  # fmt: skip
    """Writes tokenizer.json."""
    backend.add_tokens(added or [])
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    settings(folder, model, config, **others)


# ----------------------------------------------------------------------------------------------------- configurations

MOVIE = AddedToken("[MOVIE]")
TOKENS = [
    MOVIE,
    AddedToken("[TAG]", lstrip=True, rstrip=True, normalized=False),
    AddedToken("film", single_word=True),
    AddedToken("\u00c9COLE", normalized=True),
]
LISTED = ["[MOVIE]", "[TAG]"]


def decoder(known: list[str], style: str) -> dict[str, dict]:
    """Returns added_tokens_decoder with special tokens and TOKENS. known: the tokens of a base vocabulary, by id."""
    special = [FLAGS | {"content": token, "normalized": False, "special": True} for token in MAPS[style].values()]
    others = [{"content": token.content} | {key: getattr(token, key) for key in FLAGS} for token in TOKENS]
    known = known + [token["content"] for token in others if token["content"] not in known]
    return {str(known.index(token["content"])): token for token in special + others}


def named(style: str) -> dict[str, str]:
    return {f"{role}_token": token for role, token in MAPS[style].items()}


def numbered(start: int) -> dict[str, int]:
    """Returns the content of added_tokens.json."""
    return {token: start + i for i, token in enumerate(LISTED)}


def odd_lines() -> list[str]:
    """Returns vocabulary lines with separators of lines as subwords, equal lines, and spaces at the end of a line."""
    lines = vocabulary()
    return [*lines[:50], "\u2028", "\u0085", "", "\u3000", *lines[50:], "good", "film  ", "##s"]


Writer = Callable[[Path], None]
WORDPIECE: dict[str, Writer] = {
    "vocab": lambda f: vocab(f),
    "vocab, cased": lambda f: vocab(f, config={"do_lower_case": False}),
    "vocab, accents kept": lambda f: vocab(f, config={"strip_accents": False}),
    "vocab, cased without accents": lambda f: vocab(f, config={"do_lower_case": False, "strip_accents": True}),
    "vocab, strip_accents null": lambda f: vocab(f, config={"do_lower_case": True, "strip_accents": None}),
    "vocab, Chinese words": lambda f: vocab(f, config={"tokenize_chinese_chars": False}),
    "vocab, cased, Chinese words": lambda f: vocab(f, config={"do_lower_case": False, "tokenize_chinese_chars": False}),
    "vocab, odd lines": lambda f: vocab(f, odd_lines()),
    "vocab, CRLF": lambda f: vocab(f, end="\r\n"),
    "vocab, added_tokens.json": lambda f: vocab(f, added_tokens=numbered(len(vocabulary()))),
    "vocab, added_tokens.json, cased": lambda f: vocab(
        f, config={"do_lower_case": False}, added_tokens=numbered(len(vocabulary()))
    ),
    "vocab, added_tokens_decoder": lambda f: vocab(
        f, config={"added_tokens_decoder": decoder(vocabulary(), "bert")}
    ),
    "vocab, special_tokens_map": lambda f: vocab(f, special_tokens_map={"additional_special_tokens": LISTED}),
    "vocab, extra_special_tokens": lambda f: vocab(f, config={"extra_special_tokens": LISTED}),
    "vocab, other names": lambda f: vocab(f, renamed(vocabulary(), "other"), special_tokens_map=named("other")),
    "vocab, other names in config": lambda f: vocab(
        f, renamed(vocabulary(), "roberta"),
        config={name: FLAGS | {"__type": "AddedToken", "content": token} for name, token in named("roberta").items()},
    ),
    "vocab, DistilBERT": lambda f: vocab(f, model="distilbert", config={"tokenizer_class": "DistilBertTokenizer"}),
    "vocab, ELECTRA": lambda f: vocab(
        f, model="electra", config={"tokenizer_class": "ElectraTokenizer", "strip_accents": False}
    ),
    "vocab, no [MASK]": lambda f: vocab(
        f, [line for line in vocabulary() if line != "[MASK]"], config={"additional_special_tokens": LISTED}
    ),
}  # fmt: skip
JSON: dict[str, Writer] = {
    "json, do_lower_case false": lambda f: whole(
        f, wordpiece_json(), "bert", config={"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}
    ),
    "json, cased file without options": lambda f: whole(f, wordpiece_json(lowercase=False), "bert"),
    "json, strip_accents": lambda f: whole(
        f, wordpiece_json(), "bert", config={"tokenizer_class": "BertTokenizer", "strip_accents": False}
    ),
    "json, Chinese words": lambda f: whole(f, wordpiece_json(), "electra", config={"tokenize_chinese_chars": False}),
    "json, options of a generic class": lambda f: whole(
        f, wordpiece_json(lowercase=False), "bert",
        config={"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True} | named("bert"),
    ),
    "json, no post-processor": lambda f: whole(f, wordpiece_json(post="none"), "bert"),
    "json, BertProcessing": lambda f: whole(
        f, wordpiece_json(post="bert"), "bert", config={"tokenizer_class": "PreTrainedTokenizerFast"} | named("bert")
    ),
    "json, other names": lambda f: whole(
        f, wordpiece_json("other"), "bert", config={"tokenizer_class": "PreTrainedTokenizerFast"} | named("other")
    ),
    "json, added tokens": lambda f: whole(f, wordpiece_json(), "bert", added=TOKENS),
    "json, added tokens, cased": lambda f: whole(
        f, wordpiece_json(), "distilbert", config={"do_lower_case": False}, added=TOKENS
    ),
    "json, additional special tokens": lambda f: whole(
        f, wordpiece_json(), "bert", config={"additional_special_tokens": LISTED},
        added=[AddedToken(token, special=True) for token in LISTED],
    ),
    "json, RoBERTa": lambda f: whole(f, bpe_json("roberta"), "roberta"),
    "json, RoBERTa, prefix space": lambda f: whole(
        f, bpe_json("roberta"), "roberta", config={"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}
    ),
    "json, RoBERTa, prefix space in the file only": lambda f: whole(
        f, bpe_json("roberta", prefix_space=True), "roberta"
    ),
    "json, ModernBERT": lambda f: whole(
        f, bpe_json("bert", normalizer=normalizers.NFC()), "modernbert", added=[*TOKENS, AddedToken("  ")],
        config={"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192} | named("bert"),
    ),
    "json, ModernBERT, wrong class": lambda f: whole(
        f, bpe_json("bert", normalizer=normalizers.NFC()), "modernbert",
        config={"tokenizer_class": "BertTokenizer", "do_lower_case": True} | named("bert"),
    ),
    "json, XLM-RoBERTa": lambda f: whole(
        f, unigram_json("roberta"), "xlm-roberta",
        config={"tokenizer_class": "PreTrainedTokenizerFast"} | named("roberta"),
    ),
    "json, DeBERTa with added tokens": lambda f: whole(
        f, unigram_json("bert"), "deberta-v2", added=TOKENS,
        config={"tokenizer_class": "PreTrainedTokenizerFast"} | named("bert"),
    ),
}  # fmt: skip
BPE: dict[str, Writer] = {
    "merges": lambda f: merges(f),
    "merges, prefix space": lambda f: merges(f, config={"add_prefix_space": True, "trim_offsets": False}),
    "merges, added_tokens.json": lambda f: merges(f, added_tokens=numbered(len(bpe_vocabulary()))),
    "merges, added_tokens_decoder": lambda f: merges(
        f, config={"added_tokens_decoder": decoder(list(bpe_vocabulary()), "roberta")}
    ),
    "merges, special_tokens_map": lambda f: merges(f, special_tokens_map={"additional_special_tokens": LISTED}),
    "merges, other names": lambda f: merges(
        f, "other", special_tokens_map=named("other") | {"bos_token": "<C>", "eos_token": "<S>"}
    ),
    "merges, DeBERTa": lambda f: merges(f, "bert", model="deberta", config={"tokenizer_class": "DebertaTokenizer"}),
}
SPM: dict[str, Writer] = {
    "spm": lambda f: spm(f, "byte"),
    "spm, lowercase": lambda f: spm(f, "byte", config={"do_lower_case": True}),
    "spm, split at punctuation": lambda f: spm(f, "byte", config={"split_by_punct": True}),
    "spm, lowercase and split": lambda f: spm(f, "byte", config={"do_lower_case": True, "split_by_punct": True}),
    "spm, added_tokens.json": lambda f: spm(f, "byte", added_tokens={"[MASK]": 1200, "[MOVIE]": 1201}),
    "spm, added, lowercase": lambda f: spm(
        f, "byte", config={"do_lower_case": True}, added_tokens={"[MASK]": 1200, "[MOVIE]": 1201}
    ),
    "spm, user-defined": lambda f: spm(f, "user"),
    "spm, no bytes, other names": lambda f: spm(f, "plain", config=named("roberta")),
    "XLM-RoBERTa": lambda f: spm(f, "xlm", "xlm-roberta"),
    "XLM-RoBERTa, added tokens": lambda f: spm(
        f, "xlm", "xlm-roberta", added_tokens={"[MOVIE]": 1002}, config={"tokenizer_class": "XLMRobertaTokenizer"}
    ),
    "XLM-RoBERTa, user-defined": lambda f: spm(f, "user_xlm", "xlm-roberta"),
}
CASES = WORDPIECE | JSON | BPE | SPM
# In these, transformers finds special tokens in a text even with split_special_tokens: they are subwords of the model.
SPELLED = {"json, XLM-RoBERTa", "json, DeBERTa with added tokens"}


def choose_reviews(reviews: list[str]) -> list[str]:
    """Returns the first 200 reviews, and the first one that contains each character."""
    found: dict[str, int] = {}
    for position, review in enumerate(reviews):
        for character in set(review).difference(found):
            found[character] = position
    return [reviews[i] for i in sorted({*range(min(200, len(reviews))), *found.values()})]


def texts_for(name: str, texts: list[str]) -> list[str]:
    """Returns the texts on which a configuration is compared."""
    names = [token for style in MAPS.values() for token in style.values()]
    return [text for text in texts if not spells(text, names)] if name in SPELLED else texts


def published(folder: Path, source: Path, config: dict) -> None:
    (folder / "spm.model").write_bytes((source / "spm.model").read_bytes())
    settings(folder, "deberta-v2", config)


def with_charsmap(folder: Path, source: Path) -> None:
    """Writes xlm.model with the character map of DeBERTa-v3: a further message of field 3 replaces the map."""
    normalizer = next(value for number, value in read_fields((source / "spm.model").read_bytes()) if number == 3)
    size, varint = len(normalizer), b""
    while size >= 128:
        varint, size = varint + bytes([size & 127 | 128]), size >> 7
    message = b"\x1a" + varint + bytes([size]) + normalizer
    spm(folder, "xlm", "xlm-roberta")
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(path.read_bytes() + message)


PUBLISHED: dict[str, Callable[[Path, Path], None]] = {  # need the published spm.model
    "DeBERTa-v3": lambda f, source: published(f, source, {"do_lower_case": False, "vocab_type": "spm"}),
    "DeBERTa-v3, lowercase": lambda f, source: published(f, source, {"do_lower_case": True}),
    "DeBERTa-v3, split at punctuation": lambda f, source: published(f, source, {"split_by_punct": True}),
    "XLM-RoBERTa, published character map": with_charsmap,
}


def write(name: str, folder: Path, source: Path | None = None) -> Path:
    """Writes the files of a configuration. source: the folder of the published spm.model. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if source is None:
        CASES[name](folder)
    else:
        PUBLISHED[name](folder, source)
    return folder
