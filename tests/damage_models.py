"""The files of models for tests/damage.py: checkpoints, adapters, word vectors, and run folders."""

import gzip
import json
import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # layers import it when they are built; here once, not in each child
from conftest import adapt, tiny, token_batch
from damage import Format, damage_bytes
from safetensors.torch import load_file, save_file

import peft
from data.checked import read_json
from data.demo import reviews
from data.files import write_json, write_tensors
from data.hub import ADAPTER, ADAPTER_CONFIG, BIN, CONFIG, ENCODER, INDEX, MEMBERS, WEIGHTS, adapter_options
from data.options import Tables
from data.resolve import resolve
from data.runs import Run
from data.tables import comparison
from data.tokenization import train_tokenizer
from data.word_vectors import WordVectors, save_vectors
from eval import Options, use_run
from losses import OBJECTIVES
from nn import MODELS
from nn.checkpoint import load_pretrained, save_pretrained
from nn.quant import quantize_int8
from nn.runtime import choose_machine
from nn.vectors import put_vectors, read_vectors
from peft import METHODS
from peft.classifier import load_checkpoint

# ------------------------------------------------------------------------------------------------------ checkpoints


def use_checkpoint(folder: Path) -> None:
    """Loads a checkpoint, also in 8 bits, and computes logits."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    model = load_pretrained(folder)
    print(model(*token_batch([5, 3])), model.config.labels)
    load_pretrained(folder, model.config.labels, quantize="int8")


def config_of(name: str) -> Format:
    """Returns the format `config.json` of a model."""
    return Format(lambda folder: save_pretrained(tiny(name), folder), (CONFIG,), use_checkpoint, deep_config)


def deep_config(folder: Path, stream: random.Random) -> bool:
    """Sets a field of a config to a value that is large, or that other fields contradict."""
    config = read_json(folder / CONFIG)
    numbers = [name for name, value in config.items() if isinstance(value, int | float)]
    config[stream.choice(numbers)] = stream.choice((0, 1, 2, 5, 7, -3, 10**6, 10**9, 2**63, 1e-300, 1e300, 0.999999))
    if stream.random() < 0.3:
        names = ("\x1b[2Jgood", "a\nb", "", "good", "\u202egood", "x" * 3000, "\ud800")
        config["id2label"] = {str(k): stream.choice(names) for k in range(stream.choice((1, 2, 3)))}
    write_text(folder / CONFIG, json.dumps(config))
    return True


def write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def make_int8(folder: Path) -> None:
    save_pretrained(quantize_int8(tiny("bert")), folder)


def other_tensors(folder: Path, stream: random.Random) -> bool:
    """Gives a tensor of a checkpoint another shape, dtype or value."""
    tensors = load_file(folder / WEIGHTS)
    name = stream.choice(sorted(tensors))
    change: Callable[[torch.Tensor], torch.Tensor] = stream.choice((
        lambda t: t.to(torch.float8_e4m3fn), lambda t: t.to(torch.complex64), lambda t: t.to(torch.int64),
        lambda t: t.flatten()[0].clone(), lambda t: t[..., :0].clone(), lambda t: t.double() * 1e300,
        lambda t: t * float("nan"), lambda t: t.to(torch.bool), lambda t: t[None].clone(), lambda t: t.to(torch.uint8),
    ))  # fmt: skip
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / WEIGHTS)
    return True


def make_shards(folder: Path) -> None:
    save_pretrained(tiny("bert"), folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    where = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        save_file({name: tensors[name] for name in names}, folder / f"model-0000{number}-of-00002.safetensors")
        where |= dict.fromkeys(names, f"model-0000{number}-of-00002.safetensors")
    write_json(folder / INDEX, {"metadata": {"total_size": 1}, "weight_map": where})


def other_index(folder: Path, stream: random.Random) -> bool:
    """Lists other files in an index of shards."""
    index = read_json(folder / INDEX)
    other = stream.choice(
        ("../x.safetensors", "/etc/passwd", CONFIG, ".", "", "\x1b[2J", "a/../" + WEIGHTS, 5, None, [])
    )
    index["weight_map"][stream.choice(sorted(index["weight_map"]))] = other
    write_json(folder / INDEX, stream.choice((index, {}, {"weight_map": {}}, {"weight_map": [other]})))
    return True


def make_bin(zipped: bool) -> Callable[[Path], None]:
    """Returns a function that writes a checkpoint in one of torch's two formats."""

    def make(folder: Path) -> None:
        save_pretrained(tiny("bert"), folder)
        save_bin(folder, dict(load_file(folder / WEIGHTS)), zipped)
        (folder / WEIGHTS).unlink()

    return make


def save_bin(folder: Path, value: Any, zipped: bool) -> None:
    torch.save(value, folder / BIN, _use_new_zipfile_serialization=zipped)


def nested(depth: int) -> Any:
    """Returns a tuple that contains a tuple twice, and so on: 2^depth leaves in little memory."""
    value: Any = ()
    for _ in range(depth):
        value = (value, value)
    return value


def other_objects(zipped: bool) -> Callable[[Path, random.Random], bool]:
    """Returns a function that replaces a tensor, or all, of a pickled checkpoint by other objects."""

    def change(folder: Path, stream: random.Random) -> bool:
        state = torch.load(folder / BIN, weights_only=True)
        name = stream.choice(sorted(state))
        old = state[name]
        state[name] = stream.choice((
            {"a": {"b": old}}, 5, None, "text", [old], old.to_sparse(), old.to(torch.complex64), old.to("meta"),
            old.flatten()[:1].expand(10**12), old.flatten()[:1].expand(old.numel()).view(old.shape),
            old.to_sparse_csr() if old.dim() == 2 else old.to_sparse(), old.to(torch.int64), old.to(torch.float8_e5m2),
            torch.nn.Parameter(old), old[..., :0], old.double() * 1e300, nested(40),
        ))  # fmt: skip
        extra = old.flatten()[:1].expand(stream.choice((10**6, 10**12)))
        changed = (state, [state], {"model": state}, OrderedDict(state), state | {"bert.cls.extra": extra}, 5,
                   {5: old}, {"\x1b[2Jx": old}, {("a",): old})  # fmt: skip
        save_bin(folder, stream.choice(changed), zipped)
        return True

    return change


# --------------------------------------------------------------------------------------------------------- adapters


def make_adapter(method: str, **options: Any) -> Callable[[Path], None]:
    """Returns a function that writes an adapter with its backbone in the folder `base`."""

    def make(folder: Path) -> None:
        model = tiny("bert")
        save_pretrained(model, folder / "base")
        peft.save_adapter(adapt(model, method, **options), folder, "base")

    return make


def make_peft_adapter(folder: Path) -> None:
    """Writes LoRA as huggingface/peft does: patterns for names, layers by number, no class names."""
    make_adapter("lora")(folder)
    own = read_json(folder / ADAPTER_CONFIG)
    config = {
        "alpha_pattern": {"layer.0.attention.self.query": 4}, "auto_mapping": None, "base_model_name_or_path": "base",
        "bias": "none", "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "layers_pattern": "layer", "layers_to_transform": None, "lora_alpha": 16,
        "lora_dropout": 0.1, "modules_to_save": ["classifier", "score"], "peft_type": "LORA", "r": own["r"],
        "rank_pattern": {}, "revision": None, "target_modules": r".*\.(query|value)", "task_type": "SEQ_CLS",
        "use_dora": False, "use_rslora": False,
    }  # fmt: skip
    write_json(folder / ADAPTER_CONFIG, config)


def use_adapter(folder: Path) -> None:
    """Loads an adapter, once to use it and once to train it, and computes logits."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    model = peft.load_adapted(folder)
    print(model(*token_batch([5, 3])), model.config.labels, adapter_options(folder))
    again = peft.load_adapted(folder, labels=model.config.labels, trainable=True)
    print(again(*token_batch([5, 3])))


def other_patterns(folder: Path, stream: random.Random) -> bool:
    """Sets patterns, sizes and the backbone of an adapter's config."""
    config = read_json(folder / ADAPTER_CONFIG)
    patterns = (
        "(a+)+$",
        "(.*)*x",
        "(",
        ".*" * 12 + "x",
        "(.|.)" * 25 + "x",
        "(?i).*",
        "a{99999999999}",
        "[[a]",
        "x" * 9999,
    )
    pattern = stream.choice(patterns)
    config |= stream.choice((
        {"target_modules": pattern}, {"exclude_modules": pattern}, {"rank_pattern": {pattern: 3}},
        {"alpha_pattern": {pattern: 3.0}}, {"layers_pattern": [pattern], "layers_to_transform": [0]},
        {"modules_to_save": [pattern]}, {"r": 10**7}, {"r": 10**9}, {"lora_alpha": 1e300},
        {"num_virtual_tokens": 10**9},
        {"encoder_hidden_size": 10**9}, {"base_model_name_or_path": "../damaged/base"}, {"revision": "../../x"},
        {"base_model_name_or_path": stream.choice(("~nobody/x", "a" * 300, "\0", "x/../..", 5, "a/b@../../x"))},
        {"rank_pattern": {"query": 10**8}}, {"method": stream.choice(("prompt", "lora", "x", 5))}, {"pool": "x"},
        {"id2label": {"0": "\x1b[2J", "1": "b"}}, {"id2label": {"0": "a", "1": "b", "2": "c"}},
    ))  # fmt: skip
    write_json(folder / ADAPTER_CONFIG, config)
    return True


# ------------------------------------------------------------------------------------------------------ word vectors

WORDS = ["the", "film", "good", "bad", "plot"]


def vectors_of_words() -> WordVectors:
    return WordVectors(WORDS, torch.randn(len(WORDS), 3, generator=torch.Generator().manual_seed(0)))


def use_vectors(folder: Path) -> None:
    """Reads word vectors and copies them into a table."""
    (path,) = (path for path in folder.iterdir() if path.is_file())
    print(put_vectors(torch.randn(5, 3), {word: k for k, word in enumerate(WORDS)}, read_vectors(path, WORDS)))


def make_vectors(name: str) -> Callable[[Path], None]:
    """Returns a function that writes a file of word vectors, in the format of its name."""

    def make(folder: Path) -> None:
        found = vectors_of_words()
        rows = [
            f"{word} {' '.join(f'{x:.4f}' for x in row)}\n"
            for word, row in zip(found.words, found.vectors.tolist(), strict=True)
        ]
        text = "".join(rows).encode()
        binary = b"5 3\n" + b"".join(w.encode() + b" " + v.numpy().tobytes() for w, v in zip(*found, strict=True))
        if name.endswith(".safetensors"):
            save_vectors(folder / name, found)
        else:
            data = {"v.txt": text, "v.vec": b"5 3\n" + text, "v.txt.gz": gzip.compress(text), "v.bin": binary}[name]
            (folder / name).write_bytes(data)

    return make


def other_vectors(folder: Path, stream: random.Random) -> bool:
    """Writes a file of word vectors that announces more than it contains."""
    (path,) = folder.iterdir()
    count, width = stream.choice((5, 0, 10**9, 10**40)), stream.choice((3, 0, 1, 10**6, 10**12))
    body = stream.choice((b"", b"a 1 2 3\n" * 5, b"x" * 3_000_000, b"good nan 1 2\n", b"good 1e39 1 2\n", b"\n" * 9000))
    data = b"%d %d\n" % (count, width) + body if stream.random() < 0.7 else body
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    if path.suffix == ".safetensors":
        words: Any = stream.choice((["a"], 5, None, {"a": 1}, [5] * 5, [["a"]] * 5, "abcde", WORDS))
        vectors = stream.choice((torch.zeros(5), torch.ones(5, 3).long(), torch.zeros(5, 0), torch.randn(5, 3) * 1e38))
        write_tensors(path, {"vectors": vectors}, {"format": "pt", "words": json.dumps(words)})
    return True


def old_pickle(table: Any) -> list[Any]:
    """Returns the values of the older project's file."""
    return [[[1, 2], [3]], table, {word: k for k, word in enumerate(WORDS)}]


def make_pickle3(folder: Path) -> None:
    values = old_pickle(vectors_of_words().vectors.double().numpy())
    (folder / "v.pickle3").write_bytes(pickle.dumps(values, protocol=3))


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def other_pickle(folder: Path, stream: random.Random) -> bool:
    """Writes a pickle of other objects, or operations that ask for much memory or time."""
    table = vectors_of_words().vectors
    chain: Any = ()
    for _ in range(60):
        chain = (chain,)
    values = stream.choice((
        old_pickle(table), old_pickle(table.double()), old_pickle(table[:1].expand(10**12, 3)),
        old_pickle(table.numpy().astype(object)), old_pickle(np.zeros((5, 3), "S3")), old_pickle(table.to_sparse()),
        old_pickle(Call(np.ndarray, (10**9, 3))), old_pickle(Call(np.ndarray, (10**15, 3))), [nested(40)],
        [{chain: 1}], [{nested(12): 1}], old_pickle(Call(np.dtype, "V2000000000")),
        [*old_pickle(table), Call(os.getcwd)], {"a": table}, old_pickle(table)[1:], old_pickle(table * float("nan")),
    ))  # fmt: skip
    data = pickle.dumps(values, protocol=stream.choice((2, 3, 4)))
    doubled = b"q\x00h\x00\x86" * 60  # a tuple that contains a tuple twice, and so on
    raw = (
        b"\x80\x03]r\xff\xff\xff\x7f.", b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f].", b"\x80\x03X\xff\xff\xff\xff.",
        b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fx.", b"\x80\x03\x8b\xff\xff\xff\x7fx.",
        b"\x80\x03(" + b"(" * 300_000 + b".",
        b"\x80\x03)" + b"\x85" * 300_000 + b".", b"\x80\x03})" + b"\x85" * 300_000 + b"Ns.",
        b"\x80\x03" + b"]" * 300_000 + b".",
        b"\x80\x03})" + doubled + b"Ns.", b"\x80\x03cnumpy\nndarray\nK\x05\x85R.", b"I" + b"9" * 10**6 + b"\n.",
        b"\x80\x04cbuiltins\nset\n)" + doubled + b"\x85\x85R.",
    )  # fmt: skip
    if stream.random() < 0.5:
        data = stream.choice(raw)
    (folder / "v.pickle3").write_bytes(damage_bytes(data, stream) if stream.random() < 0.2 else data)
    return True


# --------------------------------------------------------------------------------------------------------------- runs

TABLES = Tables(MODELS, METHODS, OBJECTIVES)


def make_run(folder: Path) -> None:
    """Writes a finished run over LoRA, as train.py does."""
    tokenizer = train_tokenizer("wordpiece", [text for _, text, _ in reviews("train")[:100]], 300)
    model = tiny("bert", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    arguments = "--model bert --weights none --data demo --max-length 16"
    settings, _ = resolve(arguments.split(), TABLES)
    values = {
        "options": settings.values(),
        "origins": settings.origins,
        "labels": ["negative", "positive"],
        "files": {},
    }
    run = Run.create(folder / "run", values)
    save_pretrained(model, run.best)
    tokenizer.save(run.tokenizer)
    run.log("epoch", epoch=1, train_acc=0.5, val_acc=0.5, seconds=3.0)
    scores = {"accuracy": 0.5, "count": 2}
    write_json(
        run.folder / "result.json", {"parameters": {"trained": 5, "total": 5}, "test": scores, "validation": scores}
    )


def use_a_run(folder: Path) -> None:
    """Labels a review with a run, and compares it, as eval.py does."""
    options = Options(run=(str(folder / "run"),), text="A good film.", device="cpu", explain="-")
    use_run(options, print, {"text": options.text})
    print(comparison([Run.open(folder / "run")]))


def other_options(folder: Path, stream: random.Random) -> bool:
    """Removes, adds or changes options of a run."""
    path = folder / "run" / CONFIG
    config = {name: value for name, value in read_json(path).items() if name not in ("sha256", "format")}
    options, name = config["options"], stream.choice(sorted(config["options"]))
    kind = stream.randrange(3)
    if kind == 0:
        del options[name]
    elif kind == 1:
        options["unknown\x1b[2J"] = 5
    else:
        options[name] = stream.choice((-1, 0, 10**20, "x", None, [], 1.5, True, float("nan"), "\x1b[2J", "../../x"))
    write_json(path, config)
    return True


def make_members(folder: Path) -> None:
    """Writes a checkpoint of two members, linear models."""
    tokenizer = train_tokenizer("wordlevel", [text for _, text, _ in reviews("train")[:100]], 60, 1)
    for name in ("one", "two"):
        save_pretrained(tiny("nb_linear", vocab_size=tokenizer.vocab_size), folder / name)
        tokenizer.save(folder / name)
    write_json(folder / "both" / MEMBERS, [{"weights": name, "factor": 0.5} for name in ("one", "two")])


def use_members(folder: Path) -> None:
    """Loads a checkpoint of two members, and scores a text."""
    scorer = load_checkpoint(str(folder / "both"), choose_machine("cpu", "fp32"))
    print(scorer.score_texts(["a wonderful film"], bar=False), scorer.labels)


# ----------------------------------------------------------------------------------------------------------- formats

VECTOR_FILES = ("v.txt", "v.vec", "v.txt.gz", "v.bin", "v.safetensors")
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER)
SHARDS = (INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
RUN_FILES = ("run/config.json", "run/result.json", "run/log.jsonl", "run/best/config.json", f"run/best/{WEIGHTS}")
FORMATS: dict[str, Format] = {
    **{f"config {name}": config_of(name) for name in MODELS},
    "model.safetensors": Format(config_of("bert").make, (WEIGHTS,), use_checkpoint, other_tensors),
    "int8": Format(make_int8, (CONFIG, WEIGHTS), use_checkpoint, other_tensors),
    "shards": Format(make_shards, SHARDS, use_checkpoint, other_index),
    "pytorch_model.bin": Format(make_bin(True), (BIN,), use_checkpoint, other_objects(True)),
    "legacy.bin": Format(make_bin(False), (BIN,), use_checkpoint, other_objects(False)),
    "adapter": Format(make_adapter("lora", dora=True), ADAPTER_FILES, use_adapter, other_patterns),
    "adapter of peft": Format(make_peft_adapter, ADAPTER_FILES, use_adapter, other_patterns),
    "virtual prefix": Format(make_adapter("prefix"), (*ADAPTER_FILES, ENCODER), use_adapter, other_patterns),
    "virtual p_tuning": Format(make_adapter("p_tuning"), (*ADAPTER_FILES, ENCODER), use_adapter, other_patterns),
    "virtual prompt": Format(make_adapter("prompt"), ADAPTER_FILES, use_adapter, other_patterns),
    "pickle3": Format(make_pickle3, ("v.pickle3",), use_vectors, other_pickle),
    **{f"vectors {name}": Format(make_vectors(name), (name,), use_vectors, other_vectors) for name in VECTOR_FILES},
    "members": Format(make_members, (f"both/{MEMBERS}",), use_members),
    "run": Format(make_run, RUN_FILES, use_a_run, other_options),
}
