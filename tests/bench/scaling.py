"""Estimates a training step on 1, 8, 64 and 512 GPUs from counts of arithmetic, memory and exchanged bytes.

python tests/bench/scaling.py prints the tables of data/README.md. Nothing in them was measured on GPUs.

    FLOP of a token      2 P_l + 4 L T D forward; 3 × that with the backward pass, 2 × if the weights are frozen
    bytes of a step      2 (R - 1)/R · 4 P_t       sent by each of R ranks in a ring all-reduce of fp32 gradients
    static bytes         4 P + 12 P_t              weights; gradients and AdamW's two moments, all fp32
    with --shard         (4 P + 12 P_t) / R + c · 4 (P - P_l + P_l / L)      the rank's part; whole are what is outside
                                                   the layers and one layer: weights (c = 1), if trained gradients (2)

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
    Case("deberta-v2-xxlarge, all weights", 48, 1536, 1567e6, 1359e6, 1567e6),
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


def static_bytes(case: Case) -> float:
    """Returns the bytes of weights, gradients and moments."""
    return 4 * case.parameters + 12 * case.trained


def sharded_bytes(case: Case, gpus: int) -> float:
    """Returns the static bytes of a GPU with --shard while it computes a layer."""
    gathered = 4 * (case.parameters - case.in_layers + case.in_layers / case.layers)
    return static_bytes(case) / gpus + gathered * (2 if case.trained >= case.in_layers else 1)


def markdown(rows: list[list[str]]) -> str:
    """Returns a table in Markdown; the first row is its head."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def table() -> str:
    """Returns the table of speed."""
    rows = [["model", "GiB", *(f"{gpus} GPU" + "s" * (gpus > 1) for gpus in GPUS)]]
    for case in CASES:
        rows.append([case.name, f"{static_bytes(case) / 2**30:.1f}", *(cell(case, gpus) for gpus in GPUS)])
    return markdown(rows)


def shard_table() -> str:
    """Returns the table of GiB on each GPU without and with --shard."""
    rows = [["GiB on each GPU", "whole", *(f"`--shard`, {gpus} GPUs" for gpus in GPUS[1:])]]
    for case in CASES:
        sizes = [static_bytes(case), *(sharded_bytes(case, gpus) for gpus in GPUS[1:])]
        rows.append([case.name, *(f"{size / 2**30:.1f}" for size in sizes)])
    return markdown(rows)


if __name__ == "__main__":
    print(f"{table()}\n\n{shard_table()}")
