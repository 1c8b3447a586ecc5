"""Programs in processes of their own, forked from one that has imported them: a start takes a tenth of a second.

A new interpreter takes seconds to import torch, and again as long for what the first optimizer imports.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)
# huggingface_hub, which reads its settings at import, is not among what these import (tests/hub_client.py)
CONTEXT.set_forkserver_preload(["torch._dynamo", "train", "eval", "ranks_worker", "hub_client"])


def start(process: Any) -> None:
    """Starts a process of CONTEXT, which finds the modules of this one."""
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process.start()


def run_script(path: str, *arguments: str) -> None:
    """Runs a script as `python PATH ARGUMENTS…` does."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def enter(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    streams: list[Connection],
    folder: str,
    settings: dict[str, str],
) -> None:
    """Calls a function in this process with other streams, another folder and environment, and one thread."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", 1, encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(settings)
    torch.set_num_threads(1)  # torch read OMP_NUM_THREADS when it was imported
    function(*arguments)


class Program:
    """A process that calls a function, with the interface of `subprocess.Popen` that the tests need."""

    def __init__(self, function: Callable[..., None], *arguments: Any, folder: str | Path = ".", **settings: str):
        """settings: variables of the environment, besides those of this process"""
        pipes = [CONTEXT.Pipe(duplex=False) for _ in ("stdout", "stderr")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | settings
        place = str(Path(folder).absolute())
        self.process = CONTEXT.Process(
            target=enter, args=(function, arguments, [end for _, end in pipes], place, dict(environment))
        )
        start(self.process)
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end, _ in pipes)
        for end in (end for pipe in pipes for end in pipe):
            end.close()

    @property
    def returncode(self) -> int | None:
        """Returns the exit code, below zero if a signal ended the process, or None while it runs."""
        return self.process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Returns what the process writes until it ends. Kills it after `timeout` seconds, and raises TimeoutError."""
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            self.process.join(timeout)
            if self.returncode is None:
                self.kill()
                raise TimeoutError(f"the process runs for more than {timeout} seconds")
            return texts[0].result(), texts[1].result()
