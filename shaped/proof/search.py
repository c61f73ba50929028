"""The search for a proof: trace, read what was asked, substitute, trace again, and state what is left."""

import itertools
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import PythonMod

from shaped.arguments import whole
from shaped.errors import Goal, ProofError, SignatureError, Source, nearest
from shaped.proof.alternatives import Beginning, Equality
from shaped.proof.arithmetic import divides, divisions, holds, holds_exactly
from shaped.proof.attempts import Failure, FoundTrace, attempts, explained
from shaped.proof.branches import Branches, Settled, together, with_its_bound
from shaped.proof.conditions import Assumption, Condition, follows, in_one, meant, needed
from shaped.proof.plans import size_hints_where, sizes_of
from shaped.proof.proof import Proof, count_operations, forward_graph
from shaped.proof.refuting import PRIMES, fails_at, refuses, refuted, small_sizes
from shaped.proof.rehearsal import rehearse
from shaped.proof.relations import effort, plainly, weakest, without_maximum
from shaped.proof.setting import Setting
from shaped.proof.small import EXCLUDED, needed_of_small, small_dimensions, small_expressions
from shaped.proof.statement import Alternative, Fails, held
from shaped.proof.symbolic import Plan, Question, World, expression, size_hint
from shaped.proof.trace import Trace, run_forward
from shaped.proof.trials import Trials
from shaped.shapes import Dim, Term

# Hints are 48 times a prime: far from 0 and 1, no small multiple of each other, and divisible by the usual head counts,
# so that the first trace mostly goes through. What a size hint decided is always read back as a question.
_HINT = 48
_ATTEMPTS = 8  # plans tried before a failure is believed
_STARTS = 3  # sets of concrete sizes tried for a failure
_REACHING = 12  # sizes that satisfy what was asked before a failure, tried before others
_PAIRED = 6  # questions that are also answered the other way two at a time
_RUNS = 400  # of other branches; after these, what is not settled stays a condition
_SMALL, _LARGE, _NEAR = 30, 4096, 6  # numbers that the program compares sizes with, around which sizes are tried
_RESTS = 8  # divisors up to this one are tried at every rest


class ProofSearch:
    """One search: what is traced, what is assumed, and which names are static."""

    def __init__(self, setting: Setting, assume: Sequence[str], static: Sequence[str] | Mapping[str, int]) -> None:
        if not isinstance(assume, (list, tuple)) or not all(isinstance(text, str) for text in assume):
            raise SignatureError(f'assume is a list of relations such as ("seq <= context",), not {assume!r}')
        if not isinstance(static, (list, tuple, set, frozenset, Mapping)) or not all(
            isinstance(n, str) for n in static
        ):
            raise SignatureError(f'static is a list of names such as ("seq",), or a mapping to sizes, not {static!r}')
        self.setting = setting
        self.assumptions = tuple(Assumption.parse(text) for text in assume)
        self.names = _statement_order(setting)
        self._runs, self._grants = 0, False
        guessed = dict(zip(static, (3, *PRIMES), strict=False))  # a size that no other name is likely to have
        self.static: Mapping[str, int] = dict(static) if isinstance(static, Mapping) else guessed
        mentioned = itertools.chain(self.static, *(assumption.names for assumption in self.assumptions))
        for name in mentioned:
            if name not in self.names:
                raise SignatureError(
                    f"`{name}` is no dimension of `{setting.signature.name}`{nearest(name, self.names)}"
                )
        for name, size in self.static.items():
            if whole(f"static: {name}", size, 1, SignatureError) >= 2**48:  # products of sizes must be numbers to C++
                raise SignatureError(f"static: {name} = {size} is larger than any tensor can be")
        _refuse_circles(self.assumptions)

    def proof(self) -> Proof:
        started = time.perf_counter()
        stated = self._stated(self.initial_plan())
        found, conditions = stated.found, needed(stated.conditions)
        self._check_follows(conditions)
        if self.assumptions:  # from which all that was found follows
            conditions = [assumption.condition for assumption in self.assumptions]
        rehearse(self.setting, self.names, self.static, conditions)
        results = len(self.setting.signature.result)
        forward = count_operations(forward_graph(found.graph, results))
        operations = {"forward": forward}
        if self.setting.is_loss:
            operations["backward"] = count_operations(found.graph) - forward
        structures = [a.structure for a in self.setting.signature.arguments if a.structure is not None]
        return Proof(
            setting=self.setting,
            side_conditions=tuple(conditions),
            steps=tuple(found.steps),
            dims=self.names,
            operations=operations,
            seconds=time.perf_counter() - started,
            graph=found.graph,
            unused=tuple(self.setting.signature.entries[i].path for i in found.without_gradient),
            writes=tuple(self.setting.signature.entries[i].path for i in found.writes),
            static=self.static,
            lengths={k: v for s in structures for k, v in getattr(s, "lengths", {}).items()},
            values=found.values,
            _region=self._region(found),
        )

    # -- finding a trace that goes through -------------------------------------------------------------------------

    def initial_plan(self) -> Plan:
        """Where the search begins: size hints, sizes that are static, and what is assumed."""
        free = [name for name in self.names if name not in self.static]
        size_hints = {
            name: _HINT * PRIMES[i % len(PRIMES)] + _HINT * 109 * (i // len(PRIMES)) for i, name in enumerate(free)
        }
        plan = Plan(size_hints, dict(self.static))
        for assumption in self.assumptions:
            plan = self._assume(plan, assumption)
        return plan

    def _assume(self, plan: Plan, assumption: Assumption) -> Plan:
        """Put an assumption into the plan by substitution; an inequality orders the size hints."""
        if assumption.divisor is not None and assumption.divisor[0] not in plan.constants:
            name, divisor = assumption.divisor
            return replace(plan, multiples={**plan.multiples, name: divisor})
        if assumption.definition is not None:
            name, dim = assumption.definition
            if name in plan.constants:
                name, dim = (dim.text, Dim(name)) if dim.is_name else (name, dim)
            if dim.constant is not None:
                return replace(plan, constants={**plan.constants, name: dim.constant})
            return replace(plan, equal={**plan.equal, name: dim})
        if not assumption.condition.holds(plan.size_hints):
            world = World(self.names, plan)
            size_hints = size_hints_where(world.fact(assumption.term), world, plan, sympy.true)
            return replace(plan, size_hints=size_hints) if size_hints else plan
        return plan

    def _stated(self, plan: Plan) -> Alternative:
        """A trace that goes through, with conditions that runs on real tensors bear out."""
        found = attempts(self.setting, self.names, plan, _ATTEMPTS + len(self.names))
        if isinstance(found, Failure):
            trials = self._trials(len(found.recorder.steps))
            error = explained(found, self.setting, self.names)
            if refuses(found.error):  # the program's own `assert`: other sizes may satisfy it
                try:
                    return held(None, trials, self._sizes(trials, plan, found.world), self._beginning().at)
                except Fails:
                    pass
            raise self._refuted(error, trials, plan, found.world) from None
        trials = self._trials(len(found.trace.steps))
        try:
            first = Alternative(self._conditions(found.trace, found.plan), found.trace, found.plan)
            return held(first, trials, self._sizes(trials, found.plan, found.trace.world), self._beginning().at)
        except Fails as error:
            raise fails_at(error.sizes, trials) from None
        except Equality as needed:
            raise self._refuted(needed.error, trials, plan, found.trace.world, needed.asked) from None

    def _beginning(self) -> Beginning:
        def conditions(found: FoundTrace) -> list[Condition]:
            self._runs, self._grants = 0, True
            return self._conditions(found.trace, found.plan)

        return Beginning(self.setting, self.names, self.initial_plan(), _of_parameters(self.setting), conditions)

    def _trials(self, operations: int) -> Trials:
        admitted = lambda sizes: all(one.condition.holds(sizes) for one in self.assumptions)  # noqa: E731
        return Trials(self.setting, self.names, self.static, operations, admitted)

    def _sizes(self, trials: Trials, plan: Plan, world: World) -> Iterator[dict[str, int]]:
        """Small sizes that satisfy what is assumed; many of them multiples of what the plan divides by."""
        units = {name: (divisor, plan.rests.get(name, 0)) for name, divisor in plan.multiples.items()}
        yield from filter(trials.assumed, trials.sizes(units, plan.equal, _compared(world)))

    def _refuted(self, error: Exception, trials: Trials, plan: Plan, world: World, goal: Any = None) -> Exception:
        """What a failure comes to at sizes that get to it; at others, only where it shows at none of those."""
        admitted = filter(_admitted(world, goal), self._tried(trials, world.plan, world))
        reaching = itertools.islice(admitted, min(_REACHING, trials.left // 2))  # what is left is for others
        return refuted(error, trials, itertools.chain(reaching, self._tried(trials, plan, world)))

    def _tried(self, trials: Trials, plan: Plan, world: World) -> Iterator[dict[str, int]]:
        """Sizes for a refutation: primes first, which are no multiples of each other."""
        primes = (small_sizes(self.names, plan, skipped) for skipped in range(_STARTS))
        assumed = (sizes for sizes in primes if all(a.condition.holds(sizes) for a in self.assumptions))
        return itertools.chain(assumed, self._sizes(trials, plan, world))

    # -- from questions to conditions ------------------------------------------------------------------------------

    def _conditions(self, found: Trace, plan: Plan) -> list[Condition]:
        """What has to be assumed about sizes: no less, and as far as it can be told no more."""
        world = found.world
        asked = self._asked(found)
        bounds: dict[Any, Any] = {}  # what is needed in any case, the simplest first: no size is negative
        for fact in sorted(
            (f for f, _ in asked if isinstance(f, sympy.Ge | sympy.Le | sympy.Gt | sympy.Lt)), key=effort
        ):
            given = list(bounds.values())
            known = [*given, *(sympy.Ge(small.size, 2) for small in small_expressions(world, plan, given))]
            if not holds(fact, known) and self._settle(fact, world, plan, known) is None:
                passes = lambda other, known=known: self._passes_branch(world, plan, other, known)  # noqa: E731
                bounds[fact] = with_its_bound(fact, world, plan, passes)
        given = list(bounds.values())
        smalls = small_expressions(world, plan, given)
        large = [sympy.Ge(small.size, 2) for small in smalls]
        kept: list[tuple[Any, Source | None]] = []
        dropped: list[tuple[Any, Source | None, list[Plan]]] = []
        for fact, source in asked:
            if fact not in bounds and holds(fact, [*given, *large]):
                continue  # or some size is small, and those are traced apart
            settled = None if fact in bounds else self._settle(fact, world, plan, [*given, *large])
            if settled is None:
                kept.append((bounds.get(fact, fact), source))
            else:
                kept.extend((other, source) for other in settled.instead)
                dropped.append((fact, source, settled.plans))
        kept += self._in_pairs(dropped, plan)
        divisibility = self._divisibility(world, plan) + _nonzero_divisors(found)
        stated = [*divisibility, *(Condition(world.term(fact)) for fact, _ in kept)]
        implied = [q.fact for q in found.questions if q.fact not in bounds and holds(q.fact, [*given, *large])]
        needs = partial(self._needs_small, world, plan, stated, [*(fact for fact, _ in kept), *large], implied)
        smalls = [*small_dimensions(world, plan), *smalls]
        kept += [(fact, None) for fact in needed_of_small(plan, world, smalls, needs)]
        resting = [symbol for symbol, name in world.symbols.items() if name in map(plan.quotient, plan.rests)]
        needed = [Condition(plainly(world.term(fact), plan), source) for fact, source in weakest(kept, resting)]
        return in_one([*divisibility, *needed])

    def _asked(self, found: Trace) -> list[tuple[Any, Source | None]]:
        """Every question once, without those that are true for all sizes."""
        asked: dict[Any, Source | None] = {}
        divisors = [(question.fact, divides(question.fact)[1]) for question in found.questions]
        divisible = [fact for fact, under in divisors if under is not None and not divisions(under)]
        for question in found.questions:
            for fact in question.fact.args if isinstance(question.fact, sympy.And) else (question.fact,):
                over, under = divides(fact)
                if fact not in divisible and holds_exactly(fact, divisible):
                    continue
                fact = fact if under is None else sympy.Eq(PythonMod(over, under), 0)
                fact = without_maximum(fact)
                if fact in asked or fact in (sympy.true, sympy.false) or holds(fact):
                    continue
                if isinstance(fact, sympy.Eq) and not divisions(fact):
                    if follows(Condition(found.world.term(fact)), self.assumptions):
                        continue
                    raise Equality(fact, question.fact, self._needs_equality(fact, found, question))
                asked[fact] = question.source
        return list(asked.items())

    def _settle(self, fact: Any, world: World, plan: Plan, given: Sequence[Any]) -> Settled | None:
        return Branches(world, plan, self._run, given).settle(fact)

    def _divisibility(self, world: World, plan: Plan) -> list[Condition]:
        """The multiples that were substituted, without those that the program does not need."""
        assumed = {a.divisor[0] for a in self.assumptions if a.divisor is not None}
        return [
            _divides(name, divisor, plan)
            for name, divisor in plan.multiples.items()
            if name not in assumed and not self._passes_at_every_rest(name, divisor, world, plan)
        ]

    def _passes_at_every_rest(self, name: str, divisor: Dim, world: World, plan: Plan) -> bool:
        """Whether the program is well-shaped for sizes that do not divide, too."""
        if divisor.constant is None or divisor.constant > _RESTS:
            return False
        quotient, own = plan.quotient(name), plan.rests.get(name, 0)
        for rest in (r for r in range(divisor.constant) if r != own):
            at = replace(plan, rests={**plan.rests, name: rest})
            sizes = [at, *(replace(at, constants={**at.constants, quotient: n}) for n in (1, 0) if n or rest)]
            if not all(self._passes_branch(world, plan, one, ()) for one in sizes):
                return False
        return True

    def _passes_branch(self, world: World, plan: Plan, other: Plan, given: Sequence[Any]) -> bool:
        """Whether the program is well-shaped under another plan, and all that it asks there is settled."""
        return self._needs_branch(world, plan, other, given) == []

    def _needs_branch(
        self, world: World, plan: Plan, other: Plan, given: Sequence[Any], implied: Sequence[Any] = ()
    ) -> list[Any] | None:
        """What the program needs under another plan, in this world's symbols; None where it fails there."""
        run = self._run(other)
        if run is None:
            return None
        known = Branches(world, plan, self._run, given, implied=implied)
        there = Branches(run, other, self._run, known.translated(given, run), (known,))
        needed: list[Any] = []
        for fact in known.questions_of(run):
            if there.settle(fact) is None:
                same = run.translate(fact, world)
                if same is None or not isinstance(same, sympy.Ge | sympy.Gt | sympy.Le | sympy.Lt):
                    return None
                needed.append(same)
        return needed

    def _needs_small(
        self, world: World, plan: Plan, conditions: Sequence[Condition], given: Sequence[Any], implied: Sequence[Any],
        other: Plan, more: Sequence[Any],
    ) -> list[Any] | None:  # fmt: skip
        """What it needs at these small sizes; where a condition excludes them, there is nothing to show.

        `implied` was asked of large sizes and is so for them: of small ones it is a question of its own.
        """
        stated = [*conditions, *(Condition(world.term(fact)) for fact in more)]
        admissible = self._within(other, stated)
        return EXCLUDED if admissible is None else self._needs_branch(world, plan, admissible, [*given, *more], implied)

    def _in_pairs(
        self, dropped: Sequence[tuple[Any, Source | None, list[Plan]]], plan: Plan
    ) -> list[tuple[Any, Source | None]]:
        """Two questions answered the other way at once; where that fails, one of them stays as it was."""
        dropped = [one for one in dropped if one[2]]
        kept: list[tuple[Any, Source | None]] = []
        for (other, _, first), (fact, source, second) in itertools.combinations(dropped[:_PAIRED], 2):
            both = together(plan, first[0], second[0])
            if both is not None and not self._passes(both):
                either = sympy.Or(other, fact)
                kept.append((fact if either is sympy.true else either, source))
        return kept + [(fact, source) for fact, source, _ in dropped[_PAIRED:]]

    def _needs_equality(self, fact: Any, found: Trace, question: Question) -> ProofError:
        needed = found.world.show(fact)
        goal = Goal(equation=needed.replace("==", "="), hint=meant(found.world.term(fact)))
        error = ProofError(f"`{self.setting.signature.name}` is not well-shaped.", question.source, goal)
        term = found.world.term(fact)
        error.lacking = (term.args[0], term.args[1]) if term.op == "==" else None
        return error

    def _run(self, plan: Plan) -> World | None:
        self._runs += 1
        if self._runs > _RUNS or sizes_of(self.names, plan) is None:  # or its sizes define each other
            return None
        world = World(self.names, plan, self._grants)
        try:
            run_forward(self.setting, world)
        except Exception:
            return None
        return world

    def _passes(self, plan: Plan) -> bool:
        return self._run(plan) is not None

    def _within(self, plan: Plan, conditions: Sequence[Condition]) -> Plan | None:
        """The plan, with other sizes at 1 where a condition forces it (seq <= context); None where one excludes it."""
        for _ in range(len(self.names) + 1):
            if sizes_of(self.names, plan) is None:
                return plan  # under which no run goes through
            world = World(self.names, plan)
            sizes = {name: size_hint(value) for name, value in world.values.items()}
            stated = [*conditions, *(a.condition for a in self.assumptions)]
            broken = [c for c in stated if set(c.names) <= set(sizes) and not c.holds(sizes)]
            if not broken:
                return plan
            more = {name for c in broken for name in c.names if name in world.symbols.values()}
            if not more:
                return None
            plan = replace(plan, constants={**plan.constants, **dict.fromkeys(more, 1)})
        return None

    def _check_follows(self, conditions: Sequence[Condition]) -> None:
        if not self.assumptions:
            return
        for condition in conditions:
            if not follows(condition, self.assumptions):
                raise ProofError(
                    f"`{self.setting.signature.name}` needs more than was assumed.",
                    condition.source,
                    Goal(
                        equation=condition.text,
                        context=tuple((str(i), a.condition.text, "assumed") for i, a in enumerate(self.assumptions, 1)),
                        hint=f'add "{condition.text}" to assume, or leave assume out to have conditions listed',
                    ),
                )

    def _region(self, found: Trace) -> tuple[Condition, ...]:
        """Where the traced graph itself is valid: symbols of at least 2, and each question answered as it was."""
        world, plan = found.world, found.world.plan
        least = [Condition(Term.of(">=", world.term(symbol), Term.number(2))) for symbol in world.symbols]
        fixed = [_is(n, Term.number(v)) for n, v in plan.constants.items() if n in self.names and n not in self.static]
        fixed += [_is(name, dim.term) for name, dim in plan.equal.items()]
        divisible = [_divides(name, divisor, plan) for name, divisor in plan.multiples.items()]
        return (*least, *fixed, *divisible, *(Condition(world.term(question.fact)) for question in found.questions))


def _nonzero_divisors(found: Trace) -> list[Condition]:
    """Sizes that the program divides by and that may be 0: Python would raise there, and no question was asked."""
    terms: dict[Term, None] = {}
    for node in found.graph.graph.nodes:
        if node.target not in (operator.floordiv, operator.mod, operator.truediv) or len(node.args) != 2:
            continue
        divisor = getattr(node.args[1], "meta", {}).get("val")
        if isinstance(divisor, torch.SymInt) and not found.world.env.bound_sympy(expression(divisor)).lower > 0:
            terms[Term.of("!=", found.world.term(divisor), Term.number(0))] = None
    return [Condition(term) for term in terms]


def _refuse_circles(assumptions: Sequence[Assumption]) -> None:
    """`a == b` and `b == a + 1` define each other, which no substitution can follow."""
    defined: dict[str, tuple[str, ...]] = {}
    for assumption in assumptions:
        if assumption.definition is None:
            continue
        name, dim = assumption.definition
        waiting, reached = list(dim.names), set[str]()
        while waiting:
            inner = waiting.pop()
            if inner == name or name in defined:
                raise SignatureError(
                    f"assume: `{assumption.condition.text}` defines `{name}` by itself or a second time"
                )
            if inner not in reached:
                reached.add(inner)
                waiting.extend(defined.get(inner, ()))
        defined[name] = dim.names


def _of_parameters(setting: Setting) -> set[str]:
    """The names in the shapes of parameters."""
    arguments = [argument for argument in setting.signature.arguments if argument.kind == "parameters"]
    return {name for a in arguments for entry in a.entries for dim in entry.spec.dims for name in dim.names}


def _statement_order(setting: Setting) -> tuple[str, ...]:
    """Names of the inputs alone first (batch), then those of the parameters."""
    inside: dict[str, None] = {}
    outside: dict[str, None] = {}
    for argument in setting.signature.arguments:
        for entry in argument.entries:
            for dim in entry.spec.dims:
                (inside if argument.kind == "parameters" else outside).update(dict.fromkeys(dim.names))
    return tuple([name for name in outside if name not in inside] + list(inside))


def _compared(world: World) -> list[int]:
    """The larger numbers that sizes were compared with; torch's own thresholds are beyond what is tried."""
    numbers = {int(n) for question in world.env.asked for n in question.fact.atoms(sympy.Integer)}
    return sorted(n for n in numbers if _SMALL < n < _LARGE)[:_NEAR]


def _admitted(world: World, goal: Any) -> Callable[[Mapping[str, int]], bool]:
    """Whether sizes satisfy what the program asked before its goal: others may stop it at an earlier, innocent line."""
    asked = itertools.takewhile(lambda fact: fact != goal, (question.fact for question in world.env.asked))
    needed = [Condition(world.term(fact)) for fact in asked if fact.free_symbols <= set(world.symbols)]
    needed += [_divides(name, divisor, world.plan) for name, divisor in world.plan.multiples.items()]
    return lambda sizes: all(condition.holds(sizes) for condition in needed)


def _is(name: str, size: Term) -> Condition:
    return Condition(Term.of("==", Term.name(name), size))


def _divides(name: str, divisor: Dim, plan: Plan) -> Condition:
    """`dim % heads == 0`"""
    rest = Term.of("%", Term.name(name), divisor.term)
    return Condition(Term.of("==", rest, Term.number(plan.rests.get(name, 0))))
