"""Typed parameter lists.

A `ParamList` is an ordered set of named tensors together with the signature that they obey:

    class MLP(ParamList):
        w1: Float[Tensor, "pixels hidden"]
        b1: Float[Tensor, " hidden"] = init.zeros()

Construction checks every entry and binds each dimension name to one size. After that the shapes are facts: nothing that
receives a `ParamList` checks them again. Gradients and optimizer moments are lists of the same class.
"""

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shaped.arguments import OWN, checked, whole
from shaped.drawing import check_device, check_dtype, draw_entry
from shaped.errors import ShapeError, SignatureError, listing, nearest
from shaped.layout import (
    DEFAULT_LENGTH,
    Field,
    Layout,
    frozen_entries,
    list_names,
    make_class,
    read_fields,
    whole_sizes,
)
from shaped.shapes import Binding, Dim, Entry, TensorSpec, bind, class_of, describe, spell


class ParamList:
    """Ordered, named tensors and the signature they obey. Subclass it, with one annotated field for each entry.

    A field is a tensor (`w: Float[Tensor, "a b"]`, with an initialiser as its value if the default does not suit),
    another ParamList (at other dimension names by `Annotated[Conv, dims(cin="rgb")]`), or a list of them
    (`blocks: list[Block] = 4`). Dimension names mean one number through the whole tree.
    `ParamList[Float[Tensor, "a b"], Float[Tensor, "b"]]` is the anonymous, positional form.

    Iteration, `len` and unpacking go over the tensors in declaration order, nested ones included. Fields cannot be
    assigned: `set_values` writes into the tensors, all or nothing.

    Args:
        values: The entries, by position or by name; a nested list as a ParamList or a list of them.
        requires_grad: One bool for each tensor; None asks for gradients of all floating-point entries.

    Raises:
        ShapeError: Entries break the signature (all mismatches are listed), are missing or extra, or share memory.
    """

    _fields: ClassVar[tuple[Field, ...]] = ()
    _layout: Layout
    _tensors: tuple[Tensor, ...]
    _binding: Binding

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited = [field for base in reversed(cls.__mro__[1:]) for field in getattr(base, "_fields", ())]
        cls._fields = tuple({field.name: field for field in (*inherited, *read_fields(cls, ParamList))}.values())
        pytree.register_pytree_node(cls, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys)

    def __class_getitem__(cls, annotations: Any) -> "type[ParamList]":
        items = annotations if isinstance(annotations, tuple) else (annotations,)
        title = f"{cls.__name__}[{', '.join(map(spell, items))}]"
        if cls is not ParamList or not items or any(isinstance(item, str) for item in items):
            raise SignatureError(f'{title}: the anonymous form is ParamList[Float[Tensor, "a b"], Float[Tensor, " b"]]')
        return cast(type[ParamList], make_class(title, {str(i): item for i, item in enumerate(items)}, ParamList))

    def __init__(self, /, *values: Any, requires_grad: Sequence[bool] | None = None, **named: Any) -> None:
        cls = type(self)
        layout, tensors = _collect(cls, _by_field(cls, values, named))
        _refuse_empty(layout)
        binding = bind(layout.entries, tensors, owner=cls.__name__)
        _refuse_shared_memory(layout.entries, tensors)
        mask = _mask(cls.__name__, layout.entries, tensors, requires_grad)
        self.__dict__.update(_finish(layout, tensors, mask, binding).__dict__)

    @classmethod
    @checked
    def init(
        cls,
        /,
        *,
        seed: int = 0,
        device: Annotated[torch.device | str | None, OWN] = None,
        dtype: Annotated[torch.dtype | None, OWN] = None,
        frozen: Sequence[str] = (),
        **sizes: Annotated[int, OWN],
    ) -> Self:
        """Draw a list at the given sizes.

        Args:
            seed: Each entry draws from a generator of its own, made from `seed` and its path: adding an entry
                changes no other.
            device: Where the tensors live. The values do not depend on it.
            dtype: For the floating-point entries whose annotation admits it; the default is torch's default dtype.
            frozen: Paths, or prefixes of paths, that ask for no gradient.
            sizes: Every dimension name, and the lengths of lists (`blocks=4`).

        Raises:
            SignatureError: A size is missing, unknown or not a positive whole number, or `frozen` matches nothing.
            ValueError: `seed`, `device` or `dtype` is not usable here.
        """
        sizes = whole_sizes(cls, sizes)
        layout = cls.layout(**{name: sizes[name] for name in list_names(cls) if name in sizes})
        _refuse_empty(layout)
        entries = layout.entries
        kept = frozen_entries(cls.__name__, entries, frozen)
        whole("seed", seed)
        check_device(device)
        check_dtype(entries, dtype)
        tensors = [
            draw_entry(entry, initializer, sizes, seed, dtype).to(device)
            for entry, initializer in zip(entries, layout.initializers, strict=True)
        ]
        mask = [m and not k for m, k in zip(_mask(cls.__name__, entries, tensors, None), kept, strict=True)]
        return cast(Self, _finish(layout, tensors, mask, Binding.given(entries, sizes)))

    @classmethod
    def from_module(cls, module: nn.Module) -> "ParamList":
        """The parameters and buffers of a module, under their names, at their present sizes.

        The tensors are the module's own: training the list trains the module. Tied parameters appear once, under the
        first of their names. Buffers ask for no gradient. A name that ParamList has itself (`values`) is an entry,
        `p["values"]`, and no attribute.

        Raises:
            SignatureError: It is no module.
            ShapeError: It has no parameters, some have no shape yet (a lazy module), or some share memory.
        """
        if not isinstance(module, nn.Module) or cls is not ParamList:
            raise SignatureError(
                f"{cls.__name__}.from_module({describe(module)}): write ParamList.from_module(nn.Module)"
            )
        name = type(module).__name__
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        lazy = [path for path, tensor in named.items() if nn.parameter.is_lazy(tensor)]
        if lazy or not named:
            what = f"no shape yet for {listing(lazy)}: run the module once" if lazy else "no parameters"
            raise ShapeError(f"{name} has {what}")
        made = make_class(name, {}, ParamList)
        taken = {*dir(ParamList), *inspect.get_annotations(ParamList)}  # `values` is found as p["values"] alone
        made._fields = tuple(
            Field(path, _fixed_spec(t), None, False, {}, None, None, f"[{path}]" if path in taken else "")
            for path, t in named.items()
        )
        layout, tensors = made.layout(), list(named.values())
        trained = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
        _refuse_shared_memory([layout.entries[i] for i in trained], [tensors[i] for i in trained])
        return _finish(layout, tensors, [tensor.requires_grad for tensor in tensors])

    @classmethod
    def layout(cls, **lengths: int) -> Layout:
        """This class with the length of each list: as given, else the field's default, else 2."""
        children: list[Layout | tuple[Layout, ...] | None] = []
        for field in cls._fields:
            if field.nested is None:
                children.append(None)
            elif field.is_list:
                length = lengths.get(field.name, field.default if field.default is not None else DEFAULT_LENGTH)
                whole(f"{cls.__name__}.{field.name}", length, 0, SignatureError)
                children.append((field.nested.layout(**lengths),) * length)
            else:
                children.append(field.nested.layout(**lengths))
        return Layout(cls, tuple(children))

    @property
    def names(self) -> tuple[str, ...]:
        """The path of each tensor: `w1`, `blocks.0.w`."""
        return tuple(entry.path for entry in self._layout.entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Each tensor's path and spec, in order."""
        return self._layout.entries

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors themselves (not copies), in order."""
        return self._tensors

    @property
    def dims(self) -> dict[str, int]:
        """Size of each dimension name."""
        return dict(self.binding.sizes)

    @property
    def binding(self) -> Binding:
        """The sizes, and which entry fixed each. What a pytree function made is checked when it is first asked."""
        if "_binding" not in self.__dict__:
            self.__dict__["_binding"] = bind(self.entries, self._tensors, owner=type(self).__name__)
        return self._binding

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, by path."""
        return {name: tuple(t.shape) for name, t in zip(self.names, self._tensors, strict=True)}

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self._tensors[0].device

    @property
    def requires_grad(self) -> tuple[bool, ...]:
        """Which tensors ask for a gradient, in order."""
        return tuple(tensor.requires_grad for tensor in self._tensors)

    def values(self) -> Self:
        """A copy: same class, same mask, tensors of its own."""
        copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in self._tensors]
        return cast(Self, _finish(self._layout, copies, self.requires_grad, self.binding))

    @checked
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """A copy elsewhere, its floating-point tensors in another dtype; the same class and mask. For a new trainer.

        Raises:
            ShapeError: An annotation does not admit the dtype. ValueError: The device cannot be used.
        """
        check_device(device)
        made = [t.detach().to(device, dtype if t.is_floating_point() else None, copy=True) for t in self._tensors]
        bind(self.entries, made, owner=f"{type(self).__name__}.to", start=self.binding)
        return cast(Self, _finish(self._layout, made, self.requires_grad, self.binding))

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name, detached and not copied, as a module's state dict. `shaped.export` writes files."""
        return {name: tensor.detach() for name, tensor in zip(self.names, self._tensors, strict=True)}

    def set_values(self, other: "ParamList | Sequence[Tensor]") -> None:
        """Copy the tensors of `other` into these, all or nothing; from any device, and cast to each tensor's dtype.

        Raises:
            ShapeError: `other` breaks this list's signature at its present sizes; nothing was copied.
        """
        owner = f"The new value of {type(self).__name__}"
        if not isinstance(other, ParamList | list | tuple):
            raise ShapeError(f"{owner} is {describe(other)}: pass a ParamList, or a list of {len(self)} tensors")
        tensors = list(other)
        bind(self.entries, tensors, owner=owner, start=self.binding)
        if any(tensor.is_meta for tensor in tensors) and not self._tensors[0].is_meta:
            raise ShapeError(f"{owner} is on the meta device, where tensors have no values")
        mine = {tensor.untyped_storage().data_ptr() for tensor in self._tensors}
        with torch.no_grad():  # what shares memory with this list is read before anything is written
            new = [t.clone() if t.untyped_storage().data_ptr() in mine else t for t in tensors]
            for old, value in zip(self._tensors, new, strict=True):
                old.copy_(value)

    @checked
    def with_frozen(self, paths: Sequence[str]) -> Self:
        """The same memory under another mask: these paths, or prefixes of paths, ask for no gradient, the rest does.

        Two trainers over two such lists train parts of one model.

        Raises:
            SignatureError: A path matches nothing.
        """
        kept = frozen_entries(type(self).__name__, self.entries, paths)
        mask = [t.is_floating_point() and not k for t, k in zip(self._tensors, kept, strict=True)]
        return cast(Self, _finish(self._layout, [t.detach() for t in self._tensors], mask, self.binding))

    def like(self, tensors: Sequence[Tensor]) -> Self:
        """A list of the same class and sizes over other tensors (gradients, moments); asks for no gradients.

        Raises:
            ShapeError: There are more or fewer of them, or one has another shape. In a trace, where sizes are symbols,
                shapes are left to whoever traces.
        """
        if not isinstance(tensors, ParamList | list | tuple):
            raise ShapeError(f"tensors is {describe(tensors)}: pass a ParamList, or a list of {len(self)} tensors")
        if any(isinstance(size, torch.SymInt) for t in self._tensors for size in t.shape):
            if len(tensors) != len(self):
                raise ShapeError(f"{len(tensors)} tensors for the {len(self)} entries of {type(self).__name__}")
            return cast(Self, self._layout.build([tensor.detach() for tensor in tensors]))
        return cast(Self, _finish(self._layout, list(tensors), [False] * len(self._tensors), self.binding))

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, slice) or (isinstance(key, int) and -len(self) <= key < len(self)):
            return self._tensors[key]
        if isinstance(key, int):
            raise IndexError(f"{type(self).__name__} has {len(self)} tensors and none at {key}")
        found: Any = self
        for part in [key] if key in [field.name for field in self._fields] else str(key).split("."):
            if isinstance(found, tuple) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, ParamList) and part in (places := {f.name: f.place for f in found._fields}):
                found = found.__dict__[places[part]]
            else:
                raise KeyError(f"{type(self).__name__} has no entry `{key}`{nearest(str(key), self.names)}")
        return found

    def __getattr__(self, name: str) -> Any:
        known = [field.name for field in type(self)._fields]
        raise AttributeError(f"{type(self).__name__} has no entry `{name}`{nearest(name, known)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{type(self).__name__} keeps its tensors: write new values into them with set_values, or build a new list"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} keeps its tensors")

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensors)

    def __repr__(self) -> str:
        rows = [
            f"  {entry.path}: {entry.spec} = {describe(tensor)}{'' if _asks(tensor) else ', no gradient'}"
            for entry, tensor in zip(self.entries, self._tensors, strict=True)
        ]
        return "\n".join([f"{type(self).__name__}(", *rows, ")"])

    def _leaves(self) -> Iterator[Tensor]:
        for field in self._fields:
            value = self.__dict__[field.place]
            if field.nested is None:
                yield value
            else:
                for part in value if field.is_list else (value,):
                    yield from part._leaves()


def _asks(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _finish(
    layout: Layout, tensors: Sequence[Tensor], mask: Sequence[bool], binding: Binding | None = None
) -> ParamList:
    """A checked list; the binding is worked out unless the tensors are known to have one."""
    binding = bind(layout.entries, tensors, owner=layout.name, start=binding)
    made = layout.build([_leaf(t, want) for t, want in zip(tensors, mask, strict=True)])
    made.__dict__["_binding"] = binding
    return cast(ParamList, made)


def _leaf(tensor: Tensor, wants_gradient: bool) -> Tensor:
    """The same storage as a leaf with this mask; the object itself where it is one already (a module's Parameter)."""
    if tensor.is_leaf and tensor.requires_grad == wants_gradient:
        return tensor
    return tensor.detach().requires_grad_(wants_gradient)


def _by_field(cls: type[ParamList], values: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments by field name; every missing and extra one is reported at once."""
    names = [field.name for field in cls._fields]
    given = dict(zip(names, values, strict=False))
    wrong = [f"{len(values) - len(names)} too many by position"] if len(values) > len(names) else []
    wrong += [f"`{name}` is unknown{nearest(name, names)}" for name in named if name not in names]
    wrong += [f"`{name}` is given twice" for name in named if name in given]
    given.update(named)
    missing = [name for name in names if name not in given]
    wrong += [f"{listing(missing)} missing"] if missing else []
    if wrong:
        raise ShapeError(f"{cls.__name__} has the entries {listing(names)}: {'; '.join(wrong)}")
    return given


def _collect(cls: type[ParamList], given: Mapping[str, Any]) -> tuple[Layout, list[Any]]:
    """The layout that the given values have, and their tensors, flat."""
    children: list[Any] = []
    tensors: list[Any] = []
    for field in cls._fields:
        value = given[field.name]
        if field.nested is None:
            children.append(None)
            tensors.append(value)
            continue
        parts = list(value) if field.is_list and isinstance(value, list | tuple) else [value]
        for part in parts:
            if not isinstance(part, field.nested):
                wanted = f"a list of {field.nested.__name__}" if field.is_list else field.nested.__name__
                raise ShapeError(f"{cls.__name__}.{field.name}: expected {wanted}, got {describe(part)}")
            tensors.extend(part)
        layouts = tuple(part._layout for part in parts)
        children.append(layouts if field.is_list else layouts[0])
    return Layout(cls, tuple(children)), tensors


def _mask(
    owner: str, entries: Sequence[Entry], tensors: Sequence[Tensor], wanted: Sequence[bool] | None
) -> tuple[bool, ...]:
    differentiable = [t.dtype.is_floating_point or t.dtype.is_complex for t in tensors]
    if wanted is None:
        return tuple(differentiable)
    if not isinstance(wanted, list | tuple) or not all(isinstance(want, bool) for want in wanted):
        raise ShapeError(f"{owner}: requires_grad is {wanted!r}; it is a list with True or False for each tensor")
    if len(wanted) != len(entries):
        raise ShapeError(f"{owner}: requires_grad has {len(wanted)} entries, the list has {len(entries)}")
    impossible = [e.path for e, d, w in zip(entries, differentiable, wanted, strict=True) if w and not d]
    if impossible:
        raise ShapeError(f"{owner}: {listing(impossible)} cannot have a gradient, only floating-point tensors can")
    return tuple(wanted)


def _refuse_empty(layout: Layout) -> None:
    if not layout.entries:
        why = "each of its lists is empty" if layout.cls._fields else "declare at least one annotated field"
        raise SignatureError(f"{layout.name} has no entries: {why}")


def _refuse_shared_memory(entries: Sequence[Entry], tensors: Sequence[Tensor]) -> None:
    """Two entries over the same memory would be updated twice."""
    spans = [
        (str(t.device), t.data_ptr(), t.data_ptr() + extent(t), entry.path)
        for entry, t in zip(entries, tensors, strict=True)
        if t.numel() and not t.is_meta
    ]
    for (device, _, end, first), (other, start, _, second) in itertools.pairwise(sorted(spans)):
        if device == other and start < end:
            raise ShapeError(
                f"{listing([first, second])} share memory: keep one entry and use it twice in the loss, or clone one"
            )
    for entry, tensor in zip(entries, tensors, strict=True):
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            raise ShapeError(f"`{entry.path}` is expanded, so its elements share memory: clone it")


def extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _fixed_spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(Dim(str(size)) for size in tensor.shape), (tensor.dtype,), class_of(tensor.dtype))


def _flatten(params: ParamList) -> tuple[list[Any], Any]:
    return list(params._tensors), params._layout


def _unflatten(leaves: Any, layout: Any) -> ParamList:
    return cast(ParamList, layout.build(list(leaves)))


def _flatten_with_keys(params: ParamList) -> tuple[list[tuple[Any, Any]], Any]:
    leaves, context = _flatten(params)
    return [(pytree.MappingKey(path), leaf) for path, leaf in zip(params.names, leaves, strict=True)], context
