import errno
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.files import open_tensors, read_json, replacing, write_json, write_tensors, write_text


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


def test_tensor_files_have_the_permissions_of_text_files(tmp_path: Path):
    write_tensors(tmp_path / "a", {"x": torch.zeros(1)})
    write_text(tmp_path / "b", "")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_full_disk_raises_and_leaves_the_previous_file_unchanged(tmp_path: Path):
    """A limit on the file size interrupts a write, as a full disk does."""
    path, old = tmp_path / "model.safetensors", {"x": torch.arange(7.0)}
    write_tensors(path, old)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(OSError, match=r"cannot write .*model\.safetensors: .*unchanged"):
            write_tensors(path, {"x": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(load_file(path)["x"], old["x"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path):
    with pytest.raises(OSError, match=r"cannot write .*a\.txt: .*No space left"), replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")


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
