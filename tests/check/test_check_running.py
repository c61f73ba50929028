"""`shaped check --run`: a script without annotations, on tensors without data."""

from pathlib import Path

import pytest

from shaped.check.running import run

SCRIPT = """
import copy, torch
from torch import nn
net = copy.deepcopy(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
ids = torch.randint(10, (4, 5))
logits = nn.Linear(8, 10)(net(nn.Embedding(10, 8)(ids[:, :-1])))
loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, {cut}].flatten())
loss.backward()
"""


def test_a_script_is_run_to_its_end_or_to_its_first_wrong_shape_and_torch_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, cut in (("right.py", "1:"), ("wrong.py", ":")):
        (tmp_path / name).write_text(SCRIPT.format(cut=cut))

    right, wrong = (run(tmp_path / name, [], 120) for name in ("right.py", "wrong.py"))

    assert (right.status, wrong.status) == (0, 1)
    assert right.said.endswith("operations: to its end")
    assert "wrong.py:7   loss = nn.functional.cross_entropy(" in wrong.said
    assert "Expected input batch_size (16) to match target batch_size (20)." in wrong.said
    assert capfd.readouterr().err == ""
