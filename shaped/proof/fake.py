"""Tensors without data whose operations are worked out once.

The shape of a result depends on the operation and on its operands' shapes alone. So the second block of a transformer,
and the hundredth, costs a look-up for each operation: what torch's shape functions gave, and asked, the first time
stands.
torch has such a memory too, but its keys cost more than the operations when sizes are symbolic (torch 2.13).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch

from shaped.errors import Source
from shaped.proof.shelter import refuse_write, written
from shaped.proof.source import place_of_caller
from shaped.proof.views import viewed

_KEY = "_shaped_key"  # where a fake tensor carries the number of its metadata
_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
_VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}
_ATEN = torch.ops.aten
_FACTORIES = {_ATEN.arange, _ATEN.eye, _ATEN.full, _ATEN.linspace, _ATEN.logspace, _ATEN.ones, _ATEN.scalar_tensor}
_FACTORIES |= {_ATEN.tril_indices, _ATEN.triu_indices, _ATEN.zeros}
_MOST = 64  # entries of a tensor whose values are kept


class _Unknown(Exception):
    """An operand that no key can stand for."""


class RememberingMode(FakeTensorMode):
    """A FakeTensorMode that runs each shape function once for each kind of operands.

    Args:
        count: Called after an operation that may take whole numbers from data; gives the sizes that stand for them.
    """

    def __init__(self, shape_env: ShapeEnv, count: Callable[[], Sequence[int | SymInt]]) -> None:
        super().__init__(shape_env=shape_env, allow_non_fake_inputs=True)
        self._count = count
        self.cache_enabled = False  # torch's own
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._results: dict[tuple[Any, ...], tuple[type | None, list[tuple[Tensor, torch.device, int] | None]]] = {}
        self._pure: dict[Any, bool] = {}
        self.sizes: dict[Any, Source | None] = {}  # every symbolic size of a tensor that was met, and where first

    def forget(self) -> None:
        """Let go of the results, whose sizes C++ holds: a cycle through these is never collected."""
        self._results.clear()

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As torch's; a result that is known is made from its metadata."""
        kwargs = kwargs or {}
        if getattr(func, "overloadpacket", None) in _FACTORIES and _is_known((*args, *kwargs.values())):
            return self._constant(super().dispatch(func, types, args, kwargs), func, args, kwargs)
        if not self._is_pure(func):
            _forget((*args, *kwargs.values()))
            if isinstance(func, OpOverload):
                self._note_writes(func, args, kwargs)
            taken = super().dispatch(func, types, args, kwargs)
            counted = self._count()
            return counted[0] if counted and isinstance(taken, SymInt) else taken
        try:
            key = (func, torch.is_grad_enabled(), *self._keys(args), *kwargs, *self._keys(kwargs.values()))
            known = self._results.get(key)
        except (_Unknown, TypeError):  # TypeError: not hashable
            return super().dispatch(func, types, args, kwargs)
        if known is not None:
            kind, made = known[0], [self._make(template) for template in known[1]]
            return made[0] if kind is None else kind(made)
        result: object = viewed(*args) if func in _VIEWS and not kwargs else None
        if result is None:
            result = super().dispatch(func, types, args, kwargs)
        self._remember(key, result)
        return result

    def _note_writes(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse a write into a real tensor, and let go of the values of one that something unknown is written into."""
        changed = list(written(func, args, kwargs))
        if any(not isinstance(t, FakeTensor) for t in changed):
            raise refuse_write()
        known = all(t.constant is not None for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, FakeTensor))
        for tensor in changed:
            if not known and isinstance(tensor, FakeTensor) and tensor.constant is not None:  # torch leaves out lists
                self.fake_tensor_converter.invalidate_constant_aliases(tensor.constant)

    def _constant(self, made: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What plain numbers make: a small tensor has its values with it, so that the program may read them."""
        if made.constant is not None or not self.may_turn_const(made):
            return made
        with no_dispatch():
            value = func(*args, **kwargs)
        return self.fake_tensor_converter.from_real_tensor(self, value, make_constant=True)

    def may_turn_const(self, t: Tensor) -> bool:
        """Whether a tensor's values are kept beside its shape, until something unknown is written into it."""
        plain = t.layout is torch.strided and t.device.type == "cpu" and not t._has_symbolic_sizes_strides
        return plain and t.numel() <= _MOST

    def _is_pure(self, func: Any) -> bool:
        """Whether the result is new tensors that depend on the operands' metadata only."""
        if func not in self._pure:
            self._pure[func] = (
                isinstance(func, OpOverload) and not func._schema.is_mutable and not _TAGS.intersection(func.tags)
            )
        return self._pure[func]

    def _remember(self, key: tuple[Any, ...], result: Any) -> None:
        parts = list(result) if isinstance(result, list | tuple) else [result]
        if not parts or not all(part is None or self._is_plain(part) for part in parts):
            return
        templates: list[tuple[Tensor, torch.device, int] | None] = []
        for part in parts:
            if part is None:
                templates.append(None)
                continue
            with in_kernel_invocation_manager(self):
                bare = part.detach()
            templates.append((bare, part.fake_device, self._number(part)))
        kind = list if isinstance(result, list) else tuple if isinstance(result, tuple) else None
        self._results[key] = (kind, templates)

    @staticmethod
    def _is_plain(value: Any) -> bool:
        return (
            type(value) is FakeTensor
            and value.constant is None
            and value.layout is torch.strided
            and not value.is_conj()
            and not value.is_neg()
        )

    def _make(self, template: tuple[Tensor, torch.device, int] | None) -> Tensor | None:
        if template is None:
            return None
        bare, device, number = template
        made = FakeTensor(self, bare, device)
        setattr(made, _KEY, number)
        return made

    def _keys(self, values: Any) -> Iterator[Any]:
        for value in values:
            kind = type(value)
            if kind is FakeTensor:
                yield self._number(value)
            elif isinstance(value, SymInt | SymFloat | SymBool):
                yield ("size", value.node.expr)
            elif isinstance(value, list | tuple):
                yield (kind, *self._keys(value))
            elif isinstance(value, Tensor):
                raise _Unknown
            else:
                yield (kind, value)  # 1, 1.0 and True are one key of a dictionary

    def _number(self, tensor: FakeTensor) -> int:
        """A number that stands for a tensor's metadata."""
        known = tensor.__dict__.get(_KEY)
        if known is not None:
            return int(known)
        if not self._is_plain(tensor):
            raise _Unknown
        sizes = [*tensor.shape, None, *tensor.stride(), tensor.storage_offset()]
        key = (
            tensor.dtype,
            tensor.fake_device,
            tensor.requires_grad,
            *map(_expression, sizes),
        )
        if key not in self._numbers:
            for size in map(_expression, tensor.shape):
                if isinstance(size, sympy.Basic) and size not in self.sizes:
                    place = None if size.is_Symbol or size.is_Mul else place_of_caller()
                    self.sizes[size] = place.source() if place is not None else None
        number = self._numbers.setdefault(key, len(self._numbers))
        setattr(tensor, _KEY, number)
        return number


def _is_known(values: Any) -> bool:
    """Whether no value is symbolic, or a tensor."""
    unknown = Tensor | SymInt | SymFloat | SymBool
    return all(_is_known(v) if isinstance(v, list | tuple) else not isinstance(v, unknown) for v in values)


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, SymInt) else size


def _forget(values: Any) -> None:
    """An operation in place may change its operand's metadata."""
    for value in values:
        if isinstance(value, FakeTensor):
            value.__dict__.pop(_KEY, None)
        elif isinstance(value, list | tuple):
            _forget(value)
