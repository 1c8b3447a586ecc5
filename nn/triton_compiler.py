"""Checks whether a machine can compile Triton kernels (nn/triton_attention.py)."""

import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path


@cache
def can_compile_kernels() -> bool:
    """Returns whether a C compiler and Python.h exist, which Triton needs to compile the launchers of kernels.

    Prints once what is missing.
    """
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if compiler and header.is_file():
        return True
    missing = "a C compiler" if not compiler else str(header)
    print(f"note: Triton needs {missing}; DeBERTa's attention is computed without it, which takes more memory and time")
    return False
