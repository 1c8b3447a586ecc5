"""Fixtures: small checkpoints, the folders of slow tests, and runs that are stopped and compared."""

import contextlib
import functools
import gc
import os
import random
import socket
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one thread for each of two processes

import pytest
import torch
from safetensors.torch import load_file

import data.options
import data.splitting
import peft
from data import Source, Splits, load_splits
from data.batches import Batch
from data.checked import read_json
from data.corpus import Corpus
from data.demo import reviews
from data.errors import Interrupt, Stopped
from data.files import write_json
from data.flags import field_names
from data.options import Options, Settings
from data.tokenization import Tokenizer, train_tokenizer
from losses import OBJECTIVES
from nn import MODELS
from nn.checkpoint import save_pretrained
from nn.distributed import GradientSum
from nn.runtime import Machine
from peft import METHODS

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent
TINY = {"vocab_size": 61, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "feed_forward_size": 17}
TINY_WORDS = {"embedding_size": 10, "filters": 7, "num_capsules": 5, "capsule_size": 4, "attention_size": 11}
ENCODERS = [name for name, entry in MODELS.items() if entry.tokenizer != "wordlevel"]
ADAPTERS = [name for name, entry in METHODS.items() if entry.apply is not None]
VIRTUAL = [name for name in ADAPTERS if "virtual_tokens" in field_names(METHODS[name].options)]
CLASSIFYING = [name for name, entry in OBJECTIVES.items() if not entry.pretraining]
PAIRS = [(n, m) for n, m in product(ENCODERS, ADAPTERS) if (n, m) != ("modernbert", "bitfit")]  # it has no biases
both = pytest.mark.parametrize(("name", "method"), PAIRS)


def pytest_collection() -> None:
    """Turns garbage collection off while thousands of tests are created; it took a third of that time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Turns garbage collection on again, except for the tests and modules that exist by now."""
    gc.freeze()
    gc.enable()


@functools.cache
def demo_splits() -> Splits:
    return load_splits(Source("demo"))


def quick_splits(source: Source, *arguments: Any, split: bool = True) -> Splits:
    """Returns `load_splits` of a source; the built-in reviews are read and split once."""
    if source != Source("demo") or not split:
        return load_splits(source, *arguments, split=split)
    splits = demo_splits()
    parts = {part: getattr(splits, part).copy() for part in ("train", "validation", "test", "files")}
    return splits._replace(**parts)


@pytest.fixture(scope="session", autouse=True)
def _quick_runs() -> Iterator[None]:
    """Makes the many short runs in this process quicker: no file is forced to the disk, which only a power failure
    requires, the built-in reviews are split once and their ids hashed once, and torch, which would keep each seed with
    a stack trace for devices that are not there, seeds the CPU alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(data.splitting, "hash_key", functools.cache(data.splitting.hash_key))
        patch.setattr(data.options, "load_splits", quick_splits)
        if not torch.accelerator.is_available():
            for device in (torch.cuda, torch.xpu, torch.mtia):
                patch.setattr(device, "manual_seed_all", lambda _: None)
        yield


def tiny(name: str, seed: int = 0, **changes) -> torch.nn.Module:
    """Returns a very small model of the table, with the settings of its family and weights of ordinary size."""
    entry = MODELS[name]
    torch.manual_seed(seed)
    values = entry.shape | TINY | ({} if name in ENCODERS else TINY_WORDS) | {"pad_token_id": 0} | changes
    values = {key: value for key, value in values.items() if key in fields(entry.build.Config)}
    model = entry.build(entry.build.Config(**values))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data.normal_(0, 0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.normal_(1, 0.15)
    model.newly_initialized = frozenset()
    return model


def required_shape(objective: str) -> dict[str, str]:
    """Returns the config fields that an objective requires of a model."""
    return dict(part.split("=") for part in OBJECTIVES[objective].training.get("shape", "").split())


def fields(config: type) -> set[str]:
    return set(config.__dataclass_fields__)


def token_batch(lengths: list[int], vocab: int = 61, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (ids [B, T], mask [B, T]) of rows with these lengths; padding is 0."""
    stream = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(1, vocab, mask.shape, generator=stream) * mask, mask


def reviews_for(objective: str) -> Batch:
    """Returns four reviews with labels and what the objective needs besides: a teacher's logits, unlabelled reviews."""
    ids, mask = token_batch([9, 7, 5, 3])
    labels = torch.tensor([0, 1, 1, 0])
    teacher = 8 * torch.nn.functional.one_hot(labels).float()  # agrees with the labels
    batch = Batch(ids, mask, labels, torch.arange(4), teacher=teacher)
    if not OBJECTIVES[objective].unlabelled:
        return batch
    return batch._replace(unlabelled=batch._replace(input_ids=ids.flip(0), mask=mask.flip(0)))


INIT_IDS = [3, 14, 15, 9, 26]
SMALL_OPTIONS = {"rank": 2, "alpha": 6.0, "adapter_size": 5}
SMALL_OPTIONS |= {"virtual_tokens": 4, "prompt_hidden": 6, "prefix_hidden": 7}


def training_of(model: torch.nn.Module, loss: str = "ce") -> SimpleNamespace:
    """Returns what `train.gradient` needs of a training run."""
    entry = OBJECTIVES[loss]
    return SimpleNamespace(
        settings=Settings(options=Options(loss=loss), method=None, objective=entry.options(), origins={}),
        entry=entry,
        machine=Machine(torch.device("cpu"), torch.float32),
        model=model,
        trainable=[p for p in model.parameters() if p.requires_grad],
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        interrupt=Interrupt(),
        gradient_sum=GradientSum([]),
    )


def adapt(model: torch.nn.Module, method: str, **options) -> torch.nn.Module:
    """Applies `method` to a tiny model and moves parameters that start at zero, so that they change the output."""
    small = {name: value for name, value in SMALL_OPTIONS.items() if name in field_names(METHODS[method].options)}
    peft.apply(model, method, INIT_IDS, **small | options)
    for name, parameter in model.named_parameters():
        if name.endswith((".B", ".magnitude", ".l", ".up")) or name.startswith("virtual."):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def train_steps(model: torch.nn.Module, steps: int = 3) -> None:
    """Trains `model` for a few steps, each on another batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        ids, mask = token_batch([7, 5, 3], seed=step)
        torch.nn.functional.cross_entropy(model.train()(ids, mask), torch.tensor([0, 1, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of all parameters."""
    return {key: p.detach().clone() for key, p in model.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        assert torch.equal(tensor, b[key]), key


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Returns the directory of a tiny BERT checkpoint."""
    save_pretrained(tiny("bert"), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def change_json(path: Path, **changes: object) -> None:
    """Changes fields of a JSON file. The config of a run loses its seal, which would no longer be right."""
    unsealed = {key: value for key, value in read_json(path).items() if key not in ("sha256", "format")}
    write_json(path, unsealed | changes)


def rows_of(corpus: Corpus) -> list[list[int]]:
    """Returns the token ids of each example."""
    return [corpus.ids[a:b].tolist() for a, b in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)]


def folder_from(variable: str) -> Path:
    value = os.environ.get(variable, "")
    if not value or not Path(value).is_dir():
        pytest.skip(f"{variable} is not the path of a folder")
    return Path(value)


@pytest.fixture
def imdb() -> Path:
    return folder_from("IMDB_DIR")


@pytest.fixture
def minilm() -> Path:
    return folder_from("MINILM_DIR")


@pytest.fixture
def spm() -> Path:
    """Returns the directory of DeBERTa-v3's published spm.model."""
    return folder_from("TOKENIZERS_DIR") / "deberta-v3"


@functools.cache
def tiny_tokenizer(kind: str) -> Tokenizer:
    """Returns a tokenizer with 300 tokens, trained on built-in reviews."""
    return train_tokenizer(kind, [text for _, text, _ in reviews("train")[:300]], 300)


def tiny_weights(folder: Path, name: str = "bert", **config: Any) -> Path:
    """Writes a tiny checkpoint with a tokenizer, both made for the built-in reviews. config: fields of its config"""
    tokenizer = tiny_tokenizer(MODELS[name].tokenizer)
    model = tiny(name, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id, **config)
    save_pretrained(model, folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def small_run(tmp_path: Path, monkeypatch) -> list[str]:
    """Returns the arguments of a run of a few seconds: a tiny BERT, LoRA, 64 built-in reviews, five steps an epoch."""
    monkeypatch.chdir(tmp_path)
    weights = tiny_weights(tmp_path / "weights")
    data = "--data demo --train-reviews 64 --validation-reviews 100"
    text = f"--model bert --weights {weights} --peft lora {data} --batch-size 13 --epochs 2"
    return [*text.split(), "--precision", "fp32", "--runs", str(tmp_path / "runs"), "--name", "small"]


def free_port() -> int:
    """Returns a free port that the system gives to no other program before the ranks bind it, seconds later: one below
    those of `bind(("localhost", 0))`, which the servers of other tests use."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("localhost", port))
            return port


@pytest.fixture
def one_thread():
    """Uses one thread, as a `Program` does: with another number, sums differ in the last bit. A forked child cannot use
    the threads of its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    """Uses two threads, on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def final_weights(folder) -> dict[str, torch.Tensor]:
    """Returns all trained tensors and the best adapter of a run folder."""
    return load_file(folder / "state/state.safetensors") | load_file(folder / "best/adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def fail_at(call: int, monkeypatch, error: type = Stopped) -> None:
    """Makes the `call`-th optimizer step raise an error instead."""
    step, count = torch.optim.AdamW.step, iter(range(1, 10_000))

    def counted(self, *args, **kwargs):
        if next(count) == call:
            raise error
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
