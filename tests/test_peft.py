"""Properties of every method of the table on every encoder."""

import pytest
import torch
from conftest import ENCODERS, PAIRS, VIRTUAL, adapt, assert_same, both, tiny, token_batch, train_steps, weights
from processes import Program, run_script

import peft
from nn.checkpoint import load_pretrained, save_pretrained
from nn.runtime import Machine
from peft import (
    METHODS,
    attach_adapter,
    check_positions,
    detach_adapter,
    merge,
    save_adapter,
    unmerge,
)
from peft.scoring import ready_to_score

METHODS_WITH_FILES = [method for method in METHODS if method != "none"]
ROBERTAS = ["roberta", "xlm_roberta"]  # their positions begin at pad_token_id + 1


@both
def test_training_changes_exactly_the_trainable_parameters(name, method):
    model = adapt(tiny(name), method)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train_steps(model)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) != parameter.requires_grad, key
    assert model.classifier.weight.requires_grad
    assert model.pooler.dense.weight.requires_grad


@both
def test_newly_initialized_parameters_stay_trainable(name, method):
    model = tiny(name)
    model.newly_initialized = frozenset({"embeddings.word.weight"})
    assert adapt(model, method).embeddings.word.weight.requires_grad
    assert peft.trains_backbone(model)
    assert not peft.trains_backbone(adapt(tiny(name), method))


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
@pytest.mark.parametrize("method", METHODS_WITH_FILES)
def test_a_trained_model_in_bf16_scores_as_its_file_does(method, kind, tmp_path):
    """The file holds the virtual tokens that an encoder computed: in fp32, also where all else is in bf16."""
    if kind == "lstm" and method != "p_tuning":
        pytest.skip("has no encoder of two kinds")
    options = {"prompt_encoder": kind} if method == "p_tuning" else {}
    trained, machine = adapt(tiny("bert"), method, **options).eval(), Machine(torch.device("cpu"), torch.bfloat16)
    save_adapter(trained, tmp_path, "base")
    logits = []
    for model in (trained, peft.load_adapter(tiny("bert"), tmp_path).eval()):
        with ready_to_score(model, machine), machine.autocast():
            logits.append(model(*token_batch([7, 4])))
    assert torch.equal(*logits)


def test_an_adapter_loads_in_a_new_process(tmp_path):
    """One other process loads every method on BERT and on DeBERTa, and LoRA and a prefix on every encoder."""
    ids, mask = token_batch([7, 4])
    for name in ENCODERS:
        save_pretrained(tiny(name), tmp_path / name)
    expected = {}
    for name, method in PAIRS:
        if name not in ("bert", "deberta") and method not in ("lora", "prefix"):
            continue
        model = adapt(load_pretrained(tmp_path / name), method)
        train_steps(model, 1)
        save_adapter(model, tmp_path / name / method, str(tmp_path / name))
        expected[f"{name}/{method}"] = model.eval()(ids, mask)
    program = f"""
import torch, peft
from nn.checkpoint import load_pretrained

ids, mask, out = torch.tensor({ids.tolist()}), torch.tensor({mask.tolist()}), {{}}
for name in {[*expected]}:
    folder = {str(tmp_path)!r} + "/" + name
    out[name] = peft.load_adapter(load_pretrained(folder.rpartition("/")[0]), folder).eval()(ids, mask)
torch.save(out, {str(tmp_path / "out.pt")!r})
"""
    (tmp_path / "program.py").write_text(program)
    process = Program(run_script, str(tmp_path / "program.py"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@both
def test_padding_changes_nothing(name, method):
    model = adapt(tiny(name), method).eval()
    ids, mask = token_batch([9, 4])
    torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :4], mask[1:, :4]), rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------- merge and exchange


@pytest.mark.parametrize(("name", "method"), [(n, m) for n, m in PAIRS if METHODS[m].merge])
def test_merged_equals_unmerged(name, method):
    model, batch = adapt(tiny(name), method).eval(), token_batch([9, 4])
    before, plain = model(*batch), tiny(name)
    torch.testing.assert_close(merge(model)(*batch), before, rtol=1e-5, atol=1e-6)
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]
    with pytest.raises(ValueError, match="no adapter to merge"):
        merge(model)
    torch.testing.assert_close(unmerge(model)(*batch), before, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="nothing was merged"):
        unmerge(model)


def test_unmerge_beside_another_adapter_raises_and_changes_nothing():
    model = adapt(merge(adapt(tiny("bert"), "lora")), "prefix").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="already has a prefix adapter"):
        unmerge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    detach_adapter(model)
    unmerge(model)
    assert model.adapter["method"] == "lora"


def test_a_target_that_does_not_exist_freezes_nothing():
    model = tiny("bert")
    with pytest.raises(ValueError, match="nothere"):
        peft.apply(model, "lora", targets="nothere")
    assert model.adapter is None
    assert all(p.requires_grad for p in model.parameters())


def test_a_trained_head_is_a_plain_model_after_merging():
    model, batch = adapt(tiny("bert").eval(), "head"), token_batch([7, 4])
    logits = model(*batch)
    assert merge(model).adapter is None
    assert torch.equal(model(*batch), logits)
    assert unmerge(model).adapter["method"] == "head"


@pytest.mark.parametrize("method", VIRTUAL)
def test_virtual_tokens_cannot_be_merged(method):
    with pytest.raises(ValueError, match=f"{method} cannot be merged"):
        merge(adapt(tiny("bert"), method))


@both
def test_two_adapters_share_one_backbone(name, method):
    model, batch = tiny(name).eval(), token_batch([7, 4])
    adapters, expected = [], []
    for k in range(2):
        torch.manual_seed(k)
        adapt(model, method)
        train_steps(model, 1)
        expected.append(model.eval()(*batch))
        adapters.append(detach_adapter(model))
        assert [key for key, _ in model.named_parameters()] == [key for key, _ in tiny(name).named_parameters()]
    for k in (0, 1, 0):
        assert torch.equal(attach_adapter(model, adapters[k])(*batch), expected[k])
        with pytest.raises(ValueError, match=f"already has a {method} adapter; detach it first"):
            attach_adapter(model, adapters[1 - k])
        detach_adapter(model)
    with pytest.raises(ValueError, match="the model has no adapter"):
        detach_adapter(model)


def test_unknown_names_and_a_second_adapter_raise():
    with pytest.raises(ValueError, match="unknown method 'lorra'; known: none, head, bitfit, ia3, houlsby, lora"):
        peft.apply(tiny("bert"), "lorra")
    with pytest.raises(ValueError, match="lora has no option ranks; it has: rank"):
        peft.apply(tiny("bert"), "lora", ranks=3)
    with pytest.raises(ValueError, match="already has a lora adapter; detach it first"):
        peft.apply(peft.apply(tiny("bert"), "lora"), "lora")
    with pytest.raises(ValueError, match="lora is for pretrained encoders; lstm is trained whole"):
        peft.apply(tiny("lstm"), "lora")


# ------------------------------------------------------------------------------------------------- position table


@pytest.mark.parametrize(
    ("name", "method", "available"),
    [
        *((name, method, 30) for name in ("bert", "deberta", "distilbert") for method in ("prompt", "p_tuning")),
        *(("bert", method, 30) for method in ("prefix", "p_tuning_v2")),
        *(("electra", method, 30) for method in VIRTUAL),
        *((name, method, 28) for name in ROBERTAS for method in VIRTUAL),
    ],
)
def test_virtual_tokens_may_fill_the_position_table_and_no_more(name, method, available):
    """The check agrees with the model itself, which raises at the first input that is too long."""
    changes = {"position_biased_input": True} if name == "deberta" else {}
    model = adapt(tiny(name, max_position_embeddings=30, pad_token_id=int(name in ROBERTAS), **changes), method)
    longest = available - 4
    check_positions(model, longest)
    model(torch.full((1, longest), 5), torch.ones(1, longest, dtype=torch.bool))
    message = f"4 virtual tokens and --max-length {longest + 1} need {available + 1} positions; {model.model_type} has"
    with pytest.raises(ValueError, match=f"{message} {available}: lower"):
        check_positions(model, longest + 1)
    with pytest.raises(ValueError, match="positions; lower --max-length"):
        model(torch.full((1, longest + 1), 5), torch.ones(1, longest + 1, dtype=torch.bool))


@pytest.mark.parametrize("method", ["prefix", "p_tuning_v2"])
@pytest.mark.parametrize(("name", "changes"), [("deberta", {"position_biased_input": True}), ("distilbert", {})])
def test_a_prefix_that_shifts_no_positions_needs_none(name, changes, method):
    model = adapt(tiny(name, max_position_embeddings=30, **changes), method)
    assert model.embeddings.position.num_embeddings == 30
    check_positions(model, 30)
    model(torch.full((1, 30), 5), torch.ones(1, 30, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("lstm", "none"), ("deberta", "none"), ("deberta", "prompt"), ("modernbert", "none")),
        *(("modernbert", method) for method in VIRTUAL),
    ],
)
def test_models_without_a_position_table_have_no_longest_review(name, method):
    check_positions(adapt(tiny(name), method), 10_000)


@pytest.mark.parametrize(("name", "available"), [("bert", 30), ("roberta", 28), ("electra", 30), ("distilbert", 30)])
@pytest.mark.parametrize("method", ["none", "head", "lora"])
def test_a_longest_review_above_the_position_table_is_refused_before_training(name, available, method):
    model = adapt(tiny(name, max_position_embeddings=30, pad_token_id=int(name in ROBERTAS)), method)
    check_positions(model, available)
    message = f"--max-length {available + 1} needs {available + 1} positions; {model.model_type} has {available}: lower"
    with pytest.raises(ValueError, match=message):
        check_positions(model, available + 1)


@both
def test_a_detached_adapter_leaves_the_backbone_as_it_was(name: str, method: str):
    model, options = tiny(name), {"lora_bias": "all"} if method == "lora" and name != "modernbert" else {}
    before = weights(model)
    train_steps(adapt(model, method, **options))
    after = weights(model)
    adapter = detach_adapter(model)
    assert_same(weights(model), before)
    assert_same(weights(attach_adapter(model, adapter)), after)
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])
