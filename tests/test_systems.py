"""The program on systems that are not Linux with a UTF-8 console.

The modules and names that only Unix has are hidden from a whole run, in subprocesses, and none is used at the top of a
module. Consoles have several encodings, and pipes are closed early.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tiny_weights

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a tiny checkpoint, a sitecustomize.py that hides what only Unix has, and a run `first`."""
    path = tmp_path_factory.mktemp("systems")
    tiny_weights(path / "weights")
    (path / "hide").mkdir()
    (path / "hide" / "sitecustomize.py").write_text(HIDE)
    done = python(path, "train.py", *run_arguments(path), "--name", "first")
    assert (done.returncode, done.stderr) == (0, "")
    return path


def run_arguments(folder: Path) -> list[str]:
    """Returns the arguments of a run of a few seconds."""
    sizes = "--train-reviews 32 --validation-reviews 16 --test-reviews 16 --max-length 32 --epochs 1"
    weights = ["--weights", str(folder / "weights"), "--runs", str(folder / "runs")]
    return ["--model", "bert", "--peft", "lora", *weights, "--data", "demo", *sizes.split()]


def python(folder: Path, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    """Runs a script in a process where Unix's modules are hidden. settings: environment variables."""
    hide = {"PYTHONPATH": str(folder / "hide"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    encoding = settings.get("PYTHONIOENCODING", "utf-8")
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env=os.environ | hide | settings,
        capture_output=True,
        encoding=encoding,
        timeout=300,
    )


def test_the_modules_are_hidden(folder: Path):
    program = """
import signal
try:
    import resource
except ImportError:
    print(hasattr(signal, "SIGKILL"))
"""
    (folder / "probe.py").write_text(program)
    assert python(folder, str(folder / "probe.py")).stdout == "False\n"


def test_a_run_needs_nothing_that_only_unix_has(folder: Path):
    """The run of the fixture finished without a warning; its result has no peak memory, which is unknown there."""
    result = (folder / "runs/first/result.json").read_text(encoding="utf-8")
    assert '"peak_memory_bytes": null' in result


@pytest.mark.parametrize(
    ("encoding", "script"), [("cp1252", "train.py"), ("latin-1", "eval.py"), ("ascii", "train.py")]
)
def test_every_console_can_show_the_help(folder: Path, encoding: str, script: str):
    done = python(folder, script, "--help", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python {script} [--FLAG VALUE ...]\n")


def test_a_console_with_the_fewest_characters_can_show_a_run(folder: Path):
    done = python(folder, "train.py", *run_arguments(folder), "--name", "ascii", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "runs/ascii/result.json").is_file()


def test_every_console_can_show_an_answer(folder: Path):
    text = ["--text", "A “fine” café – naïve… α", "--explain"]
    done = python(folder, "eval.py", "--run", "runs/first", *text, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "because of: " in done.stdout


def test_a_text_may_begin_with_a_dash(folder: Path):
    done = python(folder, "eval.py", "--run", "runs/first", "--text", "-bad")
    assert (done.returncode, done.stderr) == (0, "")
    assert "negative" in done.stdout


def test_an_error_is_one_line_everywhere(folder: Path):
    done = python(folder, "eval.py", "--run", "runs/ä", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: runs/\\xe4 is not a run folder: it has no config.json\n"


@pytest.mark.parametrize("arguments", [["train.py", "--help"], ["eval.py", "--run", "runs/first"]])
def test_a_reader_may_close_the_pipe(folder: Path, arguments: list[str]):
    """`| head -1` ends the program without a traceback."""
    script, *rest = arguments
    environment = os.environ | {"PYTHONPATH": str(folder / "hide"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / script), *rest]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=300) in (0, 141)


def test_no_file_is_read_in_the_encoding_of_the_system(folder: Path):
    """Windows reads files in cp1252 unless their encoding is given."""
    settings = {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "always::EncodingWarning"}
    done = python(folder, "train.py", *run_arguments(folder), "--name", "encodings", **settings)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "EncodingWarning" in line and str(ROOT) in line]
    assert [line for line in lines if "site-packages" not in line] == []


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
    """Returns whether a call reads or writes a file as text: `path.read_text()`, `path.open("a")`, `open(path)`."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    arguments = call.args if isinstance(call.func, ast.Attribute) else call.args[1:]
    modes = [argument.value for argument in arguments[:1] if isinstance(argument, ast.Constant)]
    return name == "open" and (isinstance(call.func, ast.Name) or bool(modes)) and "b" not in str(modes)


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
    """Python orders sets of strings by hashes that differ from process to process."""
    command = [sys.executable, str(ROOT / "tests" / "starts.py")]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = [
        json.loads(subprocess.check_output(command, env=settings | {"PYTHONHASHSEED": seed}, text=True))
        for seed in ("0", "1")
    ]
    assert found[0] == found[1]
