"""One file of several members with their checksums, written whole or not at all and read whole before any of it counts.

What is in it may be run, so a file that others than its owner can write to is not read.
"""

import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import error as zlib_error

from shaped import files

_ABOUT = "about.json"
_MOST = 2**30  # bytes that are read


def write(path: Path, about: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
    """Write a file that its owner alone may read and write.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    head = json.dumps({"sums": sums, **about}).encode()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in {_ABOUT: head, **members}.items():
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        packed.comment = hashlib.sha256(head).hexdigest().encode()

    def put(temporary: Path) -> None:
        files.write_new(temporary, data.getvalue())
        os.chmod(temporary, 0o600)

    files.replace_by(path, put)


def read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What `write` was given, once all checksums are right.

    Raises:
        ValueError: It is no such file, is damaged, or others may write to it. OSError: It cannot be read.
    """
    descriptor = files.open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(file.fileno())
        if hasattr(os, "getuid"):
            if state.st_uid not in (os.getuid(), 0):
                raise ValueError("it belongs to another user, and what is in it would be run")
            if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ValueError("others may write to it, and what is in it would be run: chmod go-w")
        if state.st_size > _MOST:
            raise ValueError(f"it has {state.st_size:,} bytes, which is no program")
        content = file.read()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            infos = packed.infolist()
            if sum(info.file_size for info in infos) > _MOST or len({i.filename for i in infos}) != len(infos):
                raise ValueError("it is no kept program")
            members = {info.filename: packed.read(info) for info in infos}
            comment = packed.comment.decode("ascii", "replace")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, zlib_error) as error:
        raise ValueError(f"it is damaged, or no kept program: {error}") from None
    head = members.pop(_ABOUT, b"")
    if hashlib.sha256(head).hexdigest() != comment:
        raise ValueError("it is damaged, or no kept program: its checksum is wrong")
    about: dict[str, Any] = json.loads(head)
    sums = about.pop("sums")
    wrong = [name for name in {*sums, *members}
             if name not in members or hashlib.sha256(members[name]).hexdigest() != sums.get(name)]  # fmt: skip
    if wrong:
        raise ValueError(f"it is damaged: the checksum of {min(wrong)} is wrong")
    return about, members
