"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190) and P-tuning v2 (Liu et al. 2022, arXiv 2110.07602): P trained keys
and values in every layer, visible to every query.

    head = Attention(q, [K_p; K], [V_p; V])                     Li & Liang, Eq. (3); nn/attention.py, nn/deberta.py
    prefix:       row_p = e₀ + W₂ tanh(W₁ e_p + b₁) + b₂       Li & Liang, §4.3: computed by an MLP while training
    p_tuning_v2:  row_p is a trained parameter                 Liu et al., §3.2

                 trained    frozen
        keys     K_p        K = x W_k
        values   V_p        V = x W_v
                  └───────────┴── softmax(q·keys) values, in each of the L layers; q = x W_q

row_p: [2·L·D], keys and values of layer 1, then of layer 2, …: 2·P·L·D values. In DeBERTa prefix keys have no position,
so their relative terms are 0; in ModernBERT they are not rotated. The classifier reads the real [CLS].

init: `text` starts from the model's own keys and values for the tokens of a text (Li & Liang, §7.4: better than
random); `random` draws from N(0, 0.02²).

Differs from the papers: the output of the MLP is added to the fixed initial values, and its last layer starts at 0; its
inputs start as N(0, 1). The positions of BERT, ELECTRA, RoBERTa and XLM-RoBERTa start after the prefix, as in
huggingface/peft, so that adapter files are compatible.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from data.flags import option
from nn.attention import Prefix
from nn.dropout import Dropout
from nn.encoder import Encoder
from nn.modes import evaluating
from peft.prompt import Table, VirtualTokenOptions, repeat_to_length

INITS = ("text", "random")


@dataclass(frozen=True)
class PTuningV2Options(VirtualTokenOptions):
    prefix_init: str = option(
        "text",
        "virtual tokens",
        "a prefix is initialized from the keys and values of a text, or at random",
        choices=INITS,
    )
    prefix_dropout: float = option(0.0, "virtual tokens", "dropout on the keys and values of a prefix", "P")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_text(self.prefix_init)
        if not 0 <= self.prefix_dropout < 1:
            raise ValueError(f"prefix_dropout {self.prefix_dropout} is outside [0, 1)")


@dataclass(frozen=True)
class PrefixOptions(PTuningV2Options):
    prefix_hidden: int = option(512, "virtual tokens", "prefix: width of the MLP")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_hidden < 1:
            raise ValueError(f"--prefix-hidden {self.prefix_hidden} must be at least 1")


class PrefixEncoder(Module):
    """Computes rows = e₀ + W₂ tanh(W₁ e + b₁) + b₂: [P, 2·L·D].

    e₀ -> start;  e: [P, D] -> inputs;  W₁, W₂ -> down, up
    """

    def __init__(self, start: Tensor, width: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.inputs = Parameter(torch.randn(len(start), width))
        self.down = Linear(width, hidden_size)
        self.up = Linear(hidden_size, start.size(1))
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self) -> Tensor:
        """Returns rows: [P, 2·L·D], not rounded by autocast, so that they are those that the adapter's file records"""
        with torch.autocast(self.inputs.device.type, enabled=False):
            return self.start + self.up(self.down(self.inputs).tanh())


class DeepPrefix(Module):
    """Computes features(x) with the keys and values of `source`, [P, 2·L·D], before those of x in every layer."""

    def __init__(self, source: Module, num_layers: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.source, self.num_layers, self.num_heads = source, num_layers, num_heads
        self.dropout = Dropout(dropout)

    def pairs(self) -> list[Prefix]:
        """Returns keys and values of each layer: [1, H, P, K] each."""
        rows = self.dropout(self.source())  # [P, 2·L·D]
        split = rows.unflatten(-1, (2 * self.num_layers, self.num_heads, -1)).permute(1, 2, 0, 3)  # [2L, H, P, K]
        return [(split[2 * n][None], split[2 * n + 1][None]) for n in range(self.num_layers)]

    def forward(self, model: Encoder, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T] -> features [B, D]"""
        pairs = self.pairs()
        shift = pairs[0][0].size(2) if model.PREFIX_SHIFTS else 0
        x = model.embed(input_ids, mask, shift)  # [B, T, D]
        h = model.encode(x, mask, prefix=pairs, queries=model.pooled_queries())  # [B, 1 or T, D]
        return model.pool(h, mask)


@torch.no_grad()
def keys_and_values(model: Encoder, ids: Tensor) -> Tensor:
    """Computes the keys and values of each layer for the tokens `ids`, [P]: rows [P, 2·L·D]"""
    rows: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor, ...]) -> None:
        rows.extend(row[0] for row in module.keys_and_values(inputs[0]))

    hooks = [layer.attention.register_forward_pre_hook(keep) for layer in model.layers]
    mask = torch.ones(1, len(ids), dtype=torch.bool, device=ids.device)
    try:
        with evaluating(model):
            model.encode(model.embed(ids[None], mask), mask)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(rows, -1)


def prefix_width(model: Encoder) -> int:
    """Returns 2·L·H·K, the number of values of one prefix token. H·K is D unless attention_head_size differs."""
    return 2 * len(model.layers) * model.layers[0].attention.output.in_features


def initial_prefix(model: Encoder, count: int, init: str, init_ids: list[int] | None) -> Tensor:
    """Computes the initial prefix: [P, 2·L·D]. Raises ValueError for an unknown init, a missing text, and more tokens
    than positions."""
    if init == "random":
        return torch.randn(count, prefix_width(model)) * 0.02
    if init == "text":
        if init_ids is None or not len(init_ids):
            raise ValueError("prefix_init text needs the ids of a text; prompt_text is empty")
        table = model.embeddings.position
        if table is not None and count > (most := table.num_embeddings - model.first_position):
            raise ValueError(f"{count} virtual tokens, but the model has {most} positions; lower --virtual-tokens")
        return keys_and_values(model, repeat_to_length(init_ids, count).to(next(model.parameters()).device))
    raise ValueError(f"unknown prefix_init {init!r}; known: {', '.join(INITS)}")


def attach_prefix(model: Encoder, source: Module, dropout: float = 0.0) -> None:
    """Makes `source`, which returns [P, 2·L·D], the prefix of `model`, in place."""
    device = next(model.parameters()).device
    model.virtual = DeepPrefix(source, len(model.layers), model.config.num_heads, dropout).to(device)


def apply_v2(model: Encoder, options: PTuningV2Options, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Attaches a trained table of keys and values to `model`, in place. Returns what the adapter's file records.

    init_ids: token ids of options.prompt_text, for prefix_init text.
    """
    start = initial_prefix(model, options.virtual_tokens, options.prefix_init, init_ids)
    attach_prefix(model, Table(start), options.prefix_dropout)
    return asdict(options)


def apply(model: Encoder, options: PrefixOptions, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Attaches a prefix that an MLP computes to `model`, in place. Returns what the adapter's file records.

    init_ids: token ids of options.prompt_text, for prefix_init text. Raises ValueError if they are missing.
    """
    start = initial_prefix(model, options.virtual_tokens, options.prefix_init, init_ids)
    source = PrefixEncoder(start, model.config.hidden_size, options.prefix_hidden)
    attach_prefix(model, source, options.prefix_dropout)
    return asdict(options)
