"""Language modelling with recurrent networks (Dai & Le 2015, arXiv 1511.01432, §2; in both directions: Miyato et al.
2017, arXiv 1605.07725, §4.1): pretraining without labels.

    forward:   h_t = →RNN(w_1 … w_t),    L_→ = mean over t < T  of -log p_→(w_{t+1} | h_t)
    backward:  g_t = ←RNN(w_T … w_t),    L_← = mean over t > 1  of -log p_←(w_{t-1} | g_t)
    L = mean of L_→ and L_←, or L_→ with one direction

The means are over all predicted words of a batch. Each direction has an adaptive softmax p of its own
(nn/adaptive_softmax.py), which reads the state of that direction alone; the embeddings are shared. The softmaxes exist
during training only.

An LSTM over windows of a convolution has one state for q words. →h_s has read the words up to q·s + ahead, and predicts
the next one; ←h_s has read the words from q·s - behind on (`nn.words.Reading`).

Gradients reach the beginning of an example: a review of up to --max-length words, or a chunk of a longer one.
Truncated backpropagation, with a state that is carried from chunk to chunk, would shorten the memory of whole reviews
and tie each batch to the one before it.

Differs from the papers: adaptive softmax, where Miyato et al. sample 1,024 words; no end of review; Adam without decay
of the rate. The model's word dropout is for classification and is off here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

from data.batches import Batch
from data.flags import option
from data.tokenization import Tokenizer
from nn import Model
from nn.adaptive_softmax import AdaptiveSoftmax
from nn.words import Reading, WordClassifier


@dataclass(frozen=True)
class LMOptions:
    cutoffs: str = option("2000,10000", "objective", "lm: ids that begin the clusters of rarer words", "N,N")

    def __post_init__(self) -> None:
        if not all(part.strip().isdigit() for part in self.cutoffs.split(",")):
            raise ValueError(f"--cutoffs {self.cutoffs!r} are not numbers with commas between them, like 2000,10000")


class LM(Module):
    """The softmax of each direction, which exists during training only."""

    def __init__(self, width: int, vocab_size: int, cutoffs: list[int], directions: int) -> None:
        super().__init__()
        self.directions = ModuleList(
            AdaptiveSoftmax(width=width, vocab_size=vocab_size, cutoffs=cutoffs) for _ in range(directions)
        )


def prepare(model: Model, options: LMOptions, tokenizer: Tokenizer | None) -> None:
    """Adds the softmaxes to `model`. Raises ValueError for a model whose states read the words that they predict."""
    if not isinstance(model, WordClassifier) or model.reading is None:
        raise ValueError(f"--loss lm pretrains recurrent networks over words, not {model.model_type}; see --loss mlm")
    c, directions = model.config, model.reading.directions
    if directions > 1 and c.num_layers > 1:
        raise ValueError(
            "from the second layer on each direction of a recurrent network reads both: --loss lm needs "
            "--shape num_layers=1 or bidirectional=false"
        )
    cutoffs = [int(part) for part in options.cutoffs.split(",")]
    model.pretraining = LM(c.hidden_size, vocab_size=c.vocab_size, cutoffs=cutoffs, directions=directions)


def predicted_words(h: Tensor, input_ids: Tensor, mask: Tensor, reading: Reading) -> list[tuple[Tensor, Tensor]]:
    """Pairs the states of each direction with the words that they predict.

    h: [B, S, N·D];  input_ids: int64 [B, T];  mask: bool [B, T] -> for each direction ([n, D], int64 [n])
    """
    first = torch.arange(h.size(1), device=h.device) * reading.stride  # [S], the first word of each step
    offsets = (first + reading.ahead + 1, first - reading.behind - 1)  # [S], the predicted word, forward and backward
    pairs = []
    for states, position in zip(h.chunk(reading.directions, -1), offsets, strict=False):
        inside = (position >= 0) & (position < input_ids.size(1))
        position = position.clamp(0, input_ids.size(1) - 1)
        real = mask[:, first] & mask[:, position] & inside  # [B, S]
        pairs.append((states[real], input_ids[:, position][real]))
    return pairs


def objective(model: WordClassifier, batch: Batch, options: LMOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes L. Returns (loss, {"acc", "nats", of two directions also "back_acc", "back_nats"}).

    acc: bool [n], whether the word has the highest probability among frequent words. nats: fp32 [n], -log p of each
    word; the perplexity is exp of their mean.
    """
    ids, mask = batch.input_ids, batch.mask
    x = model.embeddings.drop_columns(model.embeddings.word(ids))  # [B, T, E]
    h = model.dropout(model.encode(x, mask))  # [B, S, N·D]
    losses: list[Tensor] = []
    found: dict[str, Tensor] = {}
    pairs = predicted_words(h, ids, mask, model.reading)  # type: ignore[arg-type]  # prepare has checked it
    for prefix, softmax, (states, targets) in zip(("", "back_"), model.pretraining.directions, pairs, strict=False):
        nats, correct = softmax(states, targets)
        losses.append(nats.sum() / max(1, len(nats)))
        found |= {f"{prefix}acc": correct, f"{prefix}nats": nats.detach()}
    return torch.stack(losses).mean(), found
