"""The way in: prove a function, or a setting that a trainer made."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch

from shaped.arguments import OWN, checked
from shaped.errors import ProofError, ShapedError, SignatureError, first_line, listing
from shaped.garbage import young_collected
from shaped.proof.proof import Proof
from shaped.proof.setting import Setting
from shaped.shapes import read_signature

_NAME = re.compile(r"[^\W\d]\w*")


@checked
def prove(
    fn: Callable[..., Any],
    assume: Annotated[Sequence[str], OWN] = (),
    static: Annotated[Sequence[str] | Mapping[str, int], OWN] = (),
) -> Proof:
    """Prove that an annotated function is well-shaped for all sizes of its dimension names.

    If it returns one scalar and takes a ParamList, it is a loss: its gradients are part of the proof. An update needs
    none: a rule keeps the shape of each parameter, whatever the rule is, and a step refuses one that does not.

    Args:
        fn: Any function whose tensors are annotated (`Float[Tensor, "batch pixels"]`) or gathered in a ParamList.
        assume: Relations between sizes to take as given: `("dim % heads == 0", "seq <= context")`. With any, a
            condition that does not follow from them is an error.
        static: Names to prove at one size each, because the program loops or branches over them; a mapping gives the
            sizes, and the statement says which were used.

    Returns:
        The Proof; print it. Where inputs are optional it is that of all of them, and `without` that of none.

    Raises:
        ProofError: Refuted: some sizes break it. Shows the line, the goal, the hypotheses and such sizes.
        Unprovable: It depends on data, or on a loop over a size. Says what to declare.
        SignatureError: An annotation or an assumption cannot be read.
    """
    signature = read_signature(fn)
    structured = [argument.kind == "parameters" for argument in signature.arguments for _ in argument.entries]
    dtypes = tuple(entry.spec.default_dtype() for entry in signature.entries)
    mask = tuple(s and dtype.is_floating_point for s, dtype in zip(structured, dtypes, strict=True))
    try:
        setting = Setting(signature, dtypes, mask, torch.device("cpu"))
        proof = prove_setting(setting, assume, static)
        absent = tuple(argument.name for argument in signature.arguments if argument.optional)
        return replace(proof, without=_without(setting, absent, assume, static)) if absent else proof
    except ShapedError as error:
        raise error.with_traceback(None) from None  # the message shows the user's line; our frames would hide it


def _without(
    setting: Setting, absent: Sequence[str], assume: Sequence[str], static: Sequence[str] | Mapping[str, int]
) -> Proof:
    """The proof of calls that leave out all optional inputs."""
    left = [a.name not in absent for a in setting.signature.arguments for _ in a.entries]
    dtypes = tuple(dtype for dtype, stays in zip(setting.dtypes, left, strict=True) if stays)
    mask = tuple(wants for wants, stays in zip(setting.mask, left, strict=True) if stays)
    other = replace(setting, signature=setting.signature.without(absent), dtypes=dtypes, mask=mask)
    return prove_absent(other, absent, assume, static)


def prove_absent(
    setting: Setting, absent: Sequence[str], assume: Sequence[str], static: Sequence[str] | Mapping[str, int]
) -> Proof:
    """Prove a setting whose signature leaves out optional inputs, with what is assumed of the dimensions that it has.

    Raises:
        SignatureError: The function does not run without them. The rest is as for `prove`.
    """
    names = {name for entry in setting.signature.entries for dim in entry.spec.dims for name in dim.names}
    assume = [text for text in assume if {*_NAME.findall(text)} <= names]
    if isinstance(static, Mapping):
        static = {name: size for name, size in static.items() if name in names}
    else:
        static = [name for name in static if name in names]
    try:
        return prove_setting(setting, assume, static)
    except ProofError as error:
        raise ProofError(f"{error.title[:-1]} without {listing(absent)}.", error.source, error.goal) from None
    except ShapedError:
        raise
    except Exception as error:  # the user's own, such as None subscripted
        raise SignatureError(
            f"`{setting.signature.name}` does not run without {listing(absent)}, which its signature lets a call leave "
            f"out: {type(error).__name__}: {first_line(error)}. Ask `if {absent[0]} is not None`, or leave `| None` out"
        ) from None


def prove_setting(
    setting: Setting, assume: Sequence[str] = (), static: Sequence[str] | Mapping[str, int] = ()
) -> Proof:
    """Prove a function at given dtypes, device and gradient mask. The rest is as for `prove`."""
    # These bring sympy and the tracer: a second that `import shaped` need not take.
    from shaped.proof.demands import demanding
    from shaped.proof.isolation import heard_once, proving
    from shaped.proof.keeping import keeping
    from shaped.proof.limits import limited
    from shaped.proof.ranks import prove_ranks
    from shaped.proof.search import ProofSearch

    roots = setting.signature.function, setting.call, setting.strategy
    within, name = young_collected(), setting.signature.name
    with limited(name), within, proving(), keeping(*roots) as kept, heard_once(kept.printing), demanding() as demands:
        ranked = bool(setting.signature.axes)
        proof = prove_ranks(setting, assume, static) if ranked else ProofSearch(setting, assume, static).proof()
        return replace(proof, demands=tuple(map(str, demands))) if demands else proof
