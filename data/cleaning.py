"""Converts the HTML of a review to plain text."""

import re
import warnings
from pathlib import Path

from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

BLOCKS = (
    "address|article|aside|blockquote|body|br|caption|center|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|form|"
    "h[1-6]|head|header|hr|html|li|main|nav|ol|optgroup|option|p|pre|section|summary|table|tbody|td|tfoot|th|thead|title|"
    "tr|ul"
)
BREAKS = re.compile(rf"</?(?:{BLOCKS})\b[^<>]*>", re.IGNORECASE)
NO_TAG = re.compile(r"<(?!/?[a-zA-Z][^<>]*>)")  # a "<" that does not open a tag: `a < b`, `<3`, `<!--`
NO_ENTITY = re.compile(r"&(?!#?\w{1,40};)")  # an "&" that does not open an entity: `AT&T`
# tags of elements whose text is not shown, and whether such an element may contain another one
HIDDEN = [
    (re.compile(rf"<(/?){name}\b[^<>]*>", re.IGNORECASE), nests)
    for name, nests in (("script", False), ("style", False), ("template", True), ("rt", True), ("rp", True))
]
# in an element of these, versions of Python differ in whether they decode entities
LITERAL = re.compile(r"</?(?:textarea|iframe|xmp|noembed|noframes|noscript|plaintext)\b[^<>]*>", re.IGNORECASE)
MOST_TAGS = 20_000  # of a review; each takes a kilobyte while it is parsed
SPACES = re.compile("  +")  # begins with two literal spaces: found five times as fast as " {2,}"
# neither white space nor a character without a width: joiners, marks of direction, byte order mark, soft hyphen
VISIBLE = re.compile("[^\\s\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """Converts HTML to plain text.

    Line breaks and block tags become a space, other tags are removed, entities are decoded, and a run of spaces, tabs
    and line breaks becomes one space. A text without a visible character is empty. Raises ValueError for a text with
    very many tags.
    """
    text = BREAKS.sub(" ", text)
    if "<" in text or "&" in text:
        text = without_tags(text)
    for blank in "\t\r\n":
        text = text.replace(blank, " ")
    text = SPACES.sub(" ", text).strip(" ")
    return text if VISIBLE.search(text) else ""


def clean_line(text: str, number: int, where: Path | str) -> str:
    """Converts a line by `clean`. Raises ValueError that names the file, and the line by its number."""
    try:
        return clean(text)
    except ValueError as error:
        raise ValueError(f"{where}: line {number:,}: {error}; correct it") from None


def without_tags(text: str) -> str:
    """Removes HTML tags and decodes entities. Raises ValueError for a text with very many tags."""
    text = NO_TAG.sub("&lt;", NO_ENTITY.sub("&amp;", text))
    for tags_of_one, nests in HIDDEN:
        text = without_hidden(text, tags_of_one, nests)
    text = LITERAL.sub("", text)
    if (tags := text.count("<")) > MOST_TAGS:
        raise ValueError(f"a review with {tags:,} HTML tags; {MOST_TAGS:,} are allowed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a review may look like a file name
        return BeautifulSoup(text, "html.parser").get_text()


def without_hidden(text: str, tags: re.Pattern[str], nests: bool) -> str:
    """Removes elements with their text. An opening tag that is not closed is a word: `the <style> of this film`.

    tags: the opening and closing tags of one element;  nests: whether it may contain another one
    """
    opened: list[int] = []  # starts of opening tags
    spans: list[tuple[int, int]] = []  # of the outermost elements
    for tag in tags.finditer(text):
        if tag[1] and opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, tag.end()))
        elif not tag[1] and (nests or not opened):
            opened.append(tag.start())
    parts, done = [], 0
    for start, end, new in sorted([(*span, "") for span in spans] + [(at, at + 1, "&lt;") for at in opened]):
        parts += [text[done:start], new]
        done = end
    return "".join([*parts, text[done:]])


def has_surrogate(text: str) -> bool:
    """Returns whether a text contains half of a surrogate pair."""
    return not text.isascii() and SURROGATE.search(text) is not None
