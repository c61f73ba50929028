"""What breaks the contract is refused by name, and changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaped_kernels import adam_, adamw_, sgd_


def good() -> dict[str, list[Tensor]]:
    return {name: [torch.ones(2, 3), torch.ones(4)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}


def refused(lists: dict[str, Any], match: str, rule: Callable[..., None] = adamw_, **given: Any) -> str:
    tensors = [t for ts in lists.values() for t in ts if isinstance(t, Tensor) and t.layout is torch.strided]
    tensors = [t for t in tensors if t.device.type == "cpu"]
    before = [t.clone() for t in tensors]
    with pytest.raises(ValueError, match=match) as caught:
        rule(*lists.values(), **{"step": 1, "lr": 0.1, **given})
    for t, b in zip(tensors, before, strict=True):
        assert torch.equal(t, b)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("lr", -1.0, r"lr must be a finite number >= 0, got -1\.0"),
        ("lr", float("nan"), "lr must be a finite"),
        ("lr", float("inf"), "lr must be a finite"),
        ("lr", "0.1", "lr must be a number, got '0.1'"),
        ("lr", torch.ones(2), r"lr must have one element, got a tensor of shape \(2,\)"),
        ("betas", (1.0, 0.9), r"betas\[0\] must be in \[0, 1\), got 1\.0"),
        ("betas", (0.9, -0.1), r"betas\[1\] must be in"),
        ("betas", 0.9, "betas must be a pair"),
        ("eps", -1e-8, "eps must be"),
        ("weight_decay", -0.1, "weight_decay must be"),
        ("step", 0, "step must be an integer >= 1"),
        ("step", 1.0, "step must be an integer >= 1"),
    ],
)
def test_a_hyper_parameter_out_of_range_is_refused_by_name(name: str, value: Any, says: str) -> None:
    for rule in (adam_, adamw_):
        refused(good(), says, rule, **{name: value})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lr": 0.1, "momentum": -0.9}, "momentum must be"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs momentum > 0 and dampening 0, got momentum 0.0"),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "nesterov": True}, "and dampening 0.1"),
        ({"lr": 0.1, "dampening": float("nan")}, "dampening must be finite"),
        ({"lr": 0.1, "momentum": 0.9}, "momentum_buffers must be given iff momentum > 0"),
    ],
)
def test_sgd_refuses_hyper_parameters_that_contradict_each_other(given: dict[str, Any], says: str) -> None:
    p = torch.ones(2)
    with pytest.raises(ValueError, match=says):
        sgd_([p], [torch.ones(2)], **given)

    assert p.tolist() == [1.0, 1.0]


def test_every_tensor_that_does_not_fit_is_named_with_what_was_expected() -> None:
    lists = good()
    lists["grads"] = [torch.ones(3, 2), torch.ones(4, dtype=torch.float64)]
    message = refused(lists, "do not fit")

    assert message == (
        "the tensor lists do not fit together; nothing was changed.\n"
        "  grads[0]: expected float32 (2, 3) on cpu as params[0], got float32 (3, 2) on cpu\n"
        "  grads[1]: expected float32 (4,) on cpu as params[1], got float64 (4,) on cpu"
    )


@pytest.mark.parametrize(
    ("name", "i", "tensor", "says"),
    [
        ("exp_avgs", 1, torch.ones(5), r"exp_avgs\[1\]: expected float32 \(4,\) on cpu, got float32 \(5,\) on cpu"),
        ("exp_avg_sqs", 0, torch.ones(2, 3, dtype=torch.float64), r"exp_avg_sqs\[0\]: expected float32"),
        ("params", 1, torch.ones(4, dtype=torch.int64), r"params\[1\]: expected float64, float32, .* got int64"),
        ("params", 1, torch.ones(4, dtype=torch.complex64), r"params\[1\]: .* got complex64"),
        ("params", 1, torch.ones(1).expand(4), r"params\[1\]: is expanded"),
        ("params", 1, torch.ones(4).to_sparse(), r"params\[1\]: sparse parameters are not supported"),
        ("params", 1, torch.ones(4, device="meta"), r"params\[1\]: is on meta, but params\[0\] on cpu"),
        ("params", 1, None, r"params\[1\]: expected a tensor, got NoneType"),
        ("grads", 1, None, r"grads\[1\]: expected a tensor, got NoneType"),
        ("grads", 1, torch.ones(4).to_sparse(), r"grads\[1\]: sparse gradients are not supported.*to_dense"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(name: str, i: int, tensor: Any, says: str) -> None:
    lists = good()
    lists[name][i] = tensor
    refused(lists, says)


@pytest.mark.parametrize("name", ["grads", "exp_avgs", "exp_avg_sqs"])
def test_lists_of_different_lengths_are_refused(name: str) -> None:
    lists = good()
    lists[name].pop()
    refused(lists, f"{name}: expected 2 tensors, one for each of params, got 1")


def test_a_tensor_that_would_be_updated_twice_is_refused() -> None:
    lists = good()
    lists["params"][1] = lists["params"][0]
    for name in ("grads", "exp_avgs", "exp_avg_sqs"):
        lists[name][1] = torch.ones(2, 3)
    refused(lists, r"params\[1\]: shares its memory with params\[0\]")
    lists = good()
    lists["exp_avg_sqs"] = lists["exp_avgs"]
    refused(lists, r"exp_avg_sqs\[1\]: shares its memory with exp_avgs\[1\]")


def test_tensors_that_overlap_in_part_are_refused() -> None:
    memory = torch.ones(12)
    lists = good()
    lists["params"] = [memory[:6].view(2, 3), memory[5:9]]
    refused(lists, r"params\[1\]: shares its memory with params\[0\]")
    lists = good()
    lists["params"], lists["exp_avgs"] = [memory[:6].view(2, 3), memory[6:10]], [memory[3:9].view(2, 3), torch.ones(4)]
    refused(
        lists, r"exp_avgs\[0\]: shares its memory with params\[1\]|exp_avgs\[0\]: shares its memory with params\[0\]"
    )


def test_a_tensor_that_overlaps_itself_is_refused() -> None:
    lists = good()
    lists["params"][0] = torch.ones(8).as_strided((2, 3), (1, 1))
    refused(lists, r"params\[0\]: overlaps itself, so one update would reach several elements")


def test_tensors_in_each_others_holes_are_no_fault() -> None:
    memory = torch.ones(2, 6)
    lists = good()
    lists["params"] = [memory[:, ::2], torch.ones(4)]
    lists["exp_avgs"] = [memory[:, 1::2], torch.zeros(4)]
    adamw_(*lists.values(), step=1, lr=0.1, weight_decay=0.0)  # type: ignore[arg-type]

    assert len(set(memory[:, ::2].flatten().tolist())) == 1
    assert memory[0, 0] != 1.0
    lists["exp_avgs"] = [memory[:, :3], torch.zeros(4)]
    refused(lists, r"exp_avgs\[0\]: shares its memory with params\[0\]")


def test_meta_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"params\[0\]: is on meta, where there is nothing to update"):
        sgd_([torch.ones(2, device="meta")], [torch.ones(2, device="meta")], lr=0.1)
