"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190) and P-tuning v2 (Liu et al. 2022, arXiv 2110.07602): P trained keys
and values that every query of every layer may look at.

    head = Attention(q, [K_p; K], [V_p; V])                                     how: nn/attention.py, nn/deberta.py
    prefix:       row_p = e₀ + W₂ tanh(W₁ e_p + b₁) + b₂       Li & Liang, Eq. (3): made by an MLP while training
    p_tuning_v2:  row_p is trained itself                      Liu et al., §3.2

row_p: [2·L·D], keys and values of layer 1, then of layer 2 …: 2·P·L·D parameters at use. In DeBERTa prefix keys have no
position, so their relative terms are 0. The classifier reads the real [CLS].

init: `text` starts from the keys and values that the model itself has at the tokens of a text (Li & Liang, §7.4: better
than random); `random` from N(0, 0.02²).

Differs from the papers: the MLP's output is added to the fixed start, through a last layer that starts at 0. BERT's and
RoBERTa's positions begin behind the prefix, as in huggingface/peft, so that its files mean the same here.
"""

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from nn.attention import Prefix
from nn.dropout import Dropout
from peft.prompt import Table, fill

OPTIONS_V2 = ("virtual_tokens", "prefix_init", "prefix_dropout")
OPTIONS = (*OPTIONS_V2, "prefix_hidden")
INITS = ("text", "random")


class PrefixEncoder(Module):
    """rows = start + W₂ tanh(W₁ e + b₁) + b₂: [P, 2·L·D];   e: [P, D] -> inputs, W₁ -> down, W₂ -> up."""

    def __init__(self, start: Tensor, width: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.inputs = Parameter(torch.randn(len(start), width))
        self.down = Linear(width, hidden_size)
        self.up = Linear(hidden_size, start.size(1))
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self) -> Tensor:
        return self.start + self.up(self.down(self.inputs).tanh())  # Eq. (3)


class DeepPrefix(Module):
    """features(x) with keys and values of `source`, [P, 2·L·D], before those of x in every layer."""

    def __init__(self, source: Module, num_layers: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.source, self.num_layers, self.num_heads = source, num_layers, num_heads
        self.dropout = Dropout(dropout)

    def pairs(self) -> list[Prefix]:
        """Keys and values of each layer: [1, H, P, K] each."""
        rows = self.dropout(self.source())  # [P, 2·L·D]
        parts = rows.unflatten(-1, (2 * self.num_layers, self.num_heads, -1)).permute(1, 2, 0, 3)  # [2L, H, P, K]
        return [(parts[2 * n][None], parts[2 * n + 1][None]) for n in range(self.num_layers)]

    def forward(self, model: Module, input_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, T] ids -> features [B, D]"""
        pairs = self.pairs()
        shift = pairs[0][0].size(2) if model.PREFIX_SHIFTS else 0
        return model.pool(model.encode(model.embed(input_ids, mask, shift), mask, pairs, queries=1), mask)


@torch.no_grad()
def keys_and_values(model: Module, ids: Tensor) -> Tensor:
    """What each layer's key and value projections give for the tokens `ids`, [P]: rows [P, 2·L·D]."""
    projections = [p for layer in model.layers for p in (layer.attention.key, layer.attention.value)]
    found: dict[Module, Tensor] = {}

    def keep(module: Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.setdefault(module, output[0])  # the first call: DeBERTa's key then projects relative positions, too

    hooks = [projection.register_forward_hook(keep) for projection in projections]
    mask = torch.ones(1, len(ids), dtype=torch.bool, device=ids.device)
    training = model.training
    try:
        model.eval()
        model.encode(model.embed(ids[None], mask), mask)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return torch.cat([found[projection] for projection in projections], -1)


def first_prefix(model: Module, count: int, init: str, init_ids: list[int] | None) -> Tensor:
    """Where the prefix starts: [P, 2·L·D]. Raises ValueError."""
    if count < 1:
        raise ValueError(f"{count} virtual tokens; at least 1 is needed")
    if init == "random":
        return torch.randn(count, 2 * len(model.layers) * model.layers[0].attention.key.out_features) * 0.02
    if init == "text":
        if not init_ids:
            raise ValueError("prefix_init text needs the ids of a text")
        return keys_and_values(model, fill(init_ids, count).to(next(model.parameters()).device))
    raise ValueError(f"unknown prefix_init {init!r}; known: {', '.join(INITS)}")


def apply_v2(
    model: Module,
    virtual_tokens: int = 20,
    prefix_init: str = "text",
    prefix_dropout: float = 0.0,
    init_ids: list[int] | None = None,
) -> dict:
    """Puts a trained table of keys and values on `model`, in place."""
    start = first_prefix(model, virtual_tokens, prefix_init, init_ids)
    model.virtual = DeepPrefix(Table(start), len(model.layers), model.config.num_heads, prefix_dropout)
    return {"virtual_tokens": virtual_tokens, "prefix_init": prefix_init, "prefix_dropout": prefix_dropout}


def apply(
    model: Module,
    virtual_tokens: int = 20,
    prefix_init: str = "text",
    prefix_dropout: float = 0.0,
    prefix_hidden: int = 512,
    init_ids: list[int] | None = None,
) -> dict:
    """Puts a prefix on `model`, in place, that an MLP makes."""
    start = first_prefix(model, virtual_tokens, prefix_init, init_ids)
    source = PrefixEncoder(start, model.config.hidden_size, prefix_hidden)
    model.virtual = DeepPrefix(source, len(model.layers), model.config.num_heads, prefix_dropout)
    remembered = {"virtual_tokens": virtual_tokens, "prefix_init": prefix_init, "prefix_dropout": prefix_dropout}
    return remembered | {"prefix_hidden": prefix_hidden}
