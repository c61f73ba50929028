"""Muon for the weights that a proof knows as matrices, and AdamW for everything else, in one step.

The proved graph says which axes of a parameter are contracted with activations (proof/roles.py); from that follow how
it is read as matrices, its scale, and whose rule it takes. A parameter whose role is ambiguous is refused, with what to
write.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal, Protocol, Unpack, runtime_checkable

from torch import Tensor

from shaped.arguments import OWN, checked
from shaped.errors import columns, nearest
from shaped.params import ParamList
from shaped.roles import Role, Roles
from shaped_kernels.adam import AdamRule
from shaped_kernels.matrices import Axes, read_axes
from shaped_kernels.muon import MuonRule, scale_of
from shaped_kernels.polar import MUON
from shaped_kernels.rule import Rule

from .base import FusedOptimizer
from .noticed import by_groups
from .options import Fusing
from .updates import Group

ADAMW = "adamw"  # what a role is overridden with to leave a parameter to AdamW


class _Proof(Protocol):
    @property
    def roles(self) -> Roles: ...


@runtime_checkable
class Proved(Protocol):
    """What knows a proof and its parameters: a ScalarTrainer."""

    @property
    def proof(self) -> _Proof: ...
    @property
    def params(self) -> ParamList: ...


class Muon(FusedOptimizer):
    """Muon for matrices, by the roles of a proof; AdamW for embeddings, unembeddings, biases and scales.

        b <- b + (1 - momentum)*(g - b)
        d <- g + momentum*(b - g)                if nesterov, otherwise d = b
        O <- orthogonal factor of d              as matrices [batch, fan-out, fan-in]
        p <- p - lr*weight_decay*p - lr*scale*O

    Made with a trainer, `ScalarTrainer(loss, params, optimizer=Muon)`, or from one, `Muon(trainer)`. Layout does not
    matter: `x @ w`, `x @ w.T`, convolutions, stacked layers and fused maps take the step that the same maps take when
    each is stored by itself as `[out, in]`. `print(optimizer.table)` shows what was read.

    Args:
        trainer: Whose parameters they are, and whose proof says what these do.
        lr: Step size; with "match_rms_adamw" the one that suits AdamW.
        weight_decay: Share of `p` removed per step and per unit of `lr`.
        momentum: Decay per step of the momentum; it remembers about 1/(1 - momentum) steps.
        nesterov: Look ahead along the momentum.
        roles: What the axes of some parameters are, by name or by a pattern such as "blocks.*.w": "in out",
            "batch in out", "in (3 out)"; or "adamw".
        others: Hyper-parameters of AdamW for the rest: lr and weight_decay where they differ from the above, betas,
            eps, amsgrad.
        ns_coefficients, ns_steps, eps: Of Newton-Schulz, which makes matrices orthogonal; see shaped_kernels/polar.py.
        adjust_lr_fn: The scale of matrices: "match_rms_adamw", 0.2*sqrt(max(fan-out, fan-in)); or torch's default
            "original", sqrt(max(1, fan-out/fan-in)).
        ns_dtype: What Newton-Schulz computes in: None is bfloat16 on a GPU and float32 on a CPU; "bfloat16" is torch's,
            faster for wide matrices on a CPU that multiplies in it (AMX).
        fusing: What torch's class does not have; see `Options`.

    Raises:
        ValueError: A role is ambiguous, or an override does not fit; every one is named, with what to write. Or a
            hyper-parameter is out of range.

    Source: torch.optim.Muon, for weights `[out, in]`; its default scale is "original", and it takes matrices only.
    """

    rule = MuonRule
    by_proof = True
    _torchs_keys: ClassVar[Mapping[str, Any]] = {"differentiable": False}

    @checked
    def __init__(
        self,
        trainer: Annotated[Proved, OWN],
        lr: float | Tensor = 1e-3,
        weight_decay: float | Tensor = 0.1,
        momentum: float | Tensor = 0.95,
        nesterov: bool = True,
        *,
        roles: Mapping[str, str] | None = None,
        others: Mapping[str, Any] | None = None,
        ns_coefficients: Sequence[float] = MUON,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        ns_dtype: Literal["float32", "bfloat16"] | None = None,
        **fusing: Unpack[Fusing],
    ) -> None:
        adjust = adjust_lr_fn or "original"
        known, params = _proved(trainer)
        self._matrices = _matrices(known, dict(roles or {}), adjust)
        self._roles, self._adjust = known, adjust
        own = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "eps": eps,
            "ns_steps": ns_steps, "ns_coefficients": tuple(ns_coefficients), "adjust_lr_fn": adjust,
            **({} if ns_dtype is None else {"ns_dtype": ns_dtype}),
        }  # fmt: skip
        rest = {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}
        unknown = sorted(set(others or {}) - set(rest))
        if unknown:
            raise ValueError(f"others: AdamW has no {', '.join(unknown)}; it has {', '.join(rest)}")
        rest = {**rest, **(others or {}), "decoupled_weight_decay": True}
        named = [(n, p) for n, p in zip(params.names, params, strict=True) if p.requires_grad]
        groups: dict[str, dict[str, Any]] = {}
        for name, p in named:
            axes = self._matrices.get(name)
            key = str(axes) if axes is not None else ADAMW
            shared = {"axes": key, **own} if axes is not None else {"axes": ADAMW, **rest}
            groups.setdefault(key, {**shared, "params": []})["params"].append((name, p))
        super().__init__(list(groups.values()), **own, **fusing)

    @by_groups
    def rule_of(self, group: Group) -> Rule:
        """Muon for a group of matrices, AdamW for that of the rest."""
        if group.get("axes") == ADAMW:
            return AdamRule.of(group, self.options.store, self.options.moments == "8bit")
        return super().rule_of(group)

    def __getstate__(self) -> dict[str, Any]:
        mine = {"_matrices": self._matrices, "_roles": self._roles, "_adjust": self._adjust}
        return {**super().__getstate__(), **mine}

    @property
    def roles(self) -> Roles:
        """What the proof says of each parameter."""
        return self._roles

    @property
    def table(self) -> str:
        """Each parameter: how it is read, its scale and its rule, and why."""
        rows = [("parameter", "shape", "axes", "matrices", "scale", "rule", "role")]
        held = {name for group in self.param_groups for name in group.get("param_names", ())}
        for role in self._roles:
            axes = self._matrices.get(role.name)
            shape = str(list(role.shape))
            if axes is None or (held and role.name not in held):
                rule = "AdamW" if role.name in held or not held else "-"  # another optimizer's, or frozen
                rows.append((role.name, shape, "-", "-", "-", rule, f"{role.kind}: {role.why}"))
                continue
            sizes = " ".join("x".join(map(str, block.size if block.size[0] > 1 else block.size[1:]))
                             for block in axes.blocks)  # fmt: skip
            scales = [scale_of(block.size[2], block.size[1], self._adjust) for block in axes.blocks]
            shown = " ".join(dict.fromkeys(f"{scale:.3g}" for scale in scales))
            rows.append((role.name, shape, str(axes), sizes, shown, "Muon", role.kind))
        return "\n".join(columns(rows, left=len(rows[0])))


def _proved(trainer: Proved) -> tuple[Roles, ParamList]:
    if not hasattr(trainer, "proof") or not isinstance(getattr(trainer, "params", None), ParamList):
        raise ValueError(
            f"Muon takes a ScalarTrainer, whose proof says what each parameter does, got {type(trainer).__name__}: "
            "write ScalarTrainer(loss, params, optimizer=Muon), or Muon(trainer)"
        )
    return trainer.proof.roles, trainer.params


def _matrices(roles: Roles, said: Mapping[str, str], adjust: str) -> dict[str, Axes]:
    """The parameters that are stepped as matrices, and their axes."""
    names = [role.name for role in roles]
    unknown = [pattern for pattern in said if not any(fnmatchcase(name, pattern) for name in names)]
    if unknown:
        raise ValueError(f"roles: there is no parameter `{unknown[0]}`{nearest(unknown[0], names)}")
    found: dict[str, Axes] = {}
    wrong: list[Role] = []
    for role in roles:
        given = next((text for pattern, text in said.items() if fnmatchcase(role.name, pattern)), None)
        if given is not None:
            if given != ADAMW:
                found[role.name] = read_axes(given, role.shape, f"`{role.name}`")
        elif role.kind == "ambiguous" and (role.axes is None or adjust == "original"):
            wrong.append(role)
        elif role.kind in ("matrix", "ambiguous") and role.axes is not None:
            found[role.name] = role.axes
    if wrong:
        lines = [f"  {role.name} {list(role.shape)}: {role.why}" for role in wrong]
        example = " ".join(["out", *["in"] * (len(wrong[0].shape) - 1)])
        raise ValueError(
            f"Muon cannot tell how {len(wrong)} of {len(roles)} parameters are read as matrices.\n"
            + "\n".join(lines)
            + f'\n  say what its axes are: Muon(trainer, roles={{"{wrong[0].name}": "{example}"}}); '
            f'or leave it to AdamW: roles={{"{wrong[0].name}": "{ADAMW}"}}'
        )
    return found
