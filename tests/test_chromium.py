"""The page of eval.py --explain in headless Chromium: its words, its colours, and that it requests nothing.

`python tests/golden/make_screenshot.py` renews the screenshot.
"""

import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import GOLDEN

from data.hub import LINEAR
from eval import main as evaluate

SENTENCE = "The plot is thin, but the acting is wonderful and I was never bored."
SCREENSHOT = GOLDEN / "explanation.png"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-lcd-text", "--hide-scrollbars"]
FLAGS += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=860,1000"]
OWN_HOSTS = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com")  # that Chromium itself requests
TOLERANCE = 3  # of 255: the screenshot has a palette of 255 colours


def open_page(page: Path, picture: Path) -> tuple[str, set[str]]:
    """Opens a page without a network and writes a screenshot. Returns its text and the hosts that it requests."""
    log = picture.with_suffix(".netlog.json")
    run_chromium(page, f"--screenshot={picture}", f"--log-net-log={log}")
    urls = re.findall(r'"url":"([^"]*)"', log.read_text(encoding="utf-8"))
    hosts = {urlsplit(url).hostname or "" for url in urls if not url.startswith(("file:", "data:"))}
    return text_of(run_chromium(page, "--dump-dom")), {host for host in hosts if not host.endswith(OWN_HOSTS)}


def run_chromium(page: Path, *flags: str) -> str:
    """Opens a page with a new profile. Returns standard output."""
    with tempfile.TemporaryDirectory() as profile:
        command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={profile}", page.as_uri()]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def text_of(html: str) -> str:
    """Returns the text of a page, with single spaces."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append
    parser.feed(html)
    return " ".join(" ".join(found).split())


def backgrounds(html: str) -> dict[str, np.ndarray]:
    """Returns the colours of the words, `R G B / alpha`, as they appear on white: [3] in 0 … 255."""
    found = set(re.findall(r"background: rgb\((\d+ \d+ \d+ / [\d.]+)\)", html))
    split = {text: [float(number) for number in text.replace("/", "").split()] for text in found}
    return {text: 255 + alpha * (np.array(color) - 255) for text, (*color, alpha) in split.items()}


def pixels_of(picture: Path, color: np.ndarray) -> int:
    """Counts the pixels of a colour. color: [3] in 0 … 255"""
    from matplotlib.image import imread  # slow to import

    return int((np.abs(255 * imread(picture)[..., :3] - color) <= TOLERANCE).all(-1).sum())


def check_colours(html: str, picture: Path) -> None:
    """Asserts that a screenshot shows strong and weak words of both signs, each with its background."""
    colours = backgrounds(html)
    for sign in ("0 114 178", "213 94 0"):
        levels = [float(text.split("/ ")[1]) for text in colours if text.startswith(sign)]
        assert min(levels) < 0.2 < 0.5 < max(levels)
    missing = [text for text, color in colours.items() if pixels_of(picture, color) < 50]
    assert not missing


def explained(folder: Path) -> Path:
    """Writes the page of the built-in linear model."""
    evaluate(["--weights", str(LINEAR), "--text", SENTENCE, "--explain", str(folder / "words.html")])
    return folder / "words.html"


def test_the_screenshot_has_the_colours_of_the_page(tmp_path: Path):
    check_colours(explained(tmp_path).read_text(encoding="utf-8"), SCREENSHOT)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_chromium_shows_words_and_colours_and_requests_nothing(tmp_path: Path):
    page, picture = explained(tmp_path), tmp_path / "words.png"
    html = page.read_text(encoding="utf-8")
    text, hosts = open_page(page, picture)
    assert text.count(SENTENCE) == 2  # by integrated gradients, by leaving out
    assert not hosts
    check_colours(html, picture)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_the_policy_of_the_page_forbids_requests_and_without_it_they_are_seen(tmp_path: Path):
    html = explained(tmp_path).read_text(encoding="utf-8")
    image = html.replace("</h1>", '</h1><img src="http://pictures.example/x.png">')
    open_policy = re.sub(r'content="default-src[^"]*"', "content=\"style-src 'none'\"", image)
    for name, changed, wanted in (("kept", image, set()), ("open", open_policy, {"pictures.example"})):
        (tmp_path / f"{name}.html").write_text(changed, encoding="utf-8")
        assert open_page(tmp_path / f"{name}.html", tmp_path / f"{name}.png")[1] == wanted
    with pytest.raises(AssertionError):  # style-src forbids the colours
        check_colours(html, tmp_path / "open.png")
