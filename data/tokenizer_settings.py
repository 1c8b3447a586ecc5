"""Reads the settings of a published tokenizer: its class, its options, its special tokens and its added tokens.

tokenizer_config.json contains the arguments of a class of transformers. config.json names the class where
tokenizer_config.json does not. special_tokens_map.json, added_tokens.json and the added tokens of tokenizer.json apply
where tokenizer_config.json has no added_tokens_decoder.

Differs from transformers 5.24: do_lower_case, split_by_punct and add_prefix_space must be true or false; an id of an
added token that another token has is refused.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from data.checked import as_object, read_json, reading, show

BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
DEBERTA = {"bos": "[CLS]", "eos": "[SEP]"} | BERT
ROBERTA = {
    "bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"
}  # fmt: skip
REQUIRED = ("pad", "unk", "cls", "sep")
UNLIMITED = 10**20  # model_max_length from here on means no limit
OPTIONS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "split_by_punct", "add_prefix_space")


@dataclass(frozen=True)
class Family:
    """The classes of transformers that read the same files.

    files: what they read, in this order. names: role -> default special token, in the order in which missing ones are
    added. options: option -> default.
    """

    files: tuple[str, ...]
    names: dict[str, str]
    options: dict[str, bool | None]


FAMILIES = {
    "bert": Family(
        ("tokenizer.json", "vocab.txt"),
        names=BERT,
        options={"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
    ),
    "roberta": Family(("tokenizer.json", "vocab.json"), names=ROBERTA, options={"add_prefix_space": False}),
    "deberta": Family(("tokenizer.json", "vocab.json"), names=DEBERTA, options={"add_prefix_space": False}),
    "deberta-v2": Family(
        ("spm.model", "tokenizer.json"),
        names=DEBERTA,
        options={"do_lower_case": False, "split_by_punct": False, "add_prefix_space": True},
    ),
    "xlm-roberta": Family(
        ("sentencepiece.bpe.model", "tokenizer.json"), names=ROBERTA, options={"add_prefix_space": True}
    ),
    # uses tokenizer.json as it is; `Tokenizer.save` writes a model of SentencePiece next to it
    "generic": Family(("spm.model", "sentencepiece.bpe.model", "tokenizer.json"), names={}, options={}),
}
CLASSES = {  # without "Fast" at the end
    "BertTokenizer": "bert", "DistilBertTokenizer": "bert", "ElectraTokenizer": "bert",
    "RobertaTokenizer": "roberta", "DebertaTokenizer": "deberta", "DebertaV2Tokenizer": "deberta-v2",
    "XLMRobertaTokenizer": "xlm-roberta", "PreTrainedTokenizer": "generic", "TokenizersBackend": "generic",
}  # fmt: skip
MODEL_TYPES = {
    "bert": "bert", "distilbert": "bert", "electra": "bert", "roberta": "roberta", "deberta": "deberta",
    "deberta-v2": "deberta-v2", "xlm-roberta": "xlm-roberta", "modernbert": "generic",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings of a tokenizer in the JSON files of its folder.

    class_name: the class of transformers, "" if no file names one. family: a key of FAMILIES, "" for a class that is
    not there. options: those of OPTIONS that tokenizer_config.json has. names: role -> special token, as far as files
    contain them; "" stands for null. added: id -> token. extra: further special tokens. model_max_length:
    tokens that the model was made for, special tokens included, or None. truncation_side: right or left, the end at
    which a longer text loses tokens. tokenizer_json: the content of that file, which is large; {} without it.
    """

    class_name: str = ""
    family: str = ""
    options: dict[str, bool | None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    added: dict[int, AddedToken] = field(default_factory=dict)
    extra: list[AddedToken] = field(default_factory=list)
    model_max_length: int | None = None
    truncation_side: str = "right"
    tokenizer_json: dict[str, Any] = field(default_factory=dict, repr=False)

    def roles(self, defaults: dict[str, str]) -> dict[str, str]:
        """Returns role -> special token, in the order in which transformers adds missing ones. null removes a token
        only where no tokenizer needs it."""
        merged = defaults | {role: name for role, name in self.names.items() if name or role not in REQUIRED}
        return {role: merged[role] for role in ROBERTA if merged.get(role)}

    def option(self, name: str, family: str) -> bool | None:
        """Returns an option, by default that of a family."""
        return self.options.get(name, FAMILIES[family].options.get(name))


def read_settings(directory: Path) -> Settings:
    """Reads the settings of the tokenizer in a folder. Raises ValueError that names the file and the value."""
    path = directory / "tokenizer_config.json"
    config = object_or_empty(path)
    if config.get("sp_model_kwargs") not in (None, {}, {"enable_sampling": False}):
        raise ValueError(f"{path}: sp_model_kwargs {show(config['sp_model_kwargs'])} is not supported")
    if config.get("split_special_tokens"):
        raise ValueError(f"{path}: split_special_tokens = true is not supported")
    class_name, family = read_class(directory, config)
    tokenizer_json = object_or_empty(directory / "tokenizer.json")
    special = config | (
        {} if "added_tokens_decoder" in config else object_or_empty(directory / "special_tokens_map.json")
    )
    names = {role: token_name(special[f"{role}_token"], path) for role in ROBERTA if f"{role}_token" in special}
    extra = [as_token(value, path, special=True) for value in extra_tokens(special, path)]
    return Settings(
        class_name=class_name,
        family=family,
        options={name: read_flag(config, name, path) for name in OPTIONS if name in config},
        names=names,
        added=read_added(
            directory, config, tokenizer_json, special={*names.values(), *(token.content for token in extra)}
        ),
        extra=extra,
        model_max_length=read_limit(config, path),
        truncation_side=read_side(directory, config, tokenizer_json),
        tokenizer_json=tokenizer_json,
    )


def read_side(directory: Path, config: dict[str, Any], tokenizer_json: dict[str, Any]) -> str:
    """Returns truncation_side, by default that of tokenizer.json. Raises ValueError unless it is left or right."""
    side, path = config.get("truncation_side"), directory / "tokenizer_config.json"
    if side is None:
        truncation = tokenizer_json.get("truncation")
        side = truncation.get("direction") if isinstance(truncation, dict) else None
        path, side = directory / "tokenizer.json", side.lower() if isinstance(side, str) else side
    if side not in (None, "left", "right"):
        raise ValueError(f"{path}: truncation_side must be left or right, not {show(repr(side))}")
    return side or "right"


def extra_tokens(special: dict[str, Any], path: Path) -> list[Any]:
    """Returns the special tokens without a role, as the files contain them: `<name>_token` and lists of them.

    Raises ValueError if the list of tokens without a name is neither a list nor an object.
    """
    named = [value for key, value in special.items() if key.endswith("_token") and key[:-6] not in ROBERTA]
    listed = special.get("extra_special_tokens") or special.get("additional_special_tokens") or []
    named = [value for value in named if isinstance(value, str | dict)]
    if not isinstance(listed, list | dict):
        raise ValueError(f"{path}: additional_special_tokens must be a list of tokens, not '{show(listed, 40)}'")
    return [*named, *(listed.values() if isinstance(listed, dict) else listed)]


def object_or_empty(path: Path) -> dict[str, Any]:
    """Reads a JSON object, {} if there is no such file. Raises ValueError for another value."""
    return as_object(read_json(path), path) if path.is_file() else {}


def read_class(directory: Path, config: dict[str, Any]) -> tuple[str, str]:
    """Returns (class, family): of tokenizer_config.json, else of config.json, else of the model type."""
    model = object_or_empty(directory / "config.json")
    model_type, name = (
        model.get("model_type") or "",
        config.get("tokenizer_class") or model.get("tokenizer_class") or "",
    )
    for key, value in (("model_type", model_type), ("tokenizer_class", name)):
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(f"{directory}: {key} must be a name, not '{show(value, 40)}'")
    if name and MODEL_TYPES.get(model_type) != "generic":  # transformers 5 ignores the class in ModernBERT's files
        return name, CLASSES.get(name.removesuffix("Fast"), "")
    return "", MODEL_TYPES.get(model_type, "")


def read_flag(config: dict[str, Any], name: str, path: Path) -> bool | None:
    """Returns an option. Raises ValueError unless it is true or false, or null for strip_accents."""
    value = config[name]
    if isinstance(value, bool) or (value is None and name == "strip_accents"):
        return value
    raise ValueError(f"{path}: {name} must be true or false, not {show(repr(value))}")


def read_limit(config: dict[str, Any], path: Path) -> int | None:
    """Returns model_max_length, or None if there is no limit. Raises ValueError unless it is a positive number."""
    value = config.get("model_max_length", config.get("max_len"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ValueError(f"{path}: model_max_length must be a positive number, not {show(repr(value))}")
    return None if value >= UNLIMITED else int(value)


def as_token(value: Any, path: Path, special: bool) -> AddedToken:
    """Returns a token of a JSON file: a string, or an object with content and flags."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=special, normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str) or not value["content"]:
        raise ValueError(f"{path}: {show(repr(value))} is not a token")
    flags = {key: bool(value[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in value}
    return AddedToken(value["content"], special=special or bool(value.get("special")), **flags)


def token_name(value: Any, path: Path) -> str:
    """Returns the text of a special token, "" for null."""
    return "" if value is None else as_token(value, path, special=True).content


def read_added(
    directory: Path, config: dict[str, Any], tokenizer_json: dict[str, Any], special: set[str]
) -> dict[int, AddedToken]:
    """Returns id -> added token. special: the special tokens, which added_tokens.json does not mark."""
    path = directory / "tokenizer_config.json"
    if "added_tokens_decoder" in config:
        decoder = as_object(config["added_tokens_decoder"], f"{path}: added_tokens_decoder")
        found = [(number, as_token(value, path, special=False)) for number, value in decoder.items()]
    else:
        path = directory / "added_tokens.json"
        found = [
            (number, as_token(name, path, special=name in special)) for name, number in object_or_empty(path).items()
        ]
        whole = directory / "tokenizer.json"
        with reading(whole, "a tokenizer.json"):
            tokens = tokenizer_json.get("added_tokens") or []
            last = {value["id"]: as_token(value, whole, special=False) for value in tokens}
        found = [(number, token) for number, token in found if is_new(number, last)] + list(last.items())
    try:
        added = {int(number): token for number, token in sorted(found, key=lambda item: int(item[0]))}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path}: the ids of added tokens must be integers") from None
    if len(added) < len(found):
        raise ValueError(f"{path}: two added tokens have the same id")
    return added


def is_new(number: Any, last: dict[Any, AddedToken]) -> bool:
    """Returns whether no token of `last` has this id."""
    return not isinstance(number, int) or number not in last


def add_tokens(backend: Backend, settings: Settings, special: dict[str, str], directory: Path) -> None:
    """Adds tokens in place, as transformers does: added tokens by id, then missing special tokens, then extra ones.

    special: role -> token. A special token that is in no file and not required is added only if extra tokens follow,
    whose ids depend on it. Raises ValueError if a required special token is in no file, or if the id of an added token
    is not the next free one.
    """
    added = {token.content for token in settings.added.values()}
    unknown = [token for token in special.values() if token not in added and backend.token_to_id(token) is None]
    missing = [special[role] for role in REQUIRED if special.get(role) in unknown]
    if missing:
        raise ValueError(
            f"{directory}: the vocabulary lacks the special tokens {show(', '.join(missing))}; "
            "special_tokens_map.json or tokenizer_config.json can name others (cls_token, sep_token, pad_token, "
            "unk_token)"
        )
    before = backend.get_added_tokens_decoder().values()
    known, added = {repr(token) for token in before}, added | {token.content for token in before}
    extra = [token for token in settings.extra if token.content not in added]
    named = [name for name in dict.fromkeys(special.values()) if name not in added and (extra or name not in unknown)]
    tokens = [token for token in settings.added.values() if repr(token) not in known]
    tokens += [AddedToken(name, special=True, normalized=False) for name in named]
    backend.add_tokens(tokens + extra)
    for number, token in settings.added.items():
        if backend.token_to_id(token.content) != number:
            raise ValueError(
                f"{directory}: the added token '{show(token.content)}' has the id {number} in its file, but the id "
                f"{backend.token_to_id(token.content)} after the tokens before it"
            )
