"""A file checked in a process of its own, which may hang, exit or print as it likes; and what is kept of it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shaped.check.files import Job, load
from shaped.check.journal import Journal, verdict_of
from shaped.check.settings import Project
from shaped.check.verdicts import Verdict
from shaped.errors import ShapedError
from shaped.files import replace

CACHE = ".shaped_cache"
_PROGRAM = "import sys; from shaped.check.worker import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class CheckOptions:
    """What the proofs of a run have in common."""

    assume: tuple[str, ...] = ()
    static: Mapping[str, int | None] = field(default_factory=dict)
    factories: tuple[str, ...] = ()
    auto: bool = False
    memory: float = 4.0  # GB that the process of a file may take, where the system can be told so
    root: str = ""  # of the project: what a file imports from there is part of what its verdicts depend on

    @classmethod
    def of(
        cls,
        project: Project,
        assume: Sequence[str] = (),
        static: Mapping[str, int | None] | None = None,
        factories: Sequence[str] = (),
        memory: float = 4.0,
    ) -> "CheckOptions":
        """A project's, and what a command adds to them."""
        sizes = {**project.static, **(static or {})}
        auto = sizes.pop("auto", 1) is None
        return cls(
            (*project.assume, *assume), sizes, (*project.factories, *factories), auto, float(memory), str(project.root)
        )


@dataclass(frozen=True)
class Answer:
    """What was found of a file; `failure` says why not all was."""

    job: Job
    verdicts: tuple[Verdict, ...] = ()
    failure: str = ""
    kept: bool = False  # from an earlier run


def ask(job: Job, options: CheckOptions, seconds: float, keep: bool = True) -> Answer:
    """Check a file in a process of its own, unless nothing has changed since it was.

    Args:
        seconds: After which the process is ended.
        keep: Use and write what is kept in `.shaped_cache` of the project.
    """
    place = Path(options.root) / CACHE / f"{_key(job, options)}.json"
    if keep and (known := _known(place, job)) is not None:
        return known
    with tempfile.TemporaryDirectory() as folder:
        answer, found = _asked(job, options, seconds, Path(folder))
    if keep and found and not answer.failure:
        place.parent.mkdir(exist_ok=True)
        (place.parent / ".gitignore").write_text("*\n")
        replace(place, json.dumps(found).encode())
    return answer


def _asked(job: Job, options: CheckOptions, seconds: float, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """An answer, and what of it may be kept: nothing where a process ended, which another time it may not.

    Where a function ends the process (outside software that crashes, os._exit), this one is undecided, and a new
    process goes on behind it.
    """
    task, place, journal = folder / "task.json", folder / "answer.json", Journal(folder / "journal")
    task.write_text(json.dumps({"file": str(job.file), "name": job.name, **asdict(options)}))
    command = [sys.executable, "-c", _PROGRAM, *map(str, (task, place, journal.place))]
    until, whole = time.monotonic() + seconds, True
    while True:
        left = max(until - time.monotonic(), 0.1)
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            verdicts = tuple(Journal.read(journal.place).known.values())
            return Answer(job, verdicts, f"{job.file} took more than {seconds:g} s (--timeout)"), {}
        if place.is_file():
            found = json.loads(place.read_text())
            if found["failure"]:
                return Answer(job, failure=found["failure"]), {}
            return Answer(job, tuple(map(verdict_of, found["verdicts"]))), found if whole else {}
        said, journal, whole = _ended(done), Journal.read(journal.place), False
        if journal.under_way is None:
            return Answer(job, tuple(journal.known.values()), f"{job.file}: the process that checked it {said}"), {}
        journal.end(_crashed(journal.under_way, said))


def _ended(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode == -signal.SIGKILL:
        return "was killed: too little memory?"
    if done.returncode < 0:
        return f"ended: {signal.strsignal(-done.returncode)}"
    said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return f"ended: {said[0]}"


def _crashed(where: tuple[str, str, int], said: str) -> Verdict:
    text = f"the process that checked it {said}"
    return Verdict(*where, "unprovable", text, f"Unprovable: `{where[0]}`: {text}")


def _known(place: Path, job: Job) -> Answer | None:
    """What an earlier run found, if every file that it depends on is what it was."""
    try:
        found = json.loads(place.read_text())
        if all(_digest(file) == digest for file, digest in found["files"].items()):
            return Answer(job, tuple(map(verdict_of, found["verdicts"])), kept=True)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _digest(file: str | Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _key(job: Job, options: CheckOptions) -> str:
    """A file, what is asked of it, and the versions that answer."""
    asked = {"file": str(job.file.resolve()), "name": job.name, **asdict(options), "versions": versions()}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


@cache
def versions() -> str:
    """Python's, torch's, jaxtyping's, and ours with the content of its files: a checkout changes without a version."""
    found = [sys.version]
    for name in ("torch", "jaxtyping", "sympy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(name)
    ours = Path(__file__).resolve().parents[1]
    files = [file for room in ("check", "proof", "shapes") for file in sorted((ours / room).glob("*.py"))]
    return " ".join([*found, hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()])


def _files(root: Path, file: Path) -> dict[str, str]:
    """What the process has imported of the project: of these files a verdict depends."""
    found = {str(file.resolve()): _digest(file)}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or not path.endswith(".py") or "site-packages" in path:
            continue
        if Path(path).is_absolute() and Path(path).is_file() and Path(path).resolve().is_relative_to(root):
            found[path] = _digest(path)
    return found


def _limit(memory: float) -> None:
    """Let this process have so many GB, and torch, Python and a verdict say where there are no more."""
    try:
        import resource
    except ImportError:  # Windows
        return
    most = int(memory * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def main(arguments: Sequence[str]) -> None:
    """Do a task, and write the answer."""
    from shaped.check.checking import check_file

    task = json.loads(Path(arguments[0]).read_text())
    _limit(task["memory"])
    file = Path(task["file"])
    answer: dict[str, Any] = {"verdicts": [], "files": {}, "failure": ""}
    try:
        module = load(file)
        verdicts = check_file(
            module, file, task["name"], task["assume"], task["static"], task["factories"], False, task["auto"],
            Journal.read(Path(arguments[2])),
        )  # fmt: skip
        answer["verdicts"] = [asdict(verdict) for verdict in verdicts]
        answer["files"] = _files(Path(task["root"]).resolve(), file)
    except ShapedError as error:
        answer["failure"] = f"{type(error).__name__}: {error}"
    except MemoryError:
        answer["failure"] = f"{file} takes more than {task['memory']:g} GB of memory (--memory)"
    replace(Path(arguments[1]), json.dumps(answer).encode())
    os._exit(0)  # whatever threads and handlers the file has left
