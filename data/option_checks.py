"""Checks the options of train.py: values, combinations, and flags that would have no effect."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.flags import check_choice, field_names, flag
from data.options import COUNTS, Options, Settings, Tables
from data.tokenization import TRUNCATE

NO_LAYERS = ("head", "prefix", "prompt", "p_tuning", "p_tuning_v2")  # methods without parameters in the layers


MOST_EPOCHS = 1_000_000  # the steps of each epoch are listed before the first


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
    if options.epochs > MOST_EPOCHS:
        raise ValueError(f"--epochs {options.epochs:,} is above {MOST_EPOCHS:,}")
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
    if options.quantize != "none" and options.reinit_layers:
        raise ValueError("--reinit-layers trains layers that --quantize freezes; leave out one of them")
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
    if options.word_vectors != "none" and options.model == "nb_linear":
        raise ValueError("--word-vectors are for networks; nb_linear has one weight per n-gram")
    if options.word_vectors != "none" and model.tokenizer != "wordlevel" and not objective.pretraining:
        raise ValueError(f"--word-vectors are for word networks and pretraining; {options.model} reads subwords")


def check_effect(given: Mapping[str, Any], settings: Settings, model: Any, objective: Any) -> None:
    """Raises ValueError for a flag that is given and would have no effect, and for an ε of 0.

    model, objective: table entries. Not for recorded options: an older run may have an ε of 0.
    """
    options, values = settings.options, settings.values()
    weights, vectors = options.weights, options.word_vectors
    alpha, contrast, vat = (values.get(name) for name in ("distill_alpha", "supcon_weight", "vat_weight"))
    without_teacher = alpha == 0 and not values["distill_unlabelled"]
    unperturbed, entropy = vat == values.get("adversarial_weight") == 0, values.get("entropy_weight")
    frozen = weights != "none" and options.peft != "none"
    summed = options.model == "nb_linear" and options.precision != "fp32"
    frozen_words = f"--peft {options.peft} freezes word embeddings"
    one_rate = frozen and options.peft == "head" and options.head_learning_rate > 0 and not options.reinit_layers
    own_batch = objective.unlabelled and not values.get("unlabelled_batch")  # of the unlabelled reviews
    if options.adam_epsilon == 0:
        raise ValueError("--adam-epsilon 0 divides 0 by 0 where a weight has no gradient; 1e-12 is small enough")
    idle: list[tuple[bool, str, tuple[str, ...]]] = [
        (weights != "none", f"{weights} has a vocabulary of its own", ("vocab_size", "min_count")),
        (weights != "none", f"{weights} has word vectors of its own", ("word_vectors", "whiten_vectors")),
        (weights == "none", "it is for --weights", ("head", "tokenizer", "reinit_layers")),
        (vectors == "none", "it is for --word-vectors", ("whiten_vectors",)),
        (frozen and options.peft in NO_LAYERS, f"--peft {options.peft} trains no layers", ("layer_decay",)),
        (model.tokenizer != "wordlevel", f"{options.model} reads subwords", ("min_count",)),
        (frozen, frozen_words, ("train_vectors",)),
        (summed, "nb_linear multiplies no matrices", ("precision",)),
        (options.model == "nb_linear", "nb_linear is one table without layers", ("unfreeze",)),
        (options.loss == "tv", "only the regions are trained", ("train_vectors", "dropout", "layer_decay")),
        (one_rate, "--peft head trains the head alone, at --head-learning-rate", ("learning_rate",)),
        (options.tokens_per_batch > 0 and not own_batch, "--tokens-per-batch replaces it", ("batch_size",)),
        (objective.pretraining, "pretraining keeps the last epoch", ("patience",)),
        (objective.pretraining, "pretraining holds out texts of its own", ("train_on_validation",)),
        (options.train_on_validation, "--train-on-validation leaves none", ("validation_reviews",)),
        (options.train_on_validation, "--train-on-validation keeps the last epoch", ("patience",)),
        (alpha == 1, "--distill-alpha 1 leaves out the labels", ("class_weights",)),
        (without_teacher, "--distill-alpha 0 leaves out the teacher", ("teacher", "distill_temperature")),
        (contrast == 0, "--supcon-weight 0 leaves out the contrast", ("temperature", "projection")),
        (contrast == 1, "--supcon-weight 1 leaves out the cross-entropy", ("label_smoothing", "class_weights")),
        (unperturbed, "no loss of perturbed embeddings has a weight", ("radius", "normalize_embeddings")),
        (vat == entropy == 0, "no loss of unlabelled reviews has a weight", ("unlabelled_batch",)),
        (
            objective.pretraining,
            "pretraining has no labels",
            ("class_weights", "head", "classifier_dropout", "label_column"),
        ),
        (objective.pretraining, "pretraining has no test score", ("test", "test_reviews")),
    ]
    if values.get("alpha") == 0:
        raise ValueError("--alpha 0 multiplies the update by 0; leave it out, or use --peft head")
    if values.get("lora_plus") == 0:
        raise ValueError("--lora-plus 0 keeps B at 0, where it starts; leave it out, or use --peft head")
    if options.warmup > 1 and options.warmup != int(options.warmup):
        raise ValueError(f"--warmup {options.warmup:g} is neither a fraction below 1 nor a whole number of steps")
    if frozen and given.get("train_vectors"):  # the default value, which the table takes for no flag
        raise ValueError(f"--train-vectors has no effect here: {frozen_words}")
    for applies, why, names in idle:
        for name in names:
            off = values.get(name) == getattr(Options, name, 0) and name not in COUNTS
            if applies and name in given and not off:
                raise ValueError(f"{flag(name)} has no effect here: {why}")
