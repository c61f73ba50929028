"""Mistakes in models as people write them are refused at their line."""

import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from shaped import ProofError, Unprovable
from tests.corpus.concrete import distinct_sizes, failure
from tests.corpus.faults import FAULTS
from tests.corpus.planting import Fault, plant

# What no rule of ours refuses yet: axes merged by a reshape that are not neighbours, and an outer broadcast where every
# size is static, so that two equal numbers say nothing.
MISSED = {
    ("sliced_score_matching_loss", "(direction * product).sum(-1, keepdim=True)"),
    ("vit_loss", "permute(2, 0, 1, 3, 4)"),
    ("patch_embedding", "x.permute(0, 2, 1, 3, 4, 5)"),
}


# With the other tests the first of each kind, and every eighth; all of them with the slow ones.
KINDS = {fault.kind: fault for fault in reversed(FAULTS)}
FEW = [fault for i, fault in enumerate(FAULTS) if i % 8 == 0 or KINDS[fault.kind] is fault]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch warns of some of what it is asked to do here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[] if fault in FEW else [pytest.mark.slow]) for fault in FAULTS],
    ids=lambda fault: f"{fault.model}: {fault.kind}: {fault.new}",
)
def test_a_seeded_mistake_is_refused_at_its_line(fault: Fault, script_folder: Path, request: pytest.FixtureRequest):
    if (fault.model, fault.new) in MISSED:
        request.applymarker(pytest.mark.xfail(reason=fault.kind, strict=True))
    planted = plant(fault, script_folder)

    with pytest.raises((ProofError, Unprovable)) as caught:
        planted.model.prove()

    source = caught.value.source
    frames = traceback.extract_tb(caught.value.__traceback__)
    own = [frame.lineno for frame in frames if Path(frame.filename) == planted.file]
    assert (source.line if source else own[-1]) == planted.line, str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.model}: {fault.kind}: {fault.new}")
def test_a_seeded_mistake_is_one_and_plain_torch_is_silent_where_the_table_says_so(fault: Fault, script_folder: Path):
    planted = plant(fault, script_folder).model

    assert (failure(planted, distinct_sizes(planted)) == "") == fault.silent
