"""A program whose branches ask its data, proved along every way that the data may take.

The statement is then one of all data: each way is well-shaped, or ends in an exception of the program's own. A way that
fails on symbolic sizes may be one that no data take, so it refutes nothing unless a run on real tensors fails as well.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shaped.errors import ProofError, Source, Unprovable
from shaped.proof.proof import Proof
from shaped.proof.proving import prove_setting
from shaped.proof.setting import Setting
from shaped.proof.source import place_of_traceback
from shaped.proof.ways import Endless, Key, Way, following, is_raised, raised_at

_MOST = 16  # ways that are proved


@dataclass
class Decided:
    """A proof for each way that does not end in a refusal.

    Attributes:
        branches: The lines at which data decide, in the order in which they are met.
        refusals: The lines at which the program raises because of its data: checks of values.
        cut: The lines that ask again and again, of which the first few questions were answered both ways.
        read: The lines that read a floating-point number from data, for which `NUMBER` was taken.
        counted: Where each size stands for a whole number that data tell.
    """

    proofs: list[Proof] = field(default_factory=list)
    branches: list[Source] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)
    cut: set[tuple[str, int]] = field(default_factory=set)
    read: set[tuple[str, int]] = field(default_factory=set)
    counted: dict[str, tuple[str, int]] = field(default_factory=dict)


def prove_ways(
    setting: Setting, assume: Sequence[str], static: Mapping[str, int], sizes: Sequence[str] = ()
) -> Decided:
    """Prove a setting along every way.

    Args:
        sizes: Names of the setting's that no tensor of the program has: each stands for a whole number that data tell,
            such as how many entries a mask keeps.

    Raises:
        Uncounted: Data tell more whole numbers than there are names for.
        ProofError, Unprovable: Of the first way that is not proved; or there are too many.
    """
    name = setting.signature.name
    waiting: list[dict[Key, bool]] = [{}]
    decided, refusals, taken = Decided(), set[tuple[str, int]](), list[Way]()
    try:
        while waiting:  # once along each, so that all refusals are known before anything is held against real runs
            way = Way(waiting.pop(), refusals, sizes=sizes)
            _explore(setting, assume, static, way, taken)
            waiting += way.others()
            _note(decided, way, name, len(taken))
        while taken:
            way = taken.pop(0)
            decided.proofs.append(_proved(setting, assume, static, way))
            for answers in way.others():  # asked only where sizes are others
                _explore(setting, assume, static, Way(answers, refusals, sizes=sizes), taken)
            _note(decided, way, name, len(taken) + len(decided.proofs))
    except Endless:
        source = decided.branches[0] if decided.branches else None
        raise Unprovable(f"`{name}` asks its data again and again: a loop that data end.", source) from None
    if not decided.proofs:
        raise Unprovable(f"`{name}` raises an exception whatever is taken of its data.")
    decided.refusals = sorted(refusals)
    return decided


def _note(decided: Decided, way: Way, name: str, count: int) -> None:
    known = {(source.file, source.line) for source in decided.branches}
    for source in way.asked.values():
        if source is not None and (source.file, source.line) not in known:
            known.add((source.file, source.line))
            decided.branches.append(source)
    decided.cut |= way.cut
    decided.read |= way.read
    decided.counted |= way.counted
    if count > _MOST:
        raise Unprovable(f"`{name}` takes more than {_MOST} ways where data decide.", decided.branches[0])


def _explore(setting: Setting, assume: Sequence[str], static: Mapping[str, int], way: Way, taken: list[Way]) -> None:
    """Run along a way once; it is taken unless it ends in an exception that data are the cause of."""
    from shaped.proof.attempts import Failure, attempts
    from shaped.proof.isolation import proving
    from shaped.proof.keeping import keeping
    from shaped.proof.search import ProofSearch

    with following(way), proving(), keeping(setting.signature.function, setting.call, setting.strategy):
        search = ProofSearch(setting, assume, static)
        found = attempts(setting, search.names, search.initial_plan(), 1 + len(search.names))
    if isinstance(found, Failure):
        course = found.world.env.course
        if (is_raised(found.error) or _is_shown(found.error)) and course is not None and course.by_data:
            way.refusals.add(raised_at(found.error))
            return
    taken.append(Way(way.whole, way.refusals, sizes=way.sizes))


def _is_shown(error: Exception) -> bool:
    """Whether it is the message of a `raise` or an `assert` that asks a tensor for its entries: f"got {x.min()}"."""
    place, traceback = place_of_traceback(error.__traceback__), error.__traceback__
    names = set[str]()
    while traceback is not None:
        names.add(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    stated = place is not None and re.search(r"\b(raise|assert)\b", place.source().text)
    return bool(stated) and bool(names & {"__format__", "__str__", "__repr__"})


def _proved(setting: Setting, assume: Sequence[str], static: Mapping[str, int], way: Way) -> Proof:
    try:
        with following(way):
            return prove_setting(setting, assume, static)
    except ProofError as error:
        if not way.sizes and (error.goal.sizes or not (way.asked or way.read)):
            raise
        title = f"{error.title[:-1]} where data decide so, and no run on real tensors fails."
        raise Unprovable(title, error.source, error.goal) from None
