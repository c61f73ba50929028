"""A model of the corpus, rewritten so that tools which know only annotated tensors can read it.

    def loss(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:

becomes, with the same body,

    def loss(x: Float[Tensor, "batch pixels"], ..., p__w1: Float[Tensor, "pixels hidden"], ...) -> Float[Tensor, '']:
        p = MLP.layout().build([p__w1, ...])

The inputs come first, because torchtyc gives larger numbers to the names that it meets later and the usual condition
between an input and a parameter is `seq <= context`; axes such as `3*dim` come last, because jaxtyping must have met
`dim` by then. Parameter lists, tuples, dictionaries, records and modules go;
tensors and plain defaults stay, and a function over tensors alone is as it was. The other models of the module are left
out, for speed; no line moves by it.
"""

import ast
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from shaped import ParamList
from tests.corpus import concrete
from tests.corpus.catalogue import MODELS, Model


@dataclass(frozen=True)
class Plain:
    """The rewritten module.

    Attributes:
        text: Its source.
        header: The line of the function, 1-based.
        returns: The line of its return annotation as it was written.
        shift: What to add to a later line to have the line as it was written.
        changed: Whether anything had to be rewritten.
    """

    text: str
    header: int
    returns: int
    shift: int = 0
    changed: bool = False

    def original(self, line: int) -> int:
        """The line of the user's file that a line of `text` comes from; the rewritten header is its annotation."""
        if self.changed and line in (self.header, self.header + 1):
            return self.returns
        return line + self.shift if line > self.header else line


def rewrite(model: Model, text: str) -> Plain:
    """Rewrite one function of a module's source."""
    text = _alone(model, text)
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == model.name)
    assert node.returns is not None
    hints = concrete._hints(model)
    first = node.body[0]
    start = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
    tensors: list[str] = []
    weights: list[str] = []
    plain: list[str] = []
    rebuilt: list[str] = []
    for argument, default in _arguments(node):
        name, hint = argument.arg, hints[argument.arg]
        if default is not None:
            plain.append(f"{ast.unparse(argument)} = {ast.unparse(default)}")
            continue
        if name == next(iter(hints)) and concrete._over_output(model):
            inputs = [_flatten(n, h, "") for n, h in concrete._forward_hints(model).items()]
            tensors += [t for declared, _ in inputs for t in declared]
            expression = f"{_module(model)}()({', '.join(e for _, e in inputs)})"
        else:
            assert argument.annotation is not None
            declared, expression = _flatten(name, hint, ast.unparse(argument.annotation))
            (weights if isinstance(hint, type) and issubclass(hint, ParamList) else tensors).extend(declared)
        if expression != name:
            rebuilt.append(f"{name} = {expression}")
    if not rebuilt:
        return Plain(text, node.lineno, node.returns.lineno)
    device = f"().to({(tensors + weights)[0].partition(':')[0]}.device)"
    build = "; ".join(line.replace("()", device) if model.module else line for line in rebuilt)
    ordered = sorted(tensors + weights, key=lambda declared: bool(re.search(r"[*/+-]\w", declared)))
    header = f"def {model.name}({', '.join(ordered + plain)}) -> {ast.unparse(node.returns)}:"
    lines = text.splitlines()
    lines[node.lineno - 1 : start - 1] = [header, f"    {build}"]
    return Plain("\n".join(lines) + "\n", node.lineno, node.returns.lineno, start - node.lineno - 2, True)


def _alone(model: Model, text: str) -> str:
    """The module with blank lines for the other models that nothing in it mentions."""
    lines, names = text.splitlines(), {other.name for other in MODELS} - {model.name}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            if len(re.findall(rf"\b{node.name}\b", text)) > 1:
                continue
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno + 1)
    return "\n".join(lines) + "\n"


def _module(model: Model) -> str:
    assert isinstance(model.module, type)
    return model.module.__name__


def _arguments(node: ast.FunctionDef) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    positional = [*node.args.posonlyargs, *node.args.args]
    missing = len(positional) - len(node.args.defaults)
    yield from zip(positional, [*[None] * missing, *node.args.defaults], strict=True)
    yield from zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)


def _flatten(name: str, hint: Any, written: str) -> tuple[list[str], str]:
    """The annotated tensors that stand for one argument, and the expression that makes it from them."""
    if isinstance(hint, type) and issubclass(hint, nn.Module):
        return [], f"{written}()"
    if isinstance(hint, type) and issubclass(hint, ParamList):
        dims = {
            f"{name}__{re.sub(r'[^a-zA-Z0-9]', '_', entry.path)}": " ".join(map(str, entry.spec.dims))
            for entry in hint.layout().entries
        }
        declared = [f'{entry}: Float[Tensor, "{axes}"]' for entry, axes in dims.items()]
        return declared, f"{written}.layout().build([{', '.join(dims)}])"
    if typing.get_origin(hint) is tuple:
        parts = [_flatten(f"{name}__{i}", h, h.__name__) for i, h in enumerate(typing.get_args(hint))]
        return [t for declared, _ in parts for t in declared], f"({', '.join(e for _, e in parts)},)"
    if concrete._is_record(hint):
        fields = {n: _flatten(f"{name}__{n}", h, h.__name__) for n, h in concrete._fields(hint).items()}
        made = ", ".join(f"{n}={expression}" for n, (_, expression) in fields.items())
        return [t for declared, _ in fields.values() for t in declared], f"{written}({made})"
    kind = "Float" if "float32" in hint.dtypes else "Int" if "int64" in hint.dtypes else "Bool"
    return [f'{name}: {kind}[Tensor, "{hint.dim_str}"]'], name
