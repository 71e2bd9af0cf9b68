"""Folders and files that results go to: checked before the work, so that nothing of a user's is lost after it, and
written under a temporary name first."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from goodnet.errors import UsageError


def check_folder(out: Path | None, name: str, *, overwrite: bool) -> None:
    """Raises UsageError unless `out` can take the record `name` without losing an earlier one. Writes nothing."""
    if out is None:
        return
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise UsageError(f"--out: expected a folder, but {nearest} is a file; name another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--out: {nearest} cannot be written to; name another folder, or change its permissions")
    if (out / name).is_dir():
        raise UsageError(f"--out: {out / name} is a folder, where the record should go; name another folder")
    if (out / name).exists() and not overwrite:
        raise UsageError(f"--out: {out / name} is there already; name another folder, or pass --overwrite")


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
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; what was written there takes its place at the end of the `with`.

    A crash, a kill, a full disk or an error inside leaves the old file whole, and no half of the new one under its
    name: the new one is on the disk itself before it takes the name.

    Raises:
        OSError: of the disk, naming `path`, the file that the user knows.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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
