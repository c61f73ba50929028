"""What a run consists of besides its parameters: optimizers, counts, waiting gradients; saved and loaded whole.

Trainers on two backends share one. A state dict is plain: tensors, numbers, strings, lists and mappings.
"""

import copy
import math
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from shaped.arguments import flat, number, pair
from shaped.backends import Auto, Backend, Compiled, Counters, Eager, Program, Shelf, TrainerOptions, known_backend
from shaped.errors import StateError, listing
from shaped.given import GivenOptimizer, taken
from shaped.optim import OPTIMIZERS, FusedOptimizer
from shaped.optim.foreign import Foreign, name_of, own
from shaped.optim.loading import in_order
from shaped.scaling import LossScaler
from shaped.shapes import describe

# The trainer's methods that step, and the optimizers that they step with; the one of `train_step` is `train`.
METHODS: Mapping[str, str] = {"step": "sgd", "adam_step": "adam", "adamw_step": "adamw"}
PATHS: Mapping[str, type[FusedOptimizer]] = {path: OPTIMIZERS[path] for path in METHODS.values()}
FORMAT = 1


class TrainingState:
    """Optimizers by update path, counts, gradients that wait, and the backends made so far."""

    def __init__(
        self,
        program: Program,
        optimizer: GivenOptimizer | None,
        options: TrainerOptions,
        save_frozen: bool = True,
        scaler: LossScaler | None = None,
    ) -> None:
        self.program, self.options = program, options
        self._save_frozen, self.scaler = save_frozen, scaler
        self.counters = Counters(program.used_tensors, options.skips)
        self.optimizer = None if optimizer is None else taken(optimizer, program)
        self.paths: dict[str, FusedOptimizer] = {}  # "adamw" and its like, made by the first step that uses them
        self.accepted: dict[str, tuple[FusedOptimizer, dict[str, Any]]] = {}  # hyper-parameters that were checked
        self._keeper: Callable[[Compiled], object] | None = None
        self._backends: dict[str, Backend] = {}  # by name, so that going back and forth compiles nothing again
        if self.optimizer is not None:
            self._check_parameters(self.optimizer)
            if program.together is not None:
                program.together.take(self.optimizer)

    def _check_parameters(self, optimizer: FusedOptimizer) -> None:
        """Whether an optimizer has all our parameters that are trained, and no others."""
        mine = {id(p) for p in self.program.tensors}
        named = [(f"param_groups[{i}]['params'][{j}], {describe(p)},", p)
                 for i, group in enumerate(optimizer.param_groups) for j, p in enumerate(group["params"])]  # fmt: skip
        theirs = {id(p) for _, p in named}
        absent = [name for name, p in zip(self.program.params.names, self.program.tensors, strict=True)
                  if p.requires_grad and id(p) not in theirs]  # fmt: skip
        foreign = [name for name, p in named if id(p) not in mine]
        if absent or foreign:
            what = f"{listing(absent)} not in it" if absent else f"{foreign[0]} is not a parameter here"
            raise ValueError(f"the optimizer was made for other parameters: {what}; make it as AdamW(params)")
        self._entries = len(named)

    @property
    def given(self) -> Optimizer | None:
        """The optimizer of `train_step` as the user made it."""
        return None if self.optimizer is None else own(self.optimizer)

    @property
    def said(self) -> str:
        """What a trainer says of itself about its update, where it is not proved."""
        return f", the update of {name_of(self.given)} is not proved" if isinstance(self.optimizer, Foreign) else ""

    def own_optimizer(self) -> FusedOptimizer:
        """The optimizer of `train_step`, over our parameters still.

        Raises:
            ValueError: There is none, or it was given other parameters since.
        """
        if self.optimizer is None:
            raise ValueError("train_step needs an optimizer: ScalarTrainer(..., optimizer=shaped.optim.AdamW(params))")
        if sum([len(group["params"]) for group in self.optimizer.param_groups]) != self._entries:
            self._check_parameters(self.optimizer)
        return self.optimizer

    def accept(self, path: str, optimizer: FusedOptimizer | None, lr: float, given: dict[str, Any]) -> FusedOptimizer:
        """Check a path's hyper-parameters; the first call fixes them. Returns its optimizer, a new one at first.

        Raises:
            ValueError: One is out of range, or differs from the first call's.
        """
        fixed = {n: pair(n, value) if n == "betas" else number(n, value) for n, value in given.items()}
        if optimizer is None:
            optimizer = cast(FusedOptimizer, PATHS[path](self.program.used_tensors, lr=lr, **fixed))
        group = optimizer.param_groups[0]
        for name, value in fixed.items():
            if tuple(flat(group[name])) != tuple(flat(value)):
                raise ValueError(
                    f"{path}_step: {name} is {value}, and the first call fixed {name} = {group[name]}; "
                    "only lr may change"
                )
        self.accepted[path] = (optimizer, given)
        return optimizer

    @property
    def left_out(self) -> list[int]:
        """Entries that are not saved: the frozen ones where asked for, less what the program writes."""
        return [] if self._save_frozen else [i for i in self.program.frozen if i not in self.program.writes]

    @property
    def eager(self) -> Eager:
        """The eager backend."""
        if "eager" not in self._backends:
            self._backends["eager"] = self._kinds[0](self.program, self.options, self.counters)
        made = self._backends["eager"]
        assert isinstance(made, Eager)
        return made

    @property
    def compiled(self) -> Compiled:
        """The compiled backend."""
        if "compiled" not in self._backends:
            self._backends["compiled"] = self._kinds[1](self.program, self.options, self.counters)
        made = self._backends["compiled"]
        assert isinstance(made, Compiled)
        made.keeper = self._keeper
        return made

    def keep_in(self, shelf: Shelf | None, given: Any) -> None:
        """Keep what is compiled from now on in a folder; `given` is what the trainer was made of."""
        self._keeper = None if shelf is None else partial(shelf.keep, given=given)

    @property
    def _kinds(self) -> tuple[type[Eager], type[Compiled]]:
        """The two backends, as they run on one process or on several ranks."""
        if self.program.together is None:
            return Eager, Compiled
        from shaped.backends.joint import JointCompiled, JointEager

        return JointEager, JointCompiled

    def backend(self, name: str) -> Backend:
        """A backend by name: "eager", "compiled", or "auto".

        Raises:
            ValueError: There is none of this name, or the optimizer cannot be compiled.
        """
        known_backend(name)
        if name == "compiled" and isinstance(self.optimizer, Foreign):
            raise ValueError(f"optimizer: {self.optimizer.refusal}")
        if name == "auto":
            return self._backends.setdefault("auto", Auto(self.eager, self.compiled))
        return self.eager if name == "eager" else self.compiled

    def compiles(self, method: str) -> tuple[str, FusedOptimizer | None]:
        """What a trainer's method needs compiled: a pass by its name, or "update" with its optimizer or one like it.

        Raises:
            ValueError: There is no such method.
        """
        if method in ("forward", "loss_and_backward"):
            return method, None
        if method == "backward":
            return "loss_and_backward", None
        path = {**METHODS, "train_step": "train"}.get(method)
        if path is None:
            raise ValueError(f"method is {method!r}; it is a method of the trainer such as 'adamw_step'")
        known = self.optimizers()
        if path == "train":
            return "update", self.own_optimizer()
        return "update", known.get(path) or PATHS[path](self.program.used_tensors, lr=1e-3)

    def step_waiting(self) -> int:
        """Take the update that gradients wait for, with what there is; returns the batches in it."""
        count, optimizer = self.counters.waiting, self.counters.waiting_for
        return count if optimizer is not None and self.eager.update_waiting(optimizer) else 0

    def optimizers(self) -> dict[str, FusedOptimizer]:
        """Every optimizer by path; the one of `train_step` is `train`."""
        return {**self.paths, **({"train": self.optimizer} if self.optimizer is not None else {})}

    @property
    def last_optimizer(self) -> FusedOptimizer | None:
        """The optimizer that took the last step, as long as it is one of ours; else that of `train_step`."""
        stepped = self.counters.stepped
        return stepped if stepped in [*self.paths.values(), self.optimizer] else self.optimizer

    def pack(self, parts: bool = False) -> dict[str, Any]:
        """Everything as a state dict; tensors are copies, or a rank's pieces of what lies in parts."""
        packed, together = self._pack(), self.program.together
        if together is None or not together.parted:
            return packed
        from shaped.cutting import as_pieces, changed, made_whole

        if parts and together.sharded:
            return changed(packed, [], as_pieces(self.program))
        together.come("state_dict")
        return changed(packed, [], made_whole(self.program))

    def _pack(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "signature": {entry.path: entry.spec.quoted for entry in self.program.params.entries},
            "params": {name: tensor.detach().clone() for name, tensor in self._saved().items()},
            **({"frozen": self._digests()} if self.left_out else {}),
            "optimizers": {
                path: {
                    "class": type(own(o)).__name__,
                    "state": copy.deepcopy(o.state_dict()),
                    "names": self.names_of(o),
                }
                for path, o in self.optimizers().items()
            },
            "steps": self.counters.taken,
            "skipped": self.counters.left_out,
            "waiting": self._pack_waiting(),
            **({"loss_scale": self.scaler.state_dict()} if self.scaler is not None else {}),
        }

    def names_of(self, optimizer: FusedOptimizer) -> list[list[str]]:
        """The names of an optimizer's parameters, by group: what its state goes by."""
        names = {id(p): name for name, p in zip(self.program.params.names, self.program.tensors, strict=True)}
        return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]

    def _saved(self) -> dict[str, Tensor]:
        """The parameters that a state dict holds, by name."""
        params = self.program.params
        return {params.names[i]: tensor for i, tensor in enumerate(params) if i not in self.left_out}

    def _digests(self) -> dict[str, int]:
        """A checksum of each frozen parameter that a state dict leaves out."""
        names, tensors = self.program.params.names, self.program.tensors
        return {names[i]: zlib.crc32(save({"": _plain(tensors[i].detach())})) for i in self.left_out}

    def _used_names(self) -> list[str]:
        return [self.program.params.names[i] for i in self.program.used]

    def _pack_waiting(self) -> dict[str, Any] | None:
        """The mean of gradients that wait for `accumulate`, over how many samples, and the path that they wait for."""
        counters, accumulate = self.counters, self.options.accumulate
        if not counters.waiting:
            return None
        path = next(path for path, optimizer in self.optimizers().items() if optimizer is counters.waiting_for)
        means = {name: t.clone() for name, t in zip(self._used_names(), counters.means, strict=True)}
        weight = float(counters.weight)
        return {"path": path, "count": counters.waiting, "of": accumulate, "samples": weight, "means": means}

    def ready(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """What takes a state dict over, once it is known to fit; until it is called nothing has changed.

        The call may be made again, and nothing of the state is copied before it.

        Raises:
            StateError: It does not fit; every difference is listed. ShapeError: Something was replaced in the module.
        """
        self.program.places.check()
        if not isinstance(state, Mapping):
            raise StateError(f"a state dict is a mapping, not a {type(state).__name__}")
        if not (wrong := _malformed(state)):
            try:
                state = self._as_it_lies(state) if "torch.distributed" in sys.modules else state
                wrong = self._differences(state)
            except (AttributeError, TypeError, LookupError, ValueError) as error:
                wrong = [f"something in it is of another kind: {error}"]
        if wrong:
            raise StateError("the state dict does not fit this trainer.\n  " + "\n  ".join(wrong))
        ready = {path: self._in_order(path, saved) for path, saved in state["optimizers"].items()}
        loaded = {path: self._loaded(path, saved) for path, saved in ready.items() if path != "train"}
        if "train" in ready:  # tried, and not kept: the optimizer that was given is loaded when all is known to fit
            self._loaded("train", ready["train"])
        if self.scaler is not None:
            copy.copy(self.scaler).load_state_dict(state["loss_scale"])
        return lambda: self._take_over(state, ready.get("train"), loaded)

    def _take_over(
        self, state: Mapping[str, Any], train: Mapping[str, Any] | None, paths: Mapping[str, FusedOptimizer]
    ) -> None:
        if self.left_out or (self.program.together is not None and self.program.together.parted):
            new = [state["params"][name].to(tensor, copy=True) for name, tensor in self._saved().items()]
            with torch.no_grad():
                torch._foreach_copy_(list(self._saved().values()), new)
        else:
            self.program.params.set_values([state["params"][name] for name in self.program.params.names])
        if train is not None and self.optimizer is not None:
            self.optimizer.load_state_dict(train)
        self.paths = dict(paths)
        if self.scaler is not None:
            self.scaler.load_state_dict(state["loss_scale"])
        self.counters.set_counts(state["steps"], state["skipped"])
        self.counters.clear()
        if waiting := state.get("waiting"):
            means = [waiting["means"][name] for name in self._used_names()]
            self.counters.restore(means, waiting["samples"], waiting["count"], self.optimizers()[waiting["path"]])
        if self.program.together is not None:
            self.program.together.note_loaded(f"a state of step {state['steps']}")

    def _as_it_lies(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A state dict with each tensor as it lies here: whole, or in parts."""
        from shaped.cutting import changed, cut_again

        mine = [
            name for name, t in zip(self.program.params.names, self.program.tensors, strict=True) if t.requires_grad
        ]
        return changed(state, [mine], cut_again(self.program))

    def _differences(self, state: Mapping[str, Any]) -> list[str]:
        wrong = [] if state["format"] == FORMAT else [f"format is {state['format']!r}, this version reads {FORMAT}"]
        mine = {entry.path: entry.spec.quoted for entry in self.program.params.entries}
        tensors = self._saved()
        wrong += [f"{name}: missing" for name in tensors if name not in state["params"]]
        wrong += [f"{name}: unknown" for name in state["params"] if name not in mine]
        wrong += [f"{n}: it is frozen and left out here" for n in state["params"] if n in mine and n not in tensors]
        wrong += self._frozen_differences(state.get("frozen", {}))
        for name, tensor in tensors.items():
            saved, spec = state["params"].get(name), state["signature"].get(name)
            if spec is not None and spec != mine[name]:
                wrong.append(f"{name}: declared {spec} there, {mine[name]} here")
            if name in state["params"] and not isinstance(saved, Tensor):
                wrong.append(f"{name}: a {type(saved).__name__}, not a tensor")
            elif saved is not None and _kind(saved) != _kind(tensor):
                wrong.append(f"{name}: {_said(saved)} there, {describe(tensor)} here")
        if self.optimizer is not None and "train" not in state["optimizers"]:
            wrong.append("it has no state for train_step, and this trainer was given an optimizer for it")
        for path, saved in state["optimizers"].items():
            if not isinstance(saved, Mapping) or not {"class", "state"} <= set(saved):
                wrong.append(f"optimizer `{path}`: it lacks `class` or `state`")
            elif path in PATHS and saved["class"] != PATHS[path].__name__:
                wrong.append(f"optimizer `{path}`: its class is {saved['class']}, not {PATHS[path].__name__}")
            elif path not in (*PATHS, "train"):
                wrong.append(f"optimizer `{path}`: unknown")
            elif path == "train" and self.optimizer is None:
                wrong.append(f"it has an optimizer for train_step ({saved['class']}), and this trainer was given none")
            elif path == "train" and (name := type(self.given).__name__) != saved["class"]:
                wrong.append(f"train_step used {saved['class']} there, {name} here")
        if ("loss_scale" in state) is not (self.scaler is not None):
            wrong.append(f"loss_scale: {'here and not there' if self.scaler is not None else 'there and not here'}")
        return wrong + self._waiting_differences(state.get("waiting"), state["optimizers"])

    def _frozen_differences(self, frozen: Any) -> list[str]:
        """Frozen parameters that were left out there, and are not the same here."""
        here = self._digests()
        if not isinstance(frozen, Mapping):
            return ["frozen: not a mapping"]
        return [
            f"{name}: it is frozen and was left out there; its values here are others"
            for name, digest in frozen.items()
            if name in here and here[name] != digest
        ]

    def _waiting_differences(self, waiting: Any, optimizers: Mapping[str, Any]) -> list[str]:
        if waiting is None:
            return []
        if not isinstance(waiting, Mapping) or not {"path", "count", "of", "samples", "means"} <= set(waiting):
            return ["waiting: it lacks path, count, of, samples or means"]
        wrong, accumulate = [], self.options.accumulate
        if waiting["of"] != accumulate:
            wrong.append(f"{waiting['count']} of {waiting['of']} gradients wait there; accumulate={accumulate} here")
        elif not isinstance(waiting["count"], int) or not 0 < waiting["count"] < accumulate:
            wrong.append(f"waiting: a count of {waiting['count']!r} of {accumulate}")
        if not isinstance(waiting["samples"], float | int) or not 0 <= waiting["samples"] < math.inf:
            wrong.append(f"waiting: {waiting['samples']!r} samples")
        if waiting["path"] not in optimizers:
            wrong.append(f"waiting: for the optimizer {waiting['path']!r}, which it does not have")
        means = waiting["means"]
        for name, p in zip(self._used_names(), self.program.used_tensors, strict=True):
            there = means.get(name) if isinstance(means, Mapping) else None
            if not isinstance(there, Tensor) or _kind(there) != _kind(p):
                wrong.append(f"waiting: the gradient of {name} is {_said(there)} there, {describe(p)} here")
            elif not there.isfinite().all():
                wrong.append(f"waiting: the gradient of {name} is not finite")
        return wrong

    def _like(self, path: str) -> FusedOptimizer:
        """A new optimizer over the parameters of the one of a path."""
        if path != "train":
            return PATHS[path](self.program.used_tensors)
        assert self.optimizer is not None
        made = copy.copy(self.optimizer)
        made.param_groups = [dict(group) for group in made.param_groups]
        made.state = copy.copy(made.state)
        return made

    def _in_order(self, path: str, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state of an optimizer with its parameters in our order, by name."""
        state, like = saved["state"], self._like(path)
        if "names" not in saved:
            warnings.warn(
                f"the state of optimizer `{path}` is of a version that saved no names: it is taken by position",
                stacklevel=5,
            )
            return cast(Mapping[str, Any], state)
        try:
            groups = in_order(state["param_groups"], saved["names"], self.names_of(like))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"the state of optimizer `{path}` does not fit: {error}") from None
        own = [{"param_names": g["param_names"]} if "param_names" in g else {} for g in like.param_groups]
        plain = [{key: value for key, value in group.items() if key != "param_names"} for group in groups]
        return {**state, "param_groups": [{**group, **names} for group, names in zip(plain, own, strict=True)]}

    def _loaded(self, path: str, saved: Mapping[str, Any]) -> FusedOptimizer:
        """A new optimizer with the saved state, so that a fault in it leaves ours as it was."""
        try:
            given = self.optimizer if path == "train" else None
            made = given.trial() if isinstance(given, Foreign) else self._like(path)
            made.load_state_dict(saved)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"the state of optimizer `{path}` does not fit: {error}") from None
        return made


def _plain(tensor: Tensor) -> Tensor:
    """As safetensors takes it: dense, and complex numbers as pairs."""
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    return torch.view_as_real(plain) if plain.is_complex() else plain


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """What a saved tensor must have in common with the one that takes its values."""
    return tensor.shape, tensor.dtype, tensor.layout, tensor.is_meta


def _said(tensor: Any) -> str:
    odd = isinstance(tensor, Tensor) and (tensor.layout is not torch.strided or tensor.is_meta)
    kind = ("on the meta device" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")) if odd else ""
    return f"{describe(tensor)} {kind}".rstrip()


def _malformed(state: Mapping[str, Any]) -> list[str]:
    """What keeps a mapping from being a state dict at all."""
    mappings = ("signature", "params", "optimizers")
    wrong = []
    for key in (*mappings, "format", "steps", "skipped"):
        kind: type = Mapping if key in mappings else int
        if key not in state:
            wrong.append(f"{key}: missing")
        elif not isinstance(state[key], kind):
            wrong.append(f"{key}: a {type(state[key]).__name__}")
        elif kind is int and state[key] < 0:
            wrong.append(f"{key} = {state[key]} is negative")
    return wrong
