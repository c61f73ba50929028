"""A trained program elsewhere: what torch.export and onnxruntime give is what the function gives, at every size."""

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ExportError, ParamList, ProofError, ScalarTrainer, SignatureError, StateError, Unprovable
from shaped.export import export_program, load_safetensors, save_safetensors, state_dict, to_onnx
from shaped.lora import inject, merge


class Line(ParamList):
    w: Float[Tensor, "inputs outputs"]


class Square(ParamList):
    w: Float[Tensor, "dim dim"]


class Model(ParamList):
    tokens: Float[Tensor, "vocab dim"]
    places: Float[Tensor, "context dim"]
    lines: list[Square]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2"]:
        pooled: Tensor = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.out(self.drop(pooled))  # type: ignore[no-any-return]


class Batch(NamedTuple):
    x: Float[Tensor, "batch inputs"]
    pairs: Float[Tensor, "2*n"]


def line(p: Line, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
    return x @ p.w


def logits(p: Model, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
    x = p.tokens[ids] + p.places[: ids.shape[1]]
    for part in p.lines:
        heads = (x @ part.w).unflatten(-1, (2, -1)).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).flatten(2)
    return x @ p.tokens.T


def two(p: Line, b: Batch) -> tuple[Float[Tensor, "batch outputs"], Float[Tensor, " n"]]:
    return b.x @ p.w, b.pairs.view(2, -1).sum(0)


def branches(p: Line, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
    return x @ p.w if x.shape[0] > 4 else x @ p.w * 2


def drops(p: Line, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
    return F.dropout(x, 0.5) @ p.w


def solves(p: Line, x: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return torch.linalg.solve(x + torch.eye(x.shape[0]), x) * p.w.sum()


def halves(p: Line, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
    return x.view(x.shape[0], 2, -1).sum((1, 2)) * p.w.sum()


def lines() -> Line:
    return Line.init(inputs=4, outputs=3, seed=0)


def model() -> Model:
    return Model.init(vocab=11, dim=8, context=16, seed=0)


# -- torch.export --------------------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_an_exported_program_gives_what_the_function_gives_at_every_size(batch: int) -> None:
    params = lines()
    program = export_program(line, params).module()
    x = torch.randn(batch, 4)

    assert torch.allclose(program(x), line(params, x))


def test_what_torch_asks_of_sizes_is_not_asserted_and_what_the_proof_needs_is() -> None:
    program = export_program(halves, lines()).module()

    assert program(torch.zeros(1, 2)).shape == (1,)
    with pytest.raises(RuntimeError, match="proved only where n % 2 == 0"):
        program(torch.zeros(1, 3))


def test_a_condition_that_bounds_a_size_is_its_range() -> None:
    program = export_program(logits, model())

    assert sorted(str(r) for r in program.range_constraints.values()) == ["VR[1, 16]", "VR[1, int_oo]"]


def test_parameters_keep_their_names() -> None:
    program = export_program(logits, model())

    assert list(program.state_dict) == ["tokens", "places", "lines.0.w", "lines.1.w"]


def test_a_module_is_exported_as_it_infers_and_stays_in_training() -> None:
    net = Net()
    exported = export_program(net.forward, net).module()
    x = torch.randn(2, 3, 4, 5)

    assert net.training
    assert net.norm.training
    assert torch.allclose(exported(x), net.eval()(x), atol=1e-6)


def test_a_branch_over_a_size_is_refused_with_the_assumption_that_leaves_it_out() -> None:
    with pytest.raises(ExportError) as refused:
        export_program(branches, lines())

    assert str(refused.value).endswith("the function takes another branch there: assume=('batch > 4',) leaves it out")
    assert export_program(branches, lines(), assume=("batch > 4",)).module()(torch.zeros(5, 4)).shape == (5, 3)


def test_a_function_that_draws_is_refused_at_its_line() -> None:
    with pytest.raises(ExportError, match=r"draws at random \(dropout at test_export.py:\d+\)"):
        export_program(drops, lines())


def test_a_loop_over_a_size_is_exported_at_one_size() -> None:
    def summed(p: Line, x: Float[Tensor, "seq batch inputs"]) -> Float[Tensor, "batch outputs"]:
        return sum((x[t] @ p.w for t in range(1, x.shape[0])), x[0] @ p.w)

    with pytest.raises(Unprovable):
        export_program(summed, lines())
    with pytest.raises(ExportError, match="needs a size"):
        export_program(summed, lines(), static=("seq",))
    program = export_program(summed, lines(), static={"seq": 3}).module()

    assert program(torch.zeros(3, 1, 4)).shape == (1, 3)


def test_what_is_not_a_program_is_refused_before_anything_is_traced() -> None:
    def nothing(p: Line) -> Float[Tensor, "inputs outputs"]:
        return p.w

    def over(net: Net, x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 2"]:
        return net(x)  # type: ignore[no-any-return]

    def wrong(p: Line, x: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs"]:
        return x @ p.w

    with pytest.raises(ExportError, match="takes no input"):
        export_program(nothing, lines())
    with pytest.raises(SignatureError, match="takes a Net as `net`, and params is a Line"):
        export_program(over, lines())
    with pytest.raises(SignatureError, match="which is no module"):
        export_program(line, Net())
    with pytest.raises(SignatureError, match="pass a trainer"):
        export_program(line, "line")  # type: ignore[arg-type]
    with pytest.raises(ProofError, match="goal     outputs = inputs"):
        export_program(wrong, lines())


# -- ONNX ----------------------------------------------------------------------------------------------------------


def test_an_onnx_file_has_our_names_and_gives_our_numbers(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    params, path = model(), tmp_path / "model.onnx"
    made = to_onnx(logits, params, path)
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    ids = torch.randint(0, 11, (3, 9))

    assert session.get_inputs()[0].shape == ["batch", "seq"]
    assert session.get_outputs()[0].shape == ["batch", "seq", 11]
    assert session.get_modelmeta().custom_metadata_map["shaped.conditions"] == ", ".join(made.conditions)
    assert torch.allclose(torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0]), logits(params, ids), atol=1e-5)
    assert {"batch": 1, "seq": 1} in made.sizes
    assert str(tmp_path).encode() not in path.read_bytes()
    assert __file__.encode() not in path.read_bytes()


@pytest.mark.slow
def test_containers_and_expressions_are_inputs_of_an_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = to_onnx(two, lines(), tmp_path / "two.onnx")

    assert made.inputs == {"b_x": "float32 [batch, 4]", "b_pairs": "float32 [2*n]"}
    assert made.outputs == {"result_0": "float32 [batch, 3]", "result_1": "float32 [n]"}


def test_what_onnx_lacks_is_named_with_its_line_and_nothing_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match=r"no operation for aten._linalg_solve_ex at test_export.py:\d+"):
        to_onnx(solves, lines(), tmp_path / "solves.onnx")

    assert list(tmp_path.iterdir()) == []


# -- plain tensors -------------------------------------------------------------------------------------------------


def test_a_state_dict_is_a_copy_under_the_parameters_names() -> None:
    params = model()
    state = state_dict(params)
    state["tokens"].zero_()

    assert list(state) == list(params.names)
    assert params.tokens.abs().sum() > 0
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.smoke
def test_safetensors_are_read_by_anybody_and_read_back_whole_or_not_at_all(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    params, other, path = lines(), Line.init(inputs=4, outputs=3, seed=1), tmp_path / "line.safetensors"
    save_safetensors(params, path, {"made": "here"})
    load_safetensors(other, path)

    assert torch.equal(load_file(path)["w"], params.w)
    assert torch.equal(other.w, params.w)
    wide = Line.init(inputs=4, outputs=5, seed=1)
    before = wide.w.clone()
    with pytest.raises(StateError, match=r"w: float32 \(4, 3\) there, float32 \(4, 5\) here"):
        load_safetensors(wide, path)
    assert torch.equal(wide.w, before)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StateError, match="cannot be read"):
        load_safetensors(other, path)


def test_what_is_read_into_a_merged_module_takes_the_place_of_the_sum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x, path = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(5, 3), tmp_path / "a.safetensors"
    inject(module, ["0"], rank=2)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    save_safetensors(module, path)
    merge(other)
    load_safetensors(other, path)

    torch.testing.assert_close(other(x), module(x))


def test_a_module_that_was_trained_here_is_an_ordinary_module() -> None:
    def loss(net: Net, x: Float[Tensor, "batch 3 4 4"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return F.cross_entropy(net(x), y)

    net = Net()
    kinds = [type(parameter) for parameter in net.parameters()]
    trainer = ScalarTrainer(loss, net)
    x, y = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 1, 0])
    trainer.adamw_step(x, y, lr=1e-2)
    copy = Net()
    copy.load_state_dict(net.state_dict())

    assert torch.equal(copy.eval()(x), net.eval()(x))
    F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
    assert state_dict(trainer).keys() == net.state_dict().keys()
    assert [type(parameter) for parameter in net.parameters()] == kinds
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net._forward_hooks == {}
