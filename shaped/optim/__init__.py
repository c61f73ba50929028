"""SGD, Adam and AdamW over `shaped_kernels`: torch.optim's arguments, defaults and state dicts."""

from .adam import Adam as Adam
from .adam import AdamW as AdamW
from .base import FusedOptimizer as FusedOptimizer
from .base import Update as Update
from .sgd import SGD as SGD
