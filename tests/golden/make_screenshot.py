"""Writes explanation.png, the page of eval.py --explain in headless Chromium: python tests/golden/make_screenshot.py

A palette of 255 colours halves the file. Pillow comes with matplotlib.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image
from test_chromium import SCREENSHOT, explained, run_chromium

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "words.png"
        run_chromium(explained(Path(folder)), f"--screenshot={picture}")
        Image.open(picture).convert("RGB").quantize(255).save(SCREENSHOT, optimize=True)
