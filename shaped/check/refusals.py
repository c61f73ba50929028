"""Why a case says nothing of the program: no instance can be made, or the program refuses what it is given."""

import re

from shaped.errors import ProofError, Unprovable, first_line
from shaped.proof.ways import is_raised


def words(error: Exception, text: str = "") -> str:
    """`TypeError: ...`: its kind, and what it says or its first line; tensors of a trace are the user's tensors."""
    return as_options(f"{type(error).__name__}: {text or first_line(error)}".replace("FakeTensor", "Tensor"))


def as_options(text: str) -> str:
    """What a hint says of the arguments of `prove`, as options of the command: `--static time`."""

    def options(found: re.Match[str]) -> str:
        return " ".join(f"--static {name}" for name in re.findall(r"\w+", found[1])) or "--static NAME"

    return re.sub(r"static=\(([^()]*)\)(,? which|,?) proves each size( of (it|a dimension))? as it comes",
                  lambda found: f"{options(found)} takes it at a size", text)  # fmt: skip


def is_refusal(error: Exception) -> bool:
    """Whether it is a `raise` or an `assert` of the program's own."""
    return bool(error.goal.raised) if isinstance(error, ProofError | Unprovable) else is_raised(error)


class Unbuilt(Exception):
    """No instance could be made to call the method on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(first_line(error))
        self.error = error


class Refusal(Exception):
    """The program's own `assert` refuses an alternative, whatever the sizes are."""

    def __init__(self, error: ProofError | Unprovable) -> None:
        super().__init__(error.goal.raised)
        self.error = error
