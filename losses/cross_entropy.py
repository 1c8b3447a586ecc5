"""Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv 1512.00567, §7).

    q_c = (1 - ε)·[c = y] + ε/C,    L = mean_i -Σ_c q_c log softmax(logits_i)_c

Differs from the paper: nothing. The mean runs over examples.
"""

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """logits: [B, C];  labels: int64 [B] -> scalar, fp32 or wider, mean over examples. Raises ValueError for ε outside
    [0, 1)."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing {smoothing} is outside [0, 1)")
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    log_p = F.log_softmax(logits, dim=-1)  # [B, C]
    hit = log_p.gather(1, labels[:, None]).squeeze(1)  # [B]
    return -((1 - smoothing) * hit + smoothing * log_p.mean(-1)).mean()


def objective(model: Module, batch, options) -> tuple[Tensor, Tensor]:
    """options.label_smoothing -> ε. Returns (loss, logits [B, C])."""
    logits = model(batch.input_ids, batch.mask)
    return cross_entropy(logits, batch.labels, options.label_smoothing), logits
