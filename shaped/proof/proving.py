"""The way in: prove a function, or a setting that a trainer made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from shaped.errors import ShapedError
from shaped.proof.proof import Proof
from shaped.proof.setting import Setting
from shaped.shapes import read_signature


def prove(fn: Callable[..., Any], assume: Sequence[str] = (), static: Sequence[str] | Mapping[str, int] = ()) -> Proof:
    """Prove that an annotated function is well-shaped for all sizes of its dimension names.

    If it returns one scalar and takes a ParamList, it is a loss: its gradients and an AdamW update are part of the
    proof.

    Args:
        fn: Any function whose tensors are annotated (`Float[Tensor, "batch pixels"]`) or gathered in a ParamList.
        assume: Relations between sizes to take as given: `("dim % heads == 0", "seq <= context")`. With any, a
            condition that does not follow from them is an error.
        static: Names to prove at one size each, because the program loops or branches over them; a mapping gives the
            sizes, and the statement says which were used.

    Returns:
        The Proof; print it.

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
        return prove_setting(Setting(signature, dtypes, mask, torch.device("cpu")), assume, static)
    except ShapedError as error:
        raise error.with_traceback(None) from None  # the message shows the user's line; our frames would hide it


def prove_setting(
    setting: Setting, assume: Sequence[str] = (), static: Sequence[str] | Mapping[str, int] = ()
) -> Proof:
    """Prove a function at given dtypes, device and gradient mask. The rest is as for `prove`."""
    # These bring sympy and the tracer: a second that `import shaped` need not take.
    from shaped.proof.isolation import proving
    from shaped.proof.keeping import keeping
    from shaped.proof.ranks import prove_ranks
    from shaped.proof.search import Search

    with proving(), keeping(setting.signature.function, setting.call, setting.strategy):
        if setting.signature.axes:
            return prove_ranks(setting, assume, static)
        return Search(setting, assume, static).proof()
