"""A file checked in a process of its own, which may hang, exit or print as it likes; and what is kept of it."""

import hashlib
import importlib
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shaped.check.children import LOOK, Child, may_fork
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
        factories = (*project.factories, *factories)
        return cls((*project.assume, *assume), sizes, factories, auto, float(memory), str(project.root))


@dataclass(frozen=True)
class Answer:
    """What was found of a file; `failure` says why not all was."""

    job: Job
    verdicts: tuple[Verdict, ...] = ()
    failure: str = ""
    kept: bool = False  # from an earlier run


def ask_each(
    jobs: Sequence[Job], options: CheckOptions, workers: int, seconds: float, keep: bool = True
) -> Iterator[Answer]:
    """Check files, some at a time; in their order."""
    waiting, lanes = iter(jobs), list[Asked]()
    try:
        while True:
            room = workers - sum(lane.answer is None for lane in lanes)
            lanes += [Asked(job, options, seconds, keep) for job in itertools.islice(waiting, room)]
            for lane in lanes:
                lane.look()
            if not lanes:
                return
            if (answer := lanes[0].answer) is None:
                time.sleep(LOOK)
            else:
                lanes.pop(0)
                yield answer
    finally:  # also where it is interrupted
        for lane in lanes:
            lane.close()


class Asked:
    """A file that is being checked in a process of its own, unless nothing has changed since it was.

    Args:
        seconds: After which the process is ended.
        keep: Use and write what is kept in `.shaped_cache` of the project.
    """

    def __init__(self, job: Job, options: CheckOptions, seconds: float, keep: bool = True) -> None:
        self.answer: Answer | None = None
        self._steps = _asking(job, options, seconds, keep)
        self._child: Child | None = None

    def look(self) -> None:
        """Go on as far as there is nothing to wait for."""
        try:
            while self.answer is None and (self._child is None or self._child.is_over() or self._child.late):
                self._child = next(self._steps)
        except StopIteration as end:
            self.answer = end.value

    def close(self) -> None:
        """Ask no more: the process is ended."""
        self._steps.close()


def _asking(job: Job, options: CheckOptions, seconds: float, keep: bool) -> Generator[Child, None, Answer]:
    place = Path(options.root) / CACHE / f"{_key(job, options)}.json"
    if keep and (known := _known(place, job)) is not None:
        return known
    with tempfile.TemporaryDirectory() as folder:
        answer, found = yield from _asked(job, options, seconds, Path(folder))
    if keep and found and not answer.failure:
        with suppress(OSError):  # a project that cannot be written is checked all the same
            place.parent.mkdir(exist_ok=True)
            (place.parent / ".gitignore").write_text("*\n")
            replace(place, json.dumps(found).encode())
    return answer


def _asked(
    job: Job, options: CheckOptions, seconds: float, folder: Path
) -> Generator[Child, None, tuple[Answer, dict[str, Any]]]:
    """An answer, and what of it may be kept: nothing where a process ended, which another time it may not.

    Where a function ends the process (outside software that crashes, os._exit), this one is undecided, and a new
    process goes on behind it.
    """
    if may_fork():
        importlib.import_module("shaped.proof.search")  # for every child, and not where all is known
    task, place, journal = folder / "task.json", folder / "answer.json", Journal(folder / "journal")
    until, whole = time.monotonic() + seconds, True
    task.write_text(json.dumps({"file": str(job.file), "name": job.name, "until": until, **asdict(options)}))
    while True:
        left = max(until - time.monotonic(), 0.1)
        child = Child(main, _PROGRAM, [*map(str, (task, place, journal.place))], folder / "said", left)
        try:
            yield child
            if not child.is_over():
                said = Journal.read(journal.place)
                at = f", and was at `{said.under_way[0]}`" if said.under_way is not None else ""
                late = f"{job.file} took more than {seconds:g} s (--timeout){at}"
                return Answer(job, tuple(said.known.values()), late), {}
        finally:
            child.end()
        if place.is_file():
            found = json.loads(place.read_text())
            if found["failure"]:
                return Answer(job, failure=found["failure"]), {}
            return Answer(job, tuple(map(verdict_of, found["verdicts"]))), found if whole else {}
        ended, journal, whole = _ended(child), Journal.read(journal.place), False
        if journal.under_way is None:
            return Answer(job, tuple(journal.known.values()), f"{job.file}: the process that checked it {ended}"), {}
        journal.end(_crashed(journal.under_way, ended))


def _ended(child: Child) -> str:
    status = child.status or 0
    if os.name == "posix" and status == -signal.SIGALRM:
        return "was ended, since it took too long: more than a third of what is left to its file (--timeout)"
    if status == -signal.SIGKILL:
        return "was killed: too little memory?"
    if status < 0:
        return f"ended: {signal.strsignal(-status)}"
    said = child.said.read_text(errors="replace").strip().splitlines() if child.said.is_file() else []
    return f"ended: {said[-1] if said else f'exit status {status}'}"


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
    file, journal = Path(task["file"]), Journal.read(Path(arguments[2]))
    journal.until = task["until"]
    answer: dict[str, Any] = {"verdicts": [], "files": {}, "failure": ""}
    try:
        module = load(file)
        verdicts = check_file(
            module, file, task["name"], task["assume"], task["static"], task["factories"], task["auto"], journal
        )
        answer["verdicts"] = [asdict(verdict) for verdict in verdicts]
        answer["files"] = _files(Path(task["root"]).resolve(), file)
    except ShapedError as error:
        answer["failure"] = f"{type(error).__name__}: {error}"
    except MemoryError:
        answer["failure"] = f"{file} takes more than {task['memory']:g} GB of memory (--memory)"
    replace(Path(arguments[1]), json.dumps(answer).encode())
    os._exit(0)  # whatever threads and handlers the file has left
