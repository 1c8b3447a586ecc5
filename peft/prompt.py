"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691, §2): P trained vectors before the words of a frozen model.

    [p₁ … p_P; e(x₁) … e(x_T)],   p: [P, E]

        trained   frozen word embeddings
        p₁ … p_P  [CLS]  x₂ … x_T
           └───────┴──────┴── positions, types, norm ── encoder ── h[CLS] ── classifier

The vectors join the sequence as word embeddings, so positions, types and the embedding norm apply to them once, as to
words. The classifier reads the real [CLS], which follows them. With pool `virtual` it reads the first virtual token, as
in huggingface/peft. The prompt has P·E parameters; the head is trained as well.

init: `vocabulary` draws rows of the word table, `text` copies the rows of given tokens, `random` draws normal vectors
with the standard deviation of the table's first 1,000 rows.

Differs from the paper: a classification head reads [CLS]; the paper generates the words of an answer. `vocabulary`
draws from all rows, the paper from the 5,000 most common tokens (§3.2); its random vectors are uniform in [-0.5, 0.5].
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from data.flags import option
from nn.encoder import Encoder

INITS = ("vocabulary", "text", "random")
POOLS = ("cls", "virtual")
MOST_TOKENS = 65_536  # virtual ones; no published model has as many positions
PROMPT_TEXT = "Is this review of a movie positive or negative? great wonderful excellent, or bad boring awful:"


@dataclass(frozen=True)
class VirtualTokenOptions:
    """The options that all methods with virtual tokens share."""

    virtual_tokens: int = option(20, "virtual tokens", "number P of virtual tokens")
    prompt_text: str = option(PROMPT_TEXT, "virtual tokens", "the text that virtual tokens are initialized from")

    def __post_init__(self) -> None:
        if self.virtual_tokens < 1:
            raise ValueError(f"{self.virtual_tokens} virtual tokens; at least 1 is needed")
        if self.virtual_tokens > MOST_TOKENS:
            raise ValueError(f"{self.virtual_tokens:,} virtual tokens; at most {MOST_TOKENS:,} are possible")

    def check_text(self, init: str) -> None:
        """Raises ValueError for a --prompt-text that has no effect. init: what the tokens are initialized from"""
        if self.prompt_text != PROMPT_TEXT and init != "text":
            raise ValueError(f"--prompt-text has no effect on virtual tokens that start from {init}")


@dataclass(frozen=True)
class PromptOptions(VirtualTokenOptions):
    prompt_init: str = option("text", "virtual tokens", "a prompt is initialized from", choices=INITS)
    pool: str = option(
        "cls", "virtual tokens", "token that a prompt's classifier reads; virtual as in huggingface/peft", choices=POOLS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_text(self.prompt_init)


class Table(Module):
    """Returns P trained rows: [P, …]"""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = Parameter(rows.detach().clone())

    def forward(self) -> Tensor:
        return self.weight


class SoftPrompt(Module):
    """Computes features(x) with the rows of `source`, [P, E], before the words of x.

    pool: token that the classifier reads, cls or virtual. Raises ValueError for another one.
    """

    def __init__(self, source: Module, pool: str = "cls") -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}; known: {', '.join(POOLS)}")
        self.source, self.pool = source, pool

    def forward(self, model: Encoder, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T] -> features [B, D]"""
        words = model.embeddings.word(input_ids)  # [B, T, E]
        rows = self.source()  # [P, E]
        prompt = rows.to(words.dtype).expand(words.size(0), -1, -1)  # [B, P, E]
        joined = torch.cat([prompt, words], 1)  # [B, P + T, E]
        visible = torch.cat([mask.new_ones(prompt.shape[:2]), mask], 1)  # [B, P + T]
        first = len(rows) if self.pool == "cls" else 0
        x = model.embed_words(joined, visible)  # [B, P + T, D]
        h = model.encode(x, visible, queries=model.pooled_queries(first))  # [B, first + 1 or P + T, D]
        return model.pool(h[:, first:], visible[:, first:])


def repeat_to_length(ids: list[int], count: int) -> Tensor:
    """Repeats or truncates `ids` to `count` ids: int64 [count]"""
    ids = list(map(int, ids))
    return torch.tensor((ids * (count // len(ids) + 1))[:count])


@torch.no_grad()
def initial_rows(model: Encoder, count: int, init: str, init_ids: list[int] | None) -> Tensor:
    """Computes the initial virtual tokens: [P, E]. Raises ValueError for an unknown init or a missing text."""
    word, device = model.embeddings.word, next(model.parameters()).device
    if init == "vocabulary":
        return word(torch.randint(word.num_embeddings, (count,)).to(device))
    if init == "text":
        if init_ids is None or not len(init_ids):
            raise ValueError("prompt_init text needs the ids of a text; prompt_text is empty")
        return word(repeat_to_length(init_ids, count).to(device))
    if init == "random":
        spread = word(torch.arange(min(1000, word.num_embeddings), device=device)).std()
        return torch.randn(count, word.embedding_dim).to(device) * spread
    raise ValueError(f"unknown prompt_init {init!r}; known: {', '.join(INITS)}")


def apply(model: Encoder, options: PromptOptions, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Attaches a soft prompt to `model`, in place. Returns the settings that the adapter's file records.

    init_ids: token ids of options.prompt_text, for prompt_init text.
    """
    rows = initial_rows(model, options.virtual_tokens, options.prompt_init, init_ids)
    model.virtual = SoftPrompt(Table(rows), options.pool).to(rows.device)
    return asdict(options)
