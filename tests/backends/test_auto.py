"""backend="auto": compiled, or eager with the reason."""

import warnings

import pytest
import torch

from shaped import ExecutorError, ScalarTrainer
from shaped.optim import AdamW
from tests.models import batch, mlp, mlp_loss

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("shaped.backends.auto.PATIENCE", 0.0)


@pytest.fixture
def refusing(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise NotImplementedError("no lowering for aten.fancy\nand more")

    monkeypatch.setattr("shaped.backends.inductor._interpreted", refuse)


@pytest.mark.usefixtures("refusing")
def test_what_cannot_be_compiled_is_an_error_and_nothing_has_changed():
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled")
    before = str(trainer.state_dict())

    with pytest.raises(ExecutorError) as caught:
        trainer.adamw_step(*batch(), lr=0.1)
    assert str(caught.value) == (
        "the compiler refused the step: no lowering for aten.fancy. backend='eager' runs it, and backend='auto' goes "
        "on with it by itself"
    )
    assert str(trainer.state_dict()) == before


@pytest.mark.usefixtures("refusing")
def test_auto_goes_on_eagerly_with_one_warning_and_the_reason():
    trainer, eager = ScalarTrainer(mlp_loss, mlp(), backend="auto"), ScalarTrainer(mlp_loss, mlp())
    with pytest.warns(RuntimeWarning, match=r"goes on with the eager backend: .* no lowering for aten\.fancy"):
        trainer.adamw_step(*batch(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.adamw_step(*batch(3), lr=0.1)
        trainer.forward(*batch())
    eager.adamw_step(*batch(), lr=0.1)
    eager.adamw_step(*batch(3), lr=0.1)

    assert all(map(torch.equal, trainer.params, eager.params))
    assert (trainer.backend, trainer.steps) == ("eager", 2)
    assert "eager from here on: the compiler refused the step: no lowering for aten.fancy" in str(trainer.executors)


@pytest.mark.slow
@pytest.mark.usefixtures("refusing")
def test_precompiling_tells_auto_before_there_is_a_batch():
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    with pytest.warns(RuntimeWarning, match="goes on with the eager backend"):
        trainer.precompile(batch=5)

    assert trainer.backend == "eager"


def test_auto_is_compiled_where_that_works():
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    trainer.adamw_step(*batch(), lr=0.1)

    assert trainer.backend == "compiled"
    assert len(trainer.with_backend("compiled").executors) == 1


@pytest.mark.slow
def test_auto_takes_an_optimizer_whose_storage_only_the_kernels_know():
    params = mlp(dtype=torch.bfloat16)
    trainer = ScalarTrainer(mlp_loss, params, backend="auto", optimizer=AdamW(params, moments="8bit"))
    with pytest.warns(RuntimeWarning, match="moments='8bit'"):
        trainer.train_step(*batch(dtype=torch.bfloat16))

    assert trainer.steps == 1


@pytest.mark.slow
def test_an_error_while_a_step_runs_is_no_reason_to_leave_the_compiled_backend():
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    x, y = batch()
    with pytest.raises(ExecutorError, match="nll_loss takes indices 0 to 2"):
        trainer.step(x, y + 7, lr=0.1)

    assert trainer.backend == "compiled"


@pytest.mark.slow
def test_a_full_cache_is_no_reason_either():
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto", max_executors=1, sizes="static")
    trainer.step(*batch(), lr=0.1)
    with pytest.raises(ExecutorError, match="max_executors"):
        trainer.step(*batch(3), lr=0.1)

    assert trainer.backend == "compiled"
