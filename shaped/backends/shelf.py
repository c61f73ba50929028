"""A folder of kept programs: what one process compiled is found by the next without being asked for.

A file is named by a digest of all that must be the same where it is taken up, so that a program that was changed in
anything has another name. What is found is verified as every kept program is, and whatever is wrong with it is a miss:
one line on stderr, and the program is proved and compiled as ever, and kept in its place. The folder is bounded: what
was not used for the longest goes first. Several processes may use it; each file is written whole under its name.
"""

import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from shaped.backends import archive
from shaped.backends.compiled import Compiled
from shaped.backends.executors import tell
from shaped.backends.identity import name_now
from shaped.backends.kept import KeptProgram
from shaped.backends.packing import Made, packed
from shaped.backends.program import Program
from shaped.backends.reach import Untold
from shaped.errors import StateError, first_line

LARGEST = 512 * 2**20  # bytes of all files together
_OURS = re.compile(r"[0-9a-f]{40}\.program")
_LEFT = re.compile(r"\.tmp-[0-9a-f]{8}-[0-9a-f]{40}\.program")  # of which a kill left a part
_STALE = 3600.0  # seconds after which nobody writes it any more


def own_folder() -> Path:
    """Where a user's programs are kept: `SHAPED_CACHE_DIR`, or `shaped` in `XDG_CACHE_HOME` or `~/.cache`."""
    given = os.environ.get("SHAPED_CACHE_DIR")
    return (
        Path(given) / "programs"
        if given
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shaped" / "programs"
    )


def shelf_for(keep: bool | str | os.PathLike[str], static: Any, verify: bool) -> "Shelf | None":
    """The folder that a trainer's `keep` names; None where nothing is kept.

    Raises:
        ValueError: The other options leave nothing that could be kept.
    """
    if keep is False:
        return None
    if isinstance(static, str):
        raise ValueError('keep= keeps what is proved for dimensions that are named: static=("time",), not "auto"')
    if not verify:
        raise ValueError(
            "keep= keeps what was held against eager, and with verify=False nothing is: leave one of them out"
        )
    if keep is not True and not os.fspath(keep):
        raise ValueError("keep is an empty text; it is a folder, True or False")
    try:
        return Shelf(own_folder() if keep is True else Path(keep).expanduser())
    except RuntimeError:  # a user without a home
        tell("shaped: nothing is kept for the next start: no home folder is known; set SHAPED_CACHE_DIR")
        return None


class Shelf:
    """A folder of programs. Nothing that is wrong with it is an error.

    Args:
        folder: It is made once there is something to keep.
        asked: Whether a user asked for it, and is told where a program cannot be kept.
        largest: Bytes of all files together.
    """

    def __init__(self, folder: str | os.PathLike[str], *, asked: bool = True, largest: int | None = None) -> None:
        self.folder, self._asked, self._largest = Path(folder), asked, LARGEST if largest is None else largest
        self._said: set[str] = set()
        self._held: WeakKeyDictionary[Compiled, int] = WeakKeyDictionary()  # executors when it was kept last

    def find(self, loss: Any, params: Any, options: Mapping[str, Any]) -> KeptProgram | None:
        """The program of a trainer that is made of these, where it is there."""
        try:
            path = self._path(name_now(loss, params, options))
            if not os.path.lexists(path):
                return None
            found = KeptProgram(path, loss, params, options)
        except StateError as error:
            self.say(f"{first_line(error)}: it is compiled anew")
            return None
        except (Untold, OSError):  # it is not kept either, which is said then
            return None
        except Exception as error:  # ours or of a class of the user's: a cache stops no run
            self.say(f"no kept program is looked for: {type(error).__name__}: {first_line(error)}")
            return None
        found.ours = True
        with suppress(OSError):
            os.utime(path)  # used now
        return found

    def join(self, compiled: Compiled, given: Any) -> None:
        """Give a backend whose program was proved in this process what was compiled of it before."""
        program = compiled.program
        if program.kept is not None or program.together is not None or not self._any():
            return
        said, found = len(self._said), self.find(*given)
        if found is None:
            if len(self._said) == said:
                self.say(
                    f"no program in {self.folder} is of code, options and versions as they are now: it is compiled anew"
                )
            return
        try:
            found.join(program)
        except StateError as error:
            self.say(f"{first_line(error)}: it is compiled anew")

    def keep(self, compiled: Compiled, given: Any) -> None:
        """Keep what a backend compiled and held against eager, where that is more than the last time.

        Args:
            compiled: The backend.
            given: Loss, parameters and options as the trainer was given them.
        """
        before = compiled.program.kept
        own = isinstance(before, KeptProgram) and before.path.parent == self.folder
        held = sum(one.held and not (own and one.how == "kept") for one in compiled.executors)
        if held != self._held.get(compiled, 0):
            self._held[compiled] = held
            self._put(compiled.program, list(compiled.made()), given)

    def _put(self, program: Program, made: Sequence[Made], given: Any) -> None:
        if not program.outside.is_as_it_was():
            return  # what was compiled is of other values than are there
        try:
            content = packed(program, made, given)
            path = self._path(content.name)
            before = program.kept
            if isinstance(before, KeptProgram) and before.path == path:
                content.take_along(before)
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            archive.write(path, content.about, content.members)
            self._bound(path)
        except ValueError as error:
            if self._asked:
                self.say(f"nothing is kept for the next start: {first_line(error)}")
        except Exception as error:  # a full disk, or one of ours: a cache stops no run
            self.say(f"nothing is kept for the next start: {type(error).__name__}: {first_line(error)}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.program"

    def _bound(self, newest: Path) -> None:
        """Remove what was not used for the longest, as long as all is larger than it may be; never the newest."""
        found: list[tuple[float, int, Path]] = []
        for name in os.listdir(self.folder):
            path = self.folder / name
            with suppress(OSError):  # another process was faster
                state = os.lstat(path)
                if not stat.S_ISREG(state.st_mode):
                    continue
                if _OURS.fullmatch(name) and path != newest:
                    found.append((state.st_mtime, state.st_size, path))
                elif _LEFT.fullmatch(name) and state.st_mtime < time.time() - _STALE:
                    os.unlink(path)
        size = newest.stat().st_size + sum(size for _, size, _ in found)
        for _, own, path in sorted(found):
            if size <= self._largest:
                break
            with suppress(OSError):
                os.unlink(path)
            size -= own

    def _any(self) -> bool:
        try:
            return any(map(_OURS.fullmatch, os.listdir(self.folder)))
        except OSError:
            return False

    def say(self, what: str) -> None:
        """One line on stderr, once."""
        if what not in self._said:
            self._said.add(what)
            tell(f"shaped: {what}")
