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
    report = folder.parent / "stderr"
    begin, child = time.perf_counter(), os.fork()
    if child == 0:
        run_child(use, folder, report)
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.perf_counter() - begin > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome("hang", "", time.perf_counter() - begin, 0)
        time.sleep(0.002)
    seconds, code = time.perf_counter() - begin, os.waitstatus_to_exitcode(ended[1])
    *lines, memory = report.read_text(encoding="utf-8", errors="replace").splitlines() or ["0"]
    text, used = "\n".join(lines), int(memory) if memory.isdigit() else 0
    if used > MEMORY:
        return Outcome("memory", text, seconds, used)
    printed = report.with_name("stdout").read_text(encoding="utf-8", errors="replace").split("\n")
    if code in (0, 2) and not all(line.isprintable() for line in printed):
        return Outcome("traceback", f"control characters on standard output: {printed!r}"[:300], seconds, used)
    if code == 0:
        return Outcome("read", text, seconds, used)
    if code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable():
        return Outcome("refused", text, seconds, used)
    return Outcome("traceback" if code in (1, 2) else "died", text or f"exit code {code}", seconds, used)


def run_child(use: Callable[[Path], Any], folder: Path, report: Path) -> None:
    """Reads a folder in this process, writes standard error and the memory that was used to `report`, and exits."""
    code = 1
    os.environ["HF_HUB_OFFLINE"] = "1"  # a damaged name of a backbone is not looked up on the hub
    try:
        file = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 2)
        os.dup2(os.open(report.with_name("stdout"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with clean_exit():
                use(folder)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
        os.write(2, f"\n{used}\n".encode() if code != 2 else f"{used}\n".encode())
    finally:
        os._exit(code if code in (0, 2) else 1)


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
        first = read_in_child(form.use, sound)
        if first.kind != "read":
            raise ValueError(f"{name}: the sound input is not read: {first}")
        for number in range(count):
            folder = Path(temporary) / "damaged"
            shutil.copytree(sound, folder)
            damage(folder, form, random.Random(f"{name} {seed} {number}"))
            outcome = read_in_child(form.use, folder)
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
