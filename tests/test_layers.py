"""Tests of the import graph: data <- nn <- peft, losses <- train.py, eval.py, without cycles.

The imports are read from the source of every module with `ast`, so that no module is executed.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

import peft

LAYERS = {"data": 0, "nn": 1, "peft": 2, "losses": 2, "train": 3, "eval": 3}
PROGRAMS = {"data.check": 3}  # modules above their package, which nothing imports
RUNTIME_PACKAGES = {"torch", "numpy", "pandas", "bs4", "safetensors", "tokenizers", "huggingface_hub", "tqdm"}
SLOW_OR_OPTIONAL = {
    "huggingface_hub",
    "matplotlib",
    "pyarrow",
    "triton",
}  # packages that a function may import
SLOW_MODULES = {"torch.distributed.fsdp", "torch.distributed.tensor"}  # of runtime packages, likewise
OPTIONAL = {"nn.triton_attention": {"triton"}}  # packages that a module uses if they are installed
PEERS = {
    "transformers",
    "bitsandbytes",
    "sentencepiece",
    "openvino",
    "onnx",
    "onnxruntime",
    "nncf",
}  # for comparison in tests/bench and tests/golden only


TOP = {
    *(
        ".ci",
        ".github",
        ".gitignore",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements.txt",
        "requirements-dev.txt",
    ),
    *("data", "eval.py", "losses", "nn", "peft", "tests", "train.py"),
}


class Import(NamedTuple):
    """One imported module, or one name imported from a module."""

    module: str  # absolute: "nn.attention"
    name: str  # "" for `import module`
    line: int
    in_function: bool

    @property
    def package(self) -> str:
        """Returns the first part of the module's name."""
        return self.module.partition(".")[0]


def find_imports(source: str) -> Iterator[Import]:
    """Yields the imports of a module, those inside functions included. Raises ValueError for relative imports."""
    pending = [(node, False) for node in ast.parse(source).body]
    while pending:
        node, in_function = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module=alias.name, name="", line=node.lineno, in_function=in_function)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"line {node.lineno}: relative import")
            for alias in node.names:
                yield Import(module=node.module, name=alias.name, line=node.lineno, in_function=in_function)
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        pending += [(child, in_function) for child in ast.iter_child_nodes(node)]


def module_name(path: Path) -> str:
    """Returns the dotted name of a file: nn/__init__.py -> "nn", tests/conftest.py -> "tests.conftest"."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def read_imports(group: str) -> dict[str, list[Import]]:
    """Returns the imports by module. group: "project" (all layers) or "tests" (only the files directly in tests/)."""
    patterns = {
        "project": [f"{name}{suffix}" for name in LAYERS for suffix in (".py", "/**/*.py")],
        "tests": ["tests/*.py"],
    }
    paths = sorted(path for pattern in patterns[group] for path in ROOT.glob(pattern))
    return {module_name(path): list(find_imports(path.read_text(encoding="utf-8"))) for path in paths}


def target(imported: Import, modules: set[str]) -> str | None:
    """Returns the module of the project that an import executes: a submodule, or else the module itself.

    A package's __init__, which Python also executes for a submodule, does not count.
    """
    submodule = f"{imported.module}.{imported.name}"
    return submodule if submodule in modules else imported.module if imported.module in modules else None


def graph(imports: dict[str, list[Import]]) -> dict[str, set[str]]:
    """Returns the modules of the project that each module imports."""
    targets = {name: {target(imported, set(imports)) for imported in found} for name, found in imports.items()}
    return {name: found - {None} for name, found in targets.items()}


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Returns the modules of a cycle, the first one again at the end; an empty list if there is none."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for other in sorted(edges[name]):
            if cycle := visit(other, [*path, name]):
                return cycle
        finished.add(name)
        return []

    return next((cycle for name in sorted(edges) if (cycle := visit(name, []))), [])


def against_the_arrow(importer: str, imported: str) -> bool:
    """Returns whether an import leads to a higher layer, or from peft to losses or back."""
    package, other = importer.partition(".")[0], imported.partition(".")[0]
    if imported in PROGRAMS:
        return True
    if package == other or {package, other} == {"train", "eval"}:
        return False
    return LAYERS[other] >= PROGRAMS.get(importer, LAYERS[package])


def describe(module: str, imported: Import) -> str:
    """Formats an import with its file and line."""
    return f"{module}, line {imported.line}: {imported.module} {imported.name}".rstrip()


def test_imports_follow_the_layers():
    edges = graph(read_imports("project"))
    wrong = [f"{name} imports {other}" for name in edges for other in edges[name] if against_the_arrow(name, other)]
    assert "\n".join(sorted(wrong)) == ""


def test_imports_have_no_cycle():
    assert " -> ".join(find_cycle(graph(read_imports("project")))) == ""


@pytest.mark.parametrize("group", ["project", "tests"])
def test_functions_import_only_slow_or_optional_packages(group: str):
    found = [
        describe(module, imported)
        for module, imports in read_imports(group).items()
        for imported in imports
        if imported.in_function and not {imported.package, imported.module} & (SLOW_OR_OPTIONAL | SLOW_MODULES)
    ]
    assert "\n".join(found) == ""


def test_the_project_imports_only_its_runtime_packages():
    allowed = {*LAYERS, *sys.stdlib_module_names, *RUNTIME_PACKAGES}
    found = [
        describe(module, imported)
        for module, imports in read_imports("project").items()
        for imported in imports
        if imported.package not in allowed | OPTIONAL.get(module, set())
        and not (imported.in_function and imported.package in SLOW_OR_OPTIONAL)
    ]
    assert "\n".join(found) == ""


def test_only_benchmarks_and_golden_files_import_the_packages_for_comparison():
    """Checks that all names imported from `peft` are ours: huggingface/peft has the same name as our package."""
    ours = {*dir(peft), *(path.stem for path in (ROOT / "peft").glob("*.py"))}
    found = [
        describe(module, imported)
        for module, imports in (read_imports("project") | read_imports("tests")).items()
        for imported in imports
        if imported.package in PEERS or (imported.module == "peft" and imported.name and imported.name not in ours)
    ]
    assert "\n".join(found) == ""


def test_the_reader_finds_imports_everywhere():
    source = (
        "import a.b, c\nfrom d import e as f, g\nif True:\n    import h\nclass K:\n    import i\n"
        "    def method(self):\n        try:\n            from j import k\n        finally:\n            pass\n"
    )
    found = {(i.module, i.name): i.in_function for i in find_imports(source)}
    assert [key for key, in_function in found.items() if in_function] == [("j", "k")]
    assert found.keys() == {("a.b", ""), ("c", ""), ("d", "e"), ("d", "g"), ("h", ""), ("i", ""), ("j", "k")}
    with pytest.raises(ValueError, match="line 1: relative import"):
        list(find_imports("from . import x"))


def test_violations_are_found():
    """A package may import its submodules; a submodule that imports a name of its package closes a cycle."""
    sources = {"nn": "from nn.a import A", "nn.a": "from nn import b\nimport data", "nn.b": "", "data": "import json"}
    edges = graph({name: list(find_imports(source)) for name, source in sources.items()})
    assert edges == {"nn": {"nn.a"}, "nn.a": {"nn.b", "data"}, "nn.b": set(), "data": set()}
    assert find_cycle(edges) == []
    assert find_cycle(edges | {"nn.b": {"nn"}}) == ["nn", "nn.a", "nn.b", "nn"]
    assert not against_the_arrow("peft.lora", "nn.quant")
    assert against_the_arrow("peft.lora", "losses.mlm")
    assert against_the_arrow("data.options", "nn")


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="no git checkout")
def test_nothing_else_is_at_the_top_level():
    """Outputs of benchmarks were once committed there."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {path.partition("/")[0] for path in tracked.splitlines()} == TOP
