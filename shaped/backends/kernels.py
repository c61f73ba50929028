"""Compiled code apart from Inductor: what it generated, as a text and libraries that can be kept and loaded again.

Inductor writes a Python module for each graph: calls of its C++ kernels and of torch's own operations. Here that module
is reduced to the calls, and its kernels are named by the digest of their libraries, so that loading it imports nothing
of Inductor, compiles nothing and asks for no compiler. A module that does anything else is not kept.
"""

import ast
import builtins
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import BuiltinFunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from shaped import files
from shaped.backends.calls import DRIVEN
from shaped.backends.driver import Driver, addresses
from shaped.backends.executors import CompileError, Run
from shaped.backends.products import onednn
from shaped.errors import first_line
from shaped.proof.whole import DEFINED_BY, named

_LEFT_OUT = ("get_args", "benchmark_compiled_module")  # functions with which a module of Inductor's tries itself
_KERNEL = "kernel"  # what a library is called, and its functions, with their numbers
_FUNCTIONS = (_KERNEL, "drive")
_ADDRESS = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"  # where a library looks for how a tensor's memory is found
_DEFINED_BY: dict[str, Callable[[], object]] = {**DEFINED_BY, "product": onednn}
_STANDING = ("async_compile", "extern_kernels", "AsyncCompile")


class Unkeepable(Exception):
    """Compiled code that cannot be taken apart from Inductor; the message says why."""


@dataclass(frozen=True)
class KeptCode:
    """The generated code of one executor.

    Attributes:
        source: A Python module that defines `call` or `driven`. `kernels[...].kernel0` stands for a library's function.
        libraries: By their digests.
        constants: Tensors that the module names.
    """

    source: str
    libraries: Mapping[str, bytes]
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    def load(self) -> Run:
        """Load the libraries and run the module.

        Raises:
            CompileError: It cannot be loaded here.
        """
        space: dict[str, Any] = {"__name__": "shaped.kept", **self.constants}
        space |= {"extern_kernels": _operations(), "kernels": {d: _library(d, c) for d, c in self.libraries.items()}}
        space["addresses"] = addresses
        try:
            for name in named(self.source):
                _DEFINED_BY[name]()
            exec(compile(self.source, "<a kept program>", "exec"), space)
        except Exception as error:  # whatever a module that was made elsewhere says of this torch
            raise CompileError(f"the kept code cannot be loaded: {first_line(error)}") from error
        call: Callable[[list[Any]], Any] = space.get(DRIVEN) or space["call"]

        def run(arguments: list[Any]) -> Any:
            with torch.no_grad():
                return call(arguments)

        return run


def digest(content: bytes) -> str:
    """What a content is known by."""
    return hashlib.sha256(content).hexdigest()


def taken_apart(compiled: Any) -> KeptCode:
    """The code of what Inductor compiled.

    Raises:
        Unkeepable: It is not of a kind that is kept.
    """
    constants = dict(getattr(compiled, "constants", None) or {})
    if getattr(compiled, "frozen_param_names", None) or getattr(compiled, "torchbind_constants", None):
        raise Unkeepable("it has constants that are no tensors")
    if any(type(t) is not Tensor or t.device.type != "cpu" or t.layout != torch.strided for t in constants.values()):
        raise Unkeepable("it has constants that are no plain tensors of a CPU")
    runner = getattr(compiled, "compiled_fn_runner", None)
    call = getattr(runner, "call", None) or compiled.current_callable
    space = getattr(getattr(call, "__func__", call), "__globals__", None)
    if not isinstance(compiled.source_code, str) or space is None:
        raise Unkeepable("its source is not known")
    libraries: dict[str, bytes] = {}
    tree = ast.parse(compiled.source_code)
    body = [_statement(node, space, libraries) for node in tree.body if not _is_left_out(node)]
    tree.body = [node for node in body if node is not None]
    if (driver := driver_of(compiled)) is not None:
        tree.body = _driving(tree.body, driver, libraries)
    tree.body = _needed(tree.body)
    _refuse_others(tree, space, constants)
    return KeptCode(ast.unparse(ast.fix_missing_locations(tree)), libraries, constants)


def driver_of(compiled: Any) -> Driver | None:
    """The driver of what Inductor compiled, where nothing stands between a caller and the generated function."""
    function = getattr(compiled.current_callable, "__func__", compiled.current_callable)
    found = getattr(function, "__globals__", {}).get("shaped_driver")
    return found if isinstance(found, Driver) else None


def _driving(body: list[ast.stmt], driver: Driver, libraries: dict[str, bytes]) -> list[ast.stmt]:
    """The module with the driver's function in place of the class in which Inductor calls every kernel."""

    def named(function: Any) -> str:
        content = _content(function)
        libraries[digest(content)] = content
        return f"kernels[{digest(content)!r}].{function.__name__}"

    lines = [f"{drive.__name__} = {named(drive)}" for drive in driver.drives]
    if driver.torchs or driver.others:
        given = [f"*addresses({[*driver.torchs]!r})", *(f"{named(other)}_at" for other in driver.others)]
        lines.append(f"{named(driver.drives[0]).rpartition('.')[0]}.link({', '.join(given)})")
    names = ("Runner", "runner", "call", "recursively_apply_fns")
    rest = [node for node in body if not ({*_defined(ast.Module([node], []))} & {*names} and not _imports(node))]
    return [*rest, *ast.parse("\n".join([*lines, driver.source])).body]


def _imports(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _is_left_out(node: ast.stmt) -> bool:
    return isinstance(node, ast.If | ast.Delete) or (isinstance(node, ast.FunctionDef) and node.name in _LEFT_OUT)


def _statement(node: ast.stmt, space: Mapping[str, Any], libraries: dict[str, bytes]) -> ast.stmt | None:
    """A statement as it is kept: a kernel that is compiled becomes one that is loaded."""
    value = node.value if isinstance(node, ast.Expr | ast.Assign) else None
    if isinstance(value, ast.Constant) or (isinstance(value, ast.Call) and _root(value.func) in _STANDING[::2]):
        if not isinstance(node, ast.Assign):
            return None  # the title, and `async_compile.wait(globals())`
        assert isinstance(value, ast.Call)
        function = value.func
        if isinstance(function, ast.Name):
            return None  # `async_compile = AsyncCompile()`
        if not isinstance(function, ast.Attribute) or function.attr != "cpp_pybinding":
            raise Unkeepable(f"it has kernels made by {ast.unparse(function)}")
        assert isinstance(node.targets[0], ast.Name)
        kernel: Any = space.get(node.targets[0].id)
        content = _content(kernel)
        libraries[digest(content)] = content
        library = ast.Subscript(ast.Name("kernels", ast.Load()), ast.Constant(digest(content)), ast.Load())
        node.value = ast.Attribute(library, kernel.__name__, ast.Load())
    return node


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _content(function: Any) -> bytes:
    """The content of the library that a kernel was loaded from."""
    file = getattr(getattr(function, "__self__", None), "__file__", None)
    if not isinstance(function, BuiltinFunctionType) or not function.__name__.startswith(_FUNCTIONS) or not file:
        raise Unkeepable("it has a kernel that is no library's")
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise Unkeepable(f"a library of its kernels cannot be read: {error}") from None


def _needed(body: list[ast.stmt]) -> list[ast.stmt]:
    """Without the imports and names that nothing uses."""
    while True:
        read = {
            n.id for node in body for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
        }
        left = [node for node in body if not _is_unused(node, read | {"call", DRIVEN})]
        if len(left) == len(body):
            return left
        body = left


def _is_unused(node: ast.stmt, read: set[str]) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        node.names = [one for one in node.names if (one.asname or one.name.partition(".")[0]) in read]
        return not node.names
    return (
        isinstance(node, ast.Assign)
        and all(isinstance(target, ast.Name) and target.id not in read for target in node.targets)
        and not any(isinstance(one, ast.Call) for one in ast.walk(node.value))
    )


def _refuse_others(tree: ast.Module, space: Mapping[str, Any], constants: Mapping[str, Tensor]) -> None:
    """Refuse what would import Inductor, or name what is not there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch._inductor.select_algorithm":
            node.names = [one for one in node.names if one.name != "extern_kernels"]
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) and node.names else []
        if wrong := [name for name in names if name.split(".")[0] not in _IMPORTED or "_inductor" in name]:
            raise Unkeepable(f"its code imports {wrong[0]}")
        if isinstance(node, ast.Attribute) and _root(node) == "async_compile":
            raise Unkeepable(f"its code uses {ast.unparse(node)}")
        called = node.attr if isinstance(node, ast.Attribute) and _root(node) == "extern_kernels" else ""
        if called and getattr(space["extern_kernels"], called, None) is not getattr(_operations(), called, None):
            raise Unkeepable(f"it calls {called} of Inductor's")
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and not node.names)]
    known = {*_defined(tree), *constants, *vars(builtins), "extern_kernels", "kernels", "addresses"}
    unknown = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id not in known]
    if unknown:
        raise Unkeepable(f"its code uses {unknown[0]}, which it does not define")


def _defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module gives something to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (one.asname or one.name for one in node.names)


_IMPORTED = ("torch", "math", "cmath", "ctypes", "random", "os", "tempfile")


def _operations() -> Any:
    """Torch's own operations by the names that generated code calls them by."""
    return SimpleNamespace(**{name: getattr(torch, name) for name in ("mm", "addmm", "bmm", "baddbmm", "convolution")})


_loaded: dict[str, Any] = {}


def _library(name: str, content: bytes) -> Any:
    """A library, which is loaded once in a process."""
    if name in _loaded:
        return _loaded[name]
    os.environ[_ADDRESS] = str(vars(torch._C._dynamo.guards)["_torchinductor_pyobject_tensor_data_ptr"])
    try:
        # A folder of our own: nobody else can put another file there before it is loaded.
        with tempfile.TemporaryDirectory(prefix="shaped-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / f"{name[:32]}.so"
            files.write_new(path, content)
            spec = spec_from_file_location(_KERNEL, path)
            assert spec is not None
            assert spec.loader is not None
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
    except (OSError, ImportError) as error:
        raise CompileError(f"a kept library cannot be loaded: {first_line(error)}") from error
    _loaded[name] = module
    return module
