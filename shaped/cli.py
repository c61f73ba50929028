"""The command line: `shaped train`, `plot`, `list`, `check`, `lsp`, `bench`, `doctor`."""

import argparse
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from shaped.backends import BACKENDS
from shaped.errors import ShapedError, SignatureError
from shaped.optim.table import SCHEDULED
from shaped.ranks import abandon, processes_here
from shaped.recipes import RECIPES
from shaped.state import PATHS

EXTRAS: Mapping[str, Sequence[str]] = {  # what each extra of the distribution installs
    "recipes": ("scikit-learn", "rich", "matplotlib", "optuna"),
    "search": ("optuna",),
    "online": ("river",),
    "metrics": ("torchmetrics",),
    "fp8": ("torchao",),
    "tensorboard": ("tensorboard",),
    "onnx": ("onnxscript", "onnxruntime"),
    "lsp": ("pygls",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 refused (a message says why), 2 wrong usage.

    `check` says 1 where something is not proved, and 2 where it could not do its job.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ShapedError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if processes_here() > 1:
            abandon(error)
        return int(getattr(options, "refused", 1))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shaped", description="A trainer whose shapes are proved before its first step."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="run a ready job, or the `train` of a Python file")
    train.add_argument("job", metavar="RECIPE|FILE.py", help=f"{', '.join(RECIPES)}, or a file with train(settings)")
    train.add_argument("--backend", choices=BACKENDS, default="auto", help="default: auto, compiled where it pays")
    train.add_argument("--optimizer", choices=SCHEDULED, default="adamw", help="default: adamw")
    train.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    train.add_argument("--epochs", type=_positive, default=None, help="default: the job's own")
    train.add_argument("--seed", type=int, default=0, help="default: 0")
    train.add_argument("--out", type=Path, default=Path("runs"), help="folder for what a job writes (default: runs)")
    train.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    train.add_argument("--fresh", action="store_true", help="compile anew what an earlier start has compiled, too")
    train.add_argument(
        "--zero", type=int, choices=(0, 3), default=0, help="under torchrun: 3 keeps a part of all state on each rank"
    )
    train.set_defaults(run=_train)
    plot = commands.add_parser("plot", help="draw the learning curves of a run")
    plot.add_argument("run_folder", metavar="RUN", type=Path, help="a folder with log.jsonl, or the log")
    plot.add_argument("--to", type=Path, default=None, metavar="PNG", help="the picture (default: RUN/curves.png)")
    plot.set_defaults(run=_plot)
    listed = commands.add_parser("list", help="list the parts that a workflow knows by name")
    listed.add_argument("kind", nargs="?", default="", help="models, data, metrics, ... (default: all)")
    listed.set_defaults(run=_list)
    _add_check(commands)
    bench = commands.add_parser("bench", help="time a training step on both backends, beside the plain torch loop")
    bench.add_argument(
        "words", nargs="*", metavar="FILE.py[:name] | NAME=SIZE | 'NAME<BOUND'",
        help="a loss, sizes (batch=64) and bounds of integer inputs ('y<10'); without a file an MLP of 64-128-10",
    )  # fmt: skip
    bench.add_argument("--backend", choices=("eager", "compiled"), default=None, help="default: both")
    bench.add_argument("--optimizer", choices=tuple(PATHS), default="adamw", help="default: adamw")
    bench.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    bench.add_argument("--static", action="append", default=[], metavar="NAME", help="prove this dimension at its size")
    bench.set_defaults(run=_bench)
    doctor = commands.add_parser("doctor", help="say what runs here: torch, Triton, GPU, compiler, extras")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = commands.add_parser("check", help="prove the annotated functions and methods of a file")
    check.add_argument(
        "targets", nargs="*", metavar="FILE.py[:name] | FOLDER | MODULE[:name]",
        help="default: the paths of [tool.shaped] in pyproject.toml",
    )  # fmt: skip
    check.add_argument(
        "--assume", action="append", default=[], metavar="RELATION", help='for example "dim %% heads == 0"'
    )
    check.add_argument(
        "--static", action="append", default=[], metavar="NAME[=SIZE]",
        help="prove this dimension at one size; auto: those that are read as numbers, at numbers that are stated",
    )  # fmt: skip
    check.add_argument(
        "--make",
        action="append",
        default=[],
        metavar="EXPRESSION",
        help="how an instance is made: 'Net(Config(dim=8))'",
    )
    check.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    check.add_argument("--sarif", action="store_true", help="print them as SARIF")
    check.add_argument("--steps", action="store_true", help="print the derivation too")
    check.add_argument("-j", "--jobs", type=_positive, default=1, metavar="N", help="files at a time (default: 1)")
    check.add_argument("--timeout", type=_positive, default=300, metavar="SECONDS", help="for one file (default: 300)")
    check.add_argument("--memory", type=_positive, default=4, metavar="GB", help="for one file (default: 4)")
    check.add_argument("--fresh", action="store_true", help="prove files that have not changed, too")
    check.add_argument("--watch", action="store_true", help="check again whenever a file changes")
    check.add_argument(
        "--run", action="store_true", dest="run_script",
        help="run a script, whose arguments may follow, on tensors without data, up to its first wrong shape",
    )  # fmt: skip
    check.add_argument(
        "--hook", action="store_true", help="pass over files that are named and excluded, or have nothing to prove"
    )
    check.set_defaults(run=_check, refused=2)
    lsp = commands.add_parser("lsp", help="check in the editor: a language server over stdin and stdout")
    lsp.add_argument("--timeout", type=_positive, default=300, metavar="SECONDS", help="for one file (default: 300)")
    lsp.set_defaults(run=_lsp)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    from shaped.drawing import check_device
    from shaped.recipes import Settings, find

    train = find(options.job)
    check_device(options.device)
    names = ("backend", "optimizer", "device", "epochs", "seed", "out", "resume", "zero", "fresh")
    train(Settings(**{name: getattr(options, name) for name in names}))
    return 0


def _plot(options: argparse.Namespace) -> int:
    from shaped.loop import plot_run

    print(plot_run(options.run_folder, options.to))
    return 0


def _list(options: argparse.Namespace) -> int:
    """A line for each part: its name, what it says of itself, and whose it is where it is not ours."""
    from shaped.errors import nearest
    from shaped.workflow import REGISTRIES

    if options.kind and options.kind not in REGISTRIES:
        known = nearest(options.kind, list(REGISTRIES)) or f"; there are {', '.join(REGISTRIES)}"
        raise ShapedError(f"no parts are called `{options.kind}`{known}")
    for kind in [options.kind] if options.kind else REGISTRIES:
        parts = REGISTRIES[kind]
        print(kind)
        width = max((len(name) for name in parts), default=0)
        for name in parts:
            origin = parts.origin(name)
            whose = "" if origin.startswith("shaped.") else f"  ({origin})"
            print(f"  {name:<{width}}  {parts.about(name)}{whose}")
    return 0


def _check(options: argparse.Namespace) -> int:
    """A line for each function, and what is wrong with those that are not proved. Status 1 if there are any."""
    from shaped.check import read_project

    if options.run_script:
        return _run(options)
    project = read_project(Path.cwd())
    targets = options.targets or [str(project.root / path) for path in project.paths]
    if not targets:
        raise ShapedError("name a file, a folder or a module, or paths in [tool.shaped] of pyproject.toml")
    return _watch(targets, options, project.root) if options.watch else _check_files(targets, options)


def _run(options: argparse.Namespace) -> int:
    """A script on tensors without data. Status 1 where it is wrong."""
    from shaped.check.running import run

    if not options.targets:
        raise ShapedError("name the script to run: shaped check --run train.py")
    ran = run(Path(options.targets[0]), options.targets[1:], options.timeout)
    print(ran.said)
    return ran.status


def _watch(targets: Sequence[str], options: argparse.Namespace, root: Path) -> int:
    """The project's check, until it is interrupted."""
    from shaped.check.watch import watch

    def once() -> None:
        try:
            _check_files(targets, options)
        except ShapedError as error:  # a file that is gone, or settings in the middle of being written
            print(f"{type(error).__name__}: {error}", file=sys.stderr)

    folders = [Path(target.partition(":")[0]) for target in targets]
    watch(once, [root, *(p if p.is_dir() else p.parent for p in folders if p.exists())])
    return 0


def _lsp(options: argparse.Namespace) -> int:
    """Speak with an editor until it is over."""
    try:
        from shaped.check.lsp import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("pygls", "lsprotocol"):
            raise
        raise ShapedError('shaped lsp needs pygls: pip install "shaped-trainer[lsp]"') from None
    serve(options.timeout)
    return 0


def _check_files(targets: Sequence[str], options: argparse.Namespace) -> int:
    """Files in processes of their own. Status 2 if one could not be checked."""
    from shaped.check import CheckOptions, Report, check_project, find_jobs, names_of, one_file, read_project

    project = read_project(Path.cwd())
    jobs = find_jobs(targets, project, options.hook)
    if not jobs and not options.hook:
        raise ShapedError(f"nothing to check in {', '.join(targets)}: no file there names jaxtyping or ParamList")
    one = len(jobs) == len(targets) == 1 and (bool(jobs[0].name) or Path(targets[0]).is_file()) and not options.hook
    static = dict(map(_static, options.static))
    asked = CheckOptions.of(project, options.assume, static, options.make, options.memory)
    found = check_project(jobs, asked, workers=options.jobs, seconds=options.timeout, keep=not options.fresh)
    named = [name for name in static if name != "auto"]
    named += [name for text in options.assume for name in sorted(names_of(text))]
    report = Report("sarif" if options.sarif else "json" if options.json else "text", named, options.make,
                    one and bool(jobs[0].name), options.steps)  # fmt: skip
    if one:
        alone = one_file(next(found))
        if alone.answer.failure and not alone.verdicts and report.form == "text":
            print(alone.answer.failure, file=sys.stderr)
            return 2
        found = iter([alone])
    for line in report.lines(found):
        print(line, flush=True)
    return report.status


def _bench(options: argparse.Namespace) -> int:
    """A table, printed as it is made: what is timed first, then the figures."""
    from shaped import bench
    from shaped.drawing import check_device
    from shaped.recipes import digits, load_file

    target, sizes, bounds = bench.read_words(options.words)
    check_device(options.device)
    if not target:
        sizes = {"pixels": (64,), "hidden": (128,), "classes": (10,), "batch": (64,), **sizes}
        bounds = {"y": "classes", **bounds}
    path, _, name = target.partition(":")
    given = bench.Given(
        sizes=sizes,
        bounds=bounds,
        backends=(options.backend,) if options.backend else ("compiled", "eager"),
        optimizer=options.optimizer,
        device=options.device,
        static=tuple(options.static),
        command=" ".join(["shaped bench", *(f"'{word}'" if "<" in word else word for word in options.words)]),
    )
    module = load_file(Path(path)) if target else digits
    for line in bench.bench(module, name if target else "loss", given):
        print(line, flush=True)
    return 0


def _static(text: str) -> tuple[str, int | None]:
    """`time=5`, or `time` for a size of our choice."""
    name, _, size = text.partition("=")
    if size and not size.isdecimal():
        raise SignatureError(f"--static {text}: a size is a whole number, as in {name}=5")
    return name, int(size) if size else None


def _doctor(options: argparse.Namespace) -> int:
    """A line for each thing: what is there, and what works without it."""
    import torch

    from shaped.backends import has_cpp_compiler

    other = _version("shaped")  # another product, whose files lie in a folder of the same name
    clash = (
        f"the distribution `shaped` {other} is installed too, and writes into our folder: pip uninstall shaped, then "
    )
    rows = [
        ("shaped", _version("shaped-trainer") or "a checkout that is not installed"),
        *([("clash", f"{clash}pip install --force-reinstall --no-deps shaped-trainer")] if other else []),
        ("python", sys.version.split()[0]),
        ("torch", str(torch.__version__)),
        ("triton", _version("triton") or "not installed: the updates run on the torch path"),
        ("gpu", _gpu()),
        ("compiler", "found" if has_cpp_compiler() else "none: backend='compiled' runs the traced step uncompiled"),
        ("threads", str(torch.get_num_threads())),
        *((f"[{extra}]", _extra(extra, names)) for extra, names in EXTRAS.items()),
    ]
    for name, value in rows:
        print(f"{name:<13} {value}")
    return 0


def _extra(extra: str, names: Sequence[str]) -> str:
    """What it brings, with versions, and how to get what is missing."""
    found = {name: _version(name) for name in names}
    text = ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())
    return text if all(found.values()) else f'{text}: pip install "shaped-trainer[{extra}]"'


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none: the updates run on the torch path"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)} ({'ROCm ' + torch.version.hip if torch.version.hip else f'CUDA {torch.version.cuda}'})"


if __name__ == "__main__":
    sys.exit(main())
