"""Runs train.py again and again, and kills it with SIGKILL at a chosen moment each time.

    python tests/crash.py MOMENT,MOMENT,… RUN ARGUMENTS…

Moments are counted: before and after each optimizer step, while a file is being saved (its temporary twin is written),
right after it took its place, and around each line of the log. RUN is the run's folder: from the first death on that
leaves one, it is resumed. Each death is a process of its own, forked from this one, which has imported what it needs.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch._dynamo  # as the optimizer does

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


def main(moment: int, arguments: list[str]) -> None:
    state = {"count": 0}
    for owner, name in ((torch.optim.AdamW, "step"), (Path, "replace"), (Run, "log")):
        setattr(owner, name, counted(getattr(owner, name), state, moment))
    torch.set_num_threads(1)
    train.main(arguments)
    print(f"moment {moment} did not come: there were {state['count']}", flush=True)


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
