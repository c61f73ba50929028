"""Deliberate mistakes, and the whole of what a user reads."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shaped import ParamList, ProofError, ScalarTrainer, Unprovable, prove
from tests.models import MLP

ROOT = Path(__file__).resolve().parents[2]


def message(function: Callable[..., object]) -> str:
    """The error with line numbers counted from the function's first line."""
    with pytest.raises(ProofError) as caught:
        prove(function)
    start = function.__code__.co_firstlineno
    first = MLP.layout().entries[0].origin
    assert first is not None
    text = str(caught.value)
    for line in range(start, start + 8):
        text = text.replace(f"test_refusal.py:{line}", f"model.py:{line - start:02}")
    for line in range(first[1], first[1] + 4):
        text = text.replace(f"models.py:{line}", f"params.py:{line - first[1]:02}")
    return text


def transposed(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.relu(x @ p.w1 + p.b1)
    return F.cross_entropy(h @ p.w2.T + p.b2, y)


def test_a_weight_used_transposed():
    with pytest.raises(ProofError) as caught:
        prove(transposed)
    line = transposed.__code__.co_firstlineno
    declared = MLP.layout().entries[2].origin
    assert declared is not None
    lead = f"  test_refusal.py:{line + 2}   "

    assert str(caught.value) == (
        "`transposed` is not well-shaped.\n"
        f"{lead}return F.cross_entropy(h @ p.w2.T + p.b2, y)\n"
        f"{' ' * len(lead)}                       ~~^~~~~~~~\n"
        "  matmul   h : [batch, hidden]   @   p.w2.T : [classes, hidden]\n"
        "  goal     hidden = classes\n"
        f"  context  w2 : [hidden, classes]     declared at models.py:{declared[1]}\n"
        f"           h  : [batch, hidden]       from test_refusal.py:{line + 1}\n"
        "  hint     p.w2 has shape [hidden, classes]; did you mean h @ p.w2 ?\n"
        "  refuted  batch = 2, pixels = 3, hidden = 5, classes = 7"
    )


def wrong_bias(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.relu(x @ p.w1 + p.b2)
    return F.cross_entropy(h @ p.w2 + p.b2, y)


def test_another_parameter_in_place_of_the_right_one():
    lines = message(wrong_bias).splitlines()

    assert lines[3:] == [
        "  add      x @ p.w1 : [batch, hidden]   +   p.b2 : [classes]",
        "  goal     hidden = classes",
        "  context  w1 : [pixels, hidden]     declared at params.py:00",
        "           b2 : [classes]            declared at params.py:03",
        "           x  : [batch, pixels]      declared at model.py:00",
        "  hint     p.b1 has shape [hidden]; did you mean x @ p.w1 + p.b1 ?",
        "  refuted  batch = 2, pixels = 3, hidden = 5, classes = 7",
    ]


def not_a_scalar(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.relu(x @ p.w1 + p.b1)
    return F.cross_entropy(h @ p.w2 + p.b2, y, reduction="none")


def test_a_loss_that_is_not_a_scalar():
    assert message(not_a_scalar) == (
        "`not_a_scalar` does not return what it declares.\n"
        '  model.py:02   return F.cross_entropy(h @ p.w2 + p.b2, y, reduction="none")\n'
        "  result   [batch], declared a scalar\n"
        "  goal     [batch] = []\n"
        "  hint     .mean() or .sum() makes it one\n"
        "  refuted  batch = 2, pixels = 3, hidden = 5, classes = 7"
    )


def broadcasts(p: MLP, x: Float[Tensor, "batch pixels"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.relu(x @ p.w1 + p.b1)
    return F.mse_loss(h.sum(1, keepdim=True), y)


def test_a_loss_that_would_broadcast_in_silence():
    lines = message(broadcasts).splitlines()

    assert lines[3:6] == [
        "  mse_loss  h.sum(1, keepdim=True) : [batch, 1], y : [batch]",
        "  goal      [batch, 1] = [batch]",
        "  silent    mse_loss would broadcast [batch, 1] against [batch]",
    ]
    assert "did you mean F.mse_loss(h.sum(1, keepdim=True).squeeze(-1), y) ?" in lines[-2]
    assert lines[-1] == "  refuted   batch = 2, pixels = 3, hidden = 5, classes = 7"


def labels_of_another_axis(
    p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " hidden"]
) -> Float[Tensor, ""]:  # fmt: skip
    return F.cross_entropy(F.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2, y)


def test_labels_of_another_axis():
    assert "\n  goal           batch = hidden\n" in message(labels_of_another_axis)


def does_not_divide(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    h = (x @ p.w1).view(-1, x.shape[1])
    return h.mean()


def test_a_view_that_fits_no_general_size():
    assert "goal     batch*hidden % pixels == 0" in message(does_not_divide)


def never_divides(x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
    return x.view(x.shape[0], x.shape[1] + 1)


def test_a_view_of_another_number_of_elements():
    assert "goal     batch*n = batch*(n + 1)" in message(never_divides)


def summed_over_the_wrong_axis(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, " batch"]:
    return (x @ p.w1).sum(0)


def test_a_reduction_over_the_wrong_axis():
    assert "result   [hidden], declared [batch]" in message(summed_over_the_wrong_axis)


def linear_the_other_way(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return F.linear(x, p.w1, p.b1).mean()


def test_linear_with_a_matrix_the_other_way_round():
    text = message(linear_the_other_way)

    assert "goal     pixels = hidden" in text
    assert "did you mean F.linear(x, p.w1.T, p.b1) ?" in text


def stacked_wrong(x: Float[Tensor, "batch a"], y: Float[Tensor, "other a"]) -> Float[Tensor, "batch 2*a"]:
    return torch.cat([x, y], dim=1)


def test_concatenation_of_lists_that_do_not_fit():
    text = message(stacked_wrong)

    assert "cat      x : [batch, a], y : [other, a]" in text
    assert "goal     batch = other" in text


def test_a_hint_is_only_given_if_it_was_tried_and_went_through():
    def hopeless(x: Float[Tensor, "a b"], y: Float[Tensor, "c d"]) -> Float[Tensor, "a d"]:
        return x @ y

    assert "hint" not in message(hopeless)


def test_the_example_sizes_really_fail():
    with pytest.raises(ProofError) as caught:
        prove(transposed)
    sizes = caught.value.goal.sizes
    params = MLP.init(pixels=sizes["pixels"], hidden=sizes["hidden"], classes=sizes["classes"])
    x = torch.zeros(sizes["batch"], sizes["pixels"])

    with pytest.raises(RuntimeError):
        transposed(params, x, torch.zeros(sizes["batch"], dtype=torch.int64))


def test_a_program_that_fails_shows_none_of_our_frames_above_the_message(tmp_path):
    script = tmp_path / "model.py"
    script.write_text(
        "from tests.models import MLP, mlp\n"
        "from tests.proof.test_refusal import transposed\n"
        "from shaped import ScalarTrainer\n"
        "ScalarTrainer(transposed, mlp())\n"
    )
    paths = f"{ROOT}:{ROOT / 'kernels'}"
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    frames = [line.split('"')[1] for line in run.stderr.splitlines() if line.startswith("  File ")]

    assert "shaped.ProofError: `transposed` is not well-shaped." in run.stderr
    assert [frame.rsplit("/", 1)[-1] for frame in frames] == ["model.py", "arguments.py", "trainer.py"]


def test_no_library_frame_and_no_internal_symbol_is_shown():
    for function in (transposed, wrong_bias, broadcasts, does_not_divide):
        text = message(function)

        assert "site-packages" not in text
        assert "torch/" not in text
        assert len(text.splitlines()) <= 14


def double_inputs(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return (x.double() @ p.w1).mean()


def test_dtypes_that_no_kernel_takes_are_refused():
    assert "goal     float64 = float32" in message(double_inputs)


def merged_out_of_order(x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
    batch, seq, dim = x.shape
    heads = x.view(batch, seq, 13, dim // 13)  # refused where 13 does not divide dim, which is for a condition to say
    return heads.transpose(1, 2).view(batch, seq, dim)


def test_a_refutation_is_at_sizes_that_get_to_its_line() -> None:
    with pytest.raises(ProofError) as caught:
        prove(merged_out_of_order)

    assert caught.value.source is not None
    assert "transpose" in caught.value.source.text
    assert caught.value.goal.sizes["dim"] % 13 == 0


def distinct(x: Int[Tensor, "n m"]) -> Int[Tensor, "n m"]:
    return x.unique(dim=0)


def test_a_length_that_data_decides_is_told_in_words():
    said = message(distinct)

    assert "result   [as many as data has, m], declared [n, m]\n" in said
    assert "goal     as many as data has = n\n" in said


def checkpointed(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return checkpoint(torch.relu, x @ p.w1, use_reentrant=True).mean()


def test_a_reentrant_checkpoint_is_refused_with_the_word_that_makes_it_run():
    with pytest.raises(Unprovable) as caught:
        prove(checkpointed)

    assert "`checkpointed` runs a reentrant checkpoint" in str(caught.value)
    assert "use_reentrant=False" in str(caught.value)


def likely(x: Float[Tensor, "n 4"]) -> Float[Tensor, ""]:
    # said, since the default is another one once torch.compile was called in the process
    return torch.distributions.Normal(x, x.exp(), validate_args=True).log_prob(x).sum()


def test_where_a_distribution_of_torchs_asks_for_data_the_hint_says_how_it_does_not():
    with pytest.raises(Unprovable, match=r"hint +it checks its arguments: say validate_args=False"):
        prove(likely)


def test_where_a_batch_norm_asks_for_its_count_the_hint_says_so():
    def loss(net: nn.BatchNorm1d, x: Float[Tensor, "n 4"]) -> Float[Tensor, ""]:
        return net(x).sum()

    with pytest.raises(Unprovable, match=r"hint +a batch norm of momentum=None averages over a count of batches"):
        ScalarTrainer(loss, nn.BatchNorm1d(4, momentum=None))


def test_a_trace_under_anomaly_detection_says_so():
    class Scale(ParamList):
        w: Float[Tensor, " n"]

    def loss(p: Scale, x: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
        return (x * p.w).square().mean()

    with torch.autograd.set_detect_anomaly(True), pytest.raises(Unprovable, match=r"set_detect_anomaly\(True\) looks"):
        ScalarTrainer(loss, Scale(w=torch.ones(3)))
