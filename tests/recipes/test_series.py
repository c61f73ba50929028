"""The series: made by the rule that it says, validated without a leak, and learned again after its drift."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shaped import ShapedError
from shaped.recipes import Settings, find, series
from shaped.recipes.series import DRIFT, KNOWN, NOISE, RULES, STREAM, make_series, windows


def test_the_series_follows_its_rule_before_and_after_the_drift() -> None:
    made = make_series(0).double()
    u, y = made[:, 0], made[:, 1]
    for rule, rows in zip(RULES, (slice(2, DRIFT), slice(DRIFT, None)), strict=True):
        inputs = torch.stack([y[1:-1], y[:-2], torch.tanh(2 * u[1:-1])], dim=1)
        both = torch.cat([torch.zeros(2, 4).double(), torch.cat([inputs, y[2:, None]], dim=1)])[rows]
        found = torch.linalg.lstsq(both[:, :3], both[:, 3:]).solution.flatten()
        left = (both[:, 3] - both[:, :3] @ found).square().mean()

        # 1600 rows or more: the coefficients err by about 0.3/40 = 0.01, the variance by 0.09*sqrt(2/1600) = 0.003.
        torch.testing.assert_close(found, torch.tensor(rule).double(), atol=0.04, rtol=0)
        assert left.item() == pytest.approx(NOISE**2, abs=0.012)


def test_a_seed_is_a_series_and_a_label_is_the_next_value() -> None:
    one, same, other = make_series(0), make_series(0), make_series(1)
    made = windows(one, 3)

    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(made.labels, one[3:, 1])
    assert torch.equal(made.inputs[0], one[:3])


def test_a_record_keeps_what_was_learned_from_and_drops_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "stream.jsonl"
    first = series._Record(path, 0)
    for i in range(4):
        first.add({"learned": float(i)})
    second = series._Record(path, 2)
    second.add({"learned": 9.0})

    assert [line["learned"] for line in series._Record(path, 9).lines] == [0.0, 1.0, 9.0]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "SIZES", "1, 2")
    monkeypatch.setattr(series, "FOLDS", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", [2])
def test_a_drift_in_the_series_is_noticed_and_learned_and_nothing_leaks(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings("eager", epochs=8, seed=seed, out=tmp_path)
    made = find("series")(settings)
    f, printed = made.figures, capsys.readouterr().out

    assert f["window"] == 2
    assert abs(f["shuffled"] - 0.5) < f["chance"] * 3.3 / 1.96, "one in a thousand"
    assert f["leaking"] > 0.95
    assert f["delay"] <= 20
    assert f["recovered"] < 0.2 < 1 < f["frozen_after"]
    assert f["recovered"] > NOISE**2 * 0.9, "below the noise there would be a leak"
    assert "squared error   before  until noticed  second half after" in printed
    assert made.files[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ShapedError, match="has a run: go on with it by --resume, or choose another --out"):
        find("series")(settings)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_series_that_was_interrupted_goes_on_to_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"backend": "eager", "epochs": 2}
    whole = find("series")(Settings(**options, out=tmp_path / "whole"))
    add = series._Record.add

    def stops(record: Any, line: dict[str, Any]) -> None:
        add(record, line)
        if len(record.lines) == 125:
            raise KeyboardInterrupt

    monkeypatch.setattr(series._Record, "add", stops)
    with pytest.raises(KeyboardInterrupt):
        find("series")(Settings(**options, out=tmp_path / "cut"))
    monkeypatch.setattr(series._Record, "add", add)
    resumed = find("series")(Settings(**options, out=tmp_path / "cut", resume=True))

    assert resumed.figures == whole.figures
    assert len((tmp_path / "cut/series-eager-adamw-seed0-epochs2/stream.jsonl").read_text().splitlines()) == \
        -(-(series.ROWS - KNOWN) // STREAM)  # fmt: skip
