"""Scores and uses a finished run.

python eval.py --run runs/NAME                                     validation and, if labels are known, test
python eval.py --run runs/NAME --predict testData.tsv.gz --out submission.csv
python eval.py --run runs/NAME --text "A wonderful little film." --explain
python eval.py --compare "runs/ONE runs/TWO" --plot curves.png
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # torch reads it: waiting threads soon release their cores

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import peft
from data import find_source, load_splits
from data.batches import Corpus, batches, build_corpus, sorted_order
from data.errors import clean_exit
from data.files import read_json, write_text
from data.flags import check_choice, option, parse_flags
from data.imdb import UNKNOWN, as_frame, clean, load_reviews
from data.meter import Meter
from data.runs import Run
from data.seeds import random_state, set_random_state
from data.tables import comparison, draw_curves
from data.tokenization import Tokenizer, load_tokenizer
from losses import OBJECTIVES
from nn import Model
from nn.attention_lstm import AttentionLSTM
from nn.checkpoint import load_pretrained, save_pretrained
from nn.encoder import Encoder
from nn.runtime import DTYPES, Machine, choose_machine, keep_freed_memory, tokens_per_pass
from peft.files import ADAPTER_CONFIG

SCORING_TOKENS = 16_384  # tokens in a batch, including padding, if tokens_per_pass sets no limit


def no_check() -> None:
    """Does nothing between batches."""


@dataclass(frozen=True)
class Options:
    run: str = option("", "what", "the run folder")
    data: str = option("", "what", "read reviews from here instead of the run's own data")
    predict: str = option("", "what", "a TSV or CSV of reviews to label")
    out: str = option("submission.csv", "what", "the file that --predict writes, with columns id,sentiment")
    text: str = option("", "what", "one review to label")
    explain: bool = option(False, "what", "with --text: the words that the label depends on; one pass a word")
    compare: str = option("", "what", "run folders, separated by spaces: prints a table of them")
    plot: str = option("", "what", "with --compare: draw the learning curves into this .png, .svg or .pdf")
    merge: str = option("", "what", "write a plain checkpoint to this folder, with the adapter merged into its weights")
    dtype: str = option("fp32", "what", "number format of the checkpoint that --merge writes: fp32, fp16 or bf16")
    skip_bad_rows: bool = option(False, "what", "leave out broken rows of a file instead of stopping")
    quantize: str = option("none", "machine", "int8: the run's weights in 8 bits; or none")
    device: str = option("auto", "machine", "cpu, cuda, cuda:1, mps or auto")
    precision: str = option("auto", "machine", "fp32, bf16, fp16 or auto")


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
    for batch in batches(corpus, sorted_order(corpus.lengths, SCORING_TOKENS), machine.device):
        with machine.autocast():
            loss, correct = objective(model, batch, options)
        meter.add(batch, loss, correct)
        check()
    set_random_state(state, machine.device)
    model.train()
    return meter.means()


@torch.inference_mode()
def score(
    model: Model, corpus: Corpus, machine: Machine, check: Callable[[], None] = no_check, bar: bool = True
) -> np.ndarray:
    """Computes the logits of all examples in eval() mode, and restores the model's mode.

    check: called between batches.  bar: whether to show a progress bar. Returns float32 [N, C] in the order of the
    corpus.
    """
    training, logits = model.training, np.empty((len(corpus), len(model.config.labels)), np.float32)
    model.eval()
    order = sorted_order(corpus.lengths, tokens_per_pass(model, machine) or SCORING_TOKENS)
    hide = None if bar else True  # None: hidden unless the output is a terminal
    with tqdm(total=len(corpus), desc="scoring", unit=" reviews", leave=False, disable=hide) as progress:
        for batch in batches(corpus, order, machine.device):
            with machine.autocast():
                logits[batch.rows.cpu()] = model(batch.input_ids, batch.mask).float().cpu()
            progress.update(len(batch.labels))
            check()
    model.train(training)
    return logits


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Computes the area under the ROC curve (Mann & Whitney 1947).

    The probability that a positive example scores above a negative one; ties count half. scores: [N];  labels: 0 or 1,
    [N]. Returns nan if a class is missing.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum() - (counts - 1) / 2)[inverse]  # mean rank of ties, from 1
    positive = int(labels.sum())
    pairs = positive * (len(labels) - positive)
    return float((rank[labels == 1].sum() - positive * (positive + 1) / 2) / pairs) if pairs else float("nan")


def metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Computes accuracy and cross-entropy; for two classes also AUC, F1 of the positive one and the confusion matrix.

    logits: [N, C];  labels: [N]. confusion: [[true negative, false positive], [false negative, true positive]]
    """
    wide = logits.astype(np.float64)
    log_p = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    predicted = logits.argmax(1)
    values: dict[str, Any] = {
        "accuracy": float((predicted == labels).mean()),
        "loss": float(-log_p[np.arange(len(labels)), labels].mean()),
        "count": len(labels),
    }
    if logits.shape[1] == 2:
        matrix = np.bincount(labels * 2 + predicted, minlength=4).reshape(2, 2)
        (_, fp), (fn, tp) = matrix.tolist()
        f1 = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
        values |= {"auc": auc(wide[:, 1] - wide[:, 0], labels), "f1": f1, "confusion": matrix.tolist()}
    return values


def print_metrics(name: str, values: dict[str, Any]) -> None:
    """Prints metrics in one line."""
    line = f"{name}: accuracy {values['accuracy']:.4f} on {values['count']:,} reviews, loss {values['loss']:.4f}"
    if "auc" in values:
        (tn, fp), (fn, tp) = values["confusion"]
        line += f", AUC {values['auc']:.4f}, F1 {values['f1']:.4f}, confusion [[{tn}, {fp}], [{fn}, {tp}]]"
    print(line)


# ------------------------------------------------------------------------------------------------- a finished run


def load_run(run: Run, device: torch.device, quantize: str = "none") -> tuple[Model, Tokenizer]:
    """Loads the best model of a run, in eval() mode, and its tokenizer.

    quantize: `int8` quantizes the weights; a run over 8-bit weights always has them. Raises FileNotFoundError if no
    epoch was finished.
    """
    check_choice("quantize", quantize, {"none": None, "int8": None})
    trained = run.config["options"]
    labels, int8 = trained["num_labels"], "int8" in (quantize, trained.get("quantize"))
    if (run.best / ADAPTER_CONFIG).is_file():
        base = read_json(run.best / ADAPTER_CONFIG)["base_model_name_or_path"]
        inside = run.best / base
        model = load_pretrained(inside if inside.is_dir() else base, labels, int8=int8)
        peft.load_adapter(model, run.best)
    elif (run.best / "config.json").is_file():
        model = load_pretrained(run.best, labels, int8=int8)
    else:
        raise FileNotFoundError(f"{run.folder} has no finished epoch yet: {run.best} holds no model")
    return model.to(device).eval(), load_tokenizer(run.tokenizer)


class Scorer:
    """Scores reviews with the best model of a run, as the run's options say."""

    def __init__(self, run: Run, machine: Machine, quantize: str = "none") -> None:
        self.run, self.machine, self.trained = run, machine, run.config["options"]
        self.model, self.tokenizer = load_run(run, machine.device, quantize)

    def corpus(self, frame: pd.DataFrame, cache: Path | None = None) -> Corpus:
        """Tokenizes the reviews of a frame."""
        max_length, truncate = self.trained["max_length"], self.trained["truncate"]
        return build_corpus(self.tokenizer, frame, max_length=max_length, truncate=truncate, cache=cache)

    def logits(self, corpus: Corpus, bar: bool = True) -> np.ndarray:
        """Computes logits: float32 [N, C]"""
        return score(self.model, corpus, self.machine, bar=bar)

    def score_texts(self, texts: list[str], bar: bool = True) -> np.ndarray:
        """Computes the logits of cleaned texts: float32 [N, C]"""
        return self.logits(self.corpus(as_frame([("text", text, UNKNOWN) for text in texts])), bar=bar)


def evaluate(options: Options, run: Run, machine: Machine) -> None:
    """Prints the metrics of the validation and the test reviews."""
    trained = run.config["options"]
    source, why = find_source(options.data or trained["data"])
    print(f"data: {source} ({why})")
    skip = options.skip_bad_rows or trained["skip_bad_rows"]
    splits = load_splits(source, trained["text_column"], trained["label_column"], skip, run.cache)
    scorer = Scorer(run, machine, options.quantize)
    for name, frame in (("validation", splits.validation), ("test", splits.test)):
        frame = frame[frame["sentiment"] != UNKNOWN]
        if len(frame):
            corpus = scorer.corpus(frame, run.cache)
            print_metrics(name, metrics(scorer.logits(corpus), corpus.labels))
        else:
            print(f"{name}: no labelled reviews")


def predict(options: Options, run: Run, machine: Machine) -> None:
    """Writes Kaggle's submission, id,sentiment in the order of the file; prints metrics if the file has labels."""
    trained = run.config["options"]
    frame = load_reviews(options.predict, trained["text_column"], trained["label_column"], options.skip_bad_rows)
    scorer = Scorer(run, machine, options.quantize)
    corpus = scorer.corpus(frame)
    logits = scorer.logits(corpus)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "sentiment"])
    writer.writerows(zip(frame["id"], logits.argmax(1).tolist(), strict=True))
    write_text(Path(options.out), text.getvalue())
    print(f"{options.out}: {len(frame):,} predictions")
    if (frame["sentiment"] != UNKNOWN).all():
        print_metrics(Path(options.predict).name, metrics(logits, corpus.labels))


def answer(options: Options, run: Run, machine: Machine) -> None:
    """Prints the label of one review with the probability of each class, and the words that it depends on."""
    scorer, text = Scorer(run, machine), clean(options.text)
    if not text:
        raise ValueError("--text is empty")
    logits = scorer.score_texts([text], bar=False)
    if isinstance(scorer.model, AttentionLSTM):
        print("highest attention: " + ", ".join(attended_words(scorer, scorer.model, text)))
    if options.explain and len(words := text.split()) > 1:
        without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
        gain = erasure(logits, scorer.score_texts(without))
        print("because of: " + largest_gains(words, gain))
        print("in spite of: " + largest_gains(words, -gain))
    labels, probabilities = scorer.model.config.labels, torch.from_numpy(logits[0]).softmax(0).tolist()
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    shown = {label: round(p, 4) for label, p in zip(labels, probabilities, strict=True)}
    print(f"{labels[best]} ({json.dumps(shown)})")


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
    return OBJECTIVES[run.config["options"]["loss"]].pretraining


def export(folder: str, run: Run, machine: Machine, dtype: str = "fp32") -> None:
    """Writes a folder that transformers loads: config.json, model.safetensors, the tokenizer.

    The checkpoint of a pretraining run has no classifier. Raises ValueError if the folder holds a checkpoint.
    """
    torch_dtype = check_choice("dtype", dtype, DTYPES)
    if (Path(folder) / "config.json").exists():
        raise ValueError(f"{folder} holds a checkpoint already; name another folder")
    model, tokenizer = load_run(run, machine.device)
    if isinstance(model, Encoder) and model.adapter is not None:
        peft.merge(model)
    save_pretrained(model, folder, torch_dtype, heads=not is_pretraining(run))
    tokenizer.save(folder)
    print(f"{folder}: {model.architecture}, {sum(p.numel() for p in model.parameters()):,} parameters")


def compare(options: Options) -> None:
    """Prints a table of runs, and draws their learning curves with --plot."""
    runs = [Run.open(folder) for folder in options.compare.split()]
    print(comparison(runs))
    if options.plot:
        draw_curves(runs, Path(options.plot))
        print(f"{options.plot}: learning curves of {len(runs)} runs")


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    given = parse_flags({"eval.py": Options}, argv, "Scores and uses a finished run.")
    options = Options(**given)
    if options.plot and not options.compare:
        raise ValueError('--plot needs runs: --compare "runs/ONE runs/TWO" --plot FILE')
    if options.compare:
        compare(options)
        return
    if not options.run:
        raise ValueError("--run RUN_FOLDER names the run to use")
    if options.explain and "text" not in given:
        raise ValueError("--explain needs a review: --text REVIEW --explain")
    run, machine = Run.open(options.run), choose_machine(options.device, options.precision)
    if is_pretraining(run) and not options.merge:
        raise ValueError(f"{run.folder} was pretrained and has no classifier; train.py --weights {run.best} adds one")
    if "text" in given:
        answer(options, run, machine)
    elif options.merge:
        export(options.merge, run, machine, options.dtype)
    elif options.predict:
        predict(options, run, machine)
    else:
        evaluate(options, run, machine)


if __name__ == "__main__":
    with clean_exit():
        main(sys.argv[1:])
