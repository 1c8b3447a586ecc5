"""Reads `imdb_glove.pickle3`, a file of an older project: a list with training features, a matrix of word vectors and a
dict word -> row.

Loading a pickle can run arbitrary code. The unpickler here only admits the constructors of tensors, numpy arrays,
lists, dicts, sets, numbers and strings. It refuses every other name before any of its code runs.
"""

import collections
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.checked import show
from data.pickles import check_pickle
from data.weight_files import check_legacy, is_plain

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")  # of arrays that are read


class DType:
    """A dtype of numpy: only its name is read, and its byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def read(self) -> np.dtype:
        """Returns numpy's dtype. Raises ValueError if its elements are not numbers."""
        name = self.name.lstrip("<>=|")
        if name not in DTYPES or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"it contains an array of {show(self.name, 20)}")
        return np.dtype(name).newbyteorder(self.order)  # type: ignore[arg-type]


class Array:
    """An array of numpy. Its numbers are taken from its bytes, so that it never is larger than the file."""

    values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        self.values = make_array(data, dtype, shape, "F" if by_columns else "C").values

    @property
    def table(self) -> np.ndarray | None:
        """The numbers, in the machine's byte order; None for an array without its numbers."""
        return None if self.values is None else self.values.astype(self.values.dtype.newbyteorder("="))


def make_array(data: Any, dtype: DType, shape: tuple[int, ...], order: Any = "C") -> Array:
    """Replaces numpy's _frombuffer. Raises ValueError if there are more or fewer bytes than the shape needs."""
    kind, found = dtype.read(), Array()
    if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"it contains an array of shape {show(shape, 40)} with {len(data):,} bytes")
    found.values = np.frombuffer(data, kind).reshape(shape, order=order)
    return found


def make_scalar(dtype: DType, data: bytes) -> Any:
    """Replaces numpy's scalar. data: the bytes of the number."""
    return make_array(data, dtype, (1,)).values[0].item()  # type: ignore[index]


def new_array(*_: Any) -> Array:
    """Replaces numpy's _reconstruct, whose arguments are always those of an empty array."""
    return Array()


def rebuild_tensor(*arguments: Any) -> Tensor:
    """Calls torch's function. A pickle can set attributes of a function; those of torch's own stay."""
    return torch._utils._rebuild_tensor_v2(*arguments)


def load_storage(data: bytes) -> Any:
    """Replaces torch.storage._load_from_bytes by a version that loads tensors only."""
    check_legacy(io.BytesIO(data))
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


ADMITTED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): load_storage,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct, never called
    ("numpy", "dtype"): DType,
} | {
    (f"numpy.{core}.{module}", name): function
    for core in ("core", "_core")  # before numpy 2.0 (protocol 5: before 2.1), and since
    for module, name, function in (
        ("multiarray", "_reconstruct", new_array), ("multiarray", "scalar", make_scalar),
        ("numeric", "_frombuffer", make_array),
    )
}  # fmt: skip


class DataUnpickler(pickle.Unpickler):
    """Unpickles ADMITTED constructors only. Raises ValueError for any other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise ValueError(f"it contains {show(f'{module}.{name}')}, which is not plain data")
        return ADMITTED[module, name]


def read_pickle3(path: Path) -> tuple[list[str], Tensor]:
    """Reads (words, vectors fp32 [V, D]). Words with a zero vector are left out: the older project had none for them.

    Raises ValueError if the file is damaged, contains anything but data, or has no word vectors.
    """
    with path.open("rb") as file:
        try:
            check_pickle(file)
            file.seek(0)
            values = DataUnpickler(file).load()
        except Exception as error:  # a damaged pickle raises nearly any exception
            raise ValueError(f"{path} was refused: {show(error, 300)}; fetch it again") from error
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
    if isinstance(value, Array) and value.table is not None and value.table.dtype.kind == "f":
        value = torch.from_numpy(value.table)
    is_table = isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point() and is_plain(value)
    return value if is_table else None
