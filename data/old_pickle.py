"""Reads `imdb_glove.pickle3`, a file of an older project: a list with training features, a matrix of word vectors and a
dict word -> row.

Loading a pickle can run arbitrary code. The unpickler here only admits the constructors of tensors, numpy arrays,
lists, dicts, sets, numbers and strings. It refuses every other name before any of its code runs.
"""

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric  # the modules that numpy's pickles name
from torch import Tensor


def load_storage(data: bytes) -> Any:
    """Replaces torch.storage._load_from_bytes by a version that loads tensors only."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


ADMITTED = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): load_storage,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.numeric", "_frombuffer"): vars(numeric)["_frombuffer"],
} | {
    (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
}


class DataUnpickler(pickle.Unpickler):
    """Unpickles ADMITTED constructors only. Raises ValueError for any other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise ValueError(f"it contains {module}.{name}, which is not plain data")
        return ADMITTED[module, name]


def read_pickle3(path: Path) -> tuple[list[str], Tensor]:
    """Reads (words, vectors fp32 [V, D]). Words with a zero vector are left out: the older project had none for them.

    Raises ValueError if the file is damaged, contains anything but data, or has no word vectors.
    """
    with path.open("rb") as file:
        try:
            values = DataUnpickler(file).load()
        except Exception as error:  # a damaged pickle raises nearly any exception
            raise ValueError(f"{path} was refused: {error}") from error
    values = values if isinstance(values, list) else []
    tables = [table for table in map(as_table, values) if table is not None]
    row_dicts = [v for v in values if isinstance(v, dict) and v and all(isinstance(key, str) for key in v)]
    if len(tables) != 1 or len(row_dicts) != 1:
        raise ValueError(f"{path} is not a list with one matrix of word vectors and one dict word -> row")
    table = tables[0]
    rows = {word: row for word, row in row_dicts[0].items() if isinstance(row, int)}
    rows = {word: row for word, row in rows.items() if 0 <= row < len(table) and table[row].any()}
    return list(rows), table[list(rows.values())].float()


def as_table(value: Any) -> Tensor | None:
    """Returns a matrix of floating point numbers as a tensor, and None for any other value."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value)
    is_table = isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point()
    return value if is_table else None
