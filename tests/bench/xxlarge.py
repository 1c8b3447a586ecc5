"""Measures one training step of deberta-v2-xxlarge's shape, with int8 weights, LoRA on all linear layers, checkpointing
and bf16.

    python tests/bench/xxlarge.py [BATCH [LENGTH]]

The weights are random and are quantized layer by layer. Prints the account of memory for 16 × 512 tokens, which is
measured on one layer, then runs one step of BATCH × LENGTH (default: 1 × 64 on a CPU, 16 × 512 on a GPU) and prints its
time, its account and the measured peak. Needs 8 GB of memory on a CPU.
"""

import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.load_xxlarge import XXLARGE
from memory_account import Account, Live, account

import peft
from nn.deberta import Deberta
from nn.encoder import init_weights
from nn.quant import Int8Embedding, Int8Linear, put_quantized, quantizable
from nn.runtime import Machine, choose_machine, peak_memory

MIB = 2**20


def build() -> Deberta:
    """Builds the model on the CPU. At most one layer's weights exist in fp32 at a time."""
    with torch.device("meta"):
        model = Deberta(XXLARGE)
    for name in quantizable(model):
        shape = model.get_parameter(f"{name}.weight").shape
        put_quantized(model, name, weight=torch.randn(shape).mul_(XXLARGE.initializer_range))
    for name, module in model.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                module.register_parameter(leaf, torch.nn.Parameter(torch.zeros(parameter.shape)))
        if name and not isinstance(module, Int8Linear | Int8Embedding) and not list(module.children()):
            init_weights(module, XXLARGE.initializer_range)
    peft.apply(model, "lora", rank=16, alpha=32.0, targets="all-linear")
    return model


def inputs(batch: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws random token ids, int64 [B, T], with a mask without padding, bool [B, T]."""
    ids = torch.randint(5, XXLARGE.vocab_size, (batch, length), device=device)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def account_of(model: Deberta, batch: int, length: int, machine: Machine) -> Account:
    """Accounts for a step of batch × length tokens."""
    ids, mask = inputs(batch, length, device=machine.device)
    return account(model, input_ids=ids, mask=mask, autocast=machine.autocast)


def clock(device: torch.device) -> float:
    """Returns the time in seconds after the device finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def step(model: Deberta, batch: int, length: int, machine: Machine) -> tuple[float, int]:
    """Runs one training step. Returns its seconds and the peak bytes of the tensors that it creates."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    begin = clock(machine.device)
    with Live() as live:
        with machine.autocast():
            loss = model(*inputs(batch, length, device=machine.device)).float().sum()
        loss.backward()
        optimizer.step()
    return clock(machine.device) - begin, live.peak


def main(batch: int, length: int) -> None:
    """Prints the account of 16 × 512, then a step of batch × length."""
    machine = choose_machine("auto", "auto")
    torch.manual_seed(0)
    model = build().to(machine.device).train()
    model.checkpointing = True
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{machine}; {trained:,} trained parameters", flush=True)
    large = account_of(model, batch=16, length=512, machine=machine)
    row = {name: round(value / MIB) for name, value in large._asdict().items()}
    print(json.dumps({"account of 16 x 512, MiB": row, "total": round(large.total / MIB)}), flush=True)

    expected = account_of(model, batch=batch, length=length, machine=machine)
    if machine.device.type == "cuda":
        step(model, batch=batch, length=length, machine=machine)  # compiles the kernels
        torch.cuda.reset_peak_memory_stats()
    seconds, peak = step(model, batch=batch, length=length, machine=machine)
    row = {
        "step": f"{batch} x {length}",
        "seconds": round(seconds, 1),
        "account, MiB": round(expected.total / MIB),
        "measured, MiB": round((peak + expected.weights) / MIB),
        "peak of the process or GPU, MiB": round((peak_memory(machine.device) or 0) / MIB),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    defaults = [16, 512] if torch.cuda.is_available() else [1, 64]
    given = [int(argument) for argument in sys.argv[1:]]
    main(*given, *defaults[len(given) :])
