"""One training step in deberta-v2-xxlarge's shape: int8 weights, LoRA on all linear layers, checkpointing, bf16.

    python tests/bench/xxlarge.py [BATCH [LENGTH]]

Random weights, put into 8 bits layer by layer. Prints the account of memory for 16 × 512, made by running one layer of
it, then one step of BATCH × LENGTH (default: 1 × 64 on a CPU, 16 × 512 on a GPU), its time and what was measured.
Needs 8 GB of memory on a CPU.
"""

import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from load_xxlarge import XXLARGE

import peft
from nn.deberta import Deberta
from nn.encoder import init_weights
from nn.memory import Live, account
from nn.quant import Int8Embedding, Int8Linear, put_quantized, quantizable
from nn.runtime import choose_machine, peak_memory

MIB = 2**20


def build() -> Deberta:
    """The model on the CPU; no more than one layer's weights are ever there in fp32."""
    with torch.device("meta"):
        model = Deberta(XXLARGE)
    small = quantizable(model)
    for name in small:
        put_quantized(model, name, torch.randn(model.get_submodule(name).weight.shape).mul_(XXLARGE.initializer_range))
    for name, module in model.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                module.register_parameter(leaf, torch.nn.Parameter(torch.zeros(parameter.shape)))
        if name and not isinstance(module, Int8Linear | Int8Embedding) and not list(module.children()):
            init_weights(module, XXLARGE.initializer_range)
    return peft.apply(model, "lora", rank=16, alpha=32.0, targets="all-linear")


def inputs(batch: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, XXLARGE.vocab_size, (batch, length), device=device)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def main(batch: int, length: int) -> None:
    machine = choose_machine("auto", "auto")
    torch.manual_seed(0)
    model = build().to(machine.device).train()
    model.checkpointing = True
    print(
        f"{machine}; {sum(p.numel() for p in model.parameters() if p.requires_grad):,} trained parameters", flush=True
    )
    counted = account(model, *inputs(16, 512, machine.device), machine.autocast)
    row = {name: round(value / MIB) for name, value in counted._asdict().items()}
    print(json.dumps({"account of 16 x 512, MiB": row, "total": round(counted.total / MIB)}), flush=True)

    here = account(model, *inputs(batch, length, machine.device), machine.autocast)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    begin = time.perf_counter()
    with Live() as live:
        with machine.autocast():
            loss = model(*inputs(batch, length, machine.device)).float().sum()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "step": f"{batch} x {length}",
                "seconds": round(seconds, 1),
                "account, MiB": round(here.total / MIB),
                "measured, MiB": round((live.peak + here.weights) / MIB),
                "peak of the process or GPU, MiB": round(peak_memory(machine.device) / MIB),
            }
        )
    )


if __name__ == "__main__":
    gpu = torch.cuda.is_available()
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [16 if gpu else 1, 512 if gpu else 64][len(given) :]))
