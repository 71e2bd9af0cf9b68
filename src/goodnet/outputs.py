"""Folders and files that results go to: checked before the work, so that nothing of a user's is lost after it, and
written under a temporary name first."""

from __future__ import annotations

import errno
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from goodnet.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = ".goodnet.lock"
_held: set[Path] = set()


class InUse(UsageError):
    """Another run holds the folder, for now."""


def check_folder(out: Path | None, name: str, *, overwrite: bool) -> None:
    """Raises UsageError unless `out` can take the record `name` without losing an earlier one. Writes nothing."""
    if out is None:
        return
    check_writable(out)
    if (out / name).is_dir():
        raise UsageError(f"--out: {out / name} is a folder, where the record should go; name another folder")
    if (out / name).exists() and not overwrite:
        raise UsageError(f"--out: {out / name} is there already; name another folder, or pass --overwrite")


def check_writable(out: Path) -> None:
    """Raises UsageError unless `out` is a folder that can be written to, or can be made one. Writes nothing."""
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise UsageError(f"--out: expected a folder, but {nearest} is a file; name another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--out: {nearest} cannot be written to; name another folder, or change its permissions")


def check_file(path: Path, *, overwrite: bool, option: str = "-o") -> None:
    """Raises UsageError, naming `option`, unless a file can be written at `path` without losing one. Writes nothing."""
    if path.is_dir():
        raise UsageError(f"{option}: expected a file name, got the folder {path}")
    if path.exists() and not overwrite:
        raise UsageError(f"{option}: {path} is there already; name another file, or pass --overwrite")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: the folder {path.parent} is not there; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{option}: the folder {path.parent} cannot be written to; name another, or change its permissions"
        )


@contextmanager
def claimed(folder: Path | None, *, option: str = "--out", patience: float = 0.0) -> Iterator[None]:
    """Holds an output folder for this run until the end of the `with`, or of the process, whatever ends it.

    The folder is made, and removed again if nothing was written to it. Without locks (Windows, some network file
    systems) two runs are not told apart.

    Args:
        patience: seconds to wait for another run's end.

    Raises:
        InUse: another run holds it.
        OSError: it cannot be made.
    """
    name = None if folder is None else folder.resolve()
    if name is None or name in _held or not _can_be_folder(name):  # what cannot, the check of the output says
        yield
        return
    with _there(name):
        lock = None
        try:
            lock = _locked(name / _LOCK, f"{option}: {folder}", time.monotonic() + patience)
            _held.add(name)
            yield
        finally:
            _held.discard(name)
            if lock is not None:
                (name / _LOCK).unlink(missing_ok=True)  # before it is let go: nobody else can hold it now
                os.close(lock)


@contextmanager
def _there(folder: Path) -> Iterator[None]:
    """Makes the folder, and removes it again if nothing was written to it."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for one in made:
            if one.is_dir() and not any(one.iterdir()):
                one.rmdir()


def _can_be_folder(path: Path) -> bool:
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _locked(path: Path, what: str, until: float) -> int | None:
    """A descriptor that holds the lock; None where there are no locks. Raises InUse where another has it for long."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            if time.monotonic() >= until:
                raise InUse(f"{what} is in use by another run; wait for its end, or name another folder") from error
            time.sleep(0.2)
            continue
        except OSError:  # a file system without
            os.close(descriptor)
            return None
        os.close(descriptor)  # removed by its last holder in between


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """A file in a folder, by which `check_shared` knows on another machine that it sees the same folder.

    The folder is made, and removed again if nothing else was written to it.
    """
    folder = folder.absolute()
    with _there(folder), tempfile.NamedTemporaryFile(dir=folder, prefix=".running-") as file:
        yield Path(file.name)


def check_shared(mark: Path | None, what: str) -> None:
    """Raises UsageError, naming the options `what`, on a machine that does not see the file of `marked`."""
    if mark is not None and not mark.is_file():
        raise UsageError(f"{what} in folders that all machines share, but {platform.node()} does not see {mark.parent}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; what was written there takes its place at the end of the `with`.

    A crash, a kill, a full disk or an error inside leaves the old file whole, and no half of the new one under its
    name: the new one is on the disk itself before it takes the name.

    Raises:
        OSError: of the disk, naming `path`, the file that the user knows.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.part")
    try:
        yield part
        _to_disk(part)
        part.replace(path)
        _to_disk(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part), part):
            raise  # of another file
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`replacing`, for a text: UTF-8. Raises OSError."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _to_disk(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk and not only in memory."""
    if path.is_dir() and os.name == "nt":  # Windows has no such thing for folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)
