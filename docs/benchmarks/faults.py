"""Seeded mistakes: who finds them, when, and at which line.

    PYTHONPATH=.:kernels python docs/benchmarks/faults.py [--torchtyc PYTHON] [--only MODEL]

Each mistake of tests/corpus/faults.py is planted into a copy of its module; each tool is then asked for the first thing
it has to say of the function.

    shaped      `prove`, for all sizes; no data
    torchtyc    `torchtyc check FILE`, at its own prime sizes on the meta device; no data. PYTHON is an interpreter that
                has it beside torch, jaxtyping, beartype, einops and safetensors
    jaxtyping   with beartype through its import hook, so every annotated function of the module is checked while the
                function runs on tensors whose sizes are all distinct, and so are its gradients
    torch       the same run without annotations being checked

`at the line`: the edited line, or the line where the table of mistakes says that it comes to the surface. A tool that
blames a return value without a line is taken to mean the line of the return annotation. jaxtyping and torchtyc do not
know parameter lists, records and modules: they get the function with its tensors as arguments (plain.py). A diagnostic
of torchtyc counts if the unchanged file does not have it.

False alarms: what each tool says of the unchanged models, at sizes that satisfy their conditions.
"""

import argparse
import importlib
import inspect
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ask_torchtyc as torchtyc
import torch
from jaxtyping import AnnotationError, TypeCheckError, install_import_hook
from plain import Plain, rewrite
from report import RESULTS, machine, save, table, versions
from torch import Tensor

from shaped import ParamList, ProofError, Unprovable
from tests.corpus import concrete, faults
from tests.corpus.catalogue import MODELS, Model
from tests.corpus.planting import Fault, plant

GROUPS = ("TRANSPOSES", "WEIGHTS", "REDUCTIONS", "SILENT", "VIEWS", "SLICES", "DECLARATIONS", "DTYPES")
TOOLS = ("shaped", "torchtyc", "jaxtyping", "torch")
VERDICTS = ("at the line", "elsewhere", "missed", "undecided", "not asked")
# Instead of a line: an error outside the file; neither proved nor refuted; an annotation that the tool cannot read.
SOMEWHERE, UNDECIDED, UNREAD = 0, -1, -2


@dataclass(frozen=True)
class Subject:
    """A function to ask about: a planted mistake, or an unchanged model."""

    model: Model
    file: Path
    plain: Plain
    plain_file: Path
    fault: Fault | None = None
    right: frozenset[int] = frozenset()

    @property
    def group(self) -> str:
        return next(name.lower() for name in GROUPS if self.fault in getattr(faults, name))

    def verdict(self, line: int | None) -> str:
        without = {None: "missed", UNDECIDED: "undecided", UNREAD: "not asked"}
        if line in without:
            return without[line]
        return "at the line" if line in self.right else "elsewhere"


def prepare(model: Model, folder: Path, name: str, fault: Fault | None = None) -> Subject:
    """Write a model, with its mistake if there is one, as it is and for tools that know only tensors."""
    source = Path(sys.modules[model.function.__module__].__file__ or "")
    right: frozenset[int] = frozenset()
    if fault is not None:
        own = folder / name
        own.mkdir()
        text, body = source.read_text(), inspect.getsource(model.function)
        planted = plant(fault, own)
        edited = text[: text.index(body) + body.index(fault.old)].count("\n") + 1
        model, source, right = planted.model, planted.file, frozenset((planted.line, edited))
    plain = rewrite(model, source.read_text())
    file = folder / "plain" / f"{name}.py"
    file.write_text(plain.text)
    return Subject(model, source, plain, file, fault, right)


def line_of(error: BaseException, file: Path) -> int:
    """The line of the deepest frame in a file."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    return next((line for line in reversed(lines) if line), SOMEWHERE)


def ask_shaped(subject: Subject) -> int | None:
    try:
        subject.model.prove()
    except Unprovable:
        return UNDECIDED
    except ProofError as error:
        return error.source.line if error.source else line_of(error, subject.file)
    except Exception as error:
        return line_of(error, subject.file)
    return None


def ask_torch(subject: Subject) -> int | None:
    try:
        run(subject.model)
    except Exception as error:
        return line_of(error, subject.file)
    return None


def ask_jaxtyping(subject: Subject) -> int | None:
    name = subject.plain_file.stem
    with install_import_hook(name, "beartype.beartype"):
        function = getattr(importlib.import_module(name), subject.model.name)
    module = None if subject.plain.changed else subject.model.module
    try:
        run(replace(subject.model, function=function, module=module))
    except AnnotationError:
        return UNREAD
    except Exception as error:
        line = line_of(error, subject.plain_file)
        if not line and isinstance(error, TypeCheckError):
            return subject.plain.returns
        return subject.plain.original(line) if line else SOMEWHERE
    return None


def sizes_for(model: Model) -> concrete.Sizes:
    """Sizes that satisfy the conditions, all distinct if the conditions let them be."""
    generator = random.Random(0)
    equal = any(part.count("==") == 1 and "%" not in part for part in model.conditions)
    while equal and not (sizes := concrete.draw_sizes(model, generator)).satisfy(model):
        pass
    return sizes if equal else concrete.distinct_sizes(model)


def run(model: Model) -> None:
    """Call a model on tensors, and take the gradients if it declares a scalar."""
    torch.manual_seed(0)
    sizes = sizes_for(model)
    hints = concrete._inputs(model)
    arguments = {name: concrete._make(hint, sizes, model) for name, hint in hints.items()}
    parameters = [t for a in arguments.values() if isinstance(a, ParamList) for t in a]
    parameters += [a.requires_grad_() for name, a in arguments.items() if "__" in name and a.is_floating_point()]
    result: Any = concrete._call(model, arguments)
    if getattr(concrete._hints(model)["return"], "dim_str", None) == "" and isinstance(result, Tensor) and parameters:
        torch.autograd.grad(result, parameters, allow_unused=True)


def measure(subjects: Sequence[Subject], ask: Callable[[Subject], int | None], name: str) -> tuple[list[str], float]:
    """The verdict on each subject, and the seconds for all of them."""
    start = time.perf_counter()
    verdicts = []
    for i, subject in enumerate(subjects):
        print(f"\r{name} {i + 1}/{len(subjects)} ", end="", file=sys.stderr, flush=True)
        verdicts.append(subject.verdict(ask(subject)))
    print(file=sys.stderr)
    return verdicts, time.perf_counter() - start


def ask_all(planted: list[Subject], clean: list[Subject], python: str | None, folder: Path) -> dict[str, Any]:
    """For each tool its verdicts on mistakes and on unchanged models, the seconds it took, and what it ran in."""
    answers: dict[str, Any] = {}
    asks = {"shaped": ask_shaped, "jaxtyping": ask_jaxtyping, "torch": ask_torch}
    pool = ThreadPoolExecutor(1)  # it runs in a process of its own, beside the others
    rival = pool.submit(torchtyc.run, python, folder / "plain") if python is not None else None
    for name, ask in asks.items():
        on_faults, seconds = measure(planted, ask, name)
        on_models, more = measure(clean, ask, f"{name}, unchanged")
        answers[name] = {"faults": on_faults, "models": on_models, "seconds": seconds + more}
    if rival is not None:
        said, found, seconds = rival.result()
        before = {subject.model.name: said.get(subject.plain_file.stem, []) for subject in clean}
        on_faults = [
            torchtyc.verdict(s.plain, s.right, s.model.name, said.get(s.plain_file.stem, []), before[s.model.name])
            for s in planted
        ]
        on_models = []
        for s in clean:
            own = [d for d in before[s.model.name] if d["function"] == s.model.name]
            on_models.append(torchtyc.verdict(s.plain, s.right, s.model.name, own, ()))
        answers["torchtyc"] = {"faults": on_faults, "models": on_models, "seconds": seconds, "versions": found}
        answers["torchtyc"]["alarms"] = [
            f"{d['function']}: {d['rule']}: {d['message'].splitlines()[0]}"
            for s in clean
            for d in before[s.model.name]
            if d["function"] == s.model.name and d["severity"] in ("error", "warning")
        ]
    return answers


def page(planted: list[Subject], clean: list[Subject], answers: dict[str, Any], here: dict[str, str]) -> str:
    """The tables, as Markdown."""
    tools = [tool for tool in TOOLS if tool in answers]
    when = {"shaped": "yes", "torchtyc": "yes", "jaxtyping": "no, at the first call", "torch": "no, at the first call"}
    counts = {tool: Counter(answers[tool]["faults"]) for tool in tools}
    rows = [[tool, when[tool], *(counts[tool][verdict] for verdict in VERDICTS)] for tool in tools]
    groups = list(dict.fromkeys(subject.group for subject in planted))

    def cell(tool: str, chosen: list[int]) -> str:
        count = Counter(answers[tool]["faults"][i] for i in chosen)
        return f"{count['at the line']} + {count['elsewhere']}"

    by_group = []
    wordless = [i for i, s in enumerate(planted) if s.fault and s.fault.silent]
    chosen = {g: [i for i, s in enumerate(planted) if s.group == g] for g in groups}
    for label, those in {**chosen, "any, and torch returns what is declared": wordless}.items():
        by_group.append([label, len(those), *(cell(tool, those) for tool in tools)])
    alarms = []
    for tool in tools:
        said = Counter(answers[tool]["models"])
        alarms.append([tool, said["missed"], said["elsewhere"], said["undecided"], said["not asked"],
                       f"{answers[tool]['seconds']:.0f}"])  # fmt: skip
    left = [s.fault for s, v in zip(planted, answers["shaped"]["faults"], strict=True) if s.fault and v != VERDICTS[0]]
    missing = "" if "torchtyc" in answers else "\ntorchtyc: not run (`--torchtyc PYTHON`).\n"
    return f"""# Seeded mistakes

Written by `docs/benchmarks/faults.py`, whose head says what each tool is asked. {len(planted)} mistakes, one at a
time, in {len({s.model.name for s in planted})} of {len(clean)} models.
{", ".join(f"{k} {v}" for k, v in here.items())}.
Machine: {machine()}; others were working on it.
{missing}
{table(["tool", "before any data", *VERDICTS], rows)}

`undecided`: refused, but as unprovable and not as wrong. `not asked`: the tool says that it skips the function, or that
it cannot read an annotation.

By kind, found at the line + found elsewhere:

{table(["kind", "mistakes", *tools], by_group)}

The {len(clean)} unchanged models, which are right:

{table(["tool", "accepted", "false alarms", "undecided", "not asked", "seconds, all runs"], alarms)}

Not found at the line by shaped: {"; ".join(f"{f.model} with `{f.new}`" for f in left) or "none"}.
{torchtyc.alarms(answers["torchtyc"]["alarms"]) if not missing else ""}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torchtyc", metavar="PYTHON", help="an interpreter that has torchtyc")
    parser.add_argument("--only", default="", metavar="MODEL", help="models whose name contains this; writes no file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # torch warns of what some models are meant to do
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        (folder / "plain").mkdir()
        sys.path.insert(0, str(folder / "plain"))
        chosen = [model for model in MODELS if options.only in model.name]
        models = {model.name: model for model in chosen}
        wrong = [fault for fault in faults.FAULTS if fault.model in models]
        planted = [prepare(models[f.model], folder, f"fault{i:03}_{f.model}", f) for i, f in enumerate(wrong)]
        clean = [prepare(model, folder, f"clean{i:03}_{model.name}") for i, model in enumerate(chosen)]
        answers = ask_all(planted, clean, options.torchtyc, folder)
    here = versions("torch", "jaxtyping", "beartype")
    here["torchtyc"] = answers.get("torchtyc", {}).get("versions", {}).get("torchtyc", "not run")
    each = [
        {"model": s.model.name, "kind": s.fault.kind, "group": s.group, "new": s.fault.new, "silent": s.fault.silent,
         **{tool: answer["faults"][i] for tool, answer in answers.items()}}
        for i, s in enumerate(planted) if s.fault
    ]  # fmt: skip
    unchanged = [
        {"model": s.model.name, **{t: a["models"][i] for t, a in answers.items()}} for i, s in enumerate(clean)
    ]
    figures = {"versions": here, "machine": machine(), "faults": each, "models": unchanged, "tools": {
        t: {k: v for k, v in a.items() if k not in ("faults", "models")} for t, a in answers.items()}}  # fmt: skip
    text = page(planted, clean, answers, here)
    print(text)
    if not options.only:
        save(RESULTS / "faults", text, figures)


if __name__ == "__main__":
    main()
