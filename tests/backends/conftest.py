import pytest


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled backend without a C++ compiler: the same graphs, one operation at a time; no seconds to compile."""
    monkeypatch.setattr("shaped.backends.inductor.has_cpp_compiler", lambda: False)
    monkeypatch.setattr("shaped.backends.inductor._warned", True)
