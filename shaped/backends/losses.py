"""The signature of a loss over a ParamList: of one that takes the list, or its entries one by one.

A list without a class may be taken apart, as TorchLean curries it: `loss(w, b, x)` for ParamList[W, B].
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from shaped.backends.modules import first_argument
from shaped.errors import SignatureError, listing
from shaped.params import ParamList
from shaped.shapes import Argument, Signature, is_tensor_annotation, read_signature


def loss_signature(loss: Callable[..., Any], params: ParamList) -> Signature:
    """Read a loss, with the real layout of the list in the place of its annotation.

    Raises:
        SignatureError: It takes another class, a second list, or other entries than the list has.
    """
    first, declared = first_argument(loss)
    if isinstance(declared, type) and issubclass(declared, ParamList) and not isinstance(params, declared):
        raise SignatureError(
            f"`{getattr(loss, '__name__', loss)}` takes a {declared.__name__} as `{first}`, "
            f"and params is a {type(params).__name__}"
        )
    if isinstance(declared, type) and issubclass(declared, nn.Module):
        raise SignatureError(
            f"`{getattr(loss, '__name__', loss)}` takes a {declared.__name__} as `{first}`, and params is a "
            f"{type(params).__name__}: pass the module"
        )
    if is_tensor_annotation(declared):
        return _one_by_one(read_signature(loss), params)
    signature = read_signature(loss, {first: params._layout})
    others = [a.name for a in signature.arguments[1:] if a.kind == "parameters"]
    if others:
        raise SignatureError(f"`{signature.name}`: {listing(others)} is a second parameter list; nest it in the first")
    return signature


def _one_by_one(signature: Signature, params: ParamList) -> Signature:
    """A loss whose first arguments are the entries of the list."""
    count = len(params.entries)
    leading, rest = signature.arguments[:count], signature.arguments[count:]
    taken = [a for a in leading if a.kind == "tensor" and not a.keyword]
    wrong = [f"it takes {len(taken)} tensors, and the list has {count} entries"] if len(taken) != count else []
    wrong += [
        f"`{a.name}` is {a.entries[0].spec.quoted}, and `{e.path}` is {e.spec.quoted}"
        for a, e in zip(taken, params.entries, strict=False)
        if a.entries[0].spec != e.spec
    ]
    if wrong:
        raise SignatureError(
            f"`{signature.name}` does not take the parameters: its first argument is a {type(params).__name__}, or its "
            f"first arguments are the entries of it, one by one.\n  " + "\n  ".join(wrong)
        )
    loss = signature.function

    def run(values: Sequence[Any], *inputs: Any, **named: Any) -> Any:
        return loss(*values, *inputs, **named)

    return replace(
        signature, function=run, arguments=(Argument("params", "parameters", params.entries, params._layout), *rest)
    )
