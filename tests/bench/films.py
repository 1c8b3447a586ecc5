"""Writes a data folder for the search of settings: its test reviews are labelled training reviews of other films.

    python tests/bench/films.py IMDB_FOLDER OUT

The ids of labeledTrainData.tsv are ordered by film, so a block of 100 ids contains few films. One block in five, chosen
by the hash of its label and number, becomes OUT/testData.tsv; the others become OUT/labeledTrainData.tsv.
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data import LABELED, TEST, Source, find_file
from data.readers import unpack

BLOCK = 100


def is_held_out(row: str) -> bool:
    """Returns whether the block of a row (a line of the file) is held out."""
    key, label = (field.strip('"') for field in row.split("\t")[:2])
    block = f"{label}{int(key.split('_')[0]) // BLOCK}"
    return int(hashlib.sha256(block.encode()).hexdigest(), 16) % 5 == 0


def main(folder: str, out: str) -> None:
    """Splits the labelled reviews of `folder` into `out`."""
    path = find_file(Path(folder), LABELED)[0]
    text = unpack(path, path.read_bytes(), limit=Source().max_file_mib)[1]
    header, *rows = [row for row in text.decode("utf-8").split("\n") if row]
    kept = [row for row in rows if not is_held_out(row)]
    tested = ["\t".join(row.split("\t")[::2]) for row in rows if is_held_out(row)]  # id and review
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / LABELED).write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
    (Path(out) / TEST).write_text("\n".join(["id\treview", *tested]) + "\n", encoding="utf-8")
    print(f"{out}: {len(kept):,} reviews for training and validation, {len(tested):,} reviews of other films")


if __name__ == "__main__":
    main(folder=sys.argv[1], out=sys.argv[2])
