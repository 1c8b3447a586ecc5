"""Reads published tokenizers: spm.model, sentencepiece.bpe.model, tokenizer.json, vocab.txt, vocab.json and merges.txt.

The ids equal those of transformers' fast tokenizers for WordPiece and BPE, and those of the sentencepiece library for a
model of SentencePiece. Where versions 4 and 5 of transformers read tokenizer.json differently, version 4 applies: the
options of tokenizer_config.json change its pipeline and do not replace it; in ModernBERT's folders and for DeBERTa-v2's
do_lower_case and split_by_punct, version 5 applies. A file of the class PreTrainedTokenizerFast is used as it is, also
as in version 5. Options of slow tokenizers only (do_basic_tokenize, never_split) have no effect, as in transformers'
fast tokenizers.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import models

from data.checked import about, reading, show, silent_stderr
from data.pipelines import (
    add_special_tokens,
    add_template,
    bpe,
    hf5_normalizer,
    spm_normalizer,
    unigram,
    wordpiece,
)
from data.sentencepiece import UnigramModel
from data.spm_segmenter import SpmSegmenter
from data.tokenizer_json import Published, main_roles, read_tokenizer_json
from data.tokenizer_settings import (
    BERT,
    CLASSES,
    FAMILIES,
    REQUIRED,
    ROBERTA,
    Settings,
    add_tokens,
    object_or_empty,
    read_settings,
)

UNUSED_IDS = 1_000  # ids without a token that a vocabulary may have, besides one for each token
MODEL_BYTES = 2**28  # of vocab.txt, merges.txt or a model of SentencePiece; the largest in use has 5 MB


def read_bytes(path: Path) -> bytes:
    """Reads a file of a bounded size. Raises ValueError that names a larger one."""
    if (size := path.stat().st_size) > MODEL_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; a file of at most {MODEL_BYTES:,} is read")
    return path.read_bytes()


def read_tokenizer(directory: Path, variant: str = "published") -> Published:
    """Reads the tokenizer of a folder. variant: see `data.tokenization.load_tokenizer`.

    Raises FileNotFoundError if there is none, ValueError if a file is damaged or contains a setting that is not
    supported.
    """
    settings = read_settings(directory)
    present = [name for name in READERS if (directory / name).is_file()]
    if settings.class_name and not settings.family and "tokenizer.json" not in present:
        raise ValueError(
            f"{directory}: {settings.class_name} needs a tokenizer.json; supported without one: {', '.join(CLASSES)}"
        )
    allowed = allowed_files(settings)
    found = [name for name in allowed if name in present]
    if not found:
        reason = f"; {settings.class_name or 'its model'} reads {' or '.join(allowed)}" if present else ""
        files = f"{', '.join(name for name in READERS if name != 'vocab.json')}, or vocab.json with merges.txt"
        raise FileNotFoundError(f"{directory} contains no tokenizer ({files}){reason}")
    if variant != "published" and found[0] != "spm.model":
        raise ValueError(f"{directory / found[0]}: the variant {variant} of a tokenizer exists for spm.model only")
    with reading(directory, "a tokenizer"), silent_stderr():
        read = READERS[found[0]](directory, settings, variant)
    check_numbers(directory / found[0], read.backend)
    return replace(read, model_max_length=settings.model_max_length, truncation_side=settings.truncation_side)


def check_numbers(path: Path, backend: Backend) -> None:
    """Raises ValueError for two tokens with one id, and for ids that are far above the number of tokens."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if len(set(vocabulary.values())) < len(vocabulary):
        number, _ = Counter(vocabulary.values()).most_common(1)[0]
        raise ValueError(f"{path} has several tokens with the id {number}; fetch it again")
    largest = max(vocabulary.values(), default=0)
    if largest >= 2 * len(vocabulary) + UNUSED_IDS:
        raise ValueError(f"{path} has {len(vocabulary):,} tokens, but the id {largest:,}; fetch it again")


def allowed_files(settings: Settings) -> tuple[str, ...]:
    """Returns the names of the files that a tokenizer can be read from, the preferred ones first."""
    if settings.class_name and not settings.family:
        return ("tokenizer.json",)
    preferred = FAMILIES[settings.family].files if settings.family else ()
    if settings.class_name or settings.family == "generic":
        return preferred
    return tuple(dict.fromkeys([*preferred, *READERS]))


def complete(directory: Path, settings: Settings, read: Published) -> Published:
    """Adds the added tokens of the files and the template [CLS] A [SEP]."""
    add_tokens(read.backend, settings, read.special, directory)
    add_template(read.backend, main_roles(read.special))
    return replace(read, template=([read.special["cls"]], [read.special["sep"]]))


# --------------------------------------------------------------------------------- vocab.txt, vocab.json and merges.txt


def read_vocab(directory: Path, settings: Settings, variant: str) -> Published:
    """Reads vocab.txt of a BERT: one subword on each line."""
    path = directory / "vocab.txt"
    names = settings.roles(FAMILIES["bert"].names)
    vocabulary = split_lines(path)
    listed = {token.content for token in settings.added.values()}
    missing = [names[role] for role in REQUIRED if names[role] not in vocabulary and names[role] not in listed]
    if missing:
        raise ValueError(f"{path} is not a WordPiece vocabulary: {show(', '.join(missing))} missing")
    lowercase = bool(settings.option("do_lower_case", "bert"))
    accents = settings.option("strip_accents", "bert")
    chinese = bool(settings.option("tokenize_chinese_chars", "bert"))
    backend = wordpiece(vocabulary, lowercase, strip_accents=accents, chinese_chars=chinese, special=names)
    return complete(directory, settings, Published(backend, "wordpiece", names, lowercase=lowercase))


def split_lines(path: Path) -> dict[str, int]:
    """Returns subword -> line number, from 0. Lines end in "\\n" or "\\r\\n" only: U+2028 and U+0085 are subwords.

    As in the `tokenizers` package, spaces at the end of a line are dropped, and the last one of equal lines counts. The
    other ones, and lines of spaces only, keep their numbers, with names that no word has.
    """
    with about(path, "is not UTF-8"):
        lines = read_bytes(path).decode("utf-8").split("\n")
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(lines if lines[-1] else lines[:-1]):
        line = line.removesuffix("\r")
        line = line.rstrip() or line
        if line in vocabulary:
            vocabulary[f"{line}\n{vocabulary[line]}"] = vocabulary[line]
        vocabulary[line] = number
    return vocabulary


def is_id(number: object) -> bool:
    """Returns whether a value of a JSON file can be the id of a token."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**31


def split_merges(path: Path, text: str) -> list[tuple[str, str]]:
    """Returns the pairs of a merges.txt, one a line after `#version`. Raises ValueError for another line."""
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(f"{path}: line {number} is '{show(line, 40)}', not two subwords; fetch it again")
        pairs.append((left, right))
    return pairs


def read_merges(directory: Path, settings: Settings, variant: str) -> Published:
    """Reads vocab.json and merges.txt of a RoBERTa."""
    if not (directory / "merges.txt").is_file():
        raise FileNotFoundError(f"{directory} contains vocab.json, but not merges.txt")
    vocabulary, path = object_or_empty(directory / "vocab.json"), directory / "merges.txt"
    if wrong := [name for name, number in vocabulary.items() if not is_id(number)]:
        raise ValueError(
            f"{directory / 'vocab.json'}: the id of '{show(wrong[0])}' is not a whole number from 0 on; fetch it again"
        )
    with about(path, "is not UTF-8"):
        text = read_bytes(path).decode("utf-8")
    pairs = split_merges(path, text)
    if unknown := [part for pair in pairs for part in (*pair, "".join(pair)) if part not in vocabulary]:
        raise ValueError(f"{path}: '{show(unknown[0])}' is not in vocab.json; fetch both again")
    with reading(path, "the merges of vocab.json"):
        model = models.BPE(vocabulary, pairs)
    backend = bpe(model, prefix_space=bool(settings.option("add_prefix_space", "roberta")))
    if settings.family in ("roberta", "deberta"):
        defaults = FAMILIES[settings.family].names
    else:
        defaults = BERT if backend.token_to_id("<s>") is None and backend.token_to_id("[CLS]") is not None else ROBERTA
    names = settings.roles(defaults)
    return complete(directory, settings, Published(backend, "bpe", names))


# ------------------------------------------------------------------------------------------------------ SentencePiece


def read_deberta(directory: Path, settings: Settings, variant: str) -> Published:
    """Reads spm.model of a DeBERTa."""
    path = directory / "spm.model"
    data = read_bytes(path)
    with reading(path, "a model of SentencePiece"), about(path, "cannot be read as a Unigram model"):
        model = UnigramModel.parse(data)
    lowercase, by_punct = (bool(settings.option(name, "deberta-v2")) for name in ("do_lower_case", "split_by_punct"))
    return read_spm(path, settings, SpmSegmenter(model, path.name, data, {}, lowercase, by_punct), variant)


def read_xlm_roberta(directory: Path, settings: Settings, variant: str) -> Published:
    """Reads sentencepiece.bpe.model of an XLM-RoBERTa."""
    path = directory / "sentencepiece.bpe.model"
    for name in ("do_lower_case", "split_by_punct"):
        if settings.options.get(name):
            raise ValueError(f"{path}: {name} = true is not supported with it, only with spm.model")
    data = read_bytes(path)
    with reading(path, "a model of SentencePiece"), about(path, "cannot be read as a Unigram model"):
        model = UnigramModel.parse(data).with_fairseq_ids()
    return read_spm(path, settings, SpmSegmenter(model, path.name, data), variant)


def check_same_pipeline(path: Path, backend: Backend) -> None:
    """Raises ValueError if the tokenizer.json beside a model of SentencePiece segments text in another way.

    `Tokenizer.save` writes both with the generic class, for which transformers reads tokenizer.json only.
    """
    other = path.parent / "tokenizer.json"
    with reading(other, "a tokenizer.json"):
        written = json.loads(Backend.from_str(other.read_text(encoding="utf-8")).to_str())  # as this version writes it
    ours = json.loads(backend.to_str())
    if changed := [name for name in ("normalizer", "pre_tokenizer") if ours[name] != written[name]]:
        way_out = "keep only the file that the weights were trained with"
        raise ValueError(f"{path} and tokenizer.json differ in their {' and '.join(changed)}; {way_out}")


def read_spm(path: Path, settings: Settings, spm: SpmSegmenter, variant: str) -> Published:
    """Builds the pipeline of a model of SentencePiece, and adds the added tokens of the files."""
    if settings.options.get("add_prefix_space") is False:
        raise ValueError(f"{path}: add_prefix_space = false is not supported with it")
    json_model = settings.tokenizer_json.get("model") or {}
    listed = json_model.get("vocab", [])
    if json_model and [entry[0] for entry in listed] != [name for name, _ in spm.model.subwords]:
        raise ValueError(f"{path} and tokenizer.json have different subwords; delete the file that is not the model's")
    names = settings.roles(FAMILIES["deberta-v2" if path.name == "spm.model" else "xlm-roberta"].names)
    special, model, published = main_roles(names), spm.model, variant == "published"
    backend = unigram(
        model.subwords, unk_id=model.unk_id,
        normalizer=spm_normalizer(model.charsmap, spm.lowercase) if published else hf5_normalizer(spm.lowercase),
        byte_fallback=published and model.byte_fallback, split_by_punct=spm.split_by_punct, special=special,
    )  # fmt: skip
    if json_model and published and settings.family == "generic":
        check_same_pipeline(path, backend)
    add_tokens(backend, settings, names, path.parent)
    add_special_tokens(backend, special)
    decoder = backend.get_added_tokens_decoder()
    added = {number: token for number, token in decoder.items() if token.content not in names.values()}
    return Published(
        backend, "unigram", names, template=([names["cls"]], [names["sep"]]), lowercase=spm.lowercase,
        spm=replace(spm, added=added) if published else None,
    )  # fmt: skip


READERS = {  # the first file that exists is read
    "spm.model": read_deberta,
    "sentencepiece.bpe.model": read_xlm_roberta,
    "tokenizer.json": read_tokenizer_json,
    "vocab.txt": read_vocab,
    "vocab.json": read_merges,
}
