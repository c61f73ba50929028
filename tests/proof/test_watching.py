"""What a program reads from outside is found, whatever way it is written, and nothing else."""

import builtins
import contextlib
import functools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from shaped.proof.reads import MISSING, WHOLE, Read, is_leaf
from shaped.proof.watching import Watching

weight, flag, unread = 0.5, True, 3
CONFIG: dict[str, Any] = {"beta": 0.1, "step": 3, "deep": {"sizes": [1, 2]}}
EMPTY: list[float] = []


@dataclass
class Rates:
    a: float = 1.0
    b: float = 2.0

    @property
    def twice(self) -> float:
        return self.b * 2

    def times(self, k: float) -> float:
        return self.a * k


class Slots:
    __slots__ = ("q", "r")

    def __init__(self) -> None:
        self.q, self.r = 1.5, 2.0


class Limits:
    top = 7.0

    def read(self) -> float:
        return self.top


RATES, SLOTS, LIMITS = Rates(), Slots(), Limits()
BOUND = Rates().times
SPACE = SimpleNamespace(inner=SimpleNamespace(v=3.0, w=4.0))
LIST = [Rates(1.0, 2.0), Rates(3.0, 4.0)]
LOGGER = logging.getLogger("tests.watching")
OF_THREAD, TEACHER = threading.local(), torch.zeros(2)
OF_THREAD.rate = 0.5
CONTEXT, WEAK = ContextVar("CONTEXT", default=0.5), cast(Callable[[], Rates], weakref.ref(RATES))
CONTEXT.set(0.5)
BY_NAME = weakref.WeakValueDictionary({"a": RATES})


class Point:
    def __init__(self, a: float) -> None:
        self.a = a


PLACELESS, KEYS = {Point(1.0)}, {Point(1.0): 0}


def rated(rate: float) -> Callable[[], float]:
    def read() -> float:
        return rate

    return read


RATED = rated(1.0)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta, self.other = 0.25, 3.0
        self.drop = nn.Dropout(0.5)

    def forward(self, x: float) -> float:
        return self.beta * x * self.drop.p


SCALED = Scaled()


def helper(rates: Rates, k: float = 0.25) -> float:
    return rates.a * k


def given() -> Rates:
    return RATES


def generated() -> Iterator[Rates]:
    yield from LIST


def through_loops(x: float) -> float:
    return sum([r.a * x for r in LIST]) + sum(r.b for r in LIST)


def by_number(x: float) -> float:
    i = 1
    return LIST[i].b * x + LIST[i - 1].a


def by_local(x: float) -> float:
    space = SPACE.inner
    return x * space.v


def by_built_name(x: float) -> float:
    name = "be" + "ta"
    return float(x * CONFIG[name] + getattr(RATES, "a"))  # noqa: B009


def within_with(x: float) -> float:
    with contextlib.suppress(KeyError):
        return float(CONFIG["step"] * x)
    return x


def after_an_exception(x: float) -> float:
    try:
        raise ValueError
    except ValueError:
        return RATES.a * x


def by_pattern(x: float) -> float:
    match CONFIG:
        case {"beta": beta}:
            return float(beta * x)
    return x


def absent(x: float) -> float:
    for read in (lambda: CONFIG["late"], lambda: late, lambda: RATES.late):  # type: ignore[name-defined, attr-defined]
        with contextlib.suppress(KeyError, NameError, AttributeError):
            x *= read()
    return x


def of_its_own(x: float) -> float:
    own, rates, both = {"m": weight}, Rates(9.0, 9.0), list[Any]()
    both += [own, rates]
    return rates.a * x * own["m"] * len(both)


def unpacked(x: float) -> float:
    first, _ = LIST
    _, size = CONFIG["deep"]["sizes"]
    return float(first.a * size * x)


def by_rest(x: float) -> float:
    first, *_ = LIST
    return first.a * x


def with_defaults(x: float, rates: Rates = Rates(5.0, 6.0), *, more: Any = {"u": 1}) -> float:  # noqa: B006, B008
    return float(rates.b * x * more["u"])


def enclosed() -> Callable[[float], float]:
    z = 0.7

    def inner(x: float) -> float:
        return (lambda y: y * z)(x)

    return inner


def two_of_one_code() -> Callable[[float], float]:
    """Functions of one code, with cells of their own."""

    def of(k: float) -> Callable[[float], float]:
        return lambda y: y * k

    first, second = of(0.7), of(0.9)
    return lambda x: first(x) + second(x)


class Doubled:
    """A descriptor, which reads what it holds itself."""

    def __init__(self) -> None:
        self.half = 0.5

    def __get__(self, owner: Any, kind: Any = None) -> float:
        return self.half * 2


class Meta(type):
    above = 3.0


class Lower(Limits, metaclass=Meta):
    top, twice = 1.0, Doubled()

    def of_class(self) -> float:
        return type(self).top + self.__class__.top

    def of_super(self) -> float:
        return super().top


LOWER = Lower()


def called_by_c() -> Callable[[float], float]:
    """A getter, a call and a context of an enclosed value: nobody names the functions."""
    enclosed = 0.7

    class Local:
        @property
        def got(self) -> float:
            return enclosed

        def __call__(self) -> float:
            return enclosed

    @contextlib.contextmanager
    def context() -> Iterator[float]:
        yield enclosed

    local = Local()

    def inner(x: float) -> float:
        with context() as entered:
            return x * local.got + local() + entered

    return inner


class Refusing:
    """What is asked of it runs its code, which does not stand it."""

    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = 0.5

    def __getattr__(self, name: str) -> Any:
        raise NameError(name)


REFUSING = Refusing()


def by_logging(x: float) -> float:
    LOGGER.warning("x is %s", x)
    return x * weight


def executed() -> Callable[[float], float]:
    namespace: dict[str, Any] = {"rate": 0.5}
    exec("def f(x): return x * rate", namespace)
    function: Callable[[float], float] = namespace["f"]
    return function


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def makes_functions(x: float) -> float:
    """What their cells hold is made by the program, whatever way they are called."""
    parts = [Rates(x), RATES]

    def local() -> float:
        return parts[0].a + by_name()

    @decorated
    def by_name() -> float:
        return parts[0].b

    def inner() -> Callable[[], float]:
        return lambda: parts[0].a

    return local() + inner()() + max(parts[:1], key=lambda r: r.a + len(parts)).a * weight


def within_a_context(x: float) -> float:
    token = CONTEXT.set(x)
    try:
        return CONTEXT.get() * weight
    finally:
        CONTEXT.reset(token)


BOTH = {"LIST[0].a", "LIST[0].b", "LIST[1].a", "LIST[1].b"}
READ: list[tuple[str, Callable[[Any], Any], set[str]]] = [
    ("a branch", lambda x: x * weight if flag else x * unread, {"weight", "flag"}),
    ("keys", lambda x: x * CONFIG["beta"] + CONFIG.get("step", 0) + ("zz" in CONFIG),
     {"CONFIG['beta']", "CONFIG['step']", "CONFIG['zz']"}),
    ("keys of keys", lambda x: x * CONFIG["deep"]["sizes"][1], {"CONFIG['deep']['sizes'][1]"}),
    ("an attribute", lambda x: x * RATES.a, {"RATES.a"}),
    ("a property", lambda x: x * RATES.twice, {"RATES.b"}),
    ("a method", lambda x: RATES.times(x), {"RATES.a", "RATES.times"}),  # an entry of its own would hide the class's
    ("what is not there", absent, {"CONFIG['late']", "RATES.late", "Rates.late", "late"}),
    ("a helper", lambda x: helper(RATES) * x, {"helper.__defaults__[0]", "RATES.a"}),
    ("what a function gives", lambda x: given().a * x, {"RATES.a"}),
    ("slots", lambda x: SLOTS.q * x, {"SLOTS.q"}),
    ("a class", lambda x: LIMITS.read() * x, {"Limits.top", "LIMITS.top", "LIMITS.read"}),
    ("a pattern", by_pattern, {"CONFIG['beta']", "CONFIG['step']"}),
    ("a bound method", lambda x: BOUND(x), {"BOUND.__self__.a"}),
    ("globals", lambda x: globals()["weight"] * x, {"weight"}),
    ("a local", by_local, {"SPACE.inner.v"}),
    ("loops", through_loops, BOTH),
    ("a generator", lambda x: [r.a * x for r in generated()], BOTH),
    ("indices", by_number, BOTH),
    ("sorting", lambda x: sorted(LIST, key=lambda r: r.a)[0].b * x, BOTH),
    ("stars", lambda x: helper(*(RATES,), **cast(Any, {"k": 2.0})) * x,
     {"helper.__defaults__[0]", "RATES.a", "RATES.b"}),
    ("a name that is built", by_built_name, {"CONFIG['beta']", "RATES.a"}),
    ("a library", lambda x: asdict(RATES)["b"] * x, {"RATES.a", "RATES.b"}),
    ("a context", within_with, {"CONFIG['step']"}),
    ("an exception", after_an_exception, {"RATES.a"}),
    ("its own objects", of_its_own, {"weight"}),
    ("unpacking", unpacked, BOTH),
    ("defaults", with_defaults, {"with_defaults.__defaults__[0].b", "with_defaults.__kwdefaults__['more']['u']"}),
    ("a closure", enclosed(), {"z"}),
    ("closures of one code", two_of_one_code(), {"k"}),
    ("functions that the program makes", makes_functions, {"weight", "RATES.a", "RATES.b"}),
    ("the class of an instance", lambda x: x * LOWER.of_class(), {"Lower.top", "LOWER.of_class"}),
    ("a class above", lambda x: x * LOWER.of_super(), {"Limits.top", "LOWER.of_super"}),
    ("a metaclass", lambda x: x * Lower.above, {"Lower.above"}),
    ("a descriptor", lambda x: x * LOWER.twice, {"Lower.twice.half", "LOWER.twice"}),
    ("what C code calls", called_by_c(), {"enclosed"}),
    ("executed code", executed(), {"rate"}),
    ("what runs code of its own", lambda x: x * len(repr([REFUSING])) * weight, {"weight", "REFUSING.rate"}),
    ("a rest", by_rest, BOTH),
    ("a thread's own", lambda x: x * OF_THREAD.rate, {"OF_THREAD.rate"}),
    ("a flag of a tensor", lambda x: x * TEACHER.requires_grad, {"TEACHER.requires_grad"}),
    ("a logger", by_logging, {"weight", "LOGGER.warning"}),
    ("a context variable that the program sets", within_a_context, {"weight"}),
    ("a context variable", lambda x: CONTEXT.get() * x, {"CONTEXT"}),
    ("a weak reference", lambda x: WEAK().a * x, {"Rates.a"}),
    ("a mapping of weak references", lambda x: BY_NAME["a"].a * x,
     {"BY_NAME.data['a'].key", "Rates.a", "Rates.b"}),
    ("a set of objects", lambda x: x * sum(p.a for p in PLACELESS), {"Point.a"}),
    ("keys that are objects", lambda x: x * sum(p.a + KEYS[p] for p in KEYS),
     {"Point.a", f"KEYS[{next(iter(KEYS))!r}]"}),
    ("an attribute of a tensor", lambda x: x * getattr(TEACHER, "rate", 2.0), {"Tensor.rate"}),
    ("a call within a call", lambda x: max(helper(RATES), float(max(x, SLOTS.q))),
     {"helper.__defaults__[0]", "RATES.a", "SLOTS.q"}),
    ("a function whose code the program makes others of", lambda x: rated(2.0)() * x * RATED(), {"rate"}),
    ("partial", functools.partial(helper, RATES), {"partial.args[0].a", "partial.args[0].b", "helper.__defaults__[0]"}),
    ("a module", lambda x: SCALED(x), 
     {"SCALED.beta", "SCALED.forward", "SCALED.drop", "SCALED.drop.p"}),
]  # fmt: skip


def leaves(function: Callable[..., Any], *args: Any) -> set[str]:
    with Watching([function], "f") as watching:
        function(*args)
    found = watching.reads(True).found
    texts = {read.text for read in found if is_value(read) and not any(name in read.text for name in TORCHS)}
    return texts - set(vars(builtins))  # which a global may hide


TORCHS = ("hooks", "_compiled_call_impl", "__name__")  # what torch's own modules read of themselves


def is_value(read: Read) -> bool:
    return read.kind != WHOLE and (read.value is MISSING or is_leaf(read.value))


@pytest.mark.parametrize(("function", "expected"), [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_what_is_read_is_found_by_the_name_that_users_write(function: Callable[..., Any], expected: set[str]) -> None:
    found = leaves(function) if isinstance(function, functools.partial) else leaves(function, 2)

    assert found == expected


@pytest.mark.parametrize("function", [lambda x: x * 2, lambda x: Rates(x).a, lambda x: [x][0]])
def test_a_program_that_reads_nothing_has_no_values_to_watch(function: Callable[..., Any]) -> None:
    assert leaves(function, 2) <= {"Rates.__init__.__defaults__[0]", "__init__.__defaults__[0]",
                                   "__init__.__defaults__[1]"}  # fmt: skip


def test_each_of_the_functions_that_share_their_code_has_cells_of_its_own() -> None:
    function = two_of_one_code()
    with Watching([function], "f") as watching:
        function(2)

    assert [read.value for read in watching.reads(True).found if read.text == "k"] == [0.7, 0.9]


def test_what_the_program_itself_changes_is_told() -> None:
    def counted(x: float) -> float:
        CONFIG["step"] += 1
        return float(CONFIG["step"] * x)

    with Watching([counted], "f") as watching:
        counted(2)

    assert [read.text for read in watching.reads(True).changed] == ["CONFIG['step']"]
