"""Gradual unfreezing (Howard & Ruder 2018, arXiv 1801.06146, §3.3): the head first, then one more layer each epoch.

    epoch e = 1, 2, … trains the levels above L + 1 - e    (L + 1: head, L … 1: layers, 0: embeddings; nn/optim.py)

Fine-tuning all layers at once risks catastrophic forgetting; the last layer contains the least general knowledge.
Epoch 1 trains the head alone, epoch 2 also the last layer, and epochs from L + 2 on train all. A frozen parameter has
no gradient, so AdamW leaves it as it is, without weight decay; its moments and their bias correction start in its
first epoch. The levels are those of --layer-decay. The schedule of the learning rates covers the whole run.
"""

from torch.nn import Parameter

from nn import Model
from nn.optim import depth, num_levels


def lowest_level(top: int, epoch: int) -> int:
    """Returns the lowest level that epoch 1, 2, … trains. top: L"""
    return max(0, top + 2 - epoch)


def unfreeze(model: Model, parameters: list[Parameter], epoch: int) -> None:
    """Freezes those of the trained `parameters` that epoch 1, 2, … does not train yet, and no others."""
    trained, lowest = {id(p) for p in parameters}, lowest_level(num_levels(model), epoch)
    for name, parameter in model.named_parameters():
        if id(parameter) in trained:
            parameter.requires_grad_(depth(model, name) >= lowest)


def describe_epoch(model: Model, epoch: int, epochs: int) -> str:
    """Describes in one line what epoch 1 … `epochs` trains after `unfreeze`, and what stays frozen in the whole run."""
    top = num_levels(model)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lowest, last = lowest_level(top, epoch), lowest_level(top, epochs)
    levels = {depth(model, name) for name, p in model.named_parameters() if p.requires_grad}
    names = ["embeddings"] * (0 in levels) + [layers(max(1, lowest), top)] * (lowest <= top) + ["head"]
    line = f"trained: {', '.join(names)} ({count:,} parameters)"
    if last:
        frozen = ["embeddings"] + [layers(1, last - 1)] * (last > 1)
        line += f"; frozen in all epochs: {', '.join(frozen)} (--epochs {top + 2} trains them)"
    return line


def layers(first: int, last: int) -> str:
    """Names the layers first … last, counted from 1."""
    return f"layer {first}" if first == last else f"layers {first} … {last}"
