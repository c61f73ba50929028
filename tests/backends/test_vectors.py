"""What a machine can run is taken for granted until code cannot be built for it; torch's own answer stays its own."""

import platform
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from torch._inductor import config, cpu_vec_isa
from torch._inductor.exc import CppCompileError

from shaped.backends import vectors

WIDE, NARROW = cpu_vec_isa.VecAVX512(), cpu_vec_isa.VecAVX2()
FAILED = CppCompileError(["g++"], "no such instruction")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """How often torch was asked, on a processor with AVX-512 whose compiler knows AVX2 alone."""
    questions: list[Any] = []

    def check_build(self: Any, code: str) -> bool:
        questions.append(self)
        return isinstance(self, cpu_vec_isa.VecAVX2)

    def forget() -> None:
        for cached in (vectors._widest, cpu_vec_isa.valid_vec_isa_list, vars(cpu_vec_isa.VecAVX512)["__bool__"]):
            cached.cache_clear()
        vars(cpu_vec_isa.VecISA)["_VecISA__bool__impl"].cache_clear()

    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", check_build)
    monkeypatch.setattr(cpu_vec_isa, "supported_vec_isa_list", [WIDE, NARROW])
    monkeypatch.setattr(cpu_vec_isa, "x86_isa_checker", lambda: ["avx512", "avx2"])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(vectors, "_asks", False)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    forget()
    yield questions
    forget()


def picked() -> str:
    with vectors.unasked():
        return str(cpu_vec_isa.pick_vec_isa())


def test_the_widest_instructions_of_the_processor_are_taken_unasked(asked):
    assert (picked(), asked) == ("avx512", [])


def test_what_torch_is_asked_outside_is_its_own_answer(asked):
    picked()

    assert str(cpu_vec_isa.pick_vec_isa()) == "avx2"


def test_code_that_cannot_be_built_is_another_try_once(asked):
    picked()
    with vectors.unasked():
        tries = [vectors.doubted(FAILED), vectors.doubted(FAILED)]

    assert (tries, picked()) == ([True, False], "avx2")


@pytest.mark.parametrize("how", ["cause", "wrapped", "loader"])
def test_what_a_compiler_or_the_loader_said_is_found_however_it_is_wrapped(asked, how):
    error = RuntimeError("inductor")
    if how == "cause":
        error.__cause__ = FAILED
    elif how == "wrapped":
        vars(error)["inner_exception"] = FAILED
    else:
        error.__context__ = ImportError("undefined symbol: Sleef_expf16_u10")

    assert vectors.doubted(error)


def test_another_error_asks_nothing(asked):
    assert (vectors.doubted(ValueError("an operation")), asked) == (False, [])


@pytest.mark.parametrize("chosen", ["simdlen", "ATEN_CPU_CAPABILITY"])
def test_what_a_user_has_chosen_is_torchs_to_find(asked, chosen, monkeypatch):
    if chosen == "simdlen":
        chosen_by: Any = config.patch({"cpp.simdlen": 256})
    else:
        chosen_by = nullcontext()
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    with chosen_by:
        found = picked()

    assert found == "avx2"
    assert asked
