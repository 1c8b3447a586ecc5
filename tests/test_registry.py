"""Properties of every entry of the three tables."""

import dataclasses
import math

import pytest
import torch
from conftest import CLASSIFYING, ENCODERS, adapt, required_shape, reviews_for, tiny, token_batch

from data.flags import field_names
from data.options import Options
from losses import OBJECTIVES
from nn import MODELS
from nn.dropout import set_dropout
from nn.runtime import Machine, cast_once
from peft import METHODS
from train import TABLES

models = pytest.mark.parametrize("name", MODELS)
encoders = pytest.mark.parametrize("name", ENCODERS)


def fitting(name: str, objective: str) -> dict[str, str]:
    """Returns the config fields that an objective requires; skips models that have no such field."""
    shape = required_shape(objective)
    if not shape.keys() <= field_names(MODELS[name].build.Config):
        pytest.skip(f"{objective} is for other models")
    return shape


def test_names_that_must_stay():
    names = "cnn lstm gru cnn_lstm attention_lstm capsule_lstm transformer nb_linear bert distilbert roberta deberta"
    assert list(MODELS) == [*names.split(), "electra", "xlm_roberta", "modernbert"]
    assert {"none", "lora"} <= METHODS.keys()
    assert {"ce"} <= OBJECTIVES.keys()


@pytest.mark.parametrize("table", [MODELS, METHODS, OBJECTIVES], ids=["models", "methods", "objectives"])
def test_training_defaults_are_options_of_train(table):
    for name, entry in table.items():
        own = field_names(entry.options) if table is not MODELS else set()
        assert entry.training.keys() <= field_names(Options), name
        assert getattr(entry, "builtin", {}).keys() <= field_names(Options) | own, name


def test_a_flag_has_one_type_one_group_and_one_help_text():
    """Options classes may share a flag; no flag of a method or an objective is also a general one."""
    seen: dict[str, tuple] = {}
    for owner, cls in TABLES.option_classes().items():
        for field in dataclasses.fields(cls):
            described = (field.type, dict(field.metadata))
            assert seen.setdefault(field.name, described) == described, (owner, field.name)
            assert owner == "train.py" or field.name not in field_names(Options), (owner, field.name)


@models
def test_a_mask_of_another_shape_is_refused(name):
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    for x, m in ((ids, mask[:1]), (ids, mask[:, :1]), (ids[:, :4], mask), (ids[0], mask[0]), (ids[0], mask)):
        with pytest.raises(ValueError, match=r"the ids are \[.*\] and the mask is \[.*\], not both \[B, T\]"):
            model(x, m)
    with pytest.raises(TypeError, match=r"the mask is torch\.int64, not torch\.bool"):
        model(ids, mask.long())


@models
def test_logits_are_the_classifier_on_the_features(name):
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    features = model.features(ids, mask)
    assert features.shape == (2, model.classifier.in_features)
    assert torch.equal(model.classifier(features), model(ids, mask))


@models
def test_every_model_is_embed_encode_pool(name):
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    h = model.encode(model.embed(ids, mask), mask)
    torch.testing.assert_close(model.pool(h, mask), model.features(ids, mask), rtol=1e-5, atol=1e-6)


@models
def test_padding_changes_nothing(name):
    """Neither the amount of padding nor its token ids change the logits."""
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    wide, seen = token_batch([7, 4, 12])
    wide = torch.where(seen, wide, torch.full_like(wide, 17))
    wide[:2, :7] = torch.where(mask, ids, wide[:2, :7])
    torch.testing.assert_close(model(wide, seen)[:2], model(ids, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_padding_changes_nothing_of_a_review_without_words(name: str, pooling: str):
    model, (ids, mask) = tiny(name, pooling=pooling).eval(), token_batch([7, 0])
    torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :2], mask[1:, :2]), rtol=1e-5, atol=1e-5)


@encoders
def test_a_prefix_is_one_pair_a_layer(name):
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    x = model.embed(ids, mask)
    assert model.encode(x, mask).shape == (2, 7, 12)
    empty = [(torch.zeros(1, 3, 0, 4),) * 2] * 2
    torch.testing.assert_close(model.encode(x, mask, empty), model.encode(x, mask))
    prefix = [(torch.randn(1, 3, 5, 4), torch.randn(1, 3, 5, 4)) for _ in range(2)]
    assert not torch.allclose(model.encode(x, mask, prefix), model.encode(x, mask))


@encoders
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("queries", [1, 3, torch.tensor([[6, 0, 2], [3, 1, 1]])], ids=["one", "three", "indices"])
def test_selecting_queries_of_the_last_layer_changes_nothing(name, queries, checkpointing):
    """Values and gradients are equal with padding and a prefix, and with DeBERTa's convolution at the only layer."""
    for changes in ({}, {"conv_kernel_size": 3}, {"conv_kernel_size": 3, "num_layers": 1}):
        model, (ids, mask) = tiny(name, **changes).eval(), token_batch([7, 4])
        model.checkpointing = checkpointing
        prefix = [(torch.randn(1, 3, 5, 4), torch.randn(1, 3, 5, 4)) for _ in model.layers]
        inside = [parameter for key, parameter in model.named_parameters() if key.split(".")[0] not in model.HEAD]
        results = []
        for selected in (queries, None):
            h = model.encode(model.embed(ids, mask), mask, prefix, selected)
            if selected is None:
                h = h[:, :queries] if isinstance(queries, int) else h[torch.arange(2)[:, None], queries]
            results.append((h, *torch.autograd.grad(h.square().sum(), inside)))
        for narrow, whole in zip(*results, strict=True):
            torch.testing.assert_close(narrow, whole, rtol=1e-4, atol=1e-4)


@models
def test_eval_is_deterministic_and_training_drops(name):
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    assert torch.equal(model(ids, mask), model(ids, mask))
    set_dropout(model.train(), 0.5)  # two masks of a few elements may be equal at the default rate of .1
    assert not torch.equal(model(ids, mask), model(ids, mask))


@models
def test_hooks_get_outputs_that_nothing_overwrites(name):
    model, (ids, mask), kept = tiny(name).train(), token_batch([7, 4]), []

    def keep(module: torch.nn.Module, inputs: tuple, output: object) -> None:
        kept.extend((x, x.detach().clone()) for x in (output if isinstance(output, tuple) else (output,)))

    for module in model.modules():
        module.register_forward_hook(keep)
        if isinstance(module, torch.nn.Linear):
            module.register_full_backward_hook(lambda *_: None)
    model(ids, mask).sum().backward()
    assert kept
    assert all(torch.equal(x, before) for x, before in kept)


@pytest.mark.parametrize("objective", CLASSIFYING)
@pytest.mark.parametrize("method", METHODS)
@models
def test_no_dead_operation(name, method, objective):
    """Every trainable parameter gets a gradient, and no frozen one does."""
    model = tiny(name, **fitting(name, objective))
    if method != "none" and name not in ENCODERS:
        with pytest.raises(ValueError, match=f"{method} is for pretrained encoders"):
            adapt(model, method)
        return
    if (name, method) == ("modernbert", "bitfit"):
        with pytest.raises(ValueError, match="bitfit trains biases, and this modernbert has none; --peft head"):
            adapt(model, method)
        return
    model = model if method == "none" else adapt(model, method)
    options = OBJECTIVES[objective].options()
    if objective in ("adversarial", "mixed") and model.virtual is not None:
        with pytest.raises(ValueError, match=f"do not go with --peft {method}"):
            OBJECTIVES[objective].prepare(model, options, None)
        return
    OBJECTIVES[objective].prepare(model, options, None)
    loss, _ = OBJECTIVES[objective].objective(model.train(), reviews_for(objective), options)
    loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            if "key.bias" not in key:  # a shift of all keys cancels in the softmax
                assert parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None, key


@pytest.mark.parametrize(
    ("name", "objective"),
    [(n, o) for n in MODELS for o in CLASSIFYING if o in ("ce", "margin") or n in ("lstm", "bert")],
)
def test_loss_falls(name, objective):
    """Training memorizes four examples."""
    still = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "cls_dropout")
    still += ("word_dropout", "embedding_dropout", "dropout", "layer_dropout", "mlp_dropout")
    model = tiny(name, **dict.fromkeys(still, 0.0), **fitting(name, objective))
    # the weights of nb_linear are far from zero here, and only those of seen n-grams move
    rate = 3e-2 if name == "nb_linear" else 1e-2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    options, first = OBJECTIVES[objective].options(), math.inf
    # n positives share the softmax, so the contrastive loss is at least log n
    positives = {"supcon": 1, "rdrop_supcon": 3}.get(objective, 1)
    floor = getattr(options, "supcon_weight", 0.0) * math.log(positives)
    for step in range(250 if objective == "margin" else 120):
        loss, _ = OBJECTIVES[objective].objective(model.train(), reviews_for(objective), options)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        first = loss.item() if step == 0 else first
        if loss.item() - floor < 0.1 * first:
            return
    pytest.fail(f"the loss fell from {first} to {loss.item()} only")


@pytest.mark.parametrize("name", [*ENCODERS, "transformer"])
def test_checkpointing_changes_no_gradient(name):
    model, (ids, mask) = tiny(name).train(), token_batch([7, 4])
    gradients = []
    for model.checkpointing in (False, True):
        torch.manual_seed(0)
        gradients.append(torch.autograd.grad(model(ids, mask).square().sum(), list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@models
def test_bf16_stays_close_to_fp32(name):
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(ids, mask)
    torch.testing.assert_close(half.float(), model(ids, mask), rtol=0.05, atol=0.05)


@models
def test_nothing_by_hand_is_from_torch(name):
    banned = ("LSTM", "GRU", "RNN", "Transformer", "MultiheadAttention")
    own = ("nn.", "peft.")
    for module in tiny(name).modules():
        kind = type(module)
        assert kind.__module__.startswith(own) or not kind.__name__.startswith(banned)


@pytest.mark.parametrize("method", ["none", "lora", "dora", "prefix", "p_tuning"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_cast_once_give_the_same_bits(name: str, method: str):
    if name not in ENCODERS and method != "none":
        pytest.skip(f"{method} is for encoders")
    options = {"dora": True} if method == "dora" else {}
    model = adapt(tiny(name), "lora" if method == "dora" else method, **options).eval()
    before = {key: p.clone() for key, p in model.named_parameters()}
    ids, mask = token_batch([7, 5, 3])
    machine = Machine(torch.device("cpu"), torch.bfloat16)
    with torch.inference_mode():
        with machine.autocast():
            expected = model(ids, mask)
        with cast_once(model, machine), machine.autocast():
            found = model(ids, mask)
            dtypes = {module.weight.dtype for module in model.modules() if type(module) is torch.nn.Linear}
    assert torch.equal(found, expected)
    assert torch.bfloat16 in dtypes or not dtypes
    assert all(torch.equal(p, before[key]) and p.dtype == before[key].dtype for key, p in model.named_parameters())
