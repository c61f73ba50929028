"""Python's instructions on a second stack beside its own, which holds values as far as they are known."""

import dis
from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any, NamedTuple


class _Unknown:
    """A value on the stack that is not followed."""

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Any = _Unknown()
INPLACE = 13  # the first of the operators such as +=


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        effect, jumped: How much longer the stack is after it, and after it jumps.
        following: The offset of the next.
        counts: What it reads is only counted up and written back: `self.calls += 1`.
    """

    name: str
    arg: Any
    argval: Any
    effect: int
    jumped: int
    following: int
    counts: bool


@cache
def instructions(code: CodeType) -> dict[int, Instruction]:
    """By offset. A prefix for long arguments stands for the instruction that it belongs to."""
    found: dict[int, Instruction] = {}
    waiting: list[int] = []
    listed = [one for one in dis.get_instructions(code) if one.opname != "CACHE"]
    for i, one in enumerate(listed):
        if one.opname == "EXTENDED_ARG":
            waiting.append(one.offset)
            continue
        following = listed[i + 1].offset if i + 1 < len(listed) else -1
        arg = one.arg if one.opcode >= dis.HAVE_ARGUMENT else None
        effect, jumped = (dis.stack_effect(one.opcode, arg, jump=jump) for jump in (False, True))
        if one.opname == "CALL":  # Python 3.11 counts a part of it to PRECALL
            effect = jumped = -int(one.arg or 0) - 1
        counts = _counts(listed[i + 1 : i + 8])
        for offset in (*waiting, one.offset):
            found[offset] = Instruction(one.opname, one.arg, one.argval, effect, jumped, following, counts)
        waiting.clear()
    return found


def _counts(after: list[dis.Instruction]) -> bool:
    names = [one.opname for one in after if one.opname not in ("SWAP", "EXTENDED_ARG")]
    adds = [int(one.arg or 0) >= INPLACE for one in after if one.opname == "BINARY_OP"]
    first = names[:1] in (["LOAD_CONST"], ["LOAD_FAST"])
    return first and names[1:2] == ["BINARY_OP"] and adds[0] and names[2].startswith(("STORE_A", "STORE_G", "STORE_D",
                                                                                   "STORE_S"))  # fmt: skip


class Shadow:
    """The stack of one frame, as far as it is known, and the instruction that runs now.

    Attributes:
        function: Whose the frame is, if that is known.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.function: Any = None
        self.last: Instruction | None = None
        self.offset = -1
        self.jumped, self.effect = False, 0
        self.called = False  # a frame that is followed was entered since
        self.result: Any = UNKNOWN  # and what it returned, or yielded

    def pop(self) -> Any:
        """What is on top, taken off."""
        return self.stack.pop() if self.stack else UNKNOWN

    def push(self, value: Any) -> None:
        """Put on top."""
        self.stack.append(value)

    def pops(self, count: int) -> list[Any]:
        """The topmost, the last on top."""
        return [self.pop() for _ in range(count)][::-1]


def _constant(shadow: Shadow, arg: Any, argval: Any) -> None:
    shadow.push(argval)


def _copy(shadow: Shadow, arg: Any, argval: Any) -> None:
    shadow.push(shadow.stack[-arg] if len(shadow.stack) >= arg else UNKNOWN)


def _swap(shadow: Shadow, arg: Any, argval: Any) -> None:
    stack = shadow.stack
    if len(stack) < arg:
        stack[:0] = [UNKNOWN] * (arg - len(stack))
    stack[-1], stack[-arg] = stack[-arg], stack[-1]


def _pass_on(shadow: Shadow, arg: Any, argval: Any) -> None:
    shadow.pop()
    shadow.push(UNKNOWN)


def _compare_identity(shadow: Shadow, arg: Any, argval: Any) -> None:
    shadow.pops(2)
    shadow.push(UNKNOWN)


def _iterate(shadow: Shadow, arg: Any, argval: Any) -> None:
    if shadow.jumped:  # past the loop: some versions leave the iterator for the next instruction
        del shadow.stack[len(shadow.stack) + min(shadow.effect, 0) :]
    else:
        shadow.push(shadow.result)


def _drop(count: int) -> Callable[[Shadow, Any, Any], None]:
    def drop(shadow: Shadow, arg: Any, argval: Any) -> None:
        shadow.pops(count)

    return drop


_WAYS = ("", "FORWARD_", "BACKWARD_")
# Instructions that look into nothing.
PURE: dict[str, Callable[[Shadow, Any, Any], None]] = {
    "LOAD_CONST": _constant,
    "COPY": _copy,
    "SWAP": _swap,
    "YIELD_VALUE": _pass_on,
    "IS_OP": _compare_identity,
    "FOR_ITER": _iterate,
    **dict.fromkeys(("RESUME", "NOP", "PRECALL", "KW_NAMES", "COPY_FREE_VARS", "MAKE_CELL"), _drop(0)),
    **dict.fromkeys(("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"), _drop(0)),
    **dict.fromkeys(("STORE_FAST", "STORE_NAME", "STORE_DEREF", "STORE_GLOBAL", "POP_TOP", "RETURN_VALUE"), _drop(1)),
    **dict.fromkeys(("LIST_APPEND", "SET_ADD", "DELETE_ATTR"), _drop(1)),
    **{f"POP_JUMP_{way}IF_{of}": _drop(1) for way in _WAYS for of in ("NONE", "NOT_NONE")},
    **dict.fromkeys(("STORE_ATTR", "MAP_ADD", "DELETE_SUBSCR", "STORE_FAST_STORE_FAST"), _drop(2)),
    "STORE_SUBSCR": _drop(3),
}
ASKED = {f"POP_JUMP_{way}IF_{of}" for way in _WAYS for of in ("TRUE", "FALSE")}
