"""Faults in what is read: rows 4 to 10, 36 and 37 of the matrix. Each returns (good, tried)."""

import json
import os
import pickle
import random
import resource
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shaped.checkpoint import Checkpoints, read_checkpoint
from shaped.checkpoint.codec import from_json, to_json
from shaped.errors import CheckpointCorrupt, CheckpointError, StateError
from tests.faults.runs import (
    FILES,
    Tally,
    digest,
    digest_of,
    folder,
    make,
    refused,
    saved,
)

# -- rows 4 to 10: what is read is not what was written --------------------------------------------------------------


def damaged(count: int, damage: Callable[[random.Random, dict[str, bytearray]], str], seed: int = 0) -> Tally:
    """Damage a checkpoint's files in many ways; each is refused. `damage` returns the name of a file it changed."""
    draw, good = random.Random(seed), 0
    with folder() as place:
        path = saved(place)
        intact = {name: (path / name).read_bytes() for name in FILES}
        for _ in range(count):
            contents = {name: bytearray(content) for name, content in intact.items()}
            name = damage(draw, contents)
            for file, changed in contents.items():
                (path / file).write_bytes(changed)
            good += refused(path, names=path.name if name == "*" else name)
            for file, content in intact.items():
                (path / file).write_bytes(content)
        read_checkpoint(path)
    return good, count


def flip(draw: random.Random, contents: dict[str, bytearray]) -> str:
    name = draw.choice(FILES)
    at = draw.randrange(len(contents[name]))
    contents[name][at] ^= 1 << draw.randrange(8)
    return name


def zero_or_swap(draw: random.Random, contents: dict[str, bytearray]) -> str:
    name = draw.choice(FILES)
    content, size = contents[name], draw.choice((512, 4096))
    before = bytes(content)
    a, b = (draw.randrange(0, len(content), 512) for _ in range(2))
    if draw.random() < 0.5:
        content[a : a + size] = bytes(len(content[a : a + size]))
    else:
        content[a : a + 512], content[b : b + 512] = content[b : b + 512], content[a : a + 512]
    if bytes(content) == before:  # zeros already, or swapped with itself
        return flip(draw, contents)
    return "*"


def truncate(draw: random.Random, contents: dict[str, bytearray]) -> str:
    name = draw.choice(FILES)
    del contents[name][0 if draw.random() < 0.2 else draw.randrange(len(contents[name])) :]
    return name


def missing_linked_and_swapped() -> Tally:
    """A file missing, a link, a pipe, a folder in its place, and the files of two checkpoints mixed."""
    good = tried = 0
    with folder() as place, folder() as other:
        path, strange = saved(place), saved(other, steps=4)
        for name in FILES:
            for kind in ("missing", "link", "pipe", "folder", "other"):
                kept = (path / name).rename(path.parent / "kept")
                if kind == "link":
                    (path / name).symlink_to(kept)
                elif kind == "pipe":
                    os.mkfifo(path / name)
                elif kind == "folder":
                    (path / name).mkdir()
                elif kind == "other":
                    shutil.copy(strange / name, path / name)
                tried += 1
                good += refused(path)
                shutil.rmtree(path / name) if kind == "folder" else (path / name).unlink(missing_ok=True)
                kept.rename(path / name)
        link = place / "step-00000009"
        link.symlink_to(path)
        good, tried = good + refused(link), tried + 1
    return good, tried


class Payload:
    """What an attacker would pickle."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def pickles_in_the_place_of_files() -> Tally:
    """A malicious pickle in the place of each file, with the manifest matching: refused, and nothing runs."""
    good = tried = 0
    with folder() as place:
        path, canary = saved(place), place / "canary"
        for name in FILES:
            for content in (pickle.dumps(Payload(canary)), _torch_saved(Payload(canary), place)):
                intact = (path / name).read_bytes(), (path / "manifest.json").read_bytes()
                (path / name).write_bytes(content)
                if name != "manifest.json":
                    forge(path, lambda m: None)
                tried += 1
                good += refused(path) and not canary.exists()
                (path / name).write_bytes(intact[0])
                (path / "manifest.json").write_bytes(intact[1])
    return good, tried


def _torch_saved(value: Any, place: Path) -> bytes:
    torch.save(value, place / "saved.pt")
    return (place / "saved.pt").read_bytes()


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the manifest so that its sizes and checksums match the files, after `change`."""
    manifest = from_json((path / "manifest.json").read_bytes())
    for name in manifest["files"]:
        content = (path / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "crc32": zlib.crc32(content)}
    change(manifest)
    manifest.pop("crc32", None)
    (path / "manifest.json").write_bytes(to_json({**manifest, "crc32": zlib.crc32(to_json(manifest))}))


def _header(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


BOMBS: dict[str, tuple[str, bytes]] = {
    "a huge shape": ("tensors.safetensors", _header({"a": {"dtype": "F32", "shape": [2**62, 4],
                                                           "data_offsets": [0, 16]}}, bytes(16))),
    "a negative shape": ("tensors.safetensors", _header({"a": {"dtype": "F32", "shape": [-4],
                                                               "data_offsets": [0, 16]}}, bytes(16))),
    "overlapping tensors": ("tensors.safetensors", _header({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
                                                            for n in "ab"}, bytes(16))),
    "a header of 200 MB": ("tensors.safetensors", (200 * 2**20).to_bytes(8, "little") + b"{}"),
    "a header of 2**63": ("tensors.safetensors", (2**63).to_bytes(8, "little") + b"{}"),
    "a hundred thousand tensors": ("tensors.safetensors", _header(b"{" + b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**5)) + b"}")),
    "deep JSON": ("state.json", b"[" * 100_000 + b"]" * 100_000),
    "a key twice": ("state.json", b'{"trainer":1,"trainer":2}'),
    "NaN as a number": ("state.json", b'{"loss":NaN}'),
    "a number of a million digits": ("state.json", b'{"step":' + b"9" * 10**6 + b"}"),
    "an unknown kind": ("state.json", b'{"$python":"os.system"}'),
    "a tensor that is not there": ("state.json", b'{"$tensor":"../../etc/passwd"}'),
    "bytes that are no text": ("state.json", bytes(range(256))),
}  # fmt: skip


def bombs() -> Tally:
    """Headers and JSON made to hurt, with matching checksums: refused at once, without the memory they ask for."""
    good = 0
    with folder() as place:
        path = saved(place)
        intact = {name: (path / name).read_bytes() for name in FILES}
        for name, content in BOMBS.values():
            (path / name).write_bytes(content)
            forge(path, lambda m: None)
            began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            stopped = refused(path)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
            good += stopped and time.process_time() - began < 2 and grown < 150 * 1024
            for file, content in intact.items():
                (path / file).write_bytes(content)
    return good, len(BOMBS)


VALUES: tuple[Any, ...] = (
    None, True, -1, 2**70, 1.5, "", "../../x", "/etc/passwd", "\0", [], {}, [[]], {"$tensor": 3}, {"$items": 1}
)  # fmt: skip


def fuzzed(count: int, seed: int = 0) -> Tally:
    """Manifests and states with values changed at random, checksums matching: read as they are, or refused by name."""
    draw, good = random.Random(seed), 0
    with folder() as place:
        path = saved(place)
        loop = make()
        before = digest(loop.trainer.state_dict())
        intact = {name: (path / name).read_bytes() for name in FILES}
        checkpoints = Checkpoints(place)
        for _ in range(count):
            if draw.random() < 0.5:
                state = json.loads(intact["state.json"])
                _mutate(draw, state)
                (path / "state.json").write_bytes(to_json(state))
                forge(path, lambda m: None)
            else:
                forge(path, lambda m: _mutate(draw, m))
            try:
                checkpoints.resume(loop, step=3)
                loop.load_state_dict(make_once().state_dict())
            except (CheckpointError, StateError):
                good += digest(loop.trainer.state_dict()) == before
            except Exception:
                pass
            else:
                good += 1
                before = digest(loop.trainer.state_dict())
            for file, content in intact.items():
                (path / file).write_bytes(content)
        checkpoints.close()
    return good, count


_once: list[Any] = []


def make_once() -> Any:
    if not _once:
        _once.append(make())
    return _once[0]


def _mutate(draw: random.Random, node: Any) -> None:
    """Change one value somewhere in a tree, or remove it."""
    while isinstance(node, dict | list) and node:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.8:
            node = node[key]
        elif draw.random() < 0.2:
            del node[key]
            return
        else:
            node[key] = draw.choice(VALUES)
            return


def other_runs() -> Tally:
    """Another model, optimizer or schedule: an error that lists every difference, and nothing is loaded."""
    good = 0
    others = [make("sgd"), make(hidden=9), make(accumulate=2)]
    others[2].keep("mine", others[2].average)
    with folder() as place:
        saved(place)
        checkpoints = Checkpoints(place)
        for loop in others:
            before = digest_of(loop)
            try:
                checkpoints.resume(loop)
            except CheckpointCorrupt:
                continue
            except CheckpointError as error:
                good += "of another run" in str(error) and before == digest_of(loop)
        good += checkpoints.steps() == [3]
        checkpoints.close()
    return good, len(others) + 1


def newer_formats() -> Tally:
    """A checkpoint of a newer format is refused with both numbers, and is not set aside."""
    with folder() as place:
        path = saved(place)
        forge(path, lambda m: m.update(format=3))
        checkpoints = Checkpoints(place)
        try:
            checkpoints.resume(make())
        except CheckpointCorrupt:
            return 0, 1
        except CheckpointError as error:
            return int("has format 3" in str(error) and "reads up to 2" in str(error) and path.is_dir()), 1
        finally:
            checkpoints.close()
    return 0, 1
