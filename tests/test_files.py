"""Atomic writes, outputs of every kind, and readers whose errors name the file."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from data.checked import read_json, show
from data.errors import user_message
from data.files import (
    filling,
    host_digits,
    is_stdout,
    open_tensors,
    replacing,
    user_path,
    write_json,
    write_output,
    write_tensors,
    write_text,
)
from data.pictures import new_figure, write_figure


def test_write_replaces_the_whole_file(tmp_path: Path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_previous_file_unchanged(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "one")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_library_writes_beside_a_temporary_file_is_deleted_with_it(tmp_path: Path):
    """safetensors writes .tmpXXXXXX, as large as the tensors, next to the path that it is given."""
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
        (temporary.parent / ".tmpAbCdEf").write_text("left")
        assert [path.name for path in tmp_path.iterdir()] == [temporary.parent.name]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "new"


def test_tensor_files_have_the_permissions_of_text_files(tmp_path: Path):
    write_tensors(tmp_path / "a", {"x": torch.zeros(1)})
    write_text(tmp_path / "b", "")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@contextmanager
def full_disk() -> Iterator[None]:
    """Limits the size of a file, which interrupts a write as a full disk does."""
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_raises_and_leaves_the_previous_file_unchanged(tmp_path: Path):
    path, old = tmp_path / "model.safetensors", {"x": torch.arange(7.0)}
    write_tensors(path, old)
    with full_disk(), pytest.raises(OSError, match=r"cannot write .*model\.safetensors: .*unchanged"):
        write_tensors(path, {"x": torch.zeros(10_000)})
    assert torch.equal(load_file(path)["x"], old["x"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_previous_picture_unchanged(tmp_path: Path):
    pytest.importorskip("matplotlib")
    figure, path = new_figure(width=2, height=2), tmp_path / "x.png"
    figure.subplots()
    write_figure(figure, path)
    old = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"cannot write .*x\.png: .*unchanged"):
        write_figure(figure, path)
    assert path.read_bytes() == old
    write_figure(figure, tmp_path / "new" / "y")
    assert (tmp_path / "new" / "y.png").read_bytes() == old
    with pytest.raises(ValueError, match="'abc' is not supported"):
        write_figure(figure, tmp_path / "x.abc")


def test_a_picture_with_letters_that_the_font_lacks_has_one_note(tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    figure = new_figure(width=2, height=2)
    figure.subplots().set_title("\U000f0000 and \U000f0001")  # of private use
    write_figure(figure, tmp_path / "x.svg")
    assert capsys.readouterr().out.count("\n") == 1
    figure.axes[0].set_title("plain")
    write_figure(figure, tmp_path / "x.svg")
    assert capsys.readouterr().out == ""


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path):
    with pytest.raises(OSError, match=r"cannot write .*a\.txt: .*No space left"), replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"cannot write .*b\.npy: 9 requested and 4"), replacing(tmp_path / "b.npy"):
        raise OSError("9 requested and 4 written")  # of numpy.save, without a number


def test_errors_of_readers_name_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    with (
        pytest.raises(FileNotFoundError, match=r"b\.safetensors does not exist"),
        open_tensors(tmp_path / "b.safetensors"),
    ):
        pass
    write_json(tmp_path / "a.json", {"ü": 1})
    assert read_json(tmp_path / "a.json") == {"ü": 1}


# -------------------------------------------------------------------------------------------------------- outputs


def test_a_folder_is_filled_once(tmp_path: Path):
    folder = tmp_path / "out"

    def write(name: str) -> None:
        with filling(folder, "--merge", last="config.json") as staging:
            staging.mkdir(parents=True)
            (staging / name).write_text("new")

    abandoned = folder / f".staging.{host_digits()}-{2**22 + 1}.tmp"  # above all process numbers
    abandoned.mkdir(parents=True)
    write("config.json")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match=rf"^--merge {folder} exists and contains config.json; name a new folder"):
        write("model.safetensors")
    (folder / "config.json").unlink()
    (folder / f".staging.{host_digits()}-{os.getpid()}.tmp").mkdir()  # of a process that runs
    with pytest.raises(ValueError, match=r"exists and contains \.staging\..*; name a new folder"):
        write("config.json")


def test_the_named_file_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with it is complete."""
    moved, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: moved.append(self.name) or replace(self, target))
    with filling(tmp_path / "out", "--merge", last="b") as staging:
        staging.mkdir(parents=True)
        for name in "abc":
            (staging / name).touch()
    assert sorted(moved) == ["a", "b", "c"]
    assert moved[-1] == "b"


def test_an_output_follows_links(tmp_path: Path):
    """The link stays, whether its target exists or not."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").write_text("old")
    for name, target in (("link", "there/old"), ("dangling", "there/new"), ("chain", "link")):
        (tmp_path / name).symlink_to(target)
        write_output(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target).read_text() == name
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"old", "new"}
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write_output(tmp_path / "loop", "")


def test_an_output_keeps_the_permissions_of_a_file(tmp_path: Path):
    path = tmp_path / "secret.csv"
    write_output(path, "one")
    path.chmod(0o600)
    write_output(path, "two\n")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two\n", 0o600)
    assert [p.name for p in tmp_path.iterdir()] == ["secret.csv"]


def test_a_temporary_folder_that_another_user_prepared_is_not_used(tmp_path: Path):
    victim, path = tmp_path / "victim", tmp_path / "shared" / "out.csv"
    victim.write_text("kept")
    prepared = path.with_name(f".out.csv.{host_digits()}-{os.getpid()}.tmp")
    prepared.mkdir(parents=True)
    (prepared / "file").symlink_to(victim)
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent.stat().st_mode & 0o077 == 0
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("kept", "new", False)
    assert [one.name for one in path.parent.iterdir() if one != prepared] == ["out.csv"]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_device_is_no_json_file(tmp_path: Path):
    (tmp_path / "result.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"result\.json is a device or a pipe, not a JSON file"):
        read_json(tmp_path / "result.json")


def test_no_message_has_control_characters():
    assert user_message(ValueError("a\x1b]0;b\x07\u202e\udcff é\n c")) == r"a\x1b]0;b\x07\u202e\udcff é c"


def test_an_output_into_a_pipe_or_a_device_is_written_to_it(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_output(pipe, "ünder\n")
    reader.join(timeout=10)
    assert found == ["ünder\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "null").symlink_to(os.devnull)
    write_output(tmp_path / "null", "text")
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)


def test_an_output_into_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        write_output(tmp_path, "text")


def test_a_file_that_cannot_be_replaced_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that is mounted, or in a folder of another user, cannot be replaced by a new one."""
    path = tmp_path / "mounted"
    path.write_text("a long text from before")

    def busy(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(target))

    monkeypatch.setattr(Path, "replace", busy)
    write_output(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(OSError, match="busy"):
        write_output(tmp_path / "absent", "new")


def test_a_dash_is_standard_output_in_utf8():
    names = ["-", "/dev/stdout", "/dev/fd/1"]
    assert all(map(is_stdout, names))
    write = "; ".join(f"write_output({name!r}, 'é…\\n'); print('after')" for name in names)
    program = f"print('before'); from data.files import write_output; {write}"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout == f"before\n{len(names) * 'é…NLafterNL'}".replace("NL", "\n").encode()
    assert not is_stdout("./-")


def test_a_tilde_without_a_home_directory_is_one_line():
    assert user_path("a/b") == Path("a/b")
    assert user_path("~") == Path.home()
    with pytest.raises(
        ValueError, match="~nobody-of-this-name/x: no home directory is known for ~; write the whole path"
    ):
        user_path("~nobody-of-this-name/x")


def test_a_value_in_a_message_has_at_most_the_given_length():
    assert show("a" * 10, 10) == "a" * 10
    assert show("a" * 11, 10) == "a" * 9 + "…"
