"""Why a case says nothing of the program: no instance can be made, or the program refuses what it is given."""

from shaped.errors import ProofError, Unprovable, first_line
from shaped.proof.ways import is_raised


def words(error: Exception, text: str = "") -> str:
    """`TypeError: ...`: its kind, and what it says or its first line; tensors of a trace are the user's tensors."""
    return f"{type(error).__name__}: {text or first_line(error)}".replace("FakeTensor", "Tensor")


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
