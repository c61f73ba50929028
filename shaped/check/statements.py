"""What was proved of a target, as a statement: for which sizes, alternatives, numbers and axes."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from shaped.check.cases import Examined
from shaped.check.programs import Held
from shaped.check.written import spelled
from shaped.proof import NUMBER, Proof

_SAID = 12  # defaults
_LEAST = re.compile(r"(\w+) >= (\d+)$")


def statement(examined: Examined) -> str:
    """The statement whole."""
    first = examined.held[0]
    names = _dims(first)
    shown = [_shown(first, choice.value) for choice in first.case.choices if choice.value.parts or choice.value.spec]
    rows = [
        ("", f"{examined.target.name} : {', '.join(shown) or '()'} -> {_result(examined)}"),
        ("", f"proved for all {', '.join(names)} >= 1" if names else "proved"),
        ("given", "; ".join(given(examined))),
        ("by default", _shortened(defaults(examined))),
        ("conditions", ", ".join(conditions(examined)) or "none"),
        ("values", ", ".join(values(proof for held in examined.held for proof in held.proofs))),
        ("where", "; ".join(alternatives(examined))),
        ("axes", "; ".join(axes(examined))),
        ("data", _data(examined)),
        ("dtypes", _dtypes(examined)),
        ("at", "; ".join(numbers(examined))),
        ("not at", "; ".join(dict.fromkeys(text for held in examined.held for text in held.refused))),
        ("left out", "; ".join(examined.left_out)),
    ]
    return "\n".join(f"{label:<13}{text}" if label else text for label, text in rows if text)


def summary(examined: Examined) -> str:
    """The statement in a line."""
    stated = conditions(examined)
    at = numbers(examined)
    parts = for_which(stated, " or ".join(at), bool(_dims(examined.held[0])))
    chosen = alternatives(examined)
    parts += [f"in {len(chosen)} alternatives"] if len(chosen) > 1 else chosen
    made = given(examined)
    parts += [f"for {', '.join(text.partition(' = ')[0] for text in made)} as given"] if made else []
    branches = [line for held in examined.held for line in held.branches]
    parts += ["each way of its data"] if branches else []
    parts += [f"numbers of its data as {NUMBER}"] if any(held.numbers for held in examined.held) else []
    counted = list(dict.fromkeys(name for held in examined.held for name in held.counted))
    parts += [f"{' and '.join(counted)} from its data"] if counted else []
    return ", ".join(parts)


def for_which(stated: Sequence[str], at: str, free: bool) -> list[str]:
    """`if a >= 2`, or for all sizes; and at which numbers, where it is proved at some: perhaps no other is free."""
    every = ["for all other sizes" if at else "for all sizes"] if free or not at else []
    return [*([f"if {', '.join(stated)}"] if stated else every), *([f"at {at}"] if at else [])]


def conditions(examined: Examined) -> list[str]:
    """What was assumed of sizes; what only some cases need says which."""
    found: dict[str, list[Held]] = {}
    for held in examined.held:
        ties = [f"{name} == {dim}" for name, dim in held.ties.items()]
        for text in dict.fromkeys([*ties, *(c for proof in held.proofs for c in proof.conditions)]):
            found.setdefault(text, []).append(held)
    least: dict[str, int] = {}
    for text, some in found.items():
        if (bound := _LEAST.match(text)) and len(some) == len(examined.held):
            least[bound[1]] = max(least.get(bound[1], 0), int(bound[2]))
    found = {text: some for text, some in found.items()
             if not (bound := _LEAST.match(text)) or int(bound[2]) >= least.get(bound[1], 0)}  # fmt: skip
    return [text if len(some) == len(examined.held) else f"{text} where {_cases(some)}" for text, some in found.items()]


def values(proofs: Iterable[Proof]) -> list[str]:
    """What integer inputs that index something must lie between."""
    return list(dict.fromkeys(said for proof in proofs for said in proof.values))


def given(examined: Examined) -> list[str]:
    """`model = boot(...)`: what factories made once for all."""
    choices = [choice for held in examined.held for choice in held.case.choices if choice.given]
    found = {choice.value.path: choice.value.kind for choice in choices}
    return [f"{path} = {kind}" for path, kind in found.items()]


def defaults(examined: Examined) -> list[str]:
    """`n_heads = 4`: what constructors take where nobody says anything else."""
    choices = [choice for held in examined.held for choice in held.case.choices]
    return list(dict.fromkeys(text for choice in choices for text in choice.defaults))


def _shortened(texts: Sequence[str]) -> str:
    more = [f"and {len(texts) - _SAID} more"] if len(texts) > _SAID else []
    return ", ".join([*texts[:_SAID], *more])


def alternatives(examined: Examined) -> list[str]:
    """`mask absent`, `mask present`: what was chosen, once each combination."""
    return list(dict.fromkeys(" and ".join(held.case.said) for held in examined.held if held.case.said))


def axes(examined: Examined) -> list[str]:
    """`*batch of 0 to 3 axes`."""
    first = examined.held[0].case.ranks
    if not first:
        return []
    tried = sorted({tuple(held.case.ranks.get(name, 0) for name in first) for held in examined.held})
    if len(first) == 1:
        numbers = [some[0] for some in tried]
        fewest, most = numbers[0], numbers[-1]
        span = f"{fewest} to {most} axes" if most > fewest else "1 axis" if most == 1 else f"{most} axes"
        return [f"{spelled(next(iter(first)))} of {span}"]
    return [f"({', '.join(map(spelled, first))}) of {', '.join(map(str, tried))} axes"]


def numbers(examined: Examined) -> list[str]:
    """`n_layers = 2`: where it reads sizes as numbers; what holds in some cases only says in which."""
    found: dict[str, list[Held]] = {}
    for held in examined.held:
        for proof in held.proofs:
            text = ", ".join(f"{n} = {size}" for n, size in proof.static.items())
            if held not in found.setdefault(text, []):
                found[text].append(held)
    return [t if len(some) == len(examined.held) else f"{t} where {_cases(some)}" for t, some in found.items() if t]


def _data(examined: Examined) -> str:
    """At which lines data decide, and which of them only raise."""
    branches = dict.fromkeys(line for held in examined.held for line in held.branches)
    refusals = dict.fromkeys(line for held in examined.held for line in held.refusals)
    parts = [f"each way of the branches at {', '.join(branches)}"] if branches else []
    parts += [f"values that are refused at {', '.join(refusals)} are left out"] if refusals else []
    numbers = dict.fromkeys(line for held in examined.held for line in held.numbers)
    parts += [f"numbers that are read from it at {', '.join(numbers)} are taken as {NUMBER}"] if numbers else []
    counted = {name: line for held in examined.held for name, line in held.counted.items()}
    parts += [f"{name} is a whole number that data tell at {line}" for name, line in counted.items()]
    return "; ".join(parts)


def _dtypes(examined: Examined) -> str:
    """Which tensors of any dtype were taken as whole numbers."""
    whole = dict.fromkeys(path for held in examined.held for path in held.whole)
    return f"{', '.join(whole)} of int64" if whole else ""


def _cases(some: Sequence[Held]) -> str:
    texts = (" and ".join(filter(None, [*held.case.said, held.case.axes])) for held in some)
    return " or ".join(dict.fromkeys(texts))


def _dims(held: Held) -> list[str]:
    """The names that are free in each proof of a case, `*batch` for its axes."""
    names = [name for name in held.proofs[0].dims if all(name not in proof.static for proof in held.proofs)]
    written = {f"{'_a' if name == '_' else name}{i}" for name, r in held.case.ranks.items() for i in range(1, r + 1)}
    return [*(spelled(name) for name in held.case.ranks), *(name for name in names if name not in written)]


def _shown(held: Held, value: Any) -> str:
    if value.spec is None or not value.spec.dims:
        return str(value.name)
    return f"[{', '.join(spelled(dim.text[1:]) if dim.is_axes else dim.text for dim in value.spec.dims)}]"


def _result(examined: Examined) -> str:
    """The result as it was found; beside it what is declared, where that has no shape."""
    found = examined.held[0].found or "nothing"
    hint = examined.result
    return found if hint is not None else f"{found} (found)"
