"""Modules whose gradients a trainer cannot give, or cannot use."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from shaped import GradientError, ParamList, ScalarTrainer, Unprovable
from tests.trainer.oracle import both


def loss(net: nn.Module, x: Float[Tensor, "batch 6"]) -> Float[Tensor, ""]:
    return net(x).square().mean()


needs_gloo = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()


@needs_gloo
@pytest.mark.usefixtures("one_process")
def test_a_module_that_averages_over_processes_is_refused_with_what_to_pass():
    with pytest.raises(
        GradientError, match=r"^the module is under DistributedDataParallel.*\(net\.module\), with mesh=ranks"
    ):
        ScalarTrainer(loss, DistributedDataParallel(nn.Linear(6, 3)))
    with pytest.raises(GradientError, match=r"^`1` is under DistributedDataParallel"):
        ScalarTrainer(loss, nn.Sequential(nn.Linear(6, 6), DistributedDataParallel(nn.Linear(6, 3))))
    with pytest.raises(GradientError, match=r"^the module is under DataParallel"):
        ScalarTrainer(loss, DataParallel(nn.Linear(6, 3)))


@needs_gloo
@pytest.mark.usefixtures("one_process")
def test_a_module_that_is_spread_over_devices_is_refused():
    from torch.distributed._composable.replicate import replicate
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_module

    mesh = init_device_mesh("cpu", (1,))
    sharded, copied = nn.Linear(6, 3), nn.Linear(6, 3)
    fully_shard(sharded, mesh=mesh)
    replicate(copied)
    with pytest.raises(GradientError, match=r"^the module is under FSDPModule.*make the trainer before it, with mesh="):
        ScalarTrainer(loss, sharded)
    with pytest.raises(GradientError, match=r"^the module is under replicate"):
        ScalarTrainer(loss, copied)
    with pytest.raises(GradientError, match=r"^`weight` and `bias` are DTensors"):
        ScalarTrainer(loss, distribute_module(nn.Linear(6, 3), mesh))


class Table(ParamList):
    table: Float[Tensor, "rows dim"]


def looked_up(p: Table, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return F.embedding(ids, p.table, sparse=True).square().mean()


def gathered(p: Table, ids: Int[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    return torch.gather(p.table, 0, ids, sparse_grad=True).square().mean()


def over_ids(net: nn.Module, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return net(ids).square().mean()


@pytest.mark.parametrize(
    ("trainer", "operation"),
    [
        (lambda: ScalarTrainer(over_ids, nn.Embedding(6, 3, sparse=True)), "embedding"),
        (lambda: ScalarTrainer(over_ids, nn.EmbeddingBag(6, 3, sparse=True)), "embedding_bag"),
        (lambda: ScalarTrainer(looked_up, Table.init(rows=6, dim=3)), "embedding"),
        (lambda: ScalarTrainer(gathered, Table.init(rows=6, dim=3)), "gather"),
    ],
)
def test_a_sparse_gradient_is_refused_where_it_would_be_made(trainer, operation):
    with pytest.raises(Unprovable, match=rf"^{operation} makes a sparse gradient here(.|\n)*leave out sparse"):
        trainer()


@both
def test_a_sparse_table_that_is_frozen_trains(backend):
    net = nn.Sequential(nn.Embedding(6, 3, sparse=True).requires_grad_(False), nn.Linear(3, 2))
    trainer = ScalarTrainer(over_ids, net, backend=backend)

    assert trainer.step(torch.zeros(2, 4, dtype=torch.int64), lr=0.1) > 0


def _made_under_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(6, 3)


def _with_a_hook_on_grad() -> nn.Module:
    net = nn.Linear(6, 3)
    net.weight.register_post_accumulate_grad_hook(lambda p: None)
    return net


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Linear(6, 3, dtype=torch.complex64), r"no update takes `weight` and `bias` of complex64"),
        (_made_under_inference_mode, r"`weight` and `bias` was made under torch\.inference_mode"),
        (_with_a_hook_on_grad, r"`weight` has a hook that waits for \.grad"),
        (lambda: torch.jit.script(nn.Linear(6, 3)), r"the module is TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_parameters_that_no_update_reaches_are_refused_by_name(make, said):
    with pytest.raises(GradientError, match=said):
        ScalarTrainer(loss, make())
