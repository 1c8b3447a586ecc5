"""Tests of the download of Stanford's archive, against a server on this machine and a tiny archive."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data
from data import Source, find_source, load_splits
from data.download import STANFORD, Archive, fetch_imdb


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder and counts the requests."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves tmp_path/www on 127.0.0.1; yields its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "www").mkdir()
    Handler.requests = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def make_archive(path: Path, files: dict[str, str], members: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """Writes a .tar.gz with text files, and members without content."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in members:
            tar.addfile(member)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Returns a member that is no regular file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


FILES = {
    f"aclImdb/{part}/{kind}/{i}_{9 if kind == 'pos' else 2}.txt": f"{part} {kind} {i}"
    for part in ("train", "test")
    for kind in ("pos", "neg")
    for i in range(10)
} | {"aclImdb/README": "read me"}


def archive_of(path: Path, address: str, **changes) -> Archive:
    """Returns the description of an archive."""
    content = path.read_bytes()
    values = {"url": address + path.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Archive(**{**values, "root": "aclImdb", **changes})


def test_the_archive_is_downloaded_once_and_is_a_source(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    packed = make_archive(tmp_path / "www" / "aclImdb_v1.tar.gz", FILES, (special("aclImdb/empty", tarfile.DIRTYPE),))
    here = tmp_path / "data"
    monkeypatch.setattr(data, "HERE", here)
    monkeypatch.setattr(data, "fetch_imdb", partial(fetch_imdb, archive=archive_of(packed, server)))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert find_source("imdb") == (str(here / "imdb"), "--data imdb")
    printed = capsys.readouterr().out
    assert printed.count(f"downloading {server}aclImdb_v1.tar.gz") == 1
    assert f"{here / 'imdb' / 'aclImdb'}: 41 files unpacked" in printed
    assert Handler.requests == 1
    assert [path.name for path in here.iterdir()] == ["imdb"]
    assert {str(p.relative_to(here / "imdb")): p.read_text() for p in here.rglob("*") if p.is_file()} == FILES
    splits = load_splits(Source(data=str(here / "imdb")))
    assert [len(frame) for frame in splits[:4]] == [16, 4, 20, 0]


def test_an_archive_in_the_folder_is_used_without_a_network(tmp_path: Path):
    (tmp_path / "imdb").mkdir()
    packed = make_archive(tmp_path / "imdb" / "aclImdb_v1.tar.gz", FILES)
    archive = archive_of(packed, "http://127.0.0.1:9/")
    assert fetch_imdb(tmp_path / "imdb", archive) == tmp_path / "imdb"
    assert sorted(path.name for path in (tmp_path / "imdb").iterdir()) == ["aclImdb", "aclImdb_v1.tar.gz"]
    packed.unlink()
    assert fetch_imdb(tmp_path / "imdb", archive) == tmp_path / "imdb"


def test_another_content_is_refused_and_leaves_nothing(tmp_path: Path, server: str):
    packed = make_archive(tmp_path / "www" / "x.tar.gz", FILES)
    size = packed.stat().st_size
    for changes in ({"sha256": "0" * 64}, {"size": size + 1}, {"size": size - 1}, {"size": 5}):
        with pytest.raises(ValueError, match=r"is not the published archive: .* fetch it again from http"):
            fetch_imdb(tmp_path / "imdb", archive_of(packed, server, **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["www"]


def test_no_network_names_the_ways_out(tmp_path: Path, server: str):
    for url in (f"{server}missing.tar.gz", "http://127.0.0.1:9/x.tar.gz"):
        archive = Archive(url=url, size=9, sha256="", root="aclImdb")
        with pytest.raises(FileNotFoundError, match=r"cannot download http.* put the archive at .*imdb/.*--data demo"):
            fetch_imdb(tmp_path / "imdb", archive)
    assert [path.name for path in tmp_path.iterdir()] == ["www"]


@pytest.mark.parametrize(
    "member",
    [
        special("aclImdb/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("aclImdb/link", tarfile.LNKTYPE, "aclImdb/README"),
        special("aclImdb/pipe", tarfile.FIFOTYPE),
        special("aclImdb/null", tarfile.CHRTYPE),
        special("/aclImdb/absolute", tarfile.REGTYPE),
        special("aclImdb/../../outside", tarfile.REGTYPE),
        special("other/file", tarfile.REGTYPE),
        special("aclImdb/a\\..\\b", tarfile.REGTYPE),
        special("aclImdb/C:x", tarfile.REGTYPE),
        special("aclImdb//x", tarfile.REGTYPE),
    ],
    ids=lambda member: member.name,
)
def test_unsafe_members_are_refused(tmp_path: Path, member: tarfile.TarInfo):
    (tmp_path / "a" / "imdb").mkdir(parents=True)
    packed = make_archive(tmp_path / "a" / "imdb" / "x.tar.gz", {"aclImdb/README": "x"}, (member,))
    with pytest.raises(ValueError, match=r"which is not a file or folder in aclImdb/; it is refused"):
        fetch_imdb(tmp_path / "a" / "imdb", archive_of(packed, "http://127.0.0.1:9/"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "a/imdb", "a/imdb/x.tar.gz"]


def test_a_damaged_archive_is_refused(tmp_path: Path):
    packed = make_archive(tmp_path / "x.tar.gz", FILES)
    (tmp_path / "imdb").mkdir()
    cut = tmp_path / "imdb" / "x.tar.gz"
    cut.write_bytes(packed.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"x.tar.gz is damaged"):
        fetch_imdb(tmp_path / "imdb", archive_of(cut, "http://127.0.0.1:9/"))


def test_the_published_archive():
    assert STANFORD.name == "aclImdb_v1.tar.gz"
    assert (STANFORD.size, STANFORD.sha256[:8], len(STANFORD.sha256)) == (84_125_825, "c40f74a1", 64)
