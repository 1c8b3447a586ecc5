"""The modules from a Python prompt: what would silently give a wrong result follows the model, or raises."""

import contextlib
import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import INIT_IDS, tiny, token_batch
from torch.autograd import gradcheck
from torch.nn import Linear

import peft
from data.calibration import best_threshold, brier_score, expected_calibration_error, fit_temperature
from data.corpus import Corpus
from data.hub import LINEAR
from data.metrics import auc, metrics
from data.splitting import split_train, subset
from data.tokenization import load_tokenizer, train_tokenizer
from data.windows import pool
from losses.cross_entropy import cross_entropy
from losses.distill import distill_loss, soft_losses
from losses.divergence import symmetric_kl
from losses.margin import margin_loss
from losses.rdrop import rdrop_loss
from losses.supcon import supcon_loss
from nn import MODELS
from nn.attribution import log_odds, token_effects
from nn.capsule_lstm import CapsuleLengths, route
from nn.checkpoint import load_pretrained, save_pretrained
from nn.encoder import Encoder
from nn.gru import GRU
from nn.lstm import LSTM
from nn.optim import Average, schedule
from nn.quant import quantize
from nn.runtime import choose_machine
from nn.words import masked_mean
from peft.scoring import score

IDS, MASK = token_batch([7, 4])
RANDOM = {  # methods with dropout of their own
    "lora": {"lora_dropout": 0.5},
    "p_tuning_v2": {"prefix_dropout": 0.5, "prefix_init": "random"},
}


def fill(model: Encoder) -> Encoder:
    """Gives the adapter random values; B of LoRA starts at 0."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if peft.is_adapter_parameter(name):
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("method", RANDOM)
def test_an_adapter_has_the_mode_of_its_model(method: str):
    def spread(model: Encoder) -> float:
        with torch.no_grad():
            return (model(IDS, MASK) - model(IDS, MASK)).abs().max().item()

    model = fill(peft.apply(tiny("bert").eval(), method, **RANDOM[method]))
    assert spread(model) == 0
    assert spread(model.train()) > 0
    adapter = peft.detach_adapter(model)
    peft.attach_adapter(model.eval(), adapter)
    assert spread(model) == 0
    if method == "lora":
        peft.merge(model.train())
        assert spread(peft.unmerge(model.eval())) == 0


def test_a_loaded_model_is_in_eval_mode():
    assert not any(module.training for module in load_pretrained("builtin").modules())
    loaded = peft.load_adapted(LINEAR.parent / "deberta-mini-imdb")
    assert not any(module.training for module in loaded.modules())


def test_scoring_restores_the_mode_of_each_module():
    model, machine = tiny("bert").train(), choose_machine("cpu", "fp32")
    model.embeddings.eval()
    corpus = Corpus.from_rows([[1, 2, 3]], [0], pad_id=0)
    modes = [module.training for module in model.modules()]
    for check, ending in ((lambda: None, contextlib.nullcontext()), (lambda: 1 / 0, pytest.raises(ZeroDivisionError))):
        with ending:
            score(model, corpus, machine, check, bar=False)
        assert [module.training for module in model.modules()] == modes


def test_a_detached_adapter_leaves_the_model_as_trainable_as_before(monkeypatch: pytest.MonkeyPatch):
    model = tiny("bert")
    model.embeddings.word.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    peft.apply(model, "lora")
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    adapter = peft.detach_adapter(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    peft.attach_adapter(model, adapter)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == frozen
    with pytest.raises(TypeError, match=r"targets is text, such as query,value or re:PATTERN, not list"):
        peft.apply(tiny("bert"), "lora", targets=["query"])
    monkeypatch.setattr("peft.lora.wrap", lambda *_: 1 / 0)
    plain = tiny("bert")
    with pytest.raises(ZeroDivisionError):
        peft.apply(plain, "lora")
    assert all(p.requires_grad for p in plain.parameters())


@pytest.mark.parametrize(
    ("labels", "kind", "problem"),
    [
        ("positive", TypeError, "labels is the text positive, not a tuple of names"),
        (("a", None), TypeError, "labels has None, which is not a string"),
        ((1, 2), TypeError, "labels has 1, which is not a string"),
        (("", ""), ValueError, "labels has the name '', which is empty"),
        (("a\nb", "c"), ValueError, "labels has the name .*, which is empty, not printable, or longer than 200"),
        (("a\u00a0b", "c"), ValueError, "labels has the name .*, which is empty, not printable, or longer than 200"),
        (("x" * 201, "c"), ValueError, "labels has the name .*, which is empty, not printable, or longer than 200"),
        (("a",), ValueError, "labels are a, not two or more different names"),
        ((), ValueError, "not two or more different names"),
        (("Neg", "neg"), ValueError, "labels are Neg, neg, not two or more different names"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("new_head", [False, True])
def test_labels_that_a_config_cannot_hold_are_refused(labels, kind, problem: str, new_head: bool):
    with pytest.raises(kind, match=problem):
        load_pretrained("builtin", labels=labels, new_head=new_head)
    with pytest.raises(kind, match=problem):
        peft.load_adapted(LINEAR.parent / "deberta-mini-imdb", labels=labels, new_head=new_head)


def test_a_list_of_labels_is_as_good_as_a_tuple():
    assert load_pretrained("builtin", labels=["no", "yes"]).config.labels == ("no", "yes")


@pytest.mark.parametrize("dtype", ["float16", torch.int8, None])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=r"is not a floating-point dtype"):
        load_pretrained("builtin", dtype=dtype)


def test_numbers_of_numpy_are_numbers():
    model = peft.apply(tiny("bert"), "lora", rank=np.int64(4), alpha=np.float64(16))
    layer = model.layers[0].attention.query
    assert (layer.rank, layer.alpha, type(layer.rank)) == (4, 16, int)


@pytest.mark.parametrize(
    ("method", "options", "problem"),
    [
        ("lora", {"rank": "8"}, "rank = '8' must be a whole number"),
        ("lora", {"rank": 8.5}, r"rank = 8\.5 must be a whole number"),
        ("lora", {"alpha": None}, "alpha = None must be a finite number"),
        ("prefix", {"virtual_tokens": True}, "virtual_tokens = True must be a whole number"),
    ],
)  # fmt: skip
def test_values_that_are_no_numbers_are_refused(method: str, options: dict, problem: str):
    with pytest.raises(ValueError, match=problem):
        peft.apply(tiny("bert"), method, INIT_IDS, **options)


def test_a_prompt_of_padding_is_finite():
    model = tiny("bert").eval()
    model.embeddings.word.weight.data[0] = 0
    peft.apply(model, "p_tuning", [0], virtual_tokens=1)
    assert model(*token_batch([5, 3])).isfinite().all()


def test_an_adapter_is_attached_to_one_model():
    first, second = fill(peft.apply(tiny("bert").eval(), "lora")), tiny("bert").eval()
    logits, adapter = first(IDS, MASK), peft.detach_adapter(first)
    peft.attach_adapter(first, adapter)
    with pytest.raises(ValueError, match="the adapter is attached to a model; detach it there"):
        peft.attach_adapter(second, adapter)
    assert torch.equal(first(IDS, MASK), logits)
    assert second.adapter is None
    peft.attach_adapter(second, peft.detach_adapter(first))
    shallow = tiny("bert")
    del shallow.layers[1]
    before = {name: p.clone() for name, p in shallow.named_parameters()}
    problem = r"the adapter does not fit this model: layers\.1\S* is missing here, \[\d+.*\] in its model"
    with pytest.raises(ValueError, match=problem):
        peft.attach_adapter(shallow, peft.detach_adapter(second))
    assert isinstance(shallow.layers[0].attention.query, Linear)
    assert all(torch.equal(p, before[name]) for name, p in shallow.named_parameters())


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_a_detached_adapter_leaves_another_model_as_it_was_there(method: str):
    first, second = fill(peft.apply(tiny("bert"), method)), tiny("bert", seed=1, labels=("bad", "good"))
    second.embeddings.word.weight.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in second.named_parameters()}
    peft.attach_adapter(second, peft.detach_adapter(first))
    peft.detach_adapter(second)
    assert second.config.labels == ("bad", "good")
    for name, p in second.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]


def test_training_between_detaching_and_attaching_is_kept():
    model = fill(peft.apply(tiny("bert"), "lora"))
    adapter = peft.detach_adapter(model)
    model.classifier.weight.data += 1
    expected = model.classifier.weight.detach().clone()
    peft.detach_adapter(peft.attach_adapter(model, adapter))
    assert torch.equal(model.classifier.weight, expected)


def test_what_was_frozen_stays_frozen_after_a_merge_is_undone():
    model = fill(peft.apply(tiny("bert"), "lora"))
    peft.attach_adapter(model, peft.detach_adapter(model))
    model.classifier.requires_grad_(False)
    peft.unmerge(peft.merge(model))
    assert not any(p.requires_grad for p in model.classifier.parameters())


@pytest.mark.parametrize("method", ["prompt", "head", "bitfit"])
def test_an_adapter_without_layers_of_its_own_is_attached_to_one_model(method: str):
    first, second = peft.apply(tiny("bert"), method, INIT_IDS), tiny("bert")
    adapter = peft.detach_adapter(first)
    peft.attach_adapter(second, adapter)
    with pytest.raises(ValueError, match="the adapter is attached to a model; detach it there"):
        peft.attach_adapter(first, adapter)
    assert second.adapter is adapter.settings
    peft.attach_adapter(first, peft.detach_adapter(second))


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("bert", {"labels": ("a", "b", "c")}, r"classifier\.weight is \[3, \d+\] here, \[2, \d+\] in its model"),
        ("deberta", {}, "is missing here"),
    ],
)
@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_an_adapter_of_another_model_is_refused_before_anything_changes(method, name, shape, problem):
    other = tiny(name, **shape)
    adapter = peft.detach_adapter(peft.apply(tiny("bert"), method, INIT_IDS))
    before = {name: p.clone() for name, p in other.named_parameters()}
    with pytest.raises(ValueError, match=problem):
        peft.attach_adapter(other, adapter)
    assert other.adapter is None
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())


def test_a_magnitude_of_zero_is_unmerged():
    model = fill(peft.apply(tiny("bert").eval(), "lora", dora=True))
    layer = model.layers[0].attention.query
    with torch.no_grad():
        layer.magnitude[0] = 0
    before, weight = model(IDS, MASK), layer.base.weight.clone()
    torch.testing.assert_close(peft.merge(model)(IDS, MASK), before)
    peft.unmerge(model)
    torch.testing.assert_close(layer.base.weight, weight)


@pytest.mark.parametrize("quantize", ["4bit", "nf5", "INT8", ""])
def test_another_form_of_quantized_weights_is_refused(quantize: str):
    with pytest.raises(ValueError, match=f"unknown quantize '{quantize}'; known: none, int8, nf4"):
        load_pretrained("builtin", quantize=quantize)


def test_an_adapter_needs_its_own_writer(tmp_path):
    with pytest.raises(ValueError, match="the model has no adapter to save"):
        peft.save_adapter(tiny("bert"), tmp_path, "base")
    with pytest.raises(ValueError, match=r"the model has an adapter: peft\.merge or peft\.detach_adapter first"):
        save_pretrained(peft.apply(tiny("bert"), "lora"), tmp_path)
    save_pretrained(tiny("bert").bfloat16(), tmp_path)  # fp32, as config.json says
    assert {p.dtype for p in load_pretrained(tmp_path).parameters()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------------- shapes

Z, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


@pytest.mark.parametrize("call", [
    lambda: cross_entropy(Z, Y[:4]),
    lambda: cross_entropy(Z, Y[:1]),
    lambda: cross_entropy(Z, Y, class_weights=torch.ones(7)),
    lambda: margin_loss(Z.sigmoid(), Y[:, None]),
    lambda: rdrop_loss(Z, Z, Y[:4], 1.0),
    lambda: symmetric_kl(Z, Z[:, :1]),
    lambda: symmetric_kl(Z, Z[:1]),
    lambda: distill_loss(Z, Z[:, :1], Y, 2.0, 0.5),
    lambda: distill_loss(Z[:1], Z, Y, 2.0, 0.5),
    lambda: supcon_loss(Z, Y[:1], 0.3),
])  # fmt: skip
def test_losses_broadcast_nothing(call):
    with pytest.raises(ValueError, match=r"are not \[|differ|class weights"):
        call()


def test_a_teacher_gets_no_gradient():
    teacher = Z.clone().requires_grad_()
    loss = soft_losses(Z.clone().requires_grad_(), teacher, 2.0).sum()
    loss.backward()
    assert teacher.grad is None


P, LABELS = np.full((6, 2), 0.5), np.array([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("function", [fit_temperature, brier_score, expected_calibration_error, best_threshold])
@pytest.mark.parametrize("labels", [LABELS - 1, LABELS[:, None], LABELS[:3]])
def test_calibration_takes_one_known_label_of_each_review(function, labels: np.ndarray):
    with pytest.raises(ValueError, match=r"are not \[N, C\] and \[N\]|are outside 0 … 1"):
        function(P, labels)


def test_metrics_read_labels_as_they_are():
    logits, labels = np.random.default_rng(0).normal(size=(99, 20)), np.arange(99) % 20
    assert metrics(logits, labels.astype(np.uint8)) == metrics(logits, labels)
    with pytest.raises(ValueError, match=r"scores \[99, 20\] and labels \[98\] are not"):
        metrics(logits, labels[1:])
    with pytest.raises(ValueError, match="AUC needs labels 0 and 1"):
        auc(logits[:, 0], 2 * (labels % 2) - 1)


def test_word_ids_of_any_width_give_equal_logits():
    model = load_pretrained(LINEAR)
    ids = torch.tensor([[40_001, 40_002, 40_003]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(model(ids.int(), mask), model(ids, mask))
    for wrong in (model.config.vocab_size, -3):
        with pytest.raises(IndexError, match=r"word ids .* are outside 0 … "):
            model(torch.tensor([[wrong]]), mask[:, :1])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch_has_no_logits(name: str, training: bool):
    model = tiny(name).train(training)
    logits = model(IDS[:0], MASK[:0])
    assert logits.shape == (0, 2)


def test_concatenated_frames_are_split_by_row():
    half = pd.DataFrame({"id": [f"a{i}" for i in range(50)], "review": "x", "sentiment": [0, 1] * 25})
    frame = pd.concat([half, half.assign(id="b" + half["id"])])
    assert len(subset(frame, 50, 0)) == 50
    assert list(map(len, split_train(frame, 0.2, 1))) == [80, 20]


def test_a_text_is_no_list_of_texts():
    tokenizer = load_tokenizer("builtin")
    for texts in ("A wonderful little film.", [b"abc"], ["good", float("nan")]):
        with pytest.raises(TypeError, match=r"put it into a list|a text must be a str, not (bytes|float)"):
            tokenizer.encode_batch(texts, 64)
    with pytest.raises(TypeError, match="put it into a list"):
        train_tokenizer("wordlevel", "one text", 99)
    assert tokenizer.encode_batch([], 64)[0].shape == (0, 0)


# ------------------------------------------------------------------------------------------------------------ the rest


def test_a_mean_of_weights_takes_a_generator():
    layer = Linear(1, 1)
    mean = Average(layer.parameters(), 0.9)
    start = layer.weight.item()
    with torch.no_grad():
        layer.weight += 1
    mean.update(100)
    with mean.applied():
        assert start < layer.weight.item() < start + 1


@pytest.mark.parametrize("form", ["none", "int4", "NF4"])
def test_an_unknown_form_is_not_8_bits(form: str):
    with pytest.raises(ValueError, match=f"unknown form '{form}'; known: int8, nf4"):
        quantize(tiny("bert"), form)


def test_values_outside_their_range_raise():
    logits = torch.tensor([[1.0, 3.0]])
    for label in (-1, 2):
        with pytest.raises(ValueError, match=f"label {label} is outside 0 … 1"):
            log_odds(logits, label)
    with pytest.raises(ValueError, match="unknown schedule 'cosine'"):
        schedule(3, 10, 0.0, "cosine")
    assert schedule(13, 10, 0.0) == 0
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        pool(np.zeros((2, 2)), np.array([0, 0]), "median")
    for layer in (LSTM, GRU):
        with pytest.raises(ValueError, match="num_layers 0 must be at least 1"):
            layer(4, 4, num_layers=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_words_are_explained_where_gradients_are_off(dtype: torch.dtype):
    model, in_text = tiny("bert").eval().to(dtype), torch.ones(7, dtype=torch.bool)
    expected = token_effects(copy.deepcopy(model), IDS[0], in_text, 1, 0)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = token_effects(model, IDS[0], in_text, 1, 0)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layer", [LSTM, GRU])
def test_gradcheck_of_recurrent_layers(layer):
    """gradcheck also passes gradients that are undefined."""
    torch.manual_seed(0)
    module = layer(3, 2).double()
    x, mask = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True), torch.ones(2, 4, dtype=torch.bool)
    assert gradcheck(lambda x: module(x, mask), (x,))


def test_a_class_that_both_exclude_has_no_divergence():
    one, two = Z.clone().requires_grad_(), Z.flip(0)
    masked = [torch.cat([z, torch.full((8, 1), -torch.inf)], 1) for z in (one, two)]
    for divergence in (lambda *z: symmetric_kl(*z).sum(), lambda *z: soft_losses(*z, 2.0).sum()):
        expected, found = divergence(one, two), divergence(*masked)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x, one, retain_graph=True) for x in (found, expected)))


def test_sums_over_words_in_half_precision():
    h, mask = torch.full((1, 4000, 2), 20.0), torch.ones(1, 4000, dtype=torch.bool)
    assert masked_mean(h.half(), mask).tolist() == [[20, 20]]
    assert masked_mean(torch.ones(1, 257, 2, dtype=torch.bfloat16), mask[:, :257]).tolist() == [[1, 1]]
    votes, _ = route(torch.ones(1, 3, 2, 4).half(), torch.zeros(1, 3, dtype=torch.bool), 2)
    assert votes.tolist() == torch.zeros(1, 2, 4).tolist()
    assert CapsuleLengths(2, 4)(torch.zeros(1, 8).half()).isfinite().all()


@pytest.mark.parametrize("name", ["bert", "gru"])
def test_a_mask_of_numbers_is_named(name: str):
    with pytest.raises(TypeError, match=r"the mask is torch\.int64, not torch\.bool; mask\.bool\(\) is True"):
        tiny(name)(IDS, MASK.long())


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapted_layer_takes_one_vector(dora: bool):
    model = fill(peft.apply(tiny("bert"), "lora", dora=dora))
    layer, x = model.layers[0].attention.query, torch.randn(12, requires_grad=True)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    layer(x).sum().backward()
    quantized = quantize(tiny("bert"), "int8").layers[0].attention.query
    torch.testing.assert_close(quantized(x), quantized(x[None])[0])


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_the_left_is_refused(name: str):
    """The first token is [CLS], and a recurrent network starts at the first position: the logits would be others."""
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    with pytest.raises(ValueError, match="the mask has padding before real tokens"):
        model(ids.flip(1), mask.flip(1))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no batched kernel of attention
def test_gradients_of_each_review_by_vmap():
    model, (ids, mask) = tiny("bert").eval(), token_batch([7, 4, 2])
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, weights, (ids[None], mask[None])).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, ids, mask)
    model(ids, mask).square().sum().backward()
    for name in ("classifier.weight", "layers.0.attention.value.weight"):
        torch.testing.assert_close(each[name].sum(0), weights[name].grad)


def test_equal_features_have_equal_contrastive_losses_in_float64():
    features, labels = torch.ones(8, 5, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    out = supcon_loss(features, labels, 0.3)
    torch.testing.assert_close(supcon_loss(features, labels, 0.3, inside=True), out, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "call",
    [
        lambda z, y, nan: rdrop_loss(z, z, y, alpha=nan),
        lambda z, y, nan: supcon_loss(z, y, nan),
        lambda z, y, nan: distill_loss(z, z, y, temperature=nan, alpha=0.5),
    ],
)
def test_a_strength_that_is_no_number_is_refused(call):
    with pytest.raises(ValueError, match="nan"):
        call(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), math.nan)


def test_a_fraction_of_the_steps_is_not_rounded_up():
    """.07 · 100 is 7.000000000000001 in floating point."""
    assert schedule(6, total=100, warmup=0.07) == schedule(7, total=100, warmup=0.07) == 1
    assert schedule(5, total=100, warmup=0.07) == 6 / 7
