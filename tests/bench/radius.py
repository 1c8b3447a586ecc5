"""Measures how far `--radius` of `--loss mixed` moves a trained model: the divergence, and the predictions it changes.

    python tests/bench/radius.py RUN IMDB_FOLDER

Uses two batches of 32 training reviews, with dropout as in training. Prints for each batch and each radius ε: L_VAT
(Eq. 8 of losses/mixed.py), the fraction of predictions that change, and the divergence caused by random noise of the
same length.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data import LABELED, find_file
from data.corpus import Corpus
from data.imdb import load_reviews
from data.tokenization import load_tokenizer
from losses.divergence import kl_divergence
from losses.mixed import Reviews, scale_to_length, virtual_perturbation
from nn.checkpoint import load_pretrained

RADII, BATCH, LENGTH = (0.5, 1, 2, 3, 5), 32, 400


@torch.no_grad()
def effect(reviews: Reviews, logits: Tensor, shift: Tensor) -> tuple[float, float]:
    """Computes KL to the predictions at `shift` [B, T, E], and the fraction of predictions that change.

    logits: of the clean pass, [B, C]
    """
    other = reviews.logits(shift)
    return kl_divergence(logits, other).mean().item(), (logits.argmax(1) != other.argmax(1)).float().mean().item()


def main(run: str, folder: str) -> None:
    """Prints one row for each batch and radius."""
    best = Path(run) / "best"
    model, tokenizer = load_pretrained(best).train(), load_tokenizer(best)
    frame = load_reviews(find_file(Path(folder), LABELED)[0])[: 2 * BATCH]
    rows = tokenizer.encode(frame["review"], max_length=LENGTH, truncate="head+tail")
    corpus = Corpus.from_rows(rows, labels=frame["sentiment"], pad_id=tokenizer.pad_id)
    torch.manual_seed(0)
    for start in range(0, len(corpus), BATCH):
        batch = corpus.batch(np.arange(start, start + BATCH))
        reviews = Reviews.embed(model, input_ids=batch.input_ids, mask=batch.mask)
        logits, spread = reviews.logits().detach(), reviews.spread()
        for radius in RADII:
            shift = virtual_perturbation(reviews, logits, radius=radius).detach()
            divergence, changed = effect(reviews, logits, shift=shift)
            noise = scale_to_length(torch.randn_like(reviews.x), reviews.mask, length=radius * spread)
            random_divergence, _ = effect(reviews, logits, shift=noise)
            row = {"radius": radius, "vat": round(divergence, 4), "changed": round(changed, 3)}
            print(json.dumps(row | {"noise": round(random_divergence, 6)}), flush=True)


if __name__ == "__main__":
    main(run=sys.argv[1], folder=sys.argv[2])
