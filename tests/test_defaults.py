"""All defaults: a change of one is deliberate, and noted in data/results/README.md (changelog of defaults).

python tests/test_defaults.py    writes the defaults of today into tests/golden/defaults.json
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from losses import OBJECTIVES  # noqa: E402
from nn import MODELS  # noqa: E402
from peft import METHODS  # noqa: E402

FILE = ROOT / "tests" / "golden" / "defaults.json"


def fields(cls: type) -> dict[str, Any]:
    """Returns the defaults of a dataclass."""
    return {field.name: field.default for field in dataclasses.fields(cls)}


def defaults() -> dict[str, Any]:
    """Returns the settings of all entries of the three tables, as JSON values."""
    models = {
        name: {
            "shape": entry.shape,
            "tokenizer": entry.tokenizer,
            "weights": entry.weights,
            "training": entry.training,
            "demo": entry.demo,
            "config": fields(entry.build.Config),
        }
        for name, entry in MODELS.items()
    }
    methods = {
        name: {
            "training": entry.training,
            "builtin": entry.builtin,
            "demo": entry.demo,
            "options": fields(entry.options),
        }
        for name, entry in METHODS.items()
    }
    objectives = {
        name: {
            "training": entry.training,
            "options": fields(entry.options),
            "flags": list(entry[4:-1]),
            "continued": entry.continued,
        }
        for name, entry in OBJECTIVES.items()
    }
    return json.loads(json.dumps({"models": models, "methods": methods, "objectives": objectives}))


def test_defaults_change_deliberately():
    assert defaults() == json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    FILE.write_text(json.dumps(defaults(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
