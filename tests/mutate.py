"""Mutation testing of nn/, peft/ and losses/: changes one node of the code at a time and runs the tests that reach it.

    python tests/mutate.py --count 320 --seed 0

A mutant is caught if a test fails or exceeds its time. A mutant that survives is equivalent to the original, or it
shows what no test checks. Each test file is traced once in a process of its own. A mutant of code inside a function
runs the tests that execute its statement; if there are more than MANY, those longer than LONG are left out. A mutant
of code that runs at import, or that no test executes, runs the test file of its name and, of the tests shorter than
SHORT, those that execute a function of its file or of no file; all of them if its file has no function. Tests marked
slow do not run.

The tests run on a copy of the tree, in a child forked from a process that has imported torch and pytest. The traces
are stored in the system's temporary folder under a hash of the code that they depend on.
"""

import argparse
import ast
import builtins
import contextlib
import copy
import gc
import hashlib
import importlib
import inspect
import itertools
import json
import os
import platform
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest

PACKAGES = ("nn", "peft", "losses")
PRELOADED = "bs4 huggingface_hub matplotlib.pyplot pandas safetensors.torch tokenizers torch.distributed.tensor"
SHORT, LONG, MANY = 0.3, 2.0, 200  # seconds, seconds, tests
MEMORY = 16 * 2**30  # bytes of address space of a child
SETTINGS = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "MPLBACKEND": "Agg"}
SETTINGS |= dict.fromkeys(("IMDB_DIR", "MINILM_DIR", "TOKENIZERS_DIR"), "")  # skips the tests marked slow
NOT_COPIED = shutil.ignore_patterns(".git", "runs", "imdb", "glove", "__pycache__", ".*_cache")
CACHE = Path(tempfile.gettempdir()) / f"mutate-{os.getuid()}"
CLOCK = itertools.count(10**9)  # modification times: a new one for each write, or Python would run the old bytecode

# fmt: off
OPERATORS = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn],
    ast.NotIn: [ast.In], ast.And: [ast.Or], ast.Or: [ast.And], ast.Add: [ast.Sub], ast.Sub: [ast.Add],
    ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult], ast.Mod: [ast.Mult], ast.Pow: [ast.Mult],
}
# fmt: on
PAIRS = ["max min", "any all", "sum mean", "zeros ones", "argmax argmin", "amax amin", "no_grad enable_grad"]
NAMES = dict(pair.split()[::step] for pair in PAIRS for step in (1, -1))
REMOVED_METHODS = """abs clamp clamp_min clone contiguous detach double eval exp flatten flip float log lower
    masked_fill mean removeprefix sigmoid softmax split sqrt squeeze strip sum tanh to train transpose unsqueeze"""


class Mutant(NamedTuple):
    """Replaces the node `old` by `new` in a statement or an expression `root` of a file."""

    file: str
    line: int  # of the statement; 0 if it runs at import
    root: ast.AST
    old: ast.AST
    new: ast.AST

    def texts(self) -> tuple[str, str]:
        """The code before and after: of long code 160 characters around the change."""
        before, after = ast.unparse(self.root), ast.unparse(replace(self.root, self.old, self.new))
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
        start = max(0, len(list(same)) - 60) if len(before) > 160 else 0
        return before[start : start + 160], after[start : start + 160]

    def apply(self, source: bytes) -> bytes:
        rows, root = source.splitlines(keepends=True), self.root
        start = sum(map(len, rows[: root.lineno - 1])) + root.col_offset
        end = sum(map(len, rows[: root.end_lineno - 1])) + root.end_col_offset
        return source[:start] + ast.unparse(replace(root, self.old, self.new)).encode() + source[end:]


def altered(node: ast.AST, **fields: Any) -> ast.AST:
    new = copy.copy(node)
    vars(new).update(fields)
    return new


def replace(node: Any, old: ast.AST, new: ast.AST) -> Any:
    """A copy of a node, or of a list of nodes, with `new` in place of `old`."""
    if node is old:
        return new
    if isinstance(node, list):
        return [replace(item, old, new) for item in node]
    if isinstance(node, ast.AST):
        return altered(node, **{field: replace(value, old, new) for field, value in ast.iter_fields(node)})
    return node


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what may replace a node."""
    match node:
        case ast.Compare(ops=[op]):
            yield from (altered(node, ops=[new()]) for new in OPERATORS[type(op)])
        case ast.BoolOp(op=op, values=values):
            yield altered(node, op=OPERATORS[type(op)][0]())
            yield from (altered(node, values=values[:i] + values[i + 1 :]) for i in range(len(values)))
        case ast.BinOp(op=ast.BitOr() | ast.BitAnd()):
            yield from (node.left, node.right)
        case ast.BinOp(op=op) | ast.AugAssign(op=op):
            yield from (altered(node, op=new()) for new in OPERATORS.get(type(op), ()))
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(value=float() as value):
            yield ast.Constant(value * (100 if value < 1e-3 else 2) if value else 1.0)
        case ast.IfExp():
            yield altered(node, body=node.orelse, orelse=node.body)
        case ast.comprehension(ifs=[test]):
            yield altered(node, ifs=[ast.UnaryOp(ast.Not(), test)])
        case ast.Attribute(attr=name) if name in NAMES:
            yield altered(node, attr=NAMES[name])
        case ast.Name(id=name) if name in NAMES:
            yield altered(node, id=NAMES[name])
        case ast.Call(func=func, keywords=keywords):
            yield from (altered(node, keywords=keywords[:i] + keywords[i + 1 :]) for i in range(len(keywords)))
            for i, (a, b) in enumerate(itertools.pairwise(keywords)):
                exchanged = [altered(a, value=b.value), altered(b, value=a.value)]
                yield altered(node, keywords=keywords[:i] + exchanged + keywords[i + 2 :])
            if isinstance(func, ast.Attribute) and func.attr in REMOVED_METHODS.split():
                yield func.value


def statement_variants(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yields `pass` for a statement that binds no local name, and the inverted condition of an `if`."""
    match statement:
        case ast.Assign(targets=targets) if all(isinstance(t, ast.Attribute | ast.Subscript) for t in targets):
            yield ast.Pass()
        case ast.Expr(value=ast.Call()) if "super().__init__" not in ast.unparse(statement):
            yield ast.Pass()
        case ast.AugAssign() | ast.Continue() | ast.Break() | ast.Delete():
            yield ast.Pass()
        case ast.If(test=test) if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield ast.UnaryOp(ast.Not(), test)


def roots(statement: ast.stmt) -> list[ast.AST]:
    """Returns a simple statement itself, of a block the expressions in its header."""
    match statement:
        case ast.FunctionDef(args=arguments, decorator_list=decorators):
            no_grad = [decorator for decorator in decorators if "no_grad" in ast.unparse(decorator)]
            return [default for default in arguments.defaults + arguments.kw_defaults if default] + no_grad
        case ast.With(items=items):
            return [item.context_expr for item in items]
        case ast.Assign() if ast.unparse(statement).endswith("| None"):  # the name of a type
            return []
        case ast.If(test=header) | ast.While(test=header) | ast.For(iter=header) | ast.Match(subject=header):
            return [header]
    return [] if hasattr(statement, "body") else [statement]


def descendants(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the node and all nodes below it, without text and annotations."""
    if not isinstance(node, ast.JoinedStr):
        yield node
        for child in ast.iter_child_nodes(node):
            if child is not getattr(node, "annotation", None):
                yield from descendants(child)


def find(file: str, parent: ast.AST, inside: bool = False) -> Iterator[list[Mutant]]:
    """Yields the mutants of each node that has any. inside: the code belongs to a function."""
    for child in ast.iter_child_nodes(parent):
        skipped = isinstance(child, ast.Raise | ast.Import | ast.ImportFrom | ast.expr)
        if skipped or getattr(child, "name", "") in ("__repr__", "extra_repr"):
            continue
        for root in roots(child) if isinstance(child, ast.stmt) else []:
            for node in descendants(root):
                new = [*variants(node), *(statement_variants(child) if node is root and inside else ())]
                if new:
                    yield [Mutant(file, child.lineno if inside else 0, root, node, variant) for variant in new]
        yield from find(file, child, inside or isinstance(child, ast.FunctionDef))


def draw(found: dict[str, list[list[Mutant]]], count: int, seed: int) -> Iterator[Mutant]:
    """Yields one mutant of each of `count` nodes: in proportion to the nodes of each file, at least 2 a file."""
    total = sum(map(len, found.values()))
    quota = {file: min(2, len(nodes)) for file, nodes in found.items()}
    while sum(quota.values()) < min(count, total):
        free = [file for file in found if quota[file] < len(found[file])]
        quota[max(free, key=lambda file: count * len(found[file]) / total - quota[file])] += 1
    for file, nodes in found.items():
        stream = random.Random(f"{seed} {file}")
        yield from (stream.choice(node) for node in stream.sample(nodes, quota[file]))


def trace(folders: tuple[str, ...], output: str) -> set[str]:
    """Makes each statement of a function in `folders` append "file:line" to a file when it first runs.

    Clear the returned set to repeat that. Call before the functions are imported.
    """
    seen, file, original = (
        set(),
        os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        SourceFileLoader.source_to_code,
    )

    def reached(spot: str) -> None:
        if spot not in seen:
            seen.add(spot)
            os.write(file, spot.encode())

    def marked(block: list[ast.stmt], path: str) -> Iterator[ast.stmt]:
        for statement in block:
            spot = f"{path}:{statement.lineno}\n"
            mark = ast.Expr(ast.Call(ast.Name("__reached__", ast.Load()), [ast.Constant(spot)], []))
            docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            yield from [statement] if docstring else [ast.copy_location(mark, statement), statement]

    def source_to_code(self: SourceFileLoader, data: bytes, path: str, **options: int) -> CodeType:
        if not path.startswith(folders):
            return original(self, data, path, **options)
        tree = ast.parse(data)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for node in {node for function in functions for node in ast.walk(function)}:
            for field in ("body", "orelse", "finalbody"):
                if isinstance(block := getattr(node, field, None), list):
                    setattr(node, field, list(marked(block, path)))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    builtins.__reached__, SourceFileLoader.source_to_code = reached, source_to_code
    return seen


class Recorder:
    """A pytest plugin that writes the seconds and the executed lines of each test, or None for one that fails."""

    def __init__(self, tree: Path, output: Path) -> None:
        sys.dont_write_bytecode = True
        self.tree, self.spots, self.output, self.tests = tree, tree / ".trace" / "spots", output, {}
        self.spots.parent.mkdir(exist_ok=True)
        arguments = tuple(f"{tree}/{package}/" for package in PACKAGES), str(self.spots)
        imports = "import ast, builtins, os\nfrom importlib.machinery import SourceFileLoader\n"
        code = f"from __future__ import annotations\n{imports}{inspect.getsource(trace)}\ntrace{arguments}\n"
        (self.spots.parent / "sitecustomize.py").write_text(code)  # traces the programs that a test starts
        os.environ |= {"PYTHONPATH": str(self.spots.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        self.seen = trace(*arguments)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        for module in [module for name, module in sys.modules.items() if name.startswith(PACKAGES)]:
            for function in vars(module).values():
                getattr(function, "cache_clear", int)()  # else a cached function runs in its first test only
        self.seen.clear()
        self.spots.write_text("")
        self.tests[nodeid] = {"seconds": time.monotonic(), "lines": {}}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tests[report.nodeid] = None

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if record := self.tests[nodeid]:
            record["seconds"] = time.monotonic() - record["seconds"]
            for spot in self.spots.read_text().splitlines():
                file, line = spot.removeprefix(f"{self.tree}/").split(":")
                record["lines"].setdefault(file, []).append(int(line))

    def pytest_sessionfinish(self) -> None:
        self.output.write_text(json.dumps(self.tests))


class Selection:
    """A pytest plugin that runs the given tests in their order, then new ones, each with a limit of time."""

    def __init__(self, tests: dict[str, float], known: set[str], failed: Path) -> None:
        sys.dont_write_bytecode = False  # stores the tests that pytest rewrites
        self.tests, self.known, self.failed = tests, known, failed
        signal.alarm(120)  # for the collection; the signal ends the process

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        rank = {test: number for number, test in enumerate(self.tests)}
        kept = [item for item in items if item.nodeid in rank or item.nodeid not in self.known]
        items[:] = sorted(kept, key=lambda item: rank.get(item.nodeid, len(rank)))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.alarm(int(20 + 10 * self.tests.get(nodeid, 1)))

    def pytest_exception_interact(self, node: pytest.Item) -> None:
        self.failed.write_text(node.nodeid)


def run(tree: Path, arguments: list[str], plugin: Callable[[], object]) -> int:
    """Runs pytest in a child on a copy of the project. Returns its exit status, -signal if a signal ended it."""
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # the programs that its tests left running
        return os.waitstatus_to_exitcode(status)
    status = 3
    try:
        os.setsid()
        os.chdir(tree)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        status = pytest.main(["-q", "-n0", "-p", "no:cacheprovider", *arguments], plugins=[plugin()])
    finally:
        os._exit(status)


def on_copies(root: Path, jobs: int, call: Callable[[Path, Any], Any], tasks: list[Any]) -> list[Any]:
    """Returns call(tree, task) of each task. Each of the threads has its own copy of the project."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder, ThreadPoolExecutor(jobs, f"{folder}/tree") as pool:

        def one(task: Any) -> Any:
            tree = Path(threading.current_thread().name)
            if not tree.exists():
                shutil.copytree(root, tree, ignore=NOT_COPIED)
            return call(tree, task)

        return list(pool.map(one, tasks))


def read_traces(root: Path, jobs: int) -> dict[str, Any]:
    """Returns the record of each test, None for one that fails. Traces the test files without a stored record."""
    files, outputs, traces = sorted(root.glob("tests/test_*.py")), {}, {}
    shared = b"".join(path.read_bytes() for path in sorted(root.rglob("*.py")) if path not in files)
    for path in files:
        digest = hashlib.sha256(shared + path.name.encode() + path.read_bytes()).hexdigest()
        outputs[f"tests/{path.name}"] = CACHE / f"{digest}.json"
    CACHE.mkdir(exist_ok=True)

    def record(tree: Path, file: str) -> None:
        print(f"traces {file}", flush=True)
        run(tree, [file], lambda: Recorder(tree, outputs[file]))

    on_copies(root, jobs, record, [file for file, output in outputs.items() if not output.exists()])
    for output in outputs.values():
        traces |= json.loads(output.read_text())
    failing = [test for test, record in traces.items() if record is None]
    print(f"{len(traces)} tests, {len(failing)} left out because they fail unchanged: {failing}", flush=True)
    return traces


def select(mutant: Mutant, traces: dict[str, Any]) -> dict[str, float]:
    """Returns the seconds of the tests to run: short ones first, and of these the files of the same name."""
    seconds = {test: record["seconds"] for test, record in traces.items() if record}
    lines = {test: traces[test]["lines"].get(mutant.file, ()) for test in seconds}
    names = mutant.file.removesuffix(".py").replace("__init__", "registry").split("/")
    own = tuple(f"tests/test_{name}.py" for name in names)
    chosen = [test for test in seconds if mutant.line in lines[test]]
    limit = LONG if len(chosen) > MANY else float("inf")
    if not chosen:
        reaching = [test for test in seconds if lines[test] or not traces[test]["lines"]]
        chosen, limit = reaching if any(lines.values()) else list(seconds), SHORT
    chosen = [test for test in chosen if seconds[test] < limit or test.startswith(own)]
    total = Counter()
    for test in chosen:
        total[test.split("::")[0]] += seconds[test]

    def order(test: str) -> tuple[bool, bool, float, str]:
        file = test.split("::")[0]
        return seconds[test] >= SHORT, file not in own, total[file], file

    return {test: seconds[test] for test in sorted(chosen, key=order)}


def attempt(tree: Path, mutant: Mutant, traces: dict[str, Any]) -> dict[str, Any]:
    """Runs the tests of a mutant on a tree. Returns the change and the outcome."""
    began, tests, path, failed = time.monotonic(), select(mutant, traces), tree / mutant.file, tree / ".failed"
    failed.write_text("")
    source, files = path.read_bytes(), dict.fromkeys(test.split("::")[0] for test in tests)

    def write(content: bytes) -> None:
        path.write_bytes(content)
        os.utime(path, (moment := next(CLOCK), moment))

    write(mutant.apply(source))
    status = run(tree, ["-x", *files], lambda: Selection(tests, set(traces), failed))
    write(source)
    outcome = {0: "survived", -signal.SIGALRM: "timeouts"}.get(status, "caught")
    original, mutated = mutant.texts()
    seconds = time.monotonic() - began
    print(f"{outcome}, {seconds:.1f} s, {mutant.file}:{mutant.root.lineno} {failed.read_text()}")
    print(f"    - {original}\n    + {mutated}", flush=True)
    change = {"file": mutant.file, "line": mutant.root.lineno, "original": original, "mutated": mutated}
    return change | {"tests": len(tests), "outcome": outcome}


def identity(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["file"], entry["original"], entry["mutated"]


def summary(nodes: dict[str, int], entries: list[dict[str, Any]], reasons: dict) -> dict[str, Any]:
    """Returns the content of the result file. reasons: why survivors of an earlier result are equivalent."""
    outcomes = ("caught", "timeouts", "survived")
    counts = Counter((entry["file"], entry["outcome"]) for entry in entries)
    files = {file: {"nodes": nodes[file]} | {key: counts[file, key] for key in outcomes} for file in nodes}
    survivors = [entry | {"reason": reasons.get(identity(entry), "")} for entry in entries]
    return {
        "command": shlex.join(["python", "tests/mutate.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": version("torch"), "pytest": version("pytest")},
        "tried": len(entries),
        **{key: sum(counts[file, key] for file in nodes) for key in outcomes},
        "files": files,
        "survivors": [entry for entry in survivors if entry.pop("outcome") == "survived"],
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=320, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--files", nargs="+", help="files to mutate, relative to the root; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="number of mutants that are tested at once")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="the project to mutate")
    parser.add_argument("--only-survivors", type=Path, metavar="FILE", help="repeat the survivors of this result")
    parser.add_argument("--out", type=Path, help="default: data/results/mutation.json; none with --only-survivors")
    given = parser.parse_args()
    given.out = given.out or (None if given.only_survivors else given.root / "data" / "results" / "mutation.json")
    return given


def preload() -> None:
    """Imports what the tests import, except the project."""
    os.environ |= SETTINGS
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.path.pop(0)  # the folder of this file: its conftest.py belongs to another tree
    for name in PRELOADED.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # so that collections in the children leave these objects alone


def main() -> None:
    given = options()
    before = given.only_survivors or given.out
    survivors = json.loads(before.read_text())["survivors"] if before.exists() else []
    reasons = {identity(entry): entry["reason"] for entry in survivors}
    preload()
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        root = Path(shutil.copytree(given.root, Path(folder) / "root", ignore=NOT_COPIED))
        files = given.files or [
            f"{name}/{path.name}" for name in PACKAGES for path in sorted((root / name).glob("*.py"))
        ]
        found = {file: list(find(file, ast.parse((root / file).read_bytes()))) for file in files}
        mutants = list(draw({file: nodes for file, nodes in found.items() if nodes}, given.count, given.seed))
        if given.only_survivors:
            every = itertools.chain.from_iterable(itertools.chain.from_iterable(found.values()))
            mutants = [mutant for mutant in every if (mutant.file, *mutant.texts()) in reasons]
        traces = read_traces(root, given.jobs)
        entries = on_copies(root, given.jobs, lambda tree, mutant: attempt(tree, mutant, traces), mutants)
    result = summary({file: len(nodes) for file, nodes in found.items()}, entries, reasons)
    print(f"{result['survived']} of {result['tried']} mutants survived")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
