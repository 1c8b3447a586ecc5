"""Reads damaged files of some or all formats, and prints how the readers ended.

python tests/damage_run.py [--count N] [--seed N] [--keep DIR] [FORMAT …]
"""

import argparse
import contextlib
import sys
from pathlib import Path

import torch
from damage import run_format
from damage_models import FORMATS as MODEL_FORMATS
from damage_texts import FORMATS as TEXT_FORMATS

FORMATS = MODEL_FORMATS | TEXT_FORMATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the first input of each kind of failure here")
    parser.add_argument("names", nargs="*", default=FORMATS, metavar="FORMAT")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child cannot use the threads of its parent
    for name in options.names:
        with contextlib.redirect_stdout(sys.stderr):
            found = run_format(name, FORMATS[name], options.count, options.seed, options.keep)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items() if key != "places"))
        for where, times in found["places"].items():
            print(f"    {times} × {where}")


if __name__ == "__main__":
    main()
