"""Hub ids, through the real huggingface_hub, against a server on 127.0.0.1 with the hub's layout."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_weights
from safetensors.torch import load_file

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
PROGRAM = """
import sys
from nn.checkpoint import load_pretrained
from data.tokenization import load_tokenizer
for name in sys.argv[1:]:
    try:
        model, tokenizer = load_pretrained(name), load_tokenizer(name)
        print("sum", sum(p.double().sum().item() for p in model.parameters()), tokenizer.vocab_size)
    except (ValueError, OSError) as error:
        print("error", error)
"""


class Hub(BaseHTTPRequestHandler):
    """Serves the hub's layout. repos: {"some/name": {revision: {file: bytes}}}. cut: files whose first transfer ends
    half-way. requests: the log of all requests. settings: environment variables of a client."""

    repos: dict[str, dict[str, dict[str, bytes]]]
    gated: frozenset[str]
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
    }


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[type[Hub]]:
    """Starts the server. Returns its handler class."""

    class Server(Hub):
        repos = published_repos(tiny_weights(tmp_path / "published"))
        gated, cut, requests = frozenset({"some/gated"}), set(), []

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


def load(hub: type[Hub], *names: str, **settings: str) -> list[str]:
    """Loads each hub id in a new process, since huggingface_hub reads its settings at import. Returns a line for each.

    settings: environment variables that replace those of the fixture.
    """
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | hub.settings | settings
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)
    return lines


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


def test_an_interrupted_transfer_is_resumed(hub: type[Hub]):
    hub.cut.add("model.safetensors")
    (line,) = load(hub, "some/model")
    assert line.startswith("sum ")


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
