"""Scores and uses the classifier in the box, a finished run, or a checkpoint.

python eval.py --text "A wonderful little film."                   the classifier in the box
python eval.py --run runs/NAME                                     validation and, if labels are known, test
python eval.py --run runs/NAME --data FILE.csv                     all rows of a file
python eval.py --run runs/NAME --predict testData.tsv.gz --submission --out submission.csv
python eval.py --weights DIR_OR_HUB_ID --data FILE.csv             a published classifier, without a run
python eval.py --run runs/NAME --text "A wonderful little film." --explain
python eval.py --compare runs/ONE runs/TWO --plot curves.png
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # torch reads it: waiting threads soon release their cores

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import peft
from data import Source, find_source, load_table
from data.batches import Corpus, batches, build_corpus, sorted_order
from data.checked import reading
from data.checksums import check_checksums
from data.delimited import FIELD_LIMIT
from data.demo import kind_of
from data.errors import clean_exit
from data.files import is_stdout, write_output
from data.flags import check_choice, option, parse_flags, split_folders
from data.hub import ADAPTER_CONFIG, CLASSIFIER, find_adapter
from data.imdb import as_frame, clean
from data.labels import SENTIMENT, UNKNOWN
from data.meter import Meter
from data.metrics import metrics, print_metrics, softmax
from data.options import Options as TrainOptions
from data.options import Settings, Tables, read_splits, recorded_settings
from data.ranks import add_rows, alone, is_first, own_share, rank, size
from data.runs import Run
from data.seeds import random_state, set_random_state
from data.tables import comparison, draw_curves
from data.tokenization import Tokenizer, load_tokenizer
from losses import OBJECTIVES
from nn import MODELS, Model
from nn.attention_lstm import AttentionLSTM
from nn.checkpoint import load_pretrained, save_pretrained
from nn.encoder import Encoder
from nn.nb_linear import NBLinear
from nn.runtime import DTYPES, Machine, cast_once, choose_machine, keep_freed_memory, tokens_per_pass
from peft.lora import merged_copies

COLUMNS = ("text_column", "label_column", "id_column", "encoding", "quoting", "max_file_mib")
SCORING_TOKENS = 16_384  # tokens in a batch, including padding, if tokens_per_pass sets no limit


def no_check() -> None:
    """Does nothing between batches."""


DESCRIPTION = "Scores and uses a finished run, or a checkpoint."
EXAMPLES = {  # of each group in --help
    "what": 'python eval.py --run runs/NAME --text "A wonderful little film."',
    "data": "python eval.py --run runs/NAME --data reviews.csv --text-column text --label-column stars",
    "machine": "python eval.py --run runs/NAME --device cuda --precision bf16",
}


@dataclass(frozen=True)
class Options:
    run: str = option("", "what", "the run folder; default: the classifier in the box, trained on IMDB", "DIR")
    weights: str = option("", "what", "score this checkpoint folder or hub id instead of a run", "DIR_OR_ID")
    base: str = option("", "what", "the backbone of the run's adapter, if it is not where it was", "DIR_OR_ID")
    data: str = option("", "what", "score all rows of this file, or the reviews of this folder", "DIR_OR_FILE")
    predict: str = option(
        "", "what", "label the reviews of this file; -: one review a line from standard input", "FILE"
    )
    submission: bool = option(False, "what", "with --predict: write Kaggle's columns id,sentiment only")
    out: str = option("", "what", "the file that --predict writes; -: standard output; default: submission.csv", "FILE")
    text: str = option("", "what", "one review to label")
    explain: bool = option(False, "what", "with --text: the words that the label depends on; one pass a word")
    compare: tuple[str, ...] = option((), "what", "run folders: prints a table of them", metavar="DIR")
    plot: str = option("", "what", "with --compare: draw the learning curves into this .png, .svg or .pdf", "FILE")
    merge: str = option(
        "", "what", "write a plain checkpoint to this folder, with the adapter merged into its weights", "DIR"
    )
    dtype: str = option(
        "fp32", "what", "number format of the checkpoint that --merge writes: fp32, fp16 or bf16", "FORMAT"
    )
    text_column: str = option("", "data", "column that contains the text; default: the run's", "NAME")
    label_column: str = option("", "data", "column that contains the label; default: the run's", "NAME")
    id_column: str = option("", "data", "column that contains the id; default: the run's", "NAME")
    encoding: str = option("", "data", "encoding of the files; default: the run's", "NAME")
    quoting: str = option("", "data", "quotes of a file: rfc4180, literal or backslash; default: the run's", "STYLE")
    skip_bad_rows: bool = option(False, "data", "leave out broken rows of a file instead of stopping")
    max_file_mib: int = option(0, "data", "largest data file that is read, unpacked, in MiB; 0: the run's", "MIB")
    max_length: int = option(0, "data", "without --run: maximum number of tokens of a review; 0: 512, or the model's")
    quantize: str = option("run", "machine", "int8: the weights in 8 bits; none; run: as the run was trained")
    device: str = option("auto", "machine", "cpu, cuda, cuda:1, mps or auto", "DEVICE")
    precision: str = option("", "machine", "fp32, bf16, fp16 or auto; default: the run's", "FORMAT")


# ------------------------------------------------------------------------------------------------------- scoring


@torch.no_grad()
def held_out_loss(
    model: Model,
    corpus: Corpus,
    objective: Callable,
    options: Any,
    machine: Machine,
    seed: int,
    check: Callable[[], None] = no_check,
) -> dict[str, float]:
    """Computes the loss and accuracies of a pretraining objective on held-out texts, in eval() mode.

    options: of the objective.  seed: of the masks, which are then the same every time.  check: called between batches.
    Returns {"loss", "acc", …}, means over the texts. Restores the random state; the model is in train() mode after it.
    """
    meter, state = Meter(None, 0.0, 0.0), random_state(machine.device)
    model.eval()
    torch.manual_seed(seed)
    for rows in sorted_order(corpus.lengths, SCORING_TOKENS):
        whole = corpus.batch(rows)
        batch = (whole if alone() else own_share(whole)).to(machine.device)
        with machine.autocast():
            loss, correct = objective(model, batch, options)
        meter.add(batch, loss, correct if batch.counted else {})
        check()
    set_random_state(state, machine.device)
    model.train()
    meter.sums = meter.of_all_ranks()
    return meter.means()


@torch.inference_mode()
def score(
    model: Model, corpus: Corpus, machine: Machine, check: Callable[[], None] = no_check, bar: bool = True
) -> np.ndarray:
    """Computes the logits of all examples in eval() mode, and restores the model's mode.

    LoRA is merged into copies of the weights, so that a pass costs what it costs without an adapter. check: called
    between batches.  bar: whether to show a progress bar. Returns float32 [N, C] in the order of the corpus.
    """
    training, logits = model.training, np.zeros((len(corpus), len(model.config.labels)), np.float32)
    model.eval()
    order = sorted_order(corpus.lengths, tokens_per_pass(model, machine) or SCORING_TOKENS)
    hide = None if bar and is_first() else True  # None: hidden unless the output is a terminal
    bar_shown = tqdm(total=len(corpus), desc="scoring", unit=" reviews", leave=False, disable=hide)
    with bar_shown as progress, merged_copies(model, machine.dtype), cast_once(model, machine):
        for batch in batches(corpus, order[rank() :: size()], machine.device):  # the batches of one rank: equal logits
            with machine.autocast():
                logits[batch.rows.cpu()] = model(batch.input_ids, batch.mask).float().cpu()
            progress.update(len(batch.labels))
            check()
    model.train(training)
    return add_rows(logits)


# -------------------------------------------------------------------------------------- a finished run, a checkpoint


def settings_of(run: Run) -> Settings:
    """Returns the settings that a run recorded. Raises ValueError for a damaged config.json."""
    return recorded_settings(run, Tables(MODELS, peft.METHODS, OBJECTIVES))


def load_run(run: Run, device: torch.device, quantize: str = "run", base: str = "") -> tuple[Model, Tokenizer]:
    """Loads the best model of a run, in eval() mode, and its tokenizer.

    quantize: int8, none, or run: as the run was trained.  base: the backbone of its adapter, if it was moved. Raises
    FileNotFoundError if no epoch was finished, or if the backbone is not found.
    """
    check_choice("quantize", quantize, dict.fromkeys(("run", "int8", "none")))
    trained = settings_of(run).options.quantize
    int8 = (trained if quantize == "run" else quantize) == "int8"
    check_checksums(run.best)
    check_checksums(run.tokenizer)
    if (run.best / ADAPTER_CONFIG).is_file():
        model: Model = peft.load_adapted(run.best, base=base, labels=run.labels, int8=int8)
    elif (run.best / "config.json").is_file():
        model = load_pretrained(run.best, int8=int8)
    else:
        raise FileNotFoundError(f"{run.folder} has no finished epoch yet: {run.best} holds no model")
    return model.to(device).eval(), load_tokenizer(run.tokenizer)


class Scorer:
    """Scores reviews with the best model of a run, as the run's options say, or with a checkpoint."""

    def __init__(self, model: Model, tokenizer: Tokenizer, machine: Machine, max_length: int, truncate: str) -> None:
        self.model, self.tokenizer, self.machine = model, tokenizer, machine
        self.max_length, self.truncate = max_length, truncate
        self.labels: tuple[str, ...] = model.config.labels

    @classmethod
    def of_run(cls, run: Run, machine: Machine, quantize: str = "run", base: str = "") -> "Scorer":
        """Loads the best model of a run."""
        trained = settings_of(run).options
        return cls(*load_run(run, machine.device, quantize, base), machine, trained.max_length, trained.truncate)

    @classmethod
    def of_checkpoint(cls, options: Options, machine: Machine) -> "Scorer":
        """Loads the checkpoint --weights. Raises ValueError if it has no classifier."""
        check_choice("quantize", options.quantize, dict.fromkeys(("run", "int8", "none")))
        int8 = options.quantize == "int8"
        if find_adapter(options.weights) is not None:
            model: Model = peft.load_adapted(options.weights, options.base, int8=int8)
        else:
            model = load_pretrained(options.weights, int8=int8)
        tokenizer = load_tokenizer(options.weights)
        if any(name.startswith("classifier.") for name in model.newly_initialized):
            raise ValueError(f"{options.weights} has no classifier; train.py --weights {options.weights} trains one")
        trained = next(entry.training for entry in MODELS.values() if entry.build is type(model))
        limit = trained.get("max_length", 512)
        limit = options.max_length or min(limit, tokenizer.model_max_length or limit)
        return cls(model.to(machine.device).eval(), tokenizer, machine, limit, trained.get("truncate", "head"))

    def corpus(self, frame: pd.DataFrame, cache: Path | None = None) -> Corpus:
        """Tokenizes the reviews of a frame."""
        return build_corpus(self.tokenizer, frame, self.max_length, self.truncate, cache)

    def logits(self, corpus: Corpus, check: Callable[[], None] = no_check, bar: bool = True) -> np.ndarray:
        """Computes logits: float32 [N, C]"""
        return score(self.model, corpus, self.machine, check, bar)

    def score_texts(self, texts: list[str], bar: bool = True) -> np.ndarray:
        """Computes the logits of cleaned texts: float32 [N, C]"""
        return self.logits(self.corpus(as_frame([("text", text, UNKNOWN) for text in texts])), bar=bar)


def source_for(options: Options, trained: TrainOptions) -> Source:
    """Returns how files are read: as the command line says, otherwise as the run did."""
    columns = {name: getattr(options, name) or getattr(trained, name) for name in COLUMNS}
    return Source(**columns, skip_bad_rows=options.skip_bad_rows or trained.skip_bad_rows)


def evaluate(options: Options, run: Run, scorer: Scorer) -> None:
    """Prints the metrics of the run's own validation and test reviews, or of the reviews of --data."""
    trained = settings_of(run).options
    if options.data and options.data != "demo" and Path(options.data).is_file():
        evaluate_file(options, source_for(options, trained), scorer)
        return
    if options.data:
        source, why = find_source(options.data)
        trained = replace(trained, data=source, train="", validation="", test="")
        print(f"data: {source} ({why})")
    splits = read_splits(trained, run.cache)
    if not options.data:
        run.record_data(splits.labels, splits.files)
    for name, frame in (("validation", splits.validation), ("test", splits.test)):
        frame = frame[frame["sentiment"] != UNKNOWN]
        if len(frame):
            corpus = scorer.corpus(frame, run.cache)
            logits = scorer.logits(corpus)
            print_metrics(name, metrics(logits, corpus.labels), scorer.labels)
            if trained.data == "demo":
                print(f"{name} by kind: " + accuracy_by_kind(frame["id"], logits.argmax(1) == corpus.labels))
        else:
            print(f"{name}: no labelled reviews")


def accuracy_by_kind(ids: Iterable[str], correct: np.ndarray) -> str:
    """Lists the accuracy on each kind of built-in review, with the number of its reviews. correct: bool [N]"""
    kinds = pd.Series(correct).groupby([kind_of(identifier) for identifier in ids])
    return ", ".join(f"{kind} {found.mean():.3f} ({len(found)})" for kind, found in kinds)


def evaluate_file(options: Options, source: Source, scorer: Scorer) -> None:
    """Prints the metrics of all rows of the file --data."""
    frame, _ = load_table(options.data, source, scorer.labels, keep_empty=True)
    frame = frame[frame["sentiment"] != UNKNOWN]
    if not len(frame):
        raise ValueError(f"{options.data} has no labels; name their column with --label-column, or use --predict")
    corpus = scorer.corpus(frame)
    print_metrics(Path(options.data).name, metrics(scorer.logits(corpus), corpus.labels), scorer.labels)


def bounded_lines(file: io.TextIOBase) -> Iterator[str]:
    """Yields the lines of a stream. Raises ValueError for a line of more than FIELD_LIMIT characters."""
    while line := file.readline(FIELD_LIMIT + 1):
        if len(line) > FIELD_LIMIT:
            raise ValueError(f"a line of standard input has more than {FIELD_LIMIT:,} characters; split it")
        yield line


def predict(options: Options, source: Source, scorer: Scorer) -> None:
    """Writes id, label and the probability of each class, in the order of the file; metrics if the file has labels."""
    if options.predict == "-":
        lines = io.TextIOWrapper(sys.stdin.buffer, encoding=source.encoding or "utf-8")
        with reading("standard input", "text", "name its encoding with --encoding"):
            frame = as_frame([(str(n), clean(line), UNKNOWN) for n, line in enumerate(bounded_lines(lines), 1)])
    else:
        frame, _ = load_table(options.predict, source, scorer.labels, keep_empty=True)
    corpus = scorer.corpus(frame)
    logits = scorer.logits(corpus)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if options.submission:
        names = ("0", "1") if scorer.labels == SENTIMENT else scorer.labels
        writer.writerow(["id", "sentiment"])
        writer.writerows(zip(frame["id"], (names[c] for c in logits.argmax(1)), strict=True))
    else:
        writer.writerow(["id", "label", *(f"p_{label}" for label in scorer.labels)])
        rows = zip(frame["id"], logits.argmax(1), softmax(logits), strict=True)
        writer.writerows([key, scorer.labels[c], *(f"{p:.6f}" for p in ps)] for key, c, ps in rows)
    out = options.out or ("-" if options.predict == "-" else "submission.csv")
    write_output(out, text.getvalue())
    if not is_stdout(out):
        print(f"{out}: {len(frame):,} predictions")
        if len(frame) and (frame["sentiment"] != UNKNOWN).all():
            print_metrics(Path(options.predict).name, metrics(logits, corpus.labels), scorer.labels)


def answer(options: Options, scorer: Scorer) -> None:
    """Prints the label of one review with the probability of each class, and the words that it depends on."""
    text = clean(options.text)
    if not text:
        raise ValueError("--text is empty")
    logits = scorer.score_texts([text], bar=False)
    if isinstance(scorer.model, AttentionLSTM):
        print("highest attention: " + ", ".join(attended_words(scorer, scorer.model, text)))
    if options.explain and len(text.split()) > 1:
        words, gain = effects(scorer, text, logits)
        print("because of: " + largest_gains(words, gain))
        print("in spite of: " + largest_gains(words, -gain))
    shown = {label: round(float(p), 4) for label, p in zip(scorer.labels, softmax(logits)[0], strict=True)}
    print(f"{scorer.labels[int(logits[0].argmax())]} ({json.dumps(shown, ensure_ascii=False)})")


def effects(scorer: Scorer, text: str, logits: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns the words of a text with their effects on its label, by leaving each out (`erasure`); of a linear model
    its n-grams, with what they add to the label's logit minus the mean of the others. logits: of the text, [1, C]"""
    if not isinstance(scorer.model, NBLinear):
        words = text.split()
        without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
        return words, erasure(logits, scorer.score_texts(without))
    ids = torch.from_numpy(scorer.corpus(as_frame([("text", text, UNKNOWN)])).ids.astype(np.int64))
    with torch.inference_mode():
        parts = scorer.model.ngram_logits(ids.to(scorer.machine.device))
    label = int(logits[0].argmax())
    gain = [part[label] - (part.sum() - part[label]) / (len(part) - 1) for _, part in parts]
    names = [" ".join(scorer.tokenizer.tokens[word] for word in ngram) for ngram, _ in parts]
    return names, torch.stack(gain).cpu().numpy() if gain else np.zeros(0)


def log_odds(logits: np.ndarray, label: int) -> np.ndarray:
    """Computes log p/(1 - p) of one label: [N]. logits: [N, C]"""
    return logits[:, label] - np.logaddexp.reduce(np.delete(logits, label, axis=1), axis=1)


def erasure(logits: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Computes the effect of each word on the label of a text: [N]

    The effect is the label's log-odds minus its log-odds without the word (Li, Monroe & Jurafsky 2016, arXiv
    1612.08220; they take the log-likelihood and divide by it, which is not informative if the model is certain).
    logits: of the whole text, [1, C];  without: of the text without its first word, second word, …, [N, C]
    """
    label = int(logits[0].argmax())
    return log_odds(logits, label) - log_odds(without, label)


def largest_gains(words: list[str], gain: np.ndarray, count: int = 10) -> str:
    """Lists the words with the largest positive gains."""
    largest = [i for i in np.argsort(-gain, kind="stable")[:count] if gain[i] > 0]
    return ", ".join(f"{words[i]} {gain[i]:.2f}" for i in largest) or "no word"


@torch.inference_mode()
def attended_words(scorer: Scorer, model: AttentionLSTM, text: str, count: int = 10) -> list[str]:
    """Lists the words of a text with the highest attention weights."""
    corpus = scorer.corpus(as_frame([("text", text, UNKNOWN)]))
    batch = corpus.batch(np.array([0])).to(scorer.machine.device)
    weights = model.attention_weights(batch.input_ids, batch.mask)[0]
    tokens = scorer.tokenizer.tokens
    return [f"{tokens[batch.input_ids[0, t]]} {weights[t]:.2f}" for t in weights.argsort(descending=True)[:count]]


def is_pretraining(run: Run) -> bool:
    """Returns whether a run was pretraining, which leaves no classifier."""
    return OBJECTIVES[settings_of(run).options.loss].pretraining


def export(options: Options, run: Run, machine: Machine) -> None:
    """Writes a folder that transformers loads: config.json, model.safetensors, the tokenizer.

    An adapter over 8-bit weights is merged into the unquantized backbone. The checkpoint of a pretraining run has no
    classifier. Raises ValueError if the folder holds a checkpoint.
    """
    folder, dtype = options.merge, check_choice("dtype", options.dtype, DTYPES)
    if (Path(folder) / "config.json").exists():
        raise ValueError(f"{folder} holds a checkpoint already; name another folder")
    model, tokenizer = load_run(run, machine.device, "none", options.base)
    if isinstance(model, Encoder) and model.adapter is not None:
        peft.merge(model)
    save_pretrained(model, folder, dtype, heads=not is_pretraining(run))
    tokenizer.save(folder)
    print(f"{folder}: {model.architecture}, {sum(p.numel() for p in model.parameters()):,} parameters")


def compare(options: Options) -> None:
    """Prints a table of runs, and draws their learning curves with --plot."""
    runs = [Run.open(folder) for folder in split_folders(options.compare)]
    print(comparison(runs))
    if options.plot:
        draw_curves(runs, Path(options.plot))
        print(f"{options.plot}: learning curves of {len(runs)} runs")


def check_flags(options: Options, given: dict[str, Any]) -> None:
    """Raises ValueError for flags that need another one."""
    if options.plot and not options.compare:
        raise ValueError("--plot needs runs: --compare runs/ONE runs/TWO --plot FILE")
    if options.explain and "text" not in given:
        raise ValueError("--explain needs a review: --text REVIEW --explain")
    if options.submission and not options.predict:
        raise ValueError("--submission needs reviews: --predict FILE --submission")
    if options.weights and options.run:
        raise ValueError("--run and --weights both name a model; leave one out")
    if options.weights and not (options.data or options.predict or "text" in given):
        raise ValueError("--weights needs reviews: --data FILE, --predict FILE or --text REVIEW")


def use_checkpoint(options: Options, given: dict[str, Any]) -> None:
    """Scores or labels reviews with the checkpoint --weights."""
    scorer = Scorer.of_checkpoint(options, choose_machine(options.device, options.precision or "auto"))
    source = source_for(options, TrainOptions())
    if "text" in given:
        answer(options, scorer)
    elif options.predict:
        predict(options, source, scorer)
    else:
        evaluate_file(options, source, scorer)


def use_run(options: Options, given: dict[str, Any]) -> None:
    """Scores, labels or exports with the run --run, in its own precision."""
    run = Run.open(options.run)
    trained = settings_of(run).options
    machine = choose_machine(options.device, options.precision or trained.precision)
    if is_pretraining(run) and not options.merge:
        raise ValueError(f"{run.folder} was pretrained and has no classifier; train.py --weights {run.best} adds one")
    if options.merge:
        export(options, run, machine)
        return
    scorer = Scorer.of_run(run, machine, options.quantize, options.base)
    if "text" in given:
        answer(options, scorer)
    elif options.predict:
        predict(options, source_for(options, trained), scorer)
    else:
        evaluate(options, run, scorer)


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    given = parse_flags({"eval.py": Options}, argv, DESCRIPTION, examples=EXAMPLES)
    options = Options(**given)
    check_flags(options, given)
    if options.compare:
        compare(options)
    elif options.weights:
        use_checkpoint(options, given)
    elif options.run:
        use_run(options, given)
    elif options.data or options.predict or "text" in given:
        use_checkpoint(replace(options, weights=str(CLASSIFIER)), given)
    else:
        raise ValueError(
            "nothing to score: --text REVIEW, --predict FILE or --data FILE uses the classifier in the box, --run "
            "RUN_FOLDER a run, --weights a checkpoint"
        )


if __name__ == "__main__":
    with clean_exit():
        main(sys.argv[1:])
