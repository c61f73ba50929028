"""The workflow: from a configuration to figures, through every way in which it can end."""

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from shaped import NonFiniteError, ShapedError, StateError
from shaped.data import DataError
from shaped.workflow import (
    ConfigError,
    EarlyStopping,
    GivenData,
    MetricComputer,
    ModelProvider,
    Part,
    StoppingConfig,
    TrainingWorkflow,
    WorkflowConfig,
)
from tests.models import MLP, mlp_loss
from tests.workflow.loops import TRAINING, VALIDATION, fresh_trainer, values

SIZES = {"pixels": 6, "classes": 3}
DATA: Any = (TRAINING, VALIDATION)


def predict(p: Any, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2
    return found


def over(trainer: Any = None, *, data: Any = DATA, step: Any = None, seed: int = 0, **config: Any) -> TrainingWorkflow:
    trainer = fresh_trainer(seed=seed) if trainer is None else trainer
    return TrainingWorkflow.from_trainer(
        trainer, *data, config=WorkflowConfig(**config), predict=predict, metrics=MetricComputer("accuracy"), step=step
    )


@pytest.mark.smoke
def test_a_configuration_becomes_a_trained_and_validated_model(tmp_path: Path) -> None:
    config = {
        "model": {"name": "mlp_classifier", "options": {"hidden": 8}},
        "data": {"name": "wine", "options": {"seed": 1}},
        "epochs": 12,
        "optimizer": {"lr": 0.02, "options": {"weight_decay": 0.1}},
        "schedule": {"name": "warmup_cosine", "options": {"warmup": 5}},
        "metrics": ["accuracy", "f1"],
        "batches": {"batch_size": 24},
        "extensions": {"owner": "us"},
        "folder": str(tmp_path / "run"),
    }
    with TrainingWorkflow(config) as workflow:
        before = workflow.loop.lr
        result, validation = workflow.train(), workflow.validate()
        info = workflow.model_provider.info(workflow.model)  # type: ignore[union-attr]
        path = workflow.save(tmp_path / "model")
        assert workflow.metrics["validation/accuracy"] == validation.metrics["accuracy"]
        provider, params = workflow.model_provider, workflow.model
        lr = workflow.loop.lr

    assert (result.epochs, result.steps, result.ended, len(result.history)) == (12, 12 * 6, "all epochs", 12)
    assert set(result.metrics) == {"training/loss", "validation/loss", "validation/accuracy", "validation/f1"}
    assert result.final_loss == result.metrics["validation/loss"] == validation.loss
    assert result.best_loss == min(epoch["validation/loss"] for epoch in result.history)
    assert result.history[result.best_epoch - 1]["validation/loss"] == result.best_loss
    assert (validation.samples, validation.extensions) == (36, {"owner": "us"})
    assert validation.metrics["accuracy"] > 0.85
    assert info.sizes == {"features": 13, "hidden": 8, "classes": 3}
    assert [before, lr] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert isinstance(provider, ModelProvider)
    assert all(map(torch.equal, provider.load(path), params))  # type: ignore[arg-type]
    assert provider.read_about(path)["epochs"] == 12
    assert (tmp_path / "run" / "log.jsonl").is_file()
    with TrainingWorkflow(config) as workflow:  # it is complete: nothing is trained again
        assert workflow.train().history == result.history
        assert all(map(torch.equal, workflow.model, params))


def test_parts_may_be_given_and_sizes_of_data_and_model_meet_by_name() -> None:
    closed: list[int] = []
    data = GivenData(TRAINING, VALIDATION, {"sizes": {**SIZES, "rows": 80}}, close=lambda: closed.append(1))
    provider = ModelProvider(MLP, mlp_loss, predict=predict, defaults={"hidden": 4})
    with TrainingWorkflow(WorkflowConfig(epochs=1), model=provider, data=data) as workflow:
        assert workflow.model.dims == {**SIZES, "hidden": 4}

    assert closed == [1]
    wrong = WorkflowConfig(model=Part("tests.models:mlp", {"pixels": 7}))
    with pytest.raises(ShapedError, match="the data is neither given nor named; one of the two"):
        TrainingWorkflow(wrong)
    with pytest.raises(ShapedError, match="the model is neither given nor named; one of the two"):
        TrainingWorkflow({}, data=data)


def test_sizes_that_differ_and_names_that_are_unknown_are_errors_before_anything_runs() -> None:
    base = {"model": {"name": "mlp_classifier"}, "data": {"name": "wine"}}
    for change, error, said in (
        ({"model": {"name": "mlp_clasifier"}}, ShapedError, "did you mean `mlp_classifier`"),
        ({"metrics": ["acuracy"]}, ShapedError, "did you mean `accuracy`"),
        ({"epoch": 3}, ConfigError, "epoch: unknown; did you mean `epochs`"),
        ({"model": {"name": "mlp_classifier", "options": {"classes": 4}}}, DataError, "classes = 3 in the data and 4"),
        ({"data": {"name": "wine", "options": {"shuffled": True}}}, ShapedError, "data `wine` with"),
        ({"model": {"name": "os:system"}}, ShapedError, "model `os:system` is no ModelProvider, and called without"),
        ({"schedule": {"name": "cosin"}}, ShapedError, "no schedule `cosin`; did you mean `cosine`"),
        ({"schedule": {"name": "Counter"}}, ShapedError, "no schedule `Counter`"),
        ({"schedule": {"name": "LRScheduler"}}, ShapedError, "no schedule `LRScheduler`"),
        ({"schedule": {"name": "ReduceLROnPlateau"}}, ShapedError, "did you mean `reduce_on_plateau`"),
        ({"schedule": {"name": "cosine", "options": {"periode": 3}}}, ShapedError, "schedule `cosine` with"),
        ({"optimizer": {"options": {"wd": 3}}}, ShapedError, "optimizer `adamw`: "),
    ):
        with pytest.raises(error, match=said), TrainingWorkflow({**base, **change}):
            pass
    idle = TrainingWorkflow(base)
    with pytest.raises(ShapedError, match="the workflow is not initialised"):
        idle.train()


def test_early_stopping_ends_the_training_and_the_best_epoch_is_restored() -> None:
    trainer = fresh_trainer(lr=0.3)
    seen: list[Any] = []
    workflow = over(trainer, epochs=30, early_stopping=StoppingConfig(patience=3, alpha=1.0), restore_best=True)
    workflow.loop.on_epoch(lambda loop: seen.append(values(loop)), name="seen", priority=90)
    result = workflow.train()

    assert result.epochs == result.best_epoch + 3 < 30
    assert "has not been better than" in result.ended
    assert values(workflow.loop) == seen[result.best_epoch - 1] != seen[-1]
    assert workflow.validate().loss == pytest.approx(result.best_loss)
    stopping = EarlyStopping(3, alpha=1.0)
    assert [stopping.step(epoch["validation/loss"]) for epoch in result.history].index(True) + 1 == result.epochs


@pytest.mark.parametrize("stopping", [None, StoppingConfig(patience=1, alpha=1.0)])
def test_a_complete_run_that_is_opened_again_has_the_parameters_of_the_best_epoch(
    stopping: Any, tmp_path: Path
) -> None:
    config: Any = {"epochs": 9, "restore_best": True, "folder": tmp_path, "early_stopping": stopping}
    workflow = over(fresh_trainer(lr=0.3), **config)
    result, best = workflow.train(), values(workflow.loop)
    workflow.shutdown()
    again = over(fresh_trainer(lr=0.3, seed=7), **config)

    assert result.best_epoch < result.epochs
    assert values(again.loop) == best
    assert again.train().ended == result.ended
    assert values(again.loop) == best
    again.shutdown()


def test_a_cancelled_workflow_leaves_a_checkpoint_from_which_it_goes_on_to_the_same_end(tmp_path: Path) -> None:
    config: Any = {"epochs": 4, "folder": tmp_path / "a", "early_stopping": StoppingConfig(patience=9, alpha=0.3)}
    whole = over(epochs=4, early_stopping=config["early_stopping"])
    expected, weights = whole.train(), values(whole.loop)
    first = over(**config)
    first.loop.on_step(lambda loop: first.cancel("the user") if loop.step == 6 else None, name="cancel")
    cut = first.train()
    first.shutdown()
    second = over(seed=5, **config)
    found = second.train()
    second.shutdown()

    assert (cut.ended, cut.steps, cut.epochs) == ("the user", 6, 1)
    assert cut.checkpoint is not None
    assert cut.checkpoint.name == "step-00000006"
    assert (found.history, found.steps, found.ended) == (expected.history, 16, "all epochs")
    assert found.best_epoch == expected.best_epoch
    again = over(seed=6, **config)
    assert values(again.loop) == weights
    again.shutdown()


def test_a_cancelled_workflow_goes_on_in_the_same_process_too() -> None:
    whole = over(epochs=3)
    expected, weights = whole.train(), values(whole.loop)
    workflow = over(epochs=3)
    workflow.cancel("before it began")
    none = workflow.train()
    timer = threading.Thread(target=workflow.cancel)

    def from_a_thread(loop: Any) -> None:
        if loop.step == 5:
            timer.start()
            timer.join()

    workflow.loop.on_step(from_a_thread)
    middle = workflow.train()
    found = workflow.train()

    assert (none.ended, none.steps, math.isnan(none.final_loss), none.best_epoch) == ("before it began", 0, True, 0)
    assert (middle.ended, middle.steps) == ("cancelled", 5)
    assert found.history == expected.history
    assert values(workflow.loop) == weights


def test_without_validation_data_the_training_loss_is_watched() -> None:
    workflow = over(data=(TRAINING, None), epochs=2)
    result = workflow.train()

    assert result.monitor == "training/loss"
    assert result.final_loss == result.history[-1]["training/loss"]
    with pytest.raises(ShapedError, match="there is no validation data"):
        workflow.validate()
    assert workflow.validate(VALIDATION).samples == 40


def test_the_training_loss_of_an_epoch_is_the_mean_of_its_steps() -> None:
    trainer = fresh_trainer()
    losses: list[float] = []

    def step(*batch: Any) -> Any:
        losses.append(trainer.train_step(*batch).item())
        return torch.tensor(losses[-1])

    result = over(trainer, epochs=2, step=step).train()

    assert result.history[1]["training/loss"] == pytest.approx(sum(losses[4:]) / 4)


def test_a_watched_figure_that_is_not_finite_is_an_error() -> None:
    computer = MetricComputer(broken=lambda p, t: math.nan)
    for stopping, said in (
        (StoppingConfig(patience=2), "early stopping was given validation/broken = nan"),
        (None, "validation/broken is nan after epoch 1, and no epoch can be the best by it"),
    ):
        config = WorkflowConfig(epochs=2, monitor="validation/broken", early_stopping=stopping)
        broken = TrainingWorkflow.from_trainer(fresh_trainer(), *DATA, config=config, predict=predict, metrics=computer)
        with pytest.raises(NonFiniteError, match=said):
            broken.train()
    with pytest.raises(ShapedError, match="metrics broken need predictions"):
        TrainingWorkflow.from_trainer(fresh_trainer(), *DATA, metrics=computer)


def test_the_lr_is_reduced_on_a_plateau_by_configuration_and_its_state_resumes(tmp_path: Path) -> None:
    part = Part("reduce_on_plateau", {"factor": 0.5, "patience": 0, "threshold": 0.5})
    config: Any = {"epochs": 4, "schedule": part}
    whole = over(**config)
    whole.train()
    first = over(**{**config, "epochs": 2}, folder=tmp_path)
    first.train()
    first.shutdown()
    second = over(**config, folder=tmp_path, seed=4)
    second.train()

    assert whole.loop.lr == second.loop.lr == pytest.approx(0.01 / 8)
    second.shutdown()


def test_an_initialisation_that_fails_closes_the_data() -> None:
    closed: list[int] = []
    data = GivenData(TRAINING, VALIDATION, {"sizes": SIZES}, close=lambda: closed.append(1))
    provider = ModelProvider(MLP, mlp_loss, defaults={"hidden": 4})
    workflow = TrainingWorkflow({"metrics": ["accuracy"]}, model=provider, data=data)
    with pytest.raises(ShapedError, match="metrics accuracy need predictions: the model has no `predict`"):
        workflow.initialize()

    assert closed == [1]


def test_a_folder_of_a_run_with_another_configuration_is_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model": {"name": "mlp_classifier", "options": {"hidden": 4}},
        "data": {"name": "iris", "options": {"seed": 0}},
        "epochs": 1,
        "folder": str(tmp_path / "run"),
    }
    with TrainingWorkflow(config) as workflow:
        workflow.train()
    for change in (
        {"optimizer": {"lr": 0.5}},
        {"data": {"name": "iris", "options": {"seed": 5}}},
        {"batches": {"batch_size": 7}},
        {"seed": 3},
    ):
        with pytest.raises(StateError, match=f"another configuration: choose another folder.\n  {next(iter(change))} "):
            TrainingWorkflow({**config, **change}).initialize()
    with TrainingWorkflow({**config, "epochs": 2, "extensions": {"owner": "us"}}) as workflow:
        assert workflow.train().epochs == 2


def test_a_watched_figure_that_nothing_records_is_an_error_after_the_first_epoch() -> None:
    workflow = over(epochs=3, monitor="validation/acuracy", mode="max")
    with pytest.raises(ShapedError, match=r"no figure `validation/acuracy` is recorded .* `validation/accuracy`"):
        workflow.train()
    assert workflow.loop.epoch == 1


def test_an_optimizer_that_reads_the_proof_is_made_by_its_name_too() -> None:
    config: dict[str, Any] = {
        "model": {"name": "mlp_classifier", "options": {"hidden": 8}},
        "data": {"name": "wine", "options": {"seed": 1}},
        "epochs": 1,
        "optimizer": {"name": "muon", "lr": 0.02, "options": {"others": {"betas": [0.9, 0.95]}}},
    }
    with TrainingWorkflow(config) as workflow:
        workflow.train()
        groups = workflow.loop.trainer.optimizer.param_groups  # type: ignore[union-attr]

    assert [group["axes"] for group in groups] == ["in out", "adamw"]
    with pytest.raises(ShapedError, match="optimizer `muon`: unknown argument rolez"):
        TrainingWorkflow({**config, "optimizer": {"name": "muon", "options": {"rolez": {}}}}).initialize()
