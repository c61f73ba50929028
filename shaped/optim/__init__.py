"""The optimizers over `shaped_kernels`: torch.optim's arguments and state dicts, and what is fused beyond them."""

from . import schedules as schedules
from .adam import Adam as Adam
from .adam import AdamW as AdamW
from .averaging import EMA as EMA
from .averaging import SWA as SWA
from .averaging import averaged as averaged
from .base import FusedOptimizer as FusedOptimizer
from .flattening import flatten_parameters as flatten_parameters
from .lion import Lion as Lion
from .multi import MultiOptimizer as MultiOptimizer
from .muon import Muon as Muon
from .options import Options as Options
from .schedule_free import ScheduleFree as ScheduleFree
from .sgd import SGD as SGD
from .table import OPTIMIZERS as OPTIMIZERS
from .updates import GroupUpdate as GroupUpdate
