"""`shaped lsp`: the checker as a language server over stdio, on pygls.

A file is checked when it is opened and when it is saved, in a process of its own, as `shaped check` does it. What is
shown belongs to the text that was checked: while a file has changes that are not saved, shapes and fixes are withheld.
"""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.uris import to_fs_path

from shaped.check.children import LOOK
from shaped.check.editor import Mark, hover, inlays, marks, useless
from shaped.check.files import Job, has_shapes
from shaped.check.ignoring import ignored
from shaped.check.settings import read_project
from shaped.check.verdicts import Verdict
from shaped.check.worker import Answer, Asked, CheckOptions
from shaped.errors import ShapedError

_LEVELS = {"error": types.DiagnosticSeverity.Error, "warning": types.DiagnosticSeverity.Warning}


@dataclass
class _Known:
    """What was found of a file, and of which text."""

    text: str
    verdicts: Sequence[Verdict] = ()
    marks: Sequence[Mark] = ()


@dataclass
class Checker:
    """A language server's memory: what is known of each document.

    Args:
        server: Through which it speaks.
        seconds: For one file.
    """

    server: LanguageServer
    seconds: float = 300
    known: dict[str, _Known] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)  # a check that a later one has overtaken is dropped
    one_at_a_time: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    def register(self) -> None:
        """Answer an editor."""
        server = self.server  # it marks what it is given, which a bound method does not let it do
        server.feature(types.TEXT_DOCUMENT_DID_OPEN)(partial(self.opened))
        server.feature(types.TEXT_DOCUMENT_DID_SAVE)(partial(self.saved))
        server.feature(types.TEXT_DOCUMENT_DID_CLOSE)(partial(self.closed))
        server.feature(types.TEXT_DOCUMENT_HOVER)(partial(self.hover))
        server.feature(types.TEXT_DOCUMENT_INLAY_HINT)(partial(self.inlay_hints))
        kinds = types.CodeActionOptions(code_action_kinds=[types.CodeActionKind.QuickFix])
        server.feature(types.TEXT_DOCUMENT_CODE_ACTION, kinds)(partial(self.code_actions))

    async def opened(self, params: types.DidOpenTextDocumentParams) -> None:
        """Check a file that was opened."""
        await self._check(params.text_document.uri)

    async def saved(self, params: types.DidSaveTextDocumentParams) -> None:
        """Check a file that was saved."""
        await self._check(params.text_document.uri)

    def closed(self, params: types.DidCloseTextDocumentParams) -> None:
        """Forget a file."""
        uri = params.text_document.uri
        self.known.pop(uri, None)
        self.rounds[uri] = self.rounds.get(uri, 0) + 1
        self.server.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, []))

    async def _check(self, uri: str) -> None:
        path = to_fs_path(uri)
        self.rounds[uri] = mine = self.rounds.get(uri, 0) + 1
        if path is None or not Path(path).is_file():
            return
        file = Path(path)
        async with self.one_at_a_time:
            if self.rounds[uri] != mine:
                return
            text = file.read_text("utf-8", "replace")
            answer = await self._answer(uri, mine, file)
        if answer is None:
            return
        verdicts, unused = ignored(answer.verdicts, whole=not answer.failure)
        self.known[uri] = known = _Known(text, verdicts)
        lines = text.splitlines()
        known.marks = [*marks(verdicts, file.resolve(), lines), *useless(unused, lines)]
        if answer.failure:
            first = Mark(1, 0, len(lines[0]) if lines else 1, "error", "failed", answer.failure)
            known.marks = [first, *known.marks]
        found = [self._diagnostic(uri, mark) for mark in known.marks]
        self.server.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, found))
        capabilities = self.server.client_capabilities.workspace
        if capabilities is not None and capabilities.inlay_hint is not None and capabilities.inlay_hint.refresh_support:
            await self.server.workspace_inlay_hint_refresh_async(None)

    async def _answer(self, uri: str, mine: int, file: Path) -> Answer | None:
        """What `shaped check` finds of a file, with the settings of its project; None where a later check overtakes."""
        job = Job(file.resolve())
        try:
            project = read_project(file.parent)
            if project.excludes(file) or not has_shapes(file):
                return Answer(job) if self.rounds[uri] == mine else None
            asked = Asked(job, CheckOptions.of(project), self.seconds)
            with closing(asked):
                while asked.answer is None:
                    asked.look()
                    await asyncio.sleep(LOOK)
                    if self.rounds[uri] != mine:
                        return None
        except (ShapedError, OSError) as error:
            return Answer(job, failure=f"{type(error).__name__}: {error}")
        return asked.answer

    def _diagnostic(self, uri: str, mark: Mark) -> types.Diagnostic:
        related = [
            types.DiagnosticRelatedInformation(types.Location(uri, self._range(uri, line, 0, None)), said)
            for line, said in mark.related
        ]
        where = self._range(uri, mark.line, mark.start, mark.end)
        return types.Diagnostic(where, mark.message, _LEVELS[mark.severity], mark.rule, None, "shaped", None, related)

    def _range(self, uri: str, line: int, start: int, end: int | None) -> types.Range:
        """Characters of a line as the client counts them."""
        text = self.known[uri].text.splitlines(keepends=True)
        length = len(text[line - 1].rstrip()) if line <= len(text) else 0
        first = types.Position(line - 1, min(start, length))
        last = types.Position(line - 1, length if end is None else min(end, length))
        codec = self.server.workspace.position_codec
        return codec.range_to_client_units(text, types.Range(first, last))

    def _current(self, uri: str) -> _Known | None:
        """What is known, if the document is the text that was checked."""
        known = self.known.get(uri)
        same = known is not None and self.server.workspace.get_text_document(uri).source == known.text
        return known if same else None

    def hover(self, params: types.HoverParams) -> types.Hover | None:
        """A shape, or a statement."""
        known = self._current(params.text_document.uri)
        if known is None:
            return None
        lines = known.text.splitlines(keepends=True)
        at = self.server.workspace.position_codec.position_from_client_units(lines, params.position)
        said = hover(known.verdicts, known.text, at.line + 1, at.character)
        return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, f"```text\n{said}\n```")) if said else None

    def inlay_hints(self, params: types.InlayHintParams) -> list[types.InlayHint]:
        """The shapes of variables."""
        uri = params.text_document.uri
        known = self._current(uri)
        if known is None:
            return []
        found = inlays(known.verdicts, known.text)
        first, last = params.range.start.line, params.range.end.line
        return [
            types.InlayHint(self._range(uri, line, end, end).start, f": {shape}", types.InlayHintKind.Type)
            for line, end, shape in found
            if first <= line - 1 <= last
        ]

    def code_actions(self, params: types.CodeActionParams) -> list[types.CodeAction]:
        """The changes that were tried and with which the whole program goes through."""
        uri = params.text_document.uri
        known = self._current(uri)
        if known is None:
            return []
        actions = []
        for mark in known.marks:
            where = self._range(uri, mark.line, mark.start, mark.end)
            if mark.fix and where.start.line <= params.range.end.line and params.range.start.line <= where.end.line:
                edit = types.WorkspaceEdit({uri: [types.TextEdit(where, mark.fix)]})
                about, kind = [self._diagnostic(uri, mark)], types.CodeActionKind.QuickFix
                actions.append(types.CodeAction(f"Write {mark.fix}", kind, about, edit=edit))
        return actions


def serve(seconds: float = 300) -> None:
    """Speak with an editor over stdin and stdout, until it says that it is over."""
    try:
        ours = version("shaped-trainer")
    except PackageNotFoundError:
        ours = "checkout"
    server = LanguageServer("shaped", ours, types.TextDocumentSyncKind.Incremental)
    Checker(server, seconds).register()
    server.start_io()
