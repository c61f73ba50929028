"""A valid call of what learns while data come, and of the initialisers."""

from pathlib import Path

import torch

from shaped import init
from shaped.workflow import online
from tests.doors.valid_training import MLP, Made, X, Y, by_place, mlp, mlp_loss, of, plain, trainer, valid

LIST = [(X, Y)]

# -- shaped.workflow.online -------------------------------------------------------------------------------------------


def _audit(folder: Path) -> online.AuditLog:
    log = online.AuditLog(folder / "audit.jsonl")
    log.append("start", version=1)
    return log


valid("AuditLog", lambda folder: (online.AuditLog, {"path": folder / "audit.jsonl", "only": None}))
valid("AuditLog.append", lambda folder: (_audit(folder).append, {"event": "start", "version": 1}))
valid("verify_log", lambda folder: (online.verify_log, {"path": _audit(folder).path}))
plain("ADWIN", online.ADWIN, lambda: {"delta": 0.002, "clock": 32, "grace_period": 10})
plain("KSWIN", online.KSWIN, lambda: {"alpha": 0.005, "window_size": 100, "stat_size": 30, "seed": 0})
plain("PageHinkley", online.PageHinkley, lambda: {
    "min_instances": 30, "delta": 0.005, "threshold": 50.0, "alpha": 0.99, "mode": "both",
})  # fmt: skip
for detector in (online.ADWIN, online.PageHinkley, online.KSWIN):
    of(detector.__name__, detector, "update", lambda: {"value": 0.5})
    of(detector.__name__, detector, "load_state_dict",
       lambda detector=detector: {"state": detector().state_dict()})  # type: ignore[misc]  # fmt: skip
plain("Trigger", online.Trigger, lambda: {"detector": online.ADWIN(), "every": 5, "min_samples": 1, "cooldown": 0})
of("Trigger", lambda: online.Trigger(every=5), "update", lambda: {"value": 0.5})
of(
    "Trigger",
    lambda: online.Trigger(every=5),
    "load_state_dict",
    lambda: {"state": online.Trigger(every=5).state_dict()},
)


def fisher() -> MLP:
    return mlp().like([torch.ones_like(p) for p in mlp()])


plain("elastic", online.elastic, lambda: {
    "loss": mlp_loss, "params": mlp(), "fisher": fisher(), "anchor": None, "strength": 1.0,
})  # fmt: skip
plain("fisher_diagonal", online.fisher_diagonal, lambda: {
    "loss": mlp_loss, "params": mlp(), "data": LIST, "sample": None, "chunk": None,
})  # fmt: skip


def _feedback(folder: Path) -> online.Feedback:
    feedback = online.Feedback(folder / "feedback")
    feedback.ask("a", X[0])
    return feedback


valid("Feedback", lambda folder: (online.Feedback, {"path": folder / "feedback"}))
valid(
    "Feedback.ask",
    lambda folder: (
        by_place(_feedback(folder).ask, "key", "inputs"),
        {"key": "b", "inputs": X[0]},
    ),
)
valid(
    "Feedback.answer",
    lambda folder: (
        by_place(_feedback(folder).answer, "key", "targets"),
        {"key": "a", "targets": Y[0]},
    ),
)
valid("Feedback.take", lambda folder: (_feedback(folder).take, {"n": 1}))
valid("OnlineLearner", lambda folder: (online.OnlineLearner, {
    "trainer": trainer(), "folder": folder / "live", "step": None, "trigger": None, "validator": None, "signal": None,
    "recent": 4, "holdout": 0.25, "passes": 1, "fresh": 0, "keep": 2,
}))  # fmt: skip


def _learner(folder: Path) -> online.OnlineLearner:
    return online.OnlineLearner(trainer(), folder / "live")


valid(
    "OnlineLearner.observe",
    lambda folder: (
        by_place(_learner(folder).observe, "inputs", "y"),
        {"inputs": X, "y": Y},
    ),
)


def _taught(folder: Path) -> online.OnlineLearner:
    learner = _learner(folder)
    for _ in range(2):
        learner.observe(X, Y)
    return learner


valid("OnlineLearner.update", lambda folder: (_taught(folder).update, {"reason": "manual"}))
valid("OnlineLearner.rollback", lambda folder: (_learner(folder).rollback, {"to": 1}))


def _reloading(folder: Path) -> Made:
    learner = _learner(folder)
    return learner.load_state_dict, {"state": learner.state_dict()}


valid("OnlineLearner.load_state_dict", _reloading)
valid("OnlineLearner.save", lambda folder: (_learner(folder).save, {"reason": "saved"}))
plain("LossDelta", online.LossDelta, lambda: {"most": 0.0})
plain("WeightNorm", online.WeightNorm, lambda: {"most": 1.0, "change": 1.0})
plain(
    "Composite",
    by_place(online.Composite, "validators"),
    lambda: {"validators": online.LossDelta()},
)
valid("Versions", lambda folder: (online.Versions, {"folder": folder, "keep": 2}))


def _versions(folder: Path) -> online.Versions:
    versions = online.Versions(folder / "versions")
    versions.save({"a": X}, "start")
    return versions


valid("Versions.save", lambda folder: (_versions(folder).save, {"state": {"a": X}, "reason": "why"}))
valid("Versions.read", lambda folder: (_versions(folder).read, {"number": 1}))
valid("Versions.newest", lambda folder: (_versions(folder).newest, {"before": 2}))

# -- shaped.init -----------------------------------------------------------------------------------------------------

plain("init.constant", init.constant, lambda: {"value": 1.0, "name": ""})
plain("init.normal", init.normal, lambda: {"std": 0.02, "mean": 0.0})
plain("init.uniform", init.uniform, lambda: {"bound": 0.1})
plain("init.fan_in", init.fan_in, lambda: {"gain": 1.0})
plain("init.orthogonal", init.orthogonal, lambda: {"gain": 1.0})
