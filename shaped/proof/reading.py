"""What instructions of the user's code read: each handler does to the second stack what the instruction does.

Where an object goes somewhere that is not followed (into C, into a library), everything in it counts as read.
"""

import sys
import types
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from decimal import Decimal
from functools import partial
from importlib.util import resolve_name
from types import CodeType, FrameType
from typing import Any

from torch import Tensor

from shaped.errors import Source
from shaped.params import ParamList
from shaped.proof.answers import NOT_KNOWN, answered, calculates, enclosed
from shaped.proof.closures import Functions, above, callee, taken_by
from shaped.proof.contents import own_dictionary
from shaped.proof.drawn import READ, VERSION, WAITED, Drawn, draws, opens, waits
from shaped.proof.instructions import ASKED, INPLACE, PURE, UNKNOWN, Shadow, instructions
from shaped.proof.isolation import say, stands_in
from shaped.proof.log import Log, of_class
from shaped.proof.lookups import function_of, has_switches, looked_up
from shaped.proof.reads import (
    ATTRIBUTE,
    CELL,
    ITEM,
    MISSING,
    NOT_READ,
    PLAIN,
    is_container,
    is_leaf,
    is_library,
    is_opaque,
    is_traced,
    own,
)
from shaped.proof.scripted import asks_sizes
from shaped.proof.source import Place, is_users
from shaped.proof.standing import real_of

_SOLE = {id(f) for f in (isinstance, issubclass, id, type, callable, super, print, say)}  # read nothing of a loss
_WRITES = {"append", "add", "update", "extend", "insert", "clear"}  # methods of containers that only write
_MOVES = {"pop", "popitem", "popleft", "rotate", "setdefault", "sort", "reverse", "move_to_end"}  # and that do both
_LAYOUT = {"requires_grad", "is_leaf", "is_contiguous", "stride", "storage_offset"}  # of a tensor
_KEYED = {"get", "__getitem__", "__contains__"}


class Reading:
    """Reads as instructions make them.

    Attributes:
        log: What was read.
        drawn: What gives another value each time, and where it was read first.
        scripted: Where a function of TorchScript is called that reads sizes.
        followed: By code object: whether its frames are followed.
    """

    def __init__(self) -> None:
        self.log = Log()
        self.drawn: Drawn | None = None
        self.scripted: Source | None = None
        self.followed: dict[Any, bool] = {}
        self.functions = Functions()
        self.contexts: set[ContextVar[Any]] = set()  # by the program itself
        self._counts = False
        self.inputs: dict[int, str] = {}  # by id: what stands for an input
        self.looks = ""  # what is read of one beside its values

    def begin(self, frame: FrameType, shadow: Shadow) -> None:
        """Before an instruction runs, look at what it may change of what the program reads."""
        last, taken = shadow.last, taken_by(shadow)
        name, arg = (last.name, last.arg) if last is not None else ("", 0)
        owner = shadow.stack[-2] if len(shadow.stack) > 1 else UNKNOWN
        if (name == "DELETE_SUBSCR" or (name == "BINARY_OP" and arg >= INPLACE)) and isinstance(owner, NOT_READ):
            self.log.write(owner)
        function = next((head for head in taken[:2] if head is not UNKNOWN and callable(head)), None)
        if function is not None and (waited := waits(function)):
            self.note(frame, waited)
        if isinstance(function, types.BuiltinFunctionType) and id(function) not in _SOLE:
            moved = [function.__self__] if function.__name__ in _MOVES else []
            self.use([one for one in (*moved, *taken[2:]) if isinstance(one, NOT_READ)])

    def finish(self, frame: FrameType, shadow: Shadow, offset: int) -> None:
        """Do to the second stack what the last instruction did to Python's; `offset` is where it has gone."""
        if shadow.last is None:
            return
        name, arg, argval, effect, jumped, following, self._counts = shadow.last
        shadow.jumped = offset not in (following, -1)
        effect = shadow.effect = jumped if shadow.jumped else effect
        before = len(shadow.stack)
        if name in PURE:
            PURE[name](shadow, arg, argval)
        elif name in _HANDLERS:
            _HANDLERS[name](self, frame, shadow, arg, argval)
        elif effect > 0:
            shadow.stack += [UNKNOWN] * effect
        else:
            self.use(shadow.pops(1 - effect))
            shadow.push(UNKNOWN)
        missing = effect - (len(shadow.stack) - before)
        if missing > 0 and name in _HANDLERS:  # such as the NULL that calls take beside a function
            shadow.stack[len(shadow.stack) - 1 : len(shadow.stack) - 1] = [UNKNOWN] * missing

    def use(self, values: Sequence[Any]) -> None:
        """These go where they are not followed: all that is in them counts as read."""
        for value in values:
            if value is not UNKNOWN:
                self.log.deep(value)

    def _local(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        known = frame.f_locals
        for name in argval if isinstance(argval, tuple) else (argval,):
            shadow.push(known.get(name, UNKNOWN))

    def _store_load(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        shadow.pop()
        shadow.push(frame.f_locals.get(argval[1], UNKNOWN))

    def _global(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        owner: dict[str, Any] = frame.f_globals
        value = owner.get(argval, MISSING)  # a builtin that a global may hide, then
        if not stands_in(value) and not str(owner.get("__name__")).startswith("torch."):  # len and math do in a trace
            self.log.root(owner)
            self.read(frame, PLAIN, owner, argval, value)
        if value is MISSING and is_leaf(given := frame.f_builtins.get(argval)):
            self.log.root(frame.f_builtins)
            self.read(frame, PLAIN, frame.f_builtins, argval, given)
        shadow.push(frame.f_builtins.get(argval, UNKNOWN) if value is MISSING else value)

    def _name(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        if frame.f_locals is not frame.f_globals and argval in frame.f_locals:
            shadow.push(frame.f_locals[argval])
        else:
            self._global(frame, shadow, arg, argval)

    def _free(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        value = frame.f_locals.get(argval, UNKNOWN)
        if value is not UNKNOWN:
            for cell in self.functions.cells(frame.f_code, argval, value, shadow.function):
                self.log.root(cell)
                self.read(frame, CELL, cell, argval, value)
        shadow.push(value)

    def _attribute(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        owner = shadow.pop()
        shadow.push(self._attribute_of(frame, shadow, owner, argval))

    def _attribute_of(self, frame: FrameType, shadow: Shadow, owner: Any, name: str) -> Any:
        if isinstance(owner, Tensor):
            return self._of_tensor(frame, owner, name)
        if owner is UNKNOWN or (is_leaf(owner) and own_dictionary(owner) is None):
            return UNKNOWN
        if isinstance(owner, ParamList):
            return self._of_parameters(frame, owner, name)
        if (function := function_of(owner, name)) is not None:
            self.log.calls.setdefault((id(function.owner), name), function)
        found = looked_up(owner, name)
        if found is None:  # code decides: a frame that is followed, or a library's
            if not shadow.called:
                self.log.deep(owner)
            return shadow.result
        if isinstance(owner, types.ModuleType) and (drawn := draws(found[1], -1)):
            self.note(frame, drawn)
        if found[0] and has_switches(owner):
            self.log.root(owner, str(own(owner, "__name__", type(owner).__module__)))
        for kind, holder, key, value in found[0]:
            self.log.alias(holder, owner)
            self.read(frame, kind, holder, key, value)
        if found[1] is UNKNOWN and shadow.called:
            return shadow.result
        if found[1] is UNKNOWN and all(isinstance(read[3], property) for read in found[0]):
            self.log.deep(owner)  # a property whose code is a library's, or C's
        return found[1]

    def _of_tensor(self, frame: FrameType, owner: Tensor, name: str) -> Any:
        """An attribute that the user put on a tensor; of a stand-in for a parameter, that of the parameter."""
        real = real_of(owner)
        if name == "_version":
            self.note(frame, VERSION)
        if id(owner) in self.inputs and (name in _LAYOUT or not hasattr(type(owner), name)):
            self.looks = self.looks or f"`{self.inputs[id(owner)]}.{name}`"
        if is_traced(real) or (name != "requires_grad" and hasattr(type(real), name)):
            return UNKNOWN
        value = getattr(real, name, MISSING)
        if name != "requires_grad":
            self.log.root(real)
        self.read(frame, ATTRIBUTE, real, name, value)
        return UNKNOWN if value is MISSING else value

    def _of_super(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        shadow.pops(3)
        shadow.push(self._attribute_of(frame, shadow, above(frame), argval))

    def _of_parameters(self, frame: FrameType, owner: ParamList, name: str) -> Any:
        value = getattr(owner, name, UNKNOWN) if name in ".".join(owner.names).split(".") else UNKNOWN
        if isinstance(value, Tensor | ParamList):
            self.read(frame, ATTRIBUTE, owner, name, value)
            return value
        self.log.deep(owner)
        return UNKNOWN

    def _item(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        key, owner = shadow.pop(), shadow.pop()
        coded = shadow.called and not isinstance(owner, dict)  # a dictionary may have code for what is missing alone
        value = UNKNOWN if coded else self._item_of(frame, owner, key)
        shadow.push(shadow.result if shadow.called else value)

    def _item_of(self, frame: FrameType, owner: Any, key: Any) -> Any:
        if owner is UNKNOWN or isinstance(owner, Tensor):
            return UNKNOWN
        simple = key is not UNKNOWN and isinstance(key, str | int | bool) and is_container(owner, exact=True)
        if simple:
            kind = PLAIN if isinstance(owner, dict) else ITEM
            try:
                value = dict.get(owner, key, MISSING) if kind == PLAIN else owner[key]
            except (KeyError, IndexError, TypeError):
                value = MISSING
            self.read(frame, kind, owner, key, value)
            return UNKNOWN if value is MISSING else value
        self.log.deep(owner)
        return UNKNOWN

    def _contains(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        owner, key = shadow.pop(), shadow.pop()
        if type(owner) is dict and isinstance(key, str | int):
            self.read(frame, PLAIN, owner, key, owner.get(key, MISSING))
        else:
            self.use([owner])
        shadow.push(UNKNOWN)

    def _used(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        self.use([shadow.pop()])

    def _asked(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        value = shadow.pop()
        if is_container(value):
            self.log.deep(value)

    def _spread(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        value = shadow.pop()
        parts = list(value) if type(value) in (tuple, list) and len(value) == arg else [UNKNOWN] * arg
        self.use([value])
        shadow.stack += reversed(parts)

    def _spread_rest(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        self.use([shadow.pop()])
        shadow.stack += [UNKNOWN] * (shadow.effect + 1)

    def _matched(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        self.use(shadow.stack[-2:-1])  # the mapping whose keys a pattern names
        shadow.push(UNKNOWN)

    def _entered(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        self.use([shadow.pop()])
        shadow.stack += [UNKNOWN, UNKNOWN]

    def _imported(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        names, level = shadow.pop(), shadow.pop()
        name = str(argval)
        if isinstance(level, int) and level:
            name = resolve_name("." * level + name, str(frame.f_globals.get("__package__") or ""))
        module = sys.modules.get(name if names else name.partition(".")[0], UNKNOWN)
        if module is not UNKNOWN and not is_opaque(module):
            self.log.root(vars(module), module.__name__)
        shadow.push(module)

    def _from_module(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        owner = shadow.stack[-1] if shadow.stack else UNKNOWN
        shadow.push(self._attribute_of(frame, shadow, owner, argval))

    def _made(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        code = shadow.pop()
        self.functions.make(code, frame.f_code)
        extra = sum(bool(int(arg or 0) & bit) for bit in (1, 2, 4, 8))
        for _ in range(extra if sys.version_info < (3, 13) else 0):
            shadow.pop()
        shadow.push(UNKNOWN)

    def _call(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        taken = shadow.pops(int(arg or 0) + 2)
        shadow.push(self._called(frame, shadow, taken[:2], taken[2:]))

    def _call_named(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        shadow.pop()
        self._call(frame, shadow, arg, argval)

    def _call_spread(self, frame: FrameType, shadow: Shadow, arg: Any, argval: Any) -> None:
        taken = shadow.pops(3 + int(arg or 0) % 2)
        self.use([part for part in taken[2:] if is_container(part)])
        given = [v for part in taken[2:] if is_container(part)
                 for v in (part.values() if isinstance(part, dict) else part)]  # fmt: skip
        shadow.push(self._called(frame, shadow, taken[:2], given))

    def _called(self, frame: FrameType, shadow: Shadow, heads: list[Any], given: list[Any]) -> Any:
        """Say what a call reads, and give its result if it is known."""
        function = next((head for head in heads if head is not UNKNOWN and callable(head)), UNKNOWN)
        if function is UNKNOWN:
            self.use(given)
            return UNKNOWN
        self.meet(function)
        if self.scripted is None and asks_sizes(function):
            self.scripted = Place(frame, frame.f_lasti, frame.f_lineno).source()
        owner, name = own(function, "__self__", None), own(function, "__name__", "")
        drawn = "" if id(function) in _SOLE else draws(function, len(given)) or opens(function, given)
        if drawn in READ or (drawn and (owner is None or isinstance(owner, types.ModuleType | type))):
            self.note(frame, drawn)  # a generator that is made within has a seed; others are told where they are read
        if isinstance(function, type):
            self._made_of(frame, function)
        if shadow.called and self._follows(function):
            return UNKNOWN if isinstance(function, type) else shadow.result
        answer = answered(self, frame, function, given)
        if answer is not NOT_KNOWN:
            return answer
        if function is super and not given:
            return above(frame)
        if function is type and len(given) == 1 and given[0] is not UNKNOWN:
            return type(given[0])
        if id(function) in _SOLE or (isinstance(function, type) and issubclass(function, BaseException)):
            return UNKNOWN
        if function in (getattr, hasattr) and len(given) >= 2 and isinstance(given[1], str):
            value = self._attribute_of(frame, shadow, given[0], given[1])
            return value if function is getattr else UNKNOWN
        if isinstance(owner, NOT_READ) and name in _WRITES:
            self.log.write(owner)
            self.use(given)
            return UNKNOWN
        if type(owner) is dict and name in _KEYED and given and isinstance(given[0], str | int):
            value = self._item_of(frame, owner, given[0])
            return value if name != "__contains__" else UNKNOWN
        bound = [] if owner is None or isinstance(owner, types.ModuleType | type) else [owner]
        if not isinstance(function, types.FunctionType | types.BuiltinFunctionType | types.MethodType | type):
            bound += [] if type(function).__module__.startswith("torch") else [function]
        elif isinstance(function, types.FunctionType) and not is_library(function.__module__):
            enclosed(self, frame, function)  # of a decorator of the standard library's
        self.use([*bound, *given])
        return UNKNOWN

    def _made_of(self, frame: FrameType, kind: type) -> None:
        """What a class makes is not known here, and `Config().rate` may be the class's own."""
        following = instructions(frame.f_code).get(frame.f_lasti)
        for read in of_class(kind, getattr(kind, "__dataclass_fields__", ())) if following is not None else ():
            if following is not None and read[2] == following.argval:
                self.log.root(kind)
                self.read(frame, *read)

    def _follows(self, function: Any) -> bool:
        """Whether a call of it is a frame that is followed, and no callback of a library's."""
        while isinstance(function, types.MethodType):
            function = function.__func__
        code = own(function, "__code__", None)
        if code is None:
            return not isinstance(function, types.BuiltinFunctionType | types.MethodWrapperType)
        return self.followed.get(code, False)

    # -- what is read ------------------------------------------------------------------------------------------------

    def read(self, frame: FrameType, kind: str, owner: Any, key: Any, value: Any) -> None:
        self.meet(value, outside=partial(self.log.is_outside, owner))
        if getattr(value, "__module__", None) == "decimal" or isinstance(value, Decimal):
            calculates(self.log)
        if self._counts and isinstance(value, int | float):
            self.log.count(kind, owner, key)
            return
        self.log.add(kind, owner, key, value)
        drawn = draws(value, -1)
        if drawn and self.log.is_outside(owner):
            self.note(frame, drawn)

    def note(self, frame: FrameType, what: str) -> None:
        """What gives another value each time is read in a frame, which counts where it is the user's."""
        # A log, a collector's hook, or a table that a library keeps in a file.
        libraries = what in READ - WAITED and "site-packages" in frame.f_code.co_filename
        if self.drawn is None and is_users(frame) and not libraries:
            self.drawn = Drawn(what, Place(frame, frame.f_lasti, frame.f_lineno).source())

    def meet(self, value: Any, root: bool = False, outside: Callable[[], bool] | None = None) -> None:
        """A function that may be called: its closure and defaults are part of what it reads.

        Args:
            value: The function, or anything else.
            root: It is called first of all.
            outside: Whether it was read from outside.
        """
        while isinstance(value, types.MethodType | staticmethod | classmethod):
            if isinstance(value, types.MethodType):
                self.log.add(ATTRIBUTE, value, "__self__", value.__self__)
            value = value.__func__
        if isinstance(value, types.FunctionType):
            if root:
                self.followed[value.__code__] = True
            if self.functions.add(value, outside) and not is_library(value.__module__):
                self.log.root(value)  # what edits a running program gives its functions another code
                self.log.add(ATTRIBUTE, value, "__code__", value.__code__)
        elif isinstance(value, partial):
            self.meet(value.func)
            if not str(getattr(value.func, "__module__", "")).startswith("shaped.backends."):  # a module's program
                self.log.deep(value)

    def enter(self, code: CodeType, caller: Shadow | None) -> Any:
        """A frame of this code begins: its function, if it is known; the defaults are read."""
        function = None if caller is None else callee(caller, code)
        if function is not None:
            self.meet(function)
        for one in self.functions.of(code) if function is None else [function]:
            for name in ("__defaults__", "__kwdefaults__"):
                held = getattr(one, name, None)
                if not held:
                    continue
                self.log.add(ATTRIBUTE, one, name, held)
                pairs = held.items() if isinstance(held, dict) else enumerate(held)
                for key, value in pairs:
                    self.meet(value)
                    self.log.add(PLAIN if isinstance(held, dict) else ITEM, held, key, value)
        return function


Handler = Callable[[Reading, FrameType, Shadow, Any, Any], None]
_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_AND_CLEAR", "LOAD_FAST_LOAD_FAST"), Reading._local),
    "STORE_FAST_LOAD_FAST": Reading._store_load,
    "LOAD_GLOBAL": Reading._global,
    "LOAD_NAME": Reading._name,
    **dict.fromkeys(("LOAD_DEREF", "LOAD_CLASSDEREF"), Reading._free),
    **dict.fromkeys(("LOAD_ATTR", "LOAD_METHOD"), Reading._attribute),
    "LOAD_SUPER_ATTR": Reading._of_super,
    "BINARY_SUBSCR": Reading._item,
    "CONTAINS_OP": Reading._contains,
    **dict.fromkeys(("LIST_EXTEND", "SET_UPDATE", "DICT_UPDATE", "DICT_MERGE"), Reading._used),
    **dict.fromkeys(ASKED, Reading._asked),
    "UNPACK_SEQUENCE": Reading._spread,
    "UNPACK_EX": Reading._spread_rest,
    "MATCH_KEYS": Reading._matched,
    "BEFORE_WITH": Reading._entered,
    "IMPORT_NAME": Reading._imported,
    "IMPORT_FROM": Reading._from_module,
    "MAKE_FUNCTION": Reading._made,
    "CALL": Reading._call,
    "CALL_KW": Reading._call_named,
    "CALL_FUNCTION_EX": Reading._call_spread,
}
