"""The loop of train.py against a plain loop, and what it passes to the optimizer and keeps in best/."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

import train
from data.corpus import Corpus
from data.metrics import softmax
from data.options import Options
from data.orders import shuffled_order
from data.resolve import resolve
from data.runs import Run
from data.tokenization import load_tokenizer
from nn.optim import parameter_groups
from nn.training import Training
from peft.classifier import load_run
from peft.scoring import score

RUN = "--peft none --dropout 0 --classifier-dropout 0 --accumulation 2 --average 0.9 --warmup 0.3 --layer-decay 0.5"
RUN += " --learning-rate 1e-3 --head-learning-rate 2e-3 --weight-decay 0.1 --adam-epsilon 1e-3"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """Returns a list of the Training of each run of the test. The runs do not score the test reviews."""
    kept: list[Training] = []
    monkeypatch.setattr(train, "finish", kept.append)
    return kept


def plain_loop(model: Module, corpus: Corpus, options: Options) -> list[Tensor]:
    """Trains `model` for two epochs with two micro-batches a step. Returns the running means of its parameters."""
    optimizer = torch.optim.AdamW(parameter_groups(model, options), eps=options.adam_epsilon)
    orders = [shuffled_order(corpus.lengths, options.batch_size, options.seed, epoch) for epoch in range(2)]
    steps = [np.concatenate(order[k : k + 2]) for order in orders for k in range(0, len(order), 2)]
    means, rise = [p.detach().clone() for p in model.parameters()], math.ceil(options.warmup * len(steps))
    for step, rows in enumerate(steps):
        fall = (len(steps) - step) / (len(steps) - rise) if options.schedule == "linear" else 1
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * ((step + 1) / rise if step < rise else fall)
        batch = corpus.batch(rows)
        optimizer.zero_grad()
        cross_entropy(model(batch.input_ids, batch.mask), batch.labels).backward()
        assert clip_grad_norm_(model.parameters(), options.clip or math.inf) > options.clip  # all are scaled down
        optimizer.step()
        d = min(options.average, (1 + step) / (10 + step))
        means = [d * mean + (1 - d) * p.detach() for mean, p in zip(means, model.parameters(), strict=True)]
    return means


@pytest.mark.parametrize(
    ("precision", "schedule", "clip", "tolerance"),
    [("fp32", "linear", 0.2, 1e-6), ("fp32", "constant", 0.0, 1e-6), ("fp16", "linear", 0.2, 2e-4)],
)
def test_a_run_equals_a_plain_loop(small_run, tmp_path, trained, precision, schedule, clip, tolerance):
    """An epoch has four micro-batches of 13 reviews and one of 12; its last step has a single micro-batch."""
    arguments = [*small_run, *RUN.split(), "--precision", precision, "--schedule", schedule, "--clip", str(clip)]
    train.main(arguments)
    settings = resolve(arguments, train.TABLES)[0]
    model = train.build_model(settings, load_tokenizer(settings.options.weights)).train()
    means = plain_loop(model, trained[0].corpus, settings.options)
    state = load_file(tmp_path / "runs/small/state/state.safetensors")
    for number, (name, p) in enumerate(model.named_parameters()):
        torch.testing.assert_close(state[f"model.{name}"], p.detach(), rtol=0, atol=tolerance, msg=name)
        torch.testing.assert_close(state[f"average.{number}"], means[number], rtol=0, atol=tolerance, msg=name)


def test_the_options_reach_the_optimizer(small_run, trained, monkeypatch):
    monkeypatch.setattr(train, "train", lambda t: None)
    train.main([*small_run, "--lora-plus", "16", "--precision", "fp16", "--adam-epsilon", "1e-3"])
    groups = trained[0].optimizer.param_groups
    rates = {(group["part"], group["peak"]) for group in groups}
    assert rates == {("adapter", 5e-4), ("adapter", 16 * 5e-4), ("head", 1e-3)}
    assert {group["eps"] for group in groups} == {1e-3}
    assert trained[0].scaler.is_enabled()


def test_the_running_means_are_scored_and_kept(small_run, tmp_path, trained):
    train.main([*small_run, "--peft", "none", "--epochs", "1", "--average", "0.9", "--learning-rate", "1e-2"])
    (t,), folder = trained, tmp_path / "runs/small"
    model, _ = load_run(Run.open(folder), torch.device("cpu"), "none")
    for p, mean, last in zip(model.parameters(), t.average.means, t.model.parameters(), strict=True):
        assert torch.equal(p, mean)
        assert not torch.equal(p, last)
    probabilities = load_file(folder / "validation.probabilities.safetensors")["probabilities"]
    expected = torch.from_numpy(softmax(score(model, t.held_out, t.machine)))
    torch.testing.assert_close(probabilities, expected, check_dtype=False)
