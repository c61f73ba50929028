"""Random losses held compiled against eager against plain torch."""

from pathlib import Path

import pytest

from tests.fuzz.drawn import make
from tests.fuzz.run import AGREES, FAULTS, judge


def test_a_loss_is_the_same_for_the_same_number():
    assert make(3, 5) == make(3, 5)
    assert make(3, 5) != make(3, 6)


def test_a_loss_is_python():
    for index in range(200):
        compile(make(0, index).source, "loss.py", "exec")


@pytest.mark.slow
def test_random_losses_take_the_same_steps_compiled_eagerly_and_in_plain_torch(tmp_path: Path):
    losses = [make(1, index) for index in range(4)]
    verdicts = [judge(loss, tmp_path) for loss in losses]
    wrong = [(loss, *verdict) for loss, verdict in zip(losses, verdicts, strict=True) if verdict[0] in FAULTS]

    assert not wrong, "\n".join(f"{loss.number} {kind}: {said}\n{loss.source}" for loss, kind, said in wrong)
    assert any(kind == AGREES for kind, _ in verdicts)
