"""`view` and `reshape` of tensors without data: what torch's kernels need of sizes, and nothing else.

torch's shape function looks for a way from one shape to the other axis by axis, and asks on its way whether sizes that
have nothing to do with each other are equal or divide one another. Its kernels need only this:

    as many elements before as after; with one -1, that the other sizes divide that number
    each group of axes that lie together in memory is split into axes whose product is the group's
"""

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils._sympy.functions import Max

from shaped.proof.arithmetic import divided_exactly, divisions, in_halves
from shaped.proof.rounded import whole


def reshape(x: Tensor, *shape: Any, **named: Any) -> Tensor:
    """`Tensor.reshape` as what it is: a view where there is one, else a view of a copy.

    torch looks for the view in C++, which asks on its way what the kernels do not need.
    """
    sizes = named.get("shape", shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape)
    symbolic = next((n for n in (*x.shape, *sizes) if isinstance(n, SymInt)), None) if type(x) is FakeTensor else None
    if symbolic is None or x.dim() == 0 or 0 in map(_expression, x.shape):
        return x.reshape(*shape, **named)
    regrouping = _Regrouping(x, symbolic.node.shape_env)
    with disable_proxy_modes_tracing():  # arithmetic on sizes is no part of the program
        after = regrouping.complete(sizes)
        strides = None if after is None else regrouping.split([_expression(n) for n in after])
    if after is None:
        return x.reshape(*shape, **named)
    return (x if strides is not None else x.clone(memory_format=torch.contiguous_format)).view(sizes)


def viewed(tensor: Tensor, shape: Sequence[Any]) -> Tensor | None:
    """The view of a tensor in another shape; None where only torch itself can tell whether there is one.

    Raises:
        RuntimeError: There are more or fewer elements than the shape has room for, at the sizes of the trace.
    """
    symbolic = next((n for n in (*tensor.shape, *tensor.stride(), *shape) if isinstance(n, SymInt)), None)
    if symbolic is None or tensor.dim() == 0 or 0 in map(_expression, tensor.shape):
        return None
    return _Regrouping(tensor, symbolic.node.shape_env).view(shape)


class _Regrouping:
    """One view: sizes and strides as expressions, and what is known to divide what."""

    def __init__(self, tensor: Tensor, env: Any) -> None:
        self.tensor, self.env = tensor, env
        self.before = [_expression(n) for n in tensor.shape]
        self.strides = [_of_elements(_expression(n)) for n in tensor.stride()]

    def view(self, shape: Sequence[Any]) -> Tensor | None:
        after = self.complete(shape)
        strides = None if after is None else self.split([_expression(n) for n in after])
        if after is None or strides is None:
            return None
        return self.tensor.as_strided(after, list(map(self._size, strides)))

    def complete(self, shape: Sequence[Any]) -> list[Any] | None:
        """The shape with the size that -1 stands for, asking whether there is one; None where it cannot fit."""
        unknown = [i for i, size in enumerate(shape) if isinstance(size, int) and size == -1]
        rest = sympy.Mul(*(_expression(n) for i, n in enumerate(shape) if i not in unknown))
        if len(unknown) > 1 or rest == 0 or any(isinstance(size, int) and size < -1 for size in shape):
            return None
        if rest.xreplace(self.env.backed_var_to_val) == 0:
            return None  # x//n of a small x: torch asks for what it needs
        count = sympy.Mul(*self.before)
        over, under = sympy.cancel(self._exact(count) / self._exact(rest)).as_numer_denom()
        if not unknown:
            rounded = bool(divisions(rest)) and over != under
            fits = over == under or (rounded and self._size(over) == self._size(under))
            return list(shape) if fits else None
        if under != 1 and self._size(over) % self._size(under) != 0:
            raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {count}")
        missing = self._size(over) if under == 1 else self._size(over) // self._size(under)
        return [missing if i in unknown else size for i, size in enumerate(shape)]

    def split(self, after: Sequence[Any]) -> list[Any] | None:
        """The strides of the view, as `at::detail::computeStride` finds them, from the last axis to the first.

        None where sizes do not pair up as they are written.
        """
        found: list[Any] = []
        waiting = list(after)
        count, step = sympy.Integer(1), self.strides[-1]
        for axis in range(len(self.before) - 1, -1, -1):
            count = count * self.before[axis]
            if axis and self._equal(self.strides[axis - 1], count * step):
                continue  # the axis before lies next to it
            taken = sympy.Integer(1)
            while waiting and (waiting[-1] == 1 or not self._equal(taken, count)):
                found.append(taken * step)
                taken = taken * waiting.pop()
            if not self._equal(taken, count):
                return None
            count, step = sympy.Integer(1), self.strides[axis - 1] if axis else step
        return None if waiting else found[::-1]

    def _equal(self, a: Any, b: Any) -> bool:
        return bool(a == b) or bool(sympy.expand(self._exact(whole(a - b))) == 0)

    def _exact(self, size: Any) -> Any:
        """A size with x//n as x/n where it was asked whether n divides x."""
        if not divisions(size):
            return size
        return divided_exactly(in_halves(size), [question.fact for question in self.env.asked])

    def _size(self, expression: Any) -> Any:
        """A size that torch can work with, without a division where one can be spared."""
        exact = sympy.expand(self._exact(expression))
        expression = exact if sympy.denom(sympy.together(exact)) == 1 else expression
        if expression.is_Integer:
            return int(expression)
        expression = self.env.replace(expression)
        size = expression.xreplace(self.env.backed_var_to_val)  # of what data tell there is none
        return self.env.create_symintnode(expression, hint=int(size) if size.is_number else None)


def _of_elements(stride: Any) -> Any:
    """A stride with n for max(1, n): they differ where there are no elements, and then every stride is right."""
    ones = {atom: sympy.Mul(*(arg for arg in atom.args if arg != 1)) for atom in stride.atoms(Max)}
    return stride.xreplace({atom: n for atom, n in ones.items() if len(atom.args) == 2 and 1 in atom.args})


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, SymInt) else sympy.Integer(size)
