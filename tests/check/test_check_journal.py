"""A function that ends the process of its file: it is undecided, and the others are looked at."""

import json
import signal
from dataclasses import asdict
from pathlib import Path

import pytest

from shaped.check import Verdict, worker
from shaped.check.files import Job
from shaped.check.journal import Journal

# A process that notes each function, and ends at the second as a crash of outside software does.
PROCESS = """
import json, os, sys
task, answer, journal = sys.argv[1:]
known = open(journal).read() if os.path.exists(journal) else ""
done = []
for name in ("first", "ends", "last"):
    kept = [line for line in known.splitlines() if '"function": "' + name in line]
    if not kept:
        with open(journal, "a") as file:
            print(json.dumps([name, "model.py", 1]), file=file)
        if name == "ends":
            os.kill(os.getpid(), 11)
        with open(journal, "a") as file:
            print(VERDICT.replace("NAME", name), file=file)
        kept = [VERDICT.replace("NAME", name)]
    done += kept
json.dump({"verdicts": list(map(json.loads, done)), "files": {}, "failure": ""}, open(answer, "w"))
"""


def proved(name: str) -> Verdict:
    return Verdict(name, "model.py", 1, "proved", "for all sizes", "statement")


def test_a_journal_reads_what_it_wrote_and_knows_which_function_was_under_way(tmp_path: Path) -> None:
    place = tmp_path / "journal"
    journal = Journal(place)
    journal.begin(("first", "model.py", 1))
    journal.end(proved("first"))
    journal.begin(("second", "model.py", 5))
    with place.open("a") as file:
        file.write('{"function": "sec')  # torn

    read = Journal.read(place)

    assert read.known == {"first": proved("first")}
    assert read.under_way == ("second", "model.py", 5)
    assert Journal.read(tmp_path / "none").under_way is None


def test_a_function_that_ends_the_process_is_undecided_and_the_others_are_asked_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shaped.check.children.may_fork", lambda: False)
    monkeypatch.setattr(worker, "_PROGRAM", f"VERDICT = {json.dumps(asdict(proved('NAME')))!r}{PROCESS}")

    (answer,) = worker.ask_each([Job(tmp_path / "model.py")], worker.CheckOptions(root=str(tmp_path)), 1, seconds=60)

    assert not answer.failure
    assert [(v.function, v.status) for v in answer.verdicts] == [
        ("first", "proved"), ("ends", "unprovable"), ("last", "proved"),
    ]  # fmt: skip
    assert answer.verdicts[1].message == ("Unprovable: `ends`: the process that checked it ended: Segmentation fault")
    assert not list(tmp_path.rglob("*.json"))


HANGS = """
import time
from jaxtyping import Float
from torch import Tensor

def first(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    return x.T

def hangs(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    time.sleep(1000)

def last(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    return x.T
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of the system here")
@pytest.mark.slow  # a third of the time is waited for
def test_a_function_that_hangs_takes_a_part_of_its_files_time_and_the_others_are_answered(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)

    (answer,) = worker.ask_each([Job(tmp_path / "hangs.py")], worker.CheckOptions(root=str(tmp_path)), 1, seconds=30)

    assert not answer.failure
    assert [(v.function, v.status) for v in answer.verdicts] == [
        ("first", "proved"), ("hangs", "unprovable"), ("last", "proved"),
    ]  # fmt: skip
    assert "it took too long" in answer.verdicts[1].summary
