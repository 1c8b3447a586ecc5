"""Scores and uses the built-in classifier, a finished run, or a checkpoint.

python eval.py --text "A wonderful little film."                   the built-in classifier
python eval.py --run runs/NAME                                     validation and, if labels are known, test
python eval.py --run runs/NAME --data FILE.csv                     all rows of a file
python eval.py --run runs/ONE runs/TWO                             an ensemble: the mean of calibrated probabilities
python eval.py --run runs/NAME --predict testData.tsv.gz --submission --out submission.csv
python eval.py --weights DIR_OR_HUB_ID --data FILE.csv             a published classifier, without a run
python eval.py --run runs/NAME --text "A wonderful little film." --explain
python eval.py --data FILE.csv --explain mistakes.html             explains the worst mistakes
python eval.py --compare runs/ONE runs/TWO --plot curves.png
torchrun --standalone --nproc_per_node 2 -- eval.py --run runs/NAME --predict FILE.csv
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # OpenMP: idle threads of torch soon release their cores
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports prints no traceback

import numpy as np
import pandas as pd

import peft
from data import Source, Splits, find_source, load_splits, load_table, ranks
from data.calibration import (
    best_threshold,
    calibration,
    check_two_classes,
    describe_threshold,
    draw_reliability,
    fit_temperature,
    summary,
    validation_of,
)
from data.cleaning import clean, has_surrogate
from data.compare import flips, significance
from data.corpus import Corpus, warn_unknown
from data.ensemble import (
    Blend,
    Ensemble,
    Member,
    check_splits,
    print_ensemble,
    shared_labels,
)
from data.errors import clean_exit
from data.eval_options import (
    COLUMNS,
    DEFAULT_OUT,
    DESCRIPTION,
    EXAMPLES,
    Options,
    changes_of_kept,
    check_flags,
    check_ranks,
    check_replaces,
    given_truncation,
    names_folder,
    outputs,
)
from data.explanation import Explanation, as_page, as_text, has_colours
from data.files import filling, is_stdout, write_output
from data.flags import check_choice, check_different, flag, parse_flags, split_folders
from data.held_out import held_out, warn_trained, without_trained
from data.hub import CLASSIFIER, CONFIG, backbone_is_missing
from data.imdb import as_frame
from data.jobs import environment_number
from data.kept_predictions import WITHOUT
from data.labels import SENTIMENT, UNKNOWN, canonical
from data.metrics import metrics, print_metrics, softmax
from data.mistakes import (
    accuracy_by_kind,
    accuracy_table,
    groups,
    mistake_lines,
    mistakes,
    mistakes_csv,
    most_confident_mistakes,
)
from data.options import Options as TrainOptions
from data.options import Settings, Tables, read_splits, truncation_of
from data.predictions import predictions_csv, print_answer, read_lines
from data.resolve import recorded_settings
from data.rows import open_runs
from data.runs import Run, check_digests
from data.tables import comparison, draw_curves
from data.text_lines import WITH_LABELS, is_text_lines
from data.windows import write_truncation
from losses import OBJECTIVES
from nn import MODELS
from nn.checkpoint import save_pretrained
from nn.encoder import Encoder
from nn.runtime import DTYPES, Machine, choose_machine, keep_freed_memory, note_emulated
from peft.classifier import Scorer, check_classifier, is_adapter, is_pretraining, load_checkpoint, load_run

TABLES = Tables(MODELS, peft.METHODS, OBJECTIVES)
MISTAKES = 20  # number of mistakes that --explain shows


# -------------------------------------------------------------------------------------------------------- the output

Emit = Callable[[str], None]  # writes the file --out


@contextlib.contextmanager
def reserved_output(out: str) -> Iterator[Emit]:
    """Yields a function that writes the file `out`. If that is standard output, all else goes to standard error."""
    stdout = sys.stdout

    def emit(text: str) -> None:
        """Writes the text."""
        if not ranks.is_first():
            return
        with contextlib.redirect_stdout(stdout):
            write_output(out, text)

    with contextlib.redirect_stdout(sys.stderr) if out and is_stdout(out) else contextlib.nullcontext():
        yield emit


# ----------------------------------------------------------------------------------------- the reviews and the tasks


def settings_of(run: Run) -> Settings:
    """Returns the settings that a run recorded. Raises ValueError for a damaged config.json."""
    return recorded_settings(run, TABLES)


def source_for(given: dict[str, Any], trained: TrainOptions) -> Source:
    """Returns how files are read: as the command line says, otherwise as the run did."""
    values = {name: given.get(name) or getattr(trained, name) for name in COLUMNS}
    skips = given.get("skip_bad_rows", trained.skip_bad_rows)
    return Source(**values, skip_bad_rows=skips, of_run=tuple(name for name in COLUMNS if not given.get(name)))


def own_splits(run: Run) -> Splits:
    """Reads the reviews of a run as in its training. Raises ValueError for a file that changed since."""
    try:
        splits = read_splits(settings_of(run).options, run.cache_to_score)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; restore it, or score reviews elsewhere: --data FILE_OR_FOLDER") from None
    if "files" in run.config:
        run.record_data(splits.labels, splits.files)
    return splits


def evaluate_data(
    options: Options, emit: Emit, source: Source, scorer: Scorer | Blend | Ensemble, runs: Sequence[Run] = ()
) -> None:
    """Prints the metrics of the reviews of --data, a folder or a file. source: how it is read. runs: of the scorer"""
    if names_folder(options.data):
        evaluate_folder(options, emit, source, scorer, runs)
    else:
        evaluate_file(options, emit, source, scorer, runs)


def evaluate_folder(
    options: Options, emit: Emit, source: Source, scorer: Scorer | Blend | Ensemble, runs: Sequence[Run]
) -> None:
    """Prints the metrics of the validation and test reviews of the folder --data."""
    folder, why = ranks.in_turn(lambda: find_source(options.data))
    print(f"data: {folder} ({why})")
    source = replace(source, data=folder)
    splits = load_splits(source, labels=scorer.labels)
    for run in runs:
        read_own = partial(own_splits, run)
        try:
            trained = settings_of(run).options
        except ValueError:  # another version wrote them; --weights uses its best/
            splits = without_trained(run, splits, has_own=False, read_own=read_own)
        else:
            splits = held_out(run, trained, source, splits, read_own)
    last: tuple[str, pd.DataFrame, np.ndarray] | None = None
    for name, frame in labelled_parts(splits):
        logits, truth = score_part(scorer, frame, name), frame["sentiment"].to_numpy()
        print_metrics(name, metrics(logits, truth), scorer.labels)
        if options.data == "demo":
            print(f"{name} by kind: " + accuracy_by_kind(frame["id"], logits.argmax(1) == truth))
        last = (name, frame, logits)
    if last is None:
        refuse_mistakes(options)
    elif not isinstance(scorer, Ensemble):
        list_mistakes(options, emit, scorer, *last)


def score_part(scorer: Scorer | Blend | Ensemble, frame: pd.DataFrame, name: str) -> np.ndarray:
    """Computes the logits of reviews, [N, C]. Prints the metrics of each member of an ensemble if all have labels.

    name: of the reviews, before these metrics
    """
    if isinstance(scorer, Ensemble) and len(frame) and (frame["sentiment"] != UNKNOWN).all():
        return scorer.score_frame(frame, part=name)
    return scorer.score_frame(frame)


def labelled_parts(splits: Splits) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the name and the labelled reviews of the validation and the test part. Prints which has none."""
    for name, frame in (("validation", splits.validation), ("test", splits.test)):
        frame = frame[frame["sentiment"] != UNKNOWN]
        if len(frame):
            yield name, frame
        else:
            print(f"{name}: no labelled reviews to score")


def evaluate(options: Options, emit: Emit, run: Run, scorer: Scorer, given: dict[str, Any]) -> None:
    """Prints the metrics of the run's own validation and test reviews.

    Raises ValueError if the run's stored probabilities are of other reviews.
    """
    if options.threshold:
        check_two_classes(len(scorer.labels))
    trained = settings_of(run).options
    splits = ranks.in_turn(lambda: own_splits(run))
    kept, truth = run.predictions("validation"), splits.validation["sentiment"]
    if kept is not None and not np.array_equal(kept.labels, truth[truth != UNKNOWN]):
        path = run.folder / "validation.probabilities.safetensors"
        raise ValueError(f"{path} has the labels of other reviews; {WITHOUT['validation']}")
    scores_validation = bool((truth != UNKNOWN).any())
    is_changed = bool(changes_of_kept(options, given))  # such as another --truncate
    refits = scores_validation and (is_changed or kept is None)  # the temperature, to validation as it is scored here
    needs_temperature = bool(options.plot) or kept is not None
    temperature = ranks.in_turn(lambda: calibration(run)) if needs_temperature and not refits else None
    threshold = best_threshold(*validation_of(run)) if options.threshold and not scores_validation else 0.5
    last: tuple[str, pd.DataFrame, np.ndarray, Corpus] | None = None
    for name, frame in labelled_parts(splits):
        corpus = ranks.in_turn(partial(scorer.corpus, frame, run.cache_to_score))
        logits = scorer.logits(corpus)
        print_metrics(name, metrics(logits, corpus.labels), scorer.labels)
        if trained.data == "demo" and not getattr(trained, name):
            print(f"{name} by kind: " + accuracy_by_kind(frame["id"], logits.argmax(1) == corpus.labels))
        if name == "validation" and needs_temperature and refits:
            temperature = fit_temperature(logits, corpus.labels)
        if temperature is not None:
            print(summary(name, softmax(logits), corpus.labels, temperature))
        if options.threshold:
            if name == "validation":
                threshold = best_threshold(softmax(logits), corpus.labels)
            print(describe_threshold(name, softmax(logits), corpus.labels, threshold))
        last = (name, frame, logits, corpus)
    if last is None:
        refuse_mistakes(options)
        return
    if options.plot and temperature is not None:
        draw_reliability(softmax(last[2]), last[3].labels, temperature, Path(options.plot))
        print(f"{options.plot}: reliability on the {last[0]} reviews")
    list_mistakes(options, emit, scorer, *last)


def refuse_mistakes(options: Options) -> None:
    """Raises ValueError if mistakes are asked for and no review has a label."""
    if options.errors:
        raise ValueError("--errors needs labelled reviews; name some: --data FILE")


def list_mistakes(
    options: Options,
    emit: Emit,
    scorer: Scorer | Blend,
    name: str,
    frame: pd.DataFrame,
    logits: np.ndarray,
    corpus: Corpus | None = None,
) -> None:
    """Prints the most confident mistakes and the accuracy on groups of reviews if --errors is given.

    --out writes the mistakes to a file. corpus: the reviews in tokens; None: they are tokenized.
    """
    if not options.errors:
        return
    corpus = corpus or scorer.corpus(frame)
    rows = mistakes(frame, softmax(logits), scorer.labels, options.errors)
    for line in mistake_lines(name, rows):
        print(line)
    unk = scorer.tokenizer.role_id("unk")
    print(accuracy_table(logits.argmax(1) == corpus.labels, groups(frame, corpus, unk)))
    if options.out:
        emit(mistakes_csv(rows))
        if not is_stdout(options.out):
            print(f"{options.out}: {len(rows)} mistakes")


def evaluate_file(
    options: Options, emit: Emit, source: Source, scorer: Scorer | Blend | Ensemble, runs: Sequence[Run] = ()
) -> None:
    """Prints the metrics of the rows of the file --data that have a label. runs: of the scorer

    Raises ValueError if no row has a label.
    """
    every, _ = load_table(options.data, source, scorer.labels)
    frame = every[every["sentiment"] != UNKNOWN]
    if not len(frame):
        way_out = WITH_LABELS if is_text_lines(Path(options.data), source) else "name their column with --label-column"
        raise ValueError(f"{options.data} has no labels; {way_out}, or use --predict")
    if rest := len(every) - len(frame):
        print(f"{options.data}: {rest:,} of {len(every):,} reviews have no label and are not scored")
    name = Path(options.data).name
    for run in runs:
        warn_trained(run, frame, partial(own_splits, run))
    logits = score_part(scorer, frame, name)
    print_metrics(name, metrics(logits, frame["sentiment"].to_numpy()), scorer.labels)
    if isinstance(scorer, Ensemble):
        return
    list_mistakes(options, emit, scorer, name, frame, logits)
    if options.explain:
        explain_mistakes(options, scorer, frame, logits)


def predict(
    options: Options, emit: Emit, source: Source, scorer: Scorer | Blend | Ensemble, runs: Sequence[Run] = ()
) -> None:
    """Writes id, label and the probability of each class, in the order of the file.

    Prints metrics if the file has labels. runs: of the scorer
    """
    if options.predict == "-":
        frame = read_lines(sys.stdin.buffer, options.encoding)
    else:
        frame, _ = load_table(options.predict, source, scorer.labels, keep_empty=True, needs_labels=False)
    if options.submission and sorted(map(canonical, scorer.labels)) != sorted(SENTIMENT):
        names = ", ".join(scorer.labels)
        print(f"note: --submission writes the names {names}; Kaggle's file has 0 and 1 for negative and positive")
    logits = score_part(scorer, frame, Path(options.predict).name)
    emit(predictions_csv(frame["id"], logits, scorer.labels, options.submission))
    if not is_stdout(options.out):
        print(f"{options.out}: {len(frame):,} predictions")
        if empty := int((frame["review"] == "").sum()):
            print(f"note: {empty:,} of these reviews have no text")
        if len(frame) and (frame["sentiment"] != UNKNOWN).all():
            for run in runs:
                warn_trained(run, frame, partial(own_splits, run))
            print_metrics(Path(options.predict).name, metrics(logits, frame["sentiment"].to_numpy()), scorer.labels)


def review_of(options: Options) -> str:
    """Returns the cleaned review --text. Raises ValueError if it is empty or not UTF-8."""
    if has_surrogate(options.text):
        raise ValueError("--text is not UTF-8; --predict - --encoding NAME reads a review in another encoding")
    if not (text := clean(options.text)):
        raise ValueError("--text is empty")
    if text == "-":
        raise ValueError("--text takes the review itself; --predict - reads standard input, one review a line")
    return text


def answer(options: Options, scorer: Scorer | Blend) -> None:
    """Prints the label of one review with the probability of each class; with --explain also why."""
    text = review_of(options)
    warn_unknown(scorer.tokenizer, scorer.corpus(as_frame([("text", text, UNKNOWN)])))
    if options.explain:
        show_explanations(options, scorer, [scorer.explain(text)])
    print_answer(scorer.labels, scorer.score_texts([text], bar=False))


def show_explanations(options: Options, scorer: Scorer | Blend, explanations: list[Explanation]) -> None:
    """Prints explanations, or writes them as an HTML page to the file --explain."""
    if is_stdout(options.explain):
        print("\n\n".join(as_text(explanation, has_colours()) for explanation in explanations))
        return
    named = "the built-in classifier" if options.weights == str(CLASSIFIER) else options.weights
    model = options.run[0] if options.run else named
    write_output(options.explain, as_page(explanations, f"{model} ({scorer.kind})"))
    print(f"{options.explain}: {len(explanations)} explained")


def explain_mistakes(options: Options, scorer: Scorer | Blend, frame: pd.DataFrame, logits: np.ndarray) -> None:
    """Explains the most confident mistakes among the reviews of a frame. logits: [N, C]"""
    worst = most_confident_mistakes(frame["sentiment"].to_numpy(), softmax(logits), MISTAKES)
    if not worst:
        print("no mistake to explain")
        return
    rows = [frame.iloc[i] for i in worst]
    found = [scorer.explain(row["review"], str(row["id"]), scorer.labels[row["sentiment"]]) for row in rows]
    show_explanations(options, scorer, found)


def export(options: Options, run: Run, machine: Machine) -> None:
    """Writes a checkpoint: config.json, model.safetensors, the tokenizer. transformers loads those of the encoders.

    An adapter over quantized weights is merged into the backbone in fp32. The checkpoint of a pretraining run has no
    classifier. Raises ValueError if the folder holds files, and for an adapter that cannot be merged (virtual tokens,
    Houlsby).
    """
    dtype = check_choice("dtype", options.dtype, DTYPES)
    with filling(Path(options.merge), flag="--merge", last=CONFIG) as folder:
        model, tokenizer = load_run(run, machine.device, "none", options.base)
        if isinstance(model, Encoder) and model.adapter is not None:
            peft.merge(model)
        save_pretrained(model, folder, dtype, heads=not is_pretraining(run, TABLES))
        tokenizer.save(folder)
        if not is_pretraining(run, TABLES):
            write_truncation(folder, truncation_of(settings_of(run).options))
    print(f"{options.merge}: {model.architecture}, {sum(p.numel() for p in model.parameters()):,} parameters")


def compare(options: Options, emit: Emit) -> None:
    """Prints a table of runs and published rows, with tests and intervals of their differences.

    --plot draws their learning curves, --out lists the test reviews on which they do not agree.
    """
    runs = [run for name in split_folders(options.compare) for run in open_runs(name)]
    check_different([str(run.folder) for run in runs], "--compare")
    names = [run.name for run in runs]
    for run in (run for run in runs if names.count(run.name) > 1):
        run.name = str(run.folder)
    print(comparison(runs))
    for run in (run for run in runs if is_pretraining(run, TABLES)):
        print(f"note: {run.name} was pretraining: its accuracies are those of its own task, not of reviews")
    for line in significance(runs):
        print(line)
    if options.plot:
        draw_curves(runs, Path(options.plot))
        print(f"{options.plot}: learning curves of {len(runs)} runs")
    if options.out:
        text, count = flips(runs, ids_of_test(runs[0]), runs[0].labels or SENTIMENT)
        emit(text)
        if not is_stdout(options.out):
            print(f"{options.out}: {count:,} test reviews on which the runs do not agree")


def ids_of_test(run: Run) -> list[str]:
    """Returns the ids of the test reviews with a label; [] with a note if the run's data cannot be read."""
    try:
        splits = read_splits(settings_of(run).options, None)
        check_digests(run.config.get("files", {}), splits.files)
        test = splits.test
    except (OSError, ValueError) as error:
        print(f"note: --out has no ids: {error}")
        return []
    return test["id"][test["sentiment"] != UNKNOWN].tolist()


def check_products(model: str, given: dict[str, Any]) -> None:
    """Raises ValueError for flags of matrix products if the model has none."""
    for name in ("precision", "quantize"):
        if model == "nb_linear" and name in given:
            raise ValueError(f"{flag(name)} has no effect here: nb_linear multiplies no matrices")


def use_checkpoint(options: Options, emit: Emit, given: dict[str, Any]) -> None:
    """Scores or labels reviews with the checkpoint --weights."""
    precision = options.precision or "auto"
    machine = choose_machine(options.device, precision, notes=False)
    quantize = "none" if options.quantize == "run" else options.quantize
    how = {"quantize": quantize, "base": options.base, "max_length": options.max_length}
    scorer = ranks.in_turn(lambda: load_checkpoint(options.weights, machine, **how, **given_truncation(given)))
    check_products(scorer.kind, given)
    note_emulated(precision, machine.device)
    source = source_for(given, TrainOptions())
    run = Run.of_weights(options.weights)
    runs = [] if run is None else [run]
    if "text" in given:
        answer(options, scorer)
    elif options.predict:
        predict(options, emit, source, scorer, runs)
    else:
        evaluate_data(options, emit, source, scorer, runs)


def note_unfinished(run: Run) -> None:
    """Prints that a run is not finished."""
    if run.result is None and run.best.is_dir():
        print(f"note: {run.folder} is not finished; this is its best epoch so far")


def use_run(options: Options, emit: Emit, given: dict[str, Any]) -> None:
    """Scores, labels or exports with the run --run, in the precision of its training unless --precision is given."""
    run = Run.open(options.run[0])
    note_unfinished(run)
    trained = settings_of(run).options
    check_products(trained.model, given)
    machine = choose_machine(options.device, options.precision or trained.precision)
    if options.merge:
        export(options, run, machine)
        return
    check_classifier(run, TABLES)
    scorer = ranks.in_turn(
        lambda: Scorer.of_run(run, trained, machine, options.quantize, options.base, **given_truncation(given))
    )
    if "text" in given:
        answer(options, scorer)
    elif options.predict:
        predict(options, emit, source_for(given, trained), scorer, [run])
    elif options.data:
        evaluate_data(options, emit, source_for(given, trained), scorer, [run])
    else:
        evaluate(options, emit, run, scorer, given)


def use_runs(options: Options, emit: Emit, given: dict[str, Any]) -> None:
    """Scores or labels with the mean of the calibrated probabilities of several runs.

    --base is the backbone of the adapters whose own is not found. Raises ValueError if there are none.
    """
    runs = [Run.open(folder) for folder in options.run]
    trained, labels = [settings_of(run).options for run in runs], shared_labels(runs)
    if not (options.data or options.predict or "text" in given):
        check_splits({str(run.folder): own_splits(run) for run in runs})
        print_ensemble(runs, labels)
        return
    moved = [run for run in runs if is_adapter(run) and backbone_is_missing(run.best)] if options.base else []
    if options.base and not moved:
        raise ValueError(f"--base {options.base}: no run is an adapter whose backbone was moved; leave it out")
    bases = [options.base if run in moved else "" for run in runs]
    members = [partial(member, options, run, base, given) for run, base in zip(runs, bases, strict=True)]
    ensemble = ranks.in_turn(lambda: Ensemble([load() for load in members]))
    if "text" in given:
        frame = as_frame([("text", review_of(options), UNKNOWN)])
        print_answer(ensemble.labels, ensemble.score_frame(frame))
    elif options.predict:
        predict(options, emit, source_for(given, trained[0]), ensemble, runs)
    else:
        evaluate_data(options, emit, source_for(given, trained[0]), ensemble, runs)


def member(options: Options, run: Run, base: str, given: dict[str, Any]) -> Member:
    """Loads the best model of a run as a member of an ensemble. base: the backbone of its adapter, if it was moved"""
    check_classifier(run, TABLES)
    note_unfinished(run)
    trained = settings_of(run).options
    machine = choose_machine(options.device, options.precision or trained.precision)
    scorer = Scorer.of_run(run, trained, machine, options.quantize, base, **given_truncation(given))
    return Member(str(run.folder), calibration(run), scorer)


def main(argv: list[str] | None = None) -> None:
    """Runs the command line. argv: the arguments; None: those of the process"""
    keep_freed_memory()
    with ranks.only_first_prints():
        given = parse_flags({"eval.py": Options}, argv, DESCRIPTION, examples=EXAMPLES, once=True)
        options = Options(**given)
        options = replace(options, run=tuple(split_folders(options.run)))
        check_flags(options, given)
        if "text" in given:
            review_of(options)  # refused before a model is loaded
        if ranks.launched() and environment_number("WORLD_SIZE", 1) > 1:
            check_ranks(options, given)
        if options.predict and not options.out:
            options = replace(options, out="-" if options.predict == "-" else DEFAULT_OUT)
        if outputs(options):
            check_replaces(options, (file for run in runs_of(options) for file in run.config.get("files", ())))
    with ranks.joined(options.device), reserved_output(options.out) as emit:
        start(options, emit, given)


def runs_of(options: Options) -> list[Run]:
    """Returns the runs that the flags name, whose reviews no output may replace."""
    runs = [Run.open(folder) for folder in options.run]
    runs += [run for name in split_folders(options.compare) for run in open_runs(name)]
    of_weights = Run.of_weights(options.weights) if options.weights else None
    return runs if of_weights is None else [*runs, of_weights]


def start(options: Options, emit: Emit, given: dict[str, Any]) -> None:
    """Runs the task that the flags select. Raises ValueError if they select none."""
    if options.compare:
        compare(options, emit)
    elif options.weights:
        use_checkpoint(options, emit, given)
    elif len(options.run) > 1:
        use_runs(options, emit, given)
    elif options.run:
        use_run(options, emit, given)
    elif options.data or options.predict or "text" in given:
        use_checkpoint(replace(options, weights=str(CLASSIFIER)), emit, given)
    else:
        raise ValueError(
            "nothing to score: --text REVIEW, --predict FILE or --data FILE uses the built-in classifier, --run "
            "RUN_FOLDER a run, --weights a checkpoint"
        )


if __name__ == "__main__":
    with ranks.leaving(), clean_exit():
        main(sys.argv[1:])
