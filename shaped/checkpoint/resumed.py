"""Where a run goes on: what `Checkpoints.resume` found."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resumed:
    """What `resume` found.

    Attributes:
        step: Where the run goes on; 0 for a new run.
        path: The checkpoint that was loaded, or None for a new run.
        set_aside: Corrupt ones that were newer; each was renamed to `corrupt-...`.
    """

    step: int
    path: Path | None
    set_aside: tuple[Path, ...] = ()

    @property
    def fell_back(self) -> bool:
        """Whether a newer checkpoint was corrupt."""
        return bool(self.set_aside)

    def __str__(self) -> str:
        if self.path is None:
            return "a new run"
        aside = f"; set aside as corrupt: {', '.join(p.name for p in self.set_aside)}" if self.set_aside else ""
        return f"goes on from {self.path} at step {self.step}{aside}"
