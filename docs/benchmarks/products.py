"""Matrix products of float32 on the CPU, by `torch.mm` and in the form that a compiled step takes.

    PYTHONPATH=.:kernels python docs/benchmarks/products.py [--rounds 9] [--threads 1]

The sizes are of layers with a batch: forward x @ w, gradient of the weights x.T @ g, gradient of the input g @ w.T, for
weights that lie by rows. A round times both forms one after the other, 2 ms each; the page has the medians, the
ratio's median and its worst round. Where the form is `rows` both are the same. On a CPU whose MKL is fast, compiled
steps keep to `torch.mm` everywhere; the columns here say what the other forms would do.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from report import RESULTS, machine, save, table, versions
from torch import Tensor

from shaped.backends import products

LAYERS = [
    (64, 64, 128),
    (64, 128, 10),
    (256, 128, 10),
    (256, 64, 64),
    (256, 256, 256),
    (1024, 128, 65),
    (1024, 128, 384),
    (1024, 512, 128),
    (2048, 768, 768),
]


def chosen(a: Tensor, b: Tensor) -> tuple[products.Form, Callable[[], Tensor]]:
    """The form that the rule takes, and a call of it."""
    found = products.form(a.shape[0], a.shape[1], b.shape[1], a.stride(1) == 1, b.stride(1) == 1)
    onednn = products.onednn()
    calls: dict[products.Form, Callable[[], Tensor]] = {
        "rows": lambda: torch.mm(a, b),
        "columns": lambda: torch.mm(b.t(), a.t()).t(),
        "onednn": lambda: onednn(a, b),
        "onednn columns": lambda: onednn(b.t(), a.t()).t(),
    }
    return found, calls[found]


def clock(call: Callable[[], Tensor], seconds: float = 2e-3) -> float:
    """Microseconds of a call."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(5):
            call()
        count += 5
    return (time.perf_counter() - began) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, figures = [], []
    for batch, inputs, outputs in LAYERS:
        x, w, g = torch.randn(batch, inputs), torch.randn(inputs, outputs), torch.randn(batch, outputs)
        for what, a, b in (("x @ w", x, w), ("x.T @ g", x.t(), g), ("g @ w.T", g, w.t())):
            name, call = chosen(a, b)
            torch.testing.assert_close(call(), a @ b, atol=1e-3, rtol=1e-4)
            rounds = [(clock(lambda a=a, b=b: torch.mm(a, b)), clock(call)) for _ in range(arguments.rounds)]  # type: ignore[misc]
            mm, ours = (statistics.median(side) for side in zip(*rounds, strict=True))
            ratios = [after / before for before, after in rounds]
            sizes = f"{batch} x {inputs} x {outputs}, {what}"
            rows.append(
                [sizes, name, f"{mm:.1f}", f"{ours:.1f}", f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}"]
            )
            figures.append({"sizes": sizes, "form": name, "rounds": rounds})
    found = versions("torch")
    head = ["batch x inputs x outputs", "form", "mm us", "form us", "ratio", "worst ratio"]
    page = "\n\n".join(
        [
            "# Matrix products on the CPU",
            f"Written by `docs/benchmarks/products.py`. {arguments.rounds} rounds, {arguments.threads} threads. python "
            f"{found['python']}, torch {torch.__version__}. Machine: {machine()}. A compiled step here takes "
            f"{'these forms' if products.mkl_is_slow() else '`torch.mm`'}.",
            table(head, rows),
        ]
    )
    save(RESULTS / "products", page, {"versions": found, "machine": machine(), "rows": figures})
    print(page)


if __name__ == "__main__":
    main()
