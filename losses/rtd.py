"""Replaced-token detection (ELECTRA: Clark et al. 2020, arXiv 2003.10555, §2) with gradient-disentangled embedding
sharing (DeBERTa-v3: He et al. 2021, arXiv 2111.09543, §3.3): pretraining without labels.

    S: the masked positions;   x^masked = x with [MASK] in S
    x̂_t ~ p_G(· | x^masked) for t in S                          tokens sampled from the generator
    x^corrupt = x with x̂ in S
    L_MLM = mean over S of -log p_G(x_t | x^masked)
    L_RTD = mean over t of the binary cross-entropy of D(x^corrupt, t) against [x^corrupt_t ≠ x_t]
    L     = L_MLM + λ L_RTD                                      λ = 50
    E_D   = sg(E_G) + E_Δ,  E_Δ = 0 at first                     He et al., §3.3

D(x, t) = sigmoid(w·act(W h_t + b) + c). The model is the discriminator. The generator has the same architecture and
width and half the layers, as in DeBERTa-v3 (ELECTRA's published generators have all layers and a smaller width); it
starts as a copy of the model's lower half. sg stops the gradient: the discriminator trains E_Δ only, so that the two
losses do not compete for one table. A sampled token that equals the original counts as original. Generator, E_Δ and
heads exist during training only; E_D is saved.

Differs from the papers: both losses are means over their tokens, as in the published code; Clark et al. sum them. So λ
weighs means here. The detector has a hidden layer, and the generator uses the head of losses/mlm.py, as in the
published code; DeBERTa's enhanced mask decoder is omitted from the generator.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module

from data.batches import Batch
from data.flags import option
from data.tokenization import Tokenizer
from losses.mlm import MaskingOptions, Vocabulary, check_encoder, choose, head_for, mean_loss, predict, states
from nn import Model
from nn.autocast import at_least_fp32
from nn.dropout import Dropout
from nn.encoder import Encoder, SharedEmbedding, activation, init_weights


@dataclass(frozen=True)
class RTDOptions(MaskingOptions):
    rtd_weight: float = option(50.0, "objective", "rtd: weight λ of the detection loss")


def sample(
    logits: Tensor, generator: torch.Generator | None = None, start: int = 0, total: int | None = None
) -> Tensor:
    """Draws one token per row from softmax(logits), by inversion of the cumulative distribution.

    logits: fp32 or wider [N, V] -> int64 [N]. All ranks draw `total` numbers, and each uses those of its own rows,
    start … start + N - 1, so that the samples do not depend on the number of ranks.
    """
    cumulative = logits.softmax(-1).cumsum(-1)  # [N, V]
    shape = (total or len(logits), 1)
    draw = torch.rand(shape, generator=generator, dtype=cumulative.dtype, device=cumulative.device)
    draw = draw[start : start + len(logits)] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, draw, right=True).squeeze(1).clamp(max=logits.size(-1) - 1)


class Detector(Module):
    """Computes w·act(W h + b) + c, one logit per token;   W, b -> dense;  w, c -> query. [B, T, D] -> [B, T]"""

    def __init__(self, hidden_size: int, act: str) -> None:
        super().__init__()
        self.dense, self.query = Linear(hidden_size, hidden_size), Linear(hidden_size, 1)
        self.activation = activation(act)

    def forward(self, h: Tensor) -> Tensor:
        """h: [B, T, D] -> [B, T]"""
        return self.query(self.activation(self.dense(h))).squeeze(-1)


class RTD(Module):
    """The generator and the heads of both models, which exist during training only."""

    def __init__(self, model: Encoder, vocabulary: Vocabulary) -> None:
        super().__init__()
        c = model.config
        half = max(1, c.num_layers // 2)
        types = getattr(c, "layer_types", None)  # of ModernBERT: one entry per layer
        shorter = {} if types is None else {"layer_types": types[:half]}
        self.generator = type(model)(replace(c, num_layers=half, **shorter))
        state = model.state_dict()
        self.generator.load_state_dict({name: state[name] for name in self.generator.state_dict()})
        self.generator.checkpointing = model.checkpointing
        for name, module in self.generator.named_modules():  # --dropout sets rates that the config does not have
            if isinstance(module, Dropout):
                module.p = cast(Dropout, model.get_submodule(name)).p
        for name in model.HEAD:  # the generator does not classify
            delattr(self.generator, name)
        self.head, self.vocabulary = head_for(model), vocabulary
        self.detector = Detector(c.hidden_size, c.hidden_act)
        init_weights(self.detector, c.initializer_range)


def prepare(model: Model, options: RTDOptions, tokenizer: Tokenizer) -> None:
    """Adds generator and heads to `model` and shares its embeddings. Raises ValueError as losses.mlm.prepare does."""
    encoder = check_encoder(model)
    encoder.pretraining = RTD(encoder, Vocabulary.of(tokenizer))
    encoder.embeddings.word = SharedEmbedding(encoder.pretraining.generator.embeddings.word)


def objective(model: Encoder, batch: Batch, options: RTDOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes L, with several ranks this rank's part. Returns (loss, correct predictions by name).

    "acc": bool [real tokens], whether the detector classified the token correctly. "found": bool [replaced tokens],
    whether it detected the replacement. "guessed": bool [|S|], whether the generator's best token is the original.
    """
    parts, ids, mask, whole = model.pretraining, batch.input_ids, batch.mask, batch.whole
    generator = batch.generator()  # all ranks draw for the whole batch
    all_chosen = choose(whole.input_ids, whole.mask, parts.vocabulary, options.whole_words, generator=generator)
    chosen = batch.own(all_chosen)  # [B, T]
    x = parts.generator.embed(ids.masked_fill(chosen, parts.vocabulary.mask_id), mask)
    h = states(parts.generator, x, mask, chosen)  # [|S|, D]
    logits, targets = predict(parts.generator, parts.head, h), ids[chosen]
    before = int(all_chosen[: batch.start].sum()) if batch.start else 0
    sampled = sample(logits.detach(), generator, start=before, total=int(all_chosen.sum()))
    corrupted = ids.masked_scatter(chosen, sampled)  # [B, T]
    replaced = (corrupted != ids)[mask]  # [real tokens]
    scores = parts.detector(model.encode(model.embed(corrupted, mask), mask))[mask]  # [real tokens]
    scores = at_least_fp32(scores)
    detection = F.binary_cross_entropy_with_logits(scores, replaced.to(scores.dtype))
    detected = (scores.detach() > 0) == replaced
    correct = {"acc": detected, "found": detected[replaced], "guessed": logits.detach().argmax(-1) == targets}
    loss = batch.part_of(mean_loss(logits, targets), all_chosen)
    return loss + batch.part_of(options.rtd_weight * detection, whole.mask), correct
