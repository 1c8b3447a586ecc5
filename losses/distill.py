"""Knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531, §2): a trained teacher teaches a student.

    p = softmax(v / T),   q = softmax(z / T)                        Eq. (1)
    L = mean_i [α_i T² KL(p_i ‖ q_i) + (1 - α_i) CE(z_i, y_i)]

v: logits of the teacher, constants;  z: logits of the student;  T: temperature;  y: labels;  α_i: α for a review with
a label, 1 for a review of the transfer set (--distill-unlabelled), which has none. The gradient of T² KL is
T (q - p), Eq. (2) times T². For large T it approaches [(z - z̄) - (v - v̄)] / C, Eq. (4) times T²: the student matches
the logits. Without the factor T² the soft term would vanish as 1/T².

The teacher has its own tokenizer and truncation, so that a network over words can learn from a BERT. Its logits are
computed once before training, in eval() mode (data/teacher.py); every batch carries those of its reviews. A window of
a review has the logits of the whole review. Several teachers are an ensemble, as in §4 of the paper: v is the logarithm
of the mean of their calibrated probabilities (data/ensemble.py). A teacher that was trained on the validation reviews
makes the student's validation accuracy too high; this applies to the built-in linear model on the built-in reviews, on
which it was trained.

Differs from the paper: KL in place of the cross-entropy with p, whose gradient is the same.
Differs from DistilBERT (Sanh et al. 2019, arXiv 1910.01108, §2–3): DistilBERT distils the pretraining, adds a cosine
loss of hidden states, and initializes the student with layers of the teacher.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.batches import Batch
from data.flags import option
from losses.cross_entropy import CrossEntropyOptions, check_rows, cross_entropy
from losses.divergence import kl_divergence
from nn import Model
from nn.autocast import at_least_fp32


@dataclass(frozen=True)
class DistillOptions(CrossEntropyOptions):
    teacher: tuple[str, ...] = option(
        (),
        "objective",
        "distill: run or checkpoint folders or hub ids, several form an ensemble; default: the linear model",
        "RUN_OR_WEIGHTS",
    )
    distill_temperature: float = option(2.0, "objective", "distill: T, above 0 and at most 100")
    distill_alpha: float = option(0.5, "objective", "distill: α in α·T²·KL + (1 - α)·CE, in [0, 1]")
    distill_unlabelled: bool = option(False, "objective", "distill: unlabelled reviews too, with α = 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.distill_temperature, self.distill_alpha)
        if self.distill_alpha == 1 and self.label_smoothing:
            raise ValueError("--label-smoothing has no effect with --distill-alpha 1, which leaves out the labels")


def check_weights(temperature: float, alpha: float) -> None:
    """Raises ValueError for T outside (0, 100], beyond which fp32 rounds T²·KL, and for α outside [0, 1]."""
    if not 0 < temperature <= 100:
        raise ValueError(f"distill_temperature {temperature} must be above 0 and at most 100")
    if not 0 <= alpha <= 1:
        raise ValueError(f"distill_alpha {alpha} is outside [0, 1]")


def soft_losses(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Computes T² KL(p ‖ q) of each example. logits, teacher: [B, C] -> [B], fp32 or wider"""
    of_teacher, of_student = (at_least_fp32(z) / temperature for z in (teacher.detach(), logits))
    return temperature**2 * kl_divergence(of_teacher, of_student)


def distill_loss(
    logits: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Computes L, the mean over examples.

    logits, teacher: z and v, [B, C];  labels: int64 [B], -1 for a review without one;  temperature, alpha: T, α;
    smoothing, class_weights: ε and w of CE, [C] (losses/cross_entropy.py) -> scalar, fp32 or wider. Raises ValueError
    for T outside (0, 100], for α outside [0, 1], and for other shapes.
    """
    check_weights(temperature, alpha)
    check_rows(logits, labels, class_weights)
    labelled = labels >= 0  # [B]
    soft = soft_losses(logits, teacher, temperature)  # [B]
    soft = torch.where(labelled, alpha * soft if alpha else 0.0, soft)  # 0 · ∞ would be NaN, as below
    if alpha == 1 or not labelled.any():
        return soft.mean()
    ce = cross_entropy(logits[labelled], labels[labelled], smoothing, class_weights)
    return soft.mean() + (1 - alpha) * labelled.to(ce.dtype).mean() * ce


def objective(model: Model, batch: Batch, options: DistillOptions) -> tuple[Tensor, Tensor]:
    """Returns (loss, logits [B, C]). Raises ValueError for a batch without the teacher's logits."""
    if batch.teacher is None:
        raise ValueError("--loss distill needs the teacher's logits of the training reviews in every batch")
    logits = model(batch.input_ids, batch.mask)
    settings = (options.distill_temperature, options.distill_alpha, options.label_smoothing)
    return distill_loss(logits, batch.teacher, batch.labels, *settings, batch.class_weights), logits
