"""One checkpoint on disk: a directory that exists under its name only if it is complete.

    step-00000042/tensors.safetensors     every tensor; of several ranks a file of each (together.py)
                  state.json              everything else
                  manifest.json           sizes and CRC-32 of the files, every tensor's shape and dtype, and a CRC-32
                                          of itself; written last

It is written under a temporary name on the same file system, each file and the directory are flushed to the disk, and
then it is renamed. Reading verifies all of it before anything reaches torch. Nothing is ever unpickled, and no name
from a file is used as a path.
"""

import errno
import os
import platform
import secrets
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shaped import files
from shaped.arguments import checked
from shaped.checkpoint.codec import from_json, join, split, to_json
from shaped.errors import CheckpointCorrupt, CheckpointError
from shaped.shapes import dtype_name

FORMAT, NEWEST = 1, 2  # of one process, and of several ranks
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_LARGEST_TEXT = 256 * 2**20
_CHUNK = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: what its manifest says, and the state."""

    path: Path
    manifest: Mapping[str, Any]
    state: Any


@checked
def write_checkpoint(
    folder: Path, name: str, state: Any, about: Mapping[str, Any], *, aside: Path | None = None
) -> Path:
    """Write a state as `folder/name`, whole or not at all; one of that name is replaced.

    Args:
        folder: Exists.
        name: The directory's name.
        state: Plain data and tensors.
        about: Goes into the manifest as it is; `run` is part of temporary names.
        aside: Where what stands there under this name is moved to; a checkpoint is removed otherwise, and other things
            are an error.

    Raises:
        CheckpointError: It cannot be written (the system's reason is given), or the state is no plain data. What was
        there before is as it was.
    """
    data, tensors = split(state)
    temporary = folder / f".tmp-{about.get('run', 'none')}-{name}-{secrets.token_hex(4)}"
    try:
        os.mkdir(temporary)
        _write_files(temporary, data, tensors, about)
        into_place(temporary, folder / name, aside)
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(temporary)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CheckpointError(f"{folder / name} cannot be written: {reason}") from error
        raise
    return folder / name


def _write_files(place: Path, data: Any, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(unshared(tensors), place / TENSORS)
    files.flush(place / TENSORS)
    files.write_new(place / STATE, to_json(data, in_order=True))
    written = {
        name: {"size": os.stat(place / name).st_size, "crc32": checksum(place / name)} for name in (TENSORS, STATE)
    }
    manifest = {
        **about,
        "format": FORMAT,
        "files": written,
        "tensors": {name: _form(t) for name, t in tensors.items()},
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
    }
    files.write_new(place / MANIFEST, to_json({**manifest, "crc32": zlib.crc32(to_json(manifest))}))
    files.flush(place)


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors refuses tensors that share memory; a state may hold the same tensor twice."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return alone


def into_place(temporary: Path, final: Path, aside: Path | None) -> None:
    """Give a folder that is whole its name; what stands there is moved aside, or removed where that is a checkpoint.

    Raises:
        OSError: It cannot be done, and all is as it was.
    """
    old = aside or final.with_name(f".old-{final.name}")
    replaces = os.path.lexists(final)
    if replaces:
        if aside is None and not is_checkpoint(final):
            raise OSError(errno.EEXIST, "something that is no checkpoint stands there under this name", str(final))
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        if replaces:
            os.rename(old, final)
        raise
    files.flush(final.parent)
    if replaces and aside is None:
        remove_checkpoint(old)


def is_checkpoint(path: Path) -> bool:
    """Whether there is a directory with the files of a checkpoint and nothing else; they are not verified."""
    try:
        found = set(os.listdir(path))
        tensors = found - {STATE, MANIFEST}
        parts = {part_name(rank, len(tensors)) for rank in range(len(tensors))}
        whole = {STATE, MANIFEST} <= found and bool(tensors)
        return not path.is_symlink() and whole and tensors in ({TENSORS}, parts)
    except OSError:
        return False


def made_by(path: Path, run: str) -> bool:
    """Whether the manifest of a checkpoint says that a run made it."""
    try:
        return not path.is_symlink() and bool(read_manifest(path).get("run") == run)
    except CheckpointError:
        return False


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; a directory with other files in it stays, and so does one that cannot be removed."""
    if is_checkpoint(path):
        gone = path.with_name(f".tmp-{_run_of(path)}-gone-{secrets.token_hex(4)}")  # the next start clears it away
        with suppress(OSError):
            os.rename(path, gone)
            shutil.rmtree(gone, ignore_errors=True)


def _run_of(path: Path) -> str:
    try:
        run = str(read_manifest(path).get("run", "none"))
    except CheckpointError:
        run = "none"
    return run if run.isalnum() else "none"


def write_small(path: Path, data: Any) -> None:
    """Replace a small JSON file, whole or not at all."""
    files.replace(path, to_json(data))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, verified in itself.

    Raises:
        CheckpointCorrupt: It is missing or not as it was written. CheckpointError: A newer version wrote it, or the
        system cannot read it.
    """

    def read() -> dict[str, Any]:
        content = _content(path / MANIFEST, _LARGEST_TEXT)
        found = from_json(content)
        if not isinstance(found, dict):
            raise CheckpointCorrupt(f"{path / MANIFEST}: it is no JSON object")
        checksum = found.pop("crc32", None)
        if checksum != zlib.crc32(to_json(found)) or to_json({**found, "crc32": checksum}) != content:
            raise CheckpointCorrupt(f"{path / MANIFEST}: its checksum does not match")
        written, versions = found.get("format"), found.get("versions")
        if type(written) is int and written > NEWEST:
            raise CheckpointError(f"{path} has format {written} ({versions}), and this version reads up to {NEWEST}")
        if written not in (FORMAT, NEWEST):
            raise CheckpointCorrupt(f"{path / MANIFEST}: its format is {written!r}")
        return found

    return _guarded(path / MANIFEST, read)


@checked
def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, all of it verified.

    Raises:
        CheckpointCorrupt: A file is missing, or not as it was written; the message names it. CheckpointError: As for
        `read_manifest`.
    """
    if path.is_symlink() or not path.is_dir():
        raise CheckpointCorrupt(f"{path}: it is no directory")
    manifest = read_manifest(path)
    extra = sorted(set(os.listdir(path)) - {*_guarded(path / MANIFEST, lambda: _parts(manifest)), STATE, MANIFEST})
    if extra:
        warnings.warn(f"{path} has files that are not part of it: {', '.join(map(repr, extra[:5]))}", stacklevel=2)
    return Checkpoint(path, manifest, _guarded(path, lambda: _read_state(path, manifest)))


def _read_state(path: Path, manifest: Mapping[str, Any]) -> Any:
    from safetensors import safe_open

    listed, parts = manifest["files"], _parts(manifest)
    if set(listed) != {*parts, STATE}:
        raise CheckpointCorrupt(f"{path / MANIFEST}: it lists other files than this format has")
    for name, wanted in listed.items():
        size = _regular(path / name)
        if size != wanted["size"]:
            raise CheckpointCorrupt(f"{path / name}: {size} bytes, and {wanted['size']} were written")
        if checksum(path / name) != wanted["crc32"]:
            raise CheckpointCorrupt(f"{path / name}: its checksum does not match what was written")
    data = from_json(_content(path / STATE, _LARGEST_TEXT))
    if manifest["format"] == NEWEST:
        return join(data, _joined(path, parts, manifest["tensors"]))
    wanted = manifest["tensors"]
    with safe_open(path / TENSORS, framework="pt") as file:
        differ = set(file.keys()) ^ set(wanted)  # before anything is allocated
        tensors = {} if differ else {name: file.get_tensor(name) for name in wanted}
    differ |= {name for name, tensor in tensors.items() if _form(tensor) != wanted[name]}
    if differ:
        names = ", ".join(sorted(differ)[:5])
        raise CheckpointCorrupt(f"{path / TENSORS}: tensors differ from the manifest's: {names}")
    return join(data, tensors)


def part_name(rank: int, ranks: int) -> str:
    """The file of a rank's tensors."""
    return f"tensors-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _parts(manifest: Mapping[str, Any]) -> list[str]:
    """The files that tensors are in."""
    if manifest["format"] == FORMAT:
        return [TENSORS]
    ranks = manifest["ranks"]
    if type(ranks) is not int or not 0 < ranks < 100_000:
        raise CheckpointCorrupt(f"{MANIFEST}: {ranks!r} is no number of ranks")
    return [part_name(rank, ranks) for rank in range(ranks)]


def _joined(path: Path, parts: list[str], wanted: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor, from the pieces that the ranks wrote."""
    from safetensors import safe_open

    pieces: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
    places = [(start, stop, rank, name) for name, (_, _, found) in wanted.items() for rank, start, stop in found]
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path / part, framework="pt")) for part in parts]
        for rank, file in enumerate(opened):  # before anything is allocated
            lengths = {name: stop - start for start, stop, at, name in places if at == rank}
            if {name: file.get_slice(name).get_shape() for name in set(file.keys())} != {
                name: [length] for name, length in lengths.items()
            }:
                raise CheckpointCorrupt(f"{path / parts[rank]}: its tensors differ from the manifest's")
        for start, _, rank, name in sorted(places):
            piece = opened[rank].get_tensor(name)
            if start != sum(map(torch.numel, pieces[name])) or dtype_name(piece.dtype) != wanted[name][0]:
                raise CheckpointCorrupt(f"{path / MANIFEST}: the pieces of {name} do not make it")
            pieces[name].append(piece)
    return {name: _whole(found, wanted[name][1]) for name, found in pieces.items()}


def _whole(pieces: list[torch.Tensor], shape: list[int]) -> torch.Tensor:
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(shape)


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Run a reader; whatever a damaged or hostile file makes fail is a CheckpointCorrupt that names it."""
    try:
        return read()
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointCorrupt(f"{error.filename or path}: it is missing") from None
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        said = str(error).splitlines()[0][:200] if str(error) else ""
        raise CheckpointCorrupt(f"{path}: {type(error).__name__}: {said}") from None


def _open(path: Path) -> int:
    """Open for reading; a link is not followed, and a pipe does not wait."""
    try:
        return files.open_regular(path)
    except files.NotRegular as error:
        raise CheckpointCorrupt(f"{path}: {error.strerror}") from None


def _regular(path: Path) -> int:
    """The size of a regular file."""
    descriptor = _open(path)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _content(path: Path, largest: int) -> bytes:
    if (size := _regular(path)) > largest:
        raise CheckpointCorrupt(f"{path}: {size} bytes are more than such a file can have")
    return files.read(path, largest)


def checksum(path: Path) -> int:
    """The CRC-32 of a regular file."""
    found = 0
    with os.fdopen(_open(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def _form(tensor: torch.Tensor) -> list[Any]:
    return [dtype_name(tensor.dtype), list(tensor.shape)]
