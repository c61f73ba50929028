"""Torch's header is compiled once and ahead: no unit waits for it, and those after it cost half as much."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config
from torch._inductor.cpp_builder import is_gcc
from torch._inductor.exc import CppCompileError

from shaped.backends import headers, units

pytestmark = pytest.mark.skipif(not is_gcc(), reason="for g++ alone")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    headers._key.cache_clear()
    with config.patch(cpp_cache_precompile_headers=False):  # as a step is compiled
        yield
    headers._key.cache_clear()


def written(folder: Path) -> list[str]:
    return sorted(file.suffix for file in (folder / "shaped").iterdir())


def ended() -> None:
    for one in headers._begun:
        one.join(300)


def test_it_is_begun_once_and_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "sh -c 'echo half > MADE; sleep 0.5; echo whole > MADE'"
    monkeypatch.setattr(headers, "_command", lambda _, made: line.replace("MADE", made))
    before = len(headers._begun)
    headers.compile_ahead()
    headers.compile_ahead()
    while ".new" not in written(tmp_path):
        time.sleep(0.01)

    assert (len(headers._begun) - before, written(tmp_path)) == (1, [".h", ".lock", ".new"])
    ended()
    assert written(tmp_path) == [".gch", ".h", ".lock"]
    assert next((tmp_path / "shaped").glob("*.gch")).read_text() == "whole\n"
    headers.compile_ahead()
    assert len(headers._begun) - before == 1


def test_a_compiler_that_fails_leaves_nothing_and_units_read_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "_command", lambda _, made: f"sh -c 'echo half > {made}; false'")
    headers.compile_ahead()
    ended()

    assert written(tmp_path) == [".h", ".lock"]
    (header,) = (tmp_path / "shaped").glob("*.h")
    assert headers.flags() == ("-g0", "-include", str(header))
    header.unlink()  # as by one who empties the cache
    assert Path(headers.flags()[-1]).read_text() == "#include <torch/csrc/inductor/cpp_prefix.h>\n"


def test_a_folder_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(headers, "_begin", refused)
    headers.compile_ahead()
    monkeypatch.setattr(Path, "write_text", refused)
    monkeypatch.setattr(Path, "exists", lambda _: False)

    assert headers.flags() == ("-g0",)


def test_another_compiler_takes_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.is_gcc", lambda: False)
    begun = len(headers._begun)
    headers.compile_ahead()

    assert (headers.flags(), len(headers._begun)) == (("-g0",), begun)


@pytest.mark.slow
def test_a_unit_takes_up_what_was_compiled_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers.compile_ahead()
    ended()
    (header,) = (tmp_path / "shaped").glob("*.h")
    header.write_text("#error read\n")
    source = '// at::vec::\nextern "C" void kernel(float* a) { a[0] = NUMBER; }\n'
    built = lambda number: units.built({"one": units._Kernel(["float*"], source.replace("NUMBER", number))})  # noqa: E731
    a = torch.zeros(1)
    built("7")[0]["one"](a)

    assert a.item() == 7
    header.with_suffix(".h.gch").unlink()
    monkeypatch.setattr(headers, "_command", lambda *_: "false")
    with pytest.raises(CppCompileError, match="#error read"):
        built("8")
