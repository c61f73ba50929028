"""Why a case says nothing of the program: no instance can be made, or the program refuses what it is given."""

from shaped.errors import ProofError, Unprovable, first_line


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
