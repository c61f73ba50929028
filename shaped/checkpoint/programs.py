"""What a run compiled, in a folder beside its checkpoints, so that a resume compiles nothing again.

It is no part of a checkpoint: one is whole without it. Whatever is wrong with it is a miss that is said in one line on
stderr, and stops neither a save nor a resume.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shaped.backends import Compiled, Shelf

if TYPE_CHECKING:
    from shaped.loop.loop import Loop
    from shaped.trainer import ScalarTrainer

_LARGEST = 64 * 2**20  # bytes of all that a run keeps


class RunPrograms:
    """The programs of a run's trainers, of one process.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._shelf = Shelf(folder / "programs", asked=False, largest=_LARGEST)

    def keep(self, loop: "Loop") -> None:
        """Keep what was compiled since the last time."""
        for trainer, compiled in self._compiling(loop):
            self._shelf.keep(compiled, trainer._made_of)

    def join(self, loop: "Loop") -> None:
        """Give the trainers what was compiled before they were made."""
        for trainer, compiled in self._compiling(loop):
            self._shelf.join(compiled, trainer._made_of)

    def _compiling(self, loop: "Loop") -> Iterator[tuple["ScalarTrainer", Compiled]]:
        if os.path.islink(self._shelf.folder):  # as for every file of a run
            self._shelf.say(f"{self._shelf.folder} is a link, and no program is kept there")
            return
        for trainer in {id(one): one for one in (loop.trainer, *loop.specs.values())}.values():
            compiled = trainer._compiling
            if compiled is not None and compiled.program.together is None:
                yield trainer, compiled
