"""Makes the built-in classifier: its reviews, and the checkpoint of its two members.

    python tests/bench/box.py reviews IMDB_FOLDER OUT_FOLDER
    python tests/bench/box.py adapter RUN OUT_FOLDER
    python tests/bench/box.py members REVIEWS_FOLDER OUT_FOLDER
    python tests/bench/box.py score REVIEWS_FOLDER [RUN]

`reviews` writes train.tsv: the 20,000 training reviews of the usual split and the 20,000 built-in reviews for training
and validation; sentences.tsv, for the teacher: these built-in reviews, the last sentence of 3 to 40 words of each
training review with the review's label, and 2,000 whole ones; unlabelled.tsv, for the student: the 50,000 unlabelled
reviews, and the last sentence of each training and unlabelled review; validation.tsv and test.tsv: IMDB's alone.

`adapter` writes OUT_FOLDER/deberta-mini-imdb, the adapter of a run in fp16. `members` writes
OUT_FOLDER/imdb/members.json: the factors of nb-linear-imdb and of the adapter, and the power of nb-linear-imdb. They
maximize the likelihood of the validation reviews and of the last one, two and four sentences of each (logistic
regression on the two log-odds, without intercept, for each power).

`score` writes data/results/box.json: the metrics of the classifier and of each member on validation.tsv and test.tsv,
the members, and the results of the runs of the adapter and of its teacher; the log of the last is box.log.jsonl.
Without RUN the results of the runs are kept.
data/weights/imdb/README.md has the commands in their order.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from data import Source, load_splits, load_table
from data.checked import read_json
from data.demo import reviews
from data.ensemble import count_words
from data.explanation import sentences
from data.files import write_json, write_tensors, write_text
from data.hub import ADAPTER, ADAPTER_CONFIG, CLASSIFIER, LINEAR, MEMBERS
from data.labels import UNKNOWN
from data.metrics import metrics
from data.options import truncation_of
from data.rows import RESULTS
from data.runs import Run
from data.windows import write_truncation
from eval import settings_of
from nn.runtime import choose_machine
from peft.classifier import load_checkpoint

ENDINGS = (1, 2, 4)  # sentences
POWERS = tuple(-i / 20 for i in range(17))


def ending(text: str, count: int) -> str:
    """Returns the last sentences of a review."""
    words = text.split()
    return " ".join(words[sentences(words)[-count:][0].start :])


def last_sentences(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the last sentence of each review, if it has 3 to 40 words."""
    last = [text.split()[sentences(text.split())[-1].start :] for text in frame["review"]]
    kept = [3 <= len(words) <= 40 for words in last]
    return frame.assign(id=frame["id"] + "-last", review=[" ".join(words) for words in last])[kept]


def write_reviews(source: str, out: Path) -> None:
    """Writes the files of reviews."""
    out.mkdir(parents=True, exist_ok=True)
    splits = load_splits(Source(data=source), with_unlabelled=True)
    built_in = pd.DataFrame(reviews("train"), columns=["id", "review", "sentiment"])
    last = [last_sentences(frame) for frame in (splits.train, splits.unlabelled)]
    frames = {
        "train": pd.concat([splits.train, built_in]),
        "validation": splits.validation,
        "test": splits.test,
        "sentences": pd.concat([built_in, last[0], splits.train.sample(2000, random_state=1)]),
        "unlabelled": pd.concat([splits.unlabelled, *last]).assign(sentiment=UNKNOWN),
    }
    names = {**dict(enumerate(splits.labels)), UNKNOWN: ""}
    for name, frame in frames.items():
        frame.assign(sentiment=frame["sentiment"].map(names)).to_csv(out / f"{name}.tsv", sep="\t", index=False)
        print(f"{out / name}.tsv: {len(frame):,} reviews")


def fit_factors(odds: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the f with the largest likelihood of σ(odds · f), by Newton's method. [N, M], [N] -> [M]"""
    factors = np.zeros(odds.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-odds @ factors))
        gradient, curvature = odds.T @ (labels - p), (odds * (p * (1 - p))[:, None]).T @ odds
        factors += np.linalg.solve(curvature, gradient)
    return factors


def log_likelihood(odds: np.ndarray, labels: np.ndarray, factors: np.ndarray) -> float:
    """Computes the mean of log σ(±odds · f)."""
    return float(-np.logaddexp(0, np.where(labels, -1, 1) * (odds @ factors)).mean())


def write_members(folder: Path, out: Path) -> None:
    """Writes members.json."""
    machine, names = choose_machine("cpu", "fp32"), (LINEAR.name, "deberta-mini-imdb")
    scorers = [load_checkpoint(str(out / name), machine) for name in names]
    whole, _ = load_table(folder / "validation.tsv", Source(), scorers[0].labels)
    parts = [whole, *(whole.assign(review=[ending(text, n) for text in whole["review"]]) for n in ENDINGS)]
    frame = pd.concat(parts, ignore_index=True)
    labels, words = frame["sentiment"].to_numpy(), count_words(frame["review"])
    odds = np.stack([z[:, 1] - z[:, 0] for z in (scorer.score_frame(frame) for scorer in scorers)], axis=1)
    found = []
    for power in POWERS:
        scaled = odds * np.stack([words**power, np.ones_like(words)], axis=1)
        factors = fit_factors(scaled, labels)
        right = ((scaled @ factors > 0) == labels).reshape(len(parts), -1).mean(1)
        found.append((log_likelihood(scaled, labels, factors), power, factors))
        print(f"power {power:.2f}, factors {factors}, likelihood {found[-1][0]:.5f}, accuracy {right}")
    _, power, factors = max(found, key=lambda one: one[0])
    members = [{"weights": name, "factor": round(float(f), 3)} for name, f in zip(names, factors, strict=True)]
    write_json(out / "imdb" / MEMBERS, [members[0] | {"power": power}, members[1]])


def write_adapter(run: Run, out: Path) -> None:
    """Writes the adapter in fp16."""
    adapter = out / "deberta-mini-imdb"
    adapter.mkdir(parents=True, exist_ok=True)
    write_tensors(adapter / ADAPTER, {name: t.half() for name, t in load_file(run.best / ADAPTER).items()})
    write_text(adapter / ADAPTER_CONFIG, (run.best / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    write_truncation(adapter, truncation_of(settings_of(run).options))


def lineage(run: Run) -> list[Run]:
    """Returns the runs of an adapter in their order: each starts from the best epoch of the one before."""
    weights = Path(settings_of(run).options.weights)
    return [*lineage(Run.open(weights.parent)), run] if weights.name == "best" else [run]


def write_scores(folder: Path, run: Run | None) -> None:
    """Scores validation and test reviews with the built-in classifier, and writes the results. run: of the adapter"""
    machine = choose_machine("cpu", "fp32")
    blend, scores = load_checkpoint(str(CLASSIFIER), machine), {}
    for split in ("validation", "test"):
        frame, _ = load_table(folder / f"{split}.tsv", Source(), blend.labels)
        labels = frame["sentiment"].to_numpy()
        logits = {part.name: part.scorer.score_frame(frame) for part in blend.parts}
        logits["both"] = blend.total(list(logits.values()), count_words(frame["review"]))
        scores[split] = {name: metrics(z, labels) for name, z in logits.items()}
        print(split, {name: found["accuracy"] for name, found in scores[split].items()})
    about = {
        "command": "python tests/bench/box.py score box" + (f" runs/{run.folder.name}" if run else ""),
        "machine": str(machine),
        "members": read_json(CLASSIFIER / MEMBERS),
    }
    if run is None:
        before = read_json(RESULTS / "box.json")
        write_json(RESULTS / "box.json", {**about, **scores, **{name: before[name] for name in ("adapter", "teacher")}})
        return
    teachers = [Run.open(name).result for name in settings_of(run).values()["teacher"]]
    adapter = [one.result for one in lineage(run)]
    write_json(RESULTS / "box.json", {**about, **scores, "adapter": adapter, "teacher": teachers})
    write_text(RESULTS / "box.log.jsonl", run.log_file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    task, *names = sys.argv[1:]
    if task == "reviews":
        write_reviews(names[0], Path(names[1]))
    elif task == "adapter":
        write_adapter(Run.open(names[0]), Path(names[1]))
    elif task == "members":
        write_members(Path(names[0]), Path(names[1]))
    else:
        write_scores(Path(names[0]), Run.open(names[1]) if names[1:] else None)
