"""P-tuning (Liu et al. 2021, arXiv 2103.10385v1, §3.2): an encoder computes the rows of a prompt from trained inputs.

    lstm:  p = e₀ + W₂ ReLU(W₁ BiLSTM(e) + b₁) + b₂                          Eq. (4)
    mlp:   p = e₀ + W₃ ReLU(W₂ ReLU(W₁ e + b₁) + b₂) + b₃                    huggingface/peft's default

e: [P, E] is trained together with the encoder; it starts as e₀ divided by its standard deviation. After training only p
is needed; the encoder is saved in a separate file so that training can continue. peft/prompt.py shows how the prompt
joins the model.

Differs from the paper: e₀, the word embeddings of a text, is added to the encoder's output, and the last layer starts
at 0, so that p starts at real words. The backbone stays frozen (the paper also tunes it, for SuperGLUE).
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from data.flags import option
from nn.encoder import Encoder
from nn.lstm import LSTM
from peft.prompt import PromptOptions, SoftPrompt, initial_rows

ENCODERS = ("mlp", "lstm")


@dataclass(frozen=True)
class PTuningOptions(PromptOptions):
    prompt_encoder: str = option("mlp", "virtual tokens", "p_tuning: encoder of the prompt", choices=ENCODERS)
    prompt_hidden: int = option(128, "virtual tokens", "p_tuning: width of the encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_hidden < 1:
            raise ValueError(f"--prompt-hidden {self.prompt_hidden} must be at least 1")


class PromptEncoder(Module):
    """Computes p = e₀ + f(e): [P, E]. f is of the given kind, hidden_size wide; e₀ -> start, e -> inputs.

    mlp:  W₁, W₂, W₃ -> first, second, last;   lstm:  BiLSTM, W₁, W₂ -> lstm, first, last. Raises ValueError for
    another kind.
    """

    def __init__(self, rows: Tensor, kind: str, hidden_size: int) -> None:
        super().__init__()
        if kind not in ENCODERS:
            raise ValueError(f"unknown prompt_encoder {kind!r}; known: {', '.join(ENCODERS)}")
        width, rows = rows.size(1), rows.detach().float()  # the encoder is fp32, whatever the model is
        self.register_buffer("start", rows.clone())
        std = rows.std()
        self.inputs = Parameter(rows / torch.where(std > 0, std, 1.0))  # a single row of padding is all zeros
        self.lstm = LSTM(width, hidden_size, num_layers=2) if kind == "lstm" else None
        inner = 2 * hidden_size if kind == "lstm" else hidden_size
        self.first = Linear(inner if kind == "lstm" else width, inner)
        self.second = Linear(inner, inner) if kind == "mlp" else None
        self.last = Linear(inner, width)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    def forward(self) -> Tensor:
        """Returns p: [P, E], not rounded by autocast, so that it is what the adapter's file records"""
        x = self.inputs  # [P, E]
        with torch.autocast(x.device.type, enabled=False):
            if self.lstm is not None:
                x = self.lstm(x[None], x.new_ones(1, len(x), dtype=torch.bool))[0]  # [P, 2·hidden]
            x = self.first(x).relu()
            if self.second is not None:
                x = self.second(x).relu()
            return self.start + self.last(x)


def apply(model: Encoder, options: PTuningOptions, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Attaches an encoded prompt to `model`, in place. Returns the settings that the adapter's file records.

    init_ids: token ids of options.prompt_text, for prompt_init text. Raises ValueError if they are missing.
    """
    rows = initial_rows(model, options.virtual_tokens, options.prompt_init, init_ids)
    encoder = PromptEncoder(rows, options.prompt_encoder, options.prompt_hidden)
    model.virtual = SoftPrompt(encoder, options.pool).to(rows.device)
    return asdict(options)
