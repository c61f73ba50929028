"""How often a step asks for its hyper-parameters."""

from typing import Any

import pytest

from shaped import ScalarTrainer
from shaped.optim import AdamW
from shaped_kernels.adam import AdamRule
from tests.models import batch, mlp, mlp_loss


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that hyper-parameters are read, or held against their ranges."""
    found: list[str] = []
    for name in ("read", "check"):
        plain: Any = getattr(AdamRule, name)

        def noted(*given: Any, name: str = name, plain: Any = plain) -> Any:
            found.append(name)
            return plain(*given)

        monkeypatch.setattr(AdamRule, name, noted)
    return found


def test_an_eager_step_reads_and_checks_its_hyper_parameters_once(asked: list[str]) -> None:
    params = mlp()
    wide, narrow = [p for p in params if p.dim() > 1], [p for p in params if p.dim() == 1]
    optimizer = AdamW([{"params": wide}, {"params": narrow, "weight_decay": 0.0}], lr=0.1, max_norm=1.0)
    trainer = ScalarTrainer(mlp_loss, params, optimizer=optimizer, max_norm=2.0)
    counts = []
    for lr in (0.1, 0.1, 0.05):
        optimizer.set_lr(lr)
        asked.clear()
        trainer.train_step(*batch())
        counts.append((asked.count("read"), asked.count("check")))

    # Once for each of the two groups; what was read in the step before is known to be in range.
    assert counts == [(2, 2), (2, 0), (2, 2)]


def test_a_step_that_is_given_its_hyper_parameters_reads_and_checks_them_once(asked: list[str]) -> None:
    trainer = ScalarTrainer(mlp_loss, mlp())
    trainer.adamw_step(*batch(), lr=0.1)
    counts = []
    for lr in (0.1, 0.05):
        asked.clear()
        trainer.adamw_step(*batch(), lr=lr)
        counts.append((asked.count("read"), asked.count("check")))

    assert counts == [(1, 0), (1, 1)]
