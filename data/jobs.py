"""Recognizes the run of a torchrun job when torchrun starts the same command again.

It does so after a failure (--max-restarts), and when a machine joins (--nnodes MIN:MAX). On each machine an agent, the
process of torchrun, starts the ranks. It makes a log folder with a random name, which it keeps for all attempts, and
names a file in it for each rank: TORCHELASTIC_ERROR_FILE is FOLDER/attempt_N/LOCAL_RANK/error.json.

config.json of a run lists the agents that trained it, each by a digest of its folder. A job continues a run that one of
its agents trained: when machines join or leave, the others keep their agents. If all machines of a run were lost,
--resume continues it. No variable of torchrun identifies a job: TORCHELASTIC_RUN_ID is --rdzv-id, the same for every
start of a command, and TORCHELASTIC_RESTART_COUNT counts failures, not machines that joined.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
NODES = re.compile(r"\0--nn[a-z]*[=\0]([^\0]*)")  # --nnodes on a command line, which may be abbreviated


def environment_number(name: str, default: int = 0) -> int:
    """Returns the whole number of an environment variable that torchrun sets. Raises ValueError for other text."""
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"the environment variable {name} is {value!r}, not a whole number; unset it") from None


def by_torchrun() -> bool:
    """Returns whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def agent() -> str:
    """Returns the digest that identifies the agent of this rank; "" without torchrun, or without its log folder."""
    file = os.environ.get(ERROR_FILE, "")
    return hashlib.sha256(os.fsencode(Path(file).parents[2])).hexdigest()[:16] if file.count(os.sep) > 2 else ""


def repeated_by() -> str:
    """Returns the flag by which torchrun may start the ranks again, "" if it does not.

    The agent does not pass on --nnodes. It is read from the agent's command line, where there is /proc.
    """
    if environment_number("TORCHELASTIC_MAX_RESTARTS") > 0:
        return "--max-restarts"
    lowest, _, highest = number_of_machines().partition(":")
    return f"--nnodes {lowest}:{highest}" if highest not in ("", lowest) else ""


def number_of_machines() -> str:
    """Returns --nnodes of torchrun, N or MIN:MAX; "" without torchrun, and if it is not known."""
    if not by_torchrun():
        return ""
    with contextlib.suppress(OSError):
        if found := NODES.search(Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace")):
            return found[1]
    return os.environ.get("PET_NNODES", "")  # torchrun's variable for the flag
