"""A linear model over n-grams, scaled by naive-Bayes log-count ratios (Wang & Manning 2012, P12-2018, §2.1–2.3).

    f_g = 1 if the review contains the n-gram g (of 1 to 3 words), else 0
    r_gc = log(p_gc/‖p_c‖₁) - log(q_gc/‖q_c‖₁)
    p_gc = 1 + number of reviews of class c that contain g,   q_gc = 1 + number of reviews of other classes that do
    z_c = Σ_g f_g r_gc w_gc + b_c                                                        Eq. (1) with x = r ∘ f

r -> ratios, w -> the table of embeddings, both [G, C];  b -> the classifier. r is counted once on the training reviews
(`fit`) and then constant; w and b are trained. An n-gram contributes at its first position in the review, so that

    embed -> x_t = Σ of r_g ⊙ w_g over the n-grams that end at word t for the first time,  [B, T, C];   pool -> Σ_t x_t

and x_t shows what each word adds to the logits. For two classes r_g1 = -r_g0.

An n-gram is one integer, the key ((i₁ V) + i₂) V + i₃ of its word ids. A shorter n-gram has leading zeros, the id of
padding. The keys of the table are sorted, so that the keys of a batch are found by binary search.

In training, words are dropped with all n-grams that end at them (Wang & Manning 2013, "Fast dropout training", ICML).

Differs from the paper: logistic loss instead of a squared hinge; few epochs of AdamW from w = 0 in place of an explicit
L2 term; no interpolation with naive Bayes; trigrams; n-grams in only one training review are left out.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import Embedding, Module, Parameter

from data.corpus import Corpus
from data.orders import sorted_order
from nn.dropout import Dropout
from nn.tracing import is_traced
from nn.words import WordClassifier, WordConfig

ORDERS = 3  # words of the longest n-grams
PASS_TOKENS = 2**18  # of the reviews whose n-grams are counted at once, with padding


@dataclass(frozen=True, kw_only=True)
class NBLinearConfig(WordConfig):
    dropout: float = 0.1  # probability that the n-grams which end at a word are left out
    num_ngrams: int = 0  # G; 0 before `fit`, when the table contains the words of the vocabulary
    min_reviews: int = 2  # least number of training reviews that contain an n-gram of the table


def ngram_keys(input_ids: Tensor, mask: Tensor, vocab_size: int) -> Tensor:
    """Computes the keys of the n-grams that end at each word, -1 at padding. [B, T] -> int64 [B, ORDERS, T]

    Raises ValueError if the keys of such a vocabulary exceed 64 bits, and on a CPU IndexError for other ids.
    """
    if vocab_size**ORDERS >= 2**63:
        raise ValueError(f"the keys of {ORDERS}-grams of {vocab_size:,} words exceed 64 bits; use fewer words")
    ids = input_ids.long().masked_fill(~mask, 0)
    on_cpu = ids.device.type == "cpu" and not is_traced()  # on a GPU, the check would synchronize
    if on_cpu and ids.numel() and (ids.min() < 0 or ids.max() >= vocab_size):
        raise IndexError(f"word ids {int(ids.min())} … {int(ids.max())} are outside 0 … {vocab_size - 1}")
    keys, previous, factor = [ids], ids, 1
    for _ in range(ORDERS - 1):
        previous = torch.nn.functional.pad(previous, (1, 0))[:, :-1]  # the words one step earlier, 0 before the first
        factor *= vocab_size
        keys.append(keys[-1] + factor * previous)
    return torch.stack(keys, 1).masked_fill(~mask[:, None], -1)


def first_occurrences(keys: Tensor) -> Tensor:
    """Marks the first occurrence of each key in a row. int64 [B, N] -> bool [B, N]"""
    ordered, position = keys.sort(dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(first).scatter_(1, position, first)


def count_ngrams(corpus: Corpus, vocab_size: int, num_classes: int, min_reviews: int) -> tuple[Tensor, Tensor]:
    """Counts the reviews of each class that contain an n-gram, in any of their windows.

    Returns the sorted keys [G] and the counts [G, C].
    """
    found, owners = [], []
    for rows in sorted_order(corpus.lengths, PASS_TOKENS):
        batch = corpus.batch(rows)
        keys = ngram_keys(batch.input_ids, batch.mask, vocab_size).flatten(1)  # [B, 3T]
        counted = first_occurrences(keys) & (keys >= 0)
        found.append(keys[counted])
        owners.append(torch.from_numpy(corpus.reviews_of(rows))[:, None].expand_as(keys)[counted])
    keys, index = torch.cat(found).unique(return_inverse=True)
    pairs = torch.cat(owners) * len(keys) + index  # one number for (review, n-gram)
    if corpus.review is not None:
        pairs = pairs.unique()  # of several windows
    cells = pairs % len(keys) * num_classes + torch.from_numpy(corpus.labels)[pairs // len(keys)]
    counts = torch.bincount(cells, minlength=len(keys) * num_classes).view(-1, num_classes)  # [G, C]
    kept = counts.sum(1) >= min_reviews
    return keys[kept], counts[kept]


def log_count_ratios(counts: Tensor) -> Tensor:
    """Computes r from the number of reviews of each class that contain each n-gram: [G, C] -> fp32 [G, C]"""
    p = counts.double() + 1
    q = counts.sum(1, keepdim=True).double() - counts + 1
    return ((p / p.sum(0)).log() - (q / q.sum(0)).log()).float()


class NGramEmbedding(Module):
    """x_t of the module docstring. keys int64 [G], sorted;  ratios [G, C];  word: w, [G, C]

    Before `fit` the n-grams are the words of the vocabulary, with ratios of 1.
    """

    def __init__(self, config: NBLinearConfig) -> None:
        super().__init__()
        count, classes = config.num_ngrams or config.vocab_size, len(config.labels)
        self.vocab_size = config.vocab_size
        self.keys = Parameter(torch.arange(count), requires_grad=False)  # parameters, so that checkpoints contain them
        self.ratios = Parameter(torch.ones(count, classes), requires_grad=False)
        self.word = Embedding(count, classes)
        self.word.weight.data.zero_()

    def of_ngrams(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Computes r_g ⊙ w_g of the n-grams that end at each word: [B, 3, T, C], 0 for n-grams that are not counted.

        Also returns the mask of the counted n-grams, bool [B, 3, T]: those in the table, at their first position.
        """
        keys = ngram_keys(input_ids, mask, self.vocab_size)  # [B, 3, T]
        index = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        counted = (self.keys[index] == keys) & first_occurrences(keys.flatten(1)).view_as(keys)
        rows = self.ratios[index] * self.word(index)  # [B, 3, T, C]
        return rows.masked_fill(~counted[..., None], 0), counted

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, T] -> [B, T, C]"""
        return self.of_ngrams(input_ids, mask)[0].sum(1)


class Bias(Module):
    """z + b;   b -> bias [C]. The classifier of a model whose features are logits already."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.in_features = self.out_features = num_classes
        self.bias = Parameter(torch.zeros(num_classes))

    def forward(self, z: Tensor) -> Tensor:
        """[B, C] -> [B, C]"""
        return z + self.bias


class NBLinear(WordClassifier):
    """Classifies a review by the sum of its n-grams' weights. Raises ValueError for another padding id than 0."""

    model_type, architecture = "nb_linear", "NBLinear"
    Config = NBLinearConfig
    NEW_HEAD = False  # all its numbers belong to classes

    def __init__(self, config: NBLinearConfig) -> None:
        if config.pad_token_id:  # word 0 is the missing word of an n-gram
            raise ValueError(f"config: pad_token_id = {config.pad_token_id} is not supported; supported: 0")
        super().__init__(config, embedding_size=1)
        self.embeddings = NGramEmbedding(config)
        self.dropout = Dropout(config.dropout)
        self.classifier = Bias(len(config.labels))

    def fit(self, corpus: Corpus) -> None:
        """Builds the table of the training reviews' n-grams, with their ratios. Raises ValueError if it is empty."""
        keys, counts = count_ngrams(
            corpus, self.config.vocab_size, num_classes=len(self.config.labels), min_reviews=self.config.min_reviews
        )
        if not len(keys):
            raise ValueError(f"no n-gram is in {self.config.min_reviews} training reviews; lower --shape min_reviews=…")
        self.config = replace(self.config, num_ngrams=len(keys))
        self.embeddings = NGramEmbedding(self.config)
        self.embeddings.keys.data = keys
        self.embeddings.ratios.data = log_count_ratios(counts)
        print(f"n-grams: {len(keys):,} of 1 to {ORDERS} words, in at least {self.config.min_reviews} training reviews")

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns x, since the model is linear. [B, T, C] -> [B, T, C]"""
        return x

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """Sums over the words. h: [B, T, C];  mask: bool [B, T] -> [B, C]"""
        return (h * self.dropout(mask.to(h.dtype))[..., None]).sum(1)

    def ngrams(self, input_ids: Tensor) -> tuple[list[range], Tensor]:
        """Returns the token positions of the counted n-grams of one review, and what they add to the logits, [M, C].

        input_ids: [T], without padding
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool)[None]
        rows, counted = self.embeddings.of_ngrams(input_ids[None], mask)
        found = counted[0].nonzero().tolist()  # (n - 1, position of the last word)
        return [range(end - n, end + 1) for n, end in found], rows[0][counted[0]]
