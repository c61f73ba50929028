"""Every fence of README.md and docs/ runs, and prints what the page says.

    ```python                       runs; the blocks of a page share one namespace, in order
    <!-- file: model.py -->         the python block after it is a file of its own, with its own line numbers
    <!-- output -->  ```text        what the python block before it printed
    <!-- error -->   ```text        the exception that the python block before it must end with
    <!-- error: A => B -->          the same of the last `file:` block, with B in place of A
    ```console                      `$ shaped ...` runs through the command line; what stands below it is what it prints
    <!-- not run: reason -->        for commands that install things or take long; never for python
    <!-- needs: package -->         of an extra: the block is left out where it is not installed, unless CI is set

Seconds and counts of operations are not compared. A page's blocks are lines of `<page>.py` at the page's own line
numbers, so an error quotes the right source; these names and numbers are not compared, those of a `file:` block are.

`python tests/test_docs.py` writes what is printed now into the pages.
"""

import contextlib
import difflib
import io
import linecache
import os
import re
import shlex
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMPARED = ("output", "error")
# Their fences compile or prove much, so they run with the slow tests.
LONG = (
    *("shapes-and-proofs", "trainer", "gradient-strategies", "architecture-search", "compiled-step", "export", "lora"),
    *("workflow", "online", "bug-zoo", "low-precision", "two-networks", "search", "muon", "threads-and-processes"),
)
_FENCE = re.compile(r"^```(\w*)\s*$")
_TEST = re.compile(r"(?m)^def test_(\w+)")
_MARK = re.compile(r"^<!--\s*(output|error|file|needs|not run)\s*:?\s*(.*?)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    """One fence: its language, the mark above it, its text, and the line where the text starts (from 1)."""

    page: Path
    language: str
    mark: str
    note: str  # a file's name, a package, or why a block is not run
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fences of a page, in order."""
    lines = page.read_text().splitlines()
    mark, note, at = "", "", 0
    while at < len(lines):
        fence, marked = _FENCE.match(lines[at]), _MARK.match(lines[at])
        if marked:
            mark, note = marked.groups()
        elif fence:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].rstrip() == "```")
            text = "".join(f"{line}\n" for line in lines[at + 1 : end])
            yield Block(page, fence[1], mark, note, text, at + 2)
            mark, note, at = "", "", end
        elif lines[at].strip():
            assert not mark, f"{page.name}:{at + 1}: the mark above belongs to no fence"
        at += 1


@dataclass(frozen=True)
class Outcome:
    """What a compared block says, and what was printed."""

    block: Block
    printed: str  # as it would stand in the block
    exact_lines: bool

    @property
    def agrees(self) -> bool:
        return normal(self.block.text, self.exact_lines) == normal(self.printed, self.exact_lines)


def normal(text: str, exact_lines: bool) -> str:
    """Text without what changes from run to run."""
    text = re.sub(r" *\d+\.\d+ s\b", " N s", text)
    text = re.sub(r"\d+ (operations forward|backward|update)\b", r"N \1", text)  # torch's versions differ in these
    if not exact_lines:
        text = re.sub(r"[\w-]+\.py:\d+", "FILE:LINE", text)
        text = re.sub(r"(?m)(?<=\S) +| +$|^ +", " ", text)  # marks move with the length of the name before them
        text = re.sub(r"(?m)^ *[~^]+ *$", " ~", text)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


class Page:
    """Runs the blocks of one page."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.blocks = list(blocks(page))
        self.file = folder / f"{page.stem}.py"
        self.module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
        self.module.__file__ = str(self.file)
        self.printed, self.error, self.exact = "", "", False
        self.whole: Block | None = None  # the last `file:` block
        lines: list[str] = []
        for block in self.blocks:
            if block.language == "python":
                lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
        self.file.write_text("\n".join(lines) + "\n")

    def run(self) -> Iterator[Outcome]:
        absent = False
        expects = {i for i, block in enumerate(self.blocks) if block.mark == "error" and not block.note}
        for i, block in enumerate(self.blocks):
            if block.language == "python":
                absent = block.mark == "needs" and find_spec(block.note) is None and "CI" not in os.environ
                if not absent:
                    self._python(block, fails=i + 1 in expects)
            elif block.mark in COMPARED and not absent:
                if block.note:
                    assert self.whole is not None, f"{block}: no `file:` block to edit"
                    old, new = block.note.split(" => ")
                    assert old in self.whole.text, f"{block}: `{old}` is not in {self.whole.note}"
                    self._python(replace(self.whole, text=self.whole.text.replace(old, new)), fails=True)
                yield Outcome(block, self.printed if block.mark == "output" else self.error, self.exact)
            elif block.language == "console" and block.mark != "not run":
                yield Outcome(block, self._console(block), exact_lines=True)

    def _python(self, block: Block, *, fails: bool) -> None:
        self.exact = block.mark == "file"
        if self.exact:
            self.whole = block
            path, first = self.file.parent / block.note, 1
            module = types.ModuleType(path.stem)
            module.__file__ = str(path)
            path.write_text(block.text)
            linecache.checkcache(str(path))
        else:
            path, first, module = self.file, block.line, self.module
        sys.modules[module.__name__] = module
        code = compile("\n" * (first - 1) + block.text, str(path), "exec")
        out = io.StringIO()
        self.error = ""
        try:
            with contextlib.redirect_stdout(out):
                exec(code, module.__dict__)
        except Exception as error:
            if not fails:
                raise
            self.error = f"{type(error).__name__}: {error}\n"
        assert bool(self.error) == fails, f"{block} was expected to fail"
        self.printed = out.getvalue()
        if self.exact:
            self.module.__dict__.update({k: v for k, v in vars(module).items() if not k.startswith("__")})

    def _console(self, block: Block) -> str:
        from shaped.cli import main

        shown = []
        for line in block.text.splitlines():
            if not line.startswith("$ "):
                continue
            command, *arguments = shlex.split(line.removeprefix("$ "))
            assert command == "shaped", f"{block}: only `shaped` runs here; mark it <!-- not run: reason -->"
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                main(arguments)
            shown.append(f"{line}\n{out.getvalue()}")
        # A block of commands alone says nothing about what they print.
        silent = all(line.startswith("$ ") for line in block.text.splitlines())
        return block.text if silent else "".join(shown)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.stem in LONG else []) for page in PAGES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_fence_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    wrong = [outcome for outcome in Page(page, tmp_path).run() if not outcome.agrees]
    for name in set(sys.modules) - known:  # the next page may have a file of the same name
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]

    assert not wrong, "\n".join(map(difference, wrong))


def difference(outcome: Outcome) -> str:
    page, printed = (normal(text, outcome.exact_lines).splitlines() for text in (outcome.block.text, outcome.printed))
    return "\n".join([str(outcome.block), *difflib.unified_diff(page, printed, "the page", "printed", lineterm="")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_only_commands_are_left_out_and_each_says_why(page: Path) -> None:
    left_out = [block for block in blocks(page) if block.mark == "not run"]

    assert [block for block in left_out if block.language != "console" or not block.note] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_law_is_a_test_of_the_same_words(page: Path) -> None:
    sections = re.findall(r"(?ms)^##+ Laws$(.*?)(?=^#|\Z)", page.read_text())
    laws = [law for section in sections for law in re.findall(r"(?m)^- (.*)$", section)]
    tests = {name for file in (ROOT / "tests").rglob("test_*.py") for name in _TEST.findall(file.read_text())}

    assert [law for law in laws if "_".join(re.findall(r"[a-z0-9]+", law.lower())) not in tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text())

    assert [link for link in links if link[1] not in headings((page.parent / link[0]) if link[0] else page)] == []


def headings(page: Path) -> list[str]:
    """The anchors of a page's headings, as the site and the repository's host make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles]


def test_every_page_is_one_click_from_the_front_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}

    assert pages - set(re.findall(r"\]\(([^)#\s]+\.md)", (ROOT / "docs/index.md").read_text())) == set()


def rewrite(page: Path) -> int:
    """Put what is printed now into a page; returns how many blocks changed."""
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        os.chdir(folder)
        wrong = [outcome for outcome in Page(page, Path(folder)).run() if not outcome.agrees]
        os.chdir(ROOT)
    lines = page.read_text().splitlines()
    for outcome in reversed(wrong):
        start = outcome.block.line - 1
        length = len(outcome.block.text.splitlines())
        lines[start : start + length] = outcome.printed.rstrip("\n").splitlines()
    page.write_text("\n".join(lines) + "\n")
    return len(wrong)


if __name__ == "__main__":
    for path in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        print(f"{path.relative_to(ROOT)}: {rewrite(path)} blocks changed")
