"""Where compiled code and eager part: halves of a proved graph are lowered, each fed with what eager computed before.

A half that agrees is left behind; the search goes on in the first that does not. So all that is compiled is about one
graph more, and what is found differs by itself, not by what came before it. Random numbers are eager's in both.

Code may be wrong only where operations are compiled together, as loops that are fused. Then no half parts, and the
shortest beginning of the graph that does is looked for.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from shaped.backends.executors import CompileError
from shaped.backends.inductor import lower
from shaped.backends.values import Checked

_SECONDS = 300.0  # after these the search stops and says how far it came


def first_to_part(graph: GraphModule, state: Sequence[Tensor], inputs: Sequence[Tensor], part: float) -> str:
    """The first operation whose compiled result is not eager's.

    Args:
        graph: Proved: parameters and inputs to loss and gradients.
        state: The values of the parameters, and more that is not looked at. They may be written.
        inputs: A batch, and what else the graph takes.
        part: How far a result may be from eager's, in parts of its largest entry.

    Returns:
        Its name and the shapes that it takes; empty where no operation parts by itself.
    """
    nodes = list(graph.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    tensors = [*state[: len(places) - len(inputs)], *inputs]
    env: dict[Node, Any] = dict(zip(places, tensors, strict=True))
    start = env
    low, high = len(places), len(nodes) - 1  # the last one is the output
    end, known = time.monotonic() + _SECONDS, False
    while high - low > 1 and time.monotonic() < end:
        middle = (low + high) // 2
        after = _parts(graph, nodes, low, middle, env, part)
        if after is None:
            high, known = middle, True
        else:
            low, env = middle, after
    if not known and (high - low > 1 or _parts(graph, nodes, low, high, env, part) is not None):
        return _together(graph, nodes, start, part, end)
    found = [node for node in nodes[low:high] if node.op == "call_function"]
    if len(found) == 1:
        return _shown(found[0], env)
    return f"one of {len(found)}, {_named(found[0])} to {_named(found[-1])}" if found else ""


def _together(graph: GraphModule, nodes: Sequence[Node], env: dict[Node, Any], part: float, end: float) -> str:
    """The operation with which code for the first ones begins to part; empty where code for all of them does not."""
    low, high = len(env), len(nodes) - 1
    if _parts(graph, nodes, len(env), high, env, part) is not None:
        return ""
    while high - low > 1 and time.monotonic() < end:
        middle = (low + high) // 2
        if _parts(graph, nodes, len(env), middle, env, part) is None:
            high = middle
        else:
            low = middle
    after = _run(Checked(graph), nodes[len(env) : high], _copied(env))
    last = next(node for node in reversed(nodes[:high]) if node.op == "call_function")
    return f"{_shown(last, after)}, compiled together with those before it"


def _shown(node: Node, env: dict[Node, Any]) -> str:
    shapes = [str(list(env[n].shape)) for n in node.all_input_nodes if isinstance(env.get(n), Tensor)]
    return " of ".join(filter(None, [_named(node), ", ".join(shapes)]))


def _parts(
    graph: GraphModule, nodes: Sequence[Node], low: int, high: int, env: dict[Node, Any], part: float
) -> dict[Node, Any] | None:
    """What is there after nodes low to high - 1 as eager runs them; None where compiled code has something else."""
    after = _run(Checked(graph), nodes[low:high], _copied(env))
    later = set(nodes[high:])
    live = [n for n in nodes[:high] if n in after and not later.isdisjoint(n.users)]
    drawn = [n for n in nodes[low:high] if _draws(n)]
    given = [n for n in env if isinstance(env[n], Tensor)] + [n for n in drawn if isinstance(after[n], Tensor)]
    new = [n for n in live if n not in env and isinstance(after[n], Tensor) and after[n].is_floating_point()]
    if new:
        fixed = {n: v for n, v in {**env, **{d: after[d] for d in drawn}}.items() if n not in given}

        def function(*flat: Tensor) -> tuple[Tensor, ...]:
            start = {**fixed, **dict(zip(given, flat, strict=True))}
            done = _run(Checked(graph), [n for n in nodes[low:high] if n not in drawn], start)
            return tuple(done[n].clone() for n in new)

        values = [{**after, **env}[n].detach() for n in given]
        try:
            results = lower(function, values, []).run([v.clone() for v in values])
        except (CompileError, RuntimeError):  # no part by itself: nothing is known of it
            return {n: after[n] for n in live}
        if not all(_near(after[n], result, part) for n, result in zip(new, results, strict=True)):
            return None
    return {n: after[n] for n in live}


def _run(checked: Checked, nodes: Sequence[Node], env: dict[Node, Any]) -> dict[Node, Any]:
    checked.env = env
    with torch.no_grad():
        for node in nodes:
            env[node] = checked.run_node(node)
    return env


def _copied(env: dict[Node, Any]) -> dict[Node, Any]:
    return {n: v.clone() if isinstance(v, Tensor) else v for n, v in env.items()}


def _draws(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _near(mine: Tensor, other: Tensor, part: float) -> bool:
    a, b = mine.double(), other.double()
    same = (a == b) | (a.isnan() & b.isnan())
    scale = a.abs().nan_to_num(posinf=0.0, neginf=0.0).amax() if a.numel() else 0.0
    return bool((same | ((a - b).abs() <= part * scale)).all())


def _named(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return str(node.name if schema is None else schema.name.removeprefix("aten::"))
