"""Run folders: states, logs, checksums and locks."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
import torch

import train
from data import Source, load_splits
from data.batches import Batch, Share
from data.checked import read_json
from data.checksums import read_sealed_tensors, seal
from data.files import host_digits, new_folder, write_json, write_tensors, write_text
from data.locks import FILE as LOCK
from data.locks import FolderLock, waiting_lock, writing
from data.meter import Meter, Progress
from data.runs import LONG, Run, check_digests
from data.tables import epochs
from eval import main as evaluate


def test_loading_a_state_truncates_the_log(tmp_path: Path):
    run = Run.create(tmp_path / "r", {"options": {}})
    run.log("step", step=1)
    run.save_state({"x": torch.arange(3.0)}, {"step": 1, "sums": {"loss": 0.1 + 0.2}})
    run.log("step", step=2)
    with run.log_file.open("a") as file:
        file.write('{"event": "st')  # killed in the middle of a line
    tensors, progress = Run.open(tmp_path / "r").load_state()
    assert torch.equal(tensors["x"], torch.arange(3.0))
    assert progress["sums"]["loss"] == 0.1 + 0.2
    run.restore_log(progress)
    assert [json.loads(line)["step"] for line in run.log_file.read_text().splitlines()] == [1]


def test_the_state_of_another_run_is_refused_and_the_log_stays(small_run: list[str], monkeypatch: pytest.MonkeyPatch):
    for name, rate in (("small", "1e-3"), ("other", "1e-2")):
        monkeypatch.setattr("data.runs.command_line", lambda name=name: f"python train.py --name {name}")
        train.main([*small_run, "--epochs", "1", "--learning-rate", rate, "--name", name])
    run, other = Run.open("runs/small"), Run.open("runs/other")
    (run.folder / "result.json").unlink()
    log = run.log_file.read_bytes()
    shutil.copy(other.state_file, run.state_file)
    with pytest.raises(ValueError, match=r"state of another run \(.*--name other\); restore that of this run"):
        train.main(["--resume", str(run.folder)])
    assert run.log_file.read_bytes() == log


def test_without_a_saved_state_the_log_is_emptied(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.log("step", step=1)
    assert run.load_state() is None
    assert run.log_file.read_text() == ""


def test_a_damaged_state_is_replaced_by_the_one_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Run.create(tmp_path / "r", {})
    for step in (1, 2):
        run.log("step", step=step)
        run.save_state({"x": torch.full((100,), float(step))}, {"step": step})
    run.state_file.write_bytes(run.state_file.read_bytes()[:50])
    tensors, progress = run.load_state()
    assert (progress["step"], tensors["x"][0]) == (1, 1)
    run.restore_log(progress)
    assert [json.loads(line)["step"] for line in run.log_file.read_text().splitlines()] == [1]
    assert "state.safetensors is cut short or damaged" in capsys.readouterr().out


def test_a_damaged_state_does_not_replace_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The next state cannot be written; the readable one is still there."""
    run = Run.create(tmp_path / "r", {})
    for step in (1, 2):
        run.save_state({"x": torch.full((100,), float(step))}, {"step": step})
    run.state_file.write_bytes(run.state_file.read_bytes()[:50])
    assert run.load_state()[1]["step"] == 1
    with monkeypatch.context() as patch:
        patch.setattr("data.runs.write_sealed_tensors", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run.save_state({"x": torch.zeros(1)}, {"step": 3})
    assert run.load_state()[1]["step"] == 1


def test_a_data_file_that_was_added_is_refused_unless_it_has_test_reviews(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.record_data(("a", "b"), {"/d/train.csv": "1"})
    run.record_data(("a", "b"), {"/d/train.csv": "1", "/d/test.csv": "2"})
    run.record_data(("a", "b"), {"/d/train.csv": "1", "/d/My Test.csv": "2"})
    with pytest.raises(ValueError, match=r"/d/validation\.csv was added since .* was started; move it away, or start"):
        run.record_data(("a", "b"), {"/d/train.csv": "1", "/d/validation.csv": "2"})


def test_built_in_reviews_that_changed_are_noticed(tmp_path: Path):
    """Runs of older versions recorded no digest of them."""
    now = load_splits(Source(data="demo")).files
    assert [*now] == ["demo"]
    run, old = (Run.create(tmp_path / name, {}) for name in ("r", "old"))
    old.record_data(("a", "b"), {"/d/valid.csv": "1"})
    old.record_data(("a", "b"), now | {"/d/valid.csv": "1"})
    check_digests(old.config["files"], now)
    run.record_data(("a", "b"), now)
    run.record_data(("a", "b"), now)
    with pytest.raises(ValueError, match=r"^the built-in reviews changed since .*r was started; check out the commit"):
        run.record_data(("a", "b"), {"demo": "0"})
    with pytest.raises(ValueError, match=r"^demo changed since the run was started"):
        check_digests(now, {"demo": "0"})


def test_a_printed_command_quotes_its_path(tmp_path: Path):
    run = Run.create(tmp_path / "my run", {})
    run.release()
    with pytest.raises(ValueError, match=f"continue with --resume '{run.folder}', or choose another --name"):
        Run.create(run.folder, {})


def test_two_damaged_states_are_one_error_with_the_way_out(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.save_state({"x": torch.zeros(100)}, {})
    run.state_file.write_bytes(run.state_file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"state\.safetensors is cut short or damaged.*another --name"):
        run.load_state()


def test_a_changed_bit_of_a_state_is_noticed(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.save_state({"x": torch.arange(6.0), "n": torch.tensor(3), "e": torch.zeros(0)}, {"step": 1})
    sound = run.state_file.read_bytes()
    for bit in range(0, 8 * len(sound), 11):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        run.state_file.write_bytes(damaged)
        with pytest.raises(ValueError, match="no other state"):
            run.load_state()


DAMAGED = {
    "result.json": (lambda run: run.result, r"is not valid JSON \(.*\); delete it: --resume then scores again$"),
    "config.json": (lambda run: Run.open(run.folder), r"is not valid JSON \(.*\); restore it, or start another run$"),
    "log.jsonl": (epochs, r"is not valid JSON \(.*\); restore it .*, or leave the run out$"),
    "test.probabilities.safetensors": (
        lambda run: run.predictions("test"), r"is cut short or damaged \(.*\); delete it: the run can be scored with",
    ),
    "state/state.safetensors": (
        lambda run: read_sealed_tensors(run.state_file), r"is cut short or damaged \([^;]*\)$",  # load_state goes on
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_has_its_own_way_out(name: str, tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.release()
    use, message = DAMAGED[name]
    for text in ("{", "\0\n") if name == "log.jsonl" else ("", "{"):
        write_text(run.folder / name, text)
        with pytest.raises(ValueError, match=f"{re.escape(name)} {message}"):
            use(run)


def test_a_damaged_calibration_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run.create(tmp_path / "r", {})
    for text in ("", "{}", "\udcff"):
        (run.folder / "calibration.json").write_bytes(text.encode(errors="surrogateescape"))
        run.save_calibration({"temperature": 1.5})
        assert read_json(run.folder / "calibration.json") == {"temperature": 1.5}
    monkeypatch.setattr("data.runs.write_json", lambda *_: pytest.fail("written, although it is the same"))
    run.save_calibration({"temperature": 1.5})


@pytest.mark.parametrize("damage", [lambda text: text[:20], lambda text: text.replace("0.5", "0.6"), lambda text: ""])
def test_a_damaged_log_is_written_again_from_the_history(tmp_path: Path, damage: Callable[[str], str]):
    run = Run.create(tmp_path / "r", {})
    history = [{"epoch": 1, "val_acc": 0.5}]
    run.log("step", step=1)
    run.log("epoch", **history[0])
    run.save_state({"x": torch.zeros(1)}, {"history": history})
    run.log_file.write_text(damage(run.log_file.read_text()))
    run.restore_log(run.load_state()[1])
    assert [json.loads(line) for line in run.log_file.read_text().splitlines()] == [{"event": "epoch", **history[0]}]


def test_a_lost_log_that_was_empty_is_written_again(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.save_state({"x": torch.zeros(1)}, {"history": []})
    run.log_file.unlink()
    run.restore_log(run.load_state()[1])
    assert run.log_file.read_text() == ""


def test_a_state_from_before_there_were_checksums_is_read(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    progress = json.dumps({"step": 7, "log_bytes": 0})
    write_tensors(run.state_file, {"x": torch.ones(2)}, {"format": "pt", "progress": progress})
    tensors, found = run.load_state()
    assert (found["step"], tensors["x"].tolist()) == (7, [1, 1])


NO_TEXT = ["best_epoch", "epoch", "history", "validation", "sums", "seconds", "scaler", "options"]  # have other types
PROGRESSES = {"{}": "log_bytes", '{"step": 7}': "log_bytes", '{"log_bytes": -1}': "log_bytes", "{": "is not valid JSON"}
PROGRESSES |= {'{"log_bytes": "0"}': "log_bytes", "[]": "must be an object", "3": "must be an object"}
PROGRESSES |= {f'{{"log_bytes": 0, "{name}": "/elsewhere"}}': f"{name} = '/elsewhere' must be " for name in NO_TEXT}
PROGRESSES |= {f'{{"log_bytes": 0, "{name}": -1}}': f"{name} of its progress is -1" for name in ("epoch", "num_splits")}


@pytest.mark.parametrize(("progress", "problem"), PROGRESSES.items())
def test_a_state_without_the_length_of_the_log_or_with_values_of_another_type_is_damaged(
    progress: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Run.create(tmp_path / "r", {})
    damaged = {"format": "pt", "progress": progress}
    write_tensors(run.state_file, {"x": torch.ones(2)}, damaged)
    with pytest.raises(ValueError, match=rf"state\.safetensors is damaged: .*{problem}.*; no other state .* --name$"):
        run.load_state()
    run.save_state({"x": torch.zeros(2)}, {"step": 1})
    run.state_file.replace(run.state_before)
    write_tensors(run.state_file, {"x": torch.ones(2)}, damaged)
    capsys.readouterr()
    tensors, found = run.load_state()
    assert (found["step"], tensors["x"].tolist()) == (1, [0, 0])
    shown = capsys.readouterr().out
    assert re.fullmatch(rf"warning: .* is damaged: .*{problem}.*; trying the state before it\n", shown)


@pytest.mark.parametrize("name", ["scaler", "seconds"])
def test_a_state_without_checksum_that_lacks_a_field_is_refused(name: str, small_run: list[str]):
    train.main([*small_run, "--epochs", "1"])
    run = Run.open("runs/small")
    (run.folder / "result.json").unlink()
    tensors, metadata = read_sealed_tensors(run.state_file)
    progress = json.loads(metadata["progress"])
    del progress[name]
    write_tensors(run.state_file, tensors, {"format": "pt", "progress": json.dumps(progress)})
    with pytest.raises(ValueError, match=rf"state\.safetensors is damaged: its progress has no {name}; restore it, or"):
        train.main(["--resume", str(run.folder)])


def test_a_changed_bit_of_a_config_is_noticed(tmp_path: Path):
    run = Run.create(tmp_path / "r", {"options": {"learning_rate": 1e-3}})
    path = tmp_path / "r/config.json"
    sound = path.read_bytes()
    for bit in range(0, 8 * len(sound), 11):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"config\.json"):
            _ = run.config


def test_a_run_has_one_owner(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    left = tmp_path / "r/state/.state.safetensors.1.tmp"  # of a killed process
    left.mkdir(parents=True)
    (left / ".tmpAbCdEf").touch()  # safetensors writes it beside the path that it is given
    with pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on "):
        Run.create(tmp_path / "r", {})
    run.release()
    with pytest.raises(ValueError, match="exists; continue with --resume"):
        Run.create(tmp_path / "r", {})
    assert list(left.parent.iterdir()) == []


def test_names_that_cannot_be_run_folders_have_a_way_out(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("absent")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "dangling", "loop", "file/r"):
        with pytest.raises(OSError, match=f"{name} cannot be created as a folder .*; choose another --name or --runs$"):
            Run.create(tmp_path / name, {})
    with pytest.raises(OSError, match=r"dangling cannot be created as a folder \(File exists\); choose another --runs"):
        new_folder(tmp_path / "dangling/r")

    (tmp_path / "locked" / LOCK).mkdir(parents=True)
    with pytest.raises(OSError, match=rf"locked/{LOCK} cannot be written \(Is a directory\); delete it, or choose"):
        Run.create(tmp_path / "locked", {})
    with (
        pytest.raises(OSError, match=r"x cannot be written \(No space left on device\); free some space$"),
        writing(Path("x")),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=r"make r writable, or copy it and use the copy$"), writing(Path("r/.lock")):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, *_: Any, exist_ok: bool = False, **__: Any) -> None:
        if not exist_ok:
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"/bert cannot be created \(Read-only file system\); choose another --runs"):
        new_folder(tmp_path / "bert")


@pytest.mark.parametrize("part", ["state", "best", "tokenizer"])
def test_a_part_of_a_run_that_is_a_file_is_named_before_the_log_is_emptied(part: str, tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.log("step", step=1)
    run.release()
    (run.folder / part).touch()
    with pytest.raises(ValueError, match=f"r/{part} is not a folder; restore it, or choose another --name"):
        run.lock()
    assert run.log_file.read_text()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_run_removes_temporary_files_of_killed_processes_from_the_cache(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owners = {f"{host_digits()}-{number}" for number in (ended.pid, os.getpid(), "x")}
    owners |= {f"00000000-{ended.pid}"}  # on another machine
    owners |= {f"{host_digits()}-{number}-ab_c1d2e" for number in (ended.pid, os.getpid())}  # of `replacing`
    removed = {f"{host_digits()}-{ended.pid}{end}" for end in ("", "-ab_c1d2e")}
    for owner in owners:
        write_text(tmp_path / f".cache/shards/.a.npy.{owner}.tmp/file", "")
    Run.create(tmp_path / "r", {}).release()
    left = {path.name for path in tmp_path.rglob(".*.tmp")}
    assert left == {f".a.npy.{owner}.tmp" for owner in owners - removed}


@pytest.mark.parametrize(
    "part", ["log.jsonl", LOCK, ".best", ".best-before", "state", "best", "tokenizer", "config.json"]
)
def test_a_run_with_links_is_not_continued(part: str, tmp_path: Path):
    """The run may be of a stranger, and an archive keeps links."""
    run = Run.create(tmp_path / "r", {})
    run.release()
    place = run.folder / part
    if place.exists():
        place.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("{}") if "." in part[1:] or part == LOCK else elsewhere.mkdir()
    place.symlink_to(elsewhere)
    with pytest.raises(
        ValueError,
        match=f"r/{part} is a link, through which the run would change files elsewhere; replace it by a copy",
    ):
        run.lock()
    assert elsewhere.is_dir() or elsewhere.read_text() == "{}"
    if part == LOCK:
        with pytest.raises(OSError, match="cannot be written"):
            FolderLock(run.folder)
        assert elsewhere.read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("files", 5), ("files", [[1]]), ("labels", 5), ("labels", [[1]]), ("backbone", {"a": 1}), ("agents", "a")],
)
def test_a_value_of_config_json_of_another_type_is_named(name: str, value: Any, tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    write_json(run.config_file, seal(run.config | {name: value}))
    with pytest.raises(ValueError, match=rf"r/config\.json: {name} = .* must be "):
        _ = run.config


def test_only_what_a_failed_start_created_is_discarded(tmp_path: Path):
    run = Run.create(tmp_path / "new", {})
    run.tokenizer.mkdir()
    assert run.discard()
    assert not run.folder.exists()

    logged = Run.create(tmp_path / "logged", {})
    logged.log("step", step=50)
    saved = Run.create(tmp_path / "saved", {})
    saved.save_state({"x": torch.zeros(1)}, {})
    taught = Run.create(tmp_path / "taught", {})
    (taught.folder / "teacher.npy").touch()
    Run.create(tmp_path / "other", {}).release()
    for kept in (logged, saved, taught, Run.open(tmp_path / "other")):
        before = sorted(kept.folder.rglob("*"))
        assert not kept.discard()
        assert sorted(kept.folder.rglob("*")) == before


def test_a_folder_with_other_files_is_no_place_for_a_run(tmp_path: Path):
    """Temporary files of other programs stay; what a killed start left does not count."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("notes.txt", ".work.tmp"):
        (mine / name).touch()
    with pytest.raises(ValueError, match=r"mine is no run and holds notes\.txt; choose another --name"):
        Run.create(mine, {})
    assert {path.name for path in mine.iterdir()} == {"notes.txt", ".work.tmp"}
    (mine / "notes.txt").unlink()
    (mine / LOCK).touch()
    Run.create(mine, {}).release()


def test_a_folder_inside_a_run_and_a_checkpoint_are_told_from_a_run(tmp_path: Path):
    run, checkpoint = Run.create(tmp_path / "r", {"options": {}}).folder, tmp_path / "checkpoint"
    for part in ("best", "state", "tokenizer", "best/base"):
        write_json(run / part / "config.json", {"model_type": "bert"})  # as best/ has one
        way_out = re.escape(f"{run / part} is inside the run {run}; give ")
        with pytest.raises(FileNotFoundError, match=f"^{way_out}--run {run}$"):
            evaluate(["--run", str(run / part)])
        with pytest.raises(FileNotFoundError, match=f"^{way_out}--compare {run}$"):
            evaluate(["--compare", str(run), str(run / part)])
        with pytest.raises(FileNotFoundError, match=f"^{way_out}--resume {run}$"):
            train.main(["--resume", str(run / part)])
    write_json(checkpoint / "config.json", {"model_type": "bert"})
    with pytest.raises(ValueError, match=f"^{checkpoint} is a checkpoint, not a run folder; --weights {checkpoint}"):
        Run.open(checkpoint)
    nested = Run.create(run / "nested", {})  # of --runs r
    assert Run.open(nested.folder).folder == nested.folder


def test_default_names_do_not_collide(tmp_path: Path):
    names = [new_folder(tmp_path / "runs" / "bert").name for _ in range(3)]
    assert names == ["bert", "bert-2", "bert-3"]


def test_meter_resumes_from_its_sums():
    sums = {"loss": 3.0, "right acc": 4, "of acc": 5, "count": 5, "tokens": 60, "seconds": 2.0}
    meter = Meter(sums, seconds=100.0, save_minutes=0.0)
    assert meter.record() == {"train_loss": 3 / 5, "train_acc": 4 / 5, "tokens_per_second": 30}
    assert meter.total() >= 100
    assert meter.save_is_due()
    assert not Meter(None, seconds=0.0, save_minutes=10.0).save_is_due()


def test_a_state_is_due_at_an_interval_from_the_last_one(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("data.meter.time.perf_counter", lambda: now[0])
    meter, due = Meter(None, seconds=0.0, save_minutes=1.0), []
    for now[0] in (40.0, 70.0, 100.0, 129.0, 130.0):
        due.append(meter.save_is_due())
    assert due == [False, True, False, False, True]


def test_the_progress_of_an_older_version_keeps_its_number_of_passes():
    assert Progress.load({"epoch": 2, "pieces": 4}) == Progress(epoch=2, num_splits=4)
    assert Progress.load({"num_splits": 2, "unknown": 1}).num_splits == 2
    assert Progress.load({}).num_splits == 1


def test_a_rank_without_rows_adds_no_tokens():
    """It computes the first row, which another rank counts."""
    rows = torch.arange(2)
    whole = Batch(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool), rows, rows)
    meter = Meter(None, seconds=0.0, save_minutes=0.0)
    for start, stop, tokens in ((0, 0, 0), (0, 2, 6)):
        meter.add(whole._replace(share=Share(whole, start, stop, seed=None)), torch.tensor(0.0), {})
        assert (meter.sums["count"], meter.sums["tokens"]) == (stop, tokens)


def test_a_failed_start_of_more_than_a_minute_keeps_its_tokenizer(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.tokenizer.mkdir()
    run.created -= LONG + 1
    assert not run.discard()
    assert run.tokenizer.is_dir()
    run.tokenizer.rmdir()
    assert run.discard()


def test_what_is_no_text_in_a_lock_is_not_shown(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    (run.folder / LOCK).write_bytes(b"\x1b[2J")
    with pytest.raises(ValueError, match=r"r is in use; wait until it ends"):
        run.lock()


def test_a_process_that_waits_for_a_folder_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    lock, waits = FolderLock(tmp_path), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            lock.release()

    monkeypatch.setattr("data.locks.time.sleep", sleep)
    with waiting_lock(tmp_path):
        assert len(waits) == 3
    assert capsys.readouterr().out.count("waiting until it is finished") == 1


def test_a_lock_names_its_owner_alone(tmp_path: Path):
    """The file may have the longer name of an earlier one."""
    (tmp_path / LOCK).write_text("process 1 on " + "a" * 100)
    lock = FolderLock(tmp_path)
    with pytest.raises(ValueError, match=rf"is in use by process {os.getpid()} on {re.escape(gethostname())}; wait"):
        FolderLock(tmp_path)
    lock.release()
