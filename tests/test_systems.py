"""The program on systems that are not Linux with a UTF-8 console.

The modules and names that only Unix has are hidden from a whole run, in subprocesses, and none is used at the top of a
module. Consoles have several encodings, and pipes are closed early.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, tiny_weights
from starts import starts

from data.errors import clean_exit

UNIX_MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline", "curses")
# names of os and signal that Windows lacks
UNIX_NAMES = {
    "os": {
        "chown", "fork", "forkpty", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "kill", "killpg", "mkfifo",
        "mknod", "nice", "openpty", "sched_getaffinity", "sched_setaffinity", "setsid", "statvfs", "sysconf", "uname",
        "wait", "waitpid", "fchmod", "lchown", "getgroups", "posix_fadvise", "sync", "pipe2",
    },
    "signal": {
        "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1",
        "SIGUSR2", "SIGXFSZ", "alarm", "pause", "setitimer", "sigwait",
    },
}  # fmt: skip
SOURCES = [
    ROOT / "train.py",
    ROOT / "eval.py",
    *(p for name in ("data", "nn", "peft", "losses") for p in (ROOT / name).glob("*.py")),
]
# sitecustomize.py, which Python runs first: hides the modules and names above
HIDE = f"""
import signal, sys
hidden = [name for name in {UNIX_MODULES!r} if name != "posix"]  # os itself needs posix
sys.modules.update(dict.fromkeys(hidden))  # an import of None raises ImportError
for name in {sorted(UNIX_NAMES["signal"])!r}:
    if hasattr(signal, name):
        delattr(signal, name)
"""


# a program that runs several commands one after another in one process, since importing torch takes seconds; each has
# the encoding of its console
SERIES = """
import json, runpy, sys
for encoding, script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    sys.stdout.reconfigure(encoding=encoding, errors="strict")
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    for stream in (sys.stdout, sys.stderr):
        print(f"--- {code}", file=stream, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a tiny checkpoint, and a sitecustomize.py that hides what only Unix has."""
    path = tmp_path_factory.mktemp("systems")
    tiny_weights(path / "weights")
    (path / "hide").mkdir()
    (path / "hide" / "sitecustomize.py").write_text(HIDE)
    (path / "series.py").write_text(SERIES)
    return path


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def settings_of(folder: Path, **settings: str) -> dict[str, str]:
    """Returns the environment of a process in which Unix's modules are hidden. settings: further variables"""
    hide = {
        "PYTHONPATH": os.pathsep.join((str(folder / "hide"), str(ROOT))),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return os.environ | hide | settings


def a_run(folder: Path, name: str) -> list[str]:
    """Returns the command of a run of a few seconds."""
    sizes = "--train-reviews 32 --validation-reviews 16 --test-reviews 16 --max-length 32 --epochs 1"
    weights = ["--weights", str(folder / "weights"), "--runs", str(folder / "runs"), "--name", name]
    return ["train.py", "--model", "bert", "--peft", "lora", *weights, "--data", "demo", *sizes.split()]


ANSWER = ["eval.py", "--run", "runs/first", "--text"]
EXPLAINED = [*ANSWER, "A “fine” café – naïve… α", "--explain"]
COMMANDS = {  # name: (encoding of the console, script and arguments)
    "help of train.py": ("ascii", ["train.py", "--help"]),
    "help of eval.py": ("ascii", ["eval.py", "--help"]),
    "answer": ("ascii", EXPLAINED),
    "answer of Windows": ("cp1252", EXPLAINED),
    "dash": ("ascii", [*ANSWER, "-bad"]),
    "check": ("ascii", ["data/check.py", "runs/first"]),
    "error": ("ascii", ["eval.py", "--run", "runs/ä"]),
}


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Ended]:
    """Returns how a run and COMMANDS ended, with warnings of missing encodings of files."""
    commands = {"run": ("ascii", a_run(folder, "first"))} | COMMANDS
    named = [[encoding, str(ROOT / script), *arguments] for encoding, (script, *arguments) in commands.values()]
    warn = {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "always::EncodingWarning"}
    done = subprocess.run(
        [sys.executable, "series.py", json.dumps(named)],
        cwd=folder,
        env=settings_of(folder, PYTHONIOENCODING="ascii", **warn),
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    out, err = (re.split(rb"^--- (\d+)\n", text, flags=re.MULTILINE) for text in (done.stdout, done.stderr))
    found = zip(commands.items(), out[1::2], out[::2], err[::2], strict=False)
    return {
        name: Ended(int(code), shown.decode(encoding), errors.decode("ascii"))
        for (name, (encoding, _)), code, shown, errors in found
    }


def without_warnings(err: str) -> str:
    """Returns standard error without the warnings of encodings, which are two lines each."""
    return re.sub(r"^.*EncodingWarning.*\n  .*\n", "", err, flags=re.MULTILINE)


def test_the_modules_are_hidden(folder: Path):
    program = """
import signal
try:
    import resource
except ImportError:
    print(hasattr(signal, "SIGKILL"))
"""
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, env=settings_of(folder), text=True) == "False\n"


def test_a_run_needs_nothing_that_only_unix_has(folder: Path, ended: dict[str, Ended]):
    """The run has no warning of its own; its result has no peak memory, which is unknown there."""
    assert (ended["run"].code, without_warnings(ended["run"].err)) == (0, "")
    result = (folder / "runs/first/result.json").read_text(encoding="utf-8")
    assert '"peak_memory_bytes": null' in result


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_every_console_can_show_the_help(ended: dict[str, Ended], script: str):
    done = ended[f"help of {script}"]
    assert (done.code, without_warnings(done.err)) == (0, "")
    assert done.out.startswith(f"usage: python {script} [--FLAG VALUE ...]\n")


@pytest.mark.parametrize("name", ["answer", "answer of Windows"])
def test_every_console_can_show_an_answer(ended: dict[str, Ended], name: str):
    assert (ended[name].code, without_warnings(ended[name].err)) == (0, "")
    assert "because of: " in ended[name].out


def test_a_run_can_be_checked(ended: dict[str, Ended]):
    assert (ended["check"].code, without_warnings(ended["check"].err)) == (0, "")
    assert ended["check"].out.endswith(": sound\n")


def test_a_text_may_begin_with_a_dash(ended: dict[str, Ended]):
    assert (ended["dash"].code, without_warnings(ended["dash"].err)) == (0, "")
    assert "negative" in ended["dash"].out


def test_an_error_is_one_line_everywhere(ended: dict[str, Ended]):
    assert (ended["error"].code, ended["error"].out) == (2, "")
    assert without_warnings(ended["error"].err) == "error: runs/\\xe4 is not a run folder: it has no config.json\n"


def test_no_file_is_read_in_the_encoding_of_the_system(ended: dict[str, Ended]):
    """Windows reads files in cp1252 unless their encoding is given."""
    lines = "".join(found.err for found in ended.values()).splitlines()
    warnings = [line for line in lines if "EncodingWarning" in line]
    assert [line for line in warnings if str(ROOT) in line and "site-packages" not in line] == []


@pytest.mark.parametrize("arguments", [["train.py", "--help"], ["eval.py", "--run", "runs/first"]])
def test_a_reader_may_close_the_pipe(folder: Path, ended: dict[str, Ended], arguments: list[str]):
    """`| head -1` ends the program without a traceback."""
    script, *rest = arguments
    command = [sys.executable, str(ROOT / script), *rest]
    with subprocess.Popen(
        command, cwd=folder, env=settings_of(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=300) in (0, 141)


def top_level(tree: ast.Module) -> list[ast.stmt]:
    """Returns the statements that an import of a module runs, except those in a try."""
    return [statement for statement in tree.body if not isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Try)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_needs_unix_to_be_imported(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for statement in top_level(tree):
        if isinstance(statement, ast.Import):
            names |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names.add((statement.module or "").split(".")[0])
    assert not names & set(UNIX_MODULES)
    used = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert not used & {f"{module}.{name}" for module, names in UNIX_NAMES.items() for name in names}


def text_access(call: ast.Call) -> bool:
    """Returns whether a call reads or writes a file as text: `path.read_text()`, `path.open()`, `open(path, "a")`."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    if name != "open":
        return False
    modes = call.args if isinstance(call.func, ast.Attribute) else call.args[1:]
    modes = modes[:1] or [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or [ast.Constant("r")]
    return isinstance(modes[0], ast.Constant) and "b" not in str(modes[0].value)  # Run.open(folder) has no mode


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_with_its_encoding(path: Path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    without = [
        call.lineno
        for call in calls
        if text_access(call) and "encoding" not in {keyword.arg for keyword in call.keywords}
    ]
    assert without == []


def test_no_random_number_depends_on_pythons_hashes():
    """Python orders sets of strings by hashes that differ from process to process: in this one and another."""
    command = [sys.executable, str(ROOT / "tests" / "starts.py")]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    settings["PYTHONHASHSEED"] = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
    assert json.loads(subprocess.check_output(command, env=os.environ | settings, text=True)) == starts()


def test_closed_streams_read_and_write_nothing(monkeypatch: pytest.MonkeyPatch):
    """Python sets a stream to None if the caller closed it: <&- >&- 2>&-."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with clean_exit():
        print(sys.stdin.read())
        print("unseen", file=sys.stderr)
    with pytest.raises(SystemExit) as stop, clean_exit():
        raise ValueError("a wrong value")
    assert stop.value.code == 2
    for name in ("stdin", "stdout", "stderr"):
        getattr(sys, name).close()
