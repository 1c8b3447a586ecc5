"""P-tuning (Liu et al. 2021, arXiv 2103.10385, §3.2): a prompt whose rows an encoder makes from trained inputs.

    lstm:  p = W₂ ReLU(W₁ BiLSTM(e) + b₁) + b₂                          Eq. (4)
    mlp:   p = W₃ ReLU(W₂ ReLU(W₁ e + b₁) + b₂) + b₃                    huggingface/peft's default

e: [P, E] is trained with the weights. Behind training only p is needed: the encoder stays in a side file, to go on
training from. How the prompt joins the model: peft/prompt.py.

Differs from the paper: e starts at the rows of a text's tokens and the encoder's output is added to them, through a
last layer that starts at 0: p starts at real words. The backbone stays frozen (the paper tunes it, too, for SuperGLUE).
"""

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from nn.lstm import LSTM
from peft.prompt import SoftPrompt, first_rows

OPTIONS = ("virtual_tokens", "prompt_init", "pool", "prompt_encoder", "prompt_hidden")
ENCODERS = ("mlp", "lstm")


class PromptEncoder(Module):
    """p = e₀ + f(e), [P, E]; f is `kind`, hidden_size wide; e₀: where e starts, fixed."""

    def __init__(self, rows: Tensor, kind: str, hidden_size: int) -> None:
        super().__init__()
        if kind not in ENCODERS:
            raise ValueError(f"unknown prompt_encoder {kind!r}; known: {', '.join(ENCODERS)}")
        width = rows.size(1)
        self.register_buffer("start", rows.detach().clone())
        self.inputs = Parameter(rows.detach() / rows.std())
        self.lstm = LSTM(width, hidden_size, 2) if kind == "lstm" else None
        inner = 2 * hidden_size if kind == "lstm" else hidden_size
        self.first = Linear(inner if kind == "lstm" else width, inner)
        self.second = Linear(inner, inner) if kind == "mlp" else None
        self.last = Linear(inner, width)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    def forward(self) -> Tensor:
        x = self.inputs  # [P, E]
        if self.lstm is not None:
            x = self.lstm(x[None], x.new_ones(1, len(x), dtype=torch.bool))[0]  # [P, 2·hidden]
        x = self.first(x).relu()
        if self.second is not None:
            x = self.second(x).relu()
        return self.start + self.last(x)


def apply(
    model: Module,
    virtual_tokens: int = 20,
    prompt_init: str = "text",
    pool: str = "cls",
    prompt_encoder: str = "mlp",
    prompt_hidden: int = 128,
    init_ids: list[int] | None = None,
) -> dict:
    """Puts an encoded prompt on `model`, in place."""
    rows = first_rows(model, virtual_tokens, prompt_init, init_ids)
    model.virtual = SoftPrompt(PromptEncoder(rows, prompt_encoder, prompt_hidden), pool)
    remembered = {"virtual_tokens": virtual_tokens, "prompt_init": prompt_init, "pool": pool}
    return remembered | {"prompt_encoder": prompt_encoder, "prompt_hidden": prompt_hidden}
