"""Masked language modelling (Devlin et al. 2019, arXiv 1810.04805, §3.1 and A.1): pretraining without labels.

    S: the places that are predicted, each real token with probability 0.15
    x'_t = [MASK] with probability 0.8, a random token with 0.1, x_t with 0.1, for t in S;   x'_t = x_t elsewhere
    u_t = LN(act(W h_t + b)),   log p(x_t | x') = log softmax(E u_t + c)[x_t],   h = encode(x')
    L_MLM = mean over S of -log p(x_t | x')

Nothing in it asks [CLS] to know the text. Bag-of-words prediction does (Ma et al. 2024, arXiv 2401.11248, §3): from
[CLS] alone, which pieces V(x) the text is made of, in whatever order, each counted once.

    q = log softmax(E (A h_[CLS] + a) + d);   L_bag = mean over texts of -1/|V(x)| Σ q_v, v in V(x)
    L = L_MLM + λ_bag L_bag

E -> the word embeddings (tied: the published heads have no table of their own);  W, b -> dense;  c -> bias. Only the
places in S get logits: there is no [B, T, V] tensor. With whole words, the pieces of a word are chosen together.

The heads stand beside the model while it is trained, and are dropped afterwards.

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


class BagHead(Module):
    """E (A h + a) + d;  A -> dense [E, D], d -> bias [V]. Linear: a classifier can read what [CLS] knows."""

    def __init__(self, hidden_size: int, embedding_size: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = Linear(hidden_size, embedding_size)
        self.bias = Parameter(torch.zeros(vocab_size))

    def forward(self, h: Tensor, table: Tensor) -> Tensor:
        """h: [B, D];  table: E, [V, E] -> logits [B, V]"""
        return F.linear(self.dense(h), table, self.bias)


def head_for(model: Module) -> MLMHead:
    c = model.config
    width, eps = model.embeddings.word.weight.size(1), model.embeddings.norm.eps
    head = MLMHead(c.hidden_size, width, c.vocab_size, c.hidden_act, eps)
    init_weights(head, c.initializer_range)
    return head


class MLM(Module):
    """What pretraining puts beside a model."""

    def __init__(self, model: Module, pieces: Pieces, bag: bool = False) -> None:
        super().__init__()
        self.head, self.pieces = head_for(model), pieces
        vocab_size, width = model.embeddings.word.weight.shape
        self.bag = BagHead(model.config.hidden_size, width, vocab_size) if bag else None


def check(model: Module, options) -> None:
    """Raises ValueError for a model or a method that cannot be pretrained."""
    if not hasattr(model, "embed_words"):
        raise ValueError(f"--loss {options.loss} pretrains the encoders over pieces, not {options.model}")
    if options.peft != "none":
        raise ValueError(f"--loss {options.loss} trains the whole model; leave out --peft {options.peft}")


def prepare(model: Module, options, tokenizer) -> None:
    check(model, options)
    if options.bag_weight < 0:
        raise ValueError(f"bag weight {options.bag_weight} must not be negative")
    model.pretraining = MLM(model, Pieces.of(tokenizer), options.bag_weight > 0)


def states(model: Module, x: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """The encoder's output at `places` alone, which are all that the last layer works out, text by text. x: embedded
    [B, T, D];  mask, places: bool [B, T] -> [|places|, D]"""
    counts = places.sum(1, keepdim=True)
    most = max(1, int(counts.max()))
    order = places.byte().argsort(dim=1, descending=True, stable=True)  # the places of each text, in order, first
    return model.encode(x, mask, queries=order[:, :most])[torch.arange(most, device=x.device) < counts]


def predict(model: Module, head: Module, h: Tensor) -> Tensor:
    """A head's logits. h: [N, D] -> fp32 or wider [N, V]"""
    logits = head(h, model.embeddings.word.weight)
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L; 0 where nothing was chosen. logits: [N, V];  targets: int64 [N] -> scalar"""
    return F.cross_entropy(logits, targets) if len(targets) else logits.sum() * 0


def bag(input_ids: Tensor, counted: Tensor, vocab_size: int) -> Tensor:
    """V(x): which pieces occur at the places `counted`, bool [B, T]. input_ids: int64 [B, T] -> bool [B, V]"""
    occurs = torch.zeros(len(input_ids), vocab_size, dtype=torch.bool, device=input_ids.device)
    text, place = counted.nonzero(as_tuple=True)
    occurs[text, input_ids[text, place]] = True
    return occurs


def bag_loss(logits: Tensor, occurs: Tensor) -> Tensor:
    """L_bag; a text of no pieces adds 0. logits: [B, V];  occurs: bool [B, V] -> scalar"""
    weights = occurs.to(logits.dtype) / occurs.sum(1, keepdim=True).clamp(min=1)  # [B, V]
    return F.cross_entropy(logits, weights)


def objective(model: Module, batch, options) -> tuple[Tensor, dict[str, Tensor]]:
    """L, and which of the chosen tokens were guessed: bool [|S|]. With a bag, which of the 50 pieces most expected in
    each text are there, too ("bag", bool [50 B])."""
    aside, ids = model.pretraining, batch.input_ids
    chosen = choose(ids, batch.mask, aside.pieces, options.whole_words)
    wanted = chosen.clone()
    if aside.bag is not None:
        wanted[:, 0] = True  # [CLS], which is never chosen
    h = states(model, model.embed(corrupt(ids, chosen, aside.pieces), batch.mask), batch.mask, wanted)
    is_chosen = chosen[wanted]  # bool [|wanted|]
    logits, targets = predict(model, aside.head, h[is_chosen]), ids[chosen]
    loss, hits = mean_loss(logits, targets), {"acc": logits.detach().argmax(-1) == targets}
    if aside.bag is not None:
        counted = batch.mask & aside.pieces.ordinary.to(ids.device)[ids]
        logits = predict(model, aside.bag, h[~is_chosen])  # [B, V]
        occurs = bag(ids, counted, logits.size(1))
        loss = loss + options.bag_weight * bag_loss(logits, occurs)
        most_expected = logits.detach().topk(min(50, logits.size(1))).indices
        hits["bag"] = occurs.gather(1, most_expected).flatten()
    return loss, hits
