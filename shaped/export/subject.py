"""What is exported: a function over parameters, or a module's own forward, with its proof at the sizes that it has.

A module is exported as it computes after `.eval()`, and is left as it was.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shaped.backends.holding import Places, kept_as_they_are
from shaped.backends.losses import loss_signature
from shaped.backends.modules import first_argument, lasting, module_inputs, module_program, run_over
from shaped.backends.trainable import refuse_foreign
from shaped.errors import ExportError, ShapedError, SignatureError, listing
from shaped.params import ParamList
from shaped.proof import Proof, Setting, prove_setting
from shaped.shapes import Argument, Entry, Signature, describe, read_signature
from shaped.trainer import ScalarTrainer

Forward = Callable[..., Any]
Owner = ParamList | nn.Module | ScalarTrainer


@dataclass(frozen=True)
class Subject:
    """A function with its tensors, proved for inference: no gradients.

    Attributes:
        names: The parameters' and buffers' names, as a state dict has them.
        tensors: What stands under each, not copied.
        inputs: The flat inputs: their names in Python, and their annotations.
        proof: For all sizes that the parameters leave open.
    """

    setting: Setting
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    proof: Proof
    modules: tuple[nn.Module, ...] = ()

    @property
    def signature(self) -> Signature:
        """What it takes and returns."""
        return self.setting.signature

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The inputs, flat."""
        return self.signature.entries[len(self.names) :]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are names in Python too: `batch_ids` for `batch.ids`."""
        made: list[str] = []
        for entry in self.entries:
            name = "".join(c if c.isalnum() else "_" for c in entry.path).strip("_") or "input"
            while name in made or name in ("self", "inputs"):
                name += "_"
            made.append(name)
        return tuple(made)

    @property
    def outputs(self) -> tuple[str, ...]:
        """A name for each tensor of the result, unlike those of the inputs."""
        entries = self.signature.returns.entries
        plain = [("".join(c if c.isalnum() else "_" for c in entry.path).strip("_")) or "result" for entry in entries]
        return tuple(f"{name}_out" if name in self.inputs else name for name in plain)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the inputs."""
        return self.setting.dtypes[len(self.names) :]

    @property
    def known(self) -> Mapping[str, int]:
        """Sizes that are fixed: the parameters', and those that were declared static."""
        return {**self.proof.here, **self.proof.static}

    @property
    def free(self) -> tuple[str, ...]:
        """Dimension names that may be of any size."""
        return tuple(name for name in self.proof.dims if name not in self.known)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The function's own results, as eager torch computes them for inference."""
        with torch.no_grad(), self.evaluating():
            return self.setting.run([*self.tensors, *inputs])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the module in eval(), and each part of it as it was afterwards."""
        with evaluating(self.modules), self.setting.keeping(), self.setting.around():
            yield


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Have modules in eval(), and each as it was afterwards."""
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def subject(
    forward: Forward | nn.Module, owner: Owner, assume: Sequence[str], static: Sequence[str] | Mapping[str, int]
) -> Subject:
    """Read and prove what is to be exported.

    Raises:
        SignatureError: An annotation is missing or not understood, or `owner` holds no parameters.
        ProofError, Unprovable: As for `prove`. ShapeError: A condition is false for these parameters.
        ExportError: It writes into what it holds, or a static dimension has no size.
    """
    holder = _holder(owner)
    modules = tuple(holder.modules()) if isinstance(holder, nn.Module) else ()
    params, signature = _read(forward, holder)
    if signature.axes:
        signature = signature.at_ranks(dict.fromkeys(signature.axes, 1), numbered=False)
    floating = next((t.dtype for t in params if t.is_floating_point()), torch.get_default_dtype())
    inputs = signature.entries[len(params) :]
    if not inputs:
        raise ExportError(f"`{signature.name}` takes no input: there is nothing to run elsewhere")
    keeping: Callable[[], AbstractContextManager[None]] = nullcontext
    setting = Setting(
        signature,
        tuple(t.dtype for t in params) + tuple(entry.spec.default_dtype(floating) for entry in inputs),
        (False,) * len(signature.entries),
        params.device,
        keeping=partial(kept_as_they_are, modules[0]) if modules else keeping,
        roots=(inspect.unwrap(forward), *modules) if callable(forward) else modules,
        around=lasting if modules else nullcontext,
        held=params.tensors,
    )
    fixed = _fixed(static, params)
    try:
        with evaluating(modules):
            proof = prove_setting(setting, assume, fixed)
        proof = replace(proof.at(params.dims), static=fixed)
    except ShapedError as error:
        raise error.with_traceback(None) from None
    if proof.writes:
        raise ExportError(f"`{signature.name}` writes into {listing(proof.writes)}: an exported program only reads")
    return Subject(setting, params.names, params.tensors, proof, modules)


def _holder(owner: Any) -> ParamList | nn.Module:
    """The parameters themselves, or the module that has them."""
    if isinstance(owner, ScalarTrainer):
        return owner.modules[0] if owner.modules else owner.params
    if not isinstance(owner, ParamList | nn.Module):
        raise SignatureError(f"params is {describe(owner)}: pass a trainer, a ParamList or an nn.Module")
    return owner


def _read(forward: Forward | nn.Module, holder: ParamList | nn.Module) -> tuple[ParamList, Signature]:
    """The flat parameters, and a signature that takes them first."""
    if isinstance(holder, ParamList):
        if isinstance(forward, nn.Module) or not callable(forward):
            raise SignatureError(f"forward is {describe(forward)}: pass a function of the {type(holder).__name__}")
        return holder, loss_signature(forward, holder)
    own = forward if isinstance(forward, nn.Module) else getattr(forward, "__self__", None)
    if own is holder:
        return _own_forward(holder)
    if not callable(forward) or isinstance(forward, nn.Module):
        raise SignatureError(f"forward is {describe(forward)}, and params another module: pass the same one as both")
    name, declared = first_argument(forward)
    if not (isinstance(declared, type) and issubclass(declared, nn.Module)):
        raise SignatureError(
            f"`{getattr(forward, '__name__', forward)}` takes `{name}`, which is no module: annotate it "
            f"`{name}: {type(holder).__name__}`, or pass the module's own forward: net.forward"
        )
    params, signature, _ = module_program(forward, holder)
    return params, signature


def _own_forward(module: nn.Module) -> tuple[ParamList, Signature]:
    """A module's forward over its parameters and inputs."""
    refuse_foreign(module)
    params = ParamList.from_module(module)
    arguments = module_inputs(module)
    own = read_signature(module.forward)
    first = Argument("params", "parameters", params.entries, params._layout)
    run = partial(run_over, Places.of(module, params), module)
    return params, Signature(type(module).__name__, run, (first, *arguments), own.returns)


def _fixed(static: Sequence[str] | Mapping[str, int], params: ParamList) -> dict[str, int]:
    """The sizes of static dimensions; an exported program has one size for each."""
    if not isinstance(static, Mapping | Sequence) or isinstance(static, str):
        raise ExportError(f"static is {describe(static)}; it is sizes by name, such as {{'batch': 8}}")
    given = dict(static) if isinstance(static, Mapping) else dict.fromkeys(static)
    sizes = {name: params.dims.get(name) if size is None else size for name, size in given.items()}
    if missing := [name for name, size in sizes.items() if size is None]:
        raise ExportError(
            f"static: {listing(missing)} needs a size, since an exported program has one: static={{{missing[0]!r}: 8}}"
        )
    return {name: size for name, size in sizes.items() if size is not None}
