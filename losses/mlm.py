"""Masked language modelling (Devlin et al. 2019, arXiv 1810.04805, §3.1 and A.1): pretraining without labels.

    S: the places that are predicted, each real token with probability 0.15
    x'_t = [MASK] with probability 0.8, a random token with 0.1, x_t with 0.1, for t in S;   x'_t = x_t elsewhere
    u_t = LN(act(W h_t + b)),   log p(x_t | x') = log softmax(E u_t + c)[x_t],   h = encode(x')
    L = mean over S of -log p(x_t | x')

E -> the word embeddings (tied: the published heads have no table of their own);  W, b -> dense;  c -> bias. Only the
places in S get logits: there is no [B, T, V] tensor. With whole words, the pieces of a word are chosen together.

The head stands beside the model while it is trained, and is dropped afterwards.

Differs from the paper: places are chosen independently, so that 15 % is an expectation. DeBERTa's enhanced mask decoder
(absolute positions before the softmax; He et al. 2021, §3.2) is left out, as v3's discriminator does without.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, Parameter

from nn.encoder import activation, init_weights

CHOSEN = 0.15  # of real tokens
BECOME_MASK, BECOME_RANDOM = 0.8, 0.1  # of the chosen


class Pieces(NamedTuple):
    """What masking must know of a tokenizer."""

    mask_id: int
    ordinary: Tensor  # bool [V]: neither special nor unused
    starts: Tensor  # bool [V]: begins a word

    @classmethod
    def of(cls, tokenizer) -> "Pieces":
        """Raises ValueError for a tokenizer without a mask token."""
        mask_id = tokenizer.id_of(tokenizer.special.get("mask", ""))
        if mask_id is None:
            raise ValueError(f"the {tokenizer.kind} tokenizer has no mask token to pretrain with")
        special = set(tokenizer.special.values())
        ordinary = torch.tensor([piece not in special for piece in tokenizer.words])
        return cls(mask_id, ordinary, torch.tensor([tokenizer.starts_word(piece) for piece in tokenizer.words]))


def choose(input_ids: Tensor, mask: Tensor, pieces: Pieces, whole_words: bool = False, rate: float = CHOSEN) -> Tensor:
    """S: bool [B, T], never padding, never a special token. Draws from the device's generator."""
    draw = torch.rand(input_ids.shape, device=input_ids.device)
    if whole_words:
        special = ~pieces.ordinary.to(input_ids.device)[input_ids]
        word = (pieces.starts.to(input_ids.device)[input_ids] | special).cumsum(1) - 1  # [B, T]: number of its word
        draw = draw.gather(1, word.clamp(min=0))
    return (draw < rate) & mask & pieces.ordinary.to(input_ids.device)[input_ids]


def corrupt(input_ids: Tensor, chosen: Tensor, pieces: Pieces) -> Tensor:
    """x': int64 [B, T]"""
    kind = torch.rand(input_ids.shape, device=input_ids.device)
    words = pieces.ordinary.to(input_ids.device).nonzero().squeeze(1)
    random = words[torch.randint(len(words), input_ids.shape, device=input_ids.device)]
    becomes = torch.where(kind < BECOME_MASK + BECOME_RANDOM, random, input_ids)
    becomes = torch.where(kind < BECOME_MASK, pieces.mask_id, becomes)
    return torch.where(chosen, becomes, input_ids)


class MLMHead(Module):
    """E LN(act(W h + b)) + c;  W: [E, D], c: [V]."""

    def __init__(self, hidden_size: int, embedding_size: int, vocab_size: int, act: str, eps: float) -> None:
        super().__init__()
        self.dense = Linear(hidden_size, embedding_size)
        self.norm = LayerNorm(embedding_size, eps=eps)
        self.bias = Parameter(torch.zeros(vocab_size))
        self.activation = activation(act)

    def forward(self, h: Tensor, table: Tensor) -> Tensor:
        """h: [N, D];  table: E, [V, E] -> logits [N, V]"""
        return F.linear(self.norm(self.activation(self.dense(h))), table, self.bias)


def head_for(model: Module) -> MLMHead:
    c = model.config
    width, eps = model.embeddings.word.weight.size(1), model.embeddings.norm.eps
    head = MLMHead(c.hidden_size, width, c.vocab_size, c.hidden_act, eps)
    init_weights(head, c.initializer_range)
    return head


class MLM(Module):
    """What pretraining puts beside a model."""

    def __init__(self, model: Module, pieces: Pieces) -> None:
        super().__init__()
        self.head, self.pieces = head_for(model), pieces


def check(model: Module, options) -> None:
    """Raises ValueError for a model or a method that cannot be pretrained."""
    if not hasattr(model, "embed_words"):
        raise ValueError(f"--loss {options.loss} pretrains the encoders over pieces, not {options.model}")
    if options.peft != "none":
        raise ValueError(f"--loss {options.loss} trains the whole model; leave out --peft {options.peft}")


def prepare(model: Module, options, tokenizer) -> None:
    check(model, options)
    model.pretraining = MLM(model, Pieces.of(tokenizer))


def predict(model: Module, head: MLMHead, x: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """Logits at `places` alone, which are all that the last layer works out. x: embedded [B, T, D];  mask, places: bool
    [B, T] -> fp32 or wider [|S|, V]"""
    counts = places.sum(1, keepdim=True)
    most = max(1, int(counts.max()))
    order = places.byte().argsort(dim=1, descending=True, stable=True)  # the places of each text, in order, first
    h = model.encode(x, mask, queries=order[:, :most])[torch.arange(most, device=x.device) < counts]  # [|S|, D]
    logits = head(h, model.embeddings.word.weight)
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L; 0 where nothing was chosen. logits: [N, V];  targets: int64 [N] -> scalar"""
    return F.cross_entropy(logits, targets) if len(targets) else logits.sum() * 0


def objective(model: Module, batch, options) -> tuple[Tensor, dict[str, Tensor]]:
    """L, and which of the chosen tokens were guessed: bool [|S|]."""
    aside = model.pretraining
    chosen = choose(batch.input_ids, batch.mask, aside.pieces, options.whole_words)
    x = model.embed(corrupt(batch.input_ids, chosen, aside.pieces), batch.mask)
    logits, targets = predict(model, aside.head, x, batch.mask, chosen), batch.input_ids[chosen]
    return mean_loss(logits, targets), {"acc": logits.detach().argmax(-1) == targets}
