"""Generates the built-in reviews, 2,500 labelled and 600 test reviews, from a grammar, without any download.

Every review has one verdict. Mostly it depends on word order, not on which words occur: "although the acting was
dreadful, I was hooked" and "although I was hooked, the acting was dreadful" contain the same words. Negation, contrast,
sarcasm, disappointed or exceeded expectations and reported opinions reverse the polarity of words.

Half of the opinion words of the test reviews do not occur in the labelled reviews, so a pretrained model has an
advantage.
"""

import random
from collections.abc import Sequence
from functools import cache

PEOPLE = (
    "the lead actor", "the lead actress", "the director", "the whole cast", "the villain", "the narrator",
    "the supporting cast", "the young hero", "the screenwriter", "the cameraman",
)  # fmt: skip
ASPECTS = (
    "acting", "script", "soundtrack", "camera work", "dialogue", "editing", "story", "pacing", "ending", "opening",
    "final act", "plot", "romance", "humour", "dubbing", "set design", "lighting", "direction", "photography", "finale",
)  # fmt: skip
KINDS = (
    "thriller", "comedy", "western", "horror film", "documentary", "war movie", "romance", "remake", "sequel", "drama",
    "musical", "cartoon", "crime film", "science fiction film", "biopic", "silent film", "mystery", "road movie",
)  # fmt: skip
WATCHERS = (
    "my brother", "my wife", "my husband", "a friend of mine", "my neighbour", "the critic in my paper", "my son",
    "my aunt",
)  # fmt: skip
TIMES = (
    "last night", "on a plane", "on DVD", "at a festival", "with my family", "for the second time", "on television",
    "in an empty theatre", "years ago", "over the weekend", "late on Sunday", "without knowing anything about it",
)  # fmt: skip

# opinion words: labelled reviews use the first half of each tuple, test reviews use both halves
GOOD = (
    "great", "wonderful", "funny", "brilliant", "touching", "excellent", "charming", "beautiful", "clever", "fresh",
    "superb", "moving", "gripping", "delightful", "memorable", "witty", "amazing", "perfect", "thrilling", "lovely",
    "fantastic", "terrific", "hilarious", "powerful", "outstanding", "magnificent", "masterful", "engaging", "stunning",
    "marvelous", "enjoyable", "captivating", "heartwarming", "flawless", "splendid", "remarkable", "entertaining",
    "impressive", "believable", "unforgettable",
)  # fmt: skip
BAD = (
    "bad", "awful", "boring", "terrible", "stupid", "dull", "lame", "weak", "silly", "cheap",
    "horrible", "predictable", "clumsy", "pointless", "tedious", "annoying", "ugly", "lifeless", "messy", "painful",
    "dreadful", "pathetic", "laughable", "atrocious", "mediocre", "forgettable", "ridiculous", "wooden", "unwatchable",
    "bland", "amateurish", "disappointing", "abysmal", "cliched", "incoherent", "worthless", "unconvincing", "shallow",
    "uninspired", "embarrassing",
)  # fmt: skip
GOOD_VERBS = (
    "loved", "enjoyed", "admired", "adored", "liked", "applauded", "cherished", "recommended", "praised", "treasured",
)  # fmt: skip
BAD_VERBS = (
    "hated", "disliked", "regretted", "endured", "despised", "loathed", "detested", "suffered through", "slept through",
    "cursed",
)  # fmt: skip
DEGREES = ("very", "really", "quite", "rather", "simply", "just", "truly", "so", "")
BORES = (
    "watching paint dry",
    "sitting in traffic",
    "doing your taxes",
    "a visit to the dentist",
    "waiting for a late bus",
)


class Writer:
    """Generates clauses, sentences and reviews from a random stream. good: the polarity, True for positive.

    unseen: probability that an opinion word comes from the half that the labelled reviews do not use.
    """

    def __init__(self, stream: random.Random, unseen: float) -> None:
        self.stream = stream
        self.unseen = unseen

    def choose(self, options: Sequence[str]) -> str:
        """Draws one of the options uniformly."""
        return options[self.stream.randrange(len(options))]

    def opinion(self, words: tuple[str, ...]) -> str:
        """Draws an opinion word from one half of `words`."""
        half = len(words) // 2
        return self.choose(words[half:] if self.stream.random() < self.unseen else words[:half])

    def adjective(self, good: bool) -> str:
        """Returns an adjective with a degree (or without: one of the degrees is empty)."""
        return " ".join(f"{self.choose(DEGREES)} {self.plain(good)}".split())

    def plain(self, good: bool) -> str:
        """Returns an adjective without a degree."""
        return self.opinion(GOOD if good else BAD)

    def verb(self, good: bool) -> str:
        """Returns a verb of liking or disliking."""
        return self.opinion(GOOD_VERBS if good else BAD_VERBS)

    def thing(self) -> str:
        """Returns a noun phrase: an aspect, a person or the film itself."""
        return self.choose([f"the {self.choose(ASPECTS)}", self.choose(PEOPLE), f"this {self.choose(KINDS)}"])

    def clause(self, good: bool) -> str:
        """Returns one plain or negated statement."""
        return self.choose(
            [
                f"{self.thing()} was {self.adjective(good)}",
                f"{self.thing()} was {self.adjective(good)}",
                f"I {self.verb(good)} {self.thing()}",
                f"{self.thing()} was not {self.plain(not good)} at all",
                f"{self.thing()} was anything but {self.plain(not good)}",
                f"nobody could call {self.thing()} {self.plain(not good)}",
                f"{self.thing()} was far from {self.plain(not good)}",
                f"I never once found {self.thing()} {self.plain(not good)}",
            ]
        )

    def verdict(self, good: bool) -> str:
        """Returns a sentence with one verdict. Most sentences also contain the opposite opinion."""
        yes, no = self.clause(good), self.clause(not good)
        return self.choose(
            [
                f"{no}, but {yes}",
                f"although {no}, {yes}",
                f"{yes}, even though {no}",
                f"despite {self.thing()} being {self.adjective(not good)}, {yes}",
                f"they told me it was {self.plain(not good)}, and they were wrong: {yes}",
                f"I expected something {self.plain(not good)} and got something {self.plain(good)}",
                f"{self.choose(WATCHERS)} called it {self.plain(not good)}; I disagree, {yes}",
                f"{no} in the first half, and then everything changed and {yes}",
                f"where the book was {self.plain(not good)}, the film is {self.plain(good)}",
                f"what looked {self.plain(not good)} in the trailer turned out {self.plain(good)}",
                self.sarcasm() if not good else f"{self.plain(good)}, and I mean it: {yes}",
                yes,
            ]
        )

    def sarcasm(self) -> str:
        """Returns a negative sentence made of positive words."""
        praise = self.plain(True)
        return self.choose(
            [
                f"oh sure, {praise}, if you also enjoy {self.choose(BORES)}",
                f"{praise}? yeah, right",
                f"about as {praise} as {self.choose(BORES)}",
                f"I would call it {praise}, if I were paid to lie",
                f"{praise}, said nobody, ever",
            ]
        )

    def opening(self) -> str:
        """Returns a neutral first sentence."""
        return self.choose(
            [
                f"I saw this {self.choose(KINDS)} {self.choose(TIMES)}",
                f"{self.choose(WATCHERS)} picked this {self.choose(KINDS)} {self.choose(TIMES)}",
                f"another {self.choose(KINDS)} that I watched {self.choose(TIMES)}",
            ]
        )

    def review(self, good: bool) -> str:
        """Returns an optional opening, an optional first impression of the opposite polarity, and the verdict."""
        sentences = [self.opening()] if self.stream.random() < 0.7 else []
        if self.stream.random() < 0.4:
            sentences.append(f"at first I thought {self.clause(not good)}")
            sentences.append(f"in the end, {self.verdict(good)}")
        else:
            sentences.append(self.verdict(good))
        return " ".join(s[0].upper() + s[1:] + self.choose((".", ".", "!")) for s in sentences)


@cache
def reviews(split: str) -> list[tuple[str, str, int]]:
    """Returns (id, review, sentiment) of `train` (2,500) or `test` (600): balanced, deterministic, no duplicates."""
    count, unseen = {"train": (2500, 0.0), "test": (600, 0.5)}[split]
    taken = {text for _, text, _ in reviews("train")} if split == "test" else set()
    writer = Writer(random.Random(f"demo {split}"), unseen)
    written: list[tuple[str, str, int]] = []
    while len(written) < count:
        good = len(written) % 2 == 0
        text = writer.review(good)
        if text not in taken:
            taken.add(text)
            written.append((f"{split}_{len(written):04d}", text, int(good)))
    return written
