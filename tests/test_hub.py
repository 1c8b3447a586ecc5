"""Hub ids, through the real huggingface_hub, against a server on 127.0.0.1 that serves the hub's layout."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
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
    """repos: {"some/name": {revision: {file: bytes}}}. cut: names of files whose first transfer breaks off half-way."""

    repos: dict[str, dict[str, dict[str, bytes]]]
    gated: frozenset[str]
    cut: set[str]
    asked: list[str]

    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", code: str = "", **headers: str) -> None:
        self.send_response(status)
        headers |= {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        listing = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/(?:revision|tree)/(\w+))?", path)
        file = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/(\w+)/(.+)", path)
        match = listing or file
        if match is None or match[1] not in self.repos:
            return self.answer(404, code="RepoNotFound")
        if match[1] in self.gated:
            return self.answer(403, code="GatedRepo")
        revision = match[2] or "main"
        revision = next((name for name, commit in COMMITS.items() if commit == revision), revision)
        if revision not in self.repos[match[1]]:
            return self.answer(404, code="RevisionNotFound")
        files = self.repos[match[1]][revision]
        if listing and "/tree/" in path:
            rows = [
                {"type": "file", "path": n, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for n, data in files.items()
            ]
            return self.answer(200, json.dumps(rows).encode(), Content_Type="application/json")
        if listing:
            siblings = [{"rfilename": name} for name in files]
            value = {"id": match[1], "modelId": match[1], "sha": COMMITS[revision], "siblings": siblings, "tags": []}
            return self.answer(200, json.dumps(value).encode(), Content_Type="application/json")
        return self.send_file(files, match[3], COMMITS[revision])

    do_HEAD = do_GET

    def send_file(self, files: dict[str, bytes], name: str, commit: str) -> None:
        if name not in files:
            return self.answer(404, code="EntryNotFound", X_Repo_Commit=commit)
        data, start = files[name], 0
        if match := re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range", "")):
            start = int(match[1])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and name in self.cut:
            self.cut.discard(name)
            self.send_response(200)
            for key, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            return self.connection.close()
        return self.answer(206 if start else 200, data[start:], **headers)


@pytest.fixture
def hub(tmp_path):
    folder = tiny_weights(tmp_path / "published")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = files | {"config.json": files["config.json"].replace(b'"negative"', b'"awful"')}
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    pickled = {name: data for name, data in files.items() if name != "model.safetensors"}
    pickled["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    foreign = files | {"config.json": json.dumps({"model_type": "gpt2"}).encode()}
    damaged = files | {"model.safetensors": files["model.safetensors"][:1000]}

    class Server(Hub):
        pass

    Server.repos = {
        "some/model": {"main": files, "v1": other},
        "some/pickled": {"main": pickled},
        "some/gated": {"main": files},
        "some/foreign": {"main": foreign},
        "some/damaged": {"main": damaged},
    }
    Server.gated, Server.cut, Server.asked = frozenset({"some/gated"}), set(), []

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


def load(hub, *names: str, **settings: str) -> list[str]:
    """What a process of its own, since huggingface_hub reads its settings once, prints of each: a line."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | hub.settings | settings
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)
    return lines


def test_fetched_once_then_offline(hub):
    (first,) = load(hub, "some/model")
    assert first.startswith("sum ")
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    hub.asked.clear()
    assert load(hub, "some/model", HF_HUB_OFFLINE="1") == [first]
    assert hub.asked == []


def test_a_revision(hub, tmp_path):
    there, missing = load(hub, "some/model@v1", "some/model@v2")
    assert there.startswith("sum ")
    (config,) = Path(tmp_path / "hf").rglob(f"snapshots/{COMMITS['v1']}/config.json")
    assert "awful" in config.read_text()
    assert missing.startswith("error hub id 'some/model' has no revision 'v2'")


def test_a_repository_that_holds_only_a_pickle(hub, tmp_path):
    first, again = load(hub, "some/pickled", "some/model")
    assert first == again
    assert len(list((tmp_path / "cache").rglob("model.safetensors"))) == 1
    assert load(hub, "some/pickled", HF_HUB_OFFLINE="1") == [first]


def test_a_transfer_that_breaks_off_is_resumed(hub):
    hub.cut.add("model.safetensors")
    (line,) = load(hub, "some/model")
    assert line.startswith("sum ")


def test_what_can_go_wrong_is_one_line(hub):
    messages = {
        "some/nothing": "hub id 'some/nothing' does not exist, or is private and needs HF_TOKEN",
        "some/gated": "hub id 'some/gated' is gated: ask for access",
        "some/foreign": "model_type 'gpt2' is not supported; supported: attention_lstm, bert, capsule_lstm, cnn",
        "some/damaged": "is cut short or damaged",
    }
    for line, message in zip(load(hub, *messages), messages.values(), strict=True):
        assert line.startswith("error ")
        assert message in line


def test_no_network_at_all(hub):
    (line,) = load(hub, "some/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("error 'some/model' is neither a directory here nor complete in the hub cache")
