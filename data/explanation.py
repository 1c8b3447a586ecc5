"""Shows why a review got its label: in a terminal, and as one HTML page.

A word with a positive effect on the label is blue, with a negative effect orange; its strength is relative to the
strongest word. Without colours the marks (+), (++), (+++) and (-), (--), (---) follow a word. The palette is Okabe &
Ito's, which colour-blind readers can distinguish; on the page underlines, solid or dotted, also show the sign in grey.

The page has no script, requests nothing (its Content-Security-Policy forbids it), and escapes every text.
"""

import html
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from data.checked import CONTROL

STEPS = (0.1, 1 / 3, 2 / 3)  # of the largest effect: from here on one, two, three marks
ANSI_FOR, ANSI_AGAINST = (153, 111, 75), (223, 215, 208)  # backgrounds of 256 colours, light to strong
BLUE, ORANGE, GREEN = "0 114 178", "213 94 0", "0 158 115"
STRONGEST = 10  # words in a list
SENTENCE_END = re.compile(r"""[.!?…]["')\]]*$""")


@dataclass(frozen=True)
class Explanation:
    """Holds the effects of the N words of a review on the log-odds of its label.

    read: bool [N], whether the model read a token of a word.  truncated: bool [N], whether truncation removed the
    word; a word without a token is neither.  gradients: integrated gradients [N];  without: effects of leaving a word
    out [N];  difference: F(x) - F(x'), which the gradients sum to.  phrases: words, or n-grams of a linear model, with
    their effects.  weights: titles and weights [N] by which the model pools its words.
    baseline: what x' is.  key, truth: id and label in the file, or "".
    """

    words: list[str]
    read: np.ndarray
    truncated: np.ndarray
    label: str
    probabilities: dict[str, float]
    gradients: np.ndarray
    without: np.ndarray
    difference: float
    phrases: list[tuple[str, float]]
    weights: list[tuple[str, np.ndarray]]
    baseline: str
    key: str = ""
    truth: str = ""

    @property
    def agreement(self) -> float:
        """Returns the rank correlation of both methods (Spearman) over the words that were read; NaN if undefined."""
        a, b = (pd.Series(values[self.read]).rank().to_numpy() for values in (self.gradients, self.without))
        if len(a) < 3 or a.std() == 0 or b.std() == 0:
            return float("nan")
        return float(np.corrcoef(a, b)[0, 1])

    @property
    def title(self) -> str:
        """Describes the label, and that of the file."""
        text = f"{self.key}: " if self.key else ""
        text += f"{self.label} ({self.probabilities[self.label]:.4f})"
        return text + (f", labelled {self.truth}" if self.truth else "")


def weighted_sum(
    explanations: Sequence[Explanation], factors: Sequence[float], probabilities: dict[str, float]
) -> Explanation:
    """Adds explanations of one label of one text by several models, each times a factor.

    That explains the sum of their logits, each times its factor, if there are two classes: its log-odds are the sum of
    theirs. probabilities: of this sum. The phrases are words.
    """
    first, *_ = explanations
    pairs = list(zip(explanations, factors, strict=True))
    without = sum((factor * e.without for e, factor in pairs), np.zeros(len(first.words)))
    return replace(
        first,
        read=np.any([e.read for e in explanations], axis=0),
        truncated=np.all([e.truncated for e in explanations], axis=0),
        probabilities=probabilities,
        gradients=sum((factor * e.gradients for e, factor in pairs), np.zeros(len(first.words))),
        without=without,
        difference=sum(factor * e.difference for e, factor in pairs),
        phrases=list(zip(first.words, without.tolist(), strict=True)),
        weights=[found for e in explanations for found in e.weights],
        baseline=" and ".join(dict.fromkeys(e.baseline for e in explanations)),
    )


def agreement_text(explanation: Explanation) -> str:
    """Describes in one line whether both methods agree."""
    rho = explanation.agreement
    if np.isnan(rho):
        return (
            "integrated gradients and leaving out: no rank correlation of fewer than three words, or of equal effects"
        )
    first, second = (int(np.abs(values).argmax()) for values in (explanation.gradients, explanation.without))
    verdict = "agree" if rho >= 0.5 else "agree in part" if rho >= 0.2 else "do not agree"
    strongest = "the same" if first == second else "not the same"
    return f"integrated gradients and leaving out {verdict}: rank correlation {rho:.2f}, strongest word {strongest}"


def completeness_text(explanation: Explanation) -> str:
    """Describes in one line what the effects sum to."""
    total, expected = explanation.gradients.sum(), explanation.difference
    return (
        f"the effects sum to {total:+.2f}; the log-odds differ by {expected:+.2f} from those of {explanation.baseline}"
    )


def sentences(words: Sequence[str]) -> list[range]:
    """Splits words into sentences: after a word that ends with . ! ? or …, if the next word begins with no lowercase
    letter. An abbreviation before a name ends a sentence too."""
    ends = [
        number
        for number, word in enumerate(words, 1)
        if number == len(words) or (SENTENCE_END.search(word) and not words[number][:1].islower())
    ]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def largest_gains(phrases: Sequence[tuple[str, float]], sign: int = 1, count: int = STRONGEST) -> str:
    """Lists the phrases with the largest gains above 0. sign: -1 lists those with the largest losses."""
    ordered = sorted(phrases, key=lambda pair: -sign * pair[1])
    shown = [f"{visible(text)} {sign * gain:.2f}" for text, gain in ordered[:count] if sign * gain > 0]
    return ", ".join(shown) or "no word"


def visible(text: str) -> str:
    """Replaces characters that would change what a terminal shows."""
    return CONTROL.sub("\ufffd", text)


def escaped(text: str) -> str:
    """Escapes a text for HTML."""
    return html.escape(visible(text))


def strengths(effects: np.ndarray) -> np.ndarray:
    """Divides effects by the largest absolute one: [N], in -1 … 1"""
    return effects / max(float(np.abs(effects).max(initial=0)), 1e-12)


# -------------------------------------------------------------------------------------------------------- terminal


def has_colours() -> bool:
    """Returns whether standard output is a terminal with colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def columns_of(text: str) -> int:
    """Returns the columns of a text on a terminal: two for a wide character, none for a mark on another one."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)


def marked(word: str, strength: float, colours: bool) -> tuple[str, int]:
    """Returns a word with its colour or marks, and the number of its columns. strength: in -1 … 1"""
    word, level = visible(word), int(np.searchsorted(STEPS, abs(strength), side="right"))
    if not level:
        return word, columns_of(word)
    if colours:
        colour = (ANSI_FOR if strength > 0 else ANSI_AGAINST)[level - 1]
        return f"\x1b[48;5;{colour};38;5;16m{word}\x1b[0m", columns_of(word)
    text = f"{word}({('+' if strength > 0 else '-') * level})"
    return text, columns_of(text)


def wrapped(parts: Sequence[tuple[str, int]], first: str, width: int) -> Iterator[str]:
    """Yields lines of at most `width` columns. parts: texts and their columns;  first: before the first line."""
    line, used = first, len(first)
    for text, columns in parts:
        if used > len(first) and used + 1 + columns > width:
            yield line
            line, used = " " * len(first), len(first)
        line, used = f"{line} {text}", used + 1 + columns
    yield line


def as_text(explanation: Explanation, colours: bool, width: int = 100) -> str:
    """Returns an explanation for a terminal: the words of each sentence after its score."""
    lines = [visible(explanation.title)] if explanation.key else []
    strength = strengths(explanation.gradients)
    for sentence in sentences(explanation.words):
        parts = [marked(explanation.words[i], strength[i], colours) for i in sentence]
        score = explanation.gradients[sentence.start : sentence.stop].sum()
        lines += wrapped(parts, f"{score:+6.2f} ", width)
    if unread := int(explanation.truncated.sum()):
        lines += [f"{unread:,} of {len(explanation.words):,} words were not read: the review is truncated"]
    sign = "blue" if colours else "+", "orange" if colours else "-"
    lines += [f"{sign[0]}: for {visible(explanation.label)}, {sign[1]}: against it; {completeness_text(explanation)}"]
    lines += [agreement_text(explanation)]
    for title, weights in explanation.weights:
        order = np.argsort(-weights, kind="stable")[:STRONGEST]
        lines += [f"highest {title}: " + ", ".join(f"{visible(explanation.words[i])} {weights[i]:.2f}" for i in order)]
    lines += ["because of: " + largest_gains(explanation.phrases)]
    lines += ["in spite of: " + largest_gains(explanation.phrases, -1)]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ page

STYLE = """
body { font: 16px/1.7 system-ui, sans-serif; color: #000; background: #fff; max-width: 76em; margin: 2em auto;
       padding: 0 1em }
p { max-width: 60em; margin: .4em 0 }
.methods { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26em, 100%), 1fr)); gap: 0 2em }
.sentence { margin: 0 0 .3em 4em; overflow-wrap: anywhere }
.score { float: left; margin-left: -4em; font-variant-numeric: tabular-nums }
.for { border-bottom: 2px solid } .against { border-bottom: 2px dotted } .unread { color: #767676 }
table { border-collapse: collapse; margin: 1.5em 0 } th { border-bottom: 1px solid #999; font-weight: 600 }
td, th { text-align: right; padding: 0 1.6em 0 0; font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left }
h1 { font-size: 1.5em } h2 { font-size: 1.3em; border-top: 1px solid #999; padding-top: 1em }
h3 { font-size: 1em; margin: 1.2em 0 .2em }
"""


def word_html(word: str, effect: float, strength: float, truncated: bool, signed: bool) -> str:
    """Returns a word with its background. strength: in -1 … 1;  signed: whether effects have a sign."""
    text = escaped(word)
    if truncated:
        return f'<span class="unread" title="not read: truncated">{text}</span>'
    kind = "for" if strength > 0 else "against"
    border = f' class="{kind}"' if signed and abs(strength) >= STEPS[0] else ""
    colour = GREEN if not signed else BLUE if strength > 0 else ORANGE
    background = f"background: rgb({colour} / {0.65 * abs(strength):.2f})"
    return f'<span{border} style="{background}" title="{effect:+.3f}">{text}</span>'


def passage(explanation: Explanation, heading: str, effects: np.ndarray, signed: bool = True) -> str:
    """Returns the words of a review, coloured by their effects, with the score of each sentence."""
    strength, lines = strengths(effects), []
    for sentence in sentences(explanation.words):
        words = " ".join(
            word_html(explanation.words[i], effects[i], strength[i], bool(explanation.truncated[i]), signed)
            for i in sentence
        )
        score = effects[sentence.start : sentence.stop].sum()
        lines.append(f'<p class="sentence"><span class="score">{score:+.2f}</span>{words}</p>')
    return f"<section><h3>{escaped(heading)}</h3>{''.join(lines)}</section>"


def table_html(explanation: Explanation) -> str:
    """Returns a table of the words with the largest effects by either method."""
    strength = np.maximum(np.abs(strengths(explanation.gradients)), np.abs(strengths(explanation.without)))
    rows = [
        f"<tr><td>{escaped(explanation.words[i])}</td><td>{explanation.gradients[i]:+.2f}</td>"
        f"<td>{explanation.without[i]:+.2f}</td></tr>"
        for i in np.argsort(-strength, kind="stable")[:STRONGEST]
    ]
    head = "<tr><th>word</th><th>integrated gradients</th><th>leaving out</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def section_html(explanation: Explanation) -> str:
    """Returns the part of the page for one review."""
    parts = [passage(explanation, "Integrated gradients", explanation.gradients)]
    parts += [passage(explanation, "Leaving each word out", explanation.without)]
    parts += [passage(explanation, f"Highest {title}", weights, signed=False) for title, weights in explanation.weights]
    lines = [completeness_text(explanation), agreement_text(explanation)]
    lines += ["because of: " + largest_gains(explanation.phrases)]
    lines += ["in spite of: " + largest_gains(explanation.phrases, -1)]
    shown = ", ".join(f"{name} {p:.4f}" for name, p in explanation.probabilities.items())
    text = "".join(f"<p>{escaped(line)}</p>" for line in [shown, *lines])
    title = escaped(explanation.title)
    return f'<h2>{title}</h2>{text}<div class="methods">{"".join(parts)}</div>{table_html(explanation)}'


def as_page(explanations: Sequence[Explanation], model: str) -> str:
    """Returns one self-contained HTML page. model: what labelled the reviews"""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    legend = (
        f'<p><span class="for" style="background: rgb({BLUE} / 0.4)">blue, underlined</span>: positive effect on the '
        f'label, <span class="against" style="background: rgb({ORANGE} / 0.4)">orange, dotted</span>: negative. The '
        "number before a sentence is the sum of its words, in log-odds of the label. Integrated gradients: "
        "Sundararajan, Taly &amp; Yan 2017, arXiv 1703.01365. Leaving out: Li, Monroe &amp; Jurafsky 2016, arXiv "
        "1612.08220.</p>"
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>Why these labels?</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escaped(model)}</h1>\n{legend}\n" + "\n".join(map(section_html, explanations)) + "\n</body>\n</html>\n"
    )
