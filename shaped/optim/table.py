"""The optimizers by name: what configurations, recipes and the command line call them."""

from collections.abc import Mapping

from .adam import Adam, AdamW
from .base import FusedOptimizer
from .lion import Lion
from .muon import Muon
from .schedule_free import ScheduleFree
from .sgd import SGD

OPTIMIZERS: Mapping[str, type[FusedOptimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "lion": Lion,
    "schedule_free": ScheduleFree,
    "muon": Muon,
}
# Those that take a schedule of the learning rate; the others take its place.
SCHEDULED = tuple(name for name, kind in OPTIMIZERS.items() if not kind.rule.leads)
