"""A loss bound to its parameters: its signature, its proofs, and the admission of batches.

A batch is admitted once for each new tuple of shapes, dtypes and devices; after that, one dictionary look-up. A proof
belongs to the dtypes (and the sizes of static dimensions) it was made for: a batch with others is proved before it
runs.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from shaped.backends.cases import CASES, AdmittedCase, KeptFacts
from shaped.backends.guards import Guards
from shaped.backends.holding import Places, kept_as_they_are
from shaped.backends.inputs import Inputs
from shaped.backends.losses import loss_signature
from shaped.backends.modules import lasting, module_program
from shaped.backends.options import floating
from shaped.backends.outside import PROOFS, Outside, keep, tensors_of
from shaped.backends.samples import FACTOR, CountGraph, Form, Given, Samples
from shaped.backends.trainable import refuse_shared_writes, refuse_untrainable
from shaped.errors import GradientError, ProofError, ShapeError, SignatureError, listing
from shaped.params import ParamList
from shaped.proof import Proof, Setting, prove_absent, prove_setting
from shaped.proof.setting import INNER
from shaped.shapes import Entry, Signature, bind, describe, ranks_of
from shaped.strategies import FullBackpropagation, GradientStrategy, refuse_modules, refuse_shapes, strategy_name

if TYPE_CHECKING:
    from shaped.backends.together import Together

_requires_grad: Callable[[Tensor], bool] = attrgetter("requires_grad")


class Program:
    """What both backends run.

    Args:
        loss: `loss(params, *inputs) -> Float[Tensor, ""]`, annotated; or, where `params` is a module, a loss over the
            module (`loss(model: Net, x, y)`) or over its output (`loss(prediction, y)`, with `forward` annotated).
        params: A ParamList or an nn.Module, used in place.
        assume, static: As for `prove`.
        autocast: Run the loss under torch.autocast in this dtype.
        allow_unused: A parameter that does not influence the loss gets a zero gradient instead of an error.
        check: Compare every batch with the signature before it runs.
        samples: How many samples a batch has; see `samples.py`.
        strategy: How gradients come from the loss; None is full backpropagation.
        kept: One that was proved in another process; it is proved again when something asks for the proof.

    Raises:
        SignatureError, ProofError, Unprovable, GradientError: Before anything has run.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        params: ParamList | nn.Module,
        *,
        assume: Sequence[str] = (),
        static: Sequence[str] | Mapping[str, int] = (),
        autocast: torch.dtype | str | None = None,
        allow_unused: bool = False,
        check: bool = True,
        samples: Given = None,
        strategy: GradientStrategy | None = None,
        kept: KeptFacts | None = None,
    ) -> None:
        self.modules: list[nn.Module] = []  # whose train() and eval() change what the loss computes
        self.places = Places.none()
        if isinstance(params, nn.Module):
            self.modules = list(params.modules())
            self.params, self.signature, self.places = module_program(loss, params)
        elif isinstance(params, ParamList):
            self.params, self.signature = params, loss_signature(loss, params)
        else:
            raise SignatureError(f"params is {describe(params)}: pass a ParamList or an nn.Module")
        refuse_untrainable(self.params)
        self._check_result()
        self.more = len(self.signature.result) - 1  # tensors that the loss returns beside itself
        self.returned: list[Tensor] = []  # by the last pass, where there are more: the loss first
        dtype = next(t.dtype for t in self.params if t.requires_grad)
        self.batch = Inputs(self.signature, len(self.params), self.params.dims, dtype, self.params.device)
        self.inputs: tuple[Entry, ...] = self.batch.entries
        self.arrange, self.examples = self.batch.arrange, self.batch.examples
        self.tensors = list(self.params)
        self._device_type, self._default = self.params.device.type, torch.get_default_dtype()
        self._remember_storage()
        self._mask = [t.requires_grad for t in self.tensors]
        taking = [bool(argument.entries) and not argument.keyword for argument in self.signature.arguments]
        simple = taking == sorted(taking, reverse=True) and sum(taking) == 1 + len(self.inputs)
        self._direct = self.signature.function if simple and self.batch.flat and autocast is None else None
        self._direct = None if self.more else self._direct
        self._assume, self._autocast = assume, floating(autocast)
        self._static = dict(static) if isinstance(static, Mapping) else dict.fromkeys(_names(static))
        self._allow_unused, self.check = allow_unused, check
        self.samples = Samples(samples, self.signature, self.inputs, self.params.dims)
        self.strategy = self._checked(strategy)
        self.around = lasting if self.modules else nullcontext  # a forward pass and the backward pass after it
        self.outside = Outside(self.signature.name, self.tensors)
        self.together: Together | None = None  # where several ranks run it
        self._loss = inspect.unwrap(loss)
        self._begin(kept)

    def _begin(self, kept: KeptFacts | None) -> None:
        """Prove it, or take up what another process proved."""
        self.kept, self._proof = kept, None if kept is not None else self._prove_first()
        self.inner = bool(self._proof.graph.meta.get(INNER)) if self._proof is not None else False
        self.setting = self._proof.setting if self._proof is not None else self._setting(self._guess)
        self.frozen = [i for i, t in enumerate(self.tensors) if not t.requires_grad]
        self.trainable = [i for i, t in enumerate(self.tensors) if t.requires_grad]
        self.unused = kept.unused if kept is not None else self.proof.unused
        self.used = [i for i in self.trainable if self.signature.entries[i].path not in self.unused]
        if not self.used:
            raise GradientError(f"`{self.signature.name}` depends on no parameter that is trained: nothing to train")
        self.used_tensors = tuple(self.tensors[i] for i in self.used)  # known again by identity, as a list is not
        self.writes: list[int] = []
        self._write_too(kept.writes if kept is not None else self.proof.writes)
        if kept is not None:
            kept.begin(self)

    @property
    def proof(self) -> Proof:
        """What was proved before the first step, or is proved now where that was in another process."""
        if self._proof is None:
            self.outside.look(eager=True)
            self._proof = self._prove_first()
        return self._proof

    @property
    def _guess(self) -> tuple[torch.dtype, ...]:
        return tuple(map(self.batch.dtype, self.inputs))

    def share(self, together: "Together") -> None:
        """Run on several ranks from here on."""
        self.together = together
        together.cut()
        self._remember_storage()

    def _checked(self, strategy: GradientStrategy | None) -> GradientStrategy | None:
        """A strategy that takes this loss; None for full backpropagation."""
        refuse_modules(strategy, self.modules)
        if strategy is None or isinstance(strategy, FullBackpropagation):
            return None
        if self.more:
            raise SignatureError(
                f"`{self.signature.name}` returns {self.more} tensors beside the loss, and strategy "
                f"`{strategy_name(strategy)}` takes a loss alone: return the scalar"
            )
        return strategy

    def _prove_first(self) -> Proof:
        """The proof before there is a batch, at the dtypes that it will likely have; of a function `samples` too."""
        guess = self._guess
        known = {name: size for name, size in self.params.dims.items() if name in self._static}
        for name, size in known.items():
            if self._static[name] not in (None, size):
                raise ShapeError(f"static: {name} = {self._static[name]}, and it is {size} in the parameters")
        given = {**known, **{n: s for n, s in self._static.items() if s is not None}}
        proof = self._prove(guess, given)
        without: Proof | None = None
        if absent := self.batch.optional:  # now all of them and none of them; some of them as they come
            left = self.signature.without(absent).entries[len(self.params) :]
            without = self._prove(tuple(map(self.batch.dtype, left)), given, absent=absent)
        if not self.signature.axes:
            self.samples.prove_function(guess, ({}, proof.static, ()), self.params.device, self.outside.now)
        return replace(proof, without=without)

    def _check_result(self) -> None:
        result = self.signature.result
        if not result or result[0].dims or not result[0].floating:
            declared = ", ".join(spec.quoted for spec in result)
            raise SignatureError(
                f'`{self.signature.name}` declares {declared}; a trainer needs one scalar: -> Float[Tensor, ""], or '
                "that before what else it returns"
            )

    def _prove(
        self,
        dtypes: tuple[torch.dtype, ...],
        static: Mapping[str, int],
        ranks: Mapping[str, int] | None = None,
        absent: tuple[str, ...] = (),
    ) -> Proof:
        key = (dtypes, tuple(sorted(static.items())), str(ranks or {}), absent, *(m.training for m in self.modules))
        world = self.outside.now
        if key not in world.proofs:
            signature = self.signature.without(absent)
            setting = self._setting(dtypes, signature.at_ranks(ranks) if ranks else signature)
            unknown = [name for name in self._static if name not in static]
            # a guess for those that only a batch will tell; the batch's own are proved when it comes
            sizes = {**{name: 3 + i for i, name in enumerate(unknown)}, **static}
            if absent:
                proof = prove_absent(setting, absent, self._assume, sizes)
            else:
                proof = prove_setting(setting, self._assume, sizes)
            if proof.unused and not self._allow_unused:
                raise GradientError(
                    f"`{self.signature.name}` does not depend on {listing(proof.unused)}: the gradient is missing. "
                    "Use it, freeze it, or pass allow_unused=True"
                )
            world.add(proof.graph)
            made = replace(proof.at(self.params.dims), per_size=tuple(self._static), static=static)
            keep(world.proofs, key, made, PROOFS)
        found: Proof = world.proofs[key]
        return found

    def _setting(self, dtypes: tuple[torch.dtype, ...], signature: Signature | None = None) -> Setting:
        return Setting(
            signature or self.signature,
            tuple(t.dtype for t in self.tensors) + dtypes,
            self.params.requires_grad + (False,) * len(dtypes),
            self.params.device,
            self._autocast,
            strategy=self.strategy,
            keeping=partial(kept_as_they_are, self.modules[0]) if self.modules else nullcontext,
            roots=(self._loss, *self.modules),
            around=self.around,
            held=tuple(self.tensors),
        )

    def admit(self, inputs: Sequence[Any]) -> AdmittedCase:
        """Check a batch against the signature and return its case.

        Raises:
            ShapeError: It breaks the signature or a condition of the proof.
            ProofError: The program fails for these dtypes.
        """
        try:
            key: tuple[Any, ...] | None = tuple([(x.shape, x.dtype, x.device, x.layout) for x in inputs])
        except (AttributeError, RuntimeError):  # no tensor, or one without a shape
            key = (self._key(inputs) or None) if self.batch.absent(inputs) else None
        if key is None:
            return self.admitted(inputs, ())  # refuses, with the reason
        if self.modules:
            key += tuple([module.training for module in self.modules])
        cases = self.outside.now.cases
        case: AdmittedCase | None = cases.get(key)
        if case is None:
            case = self.admitted(inputs, key)
            keep(cases, key, case, CASES)
        return case

    def _key(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """What a batch is admitted by; empty where something in it is neither a tensor nor left out."""
        try:
            return tuple([None if x is None else (x.shape, x.dtype, x.device, x.layout) for x in inputs])
        except (AttributeError, RuntimeError):
            return ()

    def _remember_storage(self) -> None:
        self.plain = [t.detach() for t in self.tensors]  # the same storage, as compiled code wants it
        self.guards = Guards(self.tensors)
        self.storages = {t.untyped_storage().data_ptr() for t in self.tensors}
        self.strides = tuple(t.stride() for t in self.tensors)

    def follow_storage(self) -> None:
        """Notice `.data` assigned, a module moved, a parameter frozen or replaced, which compiled code does not."""
        if torch.is_autocast_enabled(self._device_type):
            raise ValueError(
                "torch.autocast is on around a trainer, which would run another program than was proved: pass "
                "autocast=torch.bfloat16 to it instead"
            )
        if torch.get_default_dtype() is not self._default:
            raise ValueError(
                f"torch's default dtype was {self._default} when the loss was proved, and is "
                f"{torch.get_default_dtype()} now: set it back, or make a new trainer"
            )
        self.places.check()
        if self.guards.holds(self.tensors):
            return
        if [t.data_ptr() for t in self.tensors] != [t.data_ptr() for t in self.plain] or self._laid_out_anew():
            self._take_new_storage()
        if list(map(_requires_grad, self.tensors)) != self._mask:
            changed = [n for n, t, was in zip(self.params.names, self.tensors, self._mask, strict=True)
                       if t.requires_grad != was]  # fmt: skip
            raise GradientError(f"requires_grad of {listing(changed)} was changed; make a new trainer for this mask")
        self.guards = Guards(self.tensors) if self.guards.known else self.guards

    def _laid_out_anew(self) -> bool:
        now = zip(self.tensors, self.plain, strict=True)
        return any(t.shape != old.shape or t.stride() != old.stride() for t, old in now)

    def take_new_layout(self) -> None:
        """Look at shapes and strides again, since the optimizer has found something new."""
        if self._laid_out_anew():
            self._take_new_storage()

    def _take_new_storage(self) -> None:
        """Go on with the new storage, if it is of the proved kind."""
        changed = [
            f"{name}: {describe(old)} on {old.device} when it was proved, {describe(new)} on {new.device} now"
            for name, old, new in zip(self.params.names, self.plain, self.tensors, strict=True)
            if (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device)
        ]
        if changed:
            raise ShapeError("the parameters were changed; make a new trainer for them.\n  " + "\n  ".join(changed))
        self._remember_storage()

    def admitted(self, inputs: Sequence[Any], key: tuple[Any, ...]) -> AdmittedCase:
        """Check a batch that was not seen before; raises as `admit`."""
        absent, ranks = self.batch.absent(inputs), ranks_of(self.inputs, inputs)
        inputs, signature = self.batch.present(inputs), self.signature.without(absent)
        entries = (signature.at_ranks(ranks) if ranks else signature).entries[len(self.params) :]
        binding = bind(entries, inputs, owner="The batch", start=self.params.binding, device=self.params.device)
        sizes = binding.sizes
        dtypes = tuple(x.dtype for x in inputs)
        try:
            static = {name: sizes[name] for name in self._static if name in sizes}
            proof = self._prove(dtypes, static, ranks, absent)
        except ProofError as error:
            have = ", ".join(f"{e.path} {str(d).removeprefix('torch.')}" for e, d in zip(entries, dtypes, strict=True))
            raise ProofError(f"{error.title[:-1]} for the dtypes {have}.", error.source, error.goal) from None
        if proof.unused != self.unused:
            differ = sorted(set(proof.unused) ^ set(self.unused))
            raise GradientError(
                f"{f'without {listing(absent)}' if absent else 'at these static sizes'} `{self.signature.name}` "
                f"depends on other parameters than at first: {listing(differ)} differ; make a trainer for these"
            )
        proof.check(sizes)
        traced = proof.graph_at(sizes)
        apart = traced is not proof.graph
        lifted = self.outside.now.lifted(traced, self.storages, apart)
        graph = self._counted(lifted.graph, sizes, dtypes, (ranks, static, absent))
        factor: CountGraph | None = graph.meta[FACTOR]
        samples = self.samples.by_sizes(entries, sizes) if factor is None or factor.share else 1.0
        self._write_too(proof.writes)
        return AdmittedCase(
            *(sizes, key, samples, tuple(entries), graph, lambda: (proof, graph)),
            apart=apart,
            outside=lifted.reads,
            world=self.outside.now.number,
            refusal=lifted.refusal,
            looks=lifted.looks,
            absent=absent,
        )

    def _counted(
        self, graph: GraphModule, sizes: Mapping[str, int], dtypes: tuple[torch.dtype, ...], form: Form
    ) -> GraphModule:
        """The graph with what says how many samples a batch has."""
        told = self.samples.by_function(sizes, dtypes, form, self.params.device, self.outside.now)
        if told is not None and told[1]:  # at these sizes alone
            alone = GraphModule(graph, graph.graph)
            alone.meta.update({**graph.meta, FACTOR: told[0]})
            return alone
        if FACTOR not in graph.meta:
            graph.meta[FACTOR] = told[0] if told is not None else self._divisor(graph)
        return graph

    def _divisor(self, graph: GraphModule) -> CountGraph | None:
        return self.samples.by_values(graph, self.trainable, len(self.tensors))

    def hold_to_one_count(self) -> None:
        """Refuse a loss whose batches cannot be accumulated to the step of their union.

        Raises:
            SignatureError: It divides by several counts.
        """
        self.samples.strict = True
        self._divisor(self.proof.graph)

    def count(self, case: AdmittedCase, inputs: Sequence[Tensor]) -> Tensor | float:
        """How many samples an admitted batch has; a 0-dim float64 tensor where its values say.

        Negative and NaN where a function says so: `checked_count` is for them.
        """
        factor: CountGraph | None = (case.sketch if FACTOR in case.sketch.meta else case.graph).meta[FACTOR]
        self.samples.warn_of_several()
        if factor is None:
            return case.samples
        given = [*self.batch.present(inputs)[: len(case.entries)], *tensors_of(case.outside)]
        return case.samples * factor.of(self.plain, given)

    def count_now(self, inputs: Sequence[Tensor]) -> Tensor | float:
        """The same of a batch that is yet to be admitted, by what the loss reads from outside now."""
        self.outside.look(eager=True)
        return self.count(self.admit(inputs), inputs)

    def _write_too(self, written: Sequence[str]) -> None:
        """Take over what a later proof writes: the statistics of a module that was in eval() at first."""
        names = {*written} | {self.params.entries[i].path for i in self.writes}
        writes = [i for i, entry in enumerate(self.params.entries) if entry.path in names]
        refuse_shared_writes(self.params, writes)
        self.writes = writes

    def call(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run the user's function on the parameters and a batch: the loss, and what it would write, unwritten."""
        if self.inner and not torch.is_grad_enabled():
            with torch.enable_grad():
                value, written = self.call(inputs)
            return value.detach(), written
        if self._direct is not None and not self.writes:  # the defaults of static arguments apply by themselves
            result: Tensor = self._direct(self.params, *inputs)
            return result, []
        tensors, written = self.for_writing(self.tensors)
        value, *others = self.setting.run([*tensors, *inputs])
        self.keep(value, others)
        return value, written

    def keep(self, loss: Tensor, others: Sequence[Tensor]) -> None:
        """Remember what a pass returned, apart from parameters that move."""
        if self.more:
            self.returned = [self.apart(t.detach()) for t in (loss, *others)]

    def differentiate(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run the strategy: its loss, the gradients of `used`, and what the program would write, unwritten."""
        assert self.strategy is not None
        tensors, written = self.for_writing(self.tensors)
        done = self.setting.differentiate([*tensors, *inputs])
        found = [done.gradients[i] for i in self.used]
        pairs = list(zip([self.params.names[i] for i in self.used], self.used_tensors, found, strict=True))
        if absent := [name for name, _, gradient in pairs if gradient is None]:
            raise GradientError(f"strategy `{strategy_name(self.strategy)}` gave no gradient of {listing(absent)}")
        whole = [(name, p, gradient) for name, p, gradient in pairs if gradient is not None]
        refuse_shapes(
            self.strategy,
            [(n, describe(p), describe(g)) for n, p, g in whole if (g.shape, g.dtype) != (p.shape, p.dtype)],
        )
        return done.value, [self.apart(gradient) for _, _, gradient in whole], written

    def apart(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy where it is in a parameter's memory: a strategy's gradient may be a parameter."""
        return tensor.clone() if tensor.untyped_storage().data_ptr() in self.storages else tensor

    def for_writing(self, params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters with copies of those that the program writes into, and these copies."""
        if not self.writes:
            return list(params), []
        tensors = [p.clone() if i in self.writes else p for i, p in enumerate(params)]
        return tensors, [tensors[i] for i in self.writes]

    def write(self, written: Sequence[Tensor]) -> None:
        """Take over what the program wrote into its copies."""
        with torch.no_grad():
            for i, new in zip(self.writes, written, strict=True):
                self.tensors[i].copy_(new)


def _names(static: Any) -> Sequence[str]:
    if not isinstance(static, (list, tuple, set, frozenset)):
        raise SignatureError(f'static is a list of names such as ("seq",), or a mapping to sizes, not {static!r}')
    return tuple(static)
