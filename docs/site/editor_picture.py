"""Draws docs/editor.svg: a file as an editor shows it, from what `shaped lsp` answers a client.

PYTHONPATH=.:kernels python docs/site/editor_picture.py
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from lsprotocol import types
from pygls.lsp.client import LanguageClient

PICTURE = Path(__file__).resolve().parents[1] / "editor.svg"
TEXT = """from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, head: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * heads * head)
        self.out = nn.Linear(heads * head, dim)
        self.heads, self.head = heads, head

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        batch, seq, _ = x.shape
        qkv = self.qkv(x).view(batch, seq, 3, self.heads, self.head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.mT
        mixed = scores.softmax(-1) @ v
        merged = mixed.reshape(batch, seq, -1)
        return self.out(merged)


def weights(x: Float[Tensor, "batch seq dim"], y: Float[Tensor, "batch keys dim"]) -> Float[Tensor, "batch seq keys"]:
    products = x @ y.mT
    scale = x.square().sum(-1, keepdim=True)
    return (products / scale).softmax(-1)
"""
_WIDE, _HIGH, _LEFT, _TOP = 7.8, 19, 52, 30  # a character, a line, and where the text begins


async def asked(text: str) -> tuple[Any, Any]:
    """The diagnostics and inlay hints of a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "attention.py"
        file.write_text(text)
        (file.parent / "pyproject.toml").touch()
        client, published = LanguageClient("picture", "1"), asyncio.Queue[Any]()
        client.feature(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)(lambda params: published.put_nowait(params))
        await client.start_io(sys.executable, "-m", "shaped.cli", "lsp")
        await client.initialize_async(types.InitializeParams(types.ClientCapabilities(), root_uri=file.parent.as_uri()))
        client.initialized(types.InitializedParams())
        opened = types.TextDocumentItem(file.as_uri(), "python", 1, text)
        client.text_document_did_open(types.DidOpenTextDocumentParams(opened))
        found = await published.get()
        everything = types.Range(types.Position(0, 0), types.Position(len(text.splitlines()), 0))
        hints = await client.text_document_inlay_hint_async(
            types.InlayHintParams(types.TextDocumentIdentifier(file.as_uri()), everything)
        )
        await client.shutdown_async(None)
        client.exit(None)
        await client.stop()
        return found.diagnostics, hints or ()


def drawn(text: str, diagnostics: Sequence[Any], hints: Sequence[Any]) -> str:
    """The picture, as SVG."""
    lines = text.splitlines()
    said = [line for d in diagnostics for line in d.message.splitlines()]
    width = max(_LEFT + _WIDE * max(map(len, [*lines, *said])) + 110, 700)
    parts, shown = list[str](), {(h.position.line, h.position.character): str(h.label) for h in hints}
    for n, line in enumerate(lines):
        y = _TOP + n * _HIGH
        parts.append(_text(12, y, str(n + 1), "#9aa0a6"))
        ends = [*sorted(c for at, c in shown if at == n), len(line)]
        start, shift = 0, 0.0
        for end in ends:
            parts.append(_text(_LEFT + start * _WIDE + shift, y, line[start:end], "#24292f"))
            if (n, end) in shown:
                hint = shown[n, end]
                x = _LEFT + end * _WIDE + shift
                parts.append(_box(x + 2, y - 13, len(hint) * 6.8 + 4, 17, 'fill="#eef1f4"'))
                parts.append(_text(x + 4, y - 1, hint, "#6e7781", 11))
                shift += len(hint) * 6.8 + 8
            start = end
        for d in (d for d in diagnostics if d.range.start.line == n):
            a, b = (_LEFT + c * _WIDE + shift for c in (d.range.start.character, d.range.end.character))
            wave = " ".join(f"L {x:.0f} {y + (3 if i % 2 else 6)}" for i, x in enumerate(_steps(a, b)))
            parts.append(f'<path d="M {a:.0f} {y + 4} {wave}" stroke="#cf222e" fill="none"/>')
    y = _TOP + len(lines) * _HIGH + 8
    height = y + len(said) * _HIGH + 22
    if said:
        tall = len(said) * _HIGH + 14
        parts.append(_box(_LEFT - 10, y - 6, width - _LEFT - 10, tall, 'fill="#fff5f5" stroke="#cf222e"'))
    parts += [_text(_LEFT, y + 12 + i * _HIGH, line, "#57171c", 12) for i, line in enumerate(said)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" font-family="monospace">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *parts, "</svg>\n"])


def _steps(start: float, end: float) -> list[float]:
    return [start + 4 * i for i in range(1, int((end - start) / 4) + 1)]


def _box(x: float, y: float, width: float, height: float, how: str) -> str:
    return f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="4" {how}/>'


def _text(x: float, y: float, text: str, color: str, size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{color}" font-size="{size}" xml:space="preserve">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(drawn(TEXT, *asyncio.run(asked(TEXT))))
