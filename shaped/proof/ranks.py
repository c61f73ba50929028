"""`*batch`: one proof for each number of axes, put together to one statement."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shaped.errors import ProofError, SignatureError, Unprovable
from shaped.proof.conditions import Condition
from shaped.proof.proof import Proof
from shaped.proof.search import ProofSearch
from shaped.proof.setting import Setting
from shaped.shapes import Term

MOST_AXES = 3  # that `*batch` stands for in a statement; a trainer proves more when a batch brings them
_NAMES = 2  # different `*batch` names in one signature; each multiplies the proofs by four


def prove_ranks(setting: Setting, assume: Sequence[str], static: Sequence[str] | Mapping[str, int]) -> Proof:
    """Prove a function at 0 to 3 axes for each of its `*batch` names.

    Raises:
        ProofError, Unprovable: It fails at some number of axes, which the title says.
    """
    names = setting.signature.axes
    if len(names) > _NAMES:
        raise SignatureError(f"`{setting.signature.name}` has more than {_NAMES} names for any number of axes: {names}")
    proofs: dict[tuple[int, ...], Proof] = {}
    for ranks in itertools.product(range(MOST_AXES + 1), repeat=len(names)):
        at = replace(setting, signature=setting.signature.at_ranks(dict(zip(names, ranks, strict=True))))
        try:
            proofs[ranks] = ProofSearch(at, assume, static).proof()
        except (ProofError, Unprovable) as error:
            where = _where(names, ranks)
            raise type(error)(f"{error.title[:-1]} where {where}{error.title[-1]}", error.source, error.goal) from None
    shown = proofs[(1,) * len(names)]
    fixed = [name for name in shown.dims if all(name in proof.dims for proof in proofs.values())]
    return replace(
        shown,
        setting=setting,
        side_conditions=tuple(_union(names, proofs)),
        dims=(*(f"*{name}" for name in names), *fixed),
        seconds=sum(proof.seconds for proof in proofs.values()),
        ranks=proofs,
    )


def _union(names: Sequence[str], proofs: Mapping[tuple[int, ...], Proof]) -> list[Condition]:
    """The conditions of all ranks; those of some only say which."""
    found: dict[Term, tuple[Condition, list[tuple[int, ...]]]] = {}
    for ranks, proof in proofs.items():
        for condition in proof.side_conditions:
            found.setdefault(condition.term, (condition, []))[1].append(ranks)
    everywhere = [condition for condition, at in found.values() if len(at) == len(proofs)]
    return everywhere + [
        replace(condition, where=" or ".join(_where(names, ranks) for ranks in at))
        for condition, at in found.values()
        if len(at) < len(proofs)
    ]


def _where(names: Sequence[str], ranks: Sequence[int]) -> str:
    """`*batch has 2 axes`"""
    return " and ".join(f"*{n} has {r} ax{'i' if r == 1 else 'e'}s" for n, r in zip(names, ranks, strict=True))
