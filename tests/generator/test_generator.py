"""Random programs held against brute force on real tensors: what is proved is right, what is refuted fails."""

from pathlib import Path

import pytest

from tests.generator.judging import EMPTY, FAULTS, RAW, REFUTED_WRONGLY, TOO_STRONG, UNSOUND, judge
from tests.generator.programs import make
from tests.generator.run import report


def test_a_program_is_the_same_for_the_same_number():
    assert make(3, 5) == make(3, 5)
    assert make(3, 5) != make(3, 6)


def test_a_few_programs_are_judged_as_brute_force_judges_them(tmp_path: Path):
    verdicts = [judge(make(20, i), tmp_path).plain() for i in range(4)]

    assert not any(one["kind"] in FAULTS for one in verdicts), report(verdicts)


@pytest.mark.slow
def test_no_proof_of_hundreds_of_programs_is_wrong_and_no_right_one_is_refuted(tmp_path: Path):
    verdicts = [judge(make(21, i), tmp_path).plain() for i in range(200)]
    kinds = [one["kind"] for one in verdicts]

    assert not {UNSOUND, RAW, EMPTY, REFUTED_WRONGLY}.intersection(kinds), report(verdicts)
    assert kinds.count(TOO_STRONG) <= 1, report(verdicts, [TOO_STRONG])
