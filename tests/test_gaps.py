"""Cases that single mutants of the code showed to be untested (data/results/mutation.json)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny, token_batch
from safetensors.torch import load_file, save_file
from torch.nn import Conv1d, Linear

import peft
from data.batches import Batch
from data.checked import read_json
from losses.margin import MarginOptions
from losses.margin import objective as margin_objective
from losses.mixed import AdversarialOptions
from nn import runtime
from nn.attention import weighted_sum
from nn.checkpoint import load_pretrained, save_pretrained
from nn.cnn_lstm import CNNLSTM, CNNLSTMConfig
from nn.deberta import ConvLayer, DebertaConfig
from nn.dropout import Dropout, keep_mask
from nn.encoder import init_weights
from nn.lstm import LSTM
from nn.optim import Average
from nn.transformer import sinusoids
from nn.words import Pooling, masked_max
from peft.lora import DoRALinear
from peft.prefix import initial_prefix, keys_and_values
from peft.prompt import initial_rows


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_weighted_sum_has_the_dropout_scale(p):
    """At p = 0.5 the scale is exactly 2."""
    weights, v, dropout = torch.rand(2, 3, 5, 7).softmax(-1), torch.randn(2, 3, 7, 4), Dropout(p).train()
    torch.manual_seed(1)
    expected = dropout(weights) @ v
    torch.manual_seed(1)
    torch.testing.assert_close(weighted_sum(weights, v, dropout), expected)


def test_the_config_names_the_dtype_of_the_file(tmp_path):
    save_pretrained(tiny("bert"), tmp_path, dtype=torch.float16)
    assert read_json(tmp_path / "config.json")["dtype"] == "float16"


def test_convolutions_are_initialized_with_the_given_deviation():
    torch.manual_seed(0)
    layer = Conv1d(64, 64, 3)
    init_weights(layer, 0.02)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(layer.bias, torch.zeros(64))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_stacked_lstm_has_the_width_of_its_directions(bidirectional):
    lstm = LSTM(input_size=5, hidden_size=3, num_layers=2, bidirectional=bidirectional)
    assert [layer.weight.size(-1) for layer in lstm.layers] == [5, 3 * (1 + bidirectional)]
    assert lstm(torch.randn(2, 7, 5), torch.ones(2, 7, dtype=torch.bool)).shape == (2, 7, 3 * (1 + bidirectional))


def test_means_carry_no_gradient():
    layer = Linear(3, 2)
    average = Average([*layer.parameters()], 0.9)
    average.update(0)
    assert not any(mean.requires_grad for mean in average.means)


@pytest.mark.parametrize(("width", "window", "length"), [(5, 3, 7), (3, 3, 8), (3, 4, 9), (7, 2, 3)])
def test_cnn_lstm_has_one_step_for_each_window(width, window, length):
    sizes = {"embedding_size": 4, "filters": 6, "hidden_size": 3}
    model = CNNLSTM(CNNLSTMConfig(vocab_size=20, width=width, window=window, **sizes)).eval()
    mask = torch.ones(2, length, dtype=torch.bool)
    h = model.encode(model.embed(torch.randint(2, 20, (2, length)), mask), mask)
    assert h.shape[:2] == model.step_mask(mask).shape == (2, -(-length // window))


def test_deberta_convolution_is_zero_at_padding():
    config = DebertaConfig(hidden_size=6, num_layers=1, num_heads=2, relative_attention=True, conv_kernel_size=3)
    layer, mask = ConvLayer(config).eval(), torch.tensor([[True, True, True, False]])
    out = layer(torch.randn(1, 4, 6), torch.randn(1, 4, 6), mask)
    assert torch.equal(out[0, 3], torch.zeros(6))
    assert out[0, :3].abs().min() > 0


def test_dora_without_a_bias_is_its_equation():
    torch.manual_seed(0)
    layer, x = DoRALinear(Linear(5, 7, bias=False), rank=2, alpha=4.0), torch.randn(3, 5)
    layer.B.data.normal_()
    changed = layer.base.weight + layer.scale * layer.B @ layer.A
    expected = layer.magnitude * (x @ changed.t()) / changed.norm(dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_random_prompts_have_the_deviation_of_the_first_thousand_words():
    model = tiny("bert", vocab_size=1009)
    model.embeddings.word.weight.data[1000:] = 1e6
    assert initial_rows(model, 50, "random", None).abs().max() < 100


def test_a_mask_consumes_one_draw_of_torchs_generator():
    torch.manual_seed(0)
    masks = [keep_mask(torch.Size([16]), 128) for _ in range(2)]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    seeds = [int(torch.randint(2**63 - 1, ())) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    for mask, seed in zip(masks, seeds, strict=True):
        words = np.random.SFC64(seed).random_raw(2)
        assert mask.tolist() == [int(byte < 128) for byte in words.view(np.uint8)]


@pytest.mark.parametrize(
    ("system", "libc", "calls"),
    [("linux", "glibc", [(-4, 0), (-1, 2**31 - 1), (-8, 1)]), ("linux", "musl", []), ("win32", "glibc", [])],
)
def test_freed_memory_is_kept_on_linux_with_glibc_only(system, libc, calls, monkeypatch):
    made: list = []
    library = SimpleNamespace(mallopt=lambda *pair: made.append(pair), malloc_trim=lambda size: made.append(size))
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(runtime.sys, "platform", system)
    monkeypatch.setattr(runtime.platform, "libc_ver", lambda: (libc, "2"))
    runtime.keep_freed_memory()
    assert made == calls
    made.clear()
    runtime.release_freed_memory()
    assert made == ([0] if calls else [])


def test_other_devices_have_no_bf16_products():
    assert not runtime.native_bf16(torch.device("meta"))


def test_the_transformer_adds_positions_and_runs_its_layers():
    model, (ids, mask) = tiny("transformer", num_layers=3).eval(), token_batch([5, 4])
    assert len(model.layers) == 3
    x = model.embed(ids, mask)
    h = model.project(x) + sinusoids(5, model.config.hidden_size)
    for layer in model.layers:
        h = layer(h, mask)
    torch.testing.assert_close(model.encode(x, mask), model.norm(h).masked_fill(~mask[..., None], 0))


def test_poolings_of_one_direction_and_of_attention():
    torch.manual_seed(0)
    h, mask = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True, True, False, False, False]])
    last = Pooling("last", 6, bidirectional=False)(h, mask)
    assert torch.equal(last, torch.stack([h[0, 4], h[1, 1]]))
    both = Pooling("attention+max", 6)
    expected = torch.cat([both.attention(h, mask)[0], masked_max(h, mask)], -1)
    assert torch.equal(both(h, mask), expected)


@pytest.mark.parametrize("method", ["prefix", "p_tuning_v2"])
def test_a_random_prefix_has_keys_and_values_of_all_layers(method):
    model, (ids, mask) = tiny("bert"), token_batch([5, 4])
    assert initial_prefix(model, 4, "random", None).shape == (4, 2 * 2 * 12)
    peft.apply(model, method, virtual_tokens=4, prefix_init="random")
    assert model(ids, mask).shape == (2, 2)


def test_a_prefix_starts_from_keys_and_values_without_dropout():
    model, ids = tiny("bert"), torch.tensor([3, 5, 7])
    expected = keys_and_values(model.eval(), ids)
    assert torch.equal(keys_and_values(model.train(), ids), expected)
    assert model.training


def test_the_file_of_p_tuning_names_its_two_layers(tmp_path):
    model = peft.apply(tiny("bert"), "p_tuning", [3, 5], virtual_tokens=2, prompt_hidden=6)
    peft.save_adapter(model, tmp_path, "some/model")
    assert read_json(tmp_path / "adapter_config.json")["encoder_num_layers"] == 2


def test_a_small_radius_is_allowed():
    assert AdversarialOptions(radius=0.5).radius == 0.5


def test_more_than_twenty_problems_are_cut(tmp_path):
    save_pretrained(tiny("bert"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = [name for name in sorted(tensors) if name.startswith("bert.encoder")][:21]
    save_file({name: t for name, t in tensors.items() if name not in gone}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"\(21 problems\).*; …$"):
        load_pretrained(tmp_path)


def test_the_margin_loss_is_fp32_under_autocast():
    ids, mask = token_batch([5, 4])
    model = tiny("capsule_lstm", head="capsules")
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = margin_objective(model, Batch(ids, mask, torch.tensor([0, 1]), torch.arange(2)), MarginOptions())
    assert loss.dtype == torch.float32


def test_values_of_a_detached_adapter_carry_no_gradient():
    adapter = peft.detach_adapter(peft.apply(tiny("bert"), "lora", rank=2))
    assert not any(value.requires_grad for value in adapter.values.values())
