"""Parameter-efficient fine-tuning.

methods.py    METHODS, one line a method
adapters.py   apply, detach_adapter, attach_adapter, merge, unmerge
files.py      adapter directories in huggingface/peft's layout;  loading.py  reads them,
attaching.py  builds what they describe;  rules.py  their config
wrapped.py    the base class of the methods that wrap linear layers
lora.py bitfit.py ia3.py houlsby.py prefix.py prompt.py p_tuning.py    the math of each method
build.py      the model of a run, with its adapter
scoring.py    the logits of examples;  classifier.py  runs and checkpoints that score reviews
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
