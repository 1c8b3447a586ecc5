"""Scores and uses a finished run.

python eval.py --run runs/NAME                                     validation and, where labels are known, test
python eval.py --run runs/NAME --predict testData.tsv.gz --out submission.csv
python eval.py --run runs/NAME --text "A wonderful little film." --explain
python eval.py --compare "runs/ONE runs/TWO" --plot curves.png
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read with torch: a waiting thread soon leaves its core to others

import numpy as np
import pandas as pd
import torch
from torch.nn import Module
from tqdm import tqdm

import peft
from data import compare, find_source, load_splits
from data.batches import Corpus, batches, sorted_order
from data.flags import known, option, parse_flags
from data.imdb import UNKNOWN, as_frame, clean, load_reviews
from data.runs import Meter, Run
from data.tokenization import Tokenizer, load_tokenizer
from losses import OBJECTIVES
from nn.checkpoint import load_pretrained, save_pretrained
from nn.files import read_json, write_text
from nn.runtime import (
    DTYPES,
    Interrupt,
    Machine,
    choose_machine,
    clean_exit,
    derive_seed,
    keep_freed_memory,
    random_state,
    set_random_state,
)
from peft.files import ADAPTER_CONFIG

SCORING_TOKENS = 16_384  # places in a batch, padding included
CACHED_TOKENS = 2_048  # the same in fp32 where an encoder runs on a CPU, in training too: activations stay in the cache


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = option("", "what", "the run folder")
    data: str = option("", "what", "where to read reviews instead of where the run did")
    predict: str = option("", "what", "a TSV or CSV of reviews to label")
    out: str = option("submission.csv", "what", "where --predict writes id,sentiment")
    text: str = option("", "what", "one review to label")
    explain: bool = option(False, "what", "with --text: which words the label rests on, one pass a word")
    compare: str = option("", "what", "run folders with spaces between them: a table, and their learning curves")
    plot: str = option("", "what", "with --compare: a .png, .svg or .pdf that the learning curves are drawn into")
    merge: str = option("", "what", "folder for a plain checkpoint with the adapter inside its weights")
    dtype: str = option("fp32", "what", "numbers of the checkpoint that --merge writes: fp32, fp16 or bf16")
    skip_bad_rows: bool = option(False, "what", "leave broken rows of a file out instead of stopping")
    quantize: str = option("none", "machine", "int8: the run's weights in 8 bits")
    device: str = option("auto", "machine", "cpu, cuda, cuda:1, mps or auto")
    precision: str = option("auto", "machine", "fp32, bf16, fp16 or auto")


# ------------------------------------------------------------------------------------------------------- scoring


@torch.no_grad()
def held_out_loss(model: Module, corpus: Corpus, objective, machine: Machine, options, interrupt) -> dict[str, float]:
    """What pretraining reaches on texts it does not train on: {"loss", "acc", …}, means over the texts, in eval() mode,
    with the same masks each time. The model's mode and the random state are put back afterwards."""
    meter, state = Meter(None, 0.0, 0.0), random_state(machine.device)
    model.eval()
    torch.manual_seed(derive_seed(options.seed, "held out"))
    for batch in batches(corpus, sorted_order(corpus.lengths, SCORING_TOKENS), machine.device):
        with machine.autocast():
            loss, hits = objective(model, batch, options)
        meter.add(batch, loss, hits)
        interrupt.check()
    set_random_state(state, machine.device)
    model.train()
    return meter.means()


def places_at_once(model: Module, machine: Machine) -> int:
    """How many places of a batch go through `model` fastest; 0: the more the better."""
    if machine.device.type != "cpu" or not hasattr(model, "embed_words"):
        return 0
    return CACHED_TOKENS * torch.float32.itemsize // machine.dtype.itemsize


@torch.inference_mode()
def score(
    model: Module,
    corpus: Corpus,
    machine: Machine,
    interrupt: Interrupt | None = None,
    bar: bool = True,
) -> np.ndarray:
    """Logits float32 [N, C] in the order of the corpus, in eval() mode; the mode of the model is put back
    afterwards."""
    training, logits = model.training, np.empty((len(corpus), len(model.config.labels)), np.float32)
    model.eval()
    order = sorted_order(corpus.lengths, places_at_once(model, machine) or SCORING_TOKENS)
    with tqdm(
        total=len(corpus), desc="scoring", unit=" reviews", leave=False, disable=None if bar else True
    ) as progress:
        for batch in batches(corpus, order, machine.device):
            with machine.autocast():
                logits[batch.rows.cpu()] = model(batch.input_ids, batch.mask).float().cpu()
            progress.update(len(batch.labels))
            if interrupt is not None:
                interrupt.check()
    model.train(training)
    return logits


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half
    (Mann & Whitney 1947). scores: [N];  labels: 0 or 1, [N]. nan where a class is missing."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum() - (counts - 1) / 2)[inverse]  # mean rank of ties, from 1
    positive = int(labels.sum())
    pairs = positive * (len(labels) - positive)
    return float((rank[labels == 1].sum() - positive * (positive + 1) / 2) / pairs) if pairs else float("nan")


def metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy, cross-entropy, and for two classes AUC, F1 of the positive one and the confusion matrix
    [[true negative, false positive], [false negative, true positive]]. logits: [N, C];  labels: [N]."""
    wide = logits.astype(np.float64)
    log_p = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    predicted = logits.argmax(1)
    values = {
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


# ------------------------------------------------------------------------------------------------- a finished run


def load_run(run: Run, device: torch.device, quantize: str = "none") -> tuple[Module, Tokenizer]:
    """The best model of a run, in eval() mode, and its tokenizer. A run on 8-bit weights gets them again; quantize
    `int8` asks it of any. Raises FileNotFoundError where none was saved yet."""
    known("quantize", quantize, {"none": None, "int8": None})
    labels, int8 = run.config["options"]["num_labels"], "int8" in (quantize, run.config["options"].get("quantize"))
    if (run.best / ADAPTER_CONFIG).is_file():
        base = read_json(run.best / ADAPTER_CONFIG)["base_model_name_or_path"]
        inside = run.best / base
        model = load_pretrained(inside if inside.is_dir() else base, labels, int8=int8)
        model = peft.load_adapter(model, run.best)
    elif (run.best / "config.json").is_file():
        model = load_pretrained(run.best, labels, int8=int8)
    else:
        raise FileNotFoundError(f"{run.folder} has no finished epoch yet: {run.best} holds no model")
    return model.to(device).eval(), load_tokenizer(run.tokenizer)


def build_corpus(tokenizer: Tokenizer, frame: pd.DataFrame, options: dict[str, Any], cache: Path | None) -> Corpus:
    """Token ids of the reviews, as the run's options say; with `cache`, kept there under the hash of all they depend
    on."""
    length, truncate = options["max_length"], options["truncate"]
    labels = [] if truncate == "chunks" else frame["sentiment"]  # chunks are more than reviews
    if cache is None:
        return Corpus.from_rows(tokenizer.encode(frame["review"], length, truncate), labels, tokenizer.pad_id)
    digest = hashlib.sha256(f"{tokenizer.fingerprint} {length} {truncate} ".encode())
    digest.update("\0".join(frame["review"]).encode("utf-8", "surrogatepass"))
    path = cache / f"{digest.hexdigest()[:24]}.npy"
    return Corpus.cached(path, lambda: tokenizer.encode(frame["review"], length, truncate), labels, tokenizer.pad_id)


def print_metrics(name: str, values: dict[str, Any]) -> None:
    print(
        f"{name}: accuracy {values['accuracy']:.4f} on {values['count']:,} reviews, loss {values['loss']:.4f}",
        end="",
    )
    if "auc" in values:
        (tn, fp), (fn, tp) = values["confusion"]
        print(
            f", AUC {values['auc']:.4f}, F1 {values['f1']:.4f}, confusion [[{tn}, {fp}], [{fn}, {tp}]]",
            end="",
        )
    print()


def evaluate(options: Options, run: Run, machine: Machine) -> None:
    trained = run.config["options"]
    source, why = find_source(options.data or trained["data"])
    print(f"data: {source} ({why})")
    columns = (trained["text_column"], trained["label_column"])
    splits = load_splits(
        source, *columns, options.skip_bad_rows or trained["skip_bad_rows"], run.folder.parent / ".cache"
    )
    model, tokenizer = load_run(run, machine.device, options.quantize)
    for name, frame in (("validation", splits.validation), ("test", splits.test)):
        frame = frame[frame["sentiment"] != UNKNOWN]
        if len(frame):
            corpus = build_corpus(tokenizer, frame, trained, run.cache)
            print_metrics(name, metrics(score(model, corpus, machine), corpus.labels))
        else:
            print(f"{name}: no labelled reviews")


def predict(options: Options, run: Run, machine: Machine) -> None:
    """Kaggle's submission: id,sentiment, in the order of the file; a score beside it where the file has labels."""
    trained = run.config["options"]
    frame = load_reviews(options.predict, trained["text_column"], trained["label_column"], options.skip_bad_rows)
    model, tokenizer = load_run(run, machine.device, options.quantize)
    corpus = build_corpus(tokenizer, frame, trained, None)
    logits = score(model, corpus, machine)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "sentiment"])
    writer.writerows(zip(frame["id"], logits.argmax(1).tolist(), strict=True))
    write_text(Path(options.out), text.getvalue())
    print(f"{options.out}: {len(frame):,} predictions")
    if (frame["sentiment"] != UNKNOWN).all():
        print_metrics(Path(options.predict).name, metrics(logits, corpus.labels))


def answer(options: Options, run: Run, machine: Machine) -> None:
    model, tokenizer = load_run(run, machine.device)
    cleaned = clean(options.text)
    if not cleaned:
        raise ValueError("--text is empty")

    def scores(texts: list[str], bar: bool) -> tuple[np.ndarray, Corpus]:
        frame = as_frame([("text", text, UNKNOWN) for text in texts])
        corpus = build_corpus(tokenizer, frame, run.config["options"], None)
        return score(model, corpus, machine, bar=bar), corpus

    logits, corpus = scores([cleaned], bar=False)
    chances = torch.from_numpy(logits[0]).softmax(0).tolist()
    best = max(range(len(chances)), key=chances.__getitem__)
    labels = model.config.labels
    if hasattr(model, "attention_weights"):
        print("looks at: " + ", ".join(heaviest_words(model, tokenizer, corpus, machine)))
    if options.explain and len(words := cleaned.split()) > 1:
        without = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
        gain = erasure(logits, scores(without, bar=True)[0])
        print("because of: " + heaviest(words, gain))
        print("in spite of: " + heaviest(words, -gain))
    print(f"{labels[best]} ({json.dumps({label: round(p, 4) for label, p in zip(labels, chances, strict=True)})})")


def log_odds(logits: np.ndarray, label: int) -> np.ndarray:
    """log p/(1 - p) of one label, [N]. logits: [N, C]"""
    return logits[:, label] - np.logaddexp.reduce(np.delete(logits, label, axis=1), axis=1)


def erasure(logits: np.ndarray, without: np.ndarray) -> np.ndarray:
    """What each word does for the label of a text: the label's log-odds less those where the word is left out, [N]
    (Li, Monroe & Jurafsky 2016, arXiv 1612.08220, who take the log-likelihood and divide by it, which says little where
    a model is sure). logits: of the whole text, [1, C];  without: of the text without its first word, second, …, [N, C]
    """
    label = int(logits[0].argmax())
    return log_odds(logits, label) - log_odds(without, label)


def heaviest(words: list[str], gain: np.ndarray, count: int = 10) -> str:
    """The words that gain most, each with its gain; those alone that gain anything."""
    most = [place for place in np.argsort(-gain, kind="stable")[:count] if gain[place] > 0]
    return ", ".join(f"{words[place]} {gain[place]:.2f}" for place in most) or "no word"


@torch.inference_mode()
def heaviest_words(model: Module, tokenizer: Tokenizer, corpus: Corpus, machine: Machine, count: int = 10) -> list[str]:
    """The words of the first review that attention weighs most, each with its weight."""
    batch = corpus.batch(np.array([0])).to(machine.device)
    weights = model.attention_weights(batch.input_ids, batch.mask)[0]
    words = tokenizer.words
    return [f"{words[batch.input_ids[0, t]]} {weights[t]:.2f}" for t in weights.argsort(descending=True)[:count]]


def is_pretraining(run: Run) -> bool:
    return OBJECTIVES[run.config["options"]["loss"]].pretraining


def export(folder: str, run: Run, machine: Machine, dtype: str = "fp32") -> None:
    """A folder that transformers loads: config.json, model.safetensors, the tokenizer. Of a pretraining run it has no
    classifier."""
    number = known("dtype", dtype, DTYPES)
    if (Path(folder) / "config.json").exists():
        raise ValueError(f"{folder} holds a checkpoint already; name another folder")
    model, tokenizer = load_run(run, machine.device)
    if getattr(model, "adapter", None):
        peft.merge(model)
    save_pretrained(model, folder, number, heads=not is_pretraining(run))
    tokenizer.save(folder)
    print(f"{folder}: {model.architecture}, {sum(p.numel() for p in model.parameters()):,} parameters")


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    given = parse_flags(Options, argv, __doc__.splitlines()[0])
    options = Options(**given)
    if options.plot and not options.compare:
        raise ValueError('--plot needs runs: --compare "runs/ONE runs/TWO" --plot FILE')
    if options.compare:
        runs = [Run.open(folder) for folder in options.compare.split()]
        print(compare.table(runs))
        if options.plot:
            compare.draw(runs, Path(options.plot))
            print(f"{options.plot}: learning curves of {len(runs)} runs")
        return
    if not options.run:
        raise ValueError("--run RUN_FOLDER says which run to use")
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
