"""Downloads Stanford's archive of the Large Movie Review Dataset once, and unpacks it safely.

The archive is https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz, 84,125,825 bytes, MD5
7c2ac02c03563afcf9b574c7e56c153a (published); the SHA-256 below belongs to the same bytes. It contains aclImdb/ with
100,000 reviews, one file each. The environment variables https_proxy and no_proxy apply.
"""

import http.client
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data.bars import progress_bar
from data.checked import reading, show
from data.checksums import file_digest

TIMEOUT = 60  # seconds without an answer
CHUNK = 2**18  # bytes
UNPACKED = 2**31  # bytes of all files of the archive; Stanford's has a quarter of it


class Archive(NamedTuple):
    """An archive to download: its address, and what its content must be."""

    url: str
    size: int  # bytes
    sha256: str
    root: str  # the folder that contains all its files

    @property
    def name(self) -> str:
        """Returns the file name of the archive."""
        return PurePosixPath(self.url).name


STANFORD = Archive(
    url="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    size=84_125_825,
    sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
    root="aclImdb",
)


def fetch_imdb(folder: Path, archive: Archive = STANFORD) -> Path:
    """Returns `folder` with aclImdb/ in it; downloads and unpacks the archive unless the folder has contents.

    An archive that is in the folder already is used, for a machine without network. Nothing is left in the folder
    before the archive is complete and checked. Raises FileNotFoundError if it cannot be downloaded, and ValueError if
    the content is not the expected one.
    """
    local = folder / archive.name
    if folder.is_dir() and any(path != local for path in folder.iterdir()):
        return folder
    with temporary_folder(folder) as work:
        if not local.is_file():
            print(f"downloading {archive.url} ({archive.size / 2**20:,.0f} MiB)")
            download(archive, work / archive.name, local)
        path = local if local.is_file() else work / archive.name
        check_archive(path, archive)
        count = unpack_archive(path, archive.root, work)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / archive.root).exists():  # another process may have been faster
            (work / archive.root).rename(folder / archive.root)
    print(f"{folder / archive.root}: {count:,} files unpacked; --data imdb uses them from now on")
    return folder


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder on the same disk as `folder`. Raises OSError that names `folder`."""
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as error:
        raise OSError(
            f"cannot write {folder} ({error}); unpack the archive elsewhere and name it with --data"
        ) from error
    with work as path:
        yield Path(path)


def download(archive: Archive, path: Path, local: Path) -> None:
    """Downloads an archive to `path` with a progress bar.

    local: where an archive that was fetched in another way is found. Raises FileNotFoundError that names both.
    """
    shown = progress_bar(total=archive.size, desc=archive.name, unit="B", unit_scale=True, unit_divisor=1024)
    with path.open("wb") as file, shown as bar:
        for chunk in read_chunks(archive, local):
            file.write(chunk)
            bar.update(len(chunk))


def read_chunks(archive: Archive, local: Path) -> Iterator[bytes]:
    """Yields the content at the address, at most one chunk more than the expected size."""
    received = 0
    try:
        with urllib.request.urlopen(archive.url, timeout=TIMEOUT) as response:
            while received <= archive.size and (chunk := response.read(CHUNK)):
                received += len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"cannot download {archive.url} ({error}); try again, or put the archive at {local}; --data demo uses the "
            "built-in reviews"
        ) from error


def check_archive(path: Path, archive: Archive) -> None:
    """Raises ValueError if the size or the SHA-256 of a file is not the expected one."""
    size, digest = path.stat().st_size, file_digest(path)
    if (size, digest) != (archive.size, archive.sha256):
        raise ValueError(
            f"{archive.name} is not the published archive: {size:,} bytes with SHA-256 {digest} instead of "
            f"{archive.size:,} bytes with {archive.sha256}; fetch it again from {archive.url}"
        )


def target_path(member: tarfile.TarInfo, root: str, folder: Path) -> Path:
    """Returns the path of a member below `folder`.

    Raises ValueError for links, devices, absolute paths, `..`, drive letters, and paths outside `root`.
    """
    parts = member.name.rstrip("/").split("/")
    safe = parts[0] == root and not any(part in ("", ".", "..") or set(part) & set("\\:\0") for part in parts)
    if not safe or not (member.isreg() or member.isdir()):
        raise ValueError(
            f"the archive contains '{show(member.name)}', which is not a file or folder in {root}/; it is refused"
        )
    return folder.joinpath(*parts)


def unpack_archive(path: Path, root: str, folder: Path) -> int:
    """Unpacks the regular files of an archive below `folder`, and returns their number.

    Modes, owners and times are not restored. Raises ValueError for a damaged archive, for a member that is unsafe, and
    for an archive that unpacks to more than UNPACKED bytes.
    """
    count = size = 0
    with (
        reading(path, "a .tar.gz"),
        tarfile.open(path, "r:gz") as tar,
        progress_bar(tar, desc="unpacking", unit=" files") as members,
    ):
        for member in members:
            target = target_path(member, root, folder)
            content = tar.extractfile(member)
            if content is None:  # a folder
                target.mkdir(parents=True, exist_ok=True)
                continue
            if (size := size + member.size) > UNPACKED:
                raise ValueError(f"it unpacks to more than {UNPACKED:,} bytes")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file, CHUNK)
            count += 1
    return count
