"""A trainer on several ranks: what `mesh`, `shard` and `zero` ask for, held to what is there before anything is cut.

Each rank gets its own part of the batch; a step is that of one process on the batches of all ranks together.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from shaped.backends import Program, TrainerOptions
from shaped.errors import RankError, SignatureError, listing, nearest
from shaped.proof import Proof

if TYPE_CHECKING:
    from shaped.backends.drift import Drift
    from shaped.backends.placed import PlacedGraph
    from shaped.backends.together import Together
    from shaped.ranks.exchange import Exchange
    from shaped.ranks.module_names import NamedEntries
    from shaped.ranks.naming import NamedAxis
    from shaped.ranks.peers import Peers
    from shaped.ranks.rows import Rows

Zero = Literal[0, 3]
ALONE = "alone"


@dataclass(frozen=True)
class SharedAxes:
    """What lies over which axis of a mesh.

    Attributes:
        axis: Of the batch; None where nothing is shared out.
        size: Of that axis.
        name: The dimension of the batch.
        named: The dimensions that lie in parts within the program; None where there are none.
        zero: 3 where parameters lie in even parts over the ranks of the batch.
    """

    axis: Any
    size: int
    name: str
    named: "NamedAxis | None" = None
    zero: int = 0

    def __str__(self) -> str:
        batch = f"{self.name} over {self.axis} = {self.size}" if self.axis is not None else ""
        return "; ".join(filter(None, [batch, str(self.named or "")]))


def share(
    program: Program,
    options: TrainerOptions,
    mesh: Any,
    shard: Mapping[str, str] | None,
    zero: int,
    save_frozen: bool = True,
    names: Mapping[str, str] | None = None,
    inside: Sequence[str] = (),
) -> None:
    """Let the ranks of a mesh run a program together, with the parameters of rank 0.

    Args:
        program: The proved loss; where parameters are to lie in parts, they do afterwards.
        options: Which ranks must have alike.
        mesh, shard, zero, save_frozen, names, inside: As for `ScalarTrainer`.

    Raises:
        ValueError: There is no such mesh or axis, several processes are there and no mesh was given, or ranks made
            different trainers. SignatureError: The batch has no such dimension, or ranks cannot share the loss.
    """
    named = None
    if shard is not None or names is not None or inside:
        from shaped.ranks.module_names import named_entries

        named = named_entries(program.params, program.modules[0] if program.modules else None, names)
    plan = _plan_of(mesh, shard, zero, program, named, inside)
    if plan.axis is None and plan.named is None:
        return
    _refuse(program)
    if plan.axis is not None:
        program.hold_to_one_count()
    from shaped.backends.separable import SharedMeans, hold_to_mean
    from shaped.backends.together import Together
    from shaped.ranks.exchange import Exchange

    tried = hold_to_mean(program, plan.name) if plan.axis is not None else set[str]()
    found = _placed(program, plan, named, save_frozen) if plan.named is not None and named is not None else None
    exchange = Exchange(mesh, plan.axis if plan.named is None else None)
    _begin(exchange, program, options, plan, zero)
    if plan.named is None or named is None or found is None:
        shared = Together(program, exchange, zero == 3, plan.name, str(plan.axis))
    else:
        from shaped.backends.planned import Planned
        from shaped.backends.planned_parts import PlannedParts

        columns = Exchange(mesh, plan.axis) if plan.axis is not None else None
        across = Exchange(mesh, plan.named.axis)
        kind = PlannedParts if zero and columns is not None else Planned
        shared = kind(program, exchange, columns, across, plan.named, plan.name, named, *found, str(plan.axis))
    shared.means = SharedMeans(program, shared.name, shared.share[1], tried)
    shared.drift = _drift(program, shared)
    program.share(shared)


def _drift(program: Program, shared: "Together") -> "Drift":
    """What a rank's own code may change of what all have alike."""
    from shaped.backends.drift import Drift

    alike = {i: t for i, t in enumerate(program.tensors) if shared.is_alike(i)}
    lifted = program.outside.now.lifted(program.proof.graph, program.storages).reads
    places = {id(t): i for i, t in enumerate(program.tensors)}
    names = program.params.names
    return Drift(names, alike, program.used, places, program.outside, lifted, program.modules)


def _plan_of(
    mesh: Any,
    shard: Mapping[str, str] | None,
    zero: int,
    program: Program,
    named_params: "NamedEntries | None",
    inside: Sequence[str],
) -> SharedAxes:
    """What lies over which axis; nothing where there is nothing to share."""
    if mesh is None or mesh == ALONE:
        if shard or zero:
            raise ValueError(f"{'shard' if shard else f'zero={zero}'} needs a mesh: mesh=ranks.join()")
        if mesh is None and (count := _processes()) > 1:
            raise ValueError(
                f"torch.distributed has {count} processes here, and without a mesh each would train a model of its "
                'own. Pass mesh=ranks.join() to train one together, or mesh="alone" to train one on each'
            )
        return SharedAxes(None, 1, "")
    if not hasattr(mesh, "mesh_dim_names") or not hasattr(mesh, "get_group"):
        raise ValueError(
            f"mesh is a {type(mesh).__name__}; it is torch's DeviceMesh, as ranks.join() and init_device_mesh give it"
        )
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"this process is none of the mesh's, {mesh}: pass a mesh that has it, as ranks.join() gives to all, or "
            'mesh="alone" to train a model of its own'
        )
    device = program.params.device.type
    if mesh.device_type != device:
        raise ValueError(f"the parameters are on {device}, and the mesh is one of {mesh.device_type} devices")
    axes: Sequence[Any] = mesh.mesh_dim_names or range(mesh.ndim)
    sizes = dict(zip(axes, mesh.shape, strict=True))
    name, axis, inner = _planned(shard, sizes, program, named_params, inside)
    used = {axis, *inner.values()}
    if others := [f"{other} = {size}" for other, size in sizes.items() if other not in used and size > 1]:
        raise ValueError(
            f"the mesh has {listing(others)}, over which nothing lies: name a dimension for it in shard, such as "
            f'{{"{name or "batch"}": "dp", "hidden": "tp"}}, or make it 1'
        )
    wide = axis if axis is not None and sizes[axis] > 1 else None
    named = _named(inner, sizes, axis, name, inside)
    if named is not None and zero and axis is None:
        raise ValueError(
            f"zero={zero} keeps even parts of parameters over the ranks that share the batch out, and shard has no "
            f'dimension of the batch: shard={{"{_leading(program) or "batch"}": "dp", ...}}, or leave zero out'
        )
    return SharedAxes(wide, sizes[axis] if wide is not None else 1, name, named, zero)


def _named(
    inner: Mapping[str, Any], sizes: Mapping[Any, int], axis: Any, name: str, inside: Sequence[str]
) -> "NamedAxis | None":
    """The names that lie within the program; None where their axis has one rank."""
    axes = list(dict.fromkeys(inner.values()))
    if axis in axes:
        clash = next(other for other, over in inner.items() if over == axis)
        raise SignatureError(
            f"shard: {name} and {clash} both lie over {axis}, and a value that has both would have {axis} on two of "
            "its axes: give them mesh axes of their own, such as ranks.join(dp=2, tp=2)"
        )
    if len(axes) > 1:
        raise SignatureError(
            f"shard: {listing(list(inner))} lie over {listing(list(map(str, axes)))}: within the program names lie "
            f"over one axis of the mesh as yet. Put them all over {axes[0]}, or leave those over "
            f"{listing(list(map(str, axes[1:])))} out; the batch may have an axis of its own, and zero=3 cuts over it "
            "what a rank has by name"
        )
    if not axes or sizes[axes[0]] == 1:
        return None
    from shaped.ranks.naming import NamedAxis

    if inside and (others := [name for name in inner if name not in inside]):
        raise SignatureError(
            f"inside has {listing(list(inside))}, and {listing(others)} over the same axis {axes[0]} not: what is "
            "gathered where an operation must see it whole is all that lies over an axis, or nothing"
        )
    return NamedAxis(str(axes[0]), sizes[axes[0]], tuple(inner), bool(inside))


def _planned(
    shard: Mapping[str, str] | None,
    sizes: Mapping[Any, int],
    program: Program,
    named: "NamedEntries | None",
    inside: Sequence[str],
) -> tuple[str, Any, dict[str, Any]]:
    """The dimension that is shared out and its axis of the mesh (None for none), and what lies within the program."""
    leading = _leading(program)
    if shard is None:
        wide = [axis for axis, size in sizes.items() if size > 1] or list(sizes)
        if not leading:
            raise SignatureError(
                f"`{program.signature.name}` has no dimension that leads its first input and is no parameter's, which "
                'the ranks could share: name one, shard={"batch": "dp"}'
            )
        if inside and list(inside) != [leading]:
            raise SignatureError(f"inside={list(inside)!r} needs shard, which says over which axis each lies")
        return (leading, None, {leading: wide[0]}) if inside else (leading, wide[0], {})
    own = dict.fromkeys(n for e in (named.entries if named else ()) for dim in e.spec.dims for n in dim.names)
    free = [n for e in program.inputs for dim in e.spec.dims for n in dim.names if n not in own]
    known = list(dict.fromkeys([*free, *own]))
    for name, axis in shard.items():
        if name not in known:
            why = ""
            if program.modules:
                why = " (of a module: what its classes declare, and what names= says of paths)"
            raise SignatureError(
                f"shard: `{name}` is no dimension of `{program.signature.name}`'s parameters and inputs{why}"
                f"{nearest(name, known)}"
            )
        if axis not in sizes:
            raise ValueError(f"shard: {axis!r} is no axis of the mesh ({', '.join(map(str, sizes))})")
    if not shard:
        raise SignatureError('shard is empty: name a dimension, shard={"batch": "dp"}, or leave it out')
    if unknown := [name for name in inside if name not in shard]:
        raise SignatureError(f"inside: {listing(unknown)} lies over no axis of the mesh: name it in shard")
    mine = [name for name in shard if name in free and name not in inside]
    taken = {axis for name, axis in shard.items() if name not in mine}
    outside = leading if leading in mine else ""
    if not outside and len(mine) == 1 and shard[mine[0]] not in taken:
        outside = mine[0]
    inner = {name: axis for name, axis in shard.items() if name != outside}
    return outside or leading, shard[outside] if outside else None, inner


def _placed(
    program: Program, plan: SharedAxes, entries: "NamedEntries", save_frozen: bool
) -> "tuple[PlacedGraph, Proof]":
    """Prove a plan by name, before any group is made: where values lie, and the statement with the plan."""
    from shaped.backends.placed import placed, said
    from shaped.backends.planned import counts_by_parts

    named = plan.named
    assert named is not None
    if program.signature.axes:
        raise SignatureError(
            f"`{program.signature.name}` has *{program.signature.axes[0]}, any number of axes, and a plan by name is "
            "for a known number: name each axis"
        )
    named.hold_even(entries.sizes)
    layouts = named.layouts(entries.entries, [tuple(t.shape) for t in program.tensors], entries.sizes)
    if named.gathers and plan.zero and any(layout.shard for layout in layouts.values()):
        raise SignatureError(
            f"inside has {listing(named.names)}, of which parameters have parts, and with zero={plan.zero} those are "
            "gathered otherwise: leave zero or inside out"
        )
    found = placed(program, program.proof.graph, program.inputs, named, entries)
    if counting := counts_by_parts(program, layouts):
        raise SignatureError(
            f"`{program.signature.name}` counts its samples by {listing(counting)}, of which a rank has a part: say "
            "samples="
        )
    if not save_frozen and (cut := [program.params.names[i] for i in program.frozen if layouts[i].shard is not None]):
        raise ValueError(
            f"save_frozen=False compares {listing(cut)} by a checksum of the whole, and a rank has a part: leave "
            "save_frozen out, or the name out of shard"
        )
    sums = sum(layouts[i].numel * program.tensors[i].element_size() for i in program.used)
    batch = f"{plan.name} over {plan.axis} = {plan.size}" if plan.axis is not None else ""
    lines = said(entries.entries, found, named, batch, sums if plan.axis is not None else 0)
    return found, replace(program.proof, plan=tuple(lines), divided=tuple(found.walk.sizes.conditions))


def _leading(program: Program) -> str:
    """The dimension that leads the first input, where it is the batch's own; empty where there is none."""
    dims = program.inputs[0].spec.dims[:1] if program.inputs else ()
    return dims[0].text if dims and dims[0].is_name and dims[0].text not in program.params.dims else ""


def _processes() -> int:
    """How many processes torch.distributed has here; it is not imported to find out."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    count: int = distributed.get_world_size()
    return count


def _refuse(program: Program) -> None:
    """Refuse what the ranks would each do in their own way."""
    name = program.signature.name
    if program.strategy is not None:
        raise SignatureError(
            f"`{name}` is trained by a gradient strategy (loss_scale is one too), which ranks do not share as yet: "
            "leave mesh out"
        )
    if program.writes:
        written = listing([program.params.names[i] for i in program.writes])
        raise SignatureError(
            f"`{name}` writes into {written} from its batch, and each rank would write something else: run batch "
            "norm in eval(), or use layers without such statistics"
        )


def _begin(exchange: "Exchange", program: Program, options: TrainerOptions, plan: SharedAxes, zero: int) -> None:
    """Meet the other ranks where a trainer is made, and take rank 0's values.

    Raises:
        ValueError: They made different ones. RankError: One does not make it.
    """
    from shaped.ranks.peers import peers_of

    try:
        _compare(exchange, program, options, plan, zero)
        peers_of(exchange)  # makes a group, which all ranks do at one place
        exchange.spread([t.detach() for t in program.tensors])
    except RuntimeError as error:
        why = exchange.whereabouts(error)
        raise RankError(f"another rank does not make this trainer, and all ranks make it together: {why}") from error


def _compare(exchange: "Exchange", program: Program, options: TrainerOptions, plan: SharedAxes, zero: int) -> None:
    """Refuse ranks that made different trainers."""
    entries = zip(program.params.names, program.tensors, strict=True)
    shapes = [f"{path} {tuple(t.shape)} {t.dtype} {t.requires_grad}" for path, t in entries]
    mine = {
        "the loss": str(program.signature), "samples": _counted(program), "parameters": "; ".join(shapes),
        "the proved graph": _digest(program.proof.graph),
        **_outside(program),
        "max_norm": options.max_norm, "nonfinite": options.nonfinite, "accumulate": options.accumulate,
        "shard": f"{plan.name}, {plan}", "zero": zero,
    }  # fmt: skip
    told = exchange.tell(mine)
    for rank, theirs in enumerate(told):
        differing = [what for what in {**told[0], **theirs} if theirs.get(what) != told[0].get(what)]
        if differing:
            values = told[0].get(differing[0]), theirs.get(differing[0])
            long = differing[0] == "parameters" or any(isinstance(value, bytes) for value in values)
            shown = "" if long else f": {values[0]!r} on rank 0, {values[1]!r} on rank {rank}"
            raise ValueError(f"ranks 0 and {rank} made different trainers: {listing(differing)} differ{shown}")


def _counted(program: Program) -> str:
    """How batches are weighed: in words, and a function by its graph as far as it was proved."""
    said, graphs = str(program.samples), program.samples.graphs
    return f"{said} (checksum {b''.join(map(_digest, graphs)).hex()[:8]})" if graphs else said


def _digest(graph: GraphModule) -> bytes:
    """Of a graph with its constants; a device stands for all of its kind."""
    told = hashlib.sha256()
    for node in graph.graph.nodes:
        given = tree_map(lambda x: x.type if isinstance(x, torch.device) else x, (node.args, dict(node.kwargs)))
        told.update(f"{node.target} {given}".encode())
    return told.digest()


def _outside(program: Program) -> dict[str, bytes]:
    """Checksums of the tensors that the loss reads from outside, by where they lie."""
    graph = program.proof.graph
    lifted = program.outside.now.lifted(graph, program.storages)
    found = {f"the tensor {read.text} from outside": read.value for read in lifted.reads}
    for node in graph.graph.nodes:
        value = getattr(graph, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and all(value.data_ptr() != read.value.data_ptr() for read in lifted.reads):
            found["a constant tensor of the loss"] = value
    return {name: hashlib.sha256(_content(t)).digest() for name, t in found.items() if t.layout == torch.strided}


def _content(t: Tensor) -> bytes:
    flat = t.detach().cpu().contiguous().reshape(-1)
    return f"{t.dtype} {tuple(t.shape)}".encode() + (flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")


class Sharing:
    """What a trainer says of the ranks that it trains on."""

    @property
    def _program(self) -> Program:
        raise NotImplementedError

    @property
    def ranks(self) -> "Exchange | None":
        """The ranks that train together; None where this process trains alone."""
        return None if self._program.together is None else self._program.together.exchange

    def settle_rounding(self) -> None:
        """Where ranks round otherwise, let all have rank 0's values: before a save. All ranks call it.

        Raises:
            RankError: They differ by more.
        """
        together = self._program.together
        if together is not None and together.drift.rounds:
            together.settle_drift()

    @property
    def peers(self) -> "Peers":
        """The processes that train together, for what they say to each other on the host; one alone is one too."""
        from shaped.ranks.peers import peers_of

        return peers_of(self.ranks)

    @property
    def rows(self) -> "Rows | None":
        """Which rows of a batch are this rank's; None where this process trains alone."""
        from shaped.ranks.rows import Rows

        together = self._program.together
        return None if together is None else Rows(*together.share, together.name)

    @property
    def parted(self) -> bool:
        """Whether this rank has parts of some parameters alone: with zero=3, or by name."""
        return self._program.together is not None and self._program.together.parted

    @property
    def zero(self) -> int:
        """0 where parameters, gradients and moments are whole on each rank, 3 where a rank has parts of them."""
        return self._program.together.zero if self._program.together is not None else 0
