"""Runs train.py repeatedly, and kills it with SIGKILL at a chosen moment each time.

    python tests/crash.py MOMENT,MOMENT,… RUN ARGUMENTS…

Moments are numbered: before and after each optimizer step, each replacement of a file (the temporary file is written
before it), and each line of the log. RUN is the run's folder. If it has a config.json, the run is resumed. Each run
is a process forked from this one, which has imported all modules.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch._dynamo  # the optimizer imports it

import train
from data.runs import Run


def counted(function: Callable[..., Any], state: dict[str, int], moment: int) -> Callable[..., Any]:
    """Wraps a function: counts one moment before and one after each call, and kills the process at `moment`."""

    def count() -> None:
        state["count"] += 1
        if state["count"] == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def call(*args: Any, **kwargs: Any) -> Any:
        count()
        result = function(*args, **kwargs)
        count()
        return result

    return call


def main(moment: int, arguments: list[str]) -> None:
    """Runs train.py until `moment`."""
    state = {"count": 0}
    for owner, name in ((torch.optim.AdamW, "step"), (Path, "replace"), (Run, "log")):
        setattr(owner, name, counted(getattr(owner, name), state=state, moment=moment))
    torch.set_num_threads(1)
    train.main(arguments)
    print(f"the run ended before moment {moment}; it has {state['count']} moments", flush=True)


if __name__ == "__main__":
    moments, run, *arguments = sys.argv[1:]
    for moment in map(int, moments.split(",")):
        resume = ["--resume", run] if (Path(run) / "config.json").exists() else arguments
        child = os.fork()
        if child == 0:
            main(moment, resume)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(1)
