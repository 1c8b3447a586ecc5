"""Replaced-token detection (ELECTRA: Clark et al. 2020, arXiv 2003.10555, §2) with gradient-disentangled embedding
sharing (DeBERTa-v3: He et al. 2021, arXiv 2111.09543, §3.3): pretraining without labels.

    S: the places that are masked;   x^masked = x with [MASK] in S
    x̂_t ~ p_G(· | x^masked) for t in S                          the generator fills in, by sampling
    x^corrupt = x with x̂ in S
    L_MLM = mean over S of -log p_G(x_t | x^masked)
    L_RTD = mean over t of the binary cross-entropy of D(x^corrupt, t) against [x^corrupt_t ≠ x_t]
    L     = L_MLM + λ L_RTD                                      λ = 50
    E_D   = sg(E_G) + E_Δ,  E_Δ = 0 at first                     He et al., §3.3

D(x, t) = sigmoid(w·act(W h_t + b) + c). The model is the discriminator; the generator is of its kind, as wide and half
as deep, as theirs, and starts from its lower half. sg: the discriminator's gradient reaches E_Δ alone, so that
the two losses do not pull at one table. A token that the generator guesses right counts as original.

Generator, E_Δ and heads serve training alone; the model is saved with E_D.

Differs from the papers: nothing in the math; DeBERTa's enhanced mask decoder is left out of the generator.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module

from losses.mlm import Pieces, check, choose, head_for, mean_loss, predict, states
from nn.encoder import SharedEmbedding, activation, init_weights


def sample(logits: Tensor) -> Tensor:
    """One draw from softmax(logits) a row: the first place where the cumulative sum exceeds a uniform number.
    logits: fp32 or wider [N, V] -> int64 [N]"""
    total = logits.softmax(-1).cumsum(-1)  # [N, V]
    draw = torch.rand(len(logits), 1, dtype=total.dtype, device=total.device) * total[:, -1:]
    return torch.searchsorted(total, draw, right=True).squeeze(1).clamp(max=logits.size(-1) - 1)


class Detector(Module):
    """w·act(W h + b) + c, a logit for each token: [B, T, D] -> [B, T]"""

    def __init__(self, hidden_size: int, act: str) -> None:
        super().__init__()
        self.dense, self.query = Linear(hidden_size, hidden_size), Linear(hidden_size, 1)
        self.activation = activation(act)

    def forward(self, h: Tensor) -> Tensor:
        return self.query(self.activation(self.dense(h))).squeeze(-1)


class RTD(Module):
    """What pretraining puts beside a model: the generator, and a head for each of the two."""

    def __init__(self, model: Module, pieces: Pieces) -> None:
        super().__init__()
        c = model.config
        self.generator = type(model)(replace(c, num_layers=max(1, c.num_layers // 2)))
        here = model.state_dict()
        self.generator.load_state_dict({name: here[name] for name in self.generator.state_dict()})
        for name in model.HEAD:  # classifiers have no part in this
            delattr(self.generator, name)
        self.head, self.pieces = head_for(model), pieces
        self.detector = Detector(c.hidden_size, c.hidden_act)
        init_weights(self.detector, c.initializer_range)


def prepare(model: Module, options, tokenizer) -> None:
    check(model, options)
    model.pretraining = RTD(model, Pieces.of(tokenizer))
    model.embeddings.word = SharedEmbedding(model.pretraining.generator.embeddings.word)


def objective(model: Module, batch, options) -> tuple[Tensor, dict[str, Tensor]]:
    """L, and three shares: which tokens the detector judged right ("acc", bool [real tokens]), which of the replaced
    ones it found ("found"), and which of the masked ones the generator guessed ("guessed", [|S|])."""
    aside, ids, mask = model.pretraining, batch.input_ids, batch.mask
    chosen = choose(ids, mask, aside.pieces, options.whole_words)
    x = aside.generator.embed(ids.masked_fill(chosen, aside.pieces.mask_id), mask)
    h = states(aside.generator, x, mask, chosen)  # [|S|, D]
    logits, targets = predict(aside.generator, aside.head, h), ids[chosen]
    corrupted = ids.masked_scatter(chosen, sample(logits.detach()))  # [B, T]
    replaced = (corrupted != ids)[mask]  # [real tokens]
    scores = aside.detector(model.encode(model.embed(corrupted, mask), mask))[mask].float()  # [real tokens]
    detection = F.binary_cross_entropy_with_logits(scores, replaced.float())
    right = (scores.detach() > 0) == replaced
    hits = {"acc": right, "found": right[replaced], "guessed": logits.detach().argmax(-1) == targets}
    return mean_loss(logits, targets) + options.rtd_weight * detection, hits
