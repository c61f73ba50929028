"""Configuration is strict: every fault at once, with the nearest name."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shaped.workflow import ConfigError, OptimizerConfig, Part, WorkflowConfig, from_dict, read_config, to_dict


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] = ()
    many: tuple[Inner, ...] = ()
    either: int | str = 0
    flags: dict[str, bool] = field(default_factory=dict)


def test_every_fault_is_listed_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(
            Outer,
            {"inner": {"sise": 3, "rate": "fast"}, "names": "abc", "many": [{"size": 1}, {"size": True}], "zz": 1,
             "either": 1.5, "flags": {"a": 1}},
        )  # fmt: skip

    assert str(caught.value) == (
        "Outer cannot be read.\n"
        "  zz: unknown; there are inner, names, many, either, flags\n"
        "  inner.sise: unknown; did you mean `size`?\n"
        "  inner.size: missing\n"
        "  inner.rate: 'fast' is no finite number\n"
        "  names: 'abc' is no list\n"
        "  many[1].size: True is no whole number\n"
        "  either: 1.5 is none of whole number, text\n"
        "  flags.a: 1 is no true or false"
    )


def test_nested_dataclasses_lists_and_unions_are_read() -> None:
    made = from_dict(Outer, {"inner": {"size": 3, "rate": 1}, "many": [{"size": 1}], "either": "x", "names": ["a"]})

    assert made == Outer(Inner(3, 1.0), ("a",), (Inner(1),), "x")
    assert isinstance(made.inner.rate, float)
    assert from_dict(Outer, {"inner": Inner(3)}) == Outer(Inner(3))
    with pytest.raises(ConfigError, match="Inner: 3 is no table of Inner"):
        from_dict(Inner, 3)  # type: ignore[arg-type]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=5,
)


@given(
    st.builds(
        WorkflowConfig,
        epochs=st.integers(0, 99),
        seed=st.integers(0, 2**31),
        model=st.none() | st.builds(Part, st.text(), st.dictionaries(st.text(), plain, max_size=2)),
        folder=st.none() | st.just(Path("runs/a")),
        metrics=st.lists(st.text(), max_size=3).map(tuple),
        max_norm=st.none() | st.floats(0.1, 10),
        extensions=st.dictionaries(st.text(), plain, max_size=3),
    )
)
def test_a_configuration_survives_as_plain_data(config: WorkflowConfig) -> None:
    assert from_dict(WorkflowConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_what_the_dataclass_itself_refuses_is_told_with_the_rest() -> None:
    for values, said in (
        ({"epochs": -1}, "epochs is -1; it is a whole number of at least 0"),
        (
            {"optimizer": {"name": "lino"}},
            "optimizer.name is 'lino'; it is one of 'sgd', 'adam', 'adamw', 'lion'",
        ),
        ({"epochs": 0, "restore_best": True}, "restore_best needs an epoch, and epochs is 0"),
        ({"max_norm": -1.0}, "max_norm is -1.0; it is a finite number of at least 0"),
        ({"max_norm": 0.0}, "max_norm is 0; it is a positive number, or None"),
        (
            {"optimizer": {"lr": -1}, "early_stopping": {"patience": 0}, "batches": {"batch_size": 0}},
            "  optimizer.lr is -1.0; it is a finite number of at least 0\n"
            "  batches.batch_size is 0; it is a whole number of at least 1\n"
            "  early_stopping.patience is 0; it is a whole number of at least 1",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            from_dict(WorkflowConfig, values)  # type: ignore[arg-type]


def test_a_configuration_that_no_file_can_hold_is_refused_by_the_value() -> None:
    config = WorkflowConfig(
        data=Part("table", {"path": Path("a.csv"), "dtype": torch.float64}),
        optimizer=OptimizerConfig(options={"betas": (0.9, math.nan)}),
        extensions={"x": [1, torch.ones(1)], "y": {1: 2}},
    )
    with pytest.raises(ConfigError) as caught:
        to_dict(config)

    assert str(caught.value) == (
        "a WorkflowConfig is written as plain data.\n"
        "  data.options.dtype is torch.float64, a dtype: give text, numbers, lists or tables\n"
        "  optimizer.options.betas[1] is nan, a float: give text, numbers, lists or tables\n"
        "  extensions.x[1] is tensor([1.]), a Tensor: give text, numbers, lists or tables\n"
        "  extensions.y is {1: 2}, a dict: give text, numbers, lists or tables"
    )


def test_extensions_are_kept_as_they_are() -> None:
    theirs: dict[str, Any] = {"team": {"anything": [1, None, {"deep": "x"}]}}

    assert from_dict(WorkflowConfig, {"extensions": theirs}).extensions == theirs


def test_a_file_is_read_as_toml_or_json(tmp_path: Path) -> None:
    toml, other = tmp_path / "job.toml", tmp_path / "job.json"
    toml.write_text('epochs = 3\n[model]\nname = "mlp"\noptions = { hidden = 8 }\n')
    other.write_text(json.dumps(to_dict(read_config(WorkflowConfig, toml))))

    assert read_config(WorkflowConfig, toml) == read_config(WorkflowConfig, other)
    assert read_config(WorkflowConfig, toml).model == Part("mlp", {"hidden": 8})
    toml.write_text("epochs = ")
    twice = tmp_path / "twice.json"
    twice.write_text('{"epochs": 3, "optimizer": {"lr": 1, "lr": 2}}')
    for path, said in (
        (toml, "is no TOML"),
        (twice, "is no JSON: the key `lr` is there twice"),
        (tmp_path / "none.toml", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_config(WorkflowConfig, path)
