"""The language server, asked by a real client over stdio."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pygls")

from lsprotocol import types
from pygls.lsp.client import LanguageClient

TEXT = """from jaxtyping import Float
from torch import Tensor

def right(x: Float[Tensor, "batch dim"], w: Float[Tensor, "dim width"]) -> Float[Tensor, "batch width"]:
    hidden = x @ w
    return hidden.relu()

def wrong(x: Float[Tensor, "batch dim"], w: Float[Tensor, "width dim"]) -> Float[Tensor, "batch width"]:
    return x @ w
"""


def spoken(talk: Callable[[LanguageClient, list[Any]], Awaitable[None]], folder: Path) -> list[Any]:
    """What the server published while a client talked with it."""

    async def whole() -> list[Any]:
        client, published = LanguageClient("test", "1"), list[Any]()
        client.feature(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)(lambda params: published.append(params))
        await client.start_io(sys.executable, "-m", "shaped.cli", "lsp")
        await client.initialize_async(types.InitializeParams(types.ClientCapabilities(), root_uri=folder.as_uri()))
        client.initialized(types.InitializedParams())
        await talk(client, published)
        await client.shutdown_async(None)
        client.exit(None)
        await client.stop()
        return published

    return asyncio.run(whole())


async def until(published: list[Any], count: int) -> None:
    while len(published) < count:
        await asyncio.sleep(0.05)


@pytest.mark.slow
def test_a_client_sees_faults_shapes_and_fixes_and_none_of_an_unsaved_text(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(TEXT)
    (tmp_path / "pyproject.toml").touch()
    uri, found = file.as_uri(), dict[str, Any]()
    document = types.TextDocumentIdentifier(uri)
    line = types.Range(types.Position(8, 0), types.Position(8, 1))

    async def talk(client: LanguageClient, published: list[Any]) -> None:
        opened = types.TextDocumentItem(uri, "python", 1, TEXT)
        client.text_document_did_open(types.DidOpenTextDocumentParams(opened))
        await until(published, 1)
        asked = types.HoverParams(document, types.Position(5, 12))
        found["hover"] = await client.text_document_hover_async(asked)
        everything = types.Range(types.Position(0, 0), types.Position(9, 0))
        found["inlays"] = await client.text_document_inlay_hint_async(types.InlayHintParams(document, everything))
        context = types.CodeActionContext([])
        found["actions"] = await client.text_document_code_action_async(types.CodeActionParams(document, line, context))
        version = types.VersionedTextDocumentIdentifier(2, uri)
        changes = [types.TextDocumentContentChangeWholeDocument("\\n" + TEXT)]
        client.text_document_did_change(types.DidChangeTextDocumentParams(version, changes))
        found["unsaved"] = await client.text_document_hover_async(asked)
        file.write_text(TEXT.replace("return x @ w", "return x @ w.T"))
        changes = [types.TextDocumentContentChangeWholeDocument(file.read_text())]
        client.text_document_did_change(types.DidChangeTextDocumentParams(version, changes))
        client.text_document_did_save(types.DidSaveTextDocumentParams(document))
        await until(published, 2)

    before, after = spoken(talk, tmp_path)

    assert [
        (d.code, d.range.start.line, d.range.start.character, d.range.end.character) for d in before.diagnostics
    ] == [("refuted", 8, 11, 16)]
    assert before.diagnostics[0].message.startswith("ProofError: `wrong` is not well-shaped.")
    assert "hidden : [batch, width]" in found["hover"].contents.value
    assert [(hint.label, hint.position.line, hint.position.character) for hint in found["inlays"]] == [
        (": [batch, width]", 4, 10)
    ]
    assert [action.edit.changes[uri][0].new_text for action in found["actions"]] == ["x @ w.T"]
    assert found["unsaved"] is None
    assert list(after.diagnostics) == []
