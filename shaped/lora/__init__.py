"""Low-rank adapters (LoRA) over parameter lists and modules, on a base in floats or in four bits (QLoRA).

    adapted = adapt(loss, params, ["wq", "wv"], rank=8)                        a parameter list
    trainer = ScalarTrainer(adapted.loss, adapted.params, save_frozen=False)

    inject(module, ["q_proj", "v_proj"], rank=8)                               a module, in place
    trainer = ScalarTrainer(loss, module, save_frozen=False)

Source: Hu et al. 2021, arXiv:2106.09685; Dettmers et al. 2023, arXiv:2305.14314.
"""

from shaped.lora.lists import Adapted as Adapted
from shaped.lora.lists import adapt as adapt
from shaped.lora.modules import LoraLinear as LoraLinear
from shaped.lora.modules import inject as inject
from shaped.lora.modules import merge as merge
from shaped.lora.modules import merged as merged
from shaped.lora.modules import unmerge as unmerge
from shaped.lora.nf4 import dequantise_nf4 as dequantise_nf4
from shaped.lora.nf4 import quantise_nf4 as quantise_nf4
from shaped.lora.peft import load_adapter as load_adapter
from shaped.lora.peft import read_adapter as read_adapter
from shaped.lora.peft import save_adapter as save_adapter
