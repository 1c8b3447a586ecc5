"""Gradual unfreezing: what each epoch trains, frozen parameters do not move, and a resumed run is the same."""

import pytest
import torch
from conftest import fail_at, same, tiny, token_batch

import train
from data.checked import read_json
from data.errors import clean_exit
from nn import MODELS
from nn.checkpoint import load_pretrained
from nn.optim import depth
from nn.unfreezing import describe_epoch, unfreeze

L = 2  # layers of the tiny BERT


def trained_modules(model: torch.nn.Module, epoch: int) -> set[str]:
    """Returns the first components of the names of the parameters that an epoch trains, layers with their number."""
    unfreeze(model, [*model.parameters()], epoch)
    names = [name.split(".") for name, p in model.named_parameters() if p.requires_grad]
    return {".".join(name[:2]) if name[0] == "layers" else name[0] for name in names}


def test_each_epoch_trains_one_more_level():
    model = tiny("bert", num_layers=3)
    head = {"pooler", "classifier"}
    expected = [head, head | {"layers.2"}, head | {"layers.2", "layers.1"}]
    expected += [{*expected[2], "layers.0"}, {*expected[2], "layers.0", "embeddings"}]
    assert [trained_modules(model, epoch) for epoch in range(1, 6)] == expected
    assert trained_modules(model, 9) == expected[-1]


def test_a_network_over_words_has_one_layer_between_embeddings_and_head():
    model = tiny("lstm")
    expected = [{"classifier"}, {"classifier", "lstm"}, {"classifier", "lstm", "embeddings"}]
    assert [trained_modules(model, epoch) for epoch in (1, 2, 3)] == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_trained_parameters_of_every_model_have_gradients_and_no_others(name):
    """What is trained in the last epoch and gets no gradient then, gets none before."""
    model = tiny(name)
    trainable = [p for p in model.parameters() if p.requires_grad]
    without = {id(p) for p in model.parameters()} - {id(p) for p in trainable}
    for epoch in (9, 3, 2, 1):
        unfreeze(model, trainable, epoch)
        model.zero_grad()
        model(*token_batch([9, 7])).sum().backward()
        without |= set() if epoch < 9 else {id(p) for p in trainable if p.grad is None}
        lowest = max(0, max(depth(model, key) for key, _ in model.named_parameters()) + 1 - epoch)
        expected = {k for k, p in model.named_parameters() if depth(model, k) >= lowest and id(p) not in without}
        assert {key for key, p in model.named_parameters() if p.grad is not None} == expected
        assert expected


def test_parameters_outside_the_list_stay_frozen():
    model = tiny("lstm")
    vectors = model.embeddings.word.weight.requires_grad_(False)
    unfreeze(model, [p for p in model.parameters() if p.requires_grad], 9)
    assert not vectors.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not vectors)


@pytest.mark.parametrize(
    ("epoch", "epochs", "names"),
    [
        (1, 5, "head (182 parameters)"),
        (2, 5, "layer 3, head (PARAMETERS)"),
        (5, 5, "embeddings, layers 1 … 3, head (PARAMETERS)"),
        (6, 9, "embeddings, layers 1 … 3, head (PARAMETERS)"),
        (3, 3, "layers 2 … 3, head (PARAMETERS); frozen in all epochs: embeddings, layer 1 (--epochs 5 trains them)"),
        (1, 4, "head (182 parameters); frozen in all epochs: embeddings (--epochs 5 trains them)"),
    ],
)
def test_description_of_an_epoch(epoch: int, epochs: int, names: str):
    model = tiny("bert", num_layers=3)  # head: 12·12 + 12 + 12·2 + 2
    unfreeze(model, [*model.parameters()], epoch)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = names.replace("PARAMETERS", f"{count:,} parameters")
    assert describe_epoch(model, epoch, epochs) == f"trained: {expected}"


def test_the_description_leaves_out_what_stays_frozen():
    model = tiny("bert", num_layers=3)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("embeddings.")]
    for parameter in set(model.parameters()) - set(parameters):
        parameter.requires_grad_(False)
    unfreeze(model, parameters, 5)
    assert describe_epoch(model, 5, 5).startswith("trained: layers 1 … 3, head (")
    unfreeze(model, parameters, 3)
    assert describe_epoch(model, 3, 5).startswith("trained: layers 2 … 3, head (")


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def gradual(small_run) -> list[str]:
    """Returns the arguments of a run of four epochs of five steps that unfreezes the embeddings in the last one."""
    small_run[small_run.index("--peft") + 1] = "none"
    return [*small_run, "--unfreeze", "gradual", "--epochs", "4", "--weight-decay", "0.5", "--average", "0.9"]


def test_frozen_parameters_do_not_move_in_a_run(gradual, monkeypatch, capsys):
    start, epochs, build, finish = {}, [], train.build_model, train.finish_epoch

    def building(*arguments):
        model = build(*arguments)
        start.update({name: p.detach().clone() for name, p in model.named_parameters()})
        return model

    def finishing(t):
        values = {name: p.detach().clone() for name, p in t.model.named_parameters()}
        moments = {name for name, p in t.model.named_parameters() if p in t.optimizer.state}
        epochs.append((values, moments, {name: depth(t.model, name) for name in values}))
        finish(t)

    monkeypatch.setattr(train, "build_model", building)
    monkeypatch.setattr(train, "finish_epoch", finishing)
    train.main(gradual)
    before = start
    for number, (values, moments, levels) in enumerate(epochs, 1):
        trained = {name for name in values if levels[name] > L + 1 - number}
        moved = {name for name in values if not torch.equal(values[name], before[name])}
        assert moments == trained
        assert moved | {name for name in trained if name.endswith("key.bias")} == trained  # its gradient is 0
        assert all(torch.equal(values[name], start[name]) for name in values.keys() - trained)
        before = values
    assert trained == values.keys()
    lines = [line for line in capsys.readouterr().out.splitlines() if ": trained: " in line]
    assert [line.split(" (")[0] for line in lines] == [
        "epoch 1/4: trained: head",
        "epoch 2/4: trained: layer 2, head",
        "epoch 3/4: trained: layers 1 … 2, head",
        "epoch 4/4: trained: embeddings, layers 1 … 2, head",
    ]


def test_the_result_counts_what_was_trained(gradual, tmp_path):
    train.main([*gradual, "--epochs", "2", "--name", "two"])
    run = tmp_path / "runs/two"
    model = load_pretrained(run / "best")
    counts = {name: p.numel() for name, p in model.named_parameters() if depth(model, name) >= L}
    assert read_json(run / "result.json")["parameters"]["trained"] == sum(counts.values())
    (run / "result.json").unlink()  # the process ended before it was written
    train.main(["--resume", str(run)])
    assert read_json(run / "result.json")["parameters"]["trained"] == sum(counts.values())


@pytest.mark.parametrize("step", [3, 11, 13])
def test_a_resumed_run_ends_in_the_same_weights(gradual, step, tmp_path, monkeypatch, one_thread):
    """Stops within epoch 1, before the first step of epoch 3, and within it."""
    train.main([*gradual, "--name", "whole"])
    with monkeypatch.context() as patch:
        fail_at(step, patch)
        with pytest.raises(SystemExit):
            train.main([*gradual, "--save-minutes", "0"])
    train.main(["--resume", "runs/small"])
    assert same(*(train.Run(tmp_path / "runs" / name).load_state()[0] for name in ("small", "whole")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model bert --weights x --peft lora", "trains all layers; not for lora"),
        ("--model bert --weights x --peft head", "trains all layers; not for head"),
        ("--model bert --weights none", "it needs --weights"),
        ("--model bert --weights x --loss mlm", "for pretrained layers under a classifier"),
    ],
)
def test_settings_without_a_meaning_are_one_line(arguments: str, message: str, capsys):
    with pytest.raises(SystemExit) as done, clean_exit():
        train.main([*arguments.split(), "--unfreeze", "gradual"])
    assert done.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
