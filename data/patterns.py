"""Refuses parts of a tokenizer.json that cost unbounded time or memory: regular expressions and replacements.

Oniguruma, which the `tokenizers` package calls, searches by backtracking. A repeated group that contains a repetition,
as in (a+)+, has exponentially many ways to match. Nested counts, as in (a{1000}){1000}, are expanded when they are
compiled. A chain of replacements, each of which doubles a text, grows exponentially.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.checked import show

LONGEST_PATTERN = 10_000  # characters
MOST_REPEATS = 1_000  # product of nested counts
MOST_GROWTH = 1_000  # factor by which a chain of replacements may lengthen a text
PARTS = ("normalizer", "pre_tokenizer", "decoder")  # of a tokenizer.json
COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")
OPENING = re.compile(r"\((\?(<[=!]|[=!>]|[a-zA-Z-]*:|[a-zA-Z-]+(?=\))|<\w+>))?")
ESCAPE = re.compile(r"\\(?:[pPxokg](?:\{[^}]*\}|<[^>]*>)|.)", re.DOTALL)


class Atom(NamedTuple):
    """A part of a pattern. repeats: product of the counts inside.  endless: whether it contains * or +."""

    repeats: int = 1
    endless: bool = False


def end_of_class(pattern: str, start: int) -> int:
    """Returns the position after the character class that begins at `start`, the length if it is not closed."""
    depth, at = 0, start
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
            at += pattern.startswith("^", at + 1)
            at += pattern.startswith("]", at + 1)  # a bracket at the beginning is a character
        elif pattern[at] == "]":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return len(pattern)


def read_quantifier(pattern: str, at: int) -> tuple[int, int | None] | None:
    """Returns (position after it, greatest count) of a quantifier at a position, None without one. None: endless."""
    if pattern[at] in "*+?":
        return at + 1, 1 if pattern[at] == "?" else None
    found = COUNT.match(pattern, at)
    if not found or not (found[1] or found[3]):
        return None
    most = found[3] or (found[1] if not found[2] else "")
    return found.end(), int(most[:9]) if most else None


def repeat(atom: Atom, most: int | None) -> Atom:
    """Returns an atom under a quantifier. Raises ValueError for nested repetitions."""
    if atom.endless and most != 1:
        raise ValueError("a repetition of a repetition, as in (a+)+, may take unlimited time")
    repeats = atom.repeats * max(1, most or 1)
    if repeats > MOST_REPEATS:
        raise ValueError(f"nested counts of {repeats:,}; at most {MOST_REPEATS:,} are read")
    return Atom(repeats, atom.endless or most is None)


def end_of_atom(pattern: str, at: int) -> int:
    """Returns the position after the character, escape sequence or character class at a position."""
    if pattern[at] == "[":
        return end_of_class(pattern, at)
    escape = ESCAPE.match(pattern, at)
    return escape.end() if escape else at + 1


def check_pattern(pattern: str) -> None:
    """Raises ValueError for a regular expression that may take unlimited time or memory."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"{len(pattern):,} characters; at most {LONGEST_PATTERN:,} are read")
    groups, last, at = [Atom()], Atom(), 0  # groups: what each open group contains so far
    while at < len(pattern):
        first = pattern[at]
        if (quantifier := read_quantifier(pattern, at)) is not None:
            at, most = quantifier
            last = repeat(last, most)
            modifiers = "?" if first == "{" else "?+"  # lazy, possessive; a "+" after a count repeats it
            at += at < len(pattern) and pattern[at] in modifiers
        elif first == "(" and (opening := OPENING.match(pattern, at)):
            at, last = opening.end(), Atom()
            groups.append(Atom())
        elif first == ")" and len(groups) > 1:
            at, last = at + 1, groups.pop()
        elif pattern.startswith("\\g", at):
            raise ValueError("a call of a group, as in (a+)\\g<1>*, may take unlimited time")
        else:
            at, last = end_of_atom(pattern, at), Atom()
        groups[-1] = Atom(max(groups[-1].repeats, last.repeats), groups[-1].endless or last.endless)


def find_patterns(value: Any) -> Iterator[str]:
    """Yields the regular expressions in a part of a tokenizer.json."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and isinstance(value.get("Regex"), str):
        yield value["Regex"]
    for item in items:
        yield from find_patterns(item)


def growth(normalizer: Any) -> int:
    """Returns the factor by which the replacements of a normalizer may lengthen a text."""
    if not isinstance(normalizer, dict):
        return 1
    factor = 1
    for step in normalizer.get("normalizers") or []:
        factor *= growth(step)
    content, pattern = normalizer.get("content"), normalizer.get("pattern")
    if isinstance(content, str):
        fixed = pattern.get("String") if isinstance(pattern, dict) else None
        found = len(fixed) if isinstance(fixed, str) and fixed else 1
        factor *= max(1, -(-len(content) // found))
    return factor


def check_pipeline(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a tokenizer.json. Raises ValueError that names `path` for a part of unbounded cost."""
    for part in PARTS:
        for pattern in find_patterns(content.get(part)):
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise ValueError(f"{path}: its {part} has the expression '{show(pattern, 60)}': {error}") from None
    if (factor := growth(content.get("normalizer"))) > MOST_GROWTH:
        raise ValueError(f"{path}: the replacements of its normalizer may lengthen a text more than {factor:,} times")
    return content
