"""The one way to write files: whole or as they were, and held by the disk; and to read them: regular files only.

A file is written under a temporary name, flushed, and renamed over what was there; then its folder is flushed. What is
appended is flushed, or taken back. Links are not followed and pipes are not waited for where a run reads and writes.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_TOGETHER = ".saved-together"  # a folder of files that replace others as one


class NotRegular(OSError):
    """A link, a pipe or a device stands where a file should."""


def replace(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; one that is there is replaced.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    replace_by(path, lambda temporary: write_new(temporary, content))


def replace_by(path: Path, write: Callable[[Path], object]) -> None:
    """As `replace`, by a function that writes to the path it is given; the ending of the name is the same."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    flush(path.parent)


def create(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, so that it never stands there in part.

    Raises:
        FileExistsError: It is there; it is as it was. OSError: It cannot be written.
    """
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        write_new(temporary, content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.rename(temporary, path)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    flush(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file under a name that nothing has, and have the disk hold it; for names that do not count yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        _write_all(descriptor, content)
    finally:
        os.close(descriptor)


def append(descriptor: int, content: bytes) -> None:
    """Add to the end of an open file and have the disk hold it; where that fails (a full disk), nothing is added."""
    size = os.fstat(descriptor).st_size
    try:
        _write_all(descriptor, content)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:  # a write may take a part only
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's entries."""
    if os.name == "nt" and path.is_dir():  # where folders cannot be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file; with O_CREAT one that is not there is made.

    Raises:
        NotRegular: It is a link, a pipe, a folder or a device; nothing was followed or waited for. OSError: As os.open.
    """
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except OSError as error:
        if (kind := _kind(path)) is not None:
            raise NotRegular(errno.EINVAL, f"it is {kind} and no regular file", str(path)) from None
        raise error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, f"it is {_kind(path) or 'a device'} and no regular file", str(path))
    return descriptor


def _kind(path: Path) -> str | None:
    """What stands at a path where it is no regular file."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return None
    kinds = {stat.S_ISLNK: "a link", stat.S_ISFIFO: "a pipe", stat.S_ISDIR: "a folder", stat.S_ISSOCK: "a socket"}
    named = next((kind for test, kind in kinds.items() if test(mode)), "a device")
    return None if stat.S_ISREG(mode) else named


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and tensors of a user's safetensors file, or of a link to one, as caches of models have.

    Raises:
        NotRegular: It is a pipe, a folder or a device. ValueError: It is no such file. OSError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(check_followed(path), framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:  # derived from nothing but Exception
        raise ValueError(f"SafetensorError: {error}") from None


def check_followed(path: Path) -> Path:
    """The path of a regular file or of a link to one, so that a reader that is given it does not wait for a pipe.

    Raises:
        NotRegular: It is a pipe, a folder or a device. OSError: There is none.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotRegular(errno.EINVAL, f"it is {_kind(path.resolve()) or 'a device'} and no regular file", str(path))
    return path


def read(path: Path, largest: int = 2**40) -> bytes:
    """The content of a regular file.

    Raises:
        NotRegular: As `open_regular`. ValueError: It has more than `largest` bytes. OSError: It cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise ValueError(f"{path}: {size} bytes are more than such a file can have")
        return file.read()


# -- journals: files of lines, each of which is there when it is whole -------------------------------------------------


class Changed(OSError):
    """Another has written to a journal."""


def lines(content: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines of a journal, and what a kill left of one after them."""
    *whole, torn = content.split(b"\n")
    return whole, torn


@contextmanager
def held(path: Path) -> Iterator[int]:
    """A descriptor of a journal to which nobody else appends until it is closed.

    Raises:
        NotRegular, OSError: As `open_regular`.
    """
    descriptor = open_regular(path, os.O_RDWR | os.O_APPEND)
    try:
        with suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def append_line(path: Path, line: bytes, *, first: bytes = b"", size: int | None = None) -> None:
    """Add a line to a journal and have the disk hold it; one that is not there is made, never without a whole line.

    Args:
        path: The file.
        line: With its end.
        first: What the file begins with.
        size: How many bytes it has, as far as the caller knows.

    Raises:
        Changed: It has another size, so that another has written to it. NotRegular: It is a link or a pipe. OSError: It
        cannot be written; it is as it was.
    """
    if not size and not os.path.lexists(path):
        try:
            create(path, first + line)
        except FileExistsError:
            raise Changed(errno.EEXIST, "another has written to it", str(path)) from None
        return
    with held(path) as descriptor:
        there = os.fstat(descriptor).st_size
        if size is not None and there != size:
            raise Changed(errno.EEXIST, "another has written to it", str(path))
        append(descriptor, line if there else first + line)


# -- files that belong together ----------------------------------------------------------------------------------------


def replace_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace several files of a folder as one, so that no two of them are ever of different saves.

    They are written into a folder of their own, which is renamed once it is whole. From then on `together` reads them
    there, and they are moved to their places, where the last one named is absent until all others are new.

    Raises:
        OSError: They cannot be written; until the rename all are as they were.
    """
    settle(folder, list(contents))
    temporary = folder / f".tmp-{secrets.token_hex(4)}-together"
    os.mkdir(temporary)
    try:
        for name, content in contents.items():
            write_new(temporary / name, content)
        flush(temporary)
        os.rename(temporary, folder / _TOGETHER)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(folder)
    settle(folder, list(contents))


def settle(folder: Path, names: Sequence[str]) -> None:
    """Finish what a killed process left of `replace_together` with these names."""
    staged = folder / _TOGETHER
    if not staged.is_dir():
        return
    left = [name for name in names if (staged / name).exists()]
    if len(left) == len(names):
        with suppress(FileNotFoundError):
            os.unlink(folder / names[-1])
        flush(folder)
    for name in left:
        os.replace(staged / name, folder / name)
        flush(folder)
    os.rmdir(staged)
    flush(folder)


def together(folder: Path, name: str) -> Path:
    """Where the content of a file of `replace_together` is to be read."""
    staged = folder / _TOGETHER / name
    return staged if staged.exists() else folder / name
