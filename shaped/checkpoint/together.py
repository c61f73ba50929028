"""A checkpoint that several ranks write and read together: whole or absent, and the same for all of them.

    step-00000042/tensors-00001-of-00004.safetensors    a rank's tensors and pieces of tensors, each flattened
                  ...
                  state.json                            everything else, as rank 0 has it
                  manifest.json                         sizes and CRC-32 of all, and where each tensor's elements lie

Each rank writes one file into a temporary folder that rank 0 made, and tells its size and checksum. Where all have,
rank 0 writes the rest, the manifest last, and renames the folder; then it tells the others. A rank that fails, or that
is gone, leaves what was there before. Any number of ranks reads it, one process too: a piece is an interval of a
flattened tensor.
"""

import os
import platform
import secrets
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shaped import files
from shaped.checkpoint.codec import split, to_json
from shaped.checkpoint.files import MANIFEST, STATE, checksum, into_place, part_name, unshared
from shaped.errors import CheckpointError, listing
from shaped.ranks import Peers, Piece
from shaped.shapes import dtype_name

SHARED_FORMAT = 2
_ALIKE = ("trainer.", "specs.")  # what the ranks hold the same of; all else is rank 0's


@dataclass
class WrittenFile:
    """What a rank wrote.

    Attributes:
        file: Its name.
        size, crc: Of the file.
        pieces: By tensor: dtype, shape of the whole, and where the elements begin and end.
        sums: Checksums of the tensors that each rank has whole.
    """

    file: str
    size: int = 0
    crc: int = 0
    pieces: dict[str, tuple[str, list[int], int, int]] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)


def write_together(
    folder: Path, name: str, state: Mapping[str, Any], about: Mapping[str, Any], peers: Peers, aside: Path | None = None
) -> Path:
    """Write the state of all ranks as `folder/name`, whole or not at all; as `write_checkpoint` in all else.

    Every rank calls it. When it returns on rank 0 the checkpoint is there; on the others, when rank 0 says so.

    Raises:
        CheckpointError: A rank cannot write its part. OSError: Rank 0 cannot write the rest.
    """
    place, temporary, failed = f"the save of {folder / name}", Path(), None
    if peers.leads:
        temporary = folder / f".tmp-{about.get('run', 'none')}-{name}-{secrets.token_hex(4)}"
    try:
        try:
            if peers.leads:
                os.mkdir(temporary)
        except OSError as error:
            failed = _unwritable(folder / name, error)
        told = peers.tell(place, (temporary.name, state.get("left"), state.get("generators")), failed=failed)
        temporary = folder / told[0][0]
        written = None
        try:
            data, tensors = split(_of_all(state, told))
            written = _write_part(temporary, tensors, peers)
        except CheckpointError as error:
            failed = error
        except Exception as error:  # safetensors has errors of its own
            failed = _unwritable(folder / name, error)
        every = peers.tell(f"{place}, the parts of its ranks", written, failed=failed)
        if peers.leads:
            _write_rest(temporary, data, every, about)
            into_place(temporary, folder / name, aside)
    except BaseException:
        if peers.leads:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder / name


def _of_all(state: Mapping[str, Any], told: list[Any]) -> dict[str, Any]:
    """Rank 0's state with what others have to add: hooks that did not run there, and generators that are elsewhere."""
    left = max((left for _, left, _ in told if left is not None), key=lambda left: len(left[1]), default=None)
    generators = [states for _, _, states in told]
    return {
        **state,
        **({"left": left} if left is not None else {}),
        **(
            {"generators of ranks": generators}
            if any(not _same(states, generators[0]) for states in generators)
            else {}
        ),
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _unwritable(path: Path, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CheckpointError(f"{path} cannot be written: {reason}")


# -- writing -----------------------------------------------------------------------------------------------------------


def _write_part(place: Path, tensors: Mapping[str, Tensor | Piece], peers: Peers) -> WrittenFile:
    """Write this rank's share of the tensors."""
    from safetensors.torch import save_file

    if not place.is_dir():
        raise CheckpointError(
            f"{place.parent} is not the same folder on all ranks: rank {peers.rank} does not see {place.name}, which "
            "rank 0 made there; checkpoints need a file system that all ranks share"
        )
    written = WrittenFile(part_name(peers.rank, peers.size))
    owners, mine = _owners(tensors, peers.size), {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Piece):
            flat, shape, start = tensor.tensor, tensor.shape, tensor.start
            ours = bool(flat.numel()) or (peers.leads and 0 in shape)
        else:
            flat, shape, start, ours = tensor.reshape(-1), tuple(tensor.shape), 0, owners[name] == peers.rank
            if name.startswith(_ALIKE):
                written.sums[name] = zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0
        if ours:
            mine[name] = flat
            written.pieces[name] = (dtype_name(flat.dtype), [*shape], start, start + flat.numel())
    save_file(unshared(mine), place / written.file)
    files.flush(place / written.file)
    written.size, written.crc = os.stat(place / written.file).st_size, checksum(place / written.file)
    return written


def _owners(tensors: Mapping[str, Tensor | Piece], ranks: int) -> dict[str, int]:
    """Which rank writes each tensor that all have: the largest first, each to the rank with the fewest bytes so far."""
    load, owners = [0] * ranks, {}
    whole = {name: t for name, t in tensors.items() if not isinstance(t, Piece)}
    for name, tensor in sorted(whole.items(), key=lambda item: (-item[1].nbytes, item[0])):
        owners[name] = load.index(min(load)) if name.startswith(_ALIKE) else 0
        load[owners[name]] += tensor.nbytes
    return owners


def _write_rest(place: Path, data: Any, every: list[WrittenFile], about: Mapping[str, Any]) -> None:
    """What rank 0 writes when all have: the other state, and the manifest."""
    tensors = _tensors(every)
    files.write_new(place / STATE, to_json(data, in_order=True))
    listed = {part.file: {"size": part.size, "crc32": part.crc} for part in every}
    listed[STATE] = {"size": os.stat(place / STATE).st_size, "crc32": checksum(place / STATE)}
    manifest = {
        **about,
        "format": SHARED_FORMAT,
        "ranks": len(every),
        "files": listed,
        "tensors": tensors,
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
    }
    files.write_new(place / MANIFEST, to_json({**manifest, "crc32": zlib.crc32(to_json(manifest))}))
    files.flush(place)


def _tensors(every: list[WrittenFile]) -> dict[str, Any]:
    """Dtype, shape and pieces of each tensor.

    Raises:
        CheckpointError: The ranks hold other values of what they should have alike, or some elements are on none.
    """
    for rank, part in enumerate(every[1:], 1):
        differ = [name for name, crc in every[0].sums.items() if part.sums.get(name) != crc]
        differ += [name for name in part.sums if name not in every[0].sums]
        if differ:
            raise CheckpointError(
                f"nothing is saved: ranks 0 and {rank} differ in {listing(differ[:3])}, which should be the same on "
                "all: something moved parameters or moments on one rank alone"
            )
    tensors: dict[str, Any] = {}
    for rank, part in enumerate(every):
        for name, (dtype, shape, start, stop) in part.pieces.items():
            tensors.setdefault(name, [dtype, shape, []])[2].append([rank, start, stop])
    for name, (_, shape, pieces) in tensors.items():
        pieces.sort(key=lambda piece: piece[1])
        ends = [0, *(stop for _, _, stop in pieces)]
        if [start for _, start, _ in pieces] != ends[:-1] or ends[-1] != torch.Size(shape).numel():
            raise CheckpointError(f"nothing is saved: not all elements of `{name}` are on some rank")
    return tensors
