"""The job charlm: its model is proved, learns, beats counting pairs, and goes on where it was stopped."""

from pathlib import Path

import pytest
import torch

from shaped import ShapedError, prove
from shaped.data import Windows, stdlib_text
from shaped.recipes import Settings, charlm
from shaped.recipes.charlm import GPT, bigram_loss, loss, sample, validation_windows, warm_up_and_cosine


def tiny(seed: int = 0) -> GPT:
    return GPT.init(vocab=256, dim=8, context=charlm.CONTEXT, blocks=1, seed=seed)


def test_the_model_is_proved_with_its_two_conditions() -> None:
    assert set(prove(loss).conditions) == {"dim % 4 == 0", "seq <= context"}


def test_the_text_is_split_by_file_and_windows_are_of_it() -> None:
    text, held_out = stdlib_text("train"), stdlib_text("validation")

    assert len(text) > 5e6
    assert 0.01 < len(held_out) / len(text) < 0.15
    data = Windows(text, batch_size=3, length=10, batches=4, seed=5)
    whole = list(data.iterate(2))
    assert [len(whole), len(data)] == [4, 4]
    for (x, y), (later_x, later_y) in zip(whole[1:], data.iterate(2, start=1), strict=True):
        assert torch.equal(x, later_x)
        assert torch.equal(y, later_y)
        assert torch.equal(x[:, 1:], y[:, :-1])
    assert not torch.equal(whole[0][0], next(data.iterate(3))[0])
    with pytest.raises(ValueError, match="no 1 batches of 1 windows of 99 in a text of 99 tokens"):
        Windows(text[:99], batch_size=1, length=99, batches=1)
    with pytest.raises(ValueError, match="split is 'test'; it is 'train' or 'validation'"):
        stdlib_text("test")  # type: ignore[arg-type]


def test_the_bigram_model_counts_pairs() -> None:
    text = torch.tensor([0, 1] * 500, dtype=torch.uint8)
    pairs = [(torch.tensor([[0, 1]]), torch.tensor([[1, 0]]))]

    assert bigram_loss(text, pairs) == pytest.approx(-torch.log(torch.tensor(500.1 / 525.6)).item(), rel=1e-2)
    real = bigram_loss(stdlib_text("train"), validation_windows(stdlib_text("validation"), "cpu"))
    assert 2.0 < real < 3.0


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    share = warm_up_and_cosine(10, 110)

    assert [share(0), share(9), share(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert share(60) == pytest.approx(0.525)
    assert share(110) == share(500) == pytest.approx(0.05)


def test_a_sample_is_text_and_a_function_of_its_seed() -> None:
    params = tiny()

    assert sample(params, b"def ", 5, seed=1) == sample(params, b"def ", 5, seed=1)
    assert sample(params, b"def ", 5, seed=1).startswith("def ")


@pytest.mark.slow
def test_the_job_trains_resumes_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"DIM": 16, "LAYERS": 1, "CONTEXT": 16, "BATCH": 8, "STEPS_PER_EPOCH": 20}.items():
        monkeypatch.setattr(charlm, name, value)
    short = Settings("eager", epochs=1, out=tmp_path)
    first = charlm.train(short)
    with pytest.raises(ShapedError, match="has checkpoints: go on from them with --resume, or choose another --out"):
        charlm.train(short)
    second = charlm.train(Settings("eager", epochs=3, out=tmp_path, resume=True))
    printed = capsys.readouterr().out

    assert second.figures["steps"] == 60
    assert second.figures["validation"] < first.figures["validation"] < 6
    assert printed.count("a bigram model has ") == 2
    assert "goes on from" in printed
    assert all(path.is_file() for path in second.files)
    folder = tmp_path / "charlm-eager-adamw-seed0"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoints", "curves.png", "log.jsonl", "sample.txt"]
