"""Estimates a training step on 1, 8, 64 and 512 GPUs from counts of arithmetic, memory and exchanged bytes.

python tests/bench/scaling.py prints the table of data/README.md. Nothing in it was measured on GPUs.

    FLOP of a token      2 P_l + 4 L T D forward; 3 × that with the backward pass, 2 × if the weights are frozen
    bytes of a step      2 (R - 1)/R · 4 P_t       sent by each of R ranks in a ring all-reduce of fp32 gradients
    static bytes         4 P + 12 P_t              weights; gradients and AdamW's two moments, all fp32

P: parameters, P_l: of them in the layers, P_t: trained; L layers of width D, T tokens in a sequence. A step computes,
then exchanges, as if nothing overlapped (it does in part: nn/distributed.py). The batch grows with the number of GPUs.
"""

from typing import NamedTuple

GPUS = (1, 8, 64, 512)
SEQUENCES, LENGTH = 32, 512  # of each GPU in a step
FLOP_RATE = 0.35 * 989e12  # a second: an assumed share of the H100's dense bf16 peak
WITHIN, BETWEEN, NODE = 360e9, 40e9, 8  # bytes a second of a GPU: over NVLink, between machines of 8 GPUs


class Case(NamedTuple):
    """A model of L layers of width D with its numbers of parameters."""

    name: str
    layers: int
    width: int
    parameters: float
    in_layers: float
    trained: float


CASES = (
    Case("roberta-base, all weights", 12, 768, 125e6, 85e6, 125e6),
    Case("roberta-large, all weights", 24, 1024, 355e6, 302e6, 355e6),
    Case("roberta-large, LoRA", 24, 1024, 355e6, 302e6, 2.6e6),
    Case("deberta-v2-xxlarge, LoRA", 48, 1536, 1567e6, 1359e6, 9.5e6),
)


def compute_seconds(case: Case) -> float:
    """Returns the seconds in which a GPU computes its part of a step."""
    forward = 2 * case.in_layers + 4 * case.layers * LENGTH * case.width
    passes = 3 if case.trained >= case.in_layers else 2
    return passes * forward * SEQUENCES * LENGTH / FLOP_RATE


def exchange_seconds(case: Case, gpus: int) -> float:
    """Returns the seconds of the all-reduce over the slowest connection of the ring."""
    sent = 2 * (gpus - 1) / gpus * 4 * case.trained
    return sent / (WITHIN if gpus <= NODE else BETWEEN)


def cell(case: Case, gpus: int) -> str:
    """Returns millions of tokens a second, and their share of those of as many GPUs without exchange."""
    compute, exchange = compute_seconds(case), exchange_seconds(case, gpus)
    rate = gpus * SEQUENCES * LENGTH / (compute + exchange)
    return f"{rate / 1e6:.2f} ({100 * compute / (compute + exchange):.0f} %)"


def table() -> str:
    """Returns the table in Markdown."""
    rows = [["model", "GiB", *(f"{gpus} GPU" + "s" * (gpus > 1) for gpus in GPUS)], ["---"] * (2 + len(GPUS))]
    for case in CASES:
        memory = (4 * case.parameters + 12 * case.trained) / 2**30
        rows.append([case.name, f"{memory:.1f}", *(cell(case, gpus) for gpus in GPUS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
