"""Expressions and relations over dimension names as values: `batch*seq//(2*experts) >= 4` as a tree.

What is decided about sizes is decided on the tree. Its text is for people, and is Python all the same:

    parse(str(term)) == term          eval(str(term), sizes) == term.evaluate(sizes)
"""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shaped.errors import SignatureError

Operations = Mapping[str, Callable[..., Any]]

PYTHON: Operations = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "%": operator.mod, "**": operator.pow, "<<": operator.lshift, ">>": operator.rshift, "&": operator.and_,
    "|": operator.or_, "^": operator.xor, "neg": operator.neg, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "not": operator.not_,
    "max": max, "min": min, "abs": abs, "int": int, "float": float, "round": round,
    "ceil": math.ceil, "floor": math.floor,
    **{name: getattr(math, name) for name in (
        "sqrt", "log2", "log", "exp", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan", "asinh")},
}  # fmt: skip

FUNCTIONS = frozenset(name for name in PYTHON if name.isalnum()) - {"neg", "not"}
RELATIONS = ("==", "!=", "<", "<=", ">", ">=")

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
}  # fmt: skip
_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip

# Python's precedence, loosest first.
_LEVELS = (("if",), ("or",), ("and",), ("not",), RELATIONS, ("|",), ("^",), ("&",), ("<<", ">>"), ("+", "-"),
           ("*", "/", "//", "%"), ("neg",), ("**",))  # fmt: skip
_LEVEL = {op: level for level, ops in enumerate(_LEVELS) for op in ops}
_ATOM = len(_LEVELS)
_TIGHT = ("*", "//", "**")  # written without blanks


class NotComputable(ValueError):
    """A function of sizes that nobody here can evaluate."""


@dataclass(frozen=True)
class Term:
    """An operation and its operands: "number" and "name" hold a value, the others hold terms."""

    op: str
    args: tuple[Any, ...]

    @staticmethod
    def number(value: float) -> "Term":
        """A number: whole, or a fraction such as a scale factor."""
        return Term("number", (value,))

    @staticmethod
    def name(name: str) -> "Term":
        """A dimension name."""
        return Term("name", (name,))

    @staticmethod
    def of(op: str, *args: "Term") -> "Term":
        """An operation over terms; a negated number is a number."""
        if op == "neg" and args[0].op == "number":
            return Term.number(-args[0].args[0])
        return Term(op, args)

    @staticmethod
    def parse(text: str) -> "Term":
        """Read Python's notation; SignatureError where it is no arithmetic or relation over names."""
        try:
            return from_tree(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, RecursionError, MemoryError, NotComputable) as error:
            said = str(error) if isinstance(error, NotComputable) else "it is not Python's notation"
            raise SignatureError(f"`{text}` is no expression over sizes: {said}") from None

    @property
    def is_relation(self) -> bool:
        """Whether it is true or false, not a size."""
        return self.op in (*RELATIONS, "and", "or", "not")

    @property
    def is_name(self) -> bool:
        """Whether it is one name and nothing more."""
        return self.op == "name"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names it depends on, in order of appearance."""
        return tuple(dict.fromkeys(part.args[0] for part in self.parts() if part.op == "name"))

    def parts(self) -> Iterator["Term"]:
        """The term itself and all below it, from left to right."""
        yield self
        if self.op not in ("number", "name"):
            for arg in self.args:
                yield from arg.parts()

    def evaluate(self, values: Mapping[str, Any], operations: Operations = PYTHON) -> Any:
        """Its value where each name has the value in `values`; KeyError names one that has none."""
        match self.op:
            case "number":
                return self.args[0]
            case "name":
                return values[self.args[0]]
            case "and" | "or" if self.op not in operations:
                known = (bool(arg.evaluate(values, operations)) for arg in self.args)
                return all(known) if self.op == "and" else any(known)
            case "if" if self.op not in operations:
                condition, then, otherwise = self.args
                return (then if condition.evaluate(values, operations) else otherwise).evaluate(values, operations)
        if self.op not in operations:
            raise NotComputable(f"`{self.op}` is no function of sizes that can be computed")
        return operations[self.op](*(arg.evaluate(values, operations) for arg in self.args))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it is true; False where it has no value: a division by zero, a name without a size.

        One alternative without a value leaves the others as they are.
        """
        if self.op == "or":
            return any(part.holds(values) for part in self.args)
        try:
            return bool(self.evaluate(values))
        except (ArithmeticError, KeyError, ValueError, TypeError):
            return False

    def substitute(self, mapping: Mapping[str, "Term"]) -> "Term":
        """Put terms in place of names."""
        if self.op == "name":
            return mapping.get(self.args[0], self)
        return self if self.op == "number" else Term.of(self.op, *(arg.substitute(mapping) for arg in self.args))

    @cached_property
    def text(self) -> str:
        """Python, with the brackets that its precedence needs and those that help a reader."""
        return _written(self)

    def __str__(self) -> str:
        return self.text


def from_tree(node: ast.AST) -> Term:
    """A term from Python's own tree; NotComputable says what in it is no arithmetic over names."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return Term.number(value)
        case ast.Name(id=name):
            return Term.name(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return Term.of("neg", from_tree(operand))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return Term.of("not", from_tree(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return Term.of(_BINARY[type(op)], from_tree(left), from_tree(right))
        case ast.BoolOp(op=op, values=values):
            return Term.of("and" if isinstance(op, ast.And) else "or", *map(from_tree, values))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
            return Term.of(_COMPARED[type(op)], from_tree(left), from_tree(right))
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            return Term.of("if", *map(from_tree, (test, body, otherwise)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS and args:
            return Term.of(name, *map(from_tree, args))
    raise NotComputable(f"`{ast.unparse(node)}` is neither a name, a number nor arithmetic over them")


def _level(term: Term) -> int:
    if term.op == "number":
        return _LEVEL["neg"] if str(term.args[0]).startswith("-") else _ATOM
    return _LEVEL.get(term.op, _ATOM)


def _written(term: Term) -> str:
    op, args = term.op, term.args
    match op:
        case "number":
            return repr(args[0])
        case "name":
            return str(args[0])
        case "neg":
            return f"-{_bracketed(args[0], _LEVEL['neg'])}"
        case "not":
            return f"not {_bracketed(args[0], _ATOM)}"
        case "and" | "or":
            return f" {op} ".join(_bracketed(arg, _LEVEL[op] + 1) for arg in args)
        case "if":
            condition, then, otherwise = (_bracketed(arg, 1) for arg in args)
            return f"{then} if {condition} else {otherwise}"
    if op not in _LEVEL:
        return f"{op}({', '.join(arg.text for arg in args)})"
    left, right = args
    level = _LEVEL[op]
    between = op if op in _TIGHT else f" {op} "
    first = _operand(left, op, level + (op in ("**", *RELATIONS)))
    return f"{first}{between}{_operand(right, op, level + 1, right=op not in RELATIONS)}"


def _operand(term: Term, op: str, level: int, right: bool = False) -> str:
    """An operand of a binary operation, in brackets also where only a reader needs them: `(a//b)*c`, `a + (b % c)`."""
    divided = term.op in ("//", "%", "/") and op in ("*", "/", "//", "%")
    rest = term.op == "%" and op in ("+", "-")
    negative = right and _level(term) == _LEVEL["neg"]
    return f"({term.text})" if divided or rest or negative or _level(term) < level else term.text


def _bracketed(term: Term, level: int) -> str:
    return f"({term.text})" if _level(term) < level else term.text
