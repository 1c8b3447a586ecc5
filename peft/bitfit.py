"""BitFit (Ben Zaken et al. 2022, arXiv 2106.10199, §3): only the bias vectors of the model and the head are trained.

    y = W x + b,   LN(x) = γ ⊙ (x - μ)/σ + β             W, γ: frozen;  b, β: trained

The bias terms are those of all linear layers and norms, of the embeddings too (§3, b_q … b_LN2). Training starts at the
base model. A BERT layer has 7·D + F of them, and the embedding norm has D: L·(7·D + F) + D parameters.

The trained biases are parameters of the plain model, so that merging changes no value. An adapter file has peft_type
BITFIT, which huggingface/peft does not have, and the published names of the biases.

Differs from the paper: the head is trained whole, pooler included. ModernBERT has no biases and is refused.
"""

from typing import Any

from nn.encoder import Encoder


def apply(model: Encoder, options: Any, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Makes the biases of the backbone trainable, in place. Returns the settings that the adapter records.

    options and init_ids have no effect. Raises ValueError for a model without biases.
    """
    biases = [
        name for name, _ in model.named_parameters() if name.endswith("bias") and name.split(".")[0] not in model.HEAD
    ]
    if not biases:
        raise ValueError(f"bitfit trains biases, and this {model.model_type} has none; --peft head trains the same")
    for name in biases:
        model.get_parameter(name).requires_grad_(True)
    return {"replaced": tuple(biases)}


def merge(model: Encoder) -> None:
    """Leaves the model as it is: its trained biases are parameters of the plain model."""
