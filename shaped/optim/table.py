"""The optimizers by name: what configurations, recipes and the command line call them."""

from collections.abc import Mapping

from .adam import Adam, AdamW
from .base import FusedOptimizer
from .lion import Lion
from .sgd import SGD

OPTIMIZERS: Mapping[str, type[FusedOptimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "lion": Lion}
