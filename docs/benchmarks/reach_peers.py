"""How many of the functions of `reach.py` torchtyc and Pyrefly answer about, beside what `shaped check` decides.

    PYTHONPATH=.:kernels python docs/benchmarks/reach_peers.py --packages FOLDER --rows ROWS --pyrefly COMMAND
        --torchtyc FOLDER [--out docs/benchmarks/results/reach]

`--rows` is what `reach.py --json` wrote. `pip install --no-deps --target FOLDER torchtyc==0.5.0` for `--torchtyc`;
`pip install pyrefly==1.5.0 pyrefly-torch-stubs==1.4.0 pyrefly-shape-extensions==1.4.0` in an environment of its own for
`--pyrefly`, which is that environment's folder.

An answer is one that hangs on what is declared: each function's annotation is changed, in a copy of the package, by one
axis more with a name of its own, of the result or, where the result has no shape, of the first argument that has one. A
peer *answers* where it reports something else of the changed function than of the unchanged one, or a wrong shape of
the unchanged one. torchtyc *runs* what it has traced to the end, too, with or without an answer. Pyrefly reads shapes
only below its decorator: each function gets `@static_jaxtyping` with the names of its annotations. torchtyc is given
the same hollow modules as `shaped check`, and both find torch itself; neither can be told what `FACTORIES` says. What
`shaped check` decides is proved, for the sizes and values that its statement names, or refuted; the peers' answers are
at one set of sizes (torchtyc) or where every step is known (Pyrefly), and may be wrong: they were not looked into.
"""

import argparse
import ast
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reach import PACKAGES as MEASURED
from reach import _names_shape, annotated

PACKAGES = dict(MEASURED)  # of which the peers are asked: those that the rows are of
_REASONS = {
    "is read here": "it reads a value that nothing tells",
    "ends the process": "its constructor ends the process where a package is not installed",
    "could not be made|_LazyError": "no instance can be made to call it on",
    "memory": "it takes more memory than 4 GB",
    "depends on data|shape depends on data": "it reads an integer from data, or makes a shape of it",
    "leaves torch": "it leaves torch, for numpy",
    "annotate it|was only tried": "a Tensor without a shape, which goes through with some shapes only",
    "^(TypeError|ValueError|AttributeError|RuntimeError)": "it raises an exception whatever is tried",
    "": "other: neither proved nor refuted",
}
_WRONG = re.compile(
    r"^(shape-mismatch|rank-mismatch|dim-inconsistent|tuple-arity|einops-pattern)"
    r"|^trace-error: .*(broadcast|shape|dimension|must match|inconsistent tensor size)"
)
_WRONG_TYPES = re.compile(r"Tensor\[\[")
_ONE_WORKER = "from reach import _Finder; import sys; sys.meta_path.append(_Finder())\n"
_ASK = """
import json, sys
from pathlib import Path
from torchtyc import config
from torchtyc.engine import check_paths
files = json.loads(sys.stdin.read())
settings = config.load(Path(sys.argv[1]))
settings.root, settings.timeout, settings.python = Path(sys.argv[1]), 900.0, sys.executable
settings.extra_paths = (sys.argv[1],)
report = check_paths(files, settings, hover=True)
if report.worker_error:
    print(report.worker_error, file=sys.stderr)
for file in files:
    found = [d.to_json() for d in report.diagnostics if d.path == file]
    ran = [name for name, shapes in report.shapes_in(file).items() if shapes]
    print("@" + json.dumps({"file": file, "found": found, "ran": ran}), flush=True)
"""

Function = tuple[str, str]  # file within its package's folder, name


class _Change(ast.NodeTransformer):
    """Decorates the functions that are counted, and adds an axis to each where that is asked."""

    def __init__(self, names: set[str], plant: bool, decorate: bool) -> None:
        self._names, self._plant, self._decorate, self._prefix, self.count = names, plant, decorate, "", 0

    def _within(self, node: Any, prefix: str) -> Any:
        before, self._prefix = self._prefix, prefix
        self.generic_visit(node)
        self._prefix = before
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        return self._within(node, f"{self._prefix}{node.name}.")

    def visit_FunctionDef(self, node: Any) -> Any:
        name = self._prefix + node.name
        self._within(node, f"{name}.<locals>.")
        overloads = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
        if name in self._names and not overloads:
            self.count += 1
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            owners = [node] if _names_shape(node.returns) else [a for a in arguments if _names_shape(a.annotation)]
            if self._plant:
                field = "returns" if owners[0] is node else "annotation"
                setattr(owners[0], field, _planted(getattr(owners[0], field), f"planted{self.count}"))
            if self._decorate:
                hints = [node.returns, *(a.annotation for a in arguments)]
                declared = " ".join(dict.fromkeys(name for hint in hints for name in _dimensions(hint)))
                node.decorator_list.append(ast.parse(f"static_jaxtyping({declared!r})", mode="eval").body)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef


def _strings(hint: ast.expr | None) -> Iterator[ast.Constant]:
    """The shapes in an annotation."""
    for node in ast.walk(hint) if hint is not None else ():
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
            last = node.slice.elts[1]
            if isinstance(last, ast.Constant) and isinstance(last.value, str):
                yield last


def _read(hint: ast.expr | None) -> ast.expr | None:
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        return ast.parse(hint.value, mode="eval").body
    return hint


def _planted(hint: ast.expr, name: str) -> ast.expr:
    hint = _read(hint) or hint
    for string in _strings(hint):
        string.value = f"{string.value!s} {name}".strip()
    return hint


def _dimensions(hint: ast.expr | None) -> Iterator[str]:
    for string in _strings(_read(hint)):
        for token in str(string.value).split():
            bare = token.lstrip("#?_").split("=")[-1]
            if bare.lstrip("*").isidentifier():
                yield bare


def changed(file: Path, plant: bool, decorate: bool) -> str:
    """The text of a file with its functions changed."""
    tree = ast.parse(file.read_text())
    tree = _Change({name for name, _ in annotated(file)}, plant, decorate).visit(tree)
    text = ast.unparse(ast.fix_missing_locations(tree))
    if not decorate:
        return text
    lines, at = text.splitlines(), 0
    for node in ast.parse(text).body:
        is_head = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if is_head or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            at = node.end_lineno or at
            continue
        break
    return "\n".join([*lines[:at], "from shape_extensions import static_jaxtyping", *lines[at:], ""])


def _spans(file: Path) -> dict[str, tuple[int, int]]:
    starts = {line: name for name, line in annotated(file)}
    nodes = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return {starts[node.lineno]: (node.lineno, node.end_lineno or 0) for node in nodes if node.lineno in starts}


def _copy(packages: Path, root: Path, files: Sequence[str], plant: bool, decorate: bool) -> Path:
    """The packages, unchanged or planted."""
    for package in PACKAGES:
        shutil.copytree(packages / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in files:
        (root / file).write_text(changed(packages / file, plant, decorate))
    return root


def ask_pyrefly(root: Path, files: Sequence[str], environment: Path) -> dict[Function, set[str]]:
    """What it says within each function."""
    site = next((environment / "lib").glob("python*/site-packages"))
    paths = [str(root), str(site)]
    settings = {"search-path": paths, "python-interpreter-path": sys.executable, "project-includes": list(files)}
    settings |= {"project-excludes": [], "replace-imports-with-any": []}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (root / "pyrefly.toml").write_text("\n".join(lines))
    command = [str(environment / "bin" / "pyrefly"), "check", "--output-format", "json"]
    command += ["-c", str(root / "pyrefly.toml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    found: dict[Function, set[str]] = defaultdict(set)
    spans = {file: _spans(root / file) for file in files}
    for error in json.loads(done.stdout)["errors"]:
        path = Path(error["path"])
        file = str(path.relative_to(root)) if path.is_absolute() else str(path)
        for name, (first, last) in spans.get(file, {}).items():
            if first <= error["line"] <= last and error["name"] not in ("missing-import", "unbound-name"):
                found[file, name].add(f"{error['name']}: {error['description']}")
    return found


def ask_torchtyc(root: Path, files: Sequence[str], peer: Path) -> tuple[dict[Function, set[str]], set[Function]]:
    """What it says of each function, and those that it has traced to the end."""
    here = Path(__file__).resolve().parent
    (root / "sitecustomize.py").write_text(_ONE_WORKER)
    paths = [root, here, peer, here.parents[1], here.parents[1] / "kernels"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    asked = json.dumps([str(root / file) for file in files])
    done = subprocess.run(
        [sys.executable, "-c", _ASK, str(root)], input=asked, capture_output=True, text=True, env=environment, cwd=root,
        check=False,
    )  # fmt: skip
    found: dict[Function, set[str]] = defaultdict(set)
    ran: set[Function] = set()
    for line in done.stdout.splitlines():
        if not line.startswith("@"):
            continue
        answer = json.loads(line[1:])
        file = str(Path(answer["file"]).relative_to(root))
        ran |= {(file, name) for name in answer["ran"]}
        for diagnostic in answer["found"]:
            if diagnostic["severity"] == "error":
                found[file, diagnostic["function"] or ""].add(f"{diagnostic['rule']}: {diagnostic['message']}")
    print(done.stderr[-2000:], file=sys.stderr)
    return found, ran


def _answers(
    plain: dict[Function, set[str]], planted: dict[Function, set[str]], about: re.Pattern[str]
) -> set[Function]:
    """Functions of which it says something else where an axis is planted, or a wrong shape of the unchanged one."""
    found = {function for function, said in planted.items() if said - plain.get(function, set())}
    return found | {function for function, said in plain.items() if any(about.search(text) for text in said)}


def _asked(
    packages: Path, rows: Sequence[dict[str, Any]], torchtyc: Path, pyrefly: Path, kept: Path | None
) -> dict[tuple[str, bool], dict[Function, set[str]]]:
    """What each says of the packages, unchanged and planted; of each package once, where answers are kept."""
    before = json.loads(kept.read_text()) if kept is not None and kept.is_file() else {}
    found: dict[tuple[str, bool], dict[Function, set[str]]] = defaultdict(dict)
    for package in PACKAGES:
        files = sorted({row["file"] for row in rows if row["package"] == package})
        for name, plant in itertools.product(("Pyrefly", "torchtyc"), (False, True)):
            key = f"{name} {package} {plant}"
            if key not in before:
                with tempfile.TemporaryDirectory() as folder:
                    root = _copy(packages, Path(folder), files, plant, decorate=name == "Pyrefly")
                    said, ran = ask_torchtyc(root, files, torchtyc) if name == "torchtyc" else (
                        ask_pyrefly(root, files, pyrefly), set()
                    )  # fmt: skip
                before[key] = [[[*function, sorted(some)] for function, some in said.items()], sorted(map(list, ran))]
                if kept is not None:
                    kept.write_text(json.dumps(before))
            for file, function, some in before[key][0]:
                found[name, plant][file, function] = set(some)
            for file, function in before[key][1]:
                found["runs", plant][file, function] = set()
    return found


def measure(
    packages: Path, rows: Sequence[dict[str, Any]], torchtyc: Path, pyrefly: Path, kept: Path | None
) -> dict[str, set[Function]]:
    """The functions that each decides."""
    found = {
        "shaped, proved": {(row["file"], row["name"]) for row in rows if row["status"] == "proved"},
        "shaped, refuted": {(row["file"], row["name"]) for row in rows if row["status"] == "refuted"},
    }
    said = _asked(packages, rows, torchtyc, pyrefly, kept)
    for name, about in (("torchtyc", _WRONG), ("Pyrefly", _WRONG_TYPES)):
        found[f"{name}, answers"] = _answers(said[name, False], said[name, True], about)
    found["torchtyc, runs"] = set(said["runs", False])
    known = {(row["file"], row["name"]) for row in rows}
    return {name: some & known for name, some in found.items()}


def page(rows: Sequence[dict[str, Any]], found: dict[str, set[Function]], versions: str) -> str:
    """The result as Markdown."""
    ours = found["shaped, proved"] | found["shaped, refuted"]
    answers = found["torchtyc, answers"] | found["Pyrefly, answers"]
    peers = answers | found["torchtyc, runs"]
    by_factories = {(row["file"], row["name"]) for row in rows if row.get("how")}
    table = [
        ("`shaped check`: decided", ours),
        ("`shaped check`: proved", found["shaped, proved"]),
        ("`shaped check`: refuted", found["shaped, refuted"]),
        ("`shaped check`: decided, without what `FACTORIES` of `reach.py` says", ours - by_factories),
        ("torchtyc: answers", found["torchtyc, answers"]),
        ("torchtyc: answers, or runs to the end", found["torchtyc, answers"] | found["torchtyc, runs"]),
        ("Pyrefly with `@static_jaxtyping`: answers", found["Pyrefly, answers"]),
        ("torchtyc and Pyrefly together: answers", answers),
        ("torchtyc and Pyrefly together: answers, or runs to the end", peers),
        ("of these, not decided by `shaped check`", peers - ours),
    ]
    counts = {package: sum(row["package"] == package for row in rows) for package in PACKAGES}
    lines = ["# Annotated functions of others' packages that are decided", "", versions, ""]
    lines += [(__doc__ or "").split("\n\n", 2)[2].split("\n\n", 1)[1].strip(), ""]
    lines += [f"| of {len(rows)} functions | {' | '.join(PACKAGES.values())} | all |"]
    lines += ["|---|" + "--:|" * (len(PACKAGES) + 1)]
    for name, some in table:
        each = [sum(file.startswith(f"{package}/") for file, _ in some) for package in PACKAGES]
        parts = [f"{n} of {total}" for n, total in zip(each, counts.values(), strict=True)]
        lines.append(f"| {name} | {' | '.join(parts)} | {len(some)} ({len(some) / len(rows):.0%}) |")
    reasons = Counter(_reason(row) for row in rows if row["status"] not in ("proved", "refuted"))
    lines += ["", "| not decided by `shaped check`, since | functions |", "|---|--:|"]
    lines += [f"| {reason} | {count} |" for reason, count in reasons.most_common()]
    return "\n".join([*lines, ""])


def _reason(row: dict[str, Any]) -> str:
    """Why a function is not decided, in a few words."""
    named = {"late": "it takes more than its limit of time", "unreachable": "it is defined within another function",
             "declared": "its body is for others to define", "crash": "the process ended"}  # fmt: skip
    if row["status"] in named:
        return named[row["status"]]
    return next((said for text, said in _REASONS.items() if re.search(text, row["summary"])), "other")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("packages", "rows", "torchtyc", "pyrefly"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--keep", type=Path, default=None, help="where answers are kept, to go on from")
    parser.add_argument("--note", default="", help="a sentence on how the rows came about")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = json.loads(options.rows.read_text())
    for absent in set(PACKAGES) - {row["package"] for row in rows}:
        del PACKAGES[absent]
    places = (options.packages.resolve(), rows, options.torchtyc.resolve(), options.pyrefly.resolve())
    found = measure(*places, options.keep)
    command = [str(options.pyrefly / "bin" / "pyrefly"), "--version"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    torchtyc = next(options.torchtyc.glob("torchtyc-*.dist-info")).name.removesuffix(".dist-info").replace("-", " ")
    note = f" {options.note}" if options.note else ""
    versions = f"Python {platform.python_version()}, torch {version('torch')}, {torchtyc}, {asked.stdout.strip()}; "
    written = page(rows, found, versions + f"{os.cpu_count()} cores of {platform.machine()}.{note}")
    print(written)
    if options.out is not None:
        options.out.with_suffix(".md").write_text(written)
        data = {name: sorted(map(list, some)) for name, some in found.items()}
        options.out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
