"""Relations over one size: what is said of them is so at each."""

import random

import pytest

from shaped.proof.cycles import always, decided, plainest
from shaped.shapes import Term


def drawn(rng: random.Random, depth: int) -> str:
    if depth == 0:
        return rng.choice(["n", str(rng.randrange(-9, 40))])
    a, b = drawn(rng, depth - 1), drawn(rng, depth - 1)
    by, times = rng.randrange(1, 9), rng.randrange(-3, 5)
    return rng.choice(
        [
            f"({a} + {b})",
            f"({a} - {b})",
            f"({a}//{by})",
            f"({a} % {by})",
            f"({times}*{a})",
            f"max({a}, {b})",
            f"min({a}, {b})",
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_relation_over_one_size_is_decided_and_written_as_it_is_at_each_size(seed: int) -> None:
    rng = random.Random(seed)
    known = 0
    for _ in range(100):
        text = f"{drawn(rng, rng.randrange(1, 4))} {rng.choice(['==', '!=', '<', '<=', '>', '>='])} {drawn(rng, 1)}"
        term = Term.parse(rng.choice([text, f"{text} or n % 6 == {rng.randrange(6)}", f"not ({text})"]))
        answers = [term.holds({"n": n}) for n in (*range(1, 400), 5001, 99_999, 100_000)]
        written = plainest(term)
        known += decided(term) is not None

        assert decided(term) in (None, all(answers)), text
        assert [written.holds({"n": n}) for n in (*range(1, 400), 5001, 99_999, 100_000)] == answers, text
    assert known > 80


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("64 - seq > 0", "seq <= 63"),
        ("-seq > -4095", "seq <= 4094"),
        ("-seq > -131072", "seq <= 131071"),  # beyond what is looked at size by size
        ("64 - seq >= 0 or seq == 65", "seq <= 65"),
        ("m % 4 == 0 and m % 2 == 0", "m % 4 == 0"),
        ("n % 4 == 0 or n % 4 == 2", "n % 2 == 0"),
        ("n % 2 == 1 and ((n - 1)//2) % 3 == 0", "n % 6 == 1"),
        ("n//200 != 1 and n >= 200 or n//200 == 1", "n >= 200"),
        ("n % 4 == 0 and n//8 >= 2", "n % 4 == 0 and n >= 16"),
        ("n > 25", "n > 25"),  # as the program has it
        ("m + n > 25", "m + n > 25"),
    ],
)
def test_a_relation_over_one_size_is_written_plainly(text: str, plain: str) -> None:
    assert str(plainest(Term.parse(text))) == plain


def test_what_is_true_of_all_sizes_is_known_whatever_the_numbers() -> None:
    assert always(Term.parse("(n + (-n % 200)) % 200 == 0"))
    assert always(Term.parse("1024*((n + 1023)//1024) == n + (-n % 1024)"))
    assert not always(Term.parse("n % 1024 != 1023"))
    assert decided(Term.parse("n*n >= 1")) is None  # by another proof
