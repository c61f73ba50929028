"""Where `float` and `int` may be put in another's place: in modules that do nothing but call them."""

from typing import Any

import pytest

from shaped.proof.naming import is_only_called

CODE = {
    "def f(x): return float(x)": True,
    "def f(x): return x.to(float)": False,
    "def f(x): return isinstance(x, float)": False,
    "def f(x): return float.fromhex(x)": False,
    "class A:\n  def f(self, x): return [float(i) for i in x]": True,
    "class A:\n  @property\n  def f(self): return dict(dtype=float)": False,
    "def f(x):\n  def g(): return float\n  return g": False,
    "def f(x: float) -> float: return x": True,
}


@pytest.mark.parametrize("text", CODE)
def test_a_name_is_only_called_where_nothing_hands_it_on(text: str) -> None:
    module: dict[str, Any] = {"__name__": "made"}
    exec(text, module)

    assert is_only_called(module, "float") is CODE[text]
