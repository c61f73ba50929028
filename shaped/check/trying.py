"""The numbers at which integers are tried that a program reads as such."""

from collections.abc import Container, Mapping, Sequence

_MULTIPLES = 4  # names whose numbers divide each other
_ALONE = (2, 3, 1, 4)
_TOLD = (3, 5, 1, 4, 2, 7, 11, 13)  # two numbers that data tell are never equal by accident


def numbers_for(names: Sequence[str], which: int, told: Container[str] = ()) -> dict[str, int]:
    """Numbers for integers that a program reads as such: distinct, each a multiple of the one before or after it.

    Heads divide a width, whichever is read first. Where they are many, the others are small primes. What data tell
    (`told`) is none of the program's own sizes.
    """
    from shaped.proof.refuting import PRIMES

    own = [name for name in names if name not in told]
    of_data = [name for name in names if name in told]
    numbers = {name: _TOLD[(which + i) % len(_TOLD)] for i, name in enumerate(of_data)}
    if len(own) == 1:
        return numbers | {own[0]: _ALONE[which]}
    order = own[::-1] if which % 2 else own
    multiples = {name: (2 + which // 2) * 2**i for i, name in enumerate(order[:_MULTIPLES])}
    rest = dict(zip(order[_MULTIPLES:], (3, *PRIMES), strict=False))
    return numbers | {name: (multiples | rest).get(name, 2) for name in own}


def others_for(names: Sequence[str], told: Container[str] = ()) -> range:
    """Which numbers to try after the first: more where what data tell is alone, which nobody chooses."""
    if len(names) == 1:
        return range(1, 5 if names[0] in told else 3)
    return range(1, 4 if names else 1)


def at_numbers(numbers: Mapping[str, int]) -> str:
    """`heads = 2, dim = 4`"""
    return ", ".join(f"{name} = {number}" for name, number in numbers.items())
