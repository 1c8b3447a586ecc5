"""Where checkpoints and adapters come from: directories, pickled files, caches, and hub ids, through the real
huggingface_hub, against a server on 127.0.0.1 with the hub's layout."""

import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import assert_same, change_json, tiny, tiny_weights, weights
from hub_client import answers
from safetensors.torch import load_file, save_file

import peft
from data.checked import read_json
from data.files import write_json
from data.hub import (
    ADAPTER_CONFIG,
    BIN,
    BIN_INDEX,
    CONFIG,
    WEIGHTS,
    adapter_base,
    adapter_method,
    fetch_config,
    find_adapter,
    find_tokenizer,
    recorded_base,
    split_revision,
)
from data.weight_files import WeightFile, converted_path, load_pickled, weight_files
from nn.checkpoint import load_pretrained

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(BaseHTTPRequestHandler):
    """Serves the hub's layout. repos: {"some/name": {revision: {file: bytes}}}. refused: {repository: HTTP status}.
    cut: files whose first transfer ends half-way. requests: the log of all requests. settings: environment variables of
    a client."""

    repos: dict[str, dict[str, dict[str, bytes]]]
    gated: frozenset[str]
    refused: dict[str, int]
    cut: set[str]
    requests: list[str]
    settings: dict[str, str]

    def log_message(self, *_: object) -> None:
        pass

    def send_headers(self, status: int, headers: dict[str, str]) -> None:
        """Sends the status line and the headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Sends a whole response."""
        self.send_headers(status, {"Content-Length": str(len(body))} | (headers or {}))
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        """Sends an error with the code that huggingface_hub reads."""
        self.answer(status, headers={"X-Error-Code": code, "X-Error-Message": code} | (headers or {}))

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        listing = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/(?:revision|tree)/(\w+))?", path)
        file = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/(\w+)/(.+)", path)
        match = listing or file
        if match is None or match[1] not in self.repos:
            return self.answer_error(404, "RepoNotFound")
        if match[1] in self.gated:
            return self.answer_error(403, "GatedRepo")
        if match[1] in self.refused:
            return self.answer_error(self.refused[match[1]], "Refused")
        revision = match[2] or "main"
        revision = next((name for name, commit in COMMITS.items() if commit == revision), revision)
        if revision not in self.repos[match[1]]:
            return self.answer_error(404, "RevisionNotFound")
        files = self.repos[match[1]][revision]
        if listing:
            return self.send_listing(match[1], files=files, commit=COMMITS[revision], tree="/tree/" in path)
        return self.send_file(match[3], files=files, commit=COMMITS[revision])

    do_HEAD = do_GET

    def send_listing(self, repo: str, files: dict[str, bytes], commit: str, tree: bool) -> None:
        """Sends the JSON of a repository: its tree, or its metadata."""
        if tree:
            value = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            value = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []}
        self.answer(200, body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def send_file(self, name: str, files: dict[str, bytes], commit: str) -> None:
        """Sends a file, or the part that a Range header requests, or the first half of a file in `cut`."""
        if name not in files:
            return self.answer_error(404, code="EntryNotFound", headers={"X-Repo-Commit": commit})
        data, start = files[name], 0
        if match := re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range", "")):
            start = int(match[1])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and name in self.cut:
            self.cut.discard(name)
            self.send_headers(200, {"Content-Length": str(len(data))} | headers)
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            return self.connection.close()
        return self.answer(206 if start else 200, body=data[start:], headers=headers)


def published_repos(folder: Path) -> dict[str, dict[str, dict[str, bytes]]]:
    """Returns variants of a checkpoint directory as repositories: {name: {revision: {file: bytes}}}."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = files | {"config.json": files["config.json"].replace(b'"negative"', b'"awful"')}
    buffer = io.BytesIO()
    torch.save(load_file(folder / "model.safetensors"), buffer)
    pickled = {name: data for name, data in files.items() if name != "model.safetensors"}
    pickled["pytorch_model.bin"] = buffer.getvalue()
    return {
        "some/model": {"main": files, "v1": other},
        "some/pickled": {"main": pickled},
        "some/gated": {"main": files},
        "some/foreign": {"main": files | {"config.json": json.dumps({"model_type": "gpt2"}).encode()}},
        "some/damaged": {"main": files | {"model.safetensors": files["model.safetensors"][:1000]}},
        "some/empty": {"main": {"README.md": b"nothing"}},
        "some/gguf": {"main": {"config.json": files["config.json"], "model.gguf": b"GGUF"}},
        "some/adapter": {"main": published_adapter(folder.parent / "adapter")},
    }


def published_adapter(folder: Path) -> dict[str, bytes]:
    """Returns the files of an adapter over some/model, revision v1, as huggingface/peft writes them."""
    peft.save_adapter(peft.apply(tiny("bert", vocab_size=300), "lora", rank=2), folder, "some/model@v1")
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")
    return {name: (folder / name).read_bytes() for name in (ADAPTER_CONFIG, "adapter_model.bin")}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[type[Hub]]:
    """Starts the server. Returns its handler class."""

    class Server(Hub):
        repos = published_repos(tiny_weights(tmp_path / "published"))
        gated, refused, cut, requests = frozenset({"some/gated"}), {}, set(), []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Server.settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    yield Server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(hub: type[Hub], *questions: tuple[str, str], **settings: str) -> list[str]:
    """Calls each function with a hub id, in one new process. Returns a value or an error as text for each.

    questions: "load", or the name of a function of data/hub.py, and the hub id.  settings: environment variables that
    replace those of the fixture.
    """
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return answers(*questions, settings=environment | hub.settings | settings)


def load(hub: type[Hub], *names: str, **settings: str) -> list[str]:
    """Loads each hub id. Returns a line for each."""
    return ask(hub, *(("load", name) for name in names), **settings)


def fetched(hub: type[Hub]) -> set[str]:
    """Returns the names of the files whose contents were requested."""
    return {path.rpartition("/")[2] for path in hub.requests if path.startswith("GET") and "/resolve/" in path}


def test_a_model_is_fetched_once_and_then_loaded_offline(hub: type[Hub]):
    (first,) = load(hub, "some/model")
    assert first.startswith("sum ")
    assert not any("pytorch_model.bin" in path for path in hub.requests)
    hub.requests.clear()
    assert load(hub, "some/model", HF_HUB_OFFLINE="1") == [first]
    assert hub.requests == []


def test_a_revision_is_fetched(hub: type[Hub], tmp_path: Path):
    found, missing = load(hub, "some/model@v1", "some/model@v2")
    assert found.startswith("sum ")
    (config,) = Path(tmp_path / "hf").rglob(f"snapshots/{COMMITS['v1']}/config.json")
    assert "awful" in config.read_text()
    assert missing.startswith("error hub id 'some/model' has no revision 'v2'")


def test_a_repository_with_only_a_pickle_is_converted_once(hub: type[Hub], tmp_path: Path):
    first, again = load(hub, "some/pickled", "some/model")
    assert first == again
    assert len(list((tmp_path / "cache").rglob("model.safetensors"))) == 1
    assert load(hub, "some/pickled", HF_HUB_OFFLINE="1") == [first]


def test_an_interrupted_transfer_is_tried_again(hub: type[Hub]):
    hub.cut.add("model.safetensors")
    (line,) = load(hub, "some/model")
    assert line.startswith("sum ")
    assert [path.rpartition("/")[2] for path in hub.requests if path.startswith("GET")].count("model.safetensors") == 2


def test_every_failure_is_one_line(hub: type[Hub]):
    messages = {
        "some/nothing": "hub id 'some/nothing' does not exist, or is private and needs HF_TOKEN",
        "some/gated": "hub id 'some/gated' is gated: request access",
        "some/foreign": "model_type 'gpt2' is not supported; supported: attention_lstm, bert, capsule_lstm, cnn",
        "some/damaged": "is cut short or damaged",
    }
    for line, message in zip(load(hub, *messages), messages.values(), strict=True):
        assert line.startswith("error ")
        assert message in line


def test_without_a_network_the_error_names_the_remedy(hub: type[Hub]):
    (line,) = load(hub, "some/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("error 'some/model' is neither a directory here nor complete in the hub cache")


def test_a_refusal_of_the_hub_is_no_missing_network(hub: type[Hub]):
    ways_out = {403: "set HF_TOKEN if access is limited", 429: "try again later"}
    hub.refused = {f"some/refused-{status}": status for status in ways_out}
    hub.repos |= dict.fromkeys(hub.refused, hub.repos["some/model"])
    for line, (status, way_out) in zip(load(hub, *hub.refused), ways_out.items(), strict=True):
        assert re.search(
            rf"and the hub answers with an error \(.*{status}.*\); give the path of a directory, or {way_out}$", line
        )


def call(hub: type[Hub], function: str, name: str, **settings: str) -> str:
    """Calls a function of data/hub.py with a hub id. Returns its value or error as text."""
    (line,) = ask(hub, (function, name), **settings)
    return line


def test_the_config_is_fetched_alone(hub: type[Hub]):
    assert Path(call(hub, "fetch_config", "some/foreign")).read_text() == '{"model_type": "gpt2"}'
    assert fetched(hub) == {"config.json"}


def test_the_tokenizer_is_fetched_without_weights(hub: type[Hub]):
    assert (Path(call(hub, "find_tokenizer", "some/model")) / "tokenizer.json").is_file()
    assert not [name for name in fetched(hub) if name.startswith(("model", "pytorch"))]


def test_an_adapter_is_fetched_with_its_backbones_revision(hub: type[Hub]):
    folder = Path(call(hub, "find_adapter", "some/adapter"))
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.bin"}
    other, base, tokenizer, config = ask(
        hub,
        ("find_adapter", "some/model"),
        ("adapter_base", str(folder)),
        ("find_tokenizer", "some/adapter"),
        ("fetch_config", "some/adapter"),
    )
    assert (other, base) == ("None", "some/model@v1")
    assert COMMITS["v1"] in tokenizer
    assert config.startswith(
        "error some/adapter is an adapter, not a model: load its backbone some/model@v1, then the adapter"
    )


def test_a_repository_without_a_model_is_named(hub: type[Hub]):
    empty, gguf = ask(hub, ("fetch_config", "some/empty"), ("load", "some/gguf"))
    assert empty.startswith("error hub id 'some/empty' has no config.json")
    assert "holds no model.safetensors" in gguf


def test_a_cache_that_cannot_be_written_is_named(hub: type[Hub], tmp_path: Path):
    (tmp_path / "file").write_text("")
    line = call(hub, "find_pretrained", "some/model", HF_HOME=str(tmp_path / "file"))
    assert line.startswith("error the hub cache cannot be written (")
    assert line.endswith("; set HF_HOME to a folder that can be")


# ------------------------------------------------------------------------------------------- directories and files


def legacy(folder: Path, name: str = BIN) -> Path:
    """Converts a checkpoint to torch's format from before 1.6."""
    torch.save(load_file(folder / WEIGHTS), folder / name, _use_new_zipfile_serialization=False)
    (folder / WEIGHTS).unlink()
    return folder / name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets the folder of the cache of converted files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_format_of_torch_before_1_6_is_read(checkpoint: Path, cache: Path):
    before = weights(load_pretrained(checkpoint))
    path = legacy(checkpoint)
    assert path.read_bytes()[:2] != b"PK"
    assert_same(weights(load_pretrained(checkpoint)), before)
    assert weight_files(checkpoint) == [converted_path(path)]  # converted once
    assert_same(weights(load_pretrained(checkpoint)), before)


def test_a_replaced_file_of_the_same_size_and_time_is_read(checkpoint: Path, cache: Path):
    """Archives with fixed times give two files the same one."""
    path = legacy(checkpoint)
    os.utime(path, (1, 1))
    load_pretrained(checkpoint)
    tensors = load_pickled(path)
    torch.save({name: -t for name, t in tensors.items()}, path, _use_new_zipfile_serialization=False)
    os.utime(path, (1, 1))
    read = WeightFile(weight_files(checkpoint)[0]).read("classifier.weight")
    assert torch.equal(read, -tensors["classifier.weight"])


def test_a_damaged_converted_file_is_not_used(checkpoint: Path, cache: Path):
    before = weights(load_pretrained(checkpoint))
    path = legacy(checkpoint)
    load_pretrained(checkpoint)
    converted_path(path).write_bytes(b"cut")
    assert_same(weights(load_pretrained(checkpoint)), before)


def test_without_a_cache_the_file_is_read_each_time(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    before, path = weights(load_pretrained(checkpoint)), legacy(checkpoint)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)  # as for a user without a home directory
    assert converted_path(path) is None
    assert_same(weights(load_pretrained(checkpoint)), before)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nothing can be written below it
    assert_same(weights(load_pretrained(checkpoint)), before)
    assert weight_files(checkpoint) == [path]


def test_pickled_shards_are_read(checkpoint: Path, cache: Path):
    before, tensors = weights(load_pretrained(checkpoint)), load_file(checkpoint / WEIGHTS)
    names = {key: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, key in enumerate(tensors)}
    for name in set(names.values()):
        torch.save({key: tensor for key, tensor in tensors.items() if names[key] == name}, checkpoint / name)
    write_json(checkpoint / BIN_INDEX, {"weight_map": names})
    (checkpoint / WEIGHTS).unlink()
    assert_same(weights(load_pretrained(checkpoint)), before)
    (checkpoint / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks pytorch_model-00002-of-00002\.bin, which its .*index\.json lists"
    ):
        weight_files(checkpoint)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"epoch": 3, "state_dict": {"a": torch.zeros(1)}},
            "contains no tensors but epoch, state_dict; torch.save the",
        ),
        ([torch.zeros(1)], "contains a list, not a dict of tensors"),
        ({}, "contains no tensors but nothing"),
    ],
)
def test_a_pickled_file_of_another_kind_is_named(value: object, message: str, tmp_path: Path):
    torch.save(value, tmp_path / BIN)
    with pytest.raises(ValueError, match=message):
        load_pickled(tmp_path / BIN)


def test_a_cut_pickled_file_is_named(checkpoint: Path):
    path = legacy(checkpoint)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin was refused: it is damaged or contains more than tensors"
    ):
        WeightFile(path)
    with pytest.raises(FileNotFoundError):
        load_pickled(path.parent / "absent.bin")


def test_weights_in_other_formats_are_named(checkpoint: Path):
    (checkpoint / WEIGHTS).rename(checkpoint / "tf_model.h5")
    with pytest.raises(
        FileNotFoundError, match=r"holds no model\.safetensors .*; tf_model\.h5 has another name or format"
    ):
        weight_files(checkpoint)


def test_a_folder_of_the_hub_cache_names_its_snapshots(tmp_path: Path, checkpoint: Path):
    cached = tmp_path / "models--a--b"
    (cached / "snapshots").mkdir(parents=True)
    checkpoint.rename(cached / "snapshots" / "abc")
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; its folder snapshots/abc has one"):
        fetch_config(cached)


def test_a_directory_that_is_no_checkpoint_says_what_it_is(tmp_path: Path, checkpoint: Path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; its folder checkpoint has one"):
        fetch_config(tmp_path)
    assert fetch_config(checkpoint) == checkpoint / CONFIG
    (tmp_path / "sum").mkdir()
    (tmp_path / "sum/members.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match=r"sum is a sum of classifiers; eval\.py scores it"):
        fetch_config(tmp_path / "sum")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in ("config.json", "log.jsonl"):
        (run_folder / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"is a run folder; its model is .*run/best"):
        fetch_config(run_folder)


# -------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture
def adapter(tmp_path: Path, checkpoint: Path) -> Path:
    """Returns the directory of an adapter over `checkpoint`."""
    peft.save_adapter(peft.apply(load_pretrained(checkpoint), "lora", rank=2), tmp_path / "adapter", str(checkpoint))
    return tmp_path / "adapter"


def test_an_adapter_is_told_from_a_checkpoint(adapter: Path, checkpoint: Path):
    assert find_adapter(adapter) == adapter
    assert adapter_method(adapter) == "lora"
    for name in (checkpoint, "builtin", "none", ""):
        assert find_adapter(name) is None
    save_file({"a": torch.zeros(1)}, adapter / WEIGHTS)
    with pytest.raises(ValueError, match="holds both a checkpoint and an adapter"):
        find_adapter(adapter)
    change_json(adapter / ADAPTER_CONFIG, peft_type="ADALORA")
    supported = r"peft_type 'ADALORA' is not supported; supported: BITFIT, HEAD, HOULSBY, IA3, LORA, .*--weights DIR"
    with pytest.raises(ValueError, match=supported):
        adapter_method(adapter)


def test_the_backbone_of_an_adapter(adapter: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    assert adapter_base(adapter) == str(checkpoint)
    assert find_tokenizer(adapter) == checkpoint
    change_json(adapter / ADAPTER_CONFIG, base_model_name_or_path="checkpoint")
    monkeypatch.chdir(checkpoint.parent)
    assert adapter_base(adapter) == "checkpoint"
    checkpoint.rename(adapter / "checkpoint")  # a folder inside the adapter's comes first
    assert adapter_base(adapter) == str(adapter / "checkpoint")
    change_json(adapter / ADAPTER_CONFIG, base_model_name_or_path="builtin")
    assert adapter_base(adapter) == "builtin"


def test_another_base_than_an_absolute_one_that_exists(adapter: Path, checkpoint: Path, tmp_path: Path):
    assert Path(read_json(adapter / "adapter_config.json")["base_model_name_or_path"]).is_absolute()
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    assert adapter_base(adapter, str(copy)) == str(copy)


def test_the_error_of_a_moved_backbone_names_the_flag(adapter: Path, checkpoint: Path, tmp_path: Path):
    checkpoint.rename(tmp_path / "moved")
    message = rf"the backbone {checkpoint} of the adapter {adapter} is not found; name it with --base DIR_OR_ID$"
    with pytest.raises(FileNotFoundError, match=message):
        adapter_base(adapter)
    assert adapter_base(adapter, str(tmp_path / "moved")) == str(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="nowhere/at/all is not a directory"):
        adapter_base(adapter, "nowhere/at/all")
    change_json(adapter / ADAPTER_CONFIG, base_model_name_or_path=None)
    with pytest.raises(FileNotFoundError, match="names no backbone; name it with --base DIR_OR_ID"):
        adapter_base(adapter)


def test_revisions_are_pefts_field(adapter: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """huggingface/peft passes `name@revision` to the hub, which has no repository of that name."""
    monkeypatch.setattr("data.hub.fetch_config", lambda source: checkpoint / CONFIG)
    model = peft.apply(load_pretrained(checkpoint), "lora", rank=2)
    for base, name, revision in (
        ("some/model@refs/pr/1", "some/model", "refs/pr/1"),
        ("some/model", "some/model", None),
        (str(checkpoint), str(checkpoint), None),
    ):
        peft.save_adapter(model, adapter, base)
        config = read_json(adapter / ADAPTER_CONFIG)
        assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)
        assert adapter_base(adapter) == base
    # a file of a version that did not write the field `revision`
    change_json(adapter / ADAPTER_CONFIG, base_model_name_or_path="some/model@v1", revision=None)
    assert adapter_base(adapter) == "some/model@v1"
    change_json(adapter / ADAPTER_CONFIG, revision="v1")
    assert adapter_base(adapter) == "some/model@v1"
    change_json(adapter / ADAPTER_CONFIG, revision="v2")
    with pytest.raises(ValueError, match="base_model_name_or_path says revision v1, revision says v2"):
        adapter_base(adapter)


def test_a_directory_with_an_at_sign_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert split_revision("model@v1") == ("model", "v1")
    (tmp_path / "model@v1").mkdir()
    assert split_revision("model@v1") == ("model@v1", None)


def test_what_an_adapter_records(adapter: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder is recorded absolute; an adapter that is trained further has the backbone of its first training."""
    monkeypatch.chdir(checkpoint.parent)
    assert recorded_base("checkpoint") == str(checkpoint)
    assert recorded_base("builtin") == "builtin"
    assert recorded_base("adapter") == str(checkpoint)
    checkpoint.rename(adapter / "base")
    change_json(adapter / ADAPTER_CONFIG, base_model_name_or_path="base")
    assert recorded_base("adapter") == str(adapter / "base")
    assert recorded_base("adapter", "adapter/base") == str(adapter / "base")
