"""Files of tables for tests/test_readers.py, test_formats.py and test_data_files.py."""

import io
import zipfile
from pathlib import Path

import pandas as pd

from data import Source
from data.readers import Table, read_table

FRAME = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "label": [1, 0, 1, 0],
        "text": ['a "great" film', "two\nlines", "tab\there, comma; bar|", '"quoted"'],
    }
)
TEXTS = ['a "great" film', "two lines", "tab here, comma; bar|", '"quoted"']


def write(path: Path, content: str | bytes) -> Path:
    """Writes a file, text as UTF-8 with its own line ends."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, **options) -> Table:
    """Reads the table of a file."""
    return read_table(path, path.read_bytes(), Source(**options))


def fields(path: Path, **options) -> list[list[str | None]]:
    """Returns the fields of all rows."""
    return [record.fields for record in read(path, **options).records]


def zipped(files: dict[str, bytes]) -> bytes:
    """Returns a .zip that contains the files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
