"""What a program reads from outside while it is traced: each instruction of the user's frames, with what it reads.

A trace turns Python into a graph, and every number, flag and tensor that Python looked up on the way is in the graph as
it was. So the frames of the user's code are followed instruction by instruction beside the trace, with a second stack
that holds what Python's own holds, as far as it is known: `CONFIG.beta` is read from the globals, then from the object.

Nothing here runs the user's code: attributes are looked up in dictionaries, and properties are frames of their own.
"""

import gc
import inspect
import os
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from shaped.errors import Goal, Unprovable
from shaped.proof.drawn import READ, WAITED, Drawn, asks
from shaped.proof.instructions import UNKNOWN, Shadow, instructions
from shaped.proof.isolation import Asks
from shaped.proof.reading import Reading
from shaped.proof.reads import WHOLE, Reads, is_array, is_traced, parts
from shaped.proof.source import is_users

_TORCH = os.path.dirname(torch.__file__)
# torch's own code that reads what users set on modules: rates, modes, hooks, statistics.
_MODULES = tuple(os.path.join(_TORCH, "nn", room) for room in ("modules", "utils"))
# Who enters these may be called back by the backward pass: functions of the user's, and hooks on saved tensors.
_RETURNING = {os.path.join(_TORCH, *path) for path in (("autograd", "function.py"), ("autograd", "graph.py"))}
_HOOKS = {"register_hook", "register_post_accumulate_grad_hook", "grad_fn"}
# A tensor's values as Python's or NumPy's.
_READ_OUT = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    *(Tensor.__index__, Tensor.__complex__),
}
# Raised in the program for want of an answer: an `except` of the user's may take it, and a call would not go there.
_UNANSWERED = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException, Unprovable, Asks)
_LEAVES = "is not supported for tensor subclasses"  # of NumPy's form of a tensor
_CALL_BACK = {"grad", "backward", "apply", "map"}  # operations that run code of the user's
_LOOKS = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_NAME", "BINARY_SUBSCR"}
_RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Watching:
    """A context in which the user's frames of this thread are followed.

    Args:
        roots: What the program has from the start: a loss, a strategy, the modules that are trained.
        name: Of the program.
    """

    def __init__(self, roots: Iterable[Any] = (), name: str = "") -> None:
        self._name = name
        self._reading = Reading()
        self._found = Reads()
        self._frames: dict[FrameType, Shadow] = {}
        self._ran: dict[CodeType, str] = {}
        self._asking: dict[CodeType, str] = {}  # what functions of the standard library ask the system for
        self._before: Any = None
        self._paused = False
        self.unanswered: BaseException | None = None  # what no trace knows was asked, and may be caught by the program
        self.returns = False  # code of the user's may run in the backward pass: a checkpoint, a hook, a function
        self._generators: Any = None
        for hook in gc.callbacks:  # which run at any time, and are none of the program's
            self._reading.followed[getattr(hook, "__code__", None)] = False
        for root in roots:
            self._reading.log.root(getattr(root, "__self__", root))
            self._reading.meet(root, root=True)

    def __enter__(self) -> "Watching":
        self._before, self._generators = sys.gettrace(), _generators()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for one such frame when tracing begins
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        sys.settrace(self._before)
        self._frames.clear()
        self._found = self._reading.log.reads()
        self._found.codes, self._found.looks = frozenset(self._ran.items()), self._reading.looks
        if self._reading.drawn is None and _generators() != self._generators:
            self._reading.drawn = Drawn("a generator of Python's or NumPy's", None)
        missed = self.unanswered
        if missed is not None and error is not missed and (kind is None or issubclass(kind, Exception)):
            raise missed  # the program caught it, and went on as no call of it does

    def given(self, inputs: Mapping[str, Tensor]) -> None:
        """The tensors that stand for the program's own in this trace, by name."""
        self._reading.inputs = {id(tensor): name for name, tensor in inputs.items()}

    def reads(self, is_loss: bool) -> Reads:
        """What was read from outside.

        Raises:
            Unprovable: A loss draws from what torch does not seed, or reads the clock or a file; or TorchScript reads
                sizes.
        """
        drawn, scripted = self._reading.drawn, self._reading.scripted
        if scripted is not None:
            raise Unprovable(
                f"`{self._name}` calls a function of TorchScript here that reads sizes, which are plain numbers to it, "
                "so this holds for one size only.",
                scripted,
                Goal(hint="call the function that it was made of, without torch.jit; or declare static=(...)"),
            )
        if drawn is not None and is_loss:
            raise self._refusal(drawn)
        self._found.drawn = drawn.what if drawn is not None else ""
        return self._found

    def _refusal(self, drawn: Drawn) -> Unprovable:
        is_read = drawn.what in READ
        hint = (
            "read it outside, and pass it as an input"
            if is_read
            else "draw outside and pass it as an input, or draw from torch's default generator"
        )
        done = "reads" if is_read else "draws from"
        return Unprovable(
            f"`{self._name}` {done} {drawn.what}, which a compiled step would not do again.",
            drawn.source,
            Goal(hint=hint),
        )

    def enters(self, operation: str, operands: Sequence[Tensor], function: Any = None) -> bool:
        """An operation begins: follow no new frame until `resume`. False if the operation may call the user's code."""
        self.returns = self.returns or operation in _HOOKS
        if function in _READ_OUT:
            for tensor in operands:
                if not is_traced(tensor):
                    self._reading.log.add(WHOLE, tensor, None, parts(tensor))
        if self._paused or operation in _CALL_BACK or sys.gettrace() != self._enter_frame:
            return False
        self._paused = True
        if sys.version_info < (3, 12):  # later, each change makes all running code look again for what is traced
            sys.settrace(None)
        return True

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Around the backward pass, which is followed only where code of the user's may run in it."""
        paused = not self.returns and self.enters("", ())
        try:
            yield
        finally:
            if paused:
                self.resume()

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        if sys.version_info < (3, 12):
            sys.settrace(self._enter_frame)

    # -- frames ------------------------------------------------------------------------------------------------------

    def _enter_frame(self, frame: FrameType, event: str, arg: Any) -> Any:
        if self._paused:
            return None
        code = frame.f_code
        if code.co_name == "<module>":  # one that is imported as the program runs: what that runs is no part of it
            self._paused, frame.f_trace_lines = True, False
            return self._importing
        follow = self._reading.followed.get(code)
        if follow is None:
            follow = self._reading.followed[code] = _is_followed(frame)
            self.returns = self.returns or code.co_filename in _RETURNING
            asked = "" if follow else asks(str(frame.f_globals.get("__name__")), code.co_name)
            if asked:
                self._asking[code] = asked
        if not follow:
            if code in self._asking and frame.f_back is not None:
                self._reading.note(frame.f_back, self._asking[code])
            return None
        caller = self._frames.get(frame.f_back) if frame.f_back is not None else None
        if caller is not None:
            caller.called, caller.result = True, UNKNOWN
        if frame not in self._frames:
            self._frames[frame] = shadow = Shadow()
            self._ran.setdefault(code, str(frame.f_globals.get("__name__")))
            shadow.function = self._reading.enter(code, caller)
        frame.f_trace = self._within  # Python 3.13 asks for it before it tells of instructions
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._within

    def _importing(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._paused = self._paused and event != "return"
        return self._importing

    def _within(self, frame: FrameType, event: str, arg: Any) -> Any:
        shadow = self._frames.get(frame)
        if shadow is None:
            return None
        if event == "opcode":
            offset = frame.f_lasti
            found = instructions(frame.f_code).get(offset)
            if found is shadow.last and offset != shadow.offset and shadow.last is not None:
                shadow.offset = offset  # a prefix and its instruction may both be told of
                return self._within
            self._reading.finish(frame, shadow, offset)
            shadow.last, shadow.offset, shadow.called, shadow.result = found, offset, False, UNKNOWN
            self._reading.begin(frame, shadow)
            if self._reading.drawn is not None and self._reading.drawn.what in WAITED:
                raise self._refusal(self._reading.drawn)
        elif event == "exception":
            left = type(arg[1]) in (RuntimeError, TypeError) and _LEAVES in str(arg[1])
            if self.unanswered is None and (left or isinstance(arg[1], _UNANSWERED)):
                self.unanswered = arg[1]
            if shadow.last is not None and shadow.last.name in _LOOKS:  # what is not there may come
                self._reading.finish(frame, shadow, -1)
            shadow.stack.clear()
            shadow.last = None
        elif event == "return":
            self._reading.finish(frame, shadow, -1)
            shadow.last = None
            if not frame.f_code.co_flags & _RESUMED:
                self._frames.pop(frame, None)
            caller = self._frames.get(frame.f_back) if frame.f_back is not None else None
            if caller is not None:
                caller.result = arg
        return self._within


def _generators() -> Any:
    """The states of the generators that torch does not seed."""
    numpy = sys.modules.get("numpy.random")
    state = numpy.get_state() if numpy is not None else ()
    return random.getstate(), [part.tobytes() if is_array(part) else part for part in state]


def _is_followed(frame: FrameType) -> bool:
    """Whether a frame may read what users set: theirs, and those of torch's modules; not what a library generates."""
    name = frame.f_code.co_filename
    if name.startswith("<"):
        module = frame.f_globals.get("__name__")  # code that is executed in a namespace of its own has none
        if module is None:
            return name == "<string>"
        return not name.startswith("<frozen") and module in sys.modules and is_users(frame)
    return name.startswith(_MODULES) or is_users(frame)
