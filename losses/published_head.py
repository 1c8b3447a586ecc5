"""The head of masked language modelling that a checkpoint was published with, for further pretraining on texts of
another domain (Gururangan et al. 2020, arXiv 2004.10964, §3).

    u = LN(act(W h + b)),   logits = E u + c        losses/mlm.py

E is the table of word embeddings. A file whose decoder has weights of its own is not used. ModernBERT's head has no
bias in W and LN by default, and no c if its config says decoder_bias = false; ours are then initialized to 0.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from data.checked import read_json
from data.hub import CONFIG, find_pretrained
from data.weight_files import WeightFile, weight_files

BIASES = ("dense.bias", "norm.bias")


class HeadNames(NamedTuple):
    """Published names of the tensors of a head."""

    dense: str  # W and b
    norm: str
    bias: str  # c
    decoder: str  # E, a copy
    biased: bool = True  # whether W and LN always have a bias

    def of_parameters(self) -> dict[str, str]:
        """Returns the published name of each parameter of an MLMHead."""
        layers = {"dense": self.dense, "norm": self.norm}
        names = {f"{part}.{leaf}": f"{name}.{leaf}" for part, name in layers.items() for leaf in ("weight", "bias")}
        return names | {"bias": self.bias}

    def are_in(self, names: Collection[str], decoder_bias: bool = True) -> bool:
        """Returns whether a file with tensors of these names has the whole head. decoder_bias: whether a head has c"""
        optional = () if self.biased else BIASES if decoder_bias else (*BIASES, "bias")
        return all(name in names for part, name in self.of_parameters().items() if part not in optional)


HEADS = (
    HeadNames(  # BERT, and DeBERTa-v2 as transformers saves it
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
    ),
    HeadNames(  # DeBERTa-v2 and v3 as they were published
        "lm_predictions.lm_head.dense",
        "lm_predictions.lm_head.LayerNorm",
        "lm_predictions.lm_head.bias",
        "lm_predictions.lm_head.decoder.weight",
    ),
    HeadNames("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector.weight"),  # DistilBERT
    HeadNames("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder.weight"),  # RoBERTa, XLM-RoBERTa
    HeadNames(  # ELECTRA's generator
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head.bias",
        "generator_lm_head.weight",
    ),
    HeadNames("head.dense", "head.norm", "decoder.bias", "decoder.weight", biased=False),  # ModernBERT
)


def load_head(head: Module, table: Tensor, source: str | Path) -> str:
    """Copies the published head of a checkpoint folder or hub id into `head`, an MLMHead. Returns what was done.

    table: E, [V, E]. Without a complete head of these shapes `head` stays as it is.
    """
    folder = find_pretrained(source)
    files = [WeightFile(path) for path in weight_files(folder)]
    tensors = {name: file for file in files for name in file.shapes}
    # without c, the head of a classifier has the same tensors
    decoder_bias = "classifier.weight" in tensors or read_json(folder / CONFIG).get("decoder_bias") is not False

    def read(name: str) -> Tensor:
        """Reads a tensor in the dtype of the model."""
        return tensors[name].read(name).to(table.dtype)

    names = next((names for names in HEADS if names.are_in(tensors, decoder_bias)), None)
    if names is None:
        return f"newly initialized: {source} has none"
    if names.decoder in tensors and not torch.equal(read(names.decoder), table):
        return f"newly initialized: {names.decoder} of {source} is not the table of word embeddings"
    parts, own = names.of_parameters(), dict(head.named_parameters())
    state = {part: read(name) for part, name in parts.items() if name in tensors}
    if other := [parts[part] for part, tensor in state.items() if tensor.shape != own[part].shape]:
        return f"newly initialized: {', '.join(other)} of {source} have other shapes"
    head.load_state_dict(state, strict=names.biased)
    return f"that of {source}"
