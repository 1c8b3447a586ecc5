"""Compares the encoders with transformers 5.23: logits and gradients of tiny random checkpoints
(golden/make_golden.py)."""

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from data.checked import read_json
from losses.cross_entropy import cross_entropy
from nn.checkpoint import load_pretrained, translate
from nn.encoder import Encoder
from peft import load_adapter

CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/expected.safetensors"))
PARITY = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=CHECKPOINTS)
def golden(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Returns a model and its expected tensors."""
    expected = load_file(GOLDEN / request.param / "expected.safetensors")
    return load_pretrained(GOLDEN / request.param), expected


@pytest.mark.parametrize(
    ("family", "count"),
    [
        ("bert", 2),
        ("distilbert", 2),
        ("roberta", 2),
        ("deberta", 8),
        ("electra", 2),
        ("xlm_roberta", 2),
        ("modernbert", 3),
    ],
)
def test_there_are_several_configurations_of_each_family(family, count):
    assert sum(name.startswith(family) for name in CHECKPOINTS) >= count


def test_modernbert_is_compared_beyond_its_local_window():
    for name in (name for name in CHECKPOINTS if name.startswith("modernbert")):
        tokens = load_file(GOLDEN / name / "expected.safetensors")["mask"].size(1)
        assert tokens > read_json(GOLDEN / name / "config.json")["local_attention"] // 2 + 1


def test_logits_with_padding(golden):
    model, expected = golden
    torch.testing.assert_close(model.eval()(expected["input_ids"], expected["mask"]), expected["logits"], **PARITY)


def test_logits_without_padding(golden):
    model, expected = golden
    for row, mask, logits in zip(expected["input_ids"], expected["mask"], expected["single"], strict=True):
        ours = model.eval()(row[mask][None], mask[mask][None])[0]
        torch.testing.assert_close(ours, logits, **PARITY)


def gradients(model: Encoder, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the gradient of each parameter under its published name."""
    cross_entropy(model(expected["input_ids"], expected["mask"]), expected["labels"]).backward()
    found = {translate(name, model.KEYS): p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(golden, checkpointing):
    """In float64, so that the rounding is theirs alone and the same on every machine; in fp32, each as one vector."""
    model, expected = golden
    model.eval().checkpointing = checkpointing
    single, ours = gradients(model, expected), gradients(model.double(), expected)
    theirs = {key.removeprefix("grad."): value.double() for key, value in expected.items() if key.startswith("grad.")}
    assert ours.keys() == single.keys() == theirs.keys()
    for key, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[key], **PARITY, msg=lambda text, key=key: f"{key}: {text}")
        assert (single[key] - gradient).norm() <= PARITY["atol"] * (1 + gradient.norm()), key


ADAPTERS = sorted(path.name for path in (GOLDEN / "adapters").iterdir())


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_written_by_huggingface_peft(name):
    """Covers every method that peft 0.21 can run, on every family (golden/peft_interop.py)."""
    base = GOLDEN / name.split("-")[0]
    batch = load_file(base / "expected.safetensors")
    model = load_adapter(load_pretrained(base), GOLDEN / "adapters" / name).eval()
    expected = load_file(GOLDEN / "adapters" / name / "expected.safetensors")["logits"]
    torch.testing.assert_close(model(batch["input_ids"], batch["mask"]), expected, **PARITY)


def test_there_is_an_adapter_of_each_method_and_family():
    # a prefix does not run on DistilBERT, DeBERTa and ModernBERT, all-linear not on DistilBERT
    assert len(ADAPTERS) == 12 * 7 - 3 - 1
