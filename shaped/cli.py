"""The command line: `shaped train`, `shaped plot`, `shaped check`, `shaped doctor`."""

import argparse
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

from shaped.errors import ShapedError, SignatureError, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 refused (a message says why), 2 wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ShapedError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
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
    train.add_argument("job", metavar="RECIPE|FILE.py", help="digits, charlm, or a file with train(settings)")
    train.add_argument("--backend", choices=("eager", "compiled"), default="compiled")
    train.add_argument("--optimizer", choices=("sgd", "adam", "adamw"), default="adamw")
    train.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    train.add_argument("--epochs", type=_positive, default=None)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", type=Path, default=Path("runs"), help="folder for what a job writes (default: runs)")
    train.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    train.set_defaults(run=_train)
    plot = commands.add_parser("plot", help="draw the learning curves of a run")
    plot.add_argument("run_folder", metavar="RUN", type=Path, help="a folder with log.jsonl, or the log")
    plot.add_argument("--to", type=Path, default=None, metavar="PNG", help="the picture (default: RUN/curves.png)")
    plot.set_defaults(run=_plot)
    check = commands.add_parser("check", help="prove the annotated functions of a file")
    check.add_argument("target", metavar="FILE.py[:name]")
    check.add_argument(
        "--assume", action="append", default=[], metavar="RELATION", help='for example "dim %% heads == 0"'
    )
    check.add_argument("--static", action="append", default=[], metavar="NAME", help="prove this dimension at one size")
    check.add_argument("--steps", action="store_true", help="print the derivation too")
    check.set_defaults(run=_check)
    doctor = commands.add_parser("doctor", help="say what runs here: torch, Triton, GPU, compiler")
    doctor.set_defaults(run=_doctor)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    from shaped.drawing import check_device
    from shaped.recipes import Settings, find

    train = find(options.job)
    check_device(options.device)
    names = ("backend", "optimizer", "device", "epochs", "seed", "out", "resume")
    train(Settings(**{name: getattr(options, name) for name in names}))
    return 0


def _plot(options: argparse.Namespace) -> int:
    from shaped.loop import plot_run

    print(plot_run(options.run_folder, options.to))
    return 0


def _check(options: argparse.Namespace) -> int:
    """A line for each function: proved with its conditions, or the error. Status 1 if any is not proved."""
    from shaped.proof import prove
    from shaped.recipes import load_file

    path, _, name = options.target.partition(":")
    module = load_file(Path(path))
    functions = _functions(module)
    if name and name not in functions:
        raise ShapedError(f"{path} has no function `{name}`{nearest(name, list(functions))}")
    found = {key: value for key, value in functions.items() if (key == name if name else _has_shapes(value))}
    if not found:
        raise ShapedError(f'{path} has no function whose arguments are annotated with shapes (x: Float[Tensor, "a b"])')
    failed = 0
    for function in found.values():
        try:
            proof = prove(function, assume=tuple(options.assume), static=tuple(options.static))
        except Exception as error:  # ours, or the function's own while it was traced
            failed += 1
            print(f"{type(error).__name__}: {error}\n")
            continue
        print(f"{proof}\n")
        if options.steps:
            print(*proof.steps, sep="\n", end="\n\n")
    print(f"{len(found) - failed} proved, {failed} not")
    return 1 if failed else 0


def _functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions that a module itself defines, in order."""
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and inspect.isfunction(inspect.unwrap(value)) and value.__module__ == module.__name__
    }


def _has_shapes(function: Callable[..., Any]) -> bool:
    """Whether a function is meant to be proved: its result has a shape, or it declares none and an argument has one.

    So a helper over parameters that returns a float is left out, and a loss with a forgotten annotation is not.
    """
    from shaped.shapes import is_tensor_annotation, resolve_hints

    try:
        hints = resolve_hints(inspect.unwrap(function))
    except SignatureError:
        return True  # and `prove` will say what does not resolve
    if "return" not in hints:
        return any(map(is_tensor_annotation, hints.values()))
    result = hints["return"]
    return any(map(is_tensor_annotation, get_args(result) if get_origin(result) is tuple else (result,)))


def _doctor(options: argparse.Namespace) -> int:
    """A line for each thing: what is there, and what works without it."""
    import torch

    from shaped.backends import has_cpp_compiler

    missing = 'not installed: pip install "shaped-trainer[recipes]"'
    rows = [
        ("shaped", _version("shaped-trainer") or "a checkout that is not installed"),
        ("python", sys.version.split()[0]),
        ("torch", str(torch.__version__)),
        ("triton", _version("triton") or "not installed: the updates run on the torch path"),
        ("gpu", _gpu()),
        ("compiler", "found" if has_cpp_compiler() else "none: backend='compiled' runs the traced step uncompiled"),
        *((name, _version(name) or missing) for name in ("scikit-learn", "rich", "matplotlib")),
        ("threads", str(torch.get_num_threads())),
    ]
    for name, value in rows:
        print(f"{name:<13} {value}")
    return 0


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
