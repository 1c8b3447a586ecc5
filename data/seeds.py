"""Derives independent seeds from a run's seed, and reads and restores the state of torch's generators."""

import hashlib

import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str) -> int:
    """Returns a seed of 63 bits for one purpose ("initialisation", "order 3", "dropout", …).

    Each purpose has its own random stream, so that draws for one do not change those for another.
    """
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Returns the generator states of the CPU and, if `device` is one, of the GPU."""
    state = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["random.mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restores the result of `random_state`. The GPU's state is skipped if it was not saved or `device` is no GPU."""
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["random.cuda"], device)
    elif "random.mps" in state and device.type == "mps":
        torch.mps.set_rng_state(state["random.mps"])
