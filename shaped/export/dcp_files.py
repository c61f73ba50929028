"""Folders of torch.distributed.checkpoint: written by all ranks, whole or absent, and read without running anything.

    .metadata          a pickle: every tensor's shape, dtype and blocks, and where in which file each of them lies
    __0_0.distcp       what rank 0 wrote, one `torch.save` after another

DCP reads what `.metadata` names, whatever save the files are of. So a folder is written under a temporary name and
renamed when all ranks have written. `.metadata` is read by an unpickler that makes nothing but the records of this
format, and the rest with `weights_only`, once the checksum that `torch.save` gave it is right.
"""

import io
import os
import pickle
import secrets
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shaped import files
from shaped.errors import ExportError, StateError
from shaped.ranks import Peers
from shaped.ranks.pieces import Box

Key = tuple[Any, ...]  # where a value lies in the nested state: ("model", "w1"), ("optim", "param_groups", 0, "lr")
Boxes = tuple[tuple[int, ...], list[Box]]  # the shape of a whole tensor, and what a rank has of it
Chunk = tuple[str, tuple[int, ...], int]  # of which tensor, where it begins, and its bytes

_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}  # fmt: skip


def flat(key: Key) -> str:
    """The name of a value in a folder."""
    return ".".join(map(str, key))


# -- writing -----------------------------------------------------------------------------------------------------------


def write_folder(folder: Path, tensors: Mapping[Key, Boxes], values: Mapping[Key, Any], peers: Peers) -> None:
    """Write a folder together. Every rank calls it.

    Args:
        folder: Not there yet.
        tensors: Shape and this rank's blocks of each; those that several ranks have are written by one.
        values: Everything else, alike on all ranks; rank 0 writes it.
        peers: The ranks.

    Raises:
        ExportError: On all ranks: one cannot write, and there is no folder.
    """
    place, temporary, failed = f"the save of {folder}", Path(), None
    if peers.leads:
        temporary = folder.with_name(f".tmp-{folder.name}-{secrets.token_hex(4)}")
    try:
        try:
            if peers.leads:
                if os.path.lexists(folder):
                    raise ExportError(f"{folder} is there already: name another folder, or remove it first")
                os.makedirs(temporary)
        except (OSError, ExportError) as error:
            failed = _unwritable(folder, error)
        temporary = folder.with_name(peers.tell(place, temporary.name, failed=failed)[0])
        blocks = {(flat(key), b.offsets): b.values for key, (_, found) in tensors.items() for b in found}
        have = peers.tell(f"{place}, what each rank has", [(*at, values.nbytes) for at, values in blocks.items()])
        written = None
        try:
            mine = [at for at, rank in _owners(have).items() if rank == peers.rank]
            written = _write_mine(temporary, tensors, {at: blocks[at] for at in mine}, values, peers)
        except Exception as error:
            failed = _unwritable(folder, error)
        every = peers.tell(f"{place}, the parts of its ranks", written, failed=failed)
        try:
            if peers.leads:
                _finish(temporary, folder, tensors, values, every)
        except Exception as error:
            failed = _unwritable(folder, error)
        peers.meet(f"{place}, its end", failed=failed)
    except BaseException:
        if peers.leads:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _unwritable(folder: Path, error: Exception) -> ExportError:
    if isinstance(error, ExportError):
        return error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ExportError(f"{folder} cannot be written: {reason}")


def _owners(have: Sequence[Sequence[Chunk]]) -> dict[tuple[str, tuple[int, ...]], int]:
    """Which rank writes each block, of those that have it: the one with the fewest bytes so far."""
    ranks: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    sizes: dict[tuple[str, tuple[int, ...]], int] = {}
    for rank, chunks in enumerate(have):
        for name, offsets, size in chunks:
            ranks.setdefault((name, offsets), []).append(rank)
            sizes[name, offsets] = size
    load, owners = [0] * len(have), {}
    for at, among in sorted(ranks.items(), key=lambda item: (len(item[1]), -sizes[item[0]], item[0])):
        owners[at] = min(among, key=lambda rank: load[rank])
        load[owners[at]] += sizes[at]
    return owners


def _write_mine(
    place: Path,
    tensors: Mapping[Key, Boxes],
    blocks: Mapping[tuple[str, tuple[int, ...]], Tensor],
    values: Mapping[Key, Any],
    peers: Peers,
) -> tuple[list[Any], dict[str, list[Any]]]:
    """Write this rank's share; returns torch's own results, and what it wrote of each tensor."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    if not place.is_dir():
        raise ExportError(
            f"{place.parent} is not the same folder on all ranks: rank {peers.rank} does not see {place.name}, which "
            "rank 0 made there; ranks write into a file system that all of them share"
        )
    shapes = {flat(key): torch.Size(shape) for key, (shape, _) in tensors.items()}
    items, given, wrote = [], dict[Any, Any](), dict[str, list[Any]]()
    for (name, offsets), block in blocks.items():
        index, chunk = MetadataIndex(name, offsets), ChunkStorageMetadata(torch.Size(offsets), block.shape)
        written = TensorWriteData(chunk, TensorProperties(block.dtype), shapes[name])
        items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=written))
        given[index] = block.detach()
        wrote.setdefault(name, []).append((offsets, tuple(block.shape), block.dtype))
    for key, value in values.items() if peers.leads else ():
        index = MetadataIndex(flat(key))
        items.append(WriteItem(index, WriteItemType.BYTE_IO))
        torch.save(value, found := io.BytesIO())
        given[index] = found

    class HeldPlanner(DefaultSavePlanner):
        def resolve_data(self, write_item: WriteItem) -> Any:
            return given[write_item.index]

    writer = FileSystemWriter(place)
    plans = [SavePlan(items if rank == peers.rank else []) for rank in range(peers.size)]
    plan = writer.prepare_global_plan(plans)[peers.rank]  # which names its files by the rank
    results = writer.write_data(plan, HeldPlanner()).wait() if items else []
    return results, wrote


def _finish(
    place: Path,
    folder: Path,
    tensors: Mapping[Key, Boxes],
    values: Mapping[Key, Any],
    every: Sequence[tuple[list[Any], dict[str, list[Any]]]],
) -> None:
    """What rank 0 does when all have written: the metadata, and the name."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    described: dict[str, Any] = {flat(key): BytesStorageMetadata() for key in values}
    for key, (shape, _) in tensors.items():
        wrote = sorted(chunk for _, by in every for chunk in by.get(flat(key), ()))
        assert sum(torch.Size(sizes).numel() for _, sizes, _ in wrote) == torch.Size(shape).numel(), flat(key)
        described[flat(key)] = TensorStorageMetadata(
            TensorProperties(wrote[0][2]),
            torch.Size(shape),
            [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes, _ in wrote],
        )
    nested = {flat(key): key for key in (*tensors, *values)}
    writer = FileSystemWriter(place)
    writer.finish(Metadata(described, nested), [results for results, _ in every])
    files.flush(place)
    os.rename(place, folder)
    files.flush(folder.parent)


# -- reading -----------------------------------------------------------------------------------------------------------


class _Records(pickle.Unpickler):
    """Makes nothing but what `.metadata` is made of."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _RECORDS.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of the format")


class DcpFolder:
    """A folder as it says of itself what is in it.

    Args:
        path: Where it is.

    Attributes:
        tensors: Shape and dtype of each tensor.
        values: The names of everything else.

    Raises:
        StateError: It is no such folder.
    """

    def __init__(self, path: Path) -> None:
        from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

        self.path = path
        try:
            with open(path / ".metadata", "rb") as file:
                found = _Records(file).load()
            if not isinstance(found, Metadata):
                raise TypeError(f"its metadata is a {type(found).__name__}")
            described = found.state_dict_metadata
            stored = {name: d for name, d in described.items() if isinstance(d, TensorStorageMetadata)}
            self._chunks = {name: d.chunks for name, d in stored.items()}
            self.tensors = {name: (tuple(d.size), d.properties.dtype) for name, d in stored.items()}
            self.values = {name for name, d in described.items() if isinstance(d, BytesStorageMetadata)}
            self._at = {(index.fqn, index.offset): info for index, info in found.storage_data.items()}
        except FileNotFoundError:
            raise StateError(f"{path} is no folder of torch.distributed.checkpoint: it has no .metadata") from None
        except Exception as error:  # a pickle fails in any way
            raise StateError(f"{path} cannot be read: .metadata: {error}") from None

    def value(self, name: str) -> Any:
        """A value that is no tensor: numbers, strings and what is made of them."""
        return self._loaded(name, self._at.get((name, None)))

    def tensor(self, name: str, wanted: Sequence[Box] | None = None) -> Tensor:
        """A whole tensor, on the CPU; outside of the blocks that are wanted, whatever is in memory.

        Args:
            name: Of the tensor.
            wanted: Where values are needed; blocks of the folder that have none of them are not read. None is all.

        Raises:
            StateError: Its blocks do not make it up, or cannot be read.
        """
        shape, dtype = self.tensors[name]
        whole, seen = torch.empty(shape, dtype=dtype), torch.zeros(shape, dtype=torch.bool)
        for chunk in self._chunks[name]:
            box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
            if wanted is not None and not any(_meet(chunk, one) for one in wanted):
                if whole[box].shape != torch.Size(chunk.sizes) or bool(seen[box].any()):
                    raise StateError(f"{self.path} cannot be read: a block of {name} lies on another, or beyond it")
                seen[box] = True
                continue
            part = self._loaded(name, self._at.get((name, torch.Size(chunk.offsets))))
            fits = isinstance(part, Tensor) and (part.shape, part.dtype) == (torch.Size(chunk.sizes), dtype)
            if not fits or whole[box].shape != part.shape or bool(seen[box].any()):
                raise StateError(f"{self.path} cannot be read: a block of {name} is not what .metadata says of it")
            whole[box], seen[box] = part, True
        if not bool(seen.all()):
            raise StateError(f"{self.path} cannot be read: not all of {name} is there")
        return whole

    def _loaded(self, name: str, info: Any) -> Any:
        try:
            file = str(info.relative_path)
            if os.path.basename(file) != file or info.transform_descriptors:
                raise ValueError("it lies in another folder, or is compressed")
            with open(self.path / file, "rb") as stream:
                stream.seek(info.offset)
                content = stream.read(info.length)
            with zipfile.ZipFile(io.BytesIO(content)) as saved:  # whose checksums torch.load does not look at
                if saved.testzip() is not None:
                    raise ValueError("its checksum does not match what was written")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise StateError(f"{self.path} cannot be read: {name} is more than tensors, numbers and strings") from None
        except Exception as error:  # torch.load has errors of many kinds
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise StateError(f"{self.path} cannot be read: {name}: {reason}") from None


def _meet(chunk: Any, box: Box) -> bool:
    """Whether a block of a folder has entries of another block."""
    sides = zip(chunk.offsets, chunk.sizes, box.offsets, box.values.shape, strict=True)
    return all(a < c + d and c < a + b for a, b, c, d in sides)
