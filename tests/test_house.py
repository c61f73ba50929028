"""The house: floors, doors, and what an import may bring along."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# One row of the table in docs/contributing.md is one room: its modules may import each other, and those below them.
ROOMS = [
    (0, ("shaped_kernels",)),
    (0, ("shaped.errors", "shaped.arguments", "shaped.files", "shaped.garbage")),
    (1, ("shaped.shapes",)),
    (
        2,
        (
            "shaped.params",
            "shaped.init",
            "shaped.layout",
            "shaped.drawing",
            "shaped.strategies",
            "shaped.scaling",
            "shaped.roles",
        ),
    ),
    (3, ("shaped.proof",)),
    (3, ("shaped.optim",)),
    (3, ("shaped.ranks",)),
    (4, ("shaped.backends",)),
    (
        5,
        (
            *("shaped.trainer", "shaped.state", "shaped.remaking", "shaped.given", "shaped.stepping"),
            *("shaped.sharing", "shaped.cutting"),
        ),
    ),
    (6, ("shaped.checkpoint", "shaped.loop", "shaped.metrics", "shaped.losses", "shaped.data")),
    (6, ("shaped.lora", "shaped.fp8", "shaped.architecture")),
    (6, ("shaped.export",)),
    (7, ("shaped.workflow",)),
    (8, ("shaped.recipes", "shaped.cli", "shaped.command", "shaped.check", "shaped.bench")),
    (9, ("shaped",)),  # the door of the house
]
LAZY = (
    "triton", "sympy", "sklearn", "matplotlib", "rich", "torch._dynamo", "torch._inductor",
    "optuna", "river", "torchao", "torchmetrics", "pandas", "onnx", "onnxscript", "onnxruntime", "pygls",
)  # fmt: skip
FILES = [*sorted(ROOT.glob("shaped/**/*.py")), *sorted(ROOT.glob("kernels/shaped_kernels/**/*.py"))]
DOORS = [file for file in FILES if file.name == "__init__.py"]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("kernels", "__init__"))


def by_name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def room(module: str) -> tuple[int, tuple[str, ...]]:
    """The row whose module is the longest prefix."""
    rows = [(len(name), row) for row in ROOMS for name in row[1] if f"{module}.".startswith(f"{name}.")]
    return max(rows)[1]


def imported(file: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever it stands in it."""
    package = module_name(file).split(".") if file.name == "__init__.py" else module_name(file).split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from shaped import init` names the module shaped.init; `from shaped import ParamList` the door
            yield from (f"{source}.{a.name}" if is_module(source, a.name) else source for a in node.names)


def is_module(package: str, name: str) -> bool:
    place = ROOT / ("kernels" if package.startswith("shaped_kernels") else "") / package.replace(".", "/") / name
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_a_room_imports_only_from_floors_below_it_or_from_itself(file: Path) -> None:
    mine = room(module_name(file))
    ours = [name for name in imported(file) if name.split(".")[0] in ("shaped", "shaped_kernels")]
    wrong = [name for name in ours if room(name) != mine and room(name)[0] >= mine[0]]

    assert not wrong, f"{module_name(file)} stands on floor {mine[0]}"


def test_no_two_files_import_each_other_directly_or_in_a_circle() -> None:
    """An import for a type checker or within a function counts too."""
    files = {module_name(file): file for file in FILES}
    graph: dict[str, set[str]] = {
        name: {module for said in imported(file) if (module := holding(said, files)) not in ("", name)}
        for name, file in files.items()
    }
    done: set[str] = set()
    while leaves := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= leaves

    assert sorted(set(graph) - done) == []


def holding(name: str, files: dict[str, Path]) -> str:
    """The file of ours that a name in an import is in; nothing for what is not ours."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def test_the_table_in_contributing_lists_the_rooms() -> None:
    rows = re.findall(r"(?m)^\| (\d) \| (.*?) \|", (ROOT / "docs" / "contributing.md").read_text())
    listed = [(int(floor), name) for floor, names in rows for name in re.findall(r"`(.*?)`", names)]
    named = [(floor, name.removeprefix("kernels/").removesuffix("/").removesuffix(".py")) for floor, name in listed]

    assert sorted(named) == sorted((floor, n.replace(".", "/")) for floor, names in ROOMS[:-1] for n in names)


def test_every_file_stands_in_a_room_of_its_own_floor() -> None:
    inside = [module_name(file) for file in FILES if module_name(file) != "shaped"]

    assert [name for name in inside if room(name)[0] == 9] == []


@pytest.mark.parametrize("file", [f for f in FILES if "shaped_kernels" in f.parts], ids=by_name)
def test_the_kernels_import_torch_and_triton_only(file: Path) -> None:
    outside = {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names)

    assert outside <= {"torch", "triton", "shaped_kernels"}


def test_importing_shaped_imports_nothing_that_a_first_user_may_not_need() -> None:
    program = f"import sys, shaped; print([name for name in {LAZY} if name in sys.modules])"
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"}
    answer = subprocess.run([sys.executable, "-c", program], env=path, capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(("before", "after"), [("gc.enable()", "True 0"), ("gc.disable()", "False 0")])
def test_importing_shaped_looks_for_no_garbage_and_leaves_the_collector_as_it_was(before: str, after: str) -> None:
    program = f"""if True:
        import gc
        {before}
        starts = []
        gc.callbacks.append(lambda phase, info: starts.append(info))
        import shaped
        assert len(starts) < 20, len(starts)  # torch alone starts hundreds
        print(gc.isenabled(), gc.get_freeze_count())
    """
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"}
    answer = subprocess.run([sys.executable, "-c", program], env=path, capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == after


def test_importing_the_workflow_imports_no_extra() -> None:
    program = f"import sys, shaped.workflow.online; print([name for name in {LAZY} if name in sys.modules])"
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"}
    answer = subprocess.run([sys.executable, "-c", program], env=path, capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


def test_importing_the_kernels_imports_no_triton_and_no_shaped() -> None:
    program = "import sys, shaped_kernels; print([name for name in ('triton', 'shaped') if name in sys.modules])"
    path = {"PYTHONPATH": str(ROOT / "kernels"), "PATH": "/usr/bin:/bin"}
    answer = subprocess.run([sys.executable, "-c", program], env=path, capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


def test_the_root_does_not_make_the_import_name_kernels_ours() -> None:
    found = find_spec("kernels")

    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert found is None or found.origin is None or not Path(found.origin).is_relative_to(ROOT)


NAMING = ("headers", "inductor", "kernels", "lowerings", "ordering", "sparing", "surroundings", "units", "vectors")


def test_only_these_files_name_inductor() -> None:
    named = [by_name(file) for file in FILES if "_inductor" in file.read_text()]

    assert sorted(named) == [f"shaped/backends/{name}.py" for name in NAMING]


def test_only_the_backends_name_cuda_graphs() -> None:
    words = ("cudagraph", "cuda graph", "cuda.graph", "cuda_graph")
    named = [file for file in FILES if any(word in file.read_text().lower() for word in words)]

    assert [by_name(file) for file in named if "backends" not in file.parts] == []


def exports(file: Path) -> list[str]:
    """What a door says is public: `from .x import Y as Y`."""
    tree = ast.parse(file.read_text()).body
    return [a.asname for node in tree if isinstance(node, ast.ImportFrom) for a in node.names if a.asname]


@pytest.mark.parametrize("file", DOORS, ids=by_name)
def test_what_a_door_exports_is_there_and_documented_with_its_methods(file: Path) -> None:
    module = importlib.import_module(module_name(file))
    silent = [name for name in exports(file) for name in silent_names(name, getattr(module, name))]

    assert inspect.getdoc(module)
    assert silent == []


def silent_names(name: str, value: object) -> Iterator[str]:
    """A function or class without a docstring, and such methods and properties of the class itself."""
    if not (inspect.isfunction(value) or inspect.isclass(value)) or getattr(value, "_is_protocol", False):
        return
    if not value.__doc__ or value.__doc__.startswith(f"{name}("):  # dataclass writes such a line itself
        yield name
    for inner, member in vars(value).items() if inspect.isclass(value) else ():
        documented = inspect.isroutine(member) or isinstance(member, property | classmethod | staticmethod)
        if documented and not inner.startswith("_") and not inspect.getdoc(getattr(value, inner)):
            yield f"{name}.{inner}"


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_every_module_says_what_it_promises(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_annotations_are_objects_and_not_strings(file: Path) -> None:
    future = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]

    assert all(node.module != "__future__" for node in future)


@pytest.mark.parametrize("package", ["shaped", "kernels/shaped_kernels"])
def test_both_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_test_files_have_names_of_their_own() -> None:
    names = [file.name for file in ROOT.glob("tests/**/test_*.py")]

    assert sorted(names) == sorted(set(names))
    assert not list(ROOT.glob("tests/**/__init__.py"))


def test_no_file_is_longer_than_450_lines_and_no_function_than_60() -> None:
    files = [*FILES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/benchmarks/*.py")]
    functions = [
        (by_name(file), node.name, (node.end_lineno or 0) - node.lineno + 1)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert [by_name(file) for file in files if len(file.read_text().splitlines()) > 450] == []
    assert [(name, function) for name, function, lines in functions if lines > 60] == []


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):  # private to its module
                places.setdefault(node.name, []).append(by_name(file))

    assert {name: files for name, files in places.items() if len(files) > 1} == {}
