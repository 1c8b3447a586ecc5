"""Parameter-efficient fine-tuning.

methods.py      METHODS, one line per method
lora.py bitfit.py ia3.py houlsby.py prefix.py prompt.py p_tuning.py    the math of each method
wrapped.py      the base class of the methods that wrap linear layers
adapters.py     apply, detach_adapter, attach_adapter, merge, unmerge
files.py        writes adapter directories in huggingface/peft's layout
loading.py      reads them
attaching.py    attaches the modules that they describe
rules.py        applies huggingface/peft's rules for adapter_config.json
build.py        builds the model of a run, with its adapter
scoring.py      computes the logits of examples
classifier.py   loads runs and checkpoints that score reviews
"""

from peft.adapters import (
    apply,
    attach_adapter,
    check_positions,
    detach_adapter,
    is_adapter_parameter,
    merge,
    trains_backbone,
    unmerge,
)
from peft.files import save_adapter, save_base
from peft.loading import load_adapted, load_adapter
from peft.methods import METHODS
from peft.prompt import VirtualTokenOptions

__all__ = [
    "METHODS", "VirtualTokenOptions", "apply", "attach_adapter", "check_positions", "detach_adapter",
    "is_adapter_parameter", "load_adapted", "load_adapter", "merge", "save_adapter", "save_base", "trains_backbone",
    "unmerge",
]  # fmt: skip
