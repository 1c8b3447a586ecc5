"""Tests of the benchmarks' own arithmetic: the search, the rows, the sample of reviews, the FLOPs, the tables."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.limit import GROUPS, forward_products, gradient_products, group_of, product_run, products
from bench.measure import (
    Candidate,
    alternate,
    busy_elsewhere,
    compared_row,
    finalists,
    quick_seconds,
    tune,
    undisturbed,
)
from bench.scaling import CASES, exchange_seconds, shard_table, sharded_bytes, static_bytes, table
from bench.tables import breakdown_table, pretraining_table, share_table, with_tables
from bench.workload import full_rows, sample_rows
from conftest import ROOT, tiny, token_batch
from torch.utils.flop_counter import FlopCounterMode

from data.tables import BENCH
from nn.attention import attention


@pytest.fixture
def given_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a run return its own time, and the share of other processes."""
    monkeypatch.setattr("bench.measure.timed", lambda run: run())


@pytest.mark.usefixtures("given_times")
def test_the_search_keeps_the_fastest_value_of_each_axis():
    log: dict[str, float] = {}
    build = lambda a, b: lambda: (1.0 + abs(a - 2) + (b != "y"), 0.0)  # noqa: E731
    best = tune("L", build, {"a": (1, 2, 3), "b": ("x", "y")}, log)
    assert (best.name, best.seconds) == ("L, 2, y", 1.0)
    assert log == {"L, 1, x": 3.0, "L, 2, x": 2.0, "L, 3, x": 3.0, "L, 2, y": 1.0}


@pytest.mark.usefixtures("given_times")
@pytest.mark.parametrize(
    ("times", "expected", "left"),
    [
        ([(1.0, 0.0), (0.5, 0.0)], 0.5, 0),  # short: twice
        ([(9.0, 0.0), (1.0, 0.0)], 9.0, 1),  # long: once
        ([(9.0, 0.5), (8.0, 0.0)], 8.0, 0),  # long and disturbed: twice
        ([(1.0, 0.5), (2.0, 0.0)], 2.0, 0),  # the undisturbed one counts
    ],
)
def test_a_run_is_timed_again_if_it_was_short_or_disturbed(
    times: list[tuple[float, float]], expected: float, left: int
):
    given = iter(times)
    assert quick_seconds(lambda: next(given)) == expected
    assert len(list(given)) == left


def test_finalists_are_nearly_as_fast_as_the_fastest():
    candidates = [Candidate(str(seconds), lambda: None, seconds) for seconds in (1.0, 1.1, 1.2, 9.0)]
    assert [candidate.name for candidate in finalists(candidates)] == ["1.0", "1.1"]


@pytest.mark.usefixtures("given_times")
def test_runs_alternate_and_the_first_round_does_not_count():
    called, times = [], iter([9.0, 1.0, 3.0])
    medians = alternate(
        {"a": lambda: called.append("a") or (next(times), 0.0), "b": lambda: called.append("b") or (4.0, 0.0)},
        repeats=2,
    )
    assert called == ["a", "b"] * 3
    assert medians == {"a": 2.0, "b": 4.0}


@pytest.mark.usefixtures("given_times")
def test_disturbed_times_do_not_count_and_are_repeated():
    given = iter([(9.0, 0.0), (2.0, 0.5), (4.0, 0.0), (5.0, 0.01), (99.0, 0.0)])
    assert alternate({"a": lambda: next(given)}, repeats=2) == {"a": 4.5}
    assert next(given) == (99.0, 0.0)
    assert undisturbed([(1.0, 0.5), (3.0, 0.9)]) == [1.0, 3.0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_the_cpu_time_of_other_processes_is_measured():
    before = busy_elsewhere()
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-S", "-c", spin], check=True)
    assert busy_elsewhere() - before > 0.2


def test_a_row_has_the_fastest_peer_and_the_ratio_to_it():
    medians = {"slow peer": 8.0, "peer": 4.0, "ours": 2.0, "unused": 1.0}
    row = compared_row("work", medians, ("ours", "ours, auto"), ["slow peer", "peer"], amount=16)
    assert row == {"work": "work", "peer": 4.0, "ours": 8.0, "ratio ours": 2.0}
    assert list(row)[:2] == ["work", "peer"]  # data.tables.bench_row takes the second key for the peer


def test_blocks_of_the_sample_have_neighbouring_lengths_at_even_distances():
    lengths = np.random.default_rng(0).permutation(np.arange(100, 196))
    rows = sample_rows(lengths, block=8, blocks=3)
    assert np.sort(lengths[rows]).tolist() == [*range(116, 124), *range(148, 156), *range(180, 188)]
    assert rows.tolist() == sorted(rows.tolist())


def test_full_rows_have_the_largest_length():
    lengths = np.array([5, 7, 6, 7, 7])
    assert full_rows(lengths, 2).tolist() == [1, 3]
    with pytest.raises(ValueError, match="3 reviews have 7 tokens; 4 are needed"):
        full_rows(lengths, 4)


def counted_flops(run: Callable[[], Any], operations: tuple[str, ...]) -> int:
    """Returns the FLOPs of some operations of aten in run(), by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if str(name)[5:] in operations)


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_the_flops_of_linear_layers_equal_torchs_counter(name: str):
    model = tiny(name, num_layers=3).eval()
    ids, mask = token_batch([7, 7])
    counted = counted_flops(lambda: model(ids, mask), ("mm", "addmm", "linear"))
    classifier = 2 * 2 * model.config.hidden_size * 2
    linear = sum(product.flops for product in forward_products(model.config, 2, 7) if not product.batch) + classifier
    assert linear == counted


def test_the_flops_of_attention_equal_torchs_counter():
    config = tiny("bert", num_layers=1).config  # its only layer has one query
    q, k = torch.randn(2, config.num_heads, 1, 4), torch.randn(2, config.num_heads, 7, 4)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    counted = counted_flops(lambda: attention(q, k, k, mask), ("bmm", "baddbmm"))
    assert sum(product.flops for product in forward_products(config, 2, 7) if product.batch) == counted


def test_gradients_double_the_flops_and_equal_shapes_are_counted_together():
    config = tiny("bert", num_layers=4).config
    forward, trained = products(config, 2, 7, training=False), products(config, 2, 7, training=True)
    assert sum(p.flops for p in trained) == 3 * sum(p.flops for p in forward)
    shapes = [product[:4] for product in trained]
    assert len(shapes) == len(set(shapes))
    for product in forward:
        shape = (product.batch, product.m, product.k, product.n)
        by_x, by_w = gradient_products(product)
        assert (by_x.m, by_x.n) == (shape[1], shape[2])
        assert (by_w.m, by_w.n) == (shape[2], shape[3])
        assert product_run(product, torch.float32)().shape[-2:] == (product.m, product.n)


@pytest.mark.parametrize(
    ("operation", "group"),
    [
        ("aten::addmm", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention kernel"),
        ("aten::_softmax_backward_data", "softmax"),
        ("aten::gelu_backward", "GELU"),
        ("aten::native_layer_norm", "LayerNorm"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::copy_", "copies and casts"),
        ("aten::random_", "dropout"),
        ("aten::add_", "sums"),
        ("aten::tanh", "other"),
    ],
)
def test_operations_are_grouped(operation: str, group: str):
    assert group_of(operation) == group
    assert group in {*GROUPS, "other"}


def test_the_tables_of_the_readme_are_up_to_date():
    text = (BENCH / "README.md").read_text(encoding="utf-8")
    assert with_tables(text) == text
    for name in ("share", "breakdown", "pretraining"):
        assert f"<!-- {name} -->\n| CPU |" in text


def test_tables_show_every_row(tmp_path: Path):
    row = {"step": "scoring, fp32", "pass": "4 x 512", "GFLOP per review": 1.5, "GFLOP/s": 30}
    row |= {"products' GFLOP/s": 40, "share": 0.75, "linear layers' GFLOP/s": 50, "share of linear": 0.6}
    row |= {"breakdown": {"products": 0.7, "other": 0.3}}
    (tmp_path / "limit.json").write_text(json.dumps({"CPU, 2 threads": {"torch": "2", "rows": [row]}}))
    assert (
        share_table(tmp_path).splitlines()[2] == "| CPU | scoring, fp32 | 4 x 512 | 1.5 | 30 | 40 | 0.75 | 50 | 0.6 |"
    )
    assert breakdown_table(tmp_path).splitlines()[::2] == [
        "| CPU | step | products | other |",
        "| CPU | scoring, fp32 | 70 | 30 |",
    ]
    alone = [{"work": "pretraining", "ours": 9}]
    (tmp_path / "peers-a.json").write_text(json.dumps({"machine": "CPU, 2 threads", "alone": alone}))
    assert pretraining_table(tmp_path).splitlines()[2] == "| CPU | pretraining | 9 | – |"


def test_the_estimate_of_several_gpus_is_in_the_readme():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert table() in text
    assert shard_table() in text


def test_shards_approach_their_part_of_the_model_and_what_is_gathered():
    for case in CASES:
        assert sharded_bytes(case, 1) > static_bytes(case)
        gathered = sharded_bytes(case, 1) - static_bytes(case)
        assert sharded_bytes(case, 8) == pytest.approx(static_bytes(case) / 8 + gathered)


def test_one_gpu_exchanges_nothing_and_many_at_most_twice_their_gradients():
    for case in CASES:
        assert exchange_seconds(case, 1) == 0
        assert exchange_seconds(case, 512) == pytest.approx(2 * 4 * case.trained / 40e9, rel=1 / 256)
