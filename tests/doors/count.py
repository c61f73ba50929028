"""How many calls of public functions with an argument of a wrong kind there are, and how each ends.

    python -m tests.doors.count

The calls are those of `test_doors.py`: every public callable, each argument in turn, each value of `WRONG` that its
annotation does not admit.
"""

import os
import tempfile
from collections import Counter
from pathlib import Path

from shaped.errors import ShapedError
from tests.doors.test_doors import WRONG, admits, hints_of
from tests.doors.valid_training import TABLE


def main() -> None:
    ends: Counter[str] = Counter()
    raw: list[str] = []
    for name, make in TABLE.items():
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            function, given = make(Path(place))
            hints = hints_of(function)
            for argument in given:
                hint = hints.get(argument, hints.get("sizes"))
                for wrong in WRONG if hint is not None else ():
                    if admits(hint, wrong):
                        continue
                    try:
                        function(**{**given, argument: wrong})
                    except (ShapedError, ValueError):
                        ends["refused in words"] += 1
                    except Exception as error:
                        ends["raw"] += 1
                        raw.append(f"{name}({argument}={wrong!r}): {type(error).__name__}: {error}")
                    else:
                        ends["taken"] += 1
                        function, given = make(Path(place))
            os.chdir("/")
    print(f"{len(TABLE)} callables, {ends.total()} calls: {dict(ends)}", *raw, sep="\n")


if __name__ == "__main__":
    main()
