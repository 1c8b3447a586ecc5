"""Generates the tables of tests/bench/README.md that are not tables of speeds (those are data/tables.py's).

    python tests/bench/tables.py

`<!-- share -->` opens the table of the shares of limit.json, `<!-- breakdown -->` that of its breakdowns, and
`<!-- pretraining -->` the speeds of mlm-128 in all files peers-*.json.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data.checked import read_json
from data.files import write_text
from data.tables import BENCH, markdown


def limit_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name of the CPU and each row of limit.json."""
    for machine, found in read_json(folder / "limit.json").items():
        for row in found["rows"]:
            yield machine.split(",")[0], row


def share_table(folder: Path = BENCH) -> str:
    """Returns a Markdown table: rate of each step, and its share of the rate of the same products alone."""
    header = ("CPU", "step", "pass", "GFLOP a review", "GFLOP/s", "products alone", "share", "linear alone", "share")
    columns = ("step", "pass", "GFLOP per review", "GFLOP/s", "products' GFLOP/s", "share")
    columns += ("linear layers' GFLOP/s", "share of linear")
    return markdown(header, [(cpu, *(str(row[name]) for name in columns)) for cpu, row in limit_rows(folder)])


def breakdown_table(folder: Path = BENCH) -> str:
    """Returns a Markdown table: the time of each step by operation, in per cent."""
    rows = list(limit_rows(folder))
    totals: dict[str, float] = {}
    for _, row in rows:
        for group, share in row["breakdown"].items():
            totals[group] = totals.get(group, 0.0) + share
    groups = [*sorted(totals.keys() - {"other"}, key=lambda group: (-totals[group], group)), "other"]
    shares = [[f"{100 * row['breakdown'].get(group, 0):.0f}" for group in groups] for _, row in rows]
    lines = [(cpu, row["step"], *cells) for (cpu, row), cells in zip(rows, shares, strict=True)]
    return markdown(("CPU", "step", *groups), lines)


def pretraining_table(folder: Path = BENCH) -> str:
    """Returns a Markdown table of mlm-128: subwords per second."""
    found = [read_json(path) for path in sorted(folder.glob("peers-*.json"))]
    rows = [(data["machine"].split(",")[0], row) for data in found for row in data.get("alone", [])]
    speeds = [(cpu, row["work"], *(str(row.get(name, "–")) for name in ("ours", "ours, auto"))) for cpu, row in rows]
    return markdown(("CPU", "work", "fp32", "bf16"), speeds)


TABLES: dict[str, Callable[[], str]] = {
    "share": share_table,
    "breakdown": breakdown_table,
    "pretraining": pretraining_table,
}


def with_tables(text: str) -> str:
    """Returns the text of the README with its tables made anew."""
    marked = re.compile(rf"(<!-- ({'|'.join(TABLES)}) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
    return marked.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


if __name__ == "__main__":
    readme = BENCH / "README.md"
    write_text(readme, with_tables(readme.read_text(encoding="utf-8")))
