"""Masked language modelling (Devlin et al. 2019, arXiv 1810.04805, §3.1 and A.1): pretraining without labels.

    S: the predicted positions; each real token that is not special is in S with probability 0.15
    x'_t = [MASK] with probability 0.8, a random token with 0.1, x_t with 0.1, for t in S;   x'_t = x_t elsewhere
    u_t = LN(act(W h_t + b)),   log p(x_t | x') = log softmax(E u_t + c)[x_t],   h = encode(x')
    L_MLM = mean over S of -log p(x_t | x')

L_MLM does not train [CLS] to represent the text. Bag-of-words prediction does (Ma et al. 2024, arXiv 2401.11248, §3):
[CLS] alone predicts the set V(x) of tokens that occur in the text.

    q = log softmax(E (A h_[CLS] + a) + d);   L_bag = mean over texts of -1/|V(x)| Σ q_v, v in V(x)
    L = L_MLM + λ_bag L_bag

E is the table of word embeddings (tied weights);  W, b -> dense;  c -> bias. Logits are computed at the positions in S
only, so that there is no tensor [B, T, V]. With whole words, all subwords of a word are masked together. The heads
exist during training only.

Differs from Ma et al.: they add no parameters; A, a and d are new here. Differs from Devlin et al.: positions are drawn
independently, so that 15 % is an expectation; a random token is never a special one. The paper has a softmax over the
vocabulary; the transform LN(act(W h + b)), the tied weights and c are those of the published code. A checkpoint that
contains such a head continues with it (losses/published_head.py). DeBERTa's enhanced mask decoder (absolute positions
before the softmax; He et al. 2021, §3.2) is omitted, as in v3's discriminator.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, Parameter

from data.batches import Batch
from data.flags import option
from data.tokenization import Tokenizer
from losses.published_head import load_head
from nn import Model
from nn.autocast import at_least_fp32
from nn.encoder import Encoder, activation, init_weights

MASKING_RATE = 0.15  # of real tokens that are not special
BECOME_MASK, BECOME_RANDOM = 0.8, 0.1  # of the tokens in S


@dataclass(frozen=True)
class MaskingOptions:
    whole_words: bool = option(False, "objective", "mlm, rtd: mask all subwords of a word together")


@dataclass(frozen=True)
class MLMOptions(MaskingOptions):
    bag_weight: float = option(0.0, "objective", "mlm: weight λ of bag-of-words prediction from [CLS]; 0: none")

    def __post_init__(self) -> None:
        if not self.bag_weight >= 0:
            raise ValueError(f"bag weight {self.bag_weight} must not be negative")


class Vocabulary(NamedTuple):
    """The properties of a tokenizer's vocabulary that masking depends on."""

    mask_id: int
    ordinary: Tensor  # bool [V]: neither a special token nor an unused id
    starts: Tensor  # bool [V]: begins a word

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        """Reads the vocabulary of a tokenizer. Raises ValueError if it has no mask token."""
        mask_id = tokenizer.id_of(tokenizer.special.get("mask", ""))
        if mask_id is None:
            raise ValueError(f"the {tokenizer.kind} tokenizer has no mask token to pretrain with")
        special = {*tokenizer.special.values(), ""}  # "": an unused id
        ordinary = torch.tensor([token not in special for token in tokenizer.tokens])
        return cls(mask_id, ordinary, torch.tensor([tokenizer.starts_word(token) for token in tokenizer.tokens]))


def choose(
    input_ids: Tensor,
    mask: Tensor,
    vocabulary: Vocabulary,
    whole_words: bool = False,
    rate: float = MASKING_RATE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws S from a generator, the device's by default: bool [B, T], False at padding and at special tokens.

    input_ids: int64 [B, T];  mask: bool [B, T];  rate: probability that a token is in S
    """
    ordinary = vocabulary.ordinary.to(input_ids.device)[input_ids]  # [B, T]
    draw = torch.rand(input_ids.shape, generator=generator, device=input_ids.device)
    if whole_words:
        begins = vocabulary.starts.to(input_ids.device)[input_ids] | ~ordinary  # [B, T]
        word = begins.cumsum(1) - 1  # [B, T]: index of the word
        draw = draw.gather(1, word.clamp(min=0))  # one draw for all subwords of a word
    return (draw < rate) & mask & ordinary


def corrupt(
    input_ids: Tensor, chosen: Tensor, vocabulary: Vocabulary, generator: torch.Generator | None = None
) -> Tensor:
    """Computes x': int64 [B, T]. input_ids: int64 [B, T];  chosen: S, bool [B, T]"""
    kind = torch.rand(input_ids.shape, generator=generator, device=input_ids.device)
    ordinary_ids = vocabulary.ordinary.to(input_ids.device).nonzero().squeeze(1)
    numbers = torch.randint(len(ordinary_ids), input_ids.shape, generator=generator, device=input_ids.device)
    random = ordinary_ids[numbers]
    replaced = torch.where(kind < BECOME_MASK + BECOME_RANDOM, random, input_ids)
    replaced = torch.where(kind < BECOME_MASK, vocabulary.mask_id, replaced)
    return torch.where(chosen, replaced, input_ids)


class MLMHead(Module):
    """Computes E LN(act(W h + b)) + c;  W: [E, D], c: [V]."""

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
    """Computes E (A h + a) + d;  A -> dense [E, D], d -> bias [V].

    The head is linear, so that a linear classifier can use the same information of [CLS].
    """

    def __init__(self, hidden_size: int, embedding_size: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = Linear(hidden_size, embedding_size)
        self.bias = Parameter(torch.zeros(vocab_size))

    def forward(self, h: Tensor, table: Tensor) -> Tensor:
        """h: [B, D];  table: E, [V, E] -> logits [B, V]"""
        return F.linear(self.dense(h), table, self.bias)


def head_for(model: Encoder) -> MLMHead:
    """Builds a newly initialized MLM head that fits `model`."""
    c = model.config
    head = MLMHead(
        hidden_size=c.hidden_size,
        embedding_size=model.embeddings.word.weight.size(1),
        vocab_size=c.vocab_size,
        act=model.mlm_activation(),
        eps=model.embeddings.norm.eps,
    )
    init_weights(head, c.initializer_range)
    return head


class MLM(Module):
    """The heads of masked language modelling, which exist during training only."""

    def __init__(self, model: Encoder, vocabulary: Vocabulary, with_bag: bool = False) -> None:
        super().__init__()
        self.head, self.vocabulary = head_for(model), vocabulary
        vocab_size, width = model.embeddings.word.weight.shape
        self.bag = BagHead(model.config.hidden_size, width, vocab_size) if with_bag else None


def check_encoder(model: Model) -> Encoder:
    """Returns the model. Raises ValueError if it cannot be pretrained."""
    if not isinstance(model, Encoder):
        raise ValueError(f"--loss mlm and rtd pretrain encoders over subwords, not {model.model_type}")
    if model.adapter is not None:
        raise ValueError(f"--loss mlm and rtd train the whole model; leave out --peft {model.adapter['method']}")
    return model


def prepare(model: Model, options: MLMOptions, tokenizer: Tokenizer) -> None:
    """Adds the heads to `model`: the one of its checkpoint, or else a new one.

    Raises ValueError for a model or a tokenizer that cannot be pretrained.
    """
    model.pretraining = MLM(check_encoder(model), Vocabulary.of(tokenizer), with_bag=options.bag_weight > 0)
    if model.source is not None:
        print(f"MLM head: {load_head(model.pretraining.head, model.embeddings.word.weight, model.source)}")


def states(model: Encoder, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Computes the encoder's output at `positions` only, text by text.

    The last layer has as many queries for each text as the text with the most positions needs. x: embeddings
    [B, T, D];  mask, positions: bool [B, T] -> [|positions|, D]
    """
    counts = positions.sum(1, keepdim=True)
    most = max(1, int(counts.max()))
    order = positions.byte().argsort(dim=1, descending=True, stable=True)  # the positions of each text come first
    return model.encode(x, mask, queries=order[:, :most])[torch.arange(most, device=x.device) < counts]


def predict(model: Encoder, head: MLMHead | BagHead, h: Tensor) -> Tensor:
    """Computes the logits of a head over the vocabulary. h: [N, D] -> fp32 or wider [N, V]"""
    return at_least_fp32(head(h, model.embeddings.word.weight))


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes L_MLM, or 0 if S is empty. logits: [|S|, V];  targets: int64 [|S|] -> scalar"""
    return F.cross_entropy(logits, targets) if len(targets) else logits.sum() * 0


def bag(input_ids: Tensor, counted: Tensor, vocab_size: int) -> Tensor:
    """Computes V(x), the set of tokens at the positions `counted`.

    input_ids: int64 [B, T];  counted: bool [B, T] -> bool [B, V]
    """
    occurs = torch.zeros(len(input_ids), vocab_size, dtype=torch.bool, device=input_ids.device)
    text, position = counted.nonzero(as_tuple=True)
    occurs[text, input_ids[text, position]] = True
    return occurs


def bag_loss(logits: Tensor, occurs: Tensor) -> Tensor:
    """Computes L_bag; an empty text adds 0. logits: [B, V];  occurs: bool [B, V] -> scalar"""
    weights = occurs.to(logits.dtype) / occurs.sum(1, keepdim=True).clamp(min=1)  # [B, V]
    return F.cross_entropy(logits, weights)


def objective(model: Encoder, batch: Batch, options: MLMOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes L, with several ranks this rank's part. Returns (loss, correct predictions by name).

    All ranks draw S and x' of the whole batch, so that they do not depend on the number of ranks.
    "acc": bool [|S|], whether the token with the highest logit is the original one. "bag", with bag-of-words
    prediction: bool [50 B], whether each of the 50 tokens with the highest logits occurs in its text.
    """
    heads, ids, whole = model.pretraining, batch.input_ids, batch.whole
    generator = batch.generator()
    all_chosen = choose(whole.input_ids, whole.mask, heads.vocabulary, options.whole_words, generator=generator)
    all_corrupted = corrupt(whole.input_ids, all_chosen, heads.vocabulary, generator)
    chosen, corrupted = batch.own(all_chosen), batch.own(all_corrupted)  # [B, T]
    needed = chosen.clone()
    if heads.bag is not None:
        needed[:, 0] = True  # [CLS], which is never in S
    h = states(model, model.embed(corrupted, batch.mask), batch.mask, needed)
    in_s = chosen[needed]  # bool [|needed|]
    logits, targets = predict(model, heads.head, h[in_s]), ids[chosen]
    loss = batch.part_of(mean_loss(logits, targets), all_chosen)
    correct = {"acc": logits.detach().argmax(-1) == targets}
    if heads.bag is not None:
        logits = predict(model, heads.bag, h[~in_s])  # [B, V]
        occurs = bag(ids, batch.mask & heads.vocabulary.ordinary.to(ids.device)[ids], logits.size(1))
        loss = loss + batch.part(options.bag_weight * bag_loss(logits, occurs))
        highest = logits.detach().topk(min(50, logits.size(1))).indices
        correct["bag"] = occurs.gather(1, highest).flatten()
    return loss, correct
