"""The options of train.py: each with its default, its group in --help and its meaning, and where a value comes from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data import find_source
from data.flags import flag, known, layer, option, parse_flags
from data.runs import Run
from losses import OBJECTIVES
from nn import MODELS
from peft import METHODS

DESCRIPTION = "One experiment from top to bottom: options, data, model, method, optimizer, the loop, the score."
PROMPT_TEXT = "Is this review of a movie positive or negative? great wonderful excellent, or bad boring awful:"
# training defaults where the weights are random, and where they are the built-in ones, which are small: for every
# method, and for two of them besides (found on the built-in reviews: data/results/SEARCH.md)
FROM_NOTHING = {"learning_rate": 1.5e-4, "head_learning_rate": 1.5e-4, "batch_size": 32, "epochs": 5}
FROM_BUILTIN = {"batch_size": 16, "epochs": 8, "warmup": 0.1}
FROM_BUILTIN_METHODS = {
    "none": {"learning_rate": 4e-4},
    "lora": {
        "targets": "all-linear",
        "rank": 32,
        "alpha": 32.0,
        "learning_rate": 5e-4,
        "schedule": "constant",
        "average": 0.99,
        "batch_size": 8,
        "epochs": 6,
        "dropout": 0.0,
    },
}
FROM_DEMO = {"precision": "fp32"}  # in batches this small bf16 is slower, even on hardware that multiplies it
# what train.py reads itself, for the methods that have this other option
BESIDE = {"lora_plus": "rank", "prompt_text": "virtual_tokens"}


@dataclass(frozen=True)
class Options:
    model: str = option("deberta", "what", f"architecture: {', '.join(MODELS)}")
    peft: str = option("none", "what", f"what is trained of it: {', '.join(METHODS)} (none: everything)")
    loss: str = option("ce", "what", f"objective: {', '.join(OBJECTIVES)}")
    weights: str = option("", "what", "none (random), builtin, a folder, or a hub id; default: the model's own")
    shape: str = option(
        "", "what", "fields of a new model's config: hidden_size=64 pooling=max+mean; needs random weights"
    )
    num_labels: int = option(2, "what", "classes of the head; 0: as many as the checkpoint's")
    dropout: float = option(-1.0, "what", "of all the model's layers; negative: what its config says of each")
    classifier_dropout: float = option(-1.0, "what", "before the last layer; negative: the model's own")
    reinit_layers: int = option(0, "what", "start this many of the top layers from random weights")

    data: str = option("", "data", "IMDB folder, aclImdb, a TSV or CSV, or demo; default: $IMDB_DIR, data/imdb/, demo")
    text_column: str = option("", "data", "column of a TSV or CSV that holds the text")
    label_column: str = option("", "data", "column that holds the label, 0 or 1")
    skip_bad_rows: bool = option(False, "data", "leave broken rows out instead of stopping")
    train_reviews: int = option(0, "data", "train on this many reviews of the training split only; 0: on all")
    validation_reviews: int = option(0, "data", "choose the best epoch by this many validation reviews only; 0: by all")
    test_reviews: int = option(0, "data", "score this many test reviews only; 0: all")
    max_length: int = option(256, "data", "tokens a review is cut to, [CLS] and [SEP] included")
    truncate: str = option(
        "head", "data", "what is kept of a longer review: head, tail, head+tail (128 + rest); chunks"
    )
    tokenizer: str = option("published", "data", "published: as the weights were trained; hf5: as transformers 5 cuts")
    vocab_size: int = option(4000, "data", "pieces or words of a tokenizer that is trained here")
    min_count: int = option(1, "data", "a word of the vocabulary occurs at least so often")
    word_vectors: str = option(
        "none", "data", "none (random), train (GloVe, on all reviews but the test's), a file, or a checkpoint"
    )
    whiten_vectors: bool = option(True, "data", "give all directions of the word vectors the same variance")
    train_vectors: bool = option(True, "data", "go on training the word vectors")

    epochs: int = option(3, "training", "passes over the training split")
    batch_size: int = option(16, "training", "reviews in a forward pass")
    tokens_per_batch: int = option(0, "training", "instead of batch_size: places in a forward pass, padding included")
    accumulation: int = option(1, "training", "forward passes in an optimizer step")
    learning_rate: float = option(3e-5, "training", "peak rate of AdamW")
    head_learning_rate: float = option(0.0, "training", "rate of the head; 0: the learning rate")
    layer_decay: float = option(1.0, "training", "factor of the rate from each layer to the one below it")
    adam_epsilon: float = option(1e-6, "training", "ε of AdamW")
    weight_decay: float = option(0.01, "training", "of everything but biases and norms")
    warmup: float = option(0.06, "training", "part of all steps in which the rate rises; from 1 on: so many steps")
    schedule: str = option("linear", "training", "behind the warm-up the rate falls to 0 (linear), or stays (constant)")
    average: float = option(0.0, "training", "score and save the running mean of the weights, with this decay; 0: none")
    clip: float = option(1.0, "training", "largest norm of the gradient; 0: no limit")
    label_smoothing: float = option(0.0, "training", "ε of the cross-entropy")
    rdrop_alpha: float = option(0.5, "objective", "R-Drop: weight of the KL; half of the paper's α")
    supcon_weight: float = option(0.1, "objective", "SupCon: λ in (1 - λ)·CE + λ·SupCon")
    temperature: float = option(0.3, "objective", "SupCon: τ")
    projection: int = option(0, "objective", "SupCon: width of a projection head that is dropped afterwards; 0: none")
    radius: float = option(5.0, "objective", "adversarial, mixed: ε, how far embeddings are moved, in their own spread")
    adversarial_weight: float = option(1.0, "objective", "adversarial, mixed: of adversarial training")
    vat_weight: float = option(1.0, "objective", "adversarial, mixed: of virtual adversarial training")
    entropy_weight: float = option(1.0, "objective", "mixed: of entropy minimisation")
    rtd_weight: float = option(50.0, "objective", "rtd: λ, weight of the detection loss")
    bag_weight: float = option(0.0, "objective", "mlm: λ of predicting, from [CLS], a text's bag of pieces; 0: none")
    whole_words: bool = option(False, "objective", "mlm, rtd: mask all pieces of a word together")
    unlabelled_batch: int = option(0, "objective", "mixed: unlabelled reviews in a pass; 0: as many as labelled")

    patience: int = option(0, "training", "stop after this many epochs without a better validation accuracy; 0: never")
    seed: int = option(42, "training", "feeds initialisation, order and dropout, each by a stream of its own")

    rank: int = option(8, "LoRA", "R")
    alpha: float = option(16.0, "LoRA", "the update is scaled by alpha / R")
    lora_dropout: float = option(0.0, "LoRA", "dropout on the input of the update")
    targets: str = option("", "LoRA", "layers (query,value), re:PATTERN or all-linear; default: the model's own")
    rslora: bool = option(False, "LoRA", "scale by alpha / √R")
    dora: bool = option(False, "LoRA", "train the length of each row by itself (DoRA)")
    lora_bias: str = option("none", "LoRA", "biases that are trained too: none, all, or lora_only")
    rank_pattern: str = option("", "LoRA", "other ranks for some layers: value=16 layers.0=4")
    alpha_pattern: str = option("", "LoRA", "other alphas for some layers, likewise")
    lora_plus: float = option(1.0, "LoRA", "factor of B's rate (LoRA+: Hayou et al. 2024, arXiv 2402.12354, §4)")

    virtual_tokens: int = option(20, "virtual tokens", "P, of prompt, p_tuning, prefix and p_tuning_v2")
    prompt_init: str = option("text", "virtual tokens", "a prompt starts from: text, vocabulary or random")
    prefix_init: str = option("text", "virtual tokens", "a prefix starts from: text (its keys and values) or random")
    prompt_text: str = option(PROMPT_TEXT, "virtual tokens", "the text")
    pool: str = option("cls", "virtual tokens", "a prompt's classifier reads cls, or virtual as huggingface/peft does")
    prompt_encoder: str = option("mlp", "virtual tokens", "p_tuning: mlp or lstm")
    prompt_hidden: int = option(128, "virtual tokens", "p_tuning: width of the encoder")
    prefix_hidden: int = option(512, "virtual tokens", "prefix: width of the MLP")
    prefix_dropout: float = option(0.0, "virtual tokens", "dropout on keys and values of a prefix")

    device: str = option("auto", "machine", "cpu, cuda, cuda:1, mps or auto")
    precision: str = option("auto", "machine", "fp32, bf16, fp16, or auto: bf16 where the hardware multiplies it")
    quantize: str = option("none", "machine", "int8: frozen weights in 8 bits, beside --peft (not for none)")
    checkpointing: bool = option(False, "machine", "recompute each layer in the backward pass: less memory, more time")
    out_of_memory: str = option("halve", "machine", "what then: halve each forward pass and go on, or stop")
    save_minutes: float = option(5.0, "machine", "how often the state to resume from is saved within an epoch")

    name: str = option("", "run", "folder below --runs; default: made from model, method, data and time")
    runs: str = option("runs", "run", "where run folders are made")
    resume: str = option("", "run", "go on with this run folder, with its own options")


def check_owners(given: dict[str, Any], loss: str, method: str) -> None:
    """Raises ValueError for an option of another objective or method: here it would be without effect."""
    tables = {"--loss": OBJECTIVES, "--peft": METHODS}
    for name in given:
        sought = BESIDE.get(name, name)
        owners = [f"{kind} {key}" for kind, table in tables.items() for key in table if sought in table[key].options]
        if owners and not {f"--loss {loss}", f"--peft {method}"} & {*owners}:
            raise ValueError(f"{flag(name)} has no effect here; it is for {', '.join(owners)}")


def resolve(argv: list[str] | None) -> tuple[Options, dict[str, str], Run | None]:
    """default < model < method < objective < random or built-in weights < command line. Returns a run where one is
    resumed."""
    given = parse_flags(Options, argv, DESCRIPTION)
    if given.get("resume"):
        others = [flag(name) for name in given if name != "resume"]
        if others:
            raise ValueError(f"--resume goes on with the run's own options; leave out {', '.join(others)}")
        run = Run.open(given["resume"])
        return Options(**run.config["options"]), run.config["origins"], run
    model = known("model", given.get("model", Options.model), MODELS)
    method = known("method", given.get("peft", Options.peft), METHODS)
    objective = known("objective", given.get("loss", Options.loss), OBJECTIVES)
    weights = given.get("weights", objective.training.get("weights", model.weights))
    layers = [("model", model.training | {"weights": model.weights}), ("method", method.training)]
    layers += [("objective", objective.training)]
    from_nothing = weights == "none" != model.weights and not objective.pretraining
    layers += [("random weights", FROM_NOTHING)] if from_nothing else []
    if weights == "builtin":
        layers += [("built-in weights", FROM_BUILTIN | FROM_BUILTIN_METHODS.get(given.get("peft", Options.peft), {}))]
    options, origins = layer(Options, [*layers, ("command line", given)])
    check_owners(given, options.loss, options.peft)
    for name in ("epochs", "batch_size", "accumulation", "max_length"):
        if getattr(options, name) < 1:
            raise ValueError(f"{flag(name)} {getattr(options, name)} must be at least 1")
    if options.truncate == "chunks" and not objective.pretraining:
        raise ValueError("--truncate chunks parts a review from its label; it is for --loss mlm and rtd")
    known("out_of_memory", options.out_of_memory, {"halve": None, "stop": None})
    known("schedule", options.schedule, {"linear": None, "constant": None})
    known("quantize", options.quantize, {"none": None, "int8": None})
    if options.quantize == "int8" and (options.peft == "none" or options.weights == "none"):
        raise ValueError("--quantize int8 is for frozen weights: it needs --weights and a --peft method")
    if options.shape and options.weights != "none":
        raise ValueError(f"--shape is for --weights none; {options.weights} brings its own config")
    if options.word_vectors != "none" and model.tokenizer != "wordlevel" and not objective.pretraining:
        raise ValueError(f"--word-vectors are for networks over words, or pretraining; {options.model} reads pieces")
    return options, origins, None


def find_data(options: Options, origins: dict[str, str]) -> tuple[Options, dict[str, str], str]:
    """Options and origins with the reviews that were found, and why those. The built-in reviews have defaults of their
    own, next to the general ones."""
    source, why = find_source(options.data)
    values = {name: value for name, value in FROM_DEMO.items() if source == "demo" and origins[name] == "default"}
    return replace(options, data=source, **values), origins | dict.fromkeys(values, "built-in reviews"), why


def repeats(options: Options) -> bool:
    """Whether the weights come from a run of this seed on these reviews: this one would meet the same batches under the
    same dropout masks, which they know by heart (data/results/SEARCH.md: "The same seed twice")."""
    run = Run(Path(options.weights).parent)
    before = run.config.get("options", {}) if (run.folder / "config.json").is_file() else {}
    same = ("seed", "data", "train_reviews", "truncate", "batch_size")
    return all(before.get(name) == getattr(options, name) for name in same)
