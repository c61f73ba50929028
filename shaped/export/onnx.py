"""ONNX: the exported program with our dimension names as its dynamic axes, run in onnxruntime before it is written."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from shaped import files
from shaped.arguments import OWN, checked
from shaped.errors import ExportError
from shaped.export.comparing import Compared, hold
from shaped.export.program import exported, fits, line_of
from shaped.export.subject import Forward, Owner, Subject, subject

_INSTALL = 'pip install "shaped-trainer[onnx]"'
_LARGEST = 2**31 - 1  # bytes of one protobuf message


@dataclass(frozen=True)
class OnnxFile:
    """What was written, and how it was held against the function.

    Attributes:
        path: The file.
        inputs, outputs: Each name with its dtype and axes: `float32 [batch, 64]`.
        conditions: What the program needs of sizes; they stand in the file's metadata too, under `shaped.conditions`.
        sizes: Where onnxruntime and the function were compared; empty with `check=False`.
        difference: The largest difference found, relative to a result's largest entry.
        opset: The version of ONNX's operators.
    """

    path: Path
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    conditions: tuple[str, ...]
    sizes: tuple[Mapping[str, int], ...]
    difference: float
    opset: int

    def __str__(self) -> str:
        lines = [f"{self.path.name}, opset {self.opset}"]
        lines += [f"  input       {name} : {axes}" for name, axes in self.inputs.items()]
        lines += [f"  output      {name} : {axes}" for name, axes in self.outputs.items()]
        lines += [f"  conditions  {', '.join(self.conditions) or 'none'}"]
        if self.sizes:
            at = "; ".join(", ".join(f"{n} = {s}" for n, s in sizes.items()) or "its one size" for sizes in self.sizes)
            lines += [f"  compared    at {at}"]
        return "\n".join(lines)


@checked
def to_onnx(
    forward: Annotated[Forward | nn.Module, OWN],
    params: Annotated[Owner, OWN],
    path: str | Path,
    *,
    assume: Annotated[Sequence[str], OWN] = (),
    static: Annotated[Sequence[str] | Mapping[str, int], OWN] = (),
    opset: int | None = None,
    check: bool = True,
) -> OnnxFile:
    """Write a trained function as an ONNX file whose dynamic axes have your dimension names.

    It is exported as `export_program` does, translated by torch.onnx, and run in onnxruntime at several sizes beside
    the function. Only then is it written, whole or not at all.

    Args:
        forward, params, assume, static: As for `export_program`.
        path: The file; one that is there is replaced.
        opset: The version of ONNX's operators; torch's own choice if None.
        check: False leaves onnxruntime out.

    Returns:
        What was written: print it.

    Raises:
        SignatureError, ProofError, Unprovable, ShapeError: As for a trainer.
        ExportError: A package is missing, ONNX has no such operation (the message names it and its line), onnxruntime
            gives other numbers, or the file cannot be written. Nothing was written.
    """
    found = subject(forward, params, assume, static)
    program, held = exported(found)
    model = _translate(found, program, opset)
    _name_axes(found, program, model)
    content = _bytes(found, model)
    held = _held_in_onnxruntime(found, content, held) if check else Compared((), 0.0)
    try:
        files.replace(Path(path), content)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from None
    return OnnxFile(
        Path(path),
        {value.name: f"{_dtype(value)} {_axes(value)}" for value in model.graph.inputs},
        {value.name: f"{_dtype(value)} {_axes(value)}" for value in model.graph.outputs},
        found.proof.conditions,
        held.sizes,
        held.difference,
        model.opset_imports[""],
    )


def _dtype(value: Any) -> str:
    """`float32`, as torch says it and ONNX does not."""
    name = str(value.dtype.name).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _axes(value: Any) -> str:
    return "[" + ", ".join(str(getattr(size, "value", size)) for size in value.shape) + "]"


def _translate(found: Subject, program: ExportedProgram, opset: int | None) -> Any:
    """torch.onnx's model of the program."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ExportError(f"ONNX files are made with onnxscript: {_INSTALL}") from None
    try:
        with _quiet(), torch.no_grad():
            made = torch.onnx.export(
                program,
                input_names=list(found.inputs),
                output_names=list(found.outputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"torch.onnx refuses `{found.signature.name}`: {_reason(error, found)}") from None
    assert made is not None
    return made.model


def _reason(error: BaseException, found: Subject) -> str:
    """The operation that ONNX lacks and its line, or the last cause's own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    operation = re.search(r"OpOverload\(op='([\w.]+)'", text)
    if operation is None:
        return text.splitlines()[0]
    return f"it has no operation for {operation[1]}{line_of(found, operation[1])}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.onnx says of packages that are not installed and of its own deprecations."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _name_axes(found: Subject, program: ExportedProgram, model: Any) -> None:
    """Our names instead of torch's symbols, the statement as metadata, and no paths of this machine."""
    import onnx_ir

    entered = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in entered]
    symbols: dict[str, str] = {}
    for node, entry in zip(nodes, found.entries, strict=True):
        for size, dim in zip(node.meta["val"].shape, entry.spec.dims, strict=True):
            if not isinstance(size, int):
                symbols.setdefault(str(size), str(dim))

    def renamed(text: str | None) -> str | None:
        return text and (symbols.get(text) or re.sub(r"\bs\d+\b", lambda m: symbols.get(m[0], m[0]), text))

    for value in _values(model):
        if value.shape is not None and any(isinstance(size, onnx_ir.SymbolicDim) for size in value.shape):
            sizes = [size if isinstance(size, int) else renamed(size.value) for size in value.shape]
            value.shape = onnx_ir.Shape(sizes)
    for value, entry in zip(model.graph.inputs, found.entries, strict=True):
        value.shape = onnx_ir.Shape(_named(found, entry.spec.dims))
    for value, spec in zip(model.graph.outputs, found.signature.result, strict=True):
        value.shape = onnx_ir.Shape(_named(found, spec.dims))
    for part in (model.graph, *model.graph.all_nodes(), *_values(model)):
        for key in [key for key in part.metadata_props if key.startswith(("pkg.torch", "namespace"))]:
            del part.metadata_props[key]
    model.producer_name, model.graph.name = "shaped", found.signature.name
    model.metadata_props["shaped.signature"] = str(found.signature)
    model.metadata_props["shaped.conditions"] = ", ".join(found.proof.conditions) or "none"


def _named(found: Subject, dims: Sequence[Any]) -> list[int | str]:
    """Axes with numbers where they are known."""
    return [dim.evaluate(found.known) if set(dim.names) <= set(found.known) else str(dim) for dim in dims]


def _values(model: Any) -> Iterator[Any]:
    """Every value of a graph that has a shape."""
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs


def _bytes(found: Subject, model: Any) -> bytes:
    """The file's content; ExportError where one file cannot hold it."""
    import onnx_ir

    size = sum(tensor.numel() * tensor.element_size() for tensor in found.tensors)
    if size < _LARGEST - 2**20:
        try:
            return bytes(onnx_ir.to_proto(model).SerializeToString())
        except ValueError:  # protobuf's own limit
            pass
    raise ExportError(
        f"`{found.signature.name}` holds {size / 2**30:.1f} GiB, and an ONNX file at most 2: export_program gives the "
        "program, and torch.onnx.export writes its tensors beside it"
    )


def _held_in_onnxruntime(found: Subject, content: bytes, held: Compared) -> Compared:
    """Run the file's content beside the function."""
    try:
        import onnxruntime
    except ImportError:
        raise ExportError(
            f"what is exported is run in onnxruntime first: {_INSTALL}; check=False leaves it out"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"onnxruntime cannot run `{found.signature.name}`: {reason}; check=False writes it for another runtime"
        ) from None
    kept = {value.name for value in session.get_inputs()}

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {n: t.cpu().numpy() for n, t in zip(found.inputs, inputs, strict=True) if n in kept}
        return [torch.from_numpy(array.copy()) for array in session.run(None, feed)]

    if not held.sizes:
        return held
    return hold(found, held.sizes[0] | dict(found.known), fits(found), run, "the ONNX program in onnxruntime")
