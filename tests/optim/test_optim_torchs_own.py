"""torch's own inputs for optimizer tests, run against our classes: every configuration and every error of optim_db."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_optimizers import optim_db

from shaped.optim import SGD, Adam, AdamW

# Limits of torch's ways to run an update; ours takes tensors as numbers in each.
TORCHS = ("as a Tensor is not supported", "both floats or both Tensors")
OURS: dict[str, Any] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}
INFOS = [info for info in cast(list[Any], optim_db) if info.optim_cls.__name__ in OURS]
CASES = [
    pytest.param(info, case, id=f"{info.optim_cls.__name__}-{case.desc}")
    for info in INFOS
    for case in info.optim_inputs_func(device="cpu")
]
ERRORS = [
    pytest.param(info, case, id=f"{info.optim_cls.__name__}-{case.optimizer_error_input.desc}")
    for info in INFOS
    for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    if not issubclass(case.error_type, Warning) and not any(words in case.error_regex for words in TORCHS)
]


def trained(kind: Any, given: dict[str, Any], flags: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()
    ).to(dtype)
    empty = torch.nn.Parameter(torch.empty((), dtype=dtype))
    x = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=dtype)
    optimizer = kind([*model.parameters(), empty.detach().fill_(0.5).requires_grad_()], **given, **flags)
    for step in range(7):
        optimizer.zero_grad()
        if step == 3:  # a step without gradients, as torch's own test has
            optimizer.step()
            continue
        model(x).sum().backward()
        optimizer.step()
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("info", "case"), CASES)
def test_each_of_torchs_configurations_moves_as_torchs_class_does(info: Any, case: Any, dtype: torch.dtype) -> None:
    mine = trained(OURS[info.optim_cls.__name__], case.kwargs, {}, dtype)
    theirs = trained(info.optim_cls, case.kwargs, {"foreach": False, "fused": False}, dtype)

    tight = 1e-12 if dtype == torch.float64 else 1e-6
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tight, atol=tight)


@pytest.mark.parametrize(
    "flags", [{"foreach": True}, {"fused": True}, {"foreach": False}, {"capturable": True}], ids=str
)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.optim_cls.__name__)
def test_torchs_switches_change_nothing(info: Any, flags: dict[str, Any]) -> None:
    if "capturable" in flags and info.optim_cls is torch.optim.SGD:
        pytest.skip("torch's SGD has no such switch")
    kind = OURS[info.optim_cls.__name__]

    assert all(map(torch.equal, trained(kind, {}, flags, torch.float32), trained(kind, {}, {}, torch.float32)))


@pytest.mark.parametrize(("info", "case"), ERRORS)
def test_what_torch_refuses_is_refused(info: Any, case: Any) -> None:
    given = case.optimizer_error_input
    params = given.params if given.params is not None else [torch.nn.Parameter(torch.randn(2, 3))]
    with pytest.raises((ValueError, TypeError)):
        OURS[info.optim_cls.__name__](params, **given.kwargs)
