"""Explains the label of one review by the methods of nn/attribution.py, word by word."""

from collections.abc import Callable

import numpy as np
import torch

from data.alignment import NO_WORD, align
from data.explanation import Explanation
from data.metrics import softmax
from data.tokenization import Tokenizer
from data.windows import WHOLE, Truncation, window_positions
from nn import Model
from nn.attribution import (
    Attribution,
    baseline_id,
    erasure,
    ngram_effects,
    pooling_weights,
    shared_by_tokens,
    token_effects,
)
from nn.nb_linear import NBLinear

PART = 4_000_000  # characters of texts that are scored at once


def score_without(
    text: str, words: list[str], left_out: np.ndarray, score: Callable[[list[str]], np.ndarray]
) -> np.ndarray:
    """Computes the logits of a text, then of the text without one word each: [1 + N, C].

    left_out: the numbers of these words, [N]. A long text is copied for a part of them at a time.
    """
    size, rows = max(1, PART // (len(text) + 1)), []
    for start in range(0, max(1, len(left_out)), size):
        without = [" ".join(words[:i] + words[i + 1 :]) for i in left_out[start : start + size]]
        rows.append(score(without if start else [text, *without]))
    return np.concatenate(rows)


def sum_by_word(values: np.ndarray, word_of: np.ndarray, count: int) -> np.ndarray:
    """Sums the values of the tokens of each word: fp64 [N]. values, word_of: [T];  count: N"""
    in_text = word_of != NO_WORD
    return np.bincount(word_of[in_text], values[in_text], minlength=count)


def gradients_and_phrases(
    model: Model, tokenizer: Tokenizer, ids: torch.Tensor, word_of: np.ndarray, label: int
) -> tuple[np.ndarray, Attribution, list[tuple[str, float]]]:
    """Computes integrated gradients of the tokens, fp64 [T], and of a linear model's n-grams with their names.

    ids: int64 [T];  word_of: [T]. The phrases are empty for other models.
    """
    if not isinstance(model, NBLinear):
        in_text = torch.from_numpy(word_of != NO_WORD).to(ids.device)
        found = token_effects(model, ids, in_text, label, baseline_id(tokenizer))
        return found.effects.numpy(), found, []
    spans, found = ngram_effects(model, ids, label)
    tokens = tokenizer.tokens
    names = [" ".join(tokens[number] for number in ids[span.start : span.stop].tolist()) for span in spans]
    phrases = list(zip(names, found.effects.tolist(), strict=True))
    return shared_by_tokens(spans, found.effects, len(ids)).numpy(), found, phrases


def examples_of_words(
    tokenizer: Tokenizer, text: str, truncation: Truncation
) -> tuple[list[str], list[tuple[list[int], np.ndarray]]]:
    """Encodes one text. Returns its words and its examples: their ids, [T], and the word of each id, int64 [T]."""
    if truncation.truncate != "windows":
        words, ids, word_of = align(tokenizer, text, truncation.max_length, truncation.truncate)
        return words, [(ids, word_of)]
    words, ids, word_of = align(tokenizer, text, WHOLE, "head")
    windows = window_positions(tokenizer, len(ids), truncation.max_length, truncation.stride)
    return words, [([ids[i] for i in positions], word_of[positions]) for positions in windows]


def explain(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    truncation: Truncation,
    score: Callable[[list[str]], np.ndarray],
    key: str = "",
    truth: str = "",
    label: int | None = None,
) -> Explanation:
    """Explains a label of a cleaned text.

    score: computes the logits of texts, [N, C];  key, truth: id and label in the text's file;  label: None: the
    predicted one. Leaving words out takes one forward pass per word; integrated gradients took 16 to 72 gradients a
    review, measured with published encoders on 12 reviews of 200 to 256 tokens.

    Effects in several windows are averaged. This is exact if the logits of the windows are averaged and the log-odds
    are linear in the logits. Raises ValueError for several windows with another pooling or with more than two classes.
    The network's own weights are returned for a single window only.
    """
    words, examples = examples_of_words(tokenizer, text, truncation)
    count, names, parts = len(words), model.config.labels, len(examples)
    if parts > 1 and (truncation.pooling != "mean" or len(names) != 2):
        raise ValueError("--explain of several windows needs two classes and --window-pooling mean, or --truncate head")
    read = np.unique(np.concatenate([word_of[word_of != NO_WORD] for _, word_of in examples]))  # others have no effect
    logits = torch.from_numpy(score_without(text, words, read, score))  # [1 + the words read, C]
    label = int(logits[0].argmax()) if label is None else label
    gradients, difference, weights = np.zeros(count), 0.0, []
    phrases: dict[str, float] = {}  # an n-gram in two windows is one phrase
    for encoded, word_of in examples:
        ids = torch.tensor(encoded, device=next(model.parameters()).device)
        tokens, found, named = gradients_and_phrases(model, tokenizer, ids, word_of, label)
        gradients += sum_by_word(tokens, word_of, count) / parts
        difference += found.difference / parts
        for name, effect in named:
            phrases[name] = phrases.get(name, 0.0) + effect / parts
        weights = [
            (title, sum_by_word(x.double().numpy(), word_of, count)) for title, x in pooling_weights(model, ids, label)
        ]
    has_token = np.isin(np.arange(count), align(tokenizer, text, WHOLE, "head")[2])
    removed = np.zeros(count)
    removed[read] = erasure(logits[:1], logits[1:], label).double().numpy()
    blank = "no n-gram" if isinstance(model, NBLinear) else f"each token as {tokenizer.tokens[baseline_id(tokenizer)]}"
    return Explanation(
        words=words,
        read=np.isin(np.arange(count), read),
        truncated=has_token & ~np.isin(np.arange(count), read),
        label=names[label],
        probabilities={name: float(p) for name, p in zip(names, softmax(logits[:1].numpy())[0], strict=True)},
        gradients=gradients,
        without=removed,
        difference=difference,
        phrases=list(phrases.items()) or list(zip(words, removed.tolist(), strict=True)),
        weights=weights if parts == 1 else [],
        baseline=f"the text with {blank}",
        key=key,
        truth=truth,
    )
