"""Runs train.py and kills it with SIGKILL at a chosen moment.

    python tests/crash.py MOMENT ARGUMENTS…

Moments are counted: before and after each optimizer step, while a file is being saved (its temporary twin is written),
right after it took its place, and around each line of the log. MOMENT 0 runs to the end and prints how many there were.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import train
from data.runs import Run


def counted(function, state: dict[str, int], moment: int):
    def call(*args, **kwargs):
        for part in (lambda: None, lambda: function(*args, **kwargs)):
            result = part()
            state["count"] += 1
            if state["count"] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def main(moment: int, arguments: list[str]) -> int:
    state = {"count": 0}
    for owner, name in ((torch.optim.AdamW, "step"), (Path, "replace"), (Run, "log")):
        setattr(owner, name, counted(getattr(owner, name), state, moment))
    train.main(arguments)
    return state["count"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("moments:", main(int(sys.argv[1]), sys.argv[2:]))
