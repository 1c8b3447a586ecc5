"""Parameter groups and their learning rates, the schedule, the running mean, reinitialization."""

from typing import Any

import pytest
import torch
from conftest import ENCODERS, adapt, tiny
from test_pretraining import FakeTokenizer
from torch.nn import LayerNorm, Linear, Module

from data.options import Options
from losses import OBJECTIVES
from losses.rtd import RTDOptions
from losses.supcon import SupConOptions, prepare
from nn.optim import Average, describe_groups, parameter_groups, reinitialize, schedule
from peft.adapters import is_adapter_parameter

RATE, HEAD_RATE = 1e-3, 7e-3


def groups_by_name(model: Module, options: Options, **arguments: Any) -> dict[str, dict[str, Any]]:
    """Returns the group of each trainable parameter. Fails if a parameter has two groups, or a frozen one has any."""
    groups, names = parameter_groups(model, options, **arguments), {p: name for name, p in model.named_parameters()}
    members = [(names[p], group) for group in groups for p in group["params"]]
    assert sorted(name for name, _ in members) == sorted(names[p] for p in names if p.requires_grad)
    return dict(members)


# --------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("name", ENCODERS)
def test_the_rate_decays_from_each_layer_to_the_one_below(name):
    model = tiny(name, num_layers=3)
    found = groups_by_name(model, Options(learning_rate=RATE, layer_decay=0.5))
    for key, group in found.items():
        component, _, rest = key.partition(".")
        layers_above = 2 - int(rest[0]) if component == "layers" else 3
        if component in (*model.HEAD, "final_norm"):
            layers_above = 0
        assert group["peak"] == group["lr"] == RATE * 0.5**layers_above, key
        assert group["part"] == ("head" if component in model.HEAD else "backbone"), key
    assert len({group["peak"] for group in found.values()}) == 4


def test_the_last_norm_of_the_transformer_has_the_rate_of_the_last_layer():
    model = tiny("transformer", num_layers=3, pre_norm=True)
    found = groups_by_name(model, Options(learning_rate=RATE, layer_decay=0.5))
    assert found["norm.weight"]["peak"] == found["layers.2.attention_norm.weight"]["peak"] == RATE
    assert found["project.weight"]["peak"] == found["embeddings.word.weight"]["peak"] == RATE / 8


@pytest.mark.parametrize("name", ["cnn", "lstm", "gru", "cnn_lstm", "transformer"])
def test_attention_pooling_is_part_of_the_head(name: str):
    found = groups_by_name(tiny(name, pooling="attention"), Options(learning_rate=RATE, layer_decay=0.5))
    pooling = [group for key, group in found.items() if key.startswith("pooling.")]
    assert pooling
    assert all(group["part"] == "head" and group["peak"] == RATE for group in pooling)


def test_class_capsules_are_part_of_the_head():
    found = groups_by_name(tiny("capsule_lstm", head="capsules"), Options(head_learning_rate=HEAD_RATE))
    parts = {key: group["part"] for key, group in found.items() if key.split(".")[0] in ("capsules", "classes")}
    assert parts == {"capsules.weight": "head", "classes.weight": "head"}


def test_virtual_tokens_have_the_rate_of_the_last_layer():
    found = groups_by_name(adapt(tiny("bert"), "prefix"), Options(learning_rate=RATE, layer_decay=0.5))
    rates = {key.split(".")[0]: group["peak"] for key, group in found.items()}
    assert rates["virtual"] == RATE


def test_head_adapter_and_lora_b_have_rates_of_their_own():
    model = adapt(tiny("bert"), "lora")
    options = Options(learning_rate=RATE, head_learning_rate=HEAD_RATE)
    found = groups_by_name(model, options, is_adapter=is_adapter_parameter, lora_plus=16.0)
    assert {(key.split(".")[-1] if "layers" in key else "head", g["part"], g["peak"]) for key, g in found.items()} == {
        ("A", "adapter", RATE),
        ("B", "adapter", RATE * 16),
        ("head", "head", HEAD_RATE),
    }


def test_without_a_predicate_there_is_no_adapter_and_a_network_over_words_is_one_layer():
    found = groups_by_name(tiny("lstm"), Options(learning_rate=RATE, layer_decay=0.5))
    rates = {(key.split(".")[0], group["part"], group["peak"]) for key, group in found.items()}
    assert rates == {
        ("embeddings", "backbone", RATE / 2),
        ("lstm", "backbone", RATE),
        ("classifier", "head", RATE),
    }


def test_a_projection_head_has_the_rate_of_the_head():
    model = tiny("bert")
    prepare(model, SupConOptions(projection=6), None)
    found = groups_by_name(model, Options(learning_rate=RATE, head_learning_rate=HEAD_RATE, layer_decay=0.5))
    assert found["projection.first.weight"]["peak"] == HEAD_RATE


def test_a_generator_has_the_rates_of_the_layers_that_it_starts_from():
    model = tiny("bert", num_layers=4)
    OBJECTIVES["rtd"].prepare(model, RTDOptions(), FakeTokenizer())
    found = groups_by_name(model, Options(learning_rate=RATE, head_learning_rate=HEAD_RATE, layer_decay=0.5))
    for name in ("embeddings.position.weight", "layers.0.attention.query.weight", "layers.1.attention.query.weight"):
        assert found[f"pretraining.generator.{name}"]["peak"] == found[name]["peak"] < RATE
    assert found["pretraining.head.dense.weight"]["peak"] == HEAD_RATE
    assert found["pretraining.detector.dense.weight"]["peak"] == HEAD_RATE


@pytest.mark.parametrize(
    ("method", "options"),
    [("none", {}), ("lora", {}), ("lora", {"dora": True}), ("ia3", {}), ("prompt", {}), ("prefix", {})],
)
def test_what_starts_at_a_scale_of_its_own_has_no_weight_decay(method, options):
    model = adapt(tiny("deberta"), method, **options)
    norms = {
        f"{key}.{name}"
        for key, module in model.named_modules()
        if isinstance(module, LayerNorm)
        for name in ("weight", "bias")
    }
    found = groups_by_name(model, Options(weight_decay=0.02))
    for key, group in found.items():
        excluded = key in norms or key.endswith(("bias", ".l", ".magnitude")) or key.startswith("virtual.")
        assert group["weight_decay"] == (0.0 if excluded else 0.02), key
    assert {group["weight_decay"] for group in found.values()} == {0.0, 0.02}


def test_description_of_the_groups():
    model = tiny("bert", num_layers=1)
    groups = parameter_groups(model, Options(learning_rate=RATE, head_learning_rate=HEAD_RATE, layer_decay=0.5))
    backbone = sum(p.numel() for key, p in model.named_parameters() if key.split(".")[0] not in model.HEAD)
    head = 12 * 12 + 12 + 12 * 2 + 2
    trained = backbone + head
    assert describe_groups(groups, 10 * trained) == (
        f"trained: {trained:,} of {10 * trained:,} parameters (10.00%): "
        f"backbone {backbone:,} at 0.0005 … 0.001, head {head} at 0.007"
    )


# ------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("warmup", "kind", "factors"),
    [
        (0.2, "linear", [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (0.11, "linear", [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),  # rounded up to 2 steps
        (4, "linear", [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (4, "constant", [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1]),
        (0, "linear", [1, 9 / 10, 8 / 10, 7 / 10, 6 / 10, 5 / 10, 4 / 10, 3 / 10, 2 / 10, 1 / 10]),
        (99, "linear", [n / 99 for n in range(1, 11)]),  # more steps than the run has
        (1, "constant", [1] * 10),
    ],
)
def test_schedule_rises_and_falls_linearly(warmup, kind, factors):
    assert [schedule(step, total=10, warmup=warmup, kind=kind) for step in range(10)] == pytest.approx(factors)


def test_a_product_that_is_rounded_up_adds_no_step_of_warmup():
    """.07 · 100 is 7.000000000000001 in floating point."""
    assert schedule(6, total=100, warmup=0.07) == 1


def test_the_factor_after_the_last_step_is_not_negative():
    assert schedule(12, total=10, warmup=0) == 0


# --------------------------------------------------------------------------------------------------- running mean


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_equals_its_formula(decay):
    torch.manual_seed(0)
    layer = Linear(3, 2).double()
    average = Average([*layer.parameters()], decay)
    expected = layer.weight.detach().clone()
    for step in range(20):
        layer.weight.data += torch.randn(2, 3, dtype=torch.float64)
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * layer.weight.detach()
    torch.testing.assert_close(average.means[0], expected)


def test_the_model_has_the_means_only_within_the_block_even_after_an_error():
    layer = Linear(3, 2)
    before, average = layer.weight.detach().clone(), Average([*layer.parameters()], 0.9)
    with torch.no_grad():
        layer.weight += 1
    with pytest.raises(KeyError), average.applied():  # noqa: PT012
        assert torch.equal(layer.weight, before)
        assert torch.equal(average.means[0], before + 1)
        raise KeyError
    assert torch.equal(layer.weight, before + 1)
    assert torch.equal(average.means[0], before)


def test_the_saved_means_restore_another_average():
    layer = Linear(3, 2)
    average, other = (Average([*layer.parameters()], 0.9) for _ in range(2))
    with torch.no_grad():
        layer.weight += 1
    average.update(3)
    assert average.state().keys() == {"average.0", "average.1"}
    other.restore(average.state())
    assert all(torch.equal(a, b) for a, b in zip(average.means, other.means, strict=True))
    other.update(4)
    assert not torch.equal(average.means[0], other.means[0])  # a copy


def test_decay_0_stores_nothing_and_leaves_the_weights():
    layer = Linear(3, 2)
    before, average = layer.weight.detach().clone(), Average([*layer.parameters()], 0.0)
    average.update(0)
    with average.applied():
        assert average.state() == {}
        assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_raises(decay):
    with pytest.raises(ValueError, match=r"--average .* outside \[0, 1\)"):
        Average([], decay)


# ----------------------------------------------------------------------------------------------- reinitialization


@pytest.mark.parametrize("name", ENCODERS)
def test_the_top_layers_are_reinitialized_and_no_others(name):
    model, before = tiny(name, num_layers=3), tiny(name, num_layers=3).state_dict()
    model.newly_initialized = frozenset({"pooler.dense.weight"})
    torch.manual_seed(1)
    reinitialize(model, 2)
    top = {key for key in before if key.startswith(("layers.1.", "layers.2."))}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (key not in top), key
        if key in top and value.dim() == 2:
            assert value.std().item() == pytest.approx(model.config.initializer_range, rel=0.3), key
    assert model.newly_initialized == top | {"pooler.dense.weight"}


def test_all_layers_may_be_reinitialized():
    model = tiny("bert", num_layers=2)
    reinitialize(model, 2)
    assert {name.split(".")[1] for name in model.newly_initialized} == {"0", "1"}


def test_the_transformer_is_reinitialized_as_its_constructor_does():
    model, before = tiny("transformer", num_layers=3), tiny("transformer", num_layers=3).state_dict()
    torch.manual_seed(1)
    reinitialize(model, 1)
    torch.manual_seed(1)
    expected = type(model)(model.config).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, (expected if key.startswith("layers.2.") else before)[key]), key


@pytest.mark.parametrize("name", ["bert", "lstm"])
def test_reinitializing_no_layer_changes_nothing(name):
    model, before = tiny(name), tiny(name).state_dict()
    reinitialize(model, 0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.newly_initialized == frozenset()


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("bert", 3, "--reinit-layers 3 is outside 0 … 2"),
        ("bert", -1, "--reinit-layers -1 is outside 0 … 2"),
        ("lstm", 1, "is for models with a stack of layers; lstm has none"),
    ],
)
def test_layers_that_do_not_exist_raise(name, count, message):
    with pytest.raises(ValueError, match=message):
        reinitialize(tiny(name), count)
