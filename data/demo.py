"""The built-in reviews: 2,500 labelled and 600 test reviews written by a small grammar, so that the first command needs
no download.

Every review has one verdict, and mostly it cannot be told from which words occur: "although the acting was dreadful, I
was hooked" and "although I was hooked, the acting was dreadful" differ in order alone. Negation, contrast, sarcasm,
disappointed or exceeded expectations and reported opinions turn words around. Half of the opinion words of the test
reviews never occur in a labelled one: a model that knows English has an advantage, as it should.
"""

import random
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

# opinion words: the first half of each list serves the labelled reviews; test reviews draw on all of it
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
    """Writes clauses of either polarity (True = praise) from a random stream, with part of the opinion words or all."""

    def __init__(self, stream: random.Random, unseen: float) -> None:
        self.stream = stream
        self.unseen = unseen  # chance that an opinion word comes from the half that labelled reviews never use

    def pick(self, options):
        return options[self.stream.randrange(len(options))]

    def opinion(self, words: tuple[str, ...]) -> str:
        half = len(words) // 2
        return self.pick(words[half:] if self.stream.random() < self.unseen else words[:half])

    def adjective(self, good: bool) -> str:
        return " ".join(f"{self.pick(DEGREES)} {self.plain(good)}".split())

    def plain(self, good: bool) -> str:
        return self.opinion(GOOD if good else BAD)

    def verb(self, good: bool) -> str:
        return self.opinion(GOOD_VERBS if good else BAD_VERBS)

    def thing(self) -> str:
        return self.pick([f"the {self.pick(ASPECTS)}", self.pick(PEOPLE), f"this {self.pick(KINDS)}"])

    def clause(self, good: bool) -> str:
        """One plain or negated statement."""
        return self.pick(
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
        """One sentence with one verdict, most often over the opposite opinion."""
        yes, no = self.clause(good), self.clause(not good)
        return self.pick(
            [
                f"{no}, but {yes}",
                f"although {no}, {yes}",
                f"{yes}, even though {no}",
                f"despite {self.thing()} being {self.adjective(not good)}, {yes}",
                f"they told me it was {self.plain(not good)}, and they were wrong: {yes}",
                f"I expected something {self.plain(not good)} and got something {self.plain(good)}",
                f"{self.pick(WATCHERS)} called it {self.plain(not good)}; I disagree, {yes}",
                f"{no} in the first half, and then everything changed and {yes}",
                f"where the book was {self.plain(not good)}, the film is {self.plain(good)}",
                f"what looked {self.plain(not good)} in the trailer turned out {self.plain(good)}",
                self.sarcasm() if not good else f"{self.plain(good)}, and I mean it: {yes}",
                yes,
            ]
        )

    def sarcasm(self) -> str:
        praise = self.plain(True)
        return self.pick(
            [
                f"oh sure, {praise}, if you also enjoy {self.pick(BORES)}",
                f"{praise}? yeah, right",
                f"about as {praise} as {self.pick(BORES)}",
                f"I would call it {praise}, if I were paid to lie",
                f"{praise}, said nobody, ever",
            ]
        )

    def opening(self) -> str:
        return self.pick(
            [
                f"I saw this {self.pick(KINDS)} {self.pick(TIMES)}",
                f"{self.pick(WATCHERS)} picked this {self.pick(KINDS)} {self.pick(TIMES)}",
                f"another {self.pick(KINDS)} that I watched {self.pick(TIMES)}",
            ]
        )

    def review(self, good: bool) -> str:
        """Opening, perhaps an aside that the verdict overrules, the verdict, perhaps a rating of the same mind."""
        parts = [self.opening()] if self.stream.random() < 0.7 else []
        if self.stream.random() < 0.4:
            parts.append(f"at first I thought {self.clause(not good)}")
            parts.append(f"in the end, {self.verdict(good)}")
        else:
            parts.append(self.verdict(good))
        return " ".join(part[0].upper() + part[1:] + self.pick((".", ".", "!")) for part in parts)


@cache
def reviews(split: str) -> list[tuple[str, str, int]]:
    """(id, review, sentiment) of `train` (2,500) or `test` (600): balanced, deterministic, each text once."""
    counts, unseen = {"train": 2500, "test": 600}, {"train": 0.0, "test": 0.5}
    taken = {text for _, text, _ in reviews("train")} if split == "test" else set()
    writer = Writer(random.Random(f"demo {split}"), unseen[split])
    written = []
    while len(written) < counts[split]:
        good = len(written) % 2 == 0
        text = writer.review(good)
        if text not in taken:
            taken.add(text)
            written.append((f"{split}_{len(written):04d}", text, int(good)))
    return written
