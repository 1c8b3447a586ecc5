"""Ours against transformers, peft and bitsandbytes, on the lengths that IMDB has. One process, alternating, medians.

    pip install transformers peft bitsandbytes scikit-learn
    python tests/bench/peers.py IMDB_FOLDER [WORK …] [--repeats N] [--out FILE.json]

WORK: finetune-512, finetune-256 (6-layer BERT, 384 wide), lora-512 (DeBERTa-v3-xsmall's shape, LoRA on query and
value), score-512 (the same BERT, without gradients), int8 (LoRA on an 8-bit DeBERTa-v3-base shape, 4 × 128).
Default: all. Same weights and same optimizer on both sides. The peers pad a random batch to its longest review, as
their trainer does; ours buckets, as train.py does. `ours` is fp32, `ours, auto` what --precision auto chooses here.
Speeds are reviews a second; `memory` is the most that tensors took in one step beside weights, in MiB.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import peft as ours_peft  # the folder of this project; huggingface's package is imported below, under its own path
from data import LABELED, find_file
from data.batches import Corpus, shuffled_order, sorted_order, step_batches
from data.imdb import load_reviews
from data.tokenization import train_tokenizer
from eval import places_at_once
from nn.bert import Bert, BertConfig
from nn.checkpoint import published_state
from nn.deberta import Deberta, DebertaConfig
from nn.memory import Live
from nn.quant import quantize_int8
from nn.runtime import choose_machine, keep_freed_memory

REVIEWS, BATCH = 48, 16  # LoRA: half of each
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


def huggingface_peft():
    """The installed package called peft, which this project's folder hides: from here on, `import peft` means it. What
    was imported of ours stays as it is."""
    root = str(Path(__file__).parent.parent.parent)
    if Path(sys.modules["peft"].__file__).is_relative_to(root):
        for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
            del sys.modules[name]
        sys.path[:] = [path for path in sys.path if path not in ("", root)]
    import peft

    return peft


def real_reviews(folder: str, length: int, count: int = REVIEWS) -> Corpus:
    frame = load_reviews(find_file(Path(folder), LABELED))[:count]
    tokenizer = train_tokenizer("wordpiece", frame["review"], 8000)
    return Corpus.from_rows(tokenizer.encode(frame["review"], length), frame["sentiment"], tokenizer.pad_id)


def theirs_like(model: torch.nn.Module) -> torch.nn.Module:
    """transformers' model with the same config and weights."""
    import transformers

    from nn.checkpoint import write_config

    fields = json.loads(json.dumps(write_config(model)))  # tuples become lists
    name = fields.pop("architectures")[0]
    cls = getattr(transformers, name)
    other = cls(cls.config_class(**{key: value for key, value in fields.items() if key not in ("model_type", "dtype")}))
    missing, surplus = other.load_state_dict(published_state(model), strict=False)
    assert not surplus, surplus
    assert all("position_ids" in key for key in missing), missing
    return other


class Step:
    """One optimizer step on a batch, ours or theirs; on the gradients of several passes where it comes in parts."""

    def __init__(self, model, call, precision: str = "fp32") -> None:
        self.model, self.call, self.machine = model.train(), call, choose_machine("cpu", precision)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def __call__(self, *passes) -> None:
        size = sum(len(batch.labels) for batch in passes)
        for batch in passes:
            with self.machine.autocast():
                logits = self.call(self.model, batch)
            (torch.nn.functional.cross_entropy(logits.float(), batch.labels) * (len(batch.labels) / size)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def of_ours(model, batch):
    return model(batch.input_ids, batch.mask)


def of_theirs(model, batch):
    return model(input_ids=batch.input_ids, attention_mask=batch.mask.long()).logits


def seconds(run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def alternate(runs: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each; the first round warms up. Without bf16, `auto` is fp32 and left out."""
    if choose_machine("cpu", "auto").dtype == torch.float32:
        runs = {name: run for name, run in runs.items() if "auto" not in name}
    times = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def memory(step, batch) -> int:
    with Live() as live:
        step(batch)
    return round(live.peak / 2**20)


def row(work: str, medians: dict[str, float], peer: str, reviews: int, **more) -> dict:
    speeds = {name: round(reviews / value, 2) for name, value in medians.items()}
    ratios = {f"ratio {name}": round(medians[peer] / value, 2) for name, value in medians.items() if name != peer}
    result = {"work": work, **speeds, **ratios, **more}
    print(json.dumps(result), flush=True)
    return result


def random_batches(corpus: Corpus, batch: int) -> list:
    rows = np.random.default_rng(0).permutation(len(corpus))
    return [corpus.batch(rows[at : at + batch]) for at in range(0, len(rows), batch)]


def steps_of(step: Step, corpus: Corpus, batch: int):
    """All steps over the reviews in bucketed batches, cut into passes as train.py does."""
    bucketed, places = shuffled_order(corpus.lengths, batch, seed=0, epoch=0), places_at_once(step.model, step.machine)
    passes = [list(step_batches(corpus, None, [part], 0, 1, places)) for part in bucketed]
    return lambda: [step(*some) for some in passes]


def finetune(folder: str, length: int, repeats: int) -> dict:
    torch.manual_seed(0)
    model = Bert(BertConfig(**BERT))
    corpus = real_reviews(folder, length)
    plain, peer = random_batches(corpus, BATCH), Step(theirs_like(model), of_theirs)
    runs = {
        "transformers": lambda: [peer(batch) for batch in plain],
        "ours": steps_of(Step(model, of_ours), corpus, BATCH),
        "ours, auto": steps_of(Step(model, of_ours, "auto"), corpus, BATCH),
    }
    return row(f"fine-tuning, length {length}", alternate(runs, repeats), "transformers", REVIEWS)


def lora(folder: str, length: int, repeats: int) -> dict:
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
        "ours": steps_of(mine, corpus, BATCH // 2),
        "ours, auto": steps_of(mixed, corpus, BATCH // 2),
    }
    longest = max(plain, key=lambda batch: batch.input_ids.size(1))
    used = {f"memory {name}": memory(step, longest) for name, step in (("peft", peer), ("ours", mine), ("auto", mixed))}
    return row(f"DeBERTa LoRA, length {length}", alternate(runs, repeats), "peft", REVIEWS // 2, **used)


def score(folder: str, length: int, repeats: int) -> dict:
    torch.manual_seed(0)
    model = Bert(BertConfig(**BERT)).eval()
    peer, corpus = theirs_like(model).eval(), real_reviews(folder, length)
    in_order = [corpus.batch(np.arange(at, at + BATCH)) for at in range(0, len(corpus), BATCH)]

    def ranked(precision: str):
        machine = choose_machine("cpu", precision)
        order = sorted_order(corpus.lengths, places_at_once(model, machine))
        parts = [corpus.batch(rows) for rows in order]

        def run() -> None:
            with machine.autocast():
                for batch in parts:
                    of_ours(model, batch)

        return run

    runs = {
        "transformers": lambda: [of_theirs(peer, batch) for batch in in_order],
        "ours": ranked("fp32"),
        "ours, auto": ranked("auto"),
    }
    with torch.inference_mode():
        return row(f"scoring, length {length}", alternate(runs, repeats), "transformers", REVIEWS)


def int8(folder: str, length: int, repeats: int) -> dict:
    import bitsandbytes

    theirs = huggingface_peft()
    torch.manual_seed(0)
    model = Deberta(DebertaConfig(**BASE))
    peer = theirs_like(model)
    for name, module in list(peer.named_modules()):
        if isinstance(module, torch.nn.Linear) and name.startswith("deberta."):
            small = bitsandbytes.nn.Linear8bitLt(
                module.in_features, module.out_features, has_fp16_weights=False, threshold=6.0
            )
            small.weight = bitsandbytes.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
            small.bias = module.bias
            peer.set_submodule(name, small.to("cpu"))
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
    if given.out:  # rows of other works, measured before, stay
        before = json.loads(Path(given.out).read_text())["rows"] if Path(given.out).exists() else []
        rows = [old for old in before if old["work"] not in {new["work"] for new in rows}] + rows
        versions = {name: __import__(name).__version__ for name in ("torch", "transformers")}
        machine = str(choose_machine("cpu", "fp32"))
        Path(given.out).write_text(json.dumps({"machine": machine, **versions, "rows": rows}, indent=1) + "\n")
