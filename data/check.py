"""Reports what each path is and whether it is intact.

    python -m data.check PATH …

A path is a checkpoint, an adapter, a tokenizer, reviews, word vectors, or a run. It is read as train.py and eval.py do,
with its weights. Prints one line for each path. The exit code is 2 if a path is damaged, or of a kind that the project
does not read.
"""

import fnmatch
import sys
from pathlib import Path

import peft
from data import Source, load_splits
from data.checked import show
from data.checksums import check_checksums, read_sealed_tensors
from data.ensemble import read_members
from data.errors import clean_exit
from data.files import open_tensors, user_path
from data.hub import (
    ADAPTER_BIN,
    ADAPTER_CONFIG,
    BIN_FILES,
    CONFIG,
    MEMBERS,
    SAFE_FILES,
    TOKENIZERS,
    adapter_base,
    adapter_method,
    has_any,
)
from data.imdb import label_reviews, missing_labels, read_reviews
from data.options import Tables
from data.readers import TABLES
from data.resolve import recorded_settings
from data.runs import OLD_STATE, Run
from data.tables import epochs
from data.text_lines import is_text_lines, note_labels, read_lines
from data.tokenization import load_tokenizer
from data.word_vectors import load_vectors, read_published_vectors
from losses import OBJECTIVES
from nn import MODELS
from nn.checkpoint import load_pretrained
from nn.runtime import choose_machine
from peft import METHODS
from peft.classifier import load_checkpoint


def check(path: Path) -> str:
    """Describes a path that is sound. Raises FileNotFoundError or ValueError that names the defect."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_file():
        return check_file(path)
    if (path / "log.jsonl").is_file():
        return check_run(Run.open(path))
    check_checksums(path)
    if (path / ADAPTER_CONFIG).is_file():
        return check_adapter(path)
    if (path / CONFIG).is_file() and any(next(path.glob(pattern), None) for pattern in (*SAFE_FILES, "*.bin")):
        return check_checkpoint(path)
    if (path / MEMBERS).is_file():
        load_checkpoint(str(path), choose_machine("cpu", "fp32"))
        return "; ".join(f"{member}: {check(member.folder)}" for member in read_members(path))
    if has_any(path, TOKENIZERS):
        return check_tokenizer(path)
    return check_reviews(path)


def check_run(run: Run) -> str:
    """Checks options, tokenizer, states and best model of a run folder."""
    options = recorded_settings(run, Tables(MODELS, METHODS, OBJECTIVES)).options
    check_checksums(run.tokenizer)
    states = [path for path in (run.state_file, run.state_before) if path.exists()]
    for path in states:
        read_sealed_tensors(path, OLD_STATE)
    if run.result is not None and not run.best.is_dir():
        raise FileNotFoundError(f"{run.best} is missing; restore it")
    if run.best.is_dir() and not run.tokenizer.is_dir():
        raise FileNotFoundError(f"{run.tokenizer} is missing; restore it")
    epochs(run)
    for split in ("validation", "test"):
        run.predictions(split)
    stage = "finished" if run.result is not None else f"not finished, {len(states)} states to resume from"
    best = f"; best: {check(run.best)}" if run.best.is_dir() else ""
    return f"a run of {options.model} with --peft {options.peft}, {stage}{best}"


def check_checkpoint(folder: Path) -> str:
    """Loads a checkpoint, and its tokenizer if it has one."""
    model = load_pretrained(folder)
    count = sum(p.numel() for p in model.parameters())
    random = ", ".join(sorted(model.newly_initialized))
    labels = f"new at random: {random}" if random else f"classes {', '.join(map(show, model.config.labels))}"
    tokenizer = f"; {check_tokenizer(folder)}" if has_any(folder, TOKENIZERS) else "; no tokenizer"
    return f"a {model.model_type} checkpoint with {count:,} parameters, {labels}{tokenizer}"


def check_adapter(folder: Path) -> str:
    """Loads an adapter on its backbone."""
    model = peft.load_adapted(folder)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    labels = ", ".join(map(show, model.config.labels))
    base = show(adapter_base(folder))
    return f"a {adapter_method(folder)} adapter with {count:,} parameters for {base}, classes {labels}"


def check_tokenizer(folder: Path) -> str:
    """Loads a tokenizer and encodes one text."""
    tokenizer = load_tokenizer(folder)
    tokenizer.encode_batch(["A wonderful little film."], max_length=16)
    return f"a {tokenizer.kind} tokenizer with {tokenizer.vocab_size:,} tokens"


def check_file(path: Path) -> str:
    """Reads a file of tensors, of word vectors, or of reviews."""
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in (*BIN_FILES, ADAPTER_BIN)):
        raise ValueError(f"{path} is read with its checkpoint: check the folder {path.parent}")
    endings = [ending.lower() for ending in path.suffixes]
    if endings[-1:] == [".safetensors"]:
        return check_tensors(path)
    has_vectors = {".vec", ".bin"} & set(endings) or path.name.lower().startswith("glove")
    if has_vectors and not set(TABLES) & set(endings):
        return f"word vectors of {read_published_vectors(path, ['film']).vectors.size(1)} numbers"
    source = Source(data=str(path))
    if is_text_lines(path, source):
        lines = read_lines(path, source)
        note_labels(lines)
        return f"{len(lines.records):,} texts, one a line"
    reviews = read_reviews(path, source)
    labels = f", column {show(reviews.label_column)}" if reviews.label_column else ", without labels"
    if not reviews.label_column and (reviews.likely or reviews.possible):
        print(f"note: {missing_labels(reviews)}")
    names = label_reviews(reviews, None)[1] if reviews.label_column else ()
    return f"{len(reviews.records):,} reviews{labels}" + (f": {', '.join(map(show, names))}" if names else "")


def check_tensors(path: Path) -> str:
    """Reads all tensors of a safetensors file, and compares the checksum of a run's state."""
    with open_tensors(path) as file:
        metadata, names = file.metadata() or {}, list(file.keys())
        for name in names:
            file.get_tensor(name)
    if "words" in metadata:
        return f"word vectors of {len(load_vectors(path).words):,} words"
    if metadata.keys() > OLD_STATE:
        read_sealed_tensors(path)
    return f"{len(names):,} tensors in safetensors"


def check_reviews(folder: Path) -> str:
    """Reads the reviews of a folder."""
    splits = load_splits(Source(data=str(folder)), None)
    parts = (f"{len(getattr(splits, name)):,} {name}" for name in ("train", "validation", "test"))
    return f"reviews: {', '.join(parts)}; classes {', '.join(map(show, splits.labels))}"


def main(paths: list[str]) -> None:
    """Checks each path. Exits with code 2 if one is not sound."""
    if not paths or paths[0] in ("-h", "--help"):
        print(__doc__)
        return
    if flags := [path for path in paths if path.startswith("--")]:
        raise ValueError(f"{flags[0]} is no path; eval.py --data FILE takes flags for how a file is read")
    unsound = False
    for path in paths:
        try:
            print(f"{path}: {check(user_path(path))}: sound")
        except (ValueError, OSError) as error:
            unsound = True
            print(f"{path}: not sound: {show(error, 400)}")
    sys.exit(2 if unsound else 0)


if __name__ == "__main__":
    with clean_exit():
        main(sys.argv[1:])
