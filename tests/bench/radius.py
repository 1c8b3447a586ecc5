"""How far --loss mixed's --radius moves a trained model: the divergence and the predictions it changes.

    python tests/bench/radius.py RUN IMDB_FOLDER

Two batches of 32 training reviews, dropout on, as in training. For each radius ε and each batch: L_VAT (Eq. 8 of
losses/mixed.py), the share of predictions that change sides, and the divergence that noise of the same length makes.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data import LABELED, find_file
from data.batches import Corpus
from data.imdb import load_reviews
from data.tokenization import load_tokenizer
from losses.mixed import Reviews, kl, of_length, virtual_perturbation
from nn.checkpoint import load_pretrained

RADII, BATCH, LENGTH = (0.5, 1, 2, 3, 5), 32, 400


def moved(reviews: Reviews, logits: Tensor, shift: Tensor) -> tuple[float, float]:
    """KL to the predictions at `shift`, and how many of them change sides."""
    with torch.no_grad():
        other = reviews.logits(shift)
    return kl(logits, other).item(), (logits.argmax(1) != other.argmax(1)).float().mean().item()


def main(run: str, folder: str) -> None:
    best = Path(run) / "best"
    model, tokenizer = load_pretrained(best).train(), load_tokenizer(best)
    frame = load_reviews(find_file(Path(folder), LABELED))[: 2 * BATCH]
    rows = tokenizer.encode(frame["review"], LENGTH, "head+tail")
    corpus = Corpus.from_rows(rows, frame["sentiment"], tokenizer.pad_id)
    torch.manual_seed(0)
    for at in range(0, len(corpus), BATCH):
        batch = corpus.batch(np.arange(at, at + BATCH))
        reviews = Reviews.embed(model, batch.input_ids, batch.mask)
        logits, spread = reviews.logits().detach(), reviews.spread()
        for radius in RADII:
            worst = moved(reviews, logits, virtual_perturbation(reviews, logits, radius).detach())
            noise = moved(reviews, logits, of_length(torch.randn_like(reviews.x), reviews.mask, radius * spread))
            row = {"radius": radius, "vat": round(worst[0], 4), "change sides": round(worst[1], 3)}
            print(json.dumps(row | {"noise": round(noise[0], 6)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
