"""Builds the model of a run: random weights of a given shape, or a published checkpoint."""

from pathlib import Path

from data.checked import read_object
from data.flags import parse_fields
from data.hub import fetch_config
from data.tokenization import Tokenizer
from nn import MODELS, Model, name_of
from nn.checkpoint import load_pretrained, model_class
from nn.configs import build_config


def random_model(name: str, shape: str, labels: tuple[str, ...], tokenizer: Tokenizer) -> Model:
    """Builds the model `name` of the table with random weights and the vocabulary of `tokenizer`.

    shape: config fields that differ from the table (`hidden_size=64 pooling=max+mean`).  labels: names of the classes.
    Raises ValueError for fields that the model does not have, and for those that the vocabulary determines.
    """
    entry = MODELS[name]
    words = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
    words |= {"unk_token_id": tokenizer.unk_id} if entry.tokenizer == "wordlevel" else {}
    if taken := sorted(words.keys() & (chosen := parse_fields(entry.build.Config, shape)).keys()):
        raise ValueError(f"--shape {taken[0]} has no effect: the vocabulary decides it; --vocab-size sets its size")
    values = entry.shape | chosen | words
    model = entry.build(build_config(entry.build.Config, values, labels, {}))
    model.newly_initialized = frozenset(name for name, _ in model.named_parameters())
    vocabulary = f"a vocabulary of {tokenizer.vocab_size:,} tokens from the training split"
    print(f"weights: none; {name} starts from random weights, with {vocabulary}")
    return model


def pretrained_model(
    name: str, weights: str | Path, labels: tuple[str, ...] | None, quantize: str, new_head: bool = False
) -> Model:
    """Loads a checkpoint and checks that it is of the architecture `name`.

    labels, quantize, new_head: as in load_pretrained. Raises ValueError for another architecture.
    """
    config_file = fetch_config(weights)
    check_architecture(model_class(read_object(config_file), config_file), name, weights)  # before its classes
    model = load_pretrained(weights, labels, quantize=quantize, new_head=new_head)
    print(f"weights: {weights}; newly initialized: {', '.join(sorted(model.newly_initialized)) or 'nothing'}")
    return model


def check_architecture(held: type[Model], name: str, weights: str | Path) -> None:
    """Raises ValueError if the class of the model that `weights` holds is another one than that of `name`."""
    if not issubclass(held, MODELS[name].build):
        raise ValueError(
            f"{weights} holds a {held.model_type} model, which --model {name} is not; use --model {name_of(held)}"
        )
