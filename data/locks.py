"""Locks a folder for the life of a process.

The operating system holds the lock and releases it when the process ends, also by SIGKILL. It holds on local disks, and
on network folders whose server supports locks: NFS from Linux 2.6.12 on, SMB. It does not hold between machines on a
folder that is mounted without them (`nolock`, some cluster file systems), which is detected only if the system
reports it.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.files import unless_full

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # Unix
    msvcrt = None  # type: ignore[assignment]

FILE = ".lock"  # stays in the folder; removing it would let two processes lock two files of the same name
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # to a file elsewhere, which would be overwritten; Windows has no such flag
BYTE = 2**30  # the byte that is locked on Windows, where no other process can read a locked byte


class FolderLock:
    """Holds the lock of an existing folder until `release`, or until the process ends.

    Raises ValueError that names the process that holds it, and OSError if the file of the lock cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        with writing(folder / FILE):
            self.file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        try:
            lock_file(self.file)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                print(f"warning: {folder} is on a file system without locks; let only one process use it at a time")
                return
            owner = os.read(self.file, 200).decode("utf-8", "replace")
            self.release()
            if error.errno not in TAKEN:
                raise
            by = f" by {owner}" if owner and owner.isprintable() else ""
            raise ValueError(f"{folder} is in use{by}; wait until it ends, or choose another --name") from error
        with writing(folder / FILE):
            os.ftruncate(self.file, 0)
            os.write(self.file, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Releases the lock. A second call does nothing."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises each OSError of the block with the path and the way out: the file may be a folder, a loop of links, …"""
    try:
        yield
    except OSError as error:
        is_permitted = os.access(path.parent, os.W_OK)
        is_refused = error.errno == errno.EROFS or (error.errno in (errno.EACCES, errno.EPERM) and not is_permitted)
        elsewhere = f"make {path.parent} writable, or copy it and use the copy"
        way_out = unless_full(error, elsewhere if is_refused else "delete it, or choose another --name or --runs")
        raise OSError(f"{path} cannot be written ({error.strerror}); {way_out}") from error


@contextmanager
def waiting_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder in the block. Waits while another process holds it, and prints that once."""
    lock, printed = None, False
    while lock is None:
        try:
            lock = FolderLock(folder)
        except ValueError as error:
            if not printed:
                print(f"{str(error).partition(';')[0]}; waiting until it is finished")
            printed = True
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.release()


def lock_file(file: int) -> None:
    """Locks an open file without waiting. Raises OSError if another process holds the lock."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    if msvcrt is None:
        raise OSError(errno.ENOLCK, "this system has no locks")
    windows: Any = msvcrt
    os.lseek(file, BYTE, os.SEEK_SET)
    windows.locking(file, windows.LK_NBLCK, 1)
    os.lseek(file, 0, os.SEEK_SET)
