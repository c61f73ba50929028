"""A trainer on several ranks: what `mesh`, `shard` and `zero` ask for, held to what is there before anything is cut.

Each rank gets its own part of the batch; a step is that of one process on the batches of all ranks together.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from shaped.backends import Program, TrainerOptions
from shaped.errors import SignatureError, listing, nearest

if TYPE_CHECKING:
    from shaped.ranks.exchange import Exchange
    from shaped.ranks.peers import Peers
    from shaped.ranks.rows import Rows

Zero = Literal[0, 3]
ALONE = "alone"


def share(program: Program, options: TrainerOptions, mesh: Any, shard: Mapping[str, str] | None, zero: int) -> None:
    """Let the ranks of a mesh run a program together, with the parameters of rank 0.

    Args:
        program: The proved loss; where parameters are to lie in parts, they do afterwards.
        options: Which ranks must have alike.
        mesh, shard, zero: As for `ScalarTrainer`.

    Raises:
        ValueError: There is no such mesh or axis, several processes are there and no mesh was given, or ranks made
            different trainers. SignatureError: The batch has no such dimension, or ranks cannot share the loss.
    """
    axis, name = _axis(mesh, shard, zero, program)
    if axis is None:
        return
    _refuse(program)
    from shaped.backends.separable import hold_to_mean
    from shaped.backends.together import Together
    from shaped.ranks.exchange import Exchange
    from shaped.ranks.peers import peers_of

    hold_to_mean(program, name)
    exchange = Exchange(mesh, axis)
    _compare(exchange, program, options, name, zero)
    peers_of(exchange)  # makes a group, which all ranks do at one place
    exchange.spread([t.detach() for t in program.tensors])
    program.share(Together(program, exchange, zero == 3, name))


def _axis(mesh: Any, shard: Mapping[str, str] | None, zero: int, program: Program) -> tuple[Any, str]:
    """The axis of the mesh that has the batch, None where there is nothing to share; and the dimension."""
    if mesh is None or mesh == ALONE:
        if shard or zero:
            raise ValueError(f"{'shard' if shard else f'zero={zero}'} needs a mesh: mesh=ranks.join()")
        if mesh is None and (count := _processes()) > 1:
            raise ValueError(
                f"torch.distributed has {count} processes here, and without a mesh each would train a model of its "
                'own. Pass mesh=ranks.join() to train one together, or mesh="alone" to train one on each'
            )
        return None, ""
    if not hasattr(mesh, "mesh_dim_names") or not hasattr(mesh, "get_group"):
        raise ValueError(
            f"mesh is a {type(mesh).__name__}; it is torch's DeviceMesh, as ranks.join() and init_device_mesh give it"
        )
    device = program.params.device.type
    if mesh.device_type != device:
        raise ValueError(f"the parameters are on {device}, and the mesh is one of {mesh.device_type} devices")
    axes: Sequence[Any] = mesh.mesh_dim_names or range(mesh.ndim)
    sizes = dict(zip(axes, mesh.shape, strict=True))
    name, axis = _planned(shard, sizes, program)
    if others := [f"{other} = {size}" for other, size in sizes.items() if other != axis and size > 1]:
        raise ValueError(
            f"the mesh has {listing(others)} beside {axis}: only the batch is sharded as yet, over one axis; make the "
            "others 1"
        )
    return (axis if sizes[axis] > 1 else None), name


def _planned(shard: Mapping[str, str] | None, sizes: Mapping[Any, int], program: Program) -> tuple[str, Any]:
    """The dimension that is sharded and the axis of the mesh that it is sharded over."""
    leading = _leading(program)
    if shard is None:
        wide = [axis for axis, size in sizes.items() if size > 1] or list(sizes)
        if not leading:
            raise SignatureError(
                f"`{program.signature.name}` has no dimension that leads its first input and is no parameter's, which "
                'the ranks could share: name one, shard={"batch": "dp"}'
            )
        return leading, wide[0]
    free = [n for e in program.inputs for dim in e.spec.dims for n in dim.names if n not in program.params.dims]
    for name, axis in shard.items():
        if name in program.params.dims:
            raise SignatureError(
                f"shard: `{name}` is a dimension of the parameters, and only the batch is sharded as yet; zero=3 keeps "
                "parameters in parts"
            )
        if name not in free:
            known = list(dict.fromkeys(free))
            raise SignatureError(
                f"shard: `{name}` is no dimension of `{program.signature.name}`'s inputs{nearest(name, known)}"
            )
        if axis not in sizes:
            raise ValueError(f"shard: {axis!r} is no axis of the mesh ({', '.join(map(str, sizes))})")
    if len(shard) != 1:
        raise SignatureError(f"shard names {listing(list(shard))}: one dimension is sharded as yet, that of the batch")
    return next(iter(shard.items()))


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
    program.hold_to_one_count()


def _compare(exchange: "Exchange", program: Program, options: TrainerOptions, name: str, zero: int) -> None:
    """Refuse ranks that made different trainers."""
    entries = zip(program.params.names, program.tensors, strict=True)
    shapes = [f"{path} {tuple(t.shape)} {t.dtype} {t.requires_grad}" for path, t in entries]
    operations = " ".join(str(node.target) for node in program.proof.graph.graph.nodes)
    graph = hashlib.sha256(operations.encode()).hexdigest()
    mine = {
        "the loss": str(program.signature), "parameters": "; ".join(shapes), "the proved graph": graph,
        "max_norm": options.max_norm, "nonfinite": options.nonfinite, "accumulate": options.accumulate,
        "shard": name, "zero": zero,
    }  # fmt: skip
    told = exchange.tell(mine)
    for rank, theirs in enumerate(told):
        differing = [what for what in mine if theirs[what] != told[0][what]]
        if differing:
            values = told[0][differing[0]], theirs[differing[0]]
            long = differing[0] in ("parameters", "the proved graph")
            shown = "" if long else f": {values[0]!r} on rank 0, {values[1]!r} on rank {rank}"
            raise ValueError(f"ranks 0 and {rank} made different trainers: {listing(differing)} differ{shown}")


class Sharing:
    """What a trainer says of the ranks that it trains on."""

    @property
    def _program(self) -> Program:
        raise NotImplementedError

    @property
    def ranks(self) -> "Exchange | None":
        """The ranks that train together; None where this process trains alone."""
        return None if self._program.together is None else self._program.together.exchange

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
        return None if together is None else Rows(together.exchange.rank, together.exchange.size, together.name)

    @property
    def zero(self) -> int:
        """0 where parameters, gradients and moments are whole on each rank, 3 where a rank has parts of them."""
        return 3 if self._program.together is not None and self._program.together.sharded else 0
