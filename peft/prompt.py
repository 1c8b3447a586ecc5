"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691, §2): P trained vectors before the words of a frozen model.

    [p₁ … p_P; e(x₁) … e(x_T)],   p: [P, E]

They join as word embeddings, so positions, types and the embedding norm act on them once, as on words. The classifier
reads the real [CLS], behind them; pool `virtual` reads p₁ instead, as huggingface/peft does. P·E parameters, beside the
head.

init: `vocabulary` draws rows of the word table (§3.2, "sampled vocabulary"), `text` takes those of given tokens,
`random` has their spread.

Differs from the paper: a classification head on [CLS], not words of an answer.
"""

import torch
from torch import Tensor
from torch.nn import Module, Parameter

OPTIONS = ("virtual_tokens", "prompt_init", "pool")
INITS = ("vocabulary", "text", "random")
POOLS = ("cls", "virtual")


class Table(Module):
    """[P, …] trained rows."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = Parameter(rows.detach().clone())

    def forward(self) -> Tensor:
        return self.weight


class SoftPrompt(Module):
    """features(x) with the rows of `source`, [P, E], before the words of x."""

    def __init__(self, source: Module, pool: str = "cls") -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}; known: {', '.join(POOLS)}")
        self.source, self.pool = source, pool

    def forward(self, model: Module, input_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, T] ids -> features [B, D]"""
        words = model.embeddings.word(input_ids)  # [B, T, E]
        rows = self.source()  # [P, E]
        prompt = rows.to(words.dtype).expand(len(words), -1, -1)  # [B, P, E]
        joined = torch.cat([prompt, words], 1)  # [B, P + T, E]
        seen = torch.cat([mask.new_ones(prompt.shape[:2]), mask], 1)  # [B, P + T]
        first = len(rows) if self.pool == "cls" else 0
        h = model.encode(model.embed_words(joined, seen), seen, queries=first + 1)  # [B, first + 1, D]
        return model.pool(h[:, first:], seen[:, first:])


def fill(ids: list[int], count: int) -> Tensor:
    """`ids`, repeated or cut to `count`."""
    return torch.tensor((ids * (count // len(ids) + 1))[:count])


@torch.no_grad()
def first_rows(model: Module, count: int, init: str, init_ids: list[int] | None) -> Tensor:
    """Where the virtual tokens start: [P, E]. Raises ValueError."""
    word = model.embeddings.word
    if count < 1:
        raise ValueError(f"{count} virtual tokens; at least 1 is needed")
    if init == "vocabulary":
        return word(torch.randint(word.num_embeddings, (count,)))
    if init == "text":
        if not init_ids:
            raise ValueError("prompt_init text needs the ids of a text")
        return word(fill(init_ids, count))
    if init == "random":
        return torch.randn(count, word.embedding_dim) * word(torch.arange(min(1000, word.num_embeddings))).std()
    raise ValueError(f"unknown prompt_init {init!r}; known: {', '.join(INITS)}")


def apply(
    model: Module,
    virtual_tokens: int = 20,
    prompt_init: str = "text",
    pool: str = "cls",
    init_ids: list[int] | None = None,
) -> dict:
    """Puts a soft prompt on `model`, in place. init_ids: tokens of the text to start from."""
    rows = first_rows(model, virtual_tokens, prompt_init, init_ids)
    model.virtual = SoftPrompt(Table(rows), pool)
    return {"virtual_tokens": virtual_tokens, "prompt_init": prompt_init, "pool": pool}
