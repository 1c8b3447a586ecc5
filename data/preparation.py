"""Prepares a run before its model is built: folder, reviews, tokenizer, examples; prints what was found."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data import Splits, overlap, ranks
from data.checksums import check_checksums, write_checksums
from data.corpus import Corpus, examples_of, warn_unknown
from data.errors import interruptible
from data.files import new_folder
from data.labels import SENTIMENT, UNKNOWN
from data.options import Options, Settings, read_splits, truncation_of
from data.orders import Stream
from data.runs import Run
from data.tokenization import Tokenizer, load_tokenizer, train_tokenizer

FRAMES = ("train", "validation", "test", "unlabelled")  # the fields of Splits that hold reviews


def start_run(settings: Settings, machine: str, agents: list[str]) -> Run:
    """Creates the run folder with its config.json. Raises ValueError if the folder exists.

    machine: its description. agents: those of the torchrun job, [] without torchrun.
    """
    options = settings.options
    source = Path(options.data).name.split(".")[0] or "data"
    config = {"options": settings.values(), "origins": settings.origins, "machine": machine}
    config |= {"agents": agents} if agents else {}
    if options.name:
        return Run.create(Path(options.runs) / options.name, config)
    name = f"{options.model}-{options.peft}-{source}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Run.create(new_folder(Path(options.runs) / name), config)


@contextmanager
def naming_run(run: Run) -> Iterator[None]:
    """Adds to the error about a missing file that a resumed run was started from it."""
    try:
        yield
    except FileNotFoundError as error:
        if not run.state_file.exists():
            raise
        raise FileNotFoundError(f"{error}; {run.folder} was started from it: restore it there") from None


def read_data(options: Options, run: Run, pretraining: bool, unlabelled: bool) -> Splits:
    """Reads the reviews, records their classes and files in the run, and prints their numbers and the duplicates.

    pretraining, unlabelled: whether the objective needs texts without labels, or unlabelled reviews as well. Raises
    ValueError if these are missing.
    """
    trains_vectors = options.word_vectors == "train" and options.weights == "none"
    try:
        splits = read_splits(options, run.cache, pretraining, unlabelled or trains_vectors)
    except FileNotFoundError as error:
        if "files" not in run.config:
            raise
        raise FileNotFoundError(f"{error}; {run.folder} was trained on it: restore it there") from None
    run.record_data(splits.labels, splits.files)
    frames = {name: frame for name, frame in splits._asdict().items() if name in FRAMES and len(frame)}
    if splits.shards is None:
        print("reviews: " + ", ".join(f"{len(frame):,} {name}" for name, frame in frames.items()))
    if unlabelled and not len(splits.unlabelled):
        flag = "--distill-unlabelled" if options.loss == "distill" else f"--loss {options.loss}"
        ways = (
            "rows with an empty label, or in the folder --data unlabeledTrainData.tsv, train/unsup, or unlabelled.csv"
        )
        ways = "--data imdb has them" if options.data == "demo" and not options.train else ways
        raise ValueError(f"{flag} needs unlabelled reviews, which {options.train or options.data} lacks; {ways}")
    if splits.labels != SENTIMENT and not pretraining:
        print(f"labels: {', '.join(splits.labels)}")
    if duplicates := ", ".join(f"{count} {where}" for where, count in overlap(splits).items() if count):
        print(f"duplicates: {duplicates}")
    return splits


def prepare_tokenizer(options: Options, run: Run, splits: Splits, kind: str) -> Tokenizer:
    """Returns the tokenizer of the weights; for random weights a new one of this kind, trained on the training split.

    It is saved in the run, from which a resumed run reads it.
    """
    if (run.tokenizer / "tokenizer_config.json").is_file():  # the last file that Tokenizer.save writes
        check_checksums(run.tokenizer)
        return load_tokenizer(run.tokenizer)
    if options.weights == "none":
        texts = splits.train["review"] if splits.shards is None else splits.shards.sample()
        tokenizer = interruptible(lambda: train_tokenizer(kind, texts, options.vocab_size, options.min_count))
    else:
        tokenizer = load_tokenizer(options.weights, options.tokenizer, options.base)
    limit = tokenizer.model_max_length or options.max_length
    if options.max_length > limit:
        print(f"warning: --max-length {options.max_length} is above {limit}, the tokenizer's model_max_length")
    tokenizer.save(run.tokenizer)
    write_checksums(run.tokenizer)
    return tokenizer


def make_corpora(tokenizer: Tokenizer, splits: Splits, options: Options, cache: Path) -> tuple[Corpus, Corpus]:
    """Returns the training and the validation examples. Raises ValueError for texts too short for pretraining."""
    truncation = truncation_of(options)
    if splits.shards is not None:
        train, held_out = splits.shards.corpora(tokenizer, truncation.max_length, truncation.truncate, cache)
    else:
        frames = (splits.train, splits.validation)
        train, held_out = (examples_of(tokenizer, frame, truncation, cache) for frame in frames)
    if options.weights != "none":
        warn_unknown(tokenizer, train, "; use weights of their language, as --model xlm_roberta has them")
    if splits.shards is not None or (splits.train["sentiment"] == UNKNOWN).all():
        check_lengths(train, held_out, tokenizer)
    return train, held_out


def check_lengths(train: Corpus, held_out: Corpus, tokenizer: Tokenizer) -> None:
    """Raises ValueError if no training text or no held-out text of pretraining has a token to predict from another."""
    special = sum(map(len, tokenizer.template))
    for name, corpus in (("training", train), ("held-out", held_out)):
        if corpus.lengths.max() <= special + 1:
            raise ValueError(f"the {name} texts are too short for pretraining: each is a single token; add longer ones")


def unlabelled_stream(settings: Settings, splits: Splits, tokenizer: Tokenizer, run: Run) -> Stream:
    """Returns endless batches of unlabelled reviews."""
    options = settings.options
    corpus = ranks.in_turn(lambda: unlabelled_corpus(settings, splits, tokenizer, run))
    return Stream(corpus, settings.objective.unlabelled_batch or options.batch_size, options.seed)


def unlabelled_corpus(settings: Settings, splits: Splits, tokenizer: Tokenizer, run: Run) -> Corpus:
    """Tokenizes the unlabelled reviews."""
    return examples_of(tokenizer, splits.unlabelled, truncation_of(settings.options), run.cache)
