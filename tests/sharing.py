"""One proof for all trainers over a loss, since a proof takes longer than most of what is tested of a trainer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from shaped.proof import prove_setting


def sharing_proofs(*losses: Callable[..., Any]) -> Callable[..., Any]:
    """`prove_setting` that proves each of some losses once, and all others at each call."""
    proofs: dict[str, Any] = {}

    def shared(setting: Any, assume: Any = (), static: Any = ()) -> Any:
        if setting.signature.function not in losses or setting.strategy is not None:
            return prove_setting(setting, assume, static)
        known = setting.dtypes, setting.mask, setting.device, setting.autocast, torch.get_default_dtype()
        key = repr((setting.signature, *known, assume, static))
        if key not in proofs:
            proof = prove_setting(setting, assume, static)
            proofs[key] = replace(proof, setting=replace(setting, held=()))
        graph = GraphModule(proofs[key].graph, proofs[key].graph.graph)  # a program notes in it how it counts
        graph.meta.update(proofs[key].graph.meta)
        return replace(proofs[key], setting=setting, graph=graph)

    return shared
