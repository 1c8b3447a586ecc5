"""Builds the model of a run: random weights of a given shape, or a published checkpoint."""

from pathlib import Path

from data.flags import parse_fields
from data.tokenization import Tokenizer
from nn import MODELS, Model
from nn.checkpoint import default_labels, load_pretrained


def random_model(name: str, shape: str, num_labels: int, tokenizer: Tokenizer) -> Model:
    """Builds the model `name` of the table with random weights and the vocabulary of `tokenizer`.

    shape: config fields that differ from the table's (`hidden_size=64 pooling=max+mean`).  num_labels: classes; 0: two.
    """
    entry = MODELS[name]
    values = entry.shape | parse_fields(entry.build.Config, shape)
    values |= {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
    values |= {"unk_token_id": tokenizer.unk_id} if entry.tokenizer == "wordlevel" else {}
    model = entry.build(entry.build.Config(**values, labels=default_labels(num_labels or 2)))
    model.newly_initialized = frozenset(name for name, _ in model.named_parameters())
    print(f"weights: none; {name} starts from random weights, with a vocabulary from the training split")
    return model


def pretrained_model(name: str, weights: str | Path, num_labels: int, int8: bool) -> Model:
    """Loads a checkpoint and checks that it is of the architecture `name`.

    num_labels, int8: as in load_pretrained. Raises ValueError for another architecture.
    """
    model = load_pretrained(weights, num_labels, int8=int8)
    if not isinstance(model, MODELS[name].build):
        raise ValueError(f"{weights} holds a {model.model_type} model, which --model {name} is not")
    print(f"weights: {weights}; newly initialized: {', '.join(sorted(model.newly_initialized)) or 'nothing'}")
    return model
