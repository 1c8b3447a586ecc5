"""Reads tokenizer.json, with the options of tokenizer_config.json that change its pipeline.

transformers applies the options to this file in two ways. Version 4 changes the parts of the pipeline that the file
has; version 5 replaces the pipeline by that of the class. Both give the same ids for the files that they write. This
module changes the parts. Where a part has no such option, the option must agree with what the part does.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel

from data.checked import about, reading, show, silent_stderr
from data.patterns import check_pipeline
from data.pipelines import SPECIAL, SPECIAL_BPE, SPECIAL_WORDS, add_template, state, template_tokens
from data.spm_segmenter import SpmSegmenter
from data.tokenizer_settings import FAMILIES, Settings, add_tokens

KINDS = {
    "bert": "wordpiece", "roberta": "bpe", "deberta": "bpe", "deberta-v2": "unigram", "xlm-roberta": "unigram"
}  # fmt: skip
Options = dict[str, bool | None]


@dataclass(frozen=True)
class Published:
    """A tokenizer as its files describe it. Fields: those of `data.tokenization.Tokenizer`."""

    backend: Backend
    kind: str
    special: dict[str, str]
    template: tuple[list[str], list[str]] = ([], [])
    lowercase: bool = False
    spm: SpmSegmenter | None = None
    model_max_length: int | None = None
    truncation_side: str = "right"


def main_roles(special: dict[str, str]) -> dict[str, str]:
    """Returns those of the special tokens (role -> token) that have a role of SPECIAL."""
    return {role: special[role] for role in SPECIAL if role in special}


def read_tokenizer_json(directory: Path, settings: Settings, variant: str) -> Published:
    """Reads tokenizer.json of a folder. variant: without effect. Raises ValueError for what is not supported."""
    path = directory / "tokenizer.json"
    content = json.dumps(check_pipeline(path, settings.tokenizer_json))
    with reading(path, "a tokenizer.json"), silent_stderr():
        backend = Backend.from_str(content)
    kind = type(backend.model).__name__.lower()
    if getattr(backend.model, "dropout", None):
        raise ValueError(f"{path}: dropout {backend.model.dropout} of its model gives random ids; set it to null")
    family = settings.family
    if KINDS.get(family, kind) != kind:
        if settings.class_name:
            raise ValueError(f"{path} has a {kind} model, but {settings.class_name} reads {KINDS[family]}")
        family = ""  # config.json describes the network, not this file
    with reading(path, "a tokenizer.json"), about(path, "has a setting that is not supported"), silent_stderr():
        apply_options(backend, settings.options, family)
        template = template_tokens(state(backend.post_processor))
    named = family in KINDS
    names = settings.roles(FAMILIES[family].names if named else names_in(backend, kind, template))
    add_tokens(backend, settings, names, directory)
    check_template(path, backend, state(backend.post_processor))
    if kind != "wordlevel" or template[0]:
        template = with_template(path, backend, template, names, settings)
    return Published(backend, kind, names, template=template, lowercase="A" not in normalized(backend, "A"))


def template_ids(post_processor: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields (token, id) of the tokens that a post-processor puts around a text. post_processor: its `state`."""
    for part in post_processor.get("processors", []):
        yield from template_ids(part)
    for side in ("cls", "sep"):
        if side in post_processor:
            yield post_processor[side][0], post_processor[side][1]
    for value in post_processor.get("special_tokens", {}).values():
        yield from zip(value["tokens"], value["ids"], strict=True)


def check_template(path: Path, backend: Backend, post_processor: dict[str, Any]) -> None:
    """Raises ValueError for a token of the post-processor that has another id in the vocabulary, or none."""
    for token, number in template_ids(post_processor):
        if (own := backend.token_to_id(token)) != number:
            raise ValueError(
                f"{path}: its post_processor gives '{show(token)}' the id {number}, its vocabulary {own}; fetch it "
                "again"
            )


def names_in(backend: Backend, kind: str, template: tuple[list[str], list[str]]) -> dict[str, str]:
    """Returns role -> special token of a tokenizer.json without a class, as far as they can be found.

    cls and sep are those of the post-processor, pad that of the padding; the others have one of the usual names.
    """
    conventions = [SPECIAL_WORDS] if kind == "wordlevel" else []
    conventions += [SPECIAL_BPE, SPECIAL] if backend.token_to_id("<s>") is not None else [SPECIAL, SPECIAL_BPE]
    names: dict[str, str] = {}
    for role, name in (item for convention in conventions for item in convention.items()):
        if role not in names and backend.token_to_id(name) is not None:
            names[role] = name
    first, last = template
    names |= ({"cls": first[0]} if first else {}) | ({"sep": last[-1]} if last else {})
    return names | ({"pad": backend.padding["pad_token"]} if backend.padding else {})


def with_template(
    path: Path, backend: Backend, template: tuple[list[str], list[str]], names: dict[str, str], settings: Settings
) -> tuple[list[str], list[str]]:
    """Returns the tokens before and after a text: those of the post-processor, or [CLS] and [SEP] without one.

    Without a post-processor, only the classes that are supported by name put them there. Raises ValueError if
    transformers would put no token before a text, or if its versions would put different ones.
    """
    family, class_name = settings.family, settings.class_name
    adds_none = family == "generic" or (class_name and not family)
    if not template[0] and (template[1] or adds_none):
        way_out = "a tokenizer_class in tokenizer_config.json, such as BertTokenizer or RobertaTokenizer, puts it there"
        because = f", which {class_name} leaves to its post_processor" if adds_none and class_name else ""
        raise ValueError(
            f"{path} puts no token before a text{because}, but the models here read the first one, [CLS]; {way_out}"
        )
    if not template[0]:
        if "cls" not in names or "sep" not in names:
            raise ValueError(
                f"{path} has no [CLS] and [SEP]; name them in special_tokens_map.json (cls_token, sep_token)"
            )
        add_template(backend, main_roles(names))
        return [names["cls"]], [names["sep"]]
    if family in KINDS and template != ([names["cls"]], [names["sep"]]):
        raise ValueError(
            f"{path} puts {' '.join(template[0])} before and {' '.join(template[1])} after a text, but the special "
            f"tokens of its class are {names['cls']} and {names['sep']}; name them in special_tokens_map.json"
        )
    return template


# ------------------------------------------------------------------------------------------------------------ options


def normalized(backend: Backend, text: str) -> str:
    """Returns a text after the normalizer."""
    return text if backend.normalizer is None else backend.normalizer.normalize_str(text)


def words(backend: Backend, text: str) -> list[str]:
    """Returns the words of a text after the pre-tokenizer."""
    return [text] if backend.pre_tokenizer is None else [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


# option -> its value, observed in what a pipeline does
OBSERVED: dict[str, Callable[[Backend], bool]] = {
    "do_lower_case": lambda backend: "A" not in normalized(backend, "A"),
    "strip_accents": lambda backend: unicodedata.normalize("NFC", normalized(backend, "é")).strip() != "é",
    "tokenize_chinese_chars": lambda backend: normalized(backend, "電影").strip() != "電影",
    "add_prefix_space": lambda backend: words(backend, "a") != ["a"],
    "split_by_punct": lambda backend: len(words(backend, "a,a")) > 1,
}


def apply_options(backend: Backend, given: Options, family: str) -> None:
    """Applies the options of tokenizer_config.json to a pipeline, in place.

    given: those in the file. family: see FAMILIES; "generic" uses the pipeline as it is. Raises ValueError for an
    option that disagrees with a part that cannot be changed.
    """
    if family == "generic":
        return
    if family:
        given = {name: value for name, value in given.items() if name in FAMILIES[family].options}
    defaults = FAMILIES[family].options if family in ("bert", "roberta", "deberta") else {}
    change_parts(backend, defaults | given)
    if family == "deberta-v2":
        add_parts(backend, given)
    for name, value in given.items():
        if value is not None and not agrees(backend, name, value) and name in unchangeable(backend):
            raise ValueError(
                f"its pipeline and {name} = {str(value).lower()} in tokenizer_config.json differ; delete this option, "
                'or set "tokenizer_class": "PreTrainedTokenizerFast", which uses the pipeline as it is'
            )


def agrees(backend: Backend, name: str, value: Any) -> bool:
    """Returns whether a pipeline does what an option says.

    For add_prefix_space = false, transformers 5 writes a Metaspace that puts ▁ before the first word of a text, but not
    after an added token.
    """
    part = state(backend.pre_tokenizer)
    once = any(step.get("prepend_scheme") == "first" for step in (part, *part.get("pretokenizers", ())))
    return OBSERVED[name](backend) == value or (name == "add_prefix_space" and value is False and once)


def change_parts(backend: Backend, options: Options) -> None:
    """Sets options of BertNormalizer and ByteLevel, where a pipeline has them."""
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    if isinstance(normalizer, BertNormalizer):
        normalizer.lowercase = bool(options.get("do_lower_case", normalizer.lowercase))
        normalizer.strip_accents = options.get("strip_accents", normalizer.strip_accents)
        normalizer.handle_chinese_chars = bool(options.get("tokenize_chinese_chars", normalizer.handle_chinese_chars))
        backend.normalizer = normalizer
    if isinstance(pre_tokenizer, ByteLevel):
        pre_tokenizer.add_prefix_space = bool(options.get("add_prefix_space", pre_tokenizer.add_prefix_space))
        backend.pre_tokenizer = pre_tokenizer


def add_parts(backend: Backend, options: Options) -> None:
    """Adds the parts of a DeBERTa-v2 that lowercase and that split at punctuation, as transformers 5 does."""
    if options.get("do_lower_case") and not OBSERVED["do_lower_case"](backend):
        steps = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    if options.get("split_by_punct") and not OBSERVED["split_by_punct"](backend):
        parts = [] if backend.pre_tokenizer is None else [backend.pre_tokenizer]
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("isolated"), *parts])


def unchangeable(backend: Backend) -> set[str]:
    """Returns the options that `change_parts` cannot set in a pipeline."""
    names = set(OBSERVED)
    if isinstance(backend.normalizer, BertNormalizer):
        names -= {"do_lower_case", "strip_accents", "tokenize_chinese_chars"}
    return names - ({"add_prefix_space"} if isinstance(backend.pre_tokenizer, ByteLevel) else set())
