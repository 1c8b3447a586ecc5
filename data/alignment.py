"""Aligns the tokens of a review with its words, the parts between spaces.

Words are segmented one by one, each with the space before it. For a tokenizer that splits at spaces the concatenation
is the segmentation of the text, so the word of each token is known. Offsets of characters are not used: SentencePiece
counts them in the normalized text.
"""

from difflib import SequenceMatcher

import numpy as np

from data.tokenization import Tokenizer, truncate_ids

NO_WORD = -1  # word of a token that is not in the text: [CLS], [SEP]
NEAR = 100  # tokens among which an equal one is searched where the segmentations differ


def words_of_tokens(ids: list[int], rows: list[list[int]]) -> np.ndarray:
    """Returns the word of each token of a text: int64 [T]

    ids: of the text, [T];  rows: the ids of each word. Where the text is segmented across a space, so that both differ,
    tokens without an equal one belong to the word of the token before them.
    """
    words = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    joined = [token for row in rows for token in row]
    if joined == ids:
        return words
    found, last = np.full(len(ids), NO_WORD), 0
    i = j = 0  # in joined and ids
    while i < len(joined) and j < len(ids):
        if joined[i] == ids[j]:
            found[j] = words[i]
            i, j = i + 1, j + 1
            continue
        near = SequenceMatcher(None, joined[i : i + NEAR], ids[j : j + NEAR], autojunk=False)
        first = near.get_matching_blocks()[0]  # after all of them if none is equal
        i, j = i + first.a, j + first.b
    for position, word in enumerate(found):
        last = found[position] = last if word == NO_WORD else word
    return found


def align(tokenizer: Tokenizer, text: str, max_length: int, truncate: str) -> tuple[list[str], list[int], np.ndarray]:
    """Encodes one text. Returns its words, the ids of `Tokenizer.encode`, [T], and the word of each id, int64 [T].

    Special tokens have the word -1. A word that truncation removes has no token.
    """
    words = [word for word in text.split(" ") if word]  # other blanks are parts of a word: byte-level BPE encodes them
    parts = [f" {word}" if number else word for number, word in enumerate(words)]
    ids, *rows = tokenizer.subword_ids([text, *parts])
    before, _ = map(len, tokenizer.template)
    kept = truncate_ids(list(range(len(ids))), tokenizer.text_limit(max_length), truncate)
    encoded = next(tokenizer.encode([text], max_length=max_length, truncate=truncate))
    word_of = np.full(len(encoded), NO_WORD)
    word_of[before : before + len(kept)] = words_of_tokens(ids, rows)[kept]
    return words, encoded, word_of
