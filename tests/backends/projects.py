"""A project of two modules whose program is kept, everything in it that may be changed, and a file of wrong code."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shaped import ScalarTrainer
from shaped.backends import archive

HELPER = """
BETA = 0.5

def bend(x, by=0.25, *, more=1.0):
    return x * by * more + BETA
"""
PROJECT = """
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

import kept_helper
from kept_helper import bend
from shaped import ParamList

class Config:
    beta = 0.5
    def __init__(self):
        self.gain = 2.0
    def __call__(self, x):
        return x * self.gain

CONFIG = Config()
RATES = [1.0, 2.0]
TABLE = torch.ones(4)
LEVEL = ContextVar("LEVEL", default=1.0)

def raising(power):
    def raised(x):
        return x ** power
    return raised

raised = raising(2)

class Line(ParamList):
    w: Float[Tensor, " n"]

def loss(p: Line, x: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    y = raised(bend(x @ p.w) * CONFIG.beta) + CONFIG(x @ p.w) * RATES[1] * LEVEL.get()
    return (y * kept_helper.BETA * TABLE.sum()).mean()
"""


class Project:
    """A folder of two modules that can be written and imported anew."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "line.program"
        self.write(PROJECT, HELPER)

    def write(self, project: str, helper: str) -> None:
        for name, text in (("kept_helper", helper), ("kept_project", project)):
            (self.folder / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            importlib.invalidate_caches()
            self.module: Any = importlib.import_module("kept_project")
        finally:
            sys.dont_write_bytecode = before

    def params(self) -> Any:
        return self.module.Line(w=torch.linspace(-1, 1, 4))

    def load(self, file: Path | None = None, **options: Any) -> ScalarTrainer:
        given = {"backend": "compiled", **options}
        return ScalarTrainer.load_program(file or self.file, self.module.loss, self.params(), **given)


X = torch.linspace(-1, 2, 12).reshape(3, 4)


CHANGES: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "the loss": lambda p, h: (p.replace(".mean()", ".sum()"), h),
    "a helper": lambda p, h: (p, h.replace("* by", "/ by")),
    "a default": lambda p, h: (p, h.replace("by=0.25", "by=0.5")),
    "a keyword's default": lambda p, h: (p, h.replace("more=1.0", "more=2.0")),
    "a global of a helper": lambda p, h: (p, h.replace("BETA = 0.5", "BETA = 0.75")),
    "a closure": lambda p, h: (p.replace("raising(2)", "raising(4)"), h),
    "an attribute of a class": lambda p, h: (p.replace("beta = 0.5", "beta = 0.25"), h),
    "an attribute of an object": lambda p, h: (p.replace("gain = 2.0", "gain = 3.0"), h),
    "a method": lambda p, h: (p.replace("return x * self.gain", "return x + self.gain"), h),
    "an item of a list": lambda p, h: (p.replace("[1.0, 2.0]", "[1.0, 4.0]"), h),
    "the default of a context variable": lambda p, h: (p.replace("default=1.0", "default=2.0"), h),
    "an annotation": lambda p, h: (p.replace('"batch n"', '"rows n"'), h),
    "the shape of a tensor outside": lambda p, h: (p.replace("ones(4)", "ones(5)"), h),
    "a comment in its file": lambda p, h: (p + "# a word\n", h),
}


def wrong_numbers(file: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A kept program whose code adds 1 to a parameter after its step."""
    about, members = archive.read(file)
    name = about["executors"][0]["code"] + ".py"
    wrong = (
        "\n_call = call\ndef call(args):\n    first = args[0]\n    out = _call(args)\n    first.add_(1)\n    return out"
    )
    return about, {**members, name: members[name] + wrong.encode()}
