"""Lists the options of eval.py. Each field is a flag."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import is_stdout, write_problem
from data.flags import check_choice, check_different, flag, option
from data.options import COLUMNS
from data.readers import TABLES
from data.unpacking import COMPRESSED, REFUSED, base_name
from data.windows import PARTS, POOLING

DESCRIPTION = "Scores and uses the built-in classifier (the default), a finished run, or a checkpoint."
EXAMPLES = {  # of each group in --help
    "what": 'python eval.py --run runs/NAME --text "A wonderful little film."',
    "data": "python eval.py --run runs/NAME --data reviews.csv --text-column text --label-column stars",
    "machine": "python eval.py --run runs/NAME --device cuda --precision bf16",
}


TASKS = ("compare", "merge", "predict", "text", "data")  # a command has one of them, or scores a run's own reviews
DEFAULT_OUT = "submission.csv"  # of --predict FILE
READING = (*COLUMNS, "skip_bad_rows")
SCORED = ("predict", "text", "data", "run")  # tasks that score reviews; run: a run's own
USED_BY = {  # flag -> the tasks on which it has an effect; a flag that is missing here has one on all
    **dict.fromkeys(("truncate", "window_stride", "window_pooling", "quantize", "precision"), SCORED),
    "max_length": ("predict", "text", "data"),
    **dict.fromkeys(READING, ("predict", "data")),
    **dict.fromkeys(("base", "device"), (*SCORED, "merge")),
    "weights": ("predict", "text", "data"),
    "submission": ("predict",),
    "out": ("predict", "compare", "data", "run"),
    "explain": ("text", "data"),
    "errors": ("data", "run"),
    "threshold": ("run",),
    "plot": ("compare", "run"),
    "dtype": ("merge",),
}
PICTURES = (".png", ".svg", ".pdf")  # endings
RESULTS = (*PICTURES, ".csv", ".tsv", ".html", ".htm")  # endings of what eval.py writes
KEPT = (
    "truncate",
    "window_stride",
    "window_pooling",
    "quantize",
    "precision",
    "base",
    "device",
)  # options that cannot change kept predictions


@dataclass(frozen=True)
class Options:
    run: tuple[str, ...] = option(
        (), "what", "the run folder; several: an ensemble; default: the built-in classifier", metavar="DIR"
    )
    weights: str = option("", "what", "score this checkpoint folder or hub id instead of a run", "DIR_OR_ID")
    base: str = option("", "what", "backbone of the run's adapter, if its folder was moved", "DIR_OR_ID")
    data: str = option(
        "", "what", "score all labelled rows of this file, or validation and test of this folder", "DIR_OR_FILE"
    )
    predict: str = option(
        "", "what", "label the reviews of this file; -: one review per line from standard input", "FILE"
    )
    submission: bool = option(False, "what", "with --predict: write Kaggle's columns id,sentiment only")
    out: str = option(
        "",
        "what",
        "file to write: predictions of --predict (default: submission.csv; of --predict -: -), mistakes of --errors, "
        "or reviews on which the runs of --compare differ; -: standard output",
        "FILE",
    )
    text: str = option("", "what", "one review to label")
    explain: str = option(
        "",
        "what",
        "with --text: marks the words that determine the label; with --data FILE: explains the 20 most confident "
        "mistakes; FILE.html: writes a page; needs one forward pass per word",
        "[FILE.html]",
        bare="-",
    )
    errors: int = option(0, "what", "with --run or --data: list this many of the most confident mistakes")
    threshold: str = option(
        "",
        "what",
        "with --run, two classes: also score with the threshold that is best on validation",
        choices=("validation",),
    )
    compare: tuple[str, ...] = option(
        (), "what", "run folders or published rows: a table, and how sure the differences are", metavar="DIR"
    )
    plot: str = option(
        "", "what", "with --compare: learning curves; with --run: reliability; .png, .svg or .pdf", "FILE"
    )
    merge: str = option(
        "", "what", "write a checkpoint to this folder; LoRA, IA³ and BitFit are merged, other adapters refused", "DIR"
    )
    dtype: str = option(
        "fp32", "what", "number format of the checkpoint that --merge writes: fp32, fp16 or bf16", "FORMAT"
    )
    text_column: str = option("", "data", "column that contains the text; default: the run's", "COLUMN")
    label_column: str = option("", "data", "column that contains the label; default: the run's", "COLUMN")
    id_column: str = option("", "data", "column that contains the id; default: the run's", "COLUMN")
    encoding: str = option("", "data", "encoding of the files; default: the run's", "ENCODING")
    quoting: str = option("", "data", "quotes of a file: rfc4180, literal or backslash; default: the run's", "STYLE")
    skip_bad_rows: bool = option(False, "data", "leave out broken rows of a file instead of stopping")
    max_file_mib: int = option(0, "data", "largest data file that is read, unpacked, in MiB; 0: the run's", "MIB")
    max_length: int = option(0, "data", "without --run: maximum number of tokens of a review; 0: 512, or the model's")
    truncate: str = option(
        "",
        "data",
        "kept of a longer review: head, tail, head+tail or windows; default: the run's, or the model's",
        "PART",
    )
    window_stride: int = option(
        0, "data", "of windows: tokens from one to the next; 0: half of max_length; default: the run's"
    )
    window_pooling: str = option(
        "mean", "data", "of windows: mean or maximum of the logits, class by class; default: the run's", choices=POOLING
    )
    quantize: str = option(
        "run", "machine", "weights in 8 or 4 bits: int8, nf4 or none; run: as in training (--weights: none)", "FORMAT"
    )
    device: str = option("auto", "machine", "cpu, cuda, cuda:1, mps or auto", "DEVICE")
    precision: str = option(
        "", "machine", "fp32, bf16, fp16 or auto; default: the run's, with --weights auto", "FORMAT"
    )


def given_truncation(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of `Truncation` that the command line replaces."""
    names = {"truncate": "truncate", "window_stride": "stride", "window_pooling": "pooling"}
    return {names[name]: value for name, value in given.items() if name in names}


def changes_of_kept(options: Options, given: dict[str, Any]) -> list[str]:
    """Returns the flags that score reviews otherwise than the kept predictions.

    A run may have windows of its own, so those of the command line count even if they are the default ones.
    """
    windows = ("window_stride", "window_pooling")
    return [
        name for name in KEPT if name in given and (name in windows or getattr(options, name) != getattr(Options, name))
    ]


def is_own_score(options: Options, given: dict[str, Any]) -> bool:
    """Returns whether a run is scored on its own validation and test reviews."""
    return bool(options.run) and not (options.data or options.predict or options.merge or "text" in given)


def names_folder(data: str) -> bool:
    """Returns whether --data names a folder of reviews, or the built-in ones; anything else is a file."""
    return data == "demo" or (data == "imdb" and not Path(data).exists()) or Path(data).is_dir()


def check_ranks(options: Options, given: dict[str, Any]) -> None:
    """Raises ValueError for a task that several ranks cannot share, and for input that only one of them can read."""
    shared = options.data or options.predict or (is_own_score(options, given) and len(options.run) == 1)
    if not shared or options.explain or options.plot:
        raise ValueError("ranks share one --run, --data or --predict, without --explain or --plot; leave out torchrun")
    for name in ("data", "predict"):
        path = getattr(options, name)
        if path == "-" or (Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir())):
            raise ValueError(f"{flag(name)} {path} can be read once, not by each rank; store it in a file")


def check_task(options: Options, given: dict[str, Any]) -> None:
    """Raises ValueError for two tasks, and for flags that would have no effect on the given one."""
    if len(tasks := [name for name in TASKS if name in given]) > 1:
        raise ValueError(f"{flag(tasks[0])} and {flag(tasks[1])} are two tasks; give one of them")
    if options.compare and (options.run or options.weights):
        raise ValueError("--compare takes the runs as its own values; leave out --run and --weights")
    if options.merge and not options.run:
        raise ValueError("--merge needs a run: --run runs/NAME --merge DIR")
    if options.max_length and options.run:
        raise ValueError("--max-length is for --weights; a run is scored with its own, train.py --max-length")
    if options.plot and not options.plot.lower().endswith(PICTURES):
        raise ValueError(f"--plot {options.plot} is not a picture: its name ends in {', '.join(PICTURES)}")


def check_writable(path: str, name: str) -> None:
    """Raises ValueError for an output that is a folder, has a file in place of a parent folder, or cannot be written.

    name: its flag
    """
    if (problem := write_problem(Path(path))) is not None:
        raise ValueError(f"{name} {path} cannot be written ({problem}); name another file")
    if Path(path).is_dir() or path.endswith(("/", os.sep)):
        raise ValueError(f"{name} {path} is a folder; name a file in it")
    if blocks := next((parent for parent in Path(path).parents if parent.exists() and not parent.is_dir()), None):
        raise ValueError(f"{name} {path}: {blocks} is a file, not a folder; name another one")


def outputs(options: Options) -> dict[str, Path]:
    """Returns {flag: path} of the files to write."""
    named = {flag(name): getattr(options, name) for name in ("out", "explain", "plot")}
    return {name: Path(path) for name, path in named.items() if path and not is_stdout(path)}


def check_replaces(options: Options, reviews: Iterable[str | Path]) -> None:
    """Raises ValueError for an output that would replace reviews, or be part of a run or a checkpoint.

    reviews: files and folders. In the folder of a run or a checkpoint, an output is a table, a page or a picture.
    """
    models = (*options.run, *options.compare, options.weights, options.base)
    for name, path in outputs(options).items():
        read = [*(reviews if path.exists() else ()), *(models if path.suffix.lower() not in RESULTS else ())]
        target = Path(os.path.realpath(path))  # `resolve` raises an error for a loop of links
        for source in (Path(given) for given in read if given):
            if source.exists() and Path(os.path.realpath(source)) in (target, *target.parents):
                raise ValueError(f"{name} {path} would replace what is read from {source}; name another file")


def check_output(options: Options) -> None:
    """Raises ValueError for an output that would replace a file that is read, or another output; and for a default one
    that exists."""
    for name in ("out", "explain", "plot"):
        path = getattr(options, name)
        if path and not is_stdout(path):
            check_writable(path, flag(name))
    check_replaces(options, (options.data, options.predict))
    out = Path(options.out)
    if out.suffix.lower() in {*TABLES, *COMPRESSED, *REFUSED} - {".csv"}:
        named = Path(base_name(out.name)).with_suffix(".csv")
        raise ValueError(f"--out {out} is written as CSV; name it {named}")
    paths = {os.path.realpath(path): name for name, path in outputs(options).items()}
    for name, path in outputs(options).items():
        if (other := paths[os.path.realpath(path)]) != name:
            raise ValueError(f"{name} and {other} are one file, {path}; name two")
    if options.predict not in ("", "-") and not options.out:
        if Path(DEFAULT_OUT).exists():
            raise ValueError(f"{DEFAULT_OUT} exists; --out {DEFAULT_OUT} replaces it, --out FILE writes another one")
        check_writable(DEFAULT_OUT, "--out")


def check_reading(options: Options, given: dict[str, Any]) -> None:
    """Raises ValueError for flags of how files are read where none is read in this way."""
    found = [name for name in READING if name in given]
    if found and not (options.data or options.predict):
        raise ValueError(f"{flag(found[0])} is for the files of --data and --predict")
    if found and options.data == "demo":
        raise ValueError(f"{flag(found[0])} has no effect here: the built-in reviews are in no file")
    lines = [name for name in found if name != "encoding"]
    if lines and options.predict == "-":
        raise ValueError(f"{flag(lines[0])} is for files; standard input has one review a line")


def check_effect(given: dict[str, Any]) -> None:
    """Raises ValueError for a flag that would have no effect on the task."""
    task = next((name for name in TASKS if name in given), "run")
    for name in given:
        if task not in USED_BY.get(name, (*TASKS, "run")):
            tasks = ", ".join(map(flag, USED_BY[name]))
            raise ValueError(f"{flag(name)} has no effect here; it is for {tasks}")


def check_flags(options: Options, given: dict[str, Any]) -> None:
    """Raises ValueError for flags that need another one."""
    check_task(options, given)
    check_different(options.run, "--run")
    check_reading(options, given)
    check_output(options)
    if options.plot and not (options.compare or is_own_score(options, given)):
        raise ValueError("--plot needs runs: --compare runs/ONE runs/TWO --plot FILE, or --run runs/ONE --plot FILE")
    if options.threshold and not is_own_score(options, given):
        raise ValueError(
            "--threshold validation needs a run and its own reviews: --run runs/ONE --threshold validation"
        )
    if options.errors < 0 or (options.errors and (options.compare or options.predict or "text" in given)):
        raise ValueError("--errors needs a number above 0 and scored reviews: --run runs/ONE or --data FILE")
    alone = [name for name in ("errors", "threshold", "plot", "merge", "explain") if getattr(options, name)]
    if len(options.run) > 1 and alone:
        raise ValueError(f"{flag(alone[0])} takes one run; --run names several")
    changed = changes_of_kept(options, given)
    if len(options.run) > 1 and is_own_score(options, given) and changed:
        raise ValueError(
            f"{flag(changed[0])} does not change the predictions that the runs kept; score a file: --data FILE"
        )
    if options.out and not (options.predict or options.compare or options.errors):
        raise ValueError("--out needs something to write: --predict FILE, --compare RUNS or --errors N")
    if options.explain and "text" not in given and (options.predict or names_folder(options.data or ".")):
        raise ValueError(
            "--explain needs a review or a file of them: --text REVIEW --explain, or --data FILE --explain"
        )
    if options.explain and not (is_stdout(options.explain) or options.explain.lower().endswith((".html", ".htm"))):
        raise ValueError(
            f"--explain {options.explain}: the page's name must end in .html; --data FILE names the reviews"
        )
    if options.truncate:
        check_choice("truncation", options.truncate, dict.fromkeys(PARTS))
    if options.weights and options.run:
        raise ValueError("--run and --weights both name a model; leave one out")
    if options.weights and not (options.data or options.predict or "text" in given):
        raise ValueError("--weights needs reviews: --data FILE, --predict FILE or --text REVIEW")
    check_effect(given)
