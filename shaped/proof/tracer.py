"""torch's make_fx, without what it changes for the whole process while it runs.

`torch.fx.Tracer.trace` exchanges `nn.Module.__call__` and raises a flag on which compiled functions of other threads
fail. Neither is needed for a trace of operations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import PythonKeyTracer, _MakefxTracer, _ProxyTensor
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.utils.weak import WeakTensorKeyDictionary


class _Quiet(_MakefxTracer):
    """make_fx's own, with another way to trace."""

    @contextmanager
    def _init_modes_from_inputs(self, f: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[None]:
        with super()._init_modes_from_inputs(f, args):
            assert self.fx_tracer is not None
            self.fx_tracer.trace = partial(_trace, self.fx_tracer)  # type: ignore[method-assign]
            yield


class _WithoutValues(WeakTensorKeyDictionary):
    """What stands for each tensor. torch keeps a constant's value here too, past a write through a view (2.13)."""

    def __setitem__(self, tensor: Tensor, proxy: _ProxyTensor) -> None:
        proxy.constant = None  # the fake tensor has it, and loses it with any such write
        super().__setitem__(tensor, proxy)


def _trace(tracer: PythonKeyTracer, root: Callable[..., Any], placeholders: tuple[Any, ...]) -> Graph:
    """As `Tracer.trace` does for a function."""
    tracer.root = nn.Module()
    tracer.graph = Graph(tracer_cls=PythonKeyTracer)
    tracer.tensor_attrs = {}
    tracer.tensor_tracker = _WithoutValues()
    function, arguments = tracer.create_args_for_root(root, False, placeholders)  # type: ignore[arg-type]
    result = tracer.create_arg(function(*arguments))
    tracer.create_node("output", "output", (result,), {})
    return tracer.graph


@contextmanager
def _without_notes() -> Iterator[None]:
    """Without the notes on each tensor's memory format that make_fx takes beside its sizes: an eighth of the time.

    They ask of symbolic sizes what nobody reads. Other threads, which may trace for themselves, take them as before.
    """
    here = get_ident()

    def notes(*args: Any, **kwargs: Any) -> Any:
        return None if get_ident() == here else _extract_tensor_metadata(*args, **kwargs)

    with patch.object(proxy_tensor, "_extract_tensor_metadata", notes):
        yield


def graph_of(function: Callable[..., Any], tensors: Sequence[Tensor]) -> GraphModule:
    """The operations that a function runs on these tensors, as a graph."""
    tracer = _Quiet(
        decomposition_table=None,
        tracing_mode="real",
        _allow_non_fake_inputs=True,
        pre_dispatch=False,
        record_module_stack=False,
        _allow_fake_constant=False,
        _error_on_data_dependent_ops=True,
    )
    with _without_notes():
        made = tracer.trace(function, *tensors)
    assert isinstance(made, GraphModule)
    return made
