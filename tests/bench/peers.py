"""Measures our speed and memory against transformers, peft and bitsandbytes, on reviews with the lengths of IMDB's.

    pip install transformers peft bitsandbytes scikit-learn
    python tests/bench/peers.py IMDB_FOLDER [WORK …] [--repeats N] [--out FILE.json]

WORK: finetune-512, finetune-256 (BERT with 6 layers, 384 wide), lora-512 (DeBERTa-v3-xsmall's shape, LoRA on query and
value), score-512 (the same BERT, without gradients), int8 (LoRA on an 8-bit DeBERTa-v3-base shape, 4 × 128). Default:
all. Both sides have the same weights and the same optimizer, and alternate in one process; speeds are medians. The
other library pads a random batch to its longest review, as its trainer does; ours buckets, as train.py does.

In the output, `ours` is fp32 and `ours, auto` is what --precision auto chooses on this machine. Speeds are reviews per
second; `memory` is the peak of all tensors of one step, weights not counted, in MiB.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Linear, Module

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from memory_account import Live

import peft as ours_peft  # this project's package; huggingface_peft() imports the installed one of the same name
from data import LABELED, find_file
from data.batches import Batch, Corpus, shuffled_order, sorted_order, step_batches
from data.imdb import load_reviews
from data.tokenization import train_tokenizer
from nn.bert import Bert, BertConfig
from nn.checkpoint import published_state, write_config
from nn.deberta import Deberta, DebertaConfig
from nn.quant import quantize_int8
from nn.runtime import choose_machine, keep_freed_memory, tokens_per_pass

ROOT = Path(__file__).parent.parent.parent
REVIEWS, BATCH = 48, 16  # LoRA uses half of each
BERT = {"hidden_size": 384, "num_layers": 6, "num_heads": 12, "feed_forward_size": 1536}
V3 = {
    "vocab_size": 30522,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ("p2c", "c2p"),
    "position_biased_input": False,
}
XSMALL = V3 | {"hidden_size": 384, "num_layers": 12, "num_heads": 6, "feed_forward_size": 1536}
BASE = V3 | {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "feed_forward_size": 3072}


# ------------------------------------------------------------------------------------------------- the two libraries


def huggingface_peft() -> ModuleType:
    """Imports the installed package `peft`, which this project's package of the same name hides.

    From then on `import peft` means the installed package; objects that were imported before are unchanged.
    """
    if Path(sys.modules["peft"].__file__).is_relative_to(ROOT):
        for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
            del sys.modules[name]
        sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))]
    import peft

    return peft


def theirs_like(model: Module) -> Module:
    """Builds transformers' model with the config and weights of ours."""
    import transformers

    fields = json.loads(json.dumps(write_config(model)))  # tuples become lists
    cls = getattr(transformers, fields.pop("architectures")[0])
    fields = {key: value for key, value in fields.items() if key not in ("model_type", "dtype")}
    other = cls(cls.config_class(**fields))
    missing, unexpected = other.load_state_dict(published_state(model), strict=False)
    assert not unexpected, unexpected
    assert all("position_ids" in key for key in missing), missing
    return other


def of_ours(model: Module, batch: Batch) -> Tensor:
    """Returns the logits of our model."""
    return model(batch.input_ids, batch.mask)


def of_theirs(model: Module, batch: Batch) -> Tensor:
    """Returns the logits of transformers' model."""
    return model(input_ids=batch.input_ids, attention_mask=batch.mask.long()).logits


class Step:
    """One optimizer step of either model. The gradients of several passes are added up."""

    def __init__(self, model: Module, call: Callable[[Module, Batch], Tensor], precision: str = "fp32") -> None:
        self.model, self.call, self.machine = model.train(), call, choose_machine("cpu", precision)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def __call__(self, *passes: Batch) -> None:
        size = sum(len(batch.labels) for batch in passes)
        for batch in passes:
            with self.machine.autocast():
                logits = self.call(self.model, batch)
            (torch.nn.functional.cross_entropy(logits.float(), batch.labels) * (len(batch.labels) / size)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------------- the batches


def real_reviews(folder: str, length: int, count: int = REVIEWS) -> Corpus:
    """Returns the first reviews of the training file, as at most `length` tokens each."""
    frame = load_reviews(find_file(Path(folder), LABELED))[:count]
    tokenizer = train_tokenizer("wordpiece", frame["review"], 8000)
    return Corpus.from_rows(tokenizer.encode(frame["review"], length), frame["sentiment"], tokenizer.pad_id)


def random_batches(corpus: Corpus, batch: int) -> list[Batch]:
    """Returns all reviews in batches of random order, as the other library's trainer makes them."""
    rows = np.random.default_rng(0).permutation(len(corpus))
    return [corpus.batch(rows[at : at + batch]) for at in range(0, len(rows), batch)]


def bucketed_steps(corpus: Corpus, batch: int, limit: int) -> list[list[Batch]]:
    """Returns the passes of each step over all reviews, as train.py makes them. limit: tokens in a pass."""
    order = shuffled_order(corpus.lengths, batch, seed=0, epoch=0)
    return [list(step_batches(corpus, None, [rows], number=0, num_splits=1, tokens_per_pass=limit)) for rows in order]


def all_steps(step: Step, corpus: Corpus, batch: int) -> Callable[[], Any]:
    """Returns a function that runs `step` on all reviews."""
    steps = bucketed_steps(corpus, batch, tokens_per_pass(step.model, step.machine))
    return lambda: [step(*passes) for passes in steps]


# ------------------------------------------------------------------------------------------------------- measurement


def seconds(run: Callable[[], Any]) -> float:
    """Returns the wall-clock time of run()."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def alternate(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median time of each run, in seconds; the first round is a warm-up.

    On a machine without bf16, --precision auto is fp32 and `ours, auto` is left out.
    """
    if choose_machine("cpu", "auto").dtype == torch.float32:
        runs = {name: run for name, run in runs.items() if "auto" not in name}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def memory(step: Step, batch: Batch) -> int:
    """Returns the peak of all tensors that a step makes, in MiB."""
    with Live() as live:
        step(batch)
    return round(live.peak / 2**20)


def row(
    work: str, medians: dict[str, float], peer: str, reviews: int, memory: dict[str, int] | None = None
) -> dict[str, Any]:
    """Prints and returns the speeds of one kind of work and their ratios to the other library's."""
    speeds = {name: round(reviews / value, 2) for name, value in medians.items()}
    ratios = {f"ratio {name}": round(medians[peer] / value, 2) for name, value in medians.items() if name != peer}
    result = {"work": work, **speeds, **ratios, **(memory or {})}
    print(json.dumps(result), flush=True)
    return result


# -------------------------------------------------------------------------------------------------------- the works


def finetune(folder: str, length: int, repeats: int) -> dict[str, Any]:
    """Trains all weights of BERT."""
    torch.manual_seed(0)
    model = Bert(BertConfig(**BERT))
    corpus = real_reviews(folder, length)
    plain, peer = random_batches(corpus, BATCH), Step(theirs_like(model), of_theirs)
    runs = {
        "transformers": lambda: [peer(batch) for batch in plain],
        "ours": all_steps(Step(model, of_ours), corpus, BATCH),
        "ours, auto": all_steps(Step(model, of_ours, "auto"), corpus, BATCH),
    }
    return row(f"fine-tuning, length {length}", alternate(runs, repeats), "transformers", REVIEWS)


def lora(folder: str, length: int, repeats: int) -> dict[str, Any]:
    """Trains LoRA on DeBERTa."""
    theirs = huggingface_peft()
    torch.manual_seed(0)
    model = Deberta(DebertaConfig(**XSMALL))
    config = theirs.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, modules_to_save=["pooler", "classifier"])
    peer = Step(theirs.get_peft_model(theirs_like(model), config), of_theirs)
    ours_peft.apply(model, "lora", rank=8, alpha=16.0)
    corpus = real_reviews(folder, length, REVIEWS // 2)
    plain = random_batches(corpus, BATCH // 2)
    mine, mixed = Step(model, of_ours), Step(model, of_ours, "auto")
    runs = {
        "peft": lambda: [peer(batch) for batch in plain],
        "ours": all_steps(mine, corpus, BATCH // 2),
        "ours, auto": all_steps(mixed, corpus, BATCH // 2),
    }
    longest = max(plain, key=lambda batch: batch.input_ids.size(1))
    used = {f"memory {name}": memory(step, longest) for name, step in (("peft", peer), ("ours", mine), ("auto", mixed))}
    return row(f"DeBERTa LoRA, length {length}", alternate(runs, repeats), "peft", REVIEWS // 2, used)


def score(folder: str, length: int, repeats: int) -> dict[str, Any]:
    """Computes logits with BERT."""
    torch.manual_seed(0)
    model = Bert(BertConfig(**BERT)).eval()
    peer, corpus = theirs_like(model).eval(), real_reviews(folder, length)
    in_order = [corpus.batch(np.arange(at, at + BATCH)) for at in range(0, len(corpus), BATCH)]

    def sorted_passes(precision: str) -> Callable[[], None]:
        machine = choose_machine("cpu", precision)
        passes = [corpus.batch(rows) for rows in sorted_order(corpus.lengths, tokens_per_pass(model, machine))]

        def run() -> None:
            with machine.autocast():
                for batch in passes:
                    of_ours(model, batch)

        return run

    runs = {
        "transformers": lambda: [of_theirs(peer, batch) for batch in in_order],
        "ours": sorted_passes("fp32"),
        "ours, auto": sorted_passes("auto"),
    }
    with torch.inference_mode():
        return row(f"scoring, length {length}", alternate(runs, repeats), "transformers", REVIEWS)


def quantize_theirs(peer: Module) -> None:
    """Replaces the linear layers of transformers' backbone by bitsandbytes' 8-bit layers."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    for name, module in list(peer.named_modules()):
        if isinstance(module, Linear) and name.startswith("deberta."):
            small = Linear8bitLt(module.in_features, module.out_features, has_fp16_weights=False, threshold=6.0)
            small.weight = Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
            small.bias = module.bias
            peer.set_submodule(name, small.to("cpu"))


def int8(folder: str, length: int, repeats: int) -> dict[str, Any]:
    """Trains LoRA on an 8-bit DeBERTa."""
    theirs = huggingface_peft()
    torch.manual_seed(0)
    model = Deberta(DebertaConfig(**BASE))
    peer = theirs_like(model)
    quantize_theirs(peer)
    config = theirs.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, modules_to_save=["pooler", "classifier"])
    peer = Step(theirs.get_peft_model(peer, config), of_theirs)
    ours_peft.apply(quantize_int8(model), "lora", rank=8, alpha=16.0)
    mine, mixed = Step(model, of_ours), Step(model, of_ours, "auto")
    batch = real_reviews(folder, length).batch(np.arange(4))
    runs = {"bitsandbytes": lambda: peer(batch), "ours": lambda: mine(batch), "ours, auto": lambda: mixed(batch)}
    return row(f"8-bit LoRA step, 4 x {length}", alternate(runs, repeats), "bitsandbytes", 4)


WORKS = {
    "finetune-512": (finetune, 512),
    "finetune-256": (finetune, 256),
    "lora-512": (lora, 512),
    "score-512": (score, 512),
    "int8": (int8, 128),
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows to a file; rows of other works that it contains are kept."""
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [old for old in before if old["work"] not in {new["work"] for new in rows}] + rows
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers")}
    machine = str(choose_machine("cpu", "fp32"))
    path.write_text(json.dumps({"machine": machine, **versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("work", nargs="*", default=list(WORKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    rows = [WORKS[work][0](given.folder, WORKS[work][1], given.repeats) for work in given.work or WORKS]
    if given.out:
        write_rows(Path(given.out), rows)
