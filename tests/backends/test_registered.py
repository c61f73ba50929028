"""Operations with kernels in Python: a program that calls one of the project's is not kept."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from shaped.backends.registered import own_operation, replaced

LIBRARY = torch.library.Library("of_tests", "DEF")
LIBRARY.define("halved(Tensor x) -> Tensor")
LIBRARY.impl("halved", lambda x: x / 2, "CompositeExplicitAutograd")


@torch.library.custom_op("of_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


doubled.register_fake(torch.empty_like)


@pytest.mark.parametrize("operation", [doubled, torch.ops.of_tests.halved])
def test_an_operation_of_the_projects_own_is_found_with_its_file(operation):
    graph = make_fx(lambda x: operation(x.sin()))(torch.ones(2))
    found = own_operation(graph)

    assert found is not None
    assert "of_tests" in found
    assert str(Path(__file__)) in found


def test_operations_of_torch_are_not():
    graph = make_fx(lambda x: torch.ops.prims.sin(x).softmax(0) @ x)(torch.ones(2))

    assert own_operation(graph) is None


def test_torch_itself_exchanges_no_kernel_of_its_own_on_a_cpu():
    import torch._inductor.compile_fx
    import torch.distributed.tensor  # noqa: F401

    assert replaced() == []
