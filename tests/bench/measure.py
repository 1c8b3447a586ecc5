"""Measures runs that alternate in one process, and searches the fastest setting of each library.

The search is a coordinate descent: starting from the first value of every axis, it tries the values of one axis after
the other and keeps the fastest. The fastest candidates then alternate with ours, and medians are compared.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nn.runtime import release_freed_memory

Run = Callable[[], Any]
Axes = dict[str, tuple[Any, ...]]  # name of an argument -> its values; the search starts from the first
QUICK = 4.0  # seconds; a shorter run is timed twice in the search, since the first one prepares kernels
DISTURBED = 0.03  # share of the CPU that other processes may take
FINALISTS = 0.85  # a candidate of at least this share of the highest speed takes part in the final comparison


class Candidate(NamedTuple):
    """One library at its fastest setting."""

    name: str  # library and setting
    run: Run
    seconds: float  # of one run, in the search


def seconds(run: Run) -> float:
    """Returns the wall-clock time of run()."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def busy_elsewhere() -> float:
    """Returns the CPU seconds that all other processes have used since the start of the machine; 0 outside Linux."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, path.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def timed(run: Run) -> tuple[float, float]:
    """Returns the time of run() in seconds, and the share of the CPU that other processes took meanwhile."""
    before = busy_elsewhere()
    spent = seconds(run)
    return spent, (busy_elsewhere() - before) / spent / (os.cpu_count() or 1)


def undisturbed(values: list[tuple[float, float]]) -> list[float]:
    """Returns the times of (time, share of other processes) with a small share, or all times if there are none."""
    return [value for value, share in values if share <= DISTURBED] or [value for value, _ in values]


def quick_seconds(run: Run) -> float:
    """Returns the time of one run, or the shorter time of two runs if the first took less than QUICK or was disturbed
    by other processes."""
    first = timed(run)
    again = first[0] < QUICK or first[1] > DISTURBED
    return min(undisturbed([first, timed(run)] if again else [first]))


def tune(library: str, build: Callable[..., Run], axes: Axes, log: dict[str, float]) -> Candidate:
    """Returns the fastest setting of a library.

    build: makes a run from one value of every axis, by keyword.  log: receives the seconds of every setting, by name.
    """
    best = {axis: values[0] for axis, values in axes.items()}
    tried: dict[tuple[Any, ...], Candidate] = {}
    for axis, values in axes.items():
        for value in values:
            setting = best | {axis: value}
            key = tuple(setting.values())
            if key not in tried:
                run, name = build(**setting), ", ".join([library, *map(str, key)])
                tried[key] = Candidate(name, run, quick_seconds(run))
                log[name] = tried[key].seconds
                print(f"  {name}: {log[name]:.2f} s", flush=True)
        fastest: tuple[Any, ...] = min(tried, key=lambda key: tried[key].seconds)
        best = dict(zip(axes, fastest, strict=True))
    return min(tried.values(), key=lambda candidate: candidate.seconds)


def finalists(candidates: list[Candidate]) -> list[Candidate]:
    """Returns the candidates that are nearly as fast as the fastest."""
    limit = min(candidate.seconds for candidate in candidates) / FINALISTS
    return [candidate for candidate in candidates if candidate.seconds <= limit]


def alternate(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Returns the median time of each run, in seconds, and prints all times; the first round is a warm-up.

    Times during which other processes took more than DISTURBED of the CPU do not count, if a run has others; for them
    there are up to `repeats` rounds more. The memory that earlier runs freed is returned first, as train.py does from
    time to time.
    """
    gc.collect()
    release_freed_memory()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(2 * repeats + 1):
        for name, run in runs.items():
            times[name].append(timed(run))
        if number >= repeats and all(len(undisturbed(values[1:])) >= repeats for values in times.values()):
            break
    for name, values in times.items():
        shown = " ".join(f"{value:.2f}{f' ({share:.0%} busy)' if share > DISTURBED else ''}" for value, share in values)
        warning = "" if any(share <= DISTURBED for _, share in values[1:]) else "; never undisturbed: measure again"
        print(f"  {name}: {shown} s{warning}", flush=True)
    return {name: statistics.median(undisturbed(values[1:])) for name, values in times.items()}


def speed_ups(times: dict[str, list[float]], works: tuple[str, ...], slow: str, fast: str) -> dict[str, float]:
    """Returns the median times without the first call, a warm-up, and how much faster the form `fast` is than `slow`.

    times: name of the work and of its form, such as "step plain" -> seconds of each call.
    """
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    ratios = {work: medians[f"{work} {slow}"] / medians[f"{work} {fast}"] for work in works}
    row = {name: round(value, 3) for name, value in medians.items()}
    return row | {f"{work}, {slow} / {fast}": round(ratio, 2) for work, ratio in ratios.items()}


def compared_row(
    work: str, medians: dict[str, float], ours: tuple[str, ...], peers: list[str], amount: float
) -> dict[str, Any]:
    """Returns the row of one kind of work: the fastest of `peers`, ours, and the ratio of their speeds.

    medians: seconds by name.  amount: examples in one run.  A name in `ours` that was not measured is left out.
    """
    best = min(peers, key=lambda name: medians[name])
    mine = {name: medians[name] for name in ours if name in medians}
    row: dict[str, Any] = {"work": work, best: round(amount / medians[best], 2)}
    row |= {name: round(amount / value, 2) for name, value in mine.items()}
    return row | {f"ratio {name}": round(medians[best] / value, 2) for name, value in mine.items()}
