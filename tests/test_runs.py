import dataclasses
import json

import pytest
import torch
from conftest import ROOT

from data.flags import known, layer, option, parse_flags
from data.runs import Meter, Run, results_table
from nn.files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Options:
    rate: float = option(0.1, "one", "50% of it")
    size: int = option(3, "one", "a size")
    name: str = option("", "two", "a name")
    fast: bool = option(False, "two", "a switch")


def test_flags_are_the_fields():
    assert parse_flags(Options, [], "") == {}
    given = parse_flags(Options, ["--rate", "2", "--name", "x", "--fast"], "")
    assert given == {"rate": 2.0, "name": "x", "fast": True}
    assert parse_flags(Options, ["--no-fast"], "") == {"fast": False}
    for wrong in (["--rat", "1"], ["--size", "1.5"], ["--size"]):
        with pytest.raises(SystemExit) as stop:
            parse_flags(Options, wrong, "")
        assert stop.value.code == 2


def test_later_layers_win_and_are_remembered():
    options, origins = layer(Options, [("model", {"rate": 1.0, "size": 5}), ("command line", {"rate": 2.0})])
    assert options == Options(rate=2.0, size=5)
    assert origins == {"rate": "command line", "size": "model", "name": "default", "fast": "default"}


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="unknown colour 'blue'; known: red, green"):
        known("colour", "blue", {"red": 1, "green": 2})


def test_state_and_log_go_back_together(tmp_path):
    run = Run.create(tmp_path / "r", {"options": {}})
    run.log("step", step=1)
    run.save_state({"x": torch.arange(3.0)}, {"step": 1, "sums": {"loss": 0.1 + 0.2}})
    run.log("step", step=2)
    with run.log_file.open("a") as file:
        file.write('{"event": "st')  # killed in the middle of a line
    tensors, progress = Run.open(tmp_path / "r").load_state()
    assert torch.equal(tensors["x"], torch.arange(3.0))
    assert progress["sums"]["loss"] == 0.1 + 0.2
    assert [json.loads(line)["step"] for line in run.log_file.read_text().splitlines()] == [1]


def test_without_a_state_the_log_starts_anew(tmp_path):
    run = Run.create(tmp_path / "r", {})
    run.log("step", step=1)
    assert run.load_state() is None
    assert run.log_file.read_text() == ""


def test_a_damaged_state_is_named(tmp_path):
    run = Run.create(tmp_path / "r", {})
    run.save_state({"x": torch.zeros(100)}, {})
    run.state_file.write_bytes(run.state_file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"state\.safetensors is cut short or damaged"):
        run.load_state()


def test_meter_resumes_from_its_sums():
    meter = Meter({"loss": 3.0, "right acc": 4, "of acc": 5, "count": 5, "tokens": 60, "seconds": 2.0}, 100.0, 0.0)
    assert meter.record() == {"train_loss": 3 / 5, "train_acc": 4 / 5, "tokens_per_second": 30}
    assert meter.total() >= 100
    assert meter.save_is_due()
    assert not Meter(None, 0.0, 10.0).save_is_due()


def test_every_published_row_has_its_command_seed_versions_and_log():
    from data.runs import RESULTS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in RESULTS.glob("*.json"):
        row = json.loads(path.read_text())
        assert row["command"].startswith("python train.py ")
        assert {"seed"} <= row["options"].keys()
        assert row["versions"]["torch"]
        assert path.with_suffix(".log.jsonl").exists()
        assert row["row"] == path.stem
        assert readme.count(f"| {row['row'].partition('@')[0]} |") == 1


def test_seeds_of_a_row_stand_in_one_line(tmp_path):
    for name, seed, accuracy in (("a", 42, 0.5), ("a@43", 43, 0.6), ("b", 42, 0.9)):
        result = {
            "row": name,
            "parameters": {"trained": 3_140_000, "total": 14_000_000},
            "options": {"seed": seed},
            "seconds": 60.0,
        }
        result |= {"command": "python train.py", "commit": "0123456789", "test": {"accuracy": accuracy}}
        (tmp_path / f"{name}.json").write_text(json.dumps(result | {"validation": {"accuracy": accuracy}}))
    write_json(tmp_path / "c-other.json", read_json(tmp_path / "b.json"))
    first, second = results_table(["a", "b"], tmp_path).splitlines()[2:]
    mean = "0.5500 ± 0.0707"
    assert first == f"| a | 3.14 M of 14 M | {mean} | **{mean}** | 42 43 | 1 | 0123456 | `python train.py` |"
    assert "| **0.9000** | 42 |" in second
    write_json(tmp_path / "b.json", read_json(tmp_path / "b.json") | {"options": {"seed": 42, "test_reviews": 2500}})
    assert "| **0.9000 of 2,500** | 42 |" in results_table(["b"], tmp_path)
