"""Language modelling with recurrent networks (Dai & Le 2015, arXiv 1511.01432, §2; in both directions: Miyato et al.
2017, arXiv 1605.07725, §4.1): pretraining without labels.

    forward:   h_t = →RNN(w_1 … w_t),    L_→ = mean over t < T  of -log p_→(w_{t+1} | h_t)
    backward:  g_t = ←RNN(w_T … w_t),    L_← = mean over t > 1  of -log p_←(w_{t-1} | g_t)
    L = mean of L_→ and L_←, or L_→ with one direction

The means are over all predicted words of a batch. Each direction has an adaptive softmax p of its own
(nn/adaptive_softmax.py), which reads the state of that direction alone; the embeddings are shared. The softmaxes exist
during training only.

An LSTM over windows of a convolution has one state for q words. →h_s depends on the words up to q·s + ahead and
predicts the next one; ←h_s depends on the words from q·s - behind on (`nn.words.ReceptiveField`).

Gradients flow back to the start of an example: a review of up to --max-length words, or a chunk of a longer one.
Truncated backpropagation, with a state that is carried from chunk to chunk, would shorten the memory of whole reviews
and tie each batch to the one before it.

Differs from the papers: an adaptive softmax, where Miyato et al. sample 1,024 words; no end-of-text token; AdamW with
a linear decay of the rate (`--schedule`), where Miyato et al. multiply Adam's rate by 0.9999 in each step. The model's
word dropout is for classification and is off here.
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
from nn.words import ReceptiveField, WordClassifier


@dataclass(frozen=True)
class LMOptions:
    cutoffs: str = option("2000,10000", "objective", "lm: ids that begin the clusters of rarer words", "N,N")

    def __post_init__(self) -> None:
        if not all(part.strip().isdecimal() for part in self.cutoffs.split(",")):
            raise ValueError(f"--cutoffs {self.cutoffs!r} are not numbers with commas between them, like 2000,10000")


class LM(Module):
    """The softmax of each direction, which exists during training only."""

    def __init__(self, width: int, vocab_size: int, cutoffs: list[int], directions: int) -> None:
        super().__init__()
        self.directions = ModuleList(
            AdaptiveSoftmax(width=width, vocab_size=vocab_size, cutoffs=cutoffs) for _ in range(directions)
        )


def prepare(model: Model, options: LMOptions, tokenizer: Tokenizer | None) -> None:
    """Adds the softmaxes to `model`.

    Raises ValueError for a model whose states depend on the words that they predict.
    """
    if not isinstance(model, WordClassifier) or model.receptive_field is None:
        other = "; see --loss mlm" if not isinstance(model, WordClassifier) else ""
        raise ValueError(f"--loss lm pretrains recurrent networks over words, not {model.model_type}{other}")
    c, directions = model.config, model.receptive_field.directions
    if directions > 1 and c.num_layers > 1:
        raise ValueError(
            "from the second layer on each direction of a recurrent network reads both: --loss lm needs "
            "--shape num_layers=1 or bidirectional=false"
        )
    cutoffs = [int(part) for part in options.cutoffs.split(",")]
    model.pretraining = LM(c.hidden_size, vocab_size=c.vocab_size, cutoffs=cutoffs, directions=directions)


def predictions(mask: Tensor, field: ReceptiveField) -> list[tuple[Tensor, Tensor]]:
    """Returns for each direction the position that each step predicts, and whether step and position are in the text.

    mask: bool [B, T] -> int64 [S], bool [B, S]
    """
    length = mask.size(1)
    first = torch.arange(0, length, field.stride, device=mask.device)  # [S], the first word of each step
    offsets = (first + field.ahead + 1, first - field.behind - 1)  # [S], the predicted word, forward and backward
    found = []
    for position in offsets[: field.directions]:
        inside, position = (position >= 0) & (position < length), position.clamp(0, length - 1)
        found.append((position, mask[:, first] & mask[:, position] & inside))
    return found


def predicted_words(h: Tensor, input_ids: Tensor, mask: Tensor, field: ReceptiveField) -> list[tuple[Tensor, Tensor]]:
    """Pairs the states of each direction with the words that they predict.

    h: [B, S, N·D];  input_ids: int64 [B, T];  mask: bool [B, T] -> for each direction ([n, D], int64 [n])
    """
    directions = zip(h.chunk(field.directions, -1), predictions(mask, field), strict=True)
    return [(states[real], input_ids[:, position][real]) for states, (position, real) in directions]


def objective(model: WordClassifier, batch: Batch, options: LMOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes L, with several ranks this rank's part. Returns (loss, {"acc", "nats"}), of two directions also
    "back_acc" and "back_nats".

    acc: bool [n], whether the word has the highest probability among frequent words. nats: fp32 [n], -log p of each
    word; the perplexity is exp of their mean.
    """
    ids, field, whole = batch.input_ids, model.receptive_field, batch.whole.mask
    assert field is not None  # `prepare` has checked it
    x = model.embeddings.drop_columns(model.embeddings.word(ids))  # [B, T, E]
    h = model.dropout(model.encode(x, batch.mask))  # [B, S, N·D]
    pairs = predicted_words(h, ids, batch.own(whole), field)
    counts = [real.sum().clamp(min=1) for _, real in predictions(whole, field)]  # of the words of all ranks
    losses: list[Tensor] = []
    found: dict[str, Tensor] = {}
    directions = zip(("", "back_"), model.pretraining.directions, pairs, counts, strict=False)
    for prefix, softmax, (states, targets), count in directions:
        nats, correct = softmax(states, targets)
        losses.append(nats.sum() / count)
        found |= {f"{prefix}acc": correct, f"{prefix}nats": nats.detach()}
    return torch.stack(losses).mean(), found
