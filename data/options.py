"""The options of train.py, and where each value comes from.

General options are the fields of `Options`. The options of a method and of an objective are dataclasses next to their
math (peft/, losses/); the three tables name them, and `resolve` takes the tables as arguments. A value comes from
default < model < method < objective < random or built-in weights < adapter < command line; for the built-in reviews
see find_data.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from data import Source, Splits, find_source, load_splits, load_texts
from data.checked import about, as_object, check_types, has_type, listed
from data.flags import check_choice, field_names, flag, merge_defaults, option, parse_flags, pick_fields
from data.hub import adapter_method, adapter_options, find_adapter
from data.imdb import subset
from data.labels import UNKNOWN
from data.runs import Run
from data.tokenization import TRUNCATE
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
        "", "what", "backbone of an adapter folder given as --weights, if it is not where it was", "DIR_OR_ID"
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
    text_column: str = option("", "data", "column that contains the text", "NAME")
    label_column: str = option(
        "", "data", "column that contains the label: 0 and 1, names, or numbers of stars", "NAME"
    )
    id_column: str = option("", "data", "column that contains the id", "NAME")
    quoting: str = option(
        "", "data", "quotes of a file: rfc4180, literal or backslash; default: found in the file", "STYLE"
    )
    encoding: str = option(
        "", "data", "encoding of the files; default: UTF-8, or UTF-16 with a byte order mark", "NAME"
    )
    skip_bad_rows: bool = option(False, "data", "leave out broken rows instead of stopping")
    max_file_mib: int = option(4096, "data", "largest data file that is read, unpacked, in MiB", "MIB")
    train_reviews: int = option(0, "data", "train on this many reviews of the training split; 0: all")
    validation_reviews: int = option(0, "data", "select the best epoch by this many validation reviews; 0: all")
    test_reviews: int = option(0, "data", "score this many test reviews; 0: all")
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
    vocab_size: int = option(4000, "data", "vocabulary size of a tokenizer that is trained here")
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


def check_owners(given: Mapping[str, Any], options: Options, tables: Tables) -> None:
    """Raises ValueError for a flag of another method or objective, which would have no effect."""
    owners = tables.option_classes()
    active = ("train.py", f"--loss {options.loss}", f"--peft {options.peft}")
    for name in given:
        if not any(name in field_names(owners[owner]) for owner in active):
            elsewhere = [owner for owner, cls in owners.items() if name in field_names(cls)]
            raise ValueError(f"{flag(name)} has no effect here; it is for {', '.join(elsewhere)}")


def check_values(options: Options, model: Any, objective: Any) -> None:
    """Raises ValueError for values and combinations that are not supported. model, objective: table entries."""
    for name in ("epochs", "batch_size", "accumulation", "max_length", "max_file_mib"):
        if getattr(options, name) < 1:
            raise ValueError(f"{flag(name)} {getattr(options, name)} must be at least 1")
    for field in fields(options):
        if choices := field.metadata["choices"]:
            check_choice(field.name, getattr(options, field.name), dict.fromkeys(choices))
    name = options.name
    if name and (name in (".", "..") or Path(name).name != name or not name.isprintable()):
        raise ValueError(f"--name {name!r} must be the name of one folder; --runs DIR names its parent")
    check_choice("truncation", options.truncate, dict.fromkeys((*TRUNCATE, "windows")))
    if options.truncate == "windows" and objective.pretraining:
        raise ValueError(f"--truncate windows reads tokens twice; --loss {options.loss} takes --truncate chunks")
    if options.truncate != "windows" and (options.window_stride or options.window_pooling != "mean"):
        raise ValueError("--window-stride and --window-pooling are for --truncate windows")
    if options.truncate == "chunks" and not objective.pretraining:
        raise ValueError(
            "--truncate chunks separates a review from its label; it is for pretraining: --loss mlm, rtd, lm and tv"
        )
    if options.quantize != "none" and (options.peft == "none" or options.weights == "none"):
        raise ValueError(f"--quantize {options.quantize} is for frozen weights: it needs --weights and a --peft method")
    if options.unfreeze == "gradual" and options.peft != "none":
        raise ValueError(f"--unfreeze gradual is for --peft none, which trains all layers; not for {options.peft}")
    if options.unfreeze == "gradual" and (options.weights == "none" or objective.pretraining):
        raise ValueError("--unfreeze gradual is for pretrained layers under a classifier: it needs --weights")
    if options.unfreeze == "gradual" and options.shard:
        raise ValueError("--unfreeze gradual freezes layers that --shard has divided; leave out one of them")
    if options.shape and options.weights != "none":
        raise ValueError(f"--shape is for --weights none; {options.weights} has its own config")
    if options.shard and model.tokenizer == "wordlevel":
        raise ValueError(f"--shard cuts the layers of an encoder; {options.model} is small: leave it out")
    if options.word_vectors != "none" and model.tokenizer != "wordlevel" and not objective.pretraining:
        raise ValueError(f"--word-vectors are for word networks and pretraining; {options.model} reads subwords")


def check_effect(given: Mapping[str, Any], settings: Settings, model: Any, objective: Any) -> None:
    """Raises ValueError for a flag that is given and would have no effect. model, objective: table entries"""
    options, without_labels = settings.options, getattr(settings.objective, "distill_alpha", 0.0) == 1
    weights, vectors = options.weights, options.word_vectors
    idle: list[tuple[bool, str, tuple[str, ...]]] = [
        (weights != "none", f"{weights} has a vocabulary of its own", ("vocab_size", "min_count")),
        (weights != "none", f"{weights} has word vectors of its own", ("word_vectors", "whiten_vectors")),
        (weights == "none", "it is for --weights", ("head", "tokenizer", "reinit_layers")),
        (vectors == "none", "it is for --word-vectors", ("whiten_vectors",)),
        (model.tokenizer != "wordlevel", f"{options.model} reads subwords", ("min_count",)),
        (options.loss == "tv", "only the regions are trained", ("train_vectors",)),
        (options.tokens_per_batch > 0 and not objective.unlabelled, "--tokens-per-batch replaces it", ("batch_size",)),
        (objective.pretraining, "pretraining keeps the last epoch", ("patience",)),
        (without_labels, "--distill-alpha 1 leaves out the labels", ("class_weights",)),
        (objective.pretraining, "pretraining has no labels", ("class_weights", "head", "classifier_dropout")),
        (objective.pretraining, "pretraining has no test score", ("test", "test_reviews")),
    ]
    for applies, why, names in idle:
        for name in names:
            off = getattr(options, name) == getattr(Options, name) and name not in COUNTS
            if applies and name in given and not off:
                raise ValueError(f"{flag(name)} has no effect here: {why}")


def parse(argv: list[str] | None, tables: Tables) -> dict[str, Any]:
    """Returns {field: value} for the flags on the command line."""
    lists = {"model": tables.models, "peft": tables.methods, "loss": tables.objectives}
    return parse_flags(tables.option_classes(), argv, DESCRIPTION, lists, EXAMPLES)


def resolve(argv: list[str] | None, tables: Tables) -> tuple[Settings, Run | None]:
    """Resolves the command line into settings; returns the run as well if it resumes one."""
    given = parse(argv, tables)
    if given.get("resume"):
        return resume(given, tables)
    model = check_choice("model", given.get("model", Options.model), tables.models)
    own = continued_adapter(given, tables)
    method = check_choice("method", (given | own).get("peft", Options.peft), tables.methods)
    objective = check_choice("objective", given.get("loss", Options.loss), tables.objectives)
    weights = given.get("weights", objective.training.get("weights", model.weights))
    layers = [("model", model.training | {"weights": model.weights}), ("method", method.training)]
    layers += [("objective", objective_defaults(given, tables, weights))]
    if weights == "none" and model.weights != "none" and not objective.pretraining:
        layers += [("random weights", FROM_RANDOM)]
    if weights == "builtin" and not objective.pretraining:
        layers += [("built-in weights", FROM_BUILTIN | method.builtin)]
    classes = (Options, method.options, objective.options)
    values, origins = merge_defaults(classes, [*layers, ("adapter", own), ("command line", given)])
    settings = Settings.build(values, origins, tables)
    check_owners(given, settings.options, tables)
    check_effect(given, settings, model, objective)
    check_values(settings.options, model, objective)
    return settings, None


def objective_defaults(given: Mapping[str, Any], tables: Tables, weights: str) -> dict[str, Any]:
    """Returns the training defaults of the objective; with trained weights those to continue from them, and no shape.

    Raises ValueError for a model whose config lacks a field of the shape.
    """
    objective, model = given.get("loss", Options.loss), given.get("model", Options.model)
    defaults = dict(tables.objectives[objective].training)
    if weights != "none":
        defaults |= tables.objectives[objective].continued
        defaults.pop("shape", None)
    needed = {part.partition("=")[0] for part in defaults.get("shape", "").split()}
    fitting = [name for name, entry in tables.models.items() if needed <= field_names(entry.build.Config)]
    if model not in fitting:
        raise ValueError(f"--loss {objective} is for --model {' or '.join(fitting)}, not {model}")
    return defaults


def adapter_folder(weights: str) -> Path | None:
    """Returns the folder `weights` if it is an adapter, otherwise None; an adapter on the hub is not one."""
    return find_adapter(weights) if weights and Path(weights).expanduser().is_dir() else None


def continued_adapter(given: Mapping[str, Any], tables: Tables) -> dict[str, Any]:
    """Returns the method and its options if --weights is an adapter, which is then trained further; otherwise {}.

    Raises ValueError for a flag that contradicts the adapter's own settings.
    """
    weights = given.get("weights", "")
    directory = adapter_folder(weights)
    if directory is None:
        if given.get("base"):
            raise ValueError("--base names the backbone of an adapter; --weights is none")
        return {}
    method = adapter_method(directory)
    if given.get("peft", method) != method:
        raise ValueError(f"{weights} is a {method} adapter; leave out --peft {given['peft']}")
    if given.get("reinit_layers"):
        raise ValueError(f"--reinit-layers changes a backbone, which the adapter {weights} leaves frozen; leave it out")
    fixed = field_names(tables.methods[method].options) - {"lora_plus"}
    if clash := [flag(name) for name in given if name in fixed]:
        raise ValueError(f"{weights} is an adapter with settings of its own; leave out {', '.join(clash)}")
    return {"peft": method} | adapter_options(directory)


def resume(given: Mapping[str, Any], tables: Tables) -> tuple[Settings, Run]:
    """Returns the settings of the run folder given["resume"], and the run. Raises ValueError for any other flag."""
    if others := [flag(name) for name in given if name != "resume"]:
        raise ValueError(f"--resume uses the run's own options; leave out {', '.join(others)}")
    run = Run.open(given["resume"], "--resume")
    return recorded_settings(run, tables), run


def recorded_settings(run: Run, tables: Tables) -> Settings:
    """Returns the settings that a run's config.json records.

    An option that is missing has its default, which is printed. Raises ValueError that names the file for an unknown
    option, and for a value of another type or out of range: another version of this program may have written it.
    """
    path, config = run.folder / "config.json", run.config
    as_object(config, path)
    values, origins = as_object(config.get("options"), f"options of {path}"), config.get("origins", {})
    if isinstance(teacher := values.get("teacher"), str):  # one name, in runs before 2026-11-28
        values = values | {"teacher": tuple(filter(None, [teacher]))}
    with about(path):
        check_types(values, {"model": str, "peft": str, "loss": str})
        if not has_type(origins, dict[str, str]) or not has_type(config.get("labels"), list[str] | None):
            raise ValueError("origins must be an object of texts, and labels a list of texts")
        if not all(name.isprintable() for name in config.get("labels") or ()):
            raise ValueError(f"labels contains control characters: {listed(config['labels'])}")
        model = check_choice("model", values.get("model", ""), tables.models)
        method = check_choice("method", values.get("peft", ""), tables.methods)
        objective = check_choice("objective", values.get("loss", ""), tables.objectives)
        known = {field.name: field for cls in (Options, method.options, objective.options) for field in fields(cls)}
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"unknown options {listed(unknown)}; another version of this program wrote them")
        if missing := [name for name in known if name not in values]:
            warn_of_older_version(path, listed(missing))
        values = {name: field.default for name, field in known.items()} | values
        origins = dict.fromkeys(known, "default") | origins
        check_types(values, {name: field.type for name, field in known.items()})
        settings = Settings.build(values, origins, tables)
        check_values(settings.options, model, objective)
    return settings


@cache
def warn_of_older_version(path: Path, missing: str) -> None:
    """Prints once that a config.json lacks options."""
    print(f"warning: {path} lacks {missing}, as an older version wrote it; the defaults are used")


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
    splits = load_texts(source, cache) if pretraining else load_splits(source, cache, with_unlabelled)
    if splits.shards is not None and (options.train_reviews or options.validation_reviews):
        raise ValueError("--train-reviews and --validation-reviews are for reviews in memory; name fewer shards")
    seeds = {"train": options.seed, "validation": 42, "test": 42}  # all seeds are scored on the same reviews
    for part, seed in seeds.items():
        if count := getattr(options, f"{part}_reviews"):
            frame = getattr(splits, part)
            known = frame[frame["sentiment"] != UNKNOWN]  # reviews without a label are not scored
            frame = known if len(known) and part != "train" else frame
            splits = splits._replace(**{part: subset(frame, count, seed, f"--{part}-reviews")})
    return splits


def absolute_paths(options: Any) -> Any:
    """Returns an options dataclass with absolute paths, so that a run can be used from any folder."""
    keywords = {"weights": ("none", "builtin"), "word_vectors": ("none", "train", "builtin")}
    changes: dict[str, Any] = {}
    for name in ("weights", "base", "word_vectors", "train", "validation", "test"):
        value = getattr(options, name, "")
        if value and value not in keywords.get(name, ()):
            changes[name] = absolute_path(value)
    if teacher := getattr(options, "teacher", ()):
        changes["teacher"] = tuple(map(absolute_path, teacher))
    return replace(options, **changes)


def absolute_path(name: str) -> str:
    """Returns the absolute path of a file or folder that exists; other names, such as hub ids, as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def find_data(settings: Settings, tables: Tables) -> tuple[Settings, str]:
    """Returns the settings with the data source that was found, and the reason.

    The built-in reviews have defaults of their own. A model may have further ones for them, and a method may have
    some for them and the built-in weights. They replace general defaults and those of the model, the method and the
    built-in weights.
    """
    options, origins = absolute_paths(settings.options), settings.origins
    settings = settings._replace(objective=absolute_paths(settings.objective))
    if options.train:
        return settings._replace(options=options), f"--train {options.train}"
    source, why = find_source(options.data)
    defaults: dict[str, Any] = {}
    if source == "demo":
        if idle := [name for name in (*COLUMNS, "skip_bad_rows") if origins[name] == "command line"]:
            raise ValueError(f"{flag(idle[0])} has no effect here: the built-in reviews are in no file")
        of_weights = tables.methods[options.peft].demo if options.weights == "builtin" else {}
        defaults = FROM_DEMO | tables.models[options.model].demo | of_weights
    replaced = ("default", "model", "method", "built-in weights")
    values = {name: value for name, value in defaults.items() if origins[name] in replaced}
    origins = origins | dict.fromkeys(values, "built-in reviews")
    return settings._replace(options=replace(options, data=source, **values), origins=origins), why


def repeats_batches(options: Options) -> bool:
    """Returns whether the weights come from a run with the same seed and data.

    This run would then see the same batches under the same dropout masks as that one, and those batches are memorized
    (data/results/SEARCH.md: "The same seed twice").
    """
    run = Run.of_weights(options.weights)
    before = run.config.get("options", {}) if run is not None else {}
    same = ("seed", "data", "train", "train_reviews", "truncate", "batch_size")
    return bool(before) and all(before.get(name, "") == getattr(options, name) for name in same)
