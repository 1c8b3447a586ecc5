"""Distillation against its equations; the teacher's logits follow the rows; runs with a teacher."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from conftest import change_json, fail_at, same, tiny, tiny_weights, token_batch
from torch import Tensor

import train
from data.batches import Batch
from data.calibration import calibration
from data.checked import read_json
from data.corpus import Corpus
from data.errors import clean_exit
from data.hub import CONFIG
from data.imdb import as_frame
from data.meter import Meter
from data.metrics import softmax
from data.options import read_splits
from data.orders import step_batches
from data.teacher import class_order, kept_logits, with_teacher
from losses.cross_entropy import cross_entropy
from losses.distill import DistillOptions, distill_loss, objective, soft_losses
from nn.runtime import choose_machine
from peft.classifier import load_classifier

B, C = 5, 3


def random_pair(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns float64 logits of student and teacher, [B, C], and labels [B]."""
    torch.manual_seed(seed)
    student, teacher = (2 * torch.randn(B, C, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, 1.5]])
def test_equals_the_loop_with_gradients(temperature: float, weights: list[float]):
    student, teacher, labels = random_pair()
    class_weights = torch.tensor(weights, dtype=torch.float64)
    ours = distill_loss(student, teacher, labels, temperature, alpha=0.7, class_weights=class_weights)
    plain = reference.distillation(student, teacher, labels, temperature, alpha=0.7, weights=weights)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, plain)))


def test_the_gradient_is_equation_2_times_the_squared_temperature():
    student, teacher, _ = random_pair()
    (gradient,) = torch.autograd.grad(soft_losses(student, teacher, 2.5).mean(), student)
    torch.testing.assert_close(gradient, 2.5 * ((student / 2.5).softmax(-1) - (teacher / 2.5).softmax(-1)) / B)


def test_at_a_high_temperature_the_gradient_matches_the_centred_logits():
    """Checks Eq. (4) times T². The error of the expansion falls as 1/T."""
    student, teacher, _ = random_pair()
    difference = (student - teacher).detach()
    limit = (difference - difference.mean(-1, keepdim=True)) / (C * B)
    errors = []
    for temperature in (1e2, 1e3, 1e4):
        (gradient,) = torch.autograd.grad(soft_losses(student, teacher, temperature).mean(), student)
        errors.append((gradient - limit).abs().max().item() * temperature)
    assert errors[-1] < 1e-3 * 1e4 * limit.abs().max()
    assert errors[0] == pytest.approx(errors[-1], rel=0.1)


def test_alpha_0_is_cross_entropy_and_an_equal_teacher_leaves_the_rest():
    student, teacher, labels = random_pair()
    torch.testing.assert_close(
        distill_loss(student, teacher, labels, 2.0, alpha=0.0, smoothing=0.1), cross_entropy(student, labels, 0.1)
    )
    equal = distill_loss(student, student.detach(), labels, 2.0, alpha=0.25)
    torch.testing.assert_close(equal, 0.75 * cross_entropy(student, labels))
    assert (soft_losses(student, teacher, 2.0) > 0).all()


def test_a_term_of_weight_0_adds_0():
    student, teacher = torch.tensor([[0.5, -torch.inf]]), torch.tensor([[0.2, -torch.inf]])
    label = torch.tensor([1])  # that the student excludes: its cross-entropy is infinite
    assert distill_loss(student, teacher, label, temperature=2.0, alpha=1.0) == 0
    student, teacher = torch.tensor([[0.5, -torch.inf]]), torch.tensor([[0.2, 0.1]])  # an infinite divergence
    assert distill_loss(student, teacher, label - 1, temperature=2.0, alpha=0.0) == 0


def test_the_soft_term_is_computed_in_fp32_and_finite_for_extreme_logits():
    student, teacher, labels = random_pair()
    halves = student.bfloat16(), teacher.bfloat16()
    expected = distill_loss(*(logits.float() for logits in halves), labels, 3.0, 0.5)
    torch.testing.assert_close(distill_loss(*halves, labels, 3.0, 0.5), expected, rtol=0, atol=0)
    far = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = soft_losses(far, -far.detach(), 1.0).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(far.grad).all()


@pytest.mark.parametrize("known", [[0, 3], [2], []])
def test_reviews_without_a_label_have_the_soft_term_alone(known: list[int]):
    """Checks values and gradients against the sum over examples, each with its own α."""
    student, teacher, labels = random_pair()
    masked = torch.full_like(labels, -1)
    masked[known] = labels[known]
    weights = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    ours = distill_loss(student, teacher, masked, 2.0, alpha=0.3, class_weights=weights)
    rows = [slice(i, i + 1) for i in range(B)]
    plain = sum(
        reference.distillation(
            student[row], teacher[row], labels[row], 2.0, alpha=0.3 if i in known else 1.0, weights=weights.tolist()
        )
        for i, row in enumerate(rows)
    )
    torch.testing.assert_close(ours, plain / B)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, plain / B)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill_temperature": 0.0}, r"distill_temperature 0\.0 must be above 0"),
        ({"distill_alpha": 1.5}, r"distill_alpha 1\.5 is outside \[0, 1\]"),
    ],
)
def test_unsupported_settings_raise(values: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        DistillOptions(**values)


def test_the_largest_temperature_is_allowed_and_none_above_it():
    assert DistillOptions(distill_temperature=100.0).distill_temperature == 100
    with pytest.raises(ValueError, match=r"distill_temperature 100\.5 must be above 0 and at most 100"):
        DistillOptions(distill_temperature=100.5)


def test_labels_may_be_smoothed_unless_alpha_leaves_them_out():
    assert DistillOptions(distill_alpha=0.9, label_smoothing=0.1).label_smoothing == 0.1
    with pytest.raises(ValueError, match="--label-smoothing has no effect with --distill-alpha 1"):
        DistillOptions(distill_alpha=1.0, label_smoothing=0.1)


def test_another_number_of_labels_is_refused_where_they_are_not_read():
    student, teacher, labels = random_pair()
    with pytest.raises(ValueError, match=r"labels \[1\] are not \[B, C\] and \[B\]"):
        distill_loss(student, teacher, labels[:1], 2.0, alpha=1.0)


def test_the_logits_of_the_teacher_are_constants():
    student, teacher, _ = random_pair()
    loss = soft_losses(student, teacher.requires_grad_(), 2.0).sum()
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)


def test_a_batch_without_a_teacher_raises():
    batch = Batch(*token_batch([4, 3]), torch.tensor([0, 1]), torch.arange(2))
    with pytest.raises(ValueError, match="needs the teacher's logits"):
        objective(tiny("lstm"), batch, DistillOptions())


# -------------------------------------------------------------------------------------------- the rows of a teacher


def numbered_corpus(count: int) -> Corpus:
    """Returns `count` examples; the label, the tokens and the teacher's logits of an example are its number."""
    rows = [[number + 1] * (number % 4 + 1) for number in range(count)]
    corpus = Corpus.from_rows(rows, labels=range(count), pad_id=0)
    return dataclasses.replace(corpus, teacher=np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1))


@pytest.mark.parametrize("num_splits", [1, 3])
def test_every_pass_has_the_logits_of_its_rows(num_splits: int):
    """Checks several micro-batches with repeated rows, split into passes, with class weights."""
    corpus = numbered_corpus(9).balanced(9)
    micro_batches = [np.array([7, 2, 2, 5, 0]), np.array([8, 1, 8])]
    passes = list(step_batches(corpus, None, micro_batches, 0, num_splits))
    assert len(passes) == 2 * num_splits
    for batch in passes:
        moved = batch.to(torch.device("cpu"))
        assert torch.equal(moved.teacher, batch.labels[:, None].float().expand(-1, 2))
        assert torch.equal(batch.input_ids[:, 0], batch.labels + 1)


def test_a_window_has_the_logits_of_its_review():
    corpus = dataclasses.replace(
        Corpus.from_rows([[1], [2], [3]], labels=[0, 1], pad_id=0),
        review=np.array([0, 1, 1]),
        teacher=np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32),
    )
    assert corpus.batch(np.array([2, 0, 1])).teacher.tolist() == [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("windows", [False, True])
def test_joined_corpora_are_their_reviews_one_after_the_other(windows: bool):
    parts = [Corpus.from_rows([[1], [2, 3], [4]], [0, 1, 0], 0), Corpus.from_rows([[5, 6], [7]], [-1, -1], 0)]
    if windows:  # the first review has two windows, and so has the last
        reviews = [np.array([0, 0, 1]), np.array([0, 1])]
        parts = [dataclasses.replace(part, review=review) for part, review in zip(parts, reviews, strict=True)]
        parts[0] = dataclasses.replace(parts[0], labels=np.array([0, 1]))
    joined = parts[0].joined(parts[1])
    batch = joined.batch(np.arange(5))
    assert [ids[mask].tolist() for ids, mask in zip(batch.input_ids, batch.mask, strict=True)] == [
        [1], [2, 3], [4], [5, 6], [7]
    ]  # fmt: skip
    assert batch.labels.tolist() == ([0, 0, 1, -1, -1] if windows else [0, 1, 0, -1, -1])


def test_classes_are_ordered_by_name():
    assert class_order(("positive", "negative"), ("negative", "positive"), "T") == [1, 0]
    assert class_order(("c", "a", "b"), ("a", "b", "c"), "T") == [1, 2, 0]
    with pytest.raises(ValueError, match="the teacher T has the classes a, b, the data a, c"):
        class_order(("a", "b"), ("a", "c"), "T")


def test_spellings_of_the_classes_are_one_order():
    assert class_order(("POSITIVE", "Neg"), ("negative", "positive"), "t") == [1, 0]
    assert class_order(("0", "1", "2"), ("LABEL_2", "LABEL_0", "LABEL_1"), "t") == [2, 0, 1]


def test_kept_logits_are_computed_once_and_again_if_damaged(tmp_path, capsys):
    path, calls = tmp_path / "teacher.npy", []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.array([[1.0, 2.0]], dtype=np.float32)

    for _ in range(2):
        assert kept_logits(path, compute).tolist() == [[1.0, 2.0]]
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert kept_logits(path, compute).tolist() == [[1.0, 2.0]]
    assert len(calls) == 2
    assert "is made again" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def student(tmp_path, monkeypatch) -> list[str]:
    """Returns the arguments of a small word network that the built-in linear model teaches: five steps an epoch."""
    monkeypatch.chdir(tmp_path)
    data = "--data demo --train-reviews 64 --validation-reviews 50 --test-reviews 50 --precision fp32"
    text = f"--model gru --weights none --loss distill {data} --batch-size 13 --epochs 2 --word-vectors none"
    return [*text.split(), "--shape", "embedding_size=8 hidden_size=8", "--runs", "runs", "--name", "small"]


def test_a_resumed_run_does_not_need_the_teacher_and_ends_in_the_same_weights(
    student, tmp_path, monkeypatch, capsys, one_thread
):
    arguments = [*student, "--accumulation", "2", "--class-weights", "balanced"]
    train.main([*arguments, "--name", "whole"])
    assert "teacher: the built-in linear model, accuracy " in capsys.readouterr().out
    with monkeypatch.context() as patch:
        fail_at(2, patch)
        with pytest.raises(SystemExit):
            train.main([*arguments, "--save-minutes", "0"])
    with monkeypatch.context() as patch:
        patch.setattr(train, "load_classifier", lambda *_: pytest.fail("the teacher is loaded again"))
        train.main(["--resume", "runs/small"])
    states = [train.Run(tmp_path / "runs" / name).load_state()[0] for name in ("small", "whole")]
    assert same(*states)
    for name in ("small", "whole"):
        kept = np.load(tmp_path / "runs" / name / "teacher.npy")
        assert kept.shape == (64, 2)
        assert kept.dtype == np.float32


def test_the_logits_are_those_of_the_teacher_for_the_training_reviews(student):
    """Scores the run's training reviews by the teacher alone; the teacher tokenizes differently."""
    train.main([*student, "--epochs", "1"])
    settings, run = train.resolve(["--resume", "runs/small"], train.TABLES)
    splits = read_splits(settings.options, run.cache)
    machine = choose_machine("cpu", "fp32")
    reviews = splits.train["review"].tolist()
    expected = load_classifier([], machine, train.TABLES).score_frame(as_frame([("x", text, -1) for text in reviews]))
    tolerance = {"rtol": 1e-4, "atol": 1e-4}  # batches of other lengths sum in another order
    np.testing.assert_allclose(np.load(run.folder / "teacher.npy"), expected, **tolerance)


def test_unlabelled_reviews_are_learned_from_the_teacher_alone(student, tmp_path, monkeypatch, capsys):
    """Checks the number of steps and logits, and the counted predictions; without such reviews the run is refused."""
    sums, record = [], Meter.record
    monkeypatch.setattr(Meter, "record", lambda meter: sums.append(meter.sums) or record(meter))
    monkeypatch.setattr(train, "LOG_STEPS", 1)
    arguments = [*student, "--epochs", "1", "--distill-unlabelled", "--class-weights", "balanced"]
    with pytest.raises(ValueError, match="--distill-unlabelled needs unlabelled reviews"):
        train.main(arguments)
    (tmp_path / "data").mkdir()
    columns = {"train": ["label"], "valid": ["label"], "unsupervised": []}
    for number, (name, more) in enumerate(columns.items()):
        texts = [f"a {('bad', 'good')[i % 2]} film with the number {number} {i}" for i in range(26)]
        frame = pd.DataFrame({"review": texts, "label": [i % 2 for i in range(26)]})
        frame[["review", *more]].to_csv(tmp_path / "data" / f"{name}.csv", index=False)
    numbers = {"demo": "data", "64": "26", "50": "26", "--test-reviews": "--validation-reviews"}
    arguments = [numbers.get(argument, argument) for argument in arguments]
    capsys.readouterr()
    train.main([*arguments, "--name", "more"])
    assert "26 reviews have its logits alone" in capsys.readouterr().out
    folder = tmp_path / "runs/more"
    assert np.load(folder / "teacher.npy").shape == (52, 2)
    log = (folder / "log.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "step" for line in log) == 52 / 13
    assert (sums[-1]["count"], sums[-1]["of acc"]) == (52, 26)  # reviews of the epoch, predictions with a label


def test_a_run_and_a_checkpoint_are_teachers(small_run, student, tmp_path, capsys):
    train.main([*small_run, "--name", "teacher", "--epochs", "1", "--test-reviews", "50"])
    for number, teacher in enumerate(("runs/teacher", str(tmp_path / "weights"))):
        train.main([*student, "--name", f"s{number}", "--epochs", "1", "--teacher", teacher])
        assert f"teacher: {tmp_path / teacher}, accuracy" in capsys.readouterr().out
    first, second = (np.load(tmp_path / f"runs/s{number}/teacher.npy") for number in range(2))
    assert not np.allclose(first, second)  # one is trained further


def test_several_teachers_are_an_ensemble(small_run, student, tmp_path, capsys):
    """Teaches by the mean of the calibrated probabilities of a run and the probabilities of a checkpoint."""
    train.main([*small_run, "--name", "teacher", "--epochs", "1", "--test-reviews", "50"])
    folders = ["runs/teacher", "weights"]
    train.main([*student, "--epochs", "1", "--teacher", *folders])
    assert f"teacher: {tmp_path / folders[0]}, {tmp_path / folders[1]}, accuracy" in capsys.readouterr().out
    settings, run = train.resolve(["--resume", "runs/small"], train.TABLES)
    frame, machine = read_splits(settings.options, run.cache).train, choose_machine("cpu", "fp32")
    temperatures = (calibration(train.Run(tmp_path / folders[0])), 1.0)
    logits = [load_classifier([folder], machine, train.TABLES).score_frame(frame) for folder in folders]
    each = [softmax(z / t) for z, t in zip(logits, temperatures, strict=True)]
    kept = np.load(run.folder / "teacher.npy")
    assert kept.dtype == np.float32
    np.testing.assert_allclose(np.exp(kept), (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_run_of_an_older_version_has_one_teacher_as_text(student, tmp_path):
    train.main([*student, "--epochs", "1"])
    path = tmp_path / "runs/small" / CONFIG
    options = read_json(path)["options"]
    for text, names in (("", ()), ("weights", ("weights",))):
        change_json(path, options=options | {"teacher": text})
        assert train.resolve(["--resume", "runs/small"], train.TABLES)[0].objective.teacher == names


def test_a_teacher_that_cannot_be_used_is_one_line(student, tmp_path, capsys):
    """Checks a name that is none, a run without a classifier, and other classes."""
    with pytest.raises(SystemExit) as done, clean_exit():
        train.main([*student, "--teacher", "no such folder"])
    assert done.value.code == 2
    assert not (tmp_path / "runs/small").exists()
    other = tiny_weights(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "bad", "1": "good"}, {"bad": 0, "good": 1}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as done, clean_exit():
        train.main([*student, "--teacher", str(other)])
    assert done.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert "no such folder" in lines[0]
    assert "has the classes bad, good, the data negative, positive" in lines[1]


def test_out_of_memory_keeps_the_rows(student, tmp_path, monkeypatch, capsys, one_thread):
    """The first pass fails; smaller passes end in nearly the same weights."""
    still = [*student, "--epochs", "1", "--dropout", "0", "--classifier-dropout", "0"]
    still[still.index("--shape") + 1] += " word_dropout=0 embedding_dropout=0"
    train.main([*still, "--name", "whole"])
    failures, whole = iter([True]), train.gradient

    def once(*arguments):
        if next(failures, False):
            raise MemoryError
        return whole(*arguments)

    monkeypatch.setattr(train, "gradient", once)
    train.main(still)
    assert "each forward pass is split into 2" in capsys.readouterr().out
    states = [train.Run(tmp_path / "runs" / name).load_state()[0] for name in ("small", "whole")]
    for key, tensor in states[0].items():
        if key.startswith("model."):
            torch.testing.assert_close(tensor, states[1][key], rtol=1e-3, atol=1e-4)


def test_the_printed_accuracy_of_the_teacher_is_that_of_the_reviews_with_a_label(tmp_path, capsys):
    logits, labels = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [4.0, 0.0]]), [1, 0, 0, -1]
    teacher = SimpleNamespace(labels=("negative", "positive"), score_frame=lambda frame, check: logits)
    run = SimpleNamespace(folder=tmp_path, labels=None)
    corpus = Corpus.from_rows([[1]] * 4, labels, pad_id=0)
    found = with_teacher(corpus, pd.DataFrame(), ["t"], lambda _: teacher, run, lambda: None)
    assert found.teacher.dtype == np.float32
    shown = capsys.readouterr().out
    assert shown == "teacher: t, accuracy 0.6667 on the training reviews; 1 reviews have its logits alone\n"
