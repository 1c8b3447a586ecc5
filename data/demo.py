"""Generates the built-in reviews, 20,000 labelled and 600 test reviews, from a grammar, without any download.

The kind of a review is the first part of its id. Two thirds of the reviews are plain praise or blame, from one word to
ten sentences. In the others the verdict depends on word order: "although the acting was dreadful, I was hooked" and
"although I was hooked, the acting was dreadful" contain the same words.

A pair of reviews, one negative and one positive, has the same kind and the same number of sentences. The test reviews
also draw from rarer opinion words and idioms that do not occur in the labelled reviews (data/demo_words.py).
"""

import hashlib
import json
import random
import re
from functools import cache

from data.demo_words import GRAMMAR, Words

# kind -> share of the reviews in percent; plain kinds first
PLAIN = {
    "word": 8, "phrase": 8, "superlative": 3, "statement": 9, "remark": 8, "reaction": 9, "rating": 4, "advice": 7,
    "list": 4, "negation": 4, "several": 2,
}  # fmt: skip
ORDERED = {"contrast": 14, "order": 7, "expectation": 4, "report": 4, "sarcasm": 5}
SIZES = {"train": 20_000, "test": 600}
UNSEEN = {"train": 0.0, "test": 0.05}  # probability of an option that the labelled reviews do not use
COUNTS = (2, 2, 2, 2, 3, 3, 4, 5, 7, 10)  # sentences of a review of the kind `several`
NEUTRAL = ("first", "first", "last", *[""] * 15)  # position of a neutral sentence
FILLED = 0.2  # probability of a neutral phrase in a plain sentence
SHORTENED = 0.1  # probability of leaving out the first word of a plain sentence
DROPPED = re.compile(r"^(I|the|an?|this is|it is|it was|it) (?!am |have |had |do |did |is |was )")
SLOT = re.compile(r"\{(!?)(\w+)\}")
SHORT_FORMS = {
    "is not": "isn't", "was not": "wasn't", "are not": "aren't", "were not": "weren't", "did not": "didn't",
    "do not": "don't", "does not": "doesn't", "cannot": "can't", "could not": "couldn't", "would not": "wouldn't",
    "it is": "it's", "there is": "there's", "I have": "I've", "I am": "I'm", "you will": "you'll",
}  # fmt: skip


class Writer:
    """Generates sentences and reviews from a random stream. good: the polarity, True for positive.

    unseen: probability that an option comes from those that the labelled reviews do not use.
    """

    def __init__(self, stream: random.Random, unseen: float) -> None:
        self.stream = stream
        self.unseen = unseen

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return self.stream.random() < probability

    def draw(self, name: str, good: bool) -> str:
        """Draws an option of the grammar and fills its slots."""
        entry = GRAMMAR[name]
        words = entry if isinstance(entry, Words) else entry[good]
        options = words.rare if words.rare and self.chance(self.unseen) else words.common
        template = options[self.stream.randrange(len(options))]
        return SLOT.sub(lambda slot: self.draw(slot[2], good != bool(slot[1])), template)

    def sentence(self, name: str, good: bool, end: str) -> str:
        """Returns a sentence that ends in `end`, with short forms in half of the sentences.

        Some plain sentences lack their first word ("laughed all the time"). Some begin or end with a neutral phrase.
        """
        text = self.draw(name, good)
        if name in PLAIN and self.chance(SHORTENED):
            text = DROPPED.sub("", text)
        if name in PLAIN and self.chance(FILLED):
            text = f"{self.draw('lead', good)} {text}" if self.chance(0.4) else text + self.draw("trail", good)
        text = " ".join(text.split())
        if self.chance(0.5):
            for long, short in SHORT_FORMS.items():
                text = re.sub(rf"(?<!about )\b{long}\b", short, text)
        text = re.sub(r"\ba (?=[aeioA]|u[gpt]|un(?!i[^n])|hon)", "an ", text)
        return text if text[-1] in "?!" else text + end

    def review(self, kind: str, good: bool, count: int, neutral: str) -> str:
        """Returns a review.

        count: sentences of the kind `several`;  neutral: position of a neutral sentence, "first", "last" or "".
        """
        names = [kind]
        if kind == "several":
            plain = [name for name in PLAIN if name not in ("word", "several")]
            names = self.stream.choices(plain, k=count)
        names = ["opening"] * (neutral == "first") + names + ["fact"] * (neutral == "last")
        ends = [*(self.stream.choice((".", ".", ".", "!")) for _ in names[1:]), self.stream.choice((".", ".", "!", ""))]
        text = " ".join(self.sentence(name, good, end) for name, end in zip(names, ends, strict=True))
        if self.chance(0.1):
            return text.lower()
        return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def kind_of(identifier: str) -> str:
    """Returns the kind of a built-in review: "contrast" for the id "contrast_train_0012"."""
    return identifier.split("_")[0]


@cache
def reviews(split: str) -> list[tuple[str, str, int]]:
    """Returns (id, review, sentiment) of `train` (20,000) or `test` (600): balanced, deterministic, no duplicates."""
    taken = {text for _, text, _ in reviews("train")} if split == "test" else set()
    stream = random.Random(f"demo {split}")
    writer = Writer(stream, UNSEEN[split])
    hundred = [kind for kind, share in (PLAIN | ORDERED).items() for _ in range(share)]
    kinds = hundred * (SIZES[split] // 200)
    stream.shuffle(kinds)
    written: list[tuple[str, str, int]] = []
    for kind in kinds:
        count, neutral = stream.choice(COUNTS), stream.choice(NEUTRAL)
        for good in (True, False):
            while (text := writer.review(kind, good, count, neutral)) in taken:
                pass
            taken.add(text)
            written.append((f"{kind}_{split}_{len(written):04d}", text, int(good)))
    return written


@cache
def digest() -> str:
    """Returns the SHA-256 of all ids, reviews and sentiments, which changes with the generator."""
    return hashlib.sha256(json.dumps([reviews(split) for split in SIZES]).encode()).hexdigest()
