"""Population-based training: members train side by side; the worst copy the best and vary their hyper-parameters.

    for each generation     every member trains and is scored
                            each of the worst `fraction` takes over parameters, optimizer and position of one of the
                            best `fraction`, and its hyper-parameters times a factor drawn from `perturb`

Source: Jaderberg et al. 2017, arXiv:1711.09846 (truncation selection; perturbation by 0.8 or 1.2).
"""

import math
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shaped.arguments import checked, number, whole
from shaped.checkpoint.files import made_by, read_checkpoint, remove_checkpoint, write_checkpoint
from shaped.checkpoint.lock import Lock
from shaped.data.batches import mixed
from shaped.errors import NonFiniteError, StateError
from shaped.loop import Loop
from shaped.workflow.space import Space, Values, as_score, check_space, draw

_NAME = re.compile(r"generation-(\d{4,8})")
_KEPT = 2  # checkpoints that stay: the newest, and the one before it


@dataclass(frozen=True)
class Member:
    """Where a member stands.

    Attributes:
        score: Of the last generation; NaN before the first, and where it failed.
        parent: The member that it copied after the last generation; its own number where it copied none.
    """

    number: int
    values: Values
    score: float
    parent: int


@dataclass(frozen=True)
class PopulationResult:
    """What a population ended with.

    Attributes:
        best: The best member of the last generation. loop: Its loop, trained.
        history: The members after each generation, in order.
    """

    best: Member
    loop: Loop
    history: tuple[tuple[Member, ...], ...]

    def __str__(self) -> str:
        lines = []
        for i, members in enumerate(self.history):
            scores = sorted(m.score for m in members if not math.isnan(m.score))
            copied = sum(m.parent != m.number for m in members)
            spread = f"{scores[0]:.4g} to {scores[-1]:.4g}" if scores else "none"
            lines.append(f"generation {i + 1}: scores {spread}, {copied} of {len(members)} copied another")
        return "\n".join([*lines, f"best: member {self.best.number}, {self.best.score:.4g}, {self.best.values}"])


def set_groups(loop: Loop, values: Mapping[str, Any]) -> None:
    """Set hyper-parameters of the optimizer's groups by name (`lr`, `weight_decay`); nothing is compiled again.

    Raises:
        ValueError: The optimizer has no such hyper-parameter, or there is no optimizer.
    """
    optimizer = loop.trainer.optimizer
    if optimizer is None:
        raise ValueError("the loop's trainer has no optimizer: give `apply`, which sets the values where they belong")
    for name, value in values.items():
        for group in optimizer.param_groups:
            if name not in group:
                raise ValueError(
                    f"the optimizer has no `{name}`: give `apply`, which sets the values where they belong"
                )
            group[name] = value


class Population:
    """Members that train side by side.

    Args:
        space: Names to `Real`, `Integer` or `Categorical`: what may vary while a member trains.
        make: From values and a seed to a member: a Loop, not yet run. All members have the same parameters' shapes.
        train: Trains a member for one generation and returns its score: `train(loop, generation) -> float`.
        size, generations: Members, and how often each trains.
        fraction: Of the members that copy, and that are copied; at most a half.
        perturb: Factors for numbers. A choice is drawn anew one time in four.
        direction: "min" or "max": which scores are better.
        apply: Sets values on a member; by default on its optimizer's groups, by name.
        seed: Of all that is drawn.
        folder: A checkpoint of the whole population after each generation, of which the newest two stay; a run goes on
            from the newest.

    Raises:
        ValueError: An argument is out of range. CheckpointError: The folder's checkpoint cannot be read.
    """

    @checked
    def __init__(
        self,
        space: Space,
        make: Callable[[Values, int], Loop],
        train: Callable[[Loop, int], float],
        *,
        size: int = 8,
        generations: int = 10,
        fraction: float = 0.2,
        perturb: Sequence[float] = (0.8, 1.2),
        direction: Literal["min", "max"] = "min",
        apply: Callable[[Loop, Mapping[str, Any]], Any] = set_groups,
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        whole("size", size, 2)
        whole("generations", generations, 1)
        whole("seed", seed, 0)
        if not 0 < number("fraction", fraction) <= 0.5:
            raise ValueError(f"fraction is {fraction!r}; it is a share above 0 and at most a half")
        if not perturb or not all(number("a factor of perturb", factor) for factor in perturb):
            raise ValueError(f"perturb is {perturb!r}; it has factors above 0")
        self.space, self._train, self._apply = check_space(space), train, apply
        self._generations, self._perturb, self._seed = generations, perturb, seed
        self._moving = max(1, int(fraction * size))
        self._sign = 1 if direction == "min" else -1
        values = [draw(self.space, seed, i) for i in range(size)]
        self.loops = [make(dict(v), mixed(seed, i) % 2**31) for i, v in enumerate(values)]
        if len({id(loop) for loop in self.loops}) < size:
            raise ValueError("make gave two members one loop: make a new one for each, over parameters of its own")
        for loop, v in zip(self.loops, values, strict=True):
            apply(loop, v)
        self.members = [Member(i, v, math.nan, i) for i, v in enumerate(values)]
        self.history: list[tuple[Member, ...]] = []
        self._folder = Path(folder) if folder is not None else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._resume()

    def run(self) -> PopulationResult:
        """Train the generations that are left.

        Raises:
            NonFiniteError: No member has a finite score. RunLocked: Another population runs in the folder. What `train`
            raises otherwise.
        """
        if self._folder is None:
            return self._run()
        lock = Lock(self._folder)
        try:
            for entry in os.listdir(self._folder):
                if entry.startswith(".tmp-population-"):  # a process was killed while it wrote
                    shutil.rmtree(self._folder / entry, ignore_errors=True)
            self._resume()  # what another population in this folder has added
            return self._run()
        finally:
            lock.release()

    def _run(self) -> PopulationResult:
        while len(self.history) < self._generations:
            self._generation(len(self.history))
            if self._folder is not None:
                name = f"generation-{len(self.history):04d}"
                write_checkpoint(self._folder, name, self.state_dict(), {"run": "population"})
                for old in self._saved()[:-_KEPT]:
                    if made_by(self._folder / old, "population"):
                        remove_checkpoint(self._folder / old)
        best = min(self.history[-1], key=self._rank)
        return PopulationResult(best, self.loops[best.number], tuple(self.history))

    def _rank(self, member: Member) -> float:
        return math.inf if math.isnan(member.score) else self._sign * member.score

    def _generation(self, generation: int) -> None:
        scores = [self._score(loop, generation) for loop in self.loops]
        if all(math.isnan(score) for score in scores):
            raise NonFiniteError(f"no member has a finite score in generation {generation + 1}")
        scored = [Member(m.number, m.values, score, m.number) for m, score in zip(self.members, scores, strict=True)]
        ranked = sorted(scored, key=self._rank)
        generator = random.Random(mixed(self._seed, generation, 1))
        self.members, seen = list(scored), list(scored)
        failed = sum(math.isnan(score) for score in scores)  # those copy another, however many they are
        for loser in ranked[len(ranked) - max(self._moving, failed) :]:
            winner = generator.choice(ranked[: min(self._moving, len(ranked) - failed)])
            self.members[loser.number] = self._copy(winner, loser, generator)
            seen[loser.number] = Member(loser.number, loser.values, loser.score, winner.number)
        self.history.append(tuple(seen))

    def _score(self, loop: Loop, generation: int) -> float:
        try:
            score = as_score(self._train(loop, generation), "train")
        except NonFiniteError:
            return math.nan
        return score if math.isfinite(score) else math.nan

    def _copy(self, winner: Member, loser: Member, generator: random.Random) -> Member:
        self.loops[loser.number].load_state_dict(self.loops[winner.number].state_dict())
        self.loops[loser.number].resumed = False  # its next call is a run of its own
        values = {
            name: dimension.near(winner.values[name], generator.choice(self._perturb), generator)
            for name, dimension in self.space.items()
        }
        self._apply(self.loops[loser.number], values)
        return Member(loser.number, values, math.nan, winner.number)

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Every member's loop, values and history; a copy."""
        return {
            "space": {name: dimension.spelled() for name, dimension in self.space.items()},
            "rules": self._rules,
            "seed": self._seed,
            "members": [vars(member) for member in self.members],
            "history": [[vars(member) for member in members] for members in self.history],
            "loops": [loop.state_dict() for loop in self.loops],
        }

    @property
    def _rules(self) -> dict[str, Any]:
        return {"sign": self._sign, "moving": self._moving, "perturb": list(self._perturb)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            StateError: It is of another population; nothing has changed.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"a population's state is a mapping, not a {type(state).__name__}")
        mine = {"space": {name: d.spelled() for name, d in self.space.items()}, "seed": self._seed}
        wrong = [f"{key} was {state.get(key)!r} there, {value!r} here" for key, value in mine.items()
                 if state.get(key) != value]  # fmt: skip
        if state.get("rules", self._rules) != self._rules:  # direction, fraction and factors
            wrong.append(f"rules were {state['rules']} there, {self._rules} here")
        if len(state.get("members", ())) != len(state.get("loops", ())):
            wrong.append(f"{len(state.get('members', ()))} members with {len(state.get('loops', ()))} loops")
        if len(state.get("loops", ())) != len(self.loops):
            wrong.append(f"{len(state.get('loops', ()))} members there, {len(self.loops)} here")
        if wrong:
            raise StateError("the state is of another population.\n  " + "\n  ".join(wrong))
        before = [loop.state_dict() for loop in self.loops]
        try:
            for loop, saved in zip(self.loops, state["loops"], strict=True):
                loop.load_state_dict(saved)
        except StateError:
            for loop, saved in zip(self.loops, before, strict=True):
                loop.load_state_dict(saved)
            raise
        self.members = [Member(**member) for member in state["members"]]
        self.history = [tuple(Member(**member) for member in members) for members in state["history"]]
        for loop, member in zip(self.loops, self.members, strict=True):
            loop.resumed = False
            self._apply(loop, member.values)

    def _saved(self) -> list[str]:
        """The names of the checkpoints that are there, in order."""
        assert self._folder is not None
        found = [match for name in os.listdir(self._folder) if (match := _NAME.fullmatch(name))]
        return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]

    def _resume(self) -> None:
        assert self._folder is not None
        saved = self._saved()
        if saved and int(saved[-1].rpartition("-")[2]) > len(self.history):
            self.load_state_dict(read_checkpoint(self._folder / saved[-1]).state)
