"""Typed parameter lists.

A `ParamList` is an ordered set of named tensors together with the signature that they obey:

    class MLP(ParamList):
        w1: Float[Tensor, "pixels hidden"]
        b1: Float[Tensor, " hidden"] = init.zeros()

Construction checks every entry and binds each dimension name to one size. After that the shapes are facts: nothing that
receives a `ParamList` checks them again. Gradients and optimizer moments are lists of the same class.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shaped import init
from shaped.errors import ShapeError, SignatureError, listing, nearest
from shaped.layout import DEFAULT_LENGTH, Field, Layout, read_fields
from shaped.shapes import Binding, Dim, Entry, TensorSpec, bind, describe



class ParamList:
    """Ordered, named tensors and the signature they obey. Subclass it, with one annotated field for each entry.

    A field is a tensor (`w: Float[Tensor, "a b"]`, with an initialiser as its value if the default does not suit), another
    ParamList (at other dimension names by `Annotated[Conv, dims(cin="rgb")]`), or a list of them (`blocks: list[Block] = 4`).
    Dimension names mean one number through the whole tree. `ParamList[Float[Tensor, "a b"], Float[Tensor, "b"]]` is the
    anonymous, positional form.

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
        cls._fields = cls._fields + read_fields(cls, ParamList)
        pytree.register_pytree_node(cls, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys)

    def __class_getitem__(cls, annotations: Any) -> "type[ParamList]":
        items = annotations if isinstance(annotations, tuple) else (annotations,)
        named = {str(i): item for i, item in enumerate(items)}
        title = f"ParamList[{', '.join(getattr(item, '__name__', str(item)) for item in items)}]"
        return _make_class(title, named)

    def __init__(self, *values: Any, requires_grad: Sequence[bool] | None = None, **named: Any) -> None:
        cls = type(self)
        if not cls._fields:
            raise ShapeError(f"{cls.__name__} has no entries: declare at least one annotated field")
        layout, tensors = _collect(cls, _by_field(cls, values, named))
        entries = layout.entries
        if not entries:
            raise ShapeError(f"{cls.__name__} has no tensors: each of its lists is empty")
        binding = bind(entries, tensors, owner=cls.__name__)
        _refuse_shared_memory(entries, tensors)
        mask = _mask(cls.__name__, entries, tensors, requires_grad)
        built = layout.build([_leaf(t, want) for t, want in zip(tensors, mask, strict=True)])
        self.__dict__.update(built.__dict__)
        self.__dict__["_binding"] = binding

    @classmethod
    def init(
        cls,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        frozen: Sequence[str] = (),
        **sizes: int,
    ) -> Self:
        """Draw a list at the given sizes.

        Args:
            seed: Each entry draws from its own generator, made from `seed` and its path: adding an entry changes no other.
            device: Where the tensors live. The values do not depend on it.
            dtype: For floating-point entries whose annotation admits it; the default is torch's default dtype.
            frozen: Paths, or prefixes of paths, that ask for no gradient.
            sizes: Every dimension name, and the lengths of lists (`blocks=4`).

        Raises:
            SignatureError: A size is missing, unknown or not a positive whole number, or `frozen` matches nothing.
        """
        layout = cls.layout(**{k: v for k, v in sizes.items() if k in _list_names(cls)})
        entries = layout.entries
        names = list(dict.fromkeys(name for entry in entries for dim in entry.spec.dims for name in dim.names))
        _check_sizes(cls.__name__, names, sizes, _list_names(cls))
        for prefix in frozen:
            if not any(_under(entry.path, prefix) for entry in entries):
                raise SignatureError(
                    f"{cls.__name__}: nothing to freeze at `{prefix}`{nearest(prefix, [e.path for e in entries])}"
                )
        tensors = [
            _draw(entry, initializer, sizes, seed, dtype).to(device)
            for entry, initializer in zip(entries, layout.initializers, strict=True)
        ]
        mask = [
            tensor.dtype.is_floating_point and not any(_under(entry.path, prefix) for prefix in frozen)
            for entry, tensor in zip(entries, tensors, strict=True)
        ]
        return cast(Self, _finish(layout, tensors, mask))

    @classmethod
    def from_module(cls, module: nn.Module) -> "ParamList":
        """The parameters and buffers of a module, under their names, at their present sizes.

        The tensors are the module's own: training the list trains the module. Tied parameters appear once. Buffers ask
        for no gradient.
        """
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        if not named:
            raise ShapeError(f"{type(module).__name__} has no parameters")
        made = _make_class(type(module).__name__, {})
        made._fields = tuple(
            Field(name, _fixed_spec(tensor), None, False, {}, None, None) for name, tensor in named.items()
        )
        mask = [tensor.requires_grad for tensor in named.values()]
        return _finish(made.layout(), list(named.values()), mask)

    @classmethod
    def layout(cls, **lengths: int) -> Layout:
        """This class with the length of each list: as given, else the field's default, else 2."""
        children: list[Layout | tuple[Layout, ...] | None] = []
        for field in cls._fields:
            if field.nested is None:
                children.append(None)
            elif field.is_list:
                length = lengths.get(field.name, field.default if field.default is not None else DEFAULT_LENGTH)
                if not isinstance(length, int) or isinstance(length, bool) or length < 0:
                    raise SignatureError(f"{cls.__name__}.{field.name}: a list's length is a whole number, not {length!r}")
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
        return dict(self._binding.sizes)

    @property
    def binding(self) -> Binding:
        """The sizes, and which entry fixed each."""
        return self._binding

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, by path."""
        return {name: tuple(t.shape) for name, t in zip(self.names, self._tensors, strict=True)}

    @property
    def device(self) -> torch.device:
        return self._tensors[0].device

    @property
    def requires_grad(self) -> tuple[bool, ...]:
        """Which tensors ask for a gradient, in order."""
        return tuple(tensor.requires_grad for tensor in self._tensors)

    def values(self) -> Self:
        """A copy: same class, same mask, tensors of its own."""
        copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in self._tensors]
        return cast(Self, _finish(self._layout, copies, self.requires_grad, self._binding))

    def set_values(self, other: "ParamList | Sequence[Tensor]") -> None:
        """Copy the tensors of `other` into these, all or nothing.

        Raises:
            ShapeError: `other` breaks this list's signature at its present sizes; nothing was copied.
        """
        tensors = list(other)
        binding = bind(
            self.entries, tensors, owner=f"The new value of {type(self).__name__}", start=self._binding,
            device=tensors[0].device if tensors and isinstance(tensors[0], Tensor) else None,
        )  # fmt: skip
        if binding.sizes != self._binding.sizes:
            raise AssertionError("bind keeps the sizes it started from")
        with torch.no_grad():
            for mine, new in zip(self._tensors, tensors, strict=True):
                mine.copy_(new)

    def like(self, tensors: Sequence[Tensor]) -> Self:
        """A list of the same class and sizes over other tensors (gradients, moments); asks for no gradients."""
        return cast(Self, _finish(self._layout, list(tensors), [False] * len(self._tensors), self._binding))

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return self._tensors[key]
        found: Any = self.__dict__.get(key) if key in {f.name for f in self._fields} else None
        if found is not None:
            return found
        found = self
        for part in key.split("."):
            if isinstance(found, tuple) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, ParamList) and part in {f.name for f in found._fields}:
                found = found.__dict__[part]
            else:
                raise KeyError(f"{type(self).__name__} has no entry `{key}`{nearest(key, self.names)}")
        return found

    def __getattr__(self, name: str) -> Any:
        known = [field.name for field in type(self)._fields]
        raise AttributeError(f"{type(self).__name__} has no entry `{name}`{nearest(name, known)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"a {type(self).__name__} keeps its tensors: write new values into them with set_values, or build a new list"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} keeps its tensors")

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensors)

    def __repr__(self) -> str:
        if "_binding" not in self.__dict__:
            return f"{type(self).__name__}({len(self._tensors)} entries)"
        rows = [
            f"  {entry.path}: {entry.spec} = {describe(tensor)}{'' if tensor.requires_grad else ', no gradient'}"
            for entry, tensor in zip(self.entries, self._tensors, strict=True)
        ]
        return "\n".join([f"{type(self).__name__}(", *rows, ")"])

    def _leaves(self) -> Iterator[Tensor]:
        for field in self._fields:
            value = self.__dict__[field.name]
            if field.nested is None:
                yield value
            else:
                for part in value if field.is_list else (value,):
                    yield from part._leaves()


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


def _make_class(name: str, annotations: Mapping[str, Any]) -> type[ParamList]:
    return type(name, (ParamList,), {"__annotations__": dict(annotations), "__module__": __name__})


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
        parts = list(value) if field.is_list and not isinstance(value, ParamList) else [value]
        for part in parts:
            if not isinstance(part, field.nested):
                raise ShapeError(f"{cls.__name__}.{field.name}: expected a {field.nested.__name__}, got {describe(part)}")
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
    if len(wanted) != len(entries):
        raise ShapeError(f"{owner}: requires_grad has {len(wanted)} entries, the list has {len(entries)}")
    impossible = [e.path for e, d, w in zip(entries, differentiable, wanted, strict=True) if w and not d]
    if impossible:
        raise ShapeError(f"{owner}: {listing(impossible)} cannot have a gradient, only floating-point tensors can")
    return tuple(bool(w) for w in wanted)


def _refuse_shared_memory(entries: Sequence[Entry], tensors: Sequence[Tensor]) -> None:
    """Two entries over one storage would be updated twice."""
    seen: dict[tuple[torch.device, int], str] = {}
    for entry, tensor in zip(entries, tensors, strict=True):
        if tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        first = seen.setdefault((tensor.device, tensor.data_ptr()), entry.path)
        if first != entry.path:
            raise ShapeError(
                f"{listing([first, entry.path])} share memory: keep one entry and use it twice in the loss, or clone one"
            )


def _list_names(cls: type[ParamList]) -> set[str]:
    own = {field.name for field in cls._fields if field.is_list}
    return own.union(*(_list_names(field.nested) for field in cls._fields if field.nested is not None))


def _check_sizes(owner: str, names: Sequence[str], sizes: Mapping[str, int], lists: set[str]) -> None:
    missing = [name for name in names if name not in sizes]
    unknown = [name for name in sizes if name not in names and name not in lists]
    wrong = [f"{listing(missing)} missing"] if missing else []
    wrong += [f"`{name}` is not one of them{nearest(name, [*names, *lists])}" for name in unknown]
    wrong += [
        f"{name} = {sizes[name]!r} is not a positive whole number"
        for name in names
        if name in sizes and (not isinstance(sizes[name], int) or isinstance(sizes[name], bool) or sizes[name] < 1)
    ]
    if wrong:
        raise SignatureError(f"{owner} has the dimensions {listing(names)}: {'; '.join(wrong)}")


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + ".")


def _draw(
    entry: Entry, initializer: init.Initializer | None, sizes: Mapping[str, int], seed: int, dtype: torch.dtype | None
) -> Tensor:
    shape = tuple(int(dim.evaluate(sizes)) for dim in entry.spec.dims)
    if min(shape, default=1) < 1:
        raise SignatureError(f"{entry.path} : {entry.spec} would have the shape {shape}")
    wanted = entry.spec.default_dtype(dtype)
    if initializer is None:
        initializer = init.fan_in() if len(shape) > 1 and wanted.is_floating_point else init.zeros()
    assert initializer is not None
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{entry.path}".encode()))
    return initializer.draw(shape, generator, torch.float64 if wanted == torch.float64 else torch.float32).to(wanted)


def _fixed_spec(tensor: Tensor) -> TensorSpec:
    name = str(tensor.dtype).removeprefix("torch.").capitalize()
    return TensorSpec(tuple(Dim(str(size)) for size in tensor.shape), (tensor.dtype,), name)


def _flatten(params: ParamList) -> tuple[list[Any], Any]:
    return list(params._tensors), (params._layout, params.__dict__.get("_binding"))


def _unflatten(leaves: Any, context: Any) -> ParamList:
    layout, binding = context
    made = layout.build(list(leaves))
    if binding is not None:
        made.__dict__["_binding"] = binding
    return cast(ParamList, made)


def _flatten_with_keys(params: ParamList) -> tuple[list[tuple[Any, Any]], Any]:
    leaves, context = _flatten(params)
    return [(pytree.MappingKey(path), leaf) for path, leaf in zip(params.names, leaves, strict=True)], context
