"""Damages files of every format, and reads them as the program does, each in a child process with limits.

tests/damage_run.py runs it; damage_models.py and damage_texts.py have the formats.

An outcome is accepted if the reader ends normally, or with exit code 2 and one line on standard error that begins with
`error:`. It is not accepted if there is a traceback, if the child takes more than SECONDS or more than MEMORY above
its start, or if it dies. Prints one line a format, and the first input of each kind of failure is kept in --keep DIR.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.errors import clean_exit  # noqa: E402

SECONDS, MEMORY = 20, 2**30
TOGETHER = 10  # inputs that one child reads
# values that replace a value of a JSON file
JSON_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 10**20, 1.5, -0.5, float("nan"), float("inf"), "", "12", "../../x", "\x1b[31mred",
    "a" * 5000, [], {}, [[]], [None], {"a": None}, ["x", 1],
)  # fmt: skip
BYTES = (b"\0", b"\xff", b"\n", b'"', b"{", b"[", b"\x80", b"null", b"-1", b"1e999", b"9" * 30, b"NaN", b"\x1b[2J")


class Format(NamedTuple):
    """A format: how a sound input is made, which of its files are damaged, and how the program reads it."""

    make: Callable[[Path], None]  # writes a sound input into an empty folder
    files: tuple[str, ...]  # names of the files in it that are damaged, one at a time
    use: Callable[[Path], Any]  # reads the folder; raises what the program would raise
    special: Callable[[Path, random.Random], bool] | None = None  # damages the folder in a way of its own format


class Outcome(NamedTuple):
    """What a reader did with an input. kind: read, refused, traceback, hang, memory or died."""

    kind: str
    text: str
    seconds: float
    memory: int  # bytes above the start


# ------------------------------------------------------------------------------------------------------------ damage


def damage_bytes(data: bytes, stream: random.Random) -> bytes:
    """Returns a copy with one to four random changes: bits, bytes, spans, or the end."""
    out = bytearray(data)
    for _ in range(stream.choice((1, 1, 1, 2, 4))):
        at = stream.randrange(len(out) + 1) if stream.random() < 0.5 else stream.randrange(min(len(out), 200) + 1)
        length = stream.choice((1, 1, 4, 8, 64, 1000))
        kind = stream.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << stream.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = stream.choice((0, 1, 127, 128, 255, stream.randrange(256)))
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            out[at:at] = stream.choice(BYTES)
        elif kind == 6:
            out[at : at + length] = stream.randbytes(length)
        else:
            out[at : at + len(found)] = (found := stream.choice(BYTES))
    return bytes(out)


def json_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from json_places(inner)


def damage_json(data: bytes, stream: random.Random) -> bytes:
    """Returns JSON in which one value is removed or replaced by one of JSON_VALUES or by another value of the file."""
    value = json.loads(data)
    places = list(json_places(value))
    if not places or stream.random() < 0.02:
        return json.dumps(stream.choice(JSON_VALUES)).encode()
    near = [place for place in places if place[0] is value]
    container, key = stream.choice(near if stream.random() < 0.5 else places)
    kind = stream.random()
    if kind < 0.15:
        del container[key]
    elif kind < 0.25:
        other, name = stream.choice(places)
        container[key] = json.loads(json.dumps(other[name] if name in other or isinstance(other, list) else None))
    else:
        container[key] = stream.choice(JSON_VALUES)
    return json.dumps(value).encode()


def damage_header(data: bytes, stream: random.Random) -> bytes:
    """Returns a safetensors file whose JSON header is damaged by `damage_json`, with the right length in front."""
    size = int.from_bytes(data[:8], "little")
    header = damage_json(data[8 : 8 + size], stream)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def damage(folder: Path, form: Format, stream: random.Random) -> None:
    """Damages one file of a sound input, in place."""
    if form.special is not None and stream.random() < 0.3 and form.special(folder, stream):
        return
    path = folder / stream.choice(form.files)
    data = path.read_bytes()
    if stream.random() < 0.03:
        data = stream.choice((b"", b"\0" * 100, b"[" * 100_000, b'{"a":' * 5_000, stream.randbytes(1000)))
    elif path.suffix == ".json" and stream.random() < 0.7:
        data = damage_json(data, stream)
    elif path.suffix == ".safetensors" and stream.random() < 0.5:
        data = damage_header(data, stream)
    else:
        data = damage_bytes(data, stream)
    path.write_bytes(data)


# ------------------------------------------------------------------------------------------------------------ children


def read_in_child(use: Callable[[Path], Any], folder: Path) -> Outcome:
    """Runs `use(folder)` in a forked child under `clean_exit`, and judges how it ended."""
    begin = time.perf_counter()
    ended = fork_and_read(use, [folder], SECONDS)
    seconds = time.perf_counter() - begin
    if ended is None:
        return Outcome("hang", "", seconds, 0)
    return judge(folder) or Outcome("died", f"exit code {ended}", seconds, 0)


def read_in_one_child(use: Callable[[Path], Any], folders: list[Path]) -> list[Outcome]:
    """Reads several folders in one forked child, which is several times as fast as a child for each.

    A folder whose reader does not end in success or in one line, or is not reached, is read again in its own child.
    """
    fork_and_read(use, folders, SECONDS)
    together = [(folder, judge(folder)) for folder in folders]
    return [
        found if found and found.kind in ("read", "refused") else read_in_child(use, folder)
        for folder, found in together
    ]


def fork_and_read(use: Callable[[Path], Any], folders: list[Path], limit: float) -> int | None:
    """Forks a child that reads the folders in their order. Returns its exit code; None if it was killed at `limit`."""
    begin, child = time.perf_counter(), os.fork()
    if child == 0:
        try:
            os.environ["HF_HUB_OFFLINE"] = "1"  # a damaged name of a backbone is not looked up on the hub
            start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for folder in folders:
                read(use, folder, start)
        finally:
            os._exit(0)
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.perf_counter() - begin > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def report(folder: Path, name: str) -> Path:
    """Returns the file beside a folder that has what its reader printed, "stdout" or "stderr", or how it "ended"."""
    return folder.with_name(f"{folder.name}-{name}")


def read(use: Callable[[Path], Any], folder: Path, start: int) -> None:
    """Reads a folder in this process, and writes its reports. start: the peak memory before, in KiB"""
    code, begin = 1, time.perf_counter()
    report(folder, "ended").unlink(missing_ok=True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(report(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", errors="replace", closefd=False))
    try:
        with clean_exit():
            use(folder)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
    report(folder, "ended").write_text(f"{code} {used} {time.perf_counter() - begin}", encoding="utf-8")


def judge(folder: Path) -> Outcome | None:
    """Judges the reports of a reader; None if it has not ended."""
    if not report(folder, "ended").is_file():
        return None
    ended = report(folder, "ended").read_text(encoding="utf-8").split()
    code, used, seconds = int(ended[0]), int(ended[1]), float(ended[2])
    lines = report(folder, "stderr").read_text(encoding="utf-8", errors="replace").splitlines()
    printed = report(folder, "stdout").read_text(encoding="utf-8", errors="replace").split("\n")
    text = "\n".join(lines)
    if used > MEMORY:
        return Outcome("memory", text, seconds, used)
    if code in (0, 2) and not all(line.isprintable() for line in printed):
        return Outcome("traceback", f"control characters on standard output: {printed!r}"[:300], seconds, used)
    if code == 0:
        return Outcome("read", text, seconds, used)
    if code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable():
        return Outcome("refused", text, seconds, used)
    return Outcome("traceback" if code in (1, 2) else "died", text or f"exit code {code}", seconds, used)


def place(text: str) -> str:
    """Returns the last line of this project in a traceback, and the error: one place is one defect."""
    where = re.findall(r'File "([^"]*)", line (\d+)', text)
    ours = [(Path(f).name, n) for f, n in where if str(ROOT) in f and "damage" not in f]
    last = text.strip().splitlines()[-1][:120] if text.strip() else ""
    return f"{':'.join(ours[-1]) if ours else '?'}  {last}"


def run_format(name: str, form: Format, count: int, seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Reads `count` damaged inputs of a format. Returns {outcome: number}, the slowest and the largest reader, and the
    places of failures."""
    kinds: Counter[str] = Counter()
    places: Counter[str] = Counter()
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        sound = Path(temporary) / "sound"
        sound.mkdir()
        form.make(sound)
        whole = read_in_child(form.use, sound)
        if whole.kind != "read":
            raise ValueError(f"{name}: the sound input is not read: {whole}")
        for first in range(0, count, TOGETHER):
            numbers = range(first, min(first + TOGETHER, count))
            folders = [Path(temporary) / f"damaged-{number}" for number in numbers]
            for number, folder in zip(numbers, folders, strict=True):
                shutil.copytree(sound, folder)
                damage(folder, form, random.Random(f"{name} {seed} {number}"))
            for number, folder, outcome in zip(numbers, folders, read_in_one_child(form.use, folders), strict=True):
                kinds[outcome.kind] += 1
                slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.memory)
                if outcome.kind not in ("read", "refused"):
                    where = f"{outcome.kind}: {place(outcome.text)}"
                    if keep is not None and where not in places:
                        with contextlib.suppress(shutil.Error):  # a pipe, or a link that leads nowhere
                            shutil.copytree(folder, keep / f"{name}-{number}", symlinks=True, dirs_exist_ok=True)
                        (keep / f"{name}-{number}.txt").write_text(outcome.text, encoding="utf-8")
                    places[where] += 1
                shutil.rmtree(folder)
    kinds_found = {kind: kinds[kind] for kind in ("read", "refused", "traceback", "hang", "memory", "died")}
    return {
        "inputs": count, **kinds_found, "seconds": round(slowest, 2), "mebibytes": round(largest / 2**20),
        "places": dict(places.most_common()),
    }  # fmt: skip
