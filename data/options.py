"""The options of train.py.

General options are the fields of `Options`. The options of a method and of an objective are dataclasses next to their
math (peft/, losses/), which the three tables name. data/resolve.py finds the value of each option and its origin.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from data import Source, Splits, load_splits
from data.flags import check_choice, field_names, flag, option, pick_fields
from data.labels import UNKNOWN
from data.pretraining_texts import load_texts
from data.splitting import subset
from data.windows import POOLING, Truncation

DESCRIPTION = (
    "Runs one experiment: options, data, model, method, optimizer, the training loop, the score.\n"
    "The defaults below are general; model, method, objective, weights and data may have others. A run\n"
    "prints every value that is not a general default, with its origin."
)
# training defaults for random weights, and for the built-in weights, which are small; a method may have further ones
FROM_RANDOM = {"learning_rate": 1.5e-4, "head_learning_rate": 1.5e-4, "layer_decay": 1.0, "batch_size": 32, "epochs": 5}
FROM_BUILTIN = {"batch_size": 16, "epochs": 8, "warmup": 0.1}
EXAMPLES = {  # of each group in --help
    "what": "python train.py --model bert --weights google-bert/bert-base-uncased --peft lora",
    "data": "python train.py --data reviews.csv --text-column text --label-column stars --truncate head+tail",
    "training": "python train.py --epochs 3 --batch-size 32 --learning-rate 2e-5 --schedule linear --seed 43",
    "machine": "python train.py --device cuda --precision bf16 --checkpointing",
    "run": "python train.py --name first  # then: python train.py --resume runs/first",
    "LoRA": "python train.py --peft lora --rank 16 --alpha 32 --targets query,value",
    "virtual tokens": "python train.py --peft prefix --virtual-tokens 30",
    "objective": "python train.py --loss rdrop --rdrop-alpha 1",
}
OF_WORDS = ("vocab_size", "min_count", "word_vectors", "whiten_vectors")  # options that a checkpoint's words replace
# for batches this small bf16 is slower, even on hardware with bf16 products
FROM_DEMO = {"precision": "fp32", "epochs": 4}


COUNTS = ("vocab_size", "min_count", "batch_size")  # no value of these is off
COLUMNS = ("text_column", "label_column", "id_column", "encoding", "quoting", "max_file_mib")
SIGNED = ("dropout", "classifier_dropout", "seed")  # options that may be negative: dropout -1 is the model's own


@dataclass(frozen=True)
class Options:
    model: str = option("deberta", "what", "architecture")
    peft: str = option("none", "what", "parameter-efficient method (none: train all parameters)")
    loss: str = option("ce", "what", "objective")
    weights: str = option(
        "", "what", "none (random), builtin, a folder, or a hub id; default: the model's own", "WEIGHTS"
    )
    shape: str = option(
        "", "what", "config fields of a new random model: hidden_size=64 pooling=max+mean", "FIELD=VALUE"
    )
    base: str = option(
        "", "what", "backbone of an adapter folder given as --weights, if the backbone was moved", "DIR_OR_ID"
    )
    head: str = option(
        "published",
        "what",
        "published: the checkpoint's own head, if it has one; new: a new last layer",
        choices=("published", "new"),
    )
    dropout: float = option(
        -1.0, "what", "dropout of all layers, not of words; negative: as in the model's config", "P"
    )
    classifier_dropout: float = option(-1.0, "what", "dropout before the last layer; negative: as in the config", "P")
    reinit_layers: int = option(0, "what", "number of top layers that start from random weights")

    data: str = option(
        "", "data", "folder, table, demo, or imdb (download); default: $IMDB_DIR, data/imdb/, demo", "DIR_OR_FILE"
    )
    train: str = option("", "data", "file of training reviews, instead of --data", "FILE")
    validation: str = option("", "data", "file of validation reviews; default: part of the training reviews", "FILE")
    test: str = option("", "data", "file of test reviews", "FILE")
    text_column: str = option("", "data", "column that contains the text", "COLUMN")
    label_column: str = option(
        "", "data", "column that contains the label: 0 and 1, names, or numbers of stars", "COLUMN"
    )
    id_column: str = option("", "data", "column that contains the id", "COLUMN")
    quoting: str = option(
        "", "data", "quotes of a file: rfc4180, literal or backslash; default: found in the file", "STYLE"
    )
    encoding: str = option(
        "", "data", "encoding of the files; default: UTF-8, or UTF-16 with a byte order mark", "ENCODING"
    )
    skip_bad_rows: bool = option(False, "data", "leave out broken rows instead of stopping")
    max_file_mib: int = option(4096, "data", "largest data file that is read, unpacked, in MiB", "MIB")
    train_reviews: int = option(0, "data", "train on this many reviews of the training split; 0: all")
    validation_reviews: int = option(0, "data", "select the best epoch by this many validation reviews; 0: all")
    test_reviews: int = option(0, "data", "score this many test reviews; 0: all")
    train_on_validation: bool = option(
        False,
        "data",
        "train on the validation reviews too, and keep the last epoch: for a last run, after all settings are chosen",
    )
    max_length: int = option(256, "data", "maximum number of tokens of a review, including [CLS] and [SEP]")
    truncate: str = option(
        "head",
        "data",
        "kept of a longer review: head, tail, head+tail (first quarter, at most 128 tokens, and the end), windows "
        "(all, overlapping), or chunks (pretraining)",
        "PART",
    )
    window_stride: int = option(0, "data", "tokens from one window to the next; 0: half of max_length")
    window_pooling: str = option(
        "mean", "data", "logits of a review: mean or maximum over its windows, class by class", choices=POOLING
    )
    tokenizer: str = option(
        "published", "data", "published: as the weights were trained; hf5: as transformers 5 does", "NAME"
    )
    vocab_size: int = option(
        4000, "data", "size of a new vocabulary; all characters are in it, with unigram also bytes"
    )
    min_count: int = option(1, "data", "minimum count of a word in the vocabulary")
    word_vectors: str = option(
        "none",
        "data",
        "none (random), train (GloVe, on all reviews but the test reviews), a file, or a checkpoint",
        "VECTORS",
    )
    whiten_vectors: bool = option(True, "data", "whiten the word vectors: the same variance in all directions")
    train_vectors: bool = option(True, "data", "continue to train the word vectors")

    epochs: int = option(3, "training", "passes over the training split")
    batch_size: int = option(16, "training", "reviews in a micro-batch, over all ranks; it may be split into passes")
    tokens_per_batch: int = option(0, "training", "instead of batch_size: tokens in a micro-batch, with padding")
    accumulation: int = option(1, "training", "micro-batches in an optimizer step (gradient accumulation)")
    learning_rate: float = option(3e-5, "training", "peak learning rate of AdamW", "RATE")
    head_learning_rate: float = option(0.0, "training", "learning rate of the head; 0: the learning rate", "RATE")
    layer_decay: float = option(
        1.0, "training", "factor of the learning rate from each layer to the one below it", "FACTOR"
    )
    unfreeze: str = option(
        "all",
        "training",
        "all layers, or gradual: the head in epoch 1, one more layer in each later epoch",
        choices=("all", "gradual"),
    )
    adam_epsilon: float = option(1e-6, "training", "ε of AdamW", "EPSILON")
    weight_decay: float = option(0.01, "training", "weight decay of everything but biases and norms", "FACTOR")
    warmup: float = option(
        0.06, "training", "warm-up: a fraction of all steps if below 1, otherwise a number of steps", "SHARE_OR_N"
    )
    schedule: str = option(
        "linear",
        "training",
        "after the warm-up the rate falls to 0 (linear) or stays (constant)",
        choices=("linear", "constant"),
    )
    class_weights: str = option("none", "training", "weights of the classes in the loss", choices=("none", "balanced"))
    average: float = option(
        0.0, "training", "score and save the running mean of the weights with this decay; 0: none", "DECAY"
    )
    clip: float = option(1.0, "training", "maximum norm of the gradient; 0: no limit", "NORM")
    patience: int = option(0, "training", "stop after this many epochs without a better validation accuracy; 0: never")
    seed: int = option(42, "training", "seed of initialization, data order and dropout, each with its own stream")

    device: str = option("auto", "machine", "cpu, cuda, cuda:1, mps or auto", "DEVICE")
    precision: str = option("auto", "machine", "fp32, bf16, fp16, or auto: bf16 if the hardware supports it", "FORMAT")
    quantize: str = option(
        "none", "machine", "frozen weights in 8 or 4 bits, together with --peft", choices=("none", "int8", "nf4")
    )
    checkpointing: bool = option(False, "machine", "recompute each layer in the backward pass: less memory, more time")
    shard: bool = option(False, "machine", "torchrun: each rank keeps a part of weights, gradients and moments (FSDP2)")
    out_of_memory: str = option(
        "halve",
        "machine",
        "if memory runs out: halve each forward pass and continue, or stop",
        choices=("halve", "stop"),
    )
    save_minutes: float = option(5.0, "machine", "minutes between saves of the state within an epoch", "MINUTES")

    name: str = option("", "run", "folder below --runs; default: made from model, method, data and time", "NAME")
    runs: str = option("runs", "run", "parent of the run folders", "DIR")
    resume: str = option("", "run", "continue this run folder, with its own options", "DIR")


class Tables(NamedTuple):
    """MODELS, METHODS and OBJECTIVES."""

    models: Mapping[str, Any]
    methods: Mapping[str, Any]
    objectives: Mapping[str, Any]

    def option_classes(self) -> dict[str, type]:
        """Returns every options dataclass by the flag that selects it."""
        methods = {f"--peft {name}": entry.options for name, entry in self.methods.items()}
        objectives = {f"--loss {name}": entry.options for name, entry in self.objectives.items()}
        return {"train.py": Options, **objectives, **methods}


class Settings(NamedTuple):
    """All options of one run. `method` and `objective` are instances of the options classes in peft/ and losses/."""

    options: Options
    method: Any
    objective: Any
    origins: dict[str, str]  # field -> origin

    @classmethod
    def build(cls, values: Mapping[str, Any], origins: Mapping[str, str], tables: Tables) -> "Settings":
        """Distributes {field: value} over the classes. Raises ValueError for a value that a class refuses."""
        options = pick_fields(Options, values)
        method = pick_fields(check_choice("method", options.peft, tables.methods).options, values)
        objective = pick_fields(check_choice("objective", options.loss, tables.objectives).options, values)
        for part in (options, method, objective):
            check_signs(part, origins)
        names = field_names(Options) | field_names(type(method)) | field_names(type(objective))
        return cls(options, method, objective, {name: origin for name, origin in origins.items() if name in names})

    def values(self) -> dict[str, Any]:
        """Returns {field: value} of all three, as a run's config.json records it."""
        return asdict(self.options) | asdict(self.method) | asdict(self.objective)


def check_signs(options: Any, origins: Mapping[str, str]) -> None:
    """Raises ValueError for a negative number in an options dataclass: a negative rate or weight trains backwards.

    The file of an adapter may have one, such as alpha.
    """
    for name, value in vars(options).items():
        if isinstance(value, int | float) and value < 0 and name not in SIGNED and origins.get(name) != "adapter":
            raise ValueError(f"{flag(name)} {value} is negative")


def source_of(options: Options) -> Source:
    """Returns where the reviews of a run come from and how its files are read."""
    return pick_fields(Source, asdict(options))


def truncation_of(options: Options) -> Truncation:
    """Returns how a run cuts its reviews."""
    return Truncation(options.max_length, options.truncate, options.window_stride, options.window_pooling)


def read_splits(
    options: Options, cache: Path | None, pretraining: bool = False, with_unlabelled: bool = False
) -> Splits:
    """Reads the data of a run and takes the subsets that its options select.

    pretraining: texts without labels.  with_unlabelled: reads unlabelled reviews as well.
    """
    source = source_of(options)
    split = not options.train_on_validation
    splits = load_texts(source, cache) if pretraining else load_splits(source, cache, with_unlabelled, split=split)
    if splits.shards is not None and (options.train_reviews or options.validation_reviews):
        raise ValueError("--train-reviews and --validation-reviews are for reviews in memory; name fewer shards")
    if options.train_on_validation and len(splits.validation):  # of a file
        train = pd.concat([splits.train, splits.validation], ignore_index=True)
        splits = splits._replace(train=train, validation=splits.validation[:0])
    seeds = {"train": options.seed, "validation": 42, "test": 42}  # all seeds are scored on the same reviews
    for part, seed in seeds.items():
        if count := getattr(options, f"{part}_reviews"):
            frame = getattr(splits, part)
            known = frame[frame["sentiment"] != UNKNOWN]  # reviews without a label are not scored
            frame = known if len(known) and part != "train" else frame
            splits = splits._replace(**{part: subset(frame, count, seed, f"--{part}-reviews")})
    return splits
