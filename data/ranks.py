"""Ranks: processes that train one model together. `torchrun --nproc_per_node N train.py …` starts N of them.

Every rank has the whole model (with --shard a part of it: nn/sharding.py) and computes its share of the same batch. For
a batch of n examples, of which rank r has n_r with the mean loss L_r,

    L = Σ_r (n_r / n) L_r,    ∇L = Σ_r ∇ (n_r / n) L_r

so that the gradient is that of one process, whatever n_r is. A loss that compares or counts across examples returns its
rank's part instead: a number whose sum over the ranks is L (losses/).

Without torchrun there is no process group (`alone`); every function here then acts on this process alone. Values are
exchanged by gloo, the gradients of a GPU by NCCL (nn/distributed.py). Every exchange is collective: all ranks take part
in it, in the same order.
"""

import contextlib
import datetime
import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.batches import Batch, Share
from data.checksums import file_digest
from data.corpus import Corpus
from data.errors import POLL, interruptible, user_message
from data.jobs import environment_number, repeated_by
from data.orders import Stream, step_batches
from data.seeds import derive_seed, random_state, set_random_state

Value = TypeVar("Value")
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # variables that torchrun sets
NUMBERS = ("RANK", "WORLD_SIZE", "MASTER_PORT")  # that torch reads as whole numbers
FRESH_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # without it restarted ranks find the addresses of the killed ones
TIMEOUT = datetime.timedelta(hours=2)  # rank 0 may fetch weights and tokenize while the others wait
STEP_TIMEOUT = datetime.timedelta(minutes=30)  # torch's default
JOINING, NOTICE = 600, 10  # seconds that ranks have to start; after which a waiting rank says so
STOPPING, ANSWERING = 60, 5  # seconds that torchrun has to stop a rank; that its store has to answer
VISIBLE = 60  # seconds until a network file system shows a new file to all machines
AGREEING = 10  # seconds that rank 0 has to raise an error that another rank has raised
FINE, HALVE, NOT_FINITE, END = range(4)  # how a step went on a rank; the maximum decides what all ranks do


class Elsewhere(Exception):
    """Reports that a step failed on another rank. status: HALVE, NOT_FINITE or END."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Ended(Exception):
    """Ends this rank with code 2 and without a message: another rank prints why."""


# ------------------------------------------------------------------------------------------------------ the group


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Joins the ranks that torchrun started, for the block; does nothing without torchrun.

    Each rank of a machine has a GPU of its own, unless `device` is another kind. Ranks other than 0 print nothing.
    An error that all ranks raise is reported by rank 0. Raises ValueError if there are fewer GPUs than ranks, or for a
    device that the ranks would share (MPS, cuda:1); ConnectionError if the ranks cannot be connected, and if another
    rank ended. Exits with code 2 if that rank reported why. A rank that fails leaves the group by ending, after its
    message is printed.
    """
    if not launched():
        yield
        return
    local, backend = environment_number("LOCAL_RANK"), "gloo"
    number, count, _ = (environment_number(name) for name in NUMBERS)
    if not 0 <= number < count:
        problem = f"RANK {number} and WORLD_SIZE {count} do not fit: ranks are 0 to WORLD_SIZE - 1"
        raise ValueError(f"the environment variables {problem}; unset them")
    if device.startswith("cuda:"):
        raise ValueError(f"--device {device} would be shared by all ranks; --device cuda gives each rank its own GPU")
    if device.partition(":")[0] == "mps" or (device == "auto" and torch.backends.mps.is_available()):
        raise ValueError("MPS cannot be shared by ranks; add --device cpu, or leave out torchrun")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            way_out = f"torchrun --nproc_per_node {torch.cuda.device_count()}, or --device cpu"
            raise ValueError(f"rank {local} of this machine has no GPU of its own; {way_out}")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    if (flag := repeated_by()) and os.environ.get(FRESH_STORE) != "1":
        raise ValueError(f"torchrun {flag} needs {FRESH_STORE}=1 in its environment to connect the ranks again")
    connect(backend)
    if not is_first():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  (for the whole process)
    try:
        with naming_lost_ranks():
            yield
            dist.barrier()  # rank 0 has the store of the group, and ends last
    except Ended:
        sys.exit(2)
    except Exception as error:
        if first_reports(error):
            with contextlib.suppress(RuntimeError):
                agree(0)  # until rank 0 has ended: torchrun would stop it before its message is printed
            sys.exit(2)
        raise


def first_reports(error: Exception) -> bool:
    """Returns whether this is not rank 0, and rank 0 reports an error that this rank has raised too.

    The ranks may be in different exchanges, so rank 0 sets a key in the store of the group. If the key is missing after
    AGREEING seconds, only this rank has failed.
    """
    if user_message(error) is None or isinstance(error, ConnectionError):
        return False
    store = dist.distributed_c10d._get_default_store()

    def failed() -> bool:
        """Looks for the key. torch's own `wait` prints warnings when it ends without it."""
        end = time.monotonic() + AGREEING
        while not (found := store.check(["failed"])) and time.monotonic() < end:
            time.sleep(POLL)
        return found

    try:
        if is_first():
            store.set("failed", "1")
            return False
        return interruptible(failed, AGREEING + 1)
    except (dist.DistStoreError, TimeoutError):
        return False
    except RuntimeError:  # rank 0 has ended, and the store with it
        return not is_first()


def connect(backend: str) -> None:
    """Initializes the process group of all ranks. A signal ends the wait for the others.

    Raises ConnectionError if the address of rank 0 cannot be used, and if a rank is missing after JOINING seconds.
    """
    count, place = os.environ["WORLD_SIZE"], f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    notice = threading.Timer(NOTICE, lambda: print(f"waiting for {count} ranks at {place}", file=sys.stderr))
    notice.daemon = True
    if environment_number("LOCAL_RANK") == 0:  # one line on each machine
        notice.start()
    try:
        interruptible(lambda: dist.init_process_group(backend, timeout=TIMEOUT), JOINING)
    except (RuntimeError, TimeoutError) as error:
        reason = str(error) or f"not all {count} of them joined within {JOINING / 60:g} minutes"
        raise ConnectionError(f"the ranks cannot be connected at {place}: {reason}") from error
    finally:
        notice.cancel()


@contextlib.contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Raises ConnectionError in place of torch's error if another rank ended; Ended if another rank reports it."""
    try:
        yield
    except RuntimeError as error:
        if alone() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        if not reports_lost_rank():
            raise Ended from error
        why = "does not answer" if "Timed out" in str(error) else "ended"
        raise ConnectionError(f"rank {rank()} ends because another rank {why}") from error


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Waits STEP_TIMEOUT instead of TIMEOUT for another rank in the block: its machine may have lost its network."""
    set_timeout(STEP_TIMEOUT)
    try:
        yield
    finally:
        set_timeout(TIMEOUT)


def set_timeout(limit: datetime.timedelta) -> None:
    """Sets how long an exchange waits for another rank."""
    if not alone():
        dist.distributed_c10d._set_pg_timeout(limit)


def reports_lost_rank() -> bool:
    """Returns whether this rank is the first one that reports that another ended.

    The ranks count themselves in the store of the group, if torchrun has it. Otherwise rank 0 has it and may have ended
    with it, so that ranks 0 and 1 report.
    """
    with contextlib.suppress(RuntimeError, TimeoutError):
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = dist.distributed_c10d._get_default_store()
            return interruptible(lambda: store.add("lost", 1), ANSWERING) == 1
    return rank() < 2


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Ends a rank at once when the block is done, with the exit code of SystemExit.

    Python's own end destroys tensors that gloo's threads still hold, which sometimes aborts the process
    (github.com/pytorch/pytorch/pull/179291).
    """
    code = 0
    try:
        yield
    except SystemExit as end_of_process:
        if alone() and not launched():  # a rank that was launched may still be connecting, in a thread
            raise
        code = int(end_of_process.code or 0)
    if launched() or not alone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
    """Lets rank 0 alone print, and report an error that all ranks raise before they are joined.

    The others wait until torchrun stops them, which it does as soon as rank 0 has ended. If it does not, the error is
    theirs alone, and they raise ValueError with their number.
    """
    if not launched() or environment_number("RANK") == 0:
        yield
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as printed:
            yield
    except (Exception, SystemExit) as error:
        if not getattr(error, "code", 2):  # --help
            raise
        time.sleep(STOPPING)
        message = printed.getvalue().removeprefix("error: ") if isinstance(error, SystemExit) else user_message(error)
        if message is None:
            raise
        raise ValueError(f"rank {os.environ['RANK']}: {message}") from error


def launched() -> bool:
    """Returns whether torchrun, or a caller that sets the same variables, started this process."""
    return all(name in os.environ for name in TORCHRUN)


def alone() -> bool:
    """Returns whether this process has joined no group of ranks."""
    return not dist.is_initialized()


def rank() -> int:
    """Returns the number of this rank, 0 … size() - 1."""
    return 0 if alone() else dist.get_rank()


def size() -> int:
    """Returns the number of ranks."""
    return 1 if alone() else dist.get_world_size()


def is_first() -> bool:
    """Returns whether this rank writes files, prints, and fetches from the hub."""
    return rank() == 0


# ------------------------------------------------------------------------------------------------- exchanged values


def gather(value: Any) -> list[Any]:
    """Returns the JSON values of all ranks, in their order."""
    if alone():
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    dist.all_gather(lengths, torch.tensor([len(own)]))
    longest = int(max(lengths))
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(parts, torch.nn.functional.pad(own, (0, longest - len(own))))
    return [json.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, lengths, strict=True)]


def agree(*values: int) -> list[int]:
    """Returns the maximum over the ranks of each value, so that all ranks decide the same."""
    if alone():
        return list(values)
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return [int(value) for value in tensor]


def check_others() -> None:
    """Waits for the other ranks before an exchange within a forward pass. Raises Elsewhere if the step failed there."""
    if status := agree(FINE)[0]:
        raise Elsewhere(status)


def add(values: dict[str, float]) -> dict[str, float]:
    """Returns the sum over the ranks of each value. A name may be missing on some ranks."""
    if alone():
        return values
    parts = gather(values)
    return {
        name: sum(part.get(name, 0) for part in parts) for name in sorted({name for part in parts for name in part})
    }


def add_rows(rows: np.ndarray) -> np.ndarray:
    """Returns the sum over the ranks. Exact if each element is 0 on all ranks but one. In place."""
    if not alone():
        dist.all_reduce(torch.from_numpy(rows))
    return rows


def by_first(work: Callable[[], Value]) -> Value:
    """Returns work(), a JSON value that rank 0 computes. If it raises there, the other ranks raise Ended."""
    if alone():
        return work()
    if is_first():
        try:
            value = work()
        except BaseException:
            gather([])
            raise
        gather([value])
        return value
    found = gather([])[0]
    return found[0] if found else end()


def end() -> NoReturn:
    """Raises Ended after the rank that failed has ended, so that torchrun does not stop that one early.

    The failed rank prints its message, ends, and thereby closes the connection.
    """
    with contextlib.suppress(RuntimeError):
        agree(0)
    raise Ended


def first_message(message: str | None) -> str:
    """Returns, on rank 0, the message of the lowest rank that has one; the other ranks end."""
    found = next(text for text in gather(message) if text is not None)
    if not is_first():
        end()
    return found


def fail(error: Exception) -> NoReturn:
    """Raises an error that all ranks have found, on rank 0; the other ranks end."""
    if not is_first():
        end()
    raise error


def in_turn(work: Callable[[], Value]) -> Value:
    """Returns work(), which rank 0 computes first; the other ranks then find the files that it wrote."""
    own: list[Value] = []
    by_first(lambda: own.append(work()))
    return own[0] if own else work()


def problem_of_shared(path: Path) -> str | None:
    """Returns what is wrong if a rank does not read the file that rank 0 wrote, otherwise None, the same on all ranks.

    A network file system may show the file to another machine a minute late.
    """

    def digest() -> str | None:
        return file_digest(path) if path.is_file() else None

    written, end = by_first(digest), time.monotonic() + VISIBLE
    while (found := digest()) != written and time.monotonic() < end:
        time.sleep(POLL)
    where = f"rank {rank()} on {socket.gethostname()} has {'no' if found is None else 'another'} file {path.absolute()}"
    wrong = None if found == written else f"{where}; all ranks need the same folders: --runs on a shared file system"
    return next(filter(None, gather(wrong)), None)


# ---------------------------------------------------------------------------------------------------------- shares


def share_bounds(lengths: np.ndarray, number: int, count: int) -> tuple[int, int]:
    """Returns the rows start … stop - 1 of a batch that rank `number` of `count` computes.

    lengths: tokens of each row. Neighbouring rows, of similar length, stay together, which saves padding. The tokens
    of the batch are cut into `count` equal ranges; the middle token of a row decides which rank gets the row. A rank
    therefore has at most 1/count of the tokens plus the longest row, and may have no row.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    owner = (2 * ends - lengths) * count // (2 * ends[-1])  # [B], ascending
    return int(np.searchsorted(owner, number)), int(np.searchsorted(owner, number, side="right"))


def own_share(whole: Batch, seed: int | None = None) -> Batch:
    """Returns this rank's rows of a batch, and of its unlabelled batch, with the number of all rows.

    A rank without rows gets the first one, since a forward pass may exchange values; its loss then has weight 0.
    seed: of the random numbers that all ranks draw for the whole batch; None: torch's default generator, whose state
    must then be the same on all ranks.
    """
    lengths = whole.mask.sum(1)
    start, stop = share_bounds(lengths.numpy(), rank(), size())
    rows = slice(start, stop) if stop > start else slice(0, 1)
    width = int(lengths[rows].max())
    unlabelled = whole.unlabelled
    if unlabelled is not None:
        unlabelled = own_share(unlabelled, None if seed is None else derive_seed(seed, "unlabelled"))
    return whole._replace(
        input_ids=whole.input_ids[rows, :width],
        mask=whole.mask[rows, :width],
        labels=whole.labels[rows],
        rows=whole.rows[rows],
        unlabelled=unlabelled,
        teacher=None if whole.teacher is None else whole.teacher[rows],
        share=Share(whole._replace(unlabelled=None), start, stop, seed),
    )


def rank_batches(
    corpus: Corpus,
    stream: Stream | None,
    micro_batches: list[np.ndarray],
    number: int,
    num_splits: int,
    tokens_per_pass: int,
    additive: bool,
    seed: int,
) -> Iterator[Batch]:
    """Yields this rank's share of one optimizer step. Without torchrun: `step_batches`.

    additive: each rank splits its share into as many passes as it needs. Otherwise all ranks have the same passes, in
    which they exchange values.
    """
    if alone():
        yield from step_batches(corpus, stream, micro_batches, number, num_splits, tokens_per_pass)
    elif additive:
        shares = [rows[slice(*share_bounds(corpus.lengths[rows], rank(), size()))] for rows in micro_batches]
        yield from step_batches(
            corpus, None, [rows for rows in shares if len(rows)], number, num_splits, tokens_per_pass
        )
    else:
        for index, whole in enumerate(step_batches(corpus, stream, micro_batches, number, num_splits)):
            yield own_share(whole, derive_seed(seed, f"pass {number} {index}"))


# ---------------------------------------------------------------------------------------------------- random states


def seed_dropout(seed: int) -> None:
    """Seeds torch's default generators for dropout: differently on each rank, on rank 0 as in one process."""
    torch.manual_seed(derive_seed(seed, f"dropout {rank()}" if rank() else "dropout"))


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Returns the generator states of all ranks; those of rank 0 have the names of `random_state`."""
    own = random_state(device)
    if alone():
        return own
    states: dict[str, Tensor] = {}
    for name, state in own.items():
        parts = [torch.empty_like(state) for _ in range(size())]
        dist.all_gather(parts, state)
        states |= {f"{name}.{number}" if number else name: part for number, part in enumerate(parts)}
    return states


def restore_random_state(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Restores this rank's state from `random_states`. A rank that had none gets a seed from the state of rank 0."""
    if not rank():
        return  # restore_training_state did it
    own = {name: tensors[f"{name}.{rank()}"] for name in random_state(device) if f"{name}.{rank()}" in tensors}
    if "random.cpu" in own:
        set_random_state(own, device)
    else:
        torch.manual_seed(derive_seed(int(torch.randint(2**62, ())), f"dropout {rank()}"))
