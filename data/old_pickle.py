"""Reads `imdb_glove.pickle3` of older projects: a list with word vectors, the dict word -> row, and training features.

A pickle is a program: the unpickler here knows the few constructors that tensors, numpy arrays, lists, dicts, sets,
numbers and strings need, and refuses every other name before anything of it runs.
"""

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def load_storage(data: bytes) -> Any:
    """What torch.storage._load_from_bytes does, without its trust in the bytes."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


ADMITTED = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): load_storage,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.numeric", "_frombuffer"): np._core.numeric._frombuffer,
} | {
    (f"numpy.{core}.multiarray", name): getattr(np._core.multiarray, name)
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
}


class DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise ValueError(f"it asks for {module}.{name}, which is no plain data")
        return ADMITTED[module, name]


def read_pickle3(path: Path) -> tuple[list[str], Tensor]:
    """(words, vectors fp32 [V, D]); words whose vector is 0 are left out: the older project found none for them.

    Raises ValueError for a file that is damaged, asks for anything but data, or holds no word vectors.
    """
    with path.open("rb") as file:
        try:
            parts = DataUnpickler(file).load()
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} was refused: {error}") from error
    parts = parts if isinstance(parts, list) else []
    tables = [p for p in map(as_table, parts) if p is not None]
    rows = [p for p in parts if isinstance(p, dict) and p and all(isinstance(key, str) for key in p)]
    if len(tables) != 1 or len(rows) != 1:
        raise ValueError(f"{path} holds no list with one matrix of word vectors and one dict word -> row")
    table, found = tables[0], {word: row for word, row in rows[0].items() if isinstance(row, int)}
    found = {word: row for word, row in found.items() if 0 <= row < len(table) and table[row].any()}
    return list(found), table[list(found.values())].float()


def as_table(value: Any) -> Tensor | None:
    """A matrix of floating point numbers, or None."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value)
    is_table = isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point()
    return value if is_table else None
