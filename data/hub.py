"""Finds checkpoints and adapters: a directory in Hugging Face's layout, or a hub id that is fetched once.

A model's config.json is fetched and read before its tokenizer and its weights (`fetch_config`), so that an unsupported
model costs one small file.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.checked import about, check_types, listed, read_object, show
from data.checksums import warn_of_changes
from data.files import user_path

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER, ADAPTER_BIN, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"
TRUNCATION = "truncation.json"  # how reviews were cut in training; only this project writes it
MEMBERS = "members.json"  # classifiers whose logits are added (data/ensemble.py)
ENCODER = "prompt_encoder.safetensors"  # of virtual tokens; only this project writes it
BUILTIN = Path(__file__).parent / "weights" / "deberta-mini"  # `--weights builtin`
BUILTIN_SINCE = "2026-11-25T10:15:02+00:00"  # time of the commit that replaced the earlier ones
CLASSIFIER = Path(__file__).parent / "weights" / "imdb"  # of eval.py without a run: LINEAR and an adapter of BUILTIN
LINEAR = Path(__file__).parent / "weights" / "nb-linear-imdb"  # trained on IMDB's and the built-in reviews
SAFE_FILES = (WEIGHTS, INDEX, "model-*.safetensors")
BIN_FILES = (BIN, BIN_INDEX, "pytorch_model-*.bin")
TOKENIZER_FILES = (
    "tokenizer*", "vocab.*", "merges.txt", "spm.model", "sentencepiece.bpe.model", "special_tokens_map.json",
    "added_tokens.json", TRUNCATION,
)  # fmt: skip
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model")  # one is enough
HUB_ID = re.compile(r"(?!\.)(?!.*\.\.)([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")  # name/model@revision
# the methods of huggingface/peft that are supported; `method` in a file of this project says which of ours it is
METHOD_OF = {
    "LORA": "lora", "PROMPT_TUNING": "prompt", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix", "HEAD": "head",
    "BITFIT": "bitfit", "IA3": "ia3", "HOULSBY": "houlsby",
}  # fmt: skip
# kinds of adapters that huggingface/peft (0.21) merges into the weights
MERGEABLE = {
    "ADALORA", "BOFT", "BONE", "C3A", "DELORA", "FOURIERFT", "HRA", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT",
    "RANDLORA", "SHIRA", "TRAINABLE_TOKENS", "VBLORA", "VERA",
}  # fmt: skip
MERGE_THERE = "huggingface/peft can merge it: merge_and_unload().save_pretrained(DIR), then --weights DIR"
# fields of adapter_config.json that are options of a method here
OPTIONS = {
    "r": "rank", "lora_alpha": "alpha", "lora_dropout": "lora_dropout", "bias": "lora_bias", "use_rslora": "rslora",
    "use_dora": "dora", "num_virtual_tokens": "virtual_tokens", "pool": "pool", "adapter_size": "adapter_size",
    "prefix_dropout": "prefix_dropout",
}  # fmt: skip
# types of the fields of adapter_config.json that are read
ADAPTER_FIELDS: dict[str, Any] = {
    "peft_type": str, "task_type": str | None, "method": str | None, "base_model_name_or_path": str | None,
    "revision": str | None, "modules_to_save": list[str] | None, "target_modules": list[str] | str | None,
    "exclude_modules": list[str] | str | None, "feedforward_modules": list[str] | str | None,
    "r": int, "lora_alpha": float, "lora_dropout": float | None, "bias": str | None, "use_rslora": bool | None,
    "use_dora": bool | None, "fan_in_fan_out": bool | None, "rank_pattern": dict[str, int] | None,
    "alpha_pattern": dict[str, float] | None, "layers_to_transform": list[int] | int | None,
    "layers_pattern": list[str] | str | None,
    "num_virtual_tokens": int | None, "adapter_size": int | None, "encoder_reparameterization_type": str | None,
    "encoder_hidden_size": int | None, "pool": str | None, "id2label": dict[str, Any] | None,
    "prefix_dropout": float | None, "num_attention_heads": int | None,
}  # fmt: skip
LONGEST_PATH = 4000  # characters of a backbone's name or path
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


# ----------------------------------------------------------------------------------------------------- directories


def local_directory(source: str | Path) -> Path | None:
    """Returns the directory that `source` names, or None for a hub id. `builtin` names the built-in weights.

    Raises FileNotFoundError for anything else.
    """
    if str(source) == "builtin":
        if not BUILTIN.is_dir():
            raise FileNotFoundError(f"the built-in weights are not in {BUILTIN}; --weights none trains without them")
        return BUILTIN
    path = user_path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{source} is a file; --weights takes the directory that contains {CONFIG}")
    if not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(f"{source} is not a directory and does not look like a hub id (name/model)")
    return None


def find_pretrained(source: str | Path) -> Path:
    """Returns the directory of a checkpoint with its weights and tokenizer.

    source: a directory, "builtin", or a hub id (`name/model`, `name/model@revision`), which is fetched once into
    huggingface_hub's cache. Weights in pytorch_model.bin are fetched only if there are no safetensors (Microsoft's
    DeBERTa). Raises FileNotFoundError that names a remedy.
    """
    if (directory := local_directory(source)) is not None:
        warn_of_changes(directory)
        return directory
    small_files = (CONFIG, *TOKENIZER_FILES)
    folder = fetch(str(source), (*small_files, *SAFE_FILES))
    if not has_any(folder, (WEIGHTS, INDEX)):
        folder = fetch(str(source), (*small_files, *BIN_FILES))
    return folder


def fetch_config(source: str | Path) -> Path:
    """Returns the path of a checkpoint's config.json; of a hub id, fetches no other file of the model.

    Raises FileNotFoundError that says what `source` is instead: a run folder, a sum of classifiers, an adapter, …
    """
    local = local_directory(source)
    directory = local or fetch(str(source), (CONFIG, ADAPTER_CONFIG))
    if (directory / "log.jsonl").is_file():
        raise FileNotFoundError(f"{source} is a run folder; its model is {directory / 'best'}")
    if (directory / CONFIG).is_file():
        return directory / CONFIG
    if (directory / MEMBERS).is_file():
        raise FileNotFoundError(
            f"{source} is a sum of classifiers; eval.py scores it. Name one of those in its {MEMBERS}"
        )
    if (directory / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(
            f"{source} is an adapter, not a model: load its backbone {adapter_base(directory)}, then the adapter "
            "(peft.load_adapter)"
        )
    if local is None:
        raise FileNotFoundError(f"hub id {str(source)!r} has no {CONFIG}, so it is not a model that is read here")
    raise FileNotFoundError(f"{directory / CONFIG} does not exist{subfolder_hint(directory, (CONFIG, ADAPTER_CONFIG))}")


def find_tokenizer(source: str | Path, base: str = "") -> Path:
    """Returns the directory of a tokenizer: of a hub id, fetches no weights; of an adapter without one, its backbone's.

    base: the backbone, if it is not where the adapter's file says. Raises FileNotFoundError that names a remedy.
    """
    if (directory := local_directory(source)) is None:
        directory = fetch(str(source), (CONFIG, ADAPTER_CONFIG, *TOKENIZER_FILES))
    if (directory / ADAPTER_CONFIG).is_file() and not has_any(directory, TOKENIZERS):
        return find_tokenizer(adapter_base(directory, base))
    return directory


def has_any(directory: Path, names: Iterable[str]) -> bool:
    """Returns whether a directory contains one of the files."""
    return any((directory / name).is_file() for name in names)


def subfolder_hint(directory: Path, names: Sequence[str]) -> str:
    """Returns a hint at the subfolders, or snapshots of a folder of the hub cache, with one of the files, or ""."""
    folders = (
        path.parent for name in names for kind in ("*", "snapshots/*") for path in directory.glob(f"{kind}/{name}")
    )
    found = sorted({folder.relative_to(directory).as_posix() for folder in folders})
    its, have = ("its folders", "have") if found[1:] else ("its folder", "has")
    return f"; {its} {listed(found)} {have} one" if found else ""


# --------------------------------------------------------------------------------------------------------- the hub


def fetch(hub_id: str, patterns: Sequence[str]) -> Path:
    """Fetches the files of `name/model[@revision]` whose names match. Returns huggingface_hub's snapshot.

    The environment variables HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE apply. Raises FileNotFoundError that
    names a remedy.
    """
    check_cache()
    from huggingface_hub import errors  # slow to import, needed only here

    name, revision = split_revision(hub_id)
    try:
        return download(name, revision, patterns)
    except errors.GatedRepoError as error:
        problem = f"hub id {name!r} is gated: request access on its page, then set HF_TOKEN"
        raise FileNotFoundError(problem) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"hub id {name!r} does not exist, or is private and needs HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"hub id {name!r} has no revision {revision!r}") from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"{hub_id!r} is neither a directory nor a valid hub id") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            problem = f"the hub cache cannot be written ({error}); set HF_HOME to a folder that can be"
            raise FileNotFoundError(problem) from error
        raise FileNotFoundError(
            f"{name!r} is neither a directory here nor complete in the hub cache, and {unreachable(error)}"
        ) from error


def unreachable(error: BaseException) -> str:
    """Describes why the hub gave no files, with the way out. error: of huggingface_hub, perhaps with its cause"""
    from huggingface_hub.errors import HfHubHTTPError  # slow to import, needed only here

    chain = (one for one in (error, error.__cause__) if isinstance(one, HfHubHTTPError))
    answer = next((one for one in chain if one.response is not None), None)
    if answer is None:
        return "the hub cannot be reached; give the path of a directory, or go online once"
    refused = "set HF_TOKEN if access is limited" if answer.response.status_code in (401, 403) else "try again later"
    return f"the hub answers with an error ({show(str(answer), 160)}); give the path of a directory, or {refused}"


def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Downloads files of a hub repository, or finds them in a cache that cannot be written. Returns their folder."""
    from huggingface_hub import snapshot_download  # slow to import, needed only here

    fetch_files = partial(snapshot_download, name, revision=revision, allow_patterns=list(patterns))
    try:
        return Path(fetch_files())
    except OSError as error:
        if type(error).__name__ == "ChunkedEncodingError":  # before version 1.0, a cut transfer is not resumed at once
            return Path(fetch_files())
        if error.errno not in NOT_WRITABLE:
            raise
        with contextlib.suppress(FileNotFoundError):
            return Path(fetch_files(local_files_only=True))
        raise


def check_cache() -> None:
    """Raises FileNotFoundError if no folder for huggingface_hub's cache is known."""
    settings = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
    if os.path.expanduser("~") == "~" and not any(os.environ.get(name) for name in settings):  # noqa: PTH111
        raise FileNotFoundError("no home directory is known for the hub cache; set HF_HOME to a folder")


def split_revision(source: str) -> tuple[str, str | None]:
    """Splits the hub id `name/model@revision` into (name/model, revision). A directory has no revision."""
    match = HUB_ID.fullmatch(source)
    return (source, None) if match is None or user_path(source).is_dir() else (match[1], match[2])


# -------------------------------------------------------------------------------------------------------- adapters


def find_adapter(source: str | Path) -> Path | None:
    """Returns the directory of an adapter, which is fetched if `source` is a hub id; None if `source` is a checkpoint.

    Raises FileNotFoundError if there is neither, and ValueError for a directory with weights of both kinds.
    """
    if str(source) in ("", "none", "builtin"):
        return None
    if (directory := local_directory(source)) is None:
        folder = fetch(str(source), (CONFIG, ADAPTER_CONFIG))
        if not (folder / ADAPTER_CONFIG).is_file():
            return None
        folder = fetch(str(source), (ADAPTER_CONFIG, ADAPTER, ENCODER, "base/*", *TOKENIZER_FILES))
        return folder if (folder / ADAPTER).is_file() else fetch(str(source), (ADAPTER_CONFIG, ADAPTER_BIN))
    if not (directory / ADAPTER_CONFIG).is_file():
        return None
    if has_any(directory, (WEIGHTS, INDEX, BIN, BIN_INDEX)):
        raise ValueError(
            f"{source} holds both a checkpoint and an adapter ({ADAPTER_CONFIG}); move one of them elsewhere"
        )
    return directory


def read_adapter_config(directory: str | Path) -> dict[str, Any]:
    """Reads adapter_config.json. Raises FileNotFoundError, or ValueError for a kind of adapter that is not supported
    and for a field of another type."""
    path = Path(directory) / ADAPTER_CONFIG
    config = read_object(path)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in METHOD_OF:
        way_out = f"; {MERGE_THERE}" if isinstance(kind, str) and kind in MERGEABLE else ""
        raise ValueError(
            f"{directory}: peft_type {show(repr(kind))} is not supported; supported: {', '.join(sorted(METHOD_OF))}"
            + way_out
        )
    with about(path):
        check_types(config, ADAPTER_FIELDS)
        if config.get("method") not in (None, "", METHOD_OF[kind], "p_tuning_v2" if kind == "PREFIX_TUNING" else None):
            raise ValueError(f"method {show(repr(config['method']))} does not fit peft_type {kind}")
        base = config.get("base_model_name_or_path") or ""
        if len(base) > LONGEST_PATH or not base.isprintable():
            raise ValueError(f"base_model_name_or_path {show(base)} is neither a folder nor a hub id")
    return config


def adapter_method(directory: str | Path) -> str:
    """Returns the name of an adapter's method. Raises FileNotFoundError, or ValueError for an unsupported one."""
    config = read_adapter_config(directory)
    return config.get("method") or METHOD_OF[config["peft_type"]]


def adapter_options(directory: str | Path) -> dict[str, Any]:
    """Returns the options of a method that an adapter's file fixes, by the names of their flags: {"rank": 8, …}."""
    config, method = read_adapter_config(directory), adapter_method(directory)
    options = {ours: config[theirs] for theirs, ours in OPTIONS.items() if config.get(theirs) is not None}
    if method == "lora":
        options = {"rank": 8, "alpha": 8.0} | options  # of a file without them
        targets = config.get("target_modules") or []
        options["targets"] = f"re:{targets}" if isinstance(targets, str) else ",".join(targets)
        for name in ("rank_pattern", "alpha_pattern"):
            options[name] = " ".join(f"{pattern}={value}" for pattern, value in (config.get(name) or {}).items())
    if method in ("prompt", "p_tuning"):
        options = {"pool": "virtual"} | options  # huggingface/peft has no other
    if config.get("encoder_reparameterization_type"):
        options["prompt_encoder"] = config["encoder_reparameterization_type"].lower()
    if config.get("encoder_hidden_size") and method in ("p_tuning", "prefix"):
        options["prompt_hidden" if method == "p_tuning" else "prefix_hidden"] = config["encoder_hidden_size"]
    return options


def adapter_base(directory: str | Path, given: str = "") -> str:
    """Returns the backbone of an adapter: a directory, `builtin`, or a hub id with the revision of the adapter's file.

    given: replaces the recorded backbone (`--base`). A recorded relative path is looked up in the adapter's directory
    first; `given` cannot replace a backbone that is there. Of a hub id, config.json is fetched. Raises
    FileNotFoundError that names --base if the backbone is not found, and ValueError if `given` differs from the
    backbone in the directory, or if the file names two revisions.
    """
    config = read_adapter_config(directory)
    recorded = config.get("base_model_name_or_path") or ""
    leads_out = ".." in Path(recorded).parts
    is_outside = leads_out or Path(recorded).is_absolute()  # `directory / absolute` is the absolute path itself
    if recorded and not is_outside and (inside := Path(directory) / recorded).is_dir():
        if given and Path(given).resolve() != inside.resolve():
            raise ValueError(f"{directory} contains its backbone, which was trained with it; leave out --base {given}")
        return str(inside)
    base = given or with_revision(recorded, config.get("revision"), directory)
    if not base:
        raise FileNotFoundError(f"{directory} names no backbone; name it with --base DIR_OR_ID")
    try:
        fetch_config(base)
    except FileNotFoundError as error:
        if given:
            raise
        reason = f" ({error})" if HUB_ID.fullmatch(base) else ""
        raise FileNotFoundError(
            f"the backbone {base} of the adapter {directory} is not found; name it with --base DIR_OR_ID{reason}"
        ) from error
    return base


def backbone_is_missing(directory: str | Path) -> bool:
    """Returns whether the backbone that an adapter records is not found."""
    try:
        adapter_base(directory)
    except FileNotFoundError:
        return True
    return False


def with_revision(recorded: str, revision: str | None, directory: str | Path) -> str:
    """Joins the recorded backbone and peft's field `revision`. Raises ValueError if the two name different ones."""
    name, other = split_revision(recorded)
    if not revision or user_path(recorded).is_dir() or not HUB_ID.fullmatch(recorded):
        return recorded
    if other not in (None, revision):
        raise ValueError(f"{directory}: base_model_name_or_path says revision {other}, revision says {revision}")
    return f"{name}@{revision}"


def recorded_base(source: str, base: str = "") -> str:
    """Returns what an adapter records as its backbone when `source` (`--weights`) is trained.

    A directory as its absolute path, a hub id as it is; for an adapter that is trained further, its own backbone, or
    `base` (`--base`).
    """
    if (adapter := find_adapter(source)) is not None:
        source = adapter_base(adapter, base)
    path = user_path(source)
    return str(path.resolve()) if source != "builtin" and path.is_dir() else source
