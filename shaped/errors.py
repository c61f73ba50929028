"""The exceptions users see, and how an unsolved goal is printed.

    ShapedError
    ├── SignatureError     an annotation is missing, does not resolve, or is not understood     (TypeError)
    ├── ShapeError         tensors break their signature: shape, rank, dtype, device, count     (ValueError)
    ├── ProofError         refuted: some sizes break the program; the unsolved goal is shown
    ├── Unprovable         neither proved nor refuted: depends on data, or on a loop over a size
    ├── GradientError      a gradient is missing, or a gradient strategy gives other ones than the parameters need
    ├── NonFiniteError     a loss or a gradient is NaN or infinite; nothing was updated    (ArithmeticError)
    ├── ExecutorError      no room for another executor, or the compiler refused a graph
    ├── ExportError        a program cannot be exported, or computes something else where it was exported to
    ├── StateError         a state dict does not fit; nothing was loaded                        (ValueError)
    ├── RankError          another rank failed, is gone, or is somewhere else in the program
    └── CheckpointError    a checkpoint cannot be written or read, or is another's
        ├── CheckpointCorrupt   it is not what was written; nothing was loaded
        └── RunLocked           another process runs in this folder

A number out of range (a negative `lr`) is a plain ValueError. Each is raised before anything has changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any


class ShapedError(Exception):
    """Base of every error this library defines."""

    def __init_subclass__(cls) -> None:
        """A traceback ends in `shaped.ProofError: ...`, the name that users import and that pickle looks for."""
        package, _, _ = cls.__module__.rpartition(".")
        if cls.__module__.startswith("shaped."):
            cls.__module__ = package


ShapedError.__module__ = "shaped"


class SignatureError(ShapedError, TypeError):
    """An annotation is missing, does not resolve, or says something we do not understand."""


class ShapeError(ShapedError, ValueError):
    """Tensors break their signature."""


class GradientError(ShapedError):
    """A parameter that asks for a gradient gets none, or a gradient strategy gives what does not fit."""


class NonFiniteError(ShapedError, ArithmeticError):
    """A loss or a gradient is NaN or infinite. Parameters and state are as they were."""


class ExecutorError(ShapedError):
    """The executor cache is full, or a graph could not be compiled."""


class ExportError(ShapedError):
    """A program cannot be exported, or computes something else where it was exported to. Nothing was written."""


class StateError(ShapedError, ValueError):
    """A state dict does not fit. Nothing was loaded."""


class RankError(ShapedError):
    """Another rank of the run failed, is gone, or is somewhere else in the program."""


class CheckpointError(ShapedError):
    """A checkpoint cannot be written or read, or belongs to something else. Nothing was loaded."""


class CheckpointCorrupt(CheckpointError):
    """A checkpoint is not what was written; the message names the file. Nothing was loaded."""


class RunLocked(CheckpointError):
    """Another process runs in this folder."""


@dataclass(frozen=True)
class Source:
    """One line of the user's program, with the part that matters marked underneath."""

    file: str
    line: int
    text: str = ""  # the stripped line
    marks: str = ""  # "~~^~~", aligned with `text`

    def __str__(self) -> str:
        return f"{PurePath(self.file).name}:{self.line}"


@dataclass(frozen=True)
class Goal:
    """What was left to show when the proof got stuck, in the user's dimension names."""

    operation: str = ""  # the operator's name: "matmul"
    operands: str = ""  # "h : [batch, hidden]   @   p.w2.T : [classes, hidden]"
    equation: str = ""  # "hidden = classes"
    said: str = ""  # torch's own words, where no equation tells it better
    silent: str = ""  # what plain torch does without a word
    raised: str = ""  # the user's own exception
    context: Sequence[tuple[str, str, str]] = ()  # (name, shape, where it comes from)
    hint: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)  # concrete sizes that show the failure

    def lines(self) -> list[str]:
        """The goal as lines of `label  text`, one hypothesis a line."""
        width = max((len(name) for name, _, _ in self.context), default=0)
        shapes = max((len(shape) for _, shape, _ in self.context), default=0)
        hypotheses = [
            f"{name:<{width}} : {shape:<{shapes}}     {where}".rstrip() for name, shape, where in self.context
        ]
        rows = [
            (self.operation, self.operands),
            ("goal", self.equation),
            ("torch", self.said),
            ("silent", self.silent),
            ("raised", self.raised),
            *(("" if i else "context", text) for i, text in enumerate(hypotheses)),
            ("hint", self.hint),
            ("refuted", ", ".join(f"{name} = {size}" for name, size in self.sizes.items())),
        ]
        pad = max([7, *(len(label) for label, text in rows if text)])
        return [f"{label:<{pad}}  {text}" for label, text in rows if text]


class _Located(ShapedError):
    """An error at a line of the user's program.

    Attributes:
        title: What is wrong, in a line.
        source: Where.
        goal: What was left to show.
        names: Dimension names that the program reads as plain numbers there.
        lacking: The equality that an operation lacks, as two terms over dimension names, where it is one.
        between: Of what goes on without a word, the two shapes that should be one, as terms over dimension names.
        steps: The operations before it, as far as it is known.
        on_data: Whether a branch on data is what is not known.
        counts: Whether a whole number that data tell is in the way.
        absent: Whether it asks for a device that this machine does not have.
        untold: Whether it reads a value that nothing tells, whatever the sizes are.
        writes: Whether all that is wrong is that it writes into its arguments.
        assigns: Whether it gives a module another tensor, which at other sizes it may not.
    """

    names: tuple[str, ...] = ()
    steps: Sequence[Any] = ()
    on_data: bool = False
    counts: bool = False
    absent: bool = False
    untold: bool = False
    writes: bool = False
    assigns: bool = False
    lacking: tuple[Any, Any] | None = None
    between: tuple[Sequence[Any], Sequence[Any]] | None = None

    def __init__(self, title: str, source: Source | None = None, goal: Goal | None = None) -> None:
        self.title = title
        self.source = source
        self.goal = goal or Goal()
        super().__init__(title)

    def __str__(self) -> str:
        lines = [self.title]
        if self.source is not None:
            lead = f"  {self.source}   "
            lines.append(lead + self.source.text)
            if self.source.marks:
                lines.append(" " * len(lead) + self.source.marks)
        return "\n".join(lines + [f"  {line}" for line in self.goal.lines()])


class ProofError(_Located):
    """Refuted. `source` is the line, `goal` what could not be shown and sizes for which it is false."""


class Unprovable(_Located):
    """Neither proved nor refuted; `goal.hint` says what to declare so that it can be."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def listing(names: Sequence[str]) -> str:
    """`a`, `b` and `c`."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]])) if quoted else "none"


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean \\`hidden\\`?` if something known is close, else an empty string."""
    close = get_close_matches(name, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def columns(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """A table's rows as lines: the first `left` columns begin together, the others end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def brief(value: object) -> str:
    """A value in a table: a float in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
