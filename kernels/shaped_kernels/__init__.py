"""Update rules of SGD, Adam, AdamW and Lion over lists of tensors, in place.

Triton kernels on a GPU, torch's own fused operators elsewhere, one plain-torch reference for
everything neither can reach. Usable without the rest of the library; importing this package
imports torch and nothing else.
"""

from .adam import adam_ as adam_
from .adam import adam_reference as adam_reference
from .adam import adamw_ as adamw_
from .lion import lion_ as lion_
from .rule import Hyper as Hyper
from .rule import Rule as Rule
from .sgd import sgd_ as sgd_
from .sgd import sgd_reference as sgd_reference
