"""The worked example of .github/CONTRIBUTING.md, and the metadata of the project."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny, token_batch

import train
from data.batches import Batch
from data.checked import read_json
from losses import OBJECTIVES, ObjectiveEntry

TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULE, LINE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def focal(monkeypatch) -> types.ModuleType:
    """Executes the example's module and adds its line to the table."""
    module = types.ModuleType("losses.focal")
    monkeypatch.setitem(sys.modules, "losses.focal", module)
    exec(compile(MODULE, "losses/focal.py", "exec"), module.__dict__)
    (entry,) = eval("{" + LINE + "}", {"ObjectiveEntry": ObjectiveEntry, "focal": module}).values()
    monkeypatch.setitem(OBJECTIVES, "focal", entry)
    return module


def test_the_example_is_its_equation(focal):
    model, (ids, mask) = tiny("lstm").eval(), token_batch([7, 4])
    labels = torch.tensor([1, 0])
    batch = Batch(ids, mask, labels, torch.arange(2))
    loss, logits = focal.objective(model, batch, focal.FocalOptions(focal_gamma=3.0))
    p = [row.softmax(0)[label] for row, label in zip(logits, labels.tolist(), strict=True)]
    torch.testing.assert_close(loss, sum(-((1 - p_i) ** 3) * p_i.log() for p_i in p) / 2)


def test_the_example_trains(focal, small_run, tmp_path):
    train.main([*small_run, "--loss", "focal", "--focal-gamma", "1.5", "--epochs", "1"])
    assert read_json(tmp_path / "runs/small/config.json")["options"]["focal_gamma"] == 1.5
    with pytest.raises(ValueError, match="--focal-gamma has no effect here; it is for --loss focal"):
        train.main([*small_run, "--name", "other", "--focal-gamma", "1.5"])


def requirements(name: str) -> list[str]:
    """Reads a requirements file without comments and without references to other files."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


def test_pyproject_has_the_dependencies_of_the_requirements_files():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == requirements("requirements.txt")
    assert project["optional-dependencies"]["dev"] == requirements("requirements-dev.txt")
    assert project["license"] == "MIT"
    assert Path(ROOT / project["readme"]).is_file()
