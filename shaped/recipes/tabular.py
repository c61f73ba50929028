"""Two real tables: 5-fold cross-validation, in each fold a search of 20 trials, beside scikit-learn's own network.

The test rows of a fold are seen by nothing that is chosen for it: candidates are trained on four fifths of its training
rows, with early stopping on the last fifth; the best one's values and its best epoch are then used on all of them.
scikit-learn's MLPClassifier, as it comes, is trained and tested on the same rows.
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shaped import files
from shaped.data import Batches
from shaped.errors import ShapedError
from shaped.loop import Loop
from shaped.recipes import Outcome, Settings
from shaped.trainer import ScalarTrainer
from shaped.workflow import (
    BatchConfig,
    CrossValidation,
    CrossValidator,
    CVConfig,
    EarlyStopping,
    Fold,
    OptimizerConfig,
    Real,
    Search,
    Table,
    TableProvider,
    Trial,
    split,
)
from shaped.workflow.assembly import make_optimizer
from shaped.workflow.networks import TabularMLP, mlp_logits, mlp_loss
from shaped.workflow.population import set_groups
from shaped.workflow.registry import data

TABLES = ("breast_cancer", "wine")
FOLDS, TRIALS, EPOCHS, HIDDEN = 5, 20, 60, 100
BATCH = BatchConfig(batch_size=32, drop_last=True)  # one size, so that one executor takes every step
LR: Mapping[str, Real] = {
    "sgd": Real(1e-2, 0.5, log=True),
    "adam": Real(1e-3, 3e-2, log=True),
    "adamw": Real(1e-3, 3e-2, log=True),
    "lion": Real(1e-4, 3e-3, log=True),
    "muon": Real(1e-3, 3e-2, log=True),
}
MORE: Mapping[str, Mapping[str, Any]] = {"sgd": {"momentum": 0.9, "nesterov": True}}


@dataclass(frozen=True)
class Learner:
    """One proved trainer for all candidates of a table: each begins with fresh parameters and an empty optimizer."""

    table: Table
    trainer: ScalarTrainer
    beginning: Mapping[str, Any]
    settings: Settings

    @staticmethod
    def make(table: Table, settings: Settings) -> "Learner":
        """Prove the model at the table's sizes."""
        params = fresh(table, 0, settings.device)
        optimizer = make_optimizer(
            OptimizerConfig(settings.optimizer, options=dict(MORE.get(settings.optimizer, {}))), params
        )
        trainer = ScalarTrainer(mlp_loss, params, backend=settings.backend, optimizer=optimizer)
        return Learner(table, trainer, trainer.state_dict(), settings)

    def begin(self, values: Mapping[str, Any], seed: int) -> Loop:
        """A loop over a fresh candidate."""
        self.trainer.load_state_dict(self.beginning)
        self.trainer.params.set_values(fresh(self.table, seed))
        loop = Loop(self.trainer)
        set_groups(loop, values)
        return loop

    @torch.no_grad()
    def measure(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Loss and accuracy, computed as plain PyTorch: a test set's size is no reason for another executor."""
        params: Any = self.trainer.params
        right = mlp_logits(params, x).argmax(1) == y
        return {"accuracy": right.double().mean().item(), "loss": mlp_loss(params, x, y).item()}


def fresh(table: Table, seed: int, device: str = "cpu") -> TabularMLP:
    """New parameters at a table's sizes."""
    sizes = table.sizes
    return TabularMLP.init(
        features=sizes["features"], hidden=HIDDEN, classes=sizes["classes"], seed=seed, device=device
    )


def train(settings: Settings) -> Outcome:
    """Cross-validate each table, and print its folds beside scikit-learn's."""
    settings.only_alone("tabular")
    folder = settings.folder("tabular", by_epochs=True)
    if folder.exists() and not settings.resume:
        raise ShapedError(f"{folder} has finished folds: go on from them with --resume, or choose another --out")
    figures: dict[str, float] = {}
    report: list[str] = []
    began = time.perf_counter()
    print(f"{FOLDS} folds, in each a search of {TRIALS} trials (TPE, optuna) with median pruning and early stopping")
    for name in TABLES:
        table = data.get(name)(validation=0.0).table
        learner = Learner.make(table, settings)
        if not report:
            print(str(learner.trainer.proof))
        with one_thread():
            found = cross_validate(learner, folder / name)
        text = f"{name}: {len(table)} rows, {len(table.features)} features, {len(table.classes)} classes\n{found}"
        print(text)
        report.append(text)
        for key, value in found.mean.items():
            figures[f"{name}/{key}"] = value
    figures["seconds"] = time.perf_counter() - began
    for name in TABLES:
        ours, theirs = figures[f"{name}/accuracy"], figures[f"{name}/sklearn"]
        print(f"{name}: {ours:.1%} beside {theirs:.1%} of MLPClassifier, {100 * (ours - theirs):+.1f} points")
    print(f"{figures['seconds']:.0f} s")
    written = folder / "folds.txt"
    files.replace(written, ("\n\n".join(report) + "\n").encode())
    return Outcome(figures, (written,))


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices as small as these are multiplied faster by one thread than by two that wait for each other."""
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def cross_validate(learner: Learner, folder: Path) -> CrossValidation:
    """The folds of a table; those that are in the folder are not trained again."""
    splitter = CVConfig("stratified", folds=FOLDS, shuffle=True, seed=learner.settings.seed)
    folder.mkdir(parents=True, exist_ok=True)

    def fold_figures(fold: Fold) -> Mapping[str, float]:
        best = search(learner, fold)
        provider = TableProvider(learner.table, training=fold.train_rows, validation=fold.test_rows,
                                 device=learner.settings.device)  # fmt: skip
        loop = learner.begin(best["values"], seed=fold.seed % 2**31)
        loop.run_epochs(batches(provider, fold.seed), best["epochs"])
        found = learner.measure(*provider.tensors(fold.test_rows))
        theirs = sklearn_accuracy(provider, fold, learner.settings.seed)
        return {"accuracy": found["accuracy"], "sklearn": theirs, "loss": found["loss"], **best["values"],
                "epochs": float(best["epochs"]), "pruned": float(best["pruned"])}  # fmt: skip

    validator = CrossValidator(fold_figures, splitter, seed=learner.settings.seed, folder=folder)
    return validator.run(learner.table.x, learner.table.y)


def batches(provider: TableProvider, seed: int) -> Batches:
    """Training batches of one size."""
    return provider.training_data(BatchConfig(BATCH.batch_size, BATCH.shuffle, BATCH.drop_last, seed % 2**31))


def search(learner: Learner, fold: Fold) -> dict[str, Any]:
    """The values and the epoch that did best on a fifth of the fold's training rows."""
    parts = split(len(fold.train_rows), "stratified", test=0.2, labels=learner.table.y[fold.train_rows],
                  seed=fold.seed % 2**31)  # fmt: skip
    rows, held = fold.train_rows[parts.train], fold.train_rows[parts.test]
    provider = TableProvider(learner.table, training=rows, validation=held, device=learner.settings.device)
    validation, training = provider.tensors(held), batches(provider, fold.seed)
    limit = learner.settings.epochs or EPOCHS

    def objective(trial: Trial) -> float:
        loop = learner.begin(trial.values, trial.seed)
        loop.attach(trial.watch("validation/loss"))
        loop.attach(EarlyStopping(8, alpha=0.5))
        loop.on_epoch(lambda loop: loop.record({"validation/loss": learner.measure(*validation)["loss"]}))
        loop.run_epochs(training, limit)
        return min(trial.reports)

    space = {"lr": LR[learner.settings.optimizer], "weight_decay": Real(1e-4, 1.0, log=True)}
    folder = None if fold.folder is None else fold.folder / "search"
    found = Search(space, objective, strategy="bayesian", trials=TRIALS, seed=fold.seed % 2**31, pruning="median",
                   folder=folder).run()  # fmt: skip
    reports = found.best.reports
    pruned = sum(trial.state == "pruned" for trial in found.trials)
    return {"values": found.best.values, "epochs": 1 + reports.index(min(reports)), "pruned": pruned}


def sklearn_accuracy(provider: TableProvider, fold: Fold, seed: int) -> float:
    """Accuracy of scikit-learn's MLPClassifier with its defaults, on the same standardized rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    (x, y), (u, v) = ((a.cpu().numpy(), b.cpu().numpy()) for a, b in
                      (provider.tensors(fold.train_rows), provider.tensors(fold.test_rows)))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its own 200 epochs may not suffice; they are its default
        return float(MLPClassifier(random_state=seed).fit(x, y).score(u, v))
