"""The smallest damaged files of models that needed a check: each ends in one line that names the file."""

import gzip
import io
import json
import pickle
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import adapt, change_json, tiny
from damage_models import WORDS, make_run, make_shards, make_vectors, nested, old_pickle, vectors_of_words
from safetensors.torch import load_file, save_file

import eval as program
import peft
from data.checked import has_type, read_json
from data.files import write_json
from data.hub import ADAPTER, ADAPTER_CONFIG, BIN, CONFIG, ENCODER, INDEX, WEIGHTS, adapter_base
from data.pickles import check_pickle
from data.runs import Run
from data.tables import comparison
from nn import MODELS
from nn.checkpoint import load_pretrained, save_pretrained
from nn.configs import field_range
from nn.quant import quantize_int8
from nn.vectors import read_vectors
from peft.rules import pattern_problem


def refused(path: Path, message: str, use=load_pretrained) -> None:
    """Checks that use(path) raises a ValueError in one printable line that names the path."""
    with pytest.raises(ValueError, match=message) as caught:
        use(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 4000


# ---------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_a_config_has_a_range(name):
    numbers = {field.name for field in fields(MODELS[name].build.Config) if field.type in (int, float, int | None)}
    assert {field for field in numbers if field_range(field) is None} <= {"global_attn_every_n_layers"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", "12", "hidden_size = '12' must be a whole number"),
        ("hidden_size", 12.0, "must be a whole number"),
        ("hidden_size", True, "must be a whole number"),
        ("hidden_size", 10**20, "hidden_size 1.* is outside 1 … 16,777,216"),
        ("hidden_size", 10**6, "is not a multiple of num_heads|misshaped"),
        ("vocab_size", -1, "vocab_size -1 is outside"),
        ("num_hidden_layers", 10**6, "num_hidden_layers 1000000 is outside"),
        ("num_hidden_layers", 900, r"num_hidden_layers 900, but there are \d+ tensors"),
        ("num_attention_heads", 0, "num_attention_heads 0 is outside"),
        ("num_attention_heads", 5, "hidden_size 12 is not a multiple of num_heads 5"),
        ("hidden_dropout_prob", 1, r"hidden_dropout_prob 1 is outside \[0, 1\)"),
        ("hidden_dropout_prob", -0.5, r"outside \[0, 1\)"),
        ("pad_token_id", 61, "pad_token_id 61 is outside the vocabulary of 61 tokens"),
        ("pad_token_id", -1, "pad_token_id -1 is outside"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps = nan must be a finite number"),
        ("layer_norm_eps", 10**400, "must be a finite number"),
        ("hidden_act", ["gelu"], "hidden_act = .* must be text"),
        ("hidden_act", "\x1b[2J" * 100, "hidden_act has 400 characters"),
        ("model_type", {"a": "\x1b[31m"}, "model_type .* is not supported"),
        ("position_embedding_type", [], r"position_embedding_type = \[\] is not supported"),
        ("id2label", [], r"id2label \[\] does not map class numbers to names"),
        ("id2label", {"0": "\x1b[2J", "1": "good"}, "does not map class numbers to names"),
        ("id2label", {"0": "a\u202eb", "1": "good"}, "does not map class numbers to names"),
        ("id2label", {"0": "x" * 201, "1": "good"}, "does not map class numbers to names"),
        ("id2label", {"0": {}, "1": "good"}, "does not map class numbers to names"),
        ("id2label", {"9" * 5000: "a", "1": "good"}, "does not map class numbers to names"),
    ],
)
def test_fields_of_a_config(field, value, message, checkpoint):
    change_json(checkpoint / CONFIG, **{field: value})
    refused(checkpoint, message)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("deberta", "num_attention_heads", 5, "hidden_size 12 is not a multiple of num_heads 5"),
        ("deberta", "position_buckets", 1, "both must be at least 2"),
        ("deberta", "conv_kernel_size", 4, "conv_kernel_size 4 must be odd"),
        ("deberta", "pos_att_type", 5, "pos_att_type = 5 must be a list"),
        ("modernbert", "rope_parameters", {"full_attention": 5}, "full_attention = 5 must be an object"),
        ("modernbert", "rope_parameters", {"full_attention": {"rope_theta": "x"}}, "rope_theta = 'x' must be"),
        ("modernbert", "rope_parameters", {"full_attention": {"rope_theta": 0}}, "is outside 1 … 1e12"),
        ("modernbert", "layer_types", [5, {}], "layer_types = .* is not supported"),
        ("roberta", "pad_token_id", None, "pad_token_id = None must be a whole number"),
        ("cnn", "widths", ",".join(["1"] * 200), "widths has 399 characters"),
        ("capsule_lstm", "num_capsules", 10**7, "num_capsules 10000000 is outside"),
        ("cnn_lstm", "window", 10**7, "window 10000000 is outside"),
        ("lstm", "bidirectional", 1, "bidirectional = 1 must be true or false"),
    ],
)
def test_fields_of_other_models(name, field, value, message, tmp_path):
    save_pretrained(tiny(name), tmp_path)
    change_json(tmp_path / CONFIG, **{field: value})
    refused(tmp_path, message)


def test_joiners_are_part_of_a_class_name(checkpoint):
    change_json(checkpoint / CONFIG, id2label={"0": "می\u200cپسندم", "1": "bad"})
    assert load_pretrained(checkpoint).config.labels[0] == "می\u200cپسندم"


@pytest.mark.parametrize("value", [5, [], "x", None])
def test_a_config_that_is_no_object(value, checkpoint):
    write_json(checkpoint / CONFIG, value)
    with pytest.raises(ValueError, match="must be an object"):
        load_pretrained(checkpoint)


# ---------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.float8_e4m3fn), "does not hold floating point numbers"),
        (lambda t: t.double() * 1e300, "holds NaN or infinity"),
        (lambda t: t.flatten()[0].clone(), "misshaped|has no row"),
        (lambda t: t[:0].clone(), "misshaped|has no row"),
    ],
)
@pytest.mark.parametrize("name", ["classifier.weight", "bert.embeddings.word_embeddings.weight"])
def test_tensors_of_another_kind(change, message, name, checkpoint):
    tensors = load_file(checkpoint / WEIGHTS)
    save_file(tensors | {name: change(tensors[name])}, checkpoint / WEIGHTS)
    refused(checkpoint, message)


def test_names_of_tensors_cannot_change_the_terminal(checkpoint):
    save_file(load_file(checkpoint / WEIGHTS) | {"\x1b[2J": torch.zeros(1)}, checkpoint / WEIGHTS)
    refused(checkpoint, r"surplus \\x1b\[2J")


@pytest.mark.parametrize("spoil", [lambda s: s[:1].clone(), lambda s: s.long(), lambda s: s * float("nan")])
def test_scales_of_8_bit_weights(spoil, tmp_path):
    save_pretrained(quantize_int8(tiny("bert")), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(name for name in tensors if name.endswith("_scale"))
    save_file(tensors | {name: spoil(tensors[name])}, tmp_path / WEIGHTS)
    refused(tmp_path, "floating point numbers|holds NaN or infinity")


def test_nan_is_not_quantized(checkpoint):
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["bert.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(tensors, checkpoint / WEIGHTS)
    refused(checkpoint, "holds NaN or infinity", lambda folder: load_pretrained(folder, quantize="int8"))


@pytest.mark.parametrize("name", [5, None, "../x.safetensors", "/etc/passwd", CONFIG, "a\\b.safetensors", "\x1b[2J"])
def test_an_index_lists_files_of_its_folder(name, tmp_path):
    make_shards(tmp_path)
    write_json(tmp_path / INDEX, {"weight_map": {"a": name}})
    refused(tmp_path, "has no weight_map|is not the name of a .safetensors file")


@pytest.mark.parametrize("index", [{}, [], {"weight_map": {}}, {"weight_map": ["a"]}])
def test_an_index_without_files(index, tmp_path):
    make_shards(tmp_path)
    write_json(tmp_path / INDEX, index)
    refused(tmp_path, "has no weight_map|must be an object")


# ---------------------------------------------------------------------------------------------------------- pickles


def with_bin(folder: Path, value: object, zipped: bool = True) -> Path:
    (folder / WEIGHTS).unlink(missing_ok=True)
    torch.save(value, folder / BIN, _use_new_zipfile_serialization=zipped)
    return folder


ONE = torch.ones(1)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        {"a": ONE.expand(10**12)}, {"a": ONE[None].to_sparse()}, {"a": ONE.to("meta")}, {5: ONE}, {("a",): ONE},
        {"a": {"b": ONE}}, {"a": 5}, [ONE], 5, {"\x1b[2J": ONE, 5: ONE},
    ],
)  # fmt: skip
def test_a_pickle_of_other_objects(value, zipped, checkpoint):
    refused(with_bin(checkpoint, value, zipped), "is not a plain tensor|contains|was refused")


def test_a_compressed_archive_is_not_unpacked(checkpoint):
    with_bin(checkpoint, {"a": ONE})
    with zipfile.ZipFile(checkpoint / BIN) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(checkpoint / BIN, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    refused(checkpoint, "it is compressed, which torch.save never does")


def test_a_legacy_file_without_its_numbers_is_refused(checkpoint):
    with_bin(checkpoint, {"a": ONE}, zipped=False)
    data = (checkpoint / BIN).read_bytes()
    start = data.rindex(b"\x80\x02]")  # the keys of the storages
    (checkpoint / BIN).write_bytes(data[:start] + b"\x80\x02].")
    refused(checkpoint, "it lacks the numbers of 1 tensors")


def test_tied_tensors_are_not_multiplied_in_the_cache(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state, large = dict(load_file(checkpoint / WEIGHTS)), torch.zeros(10**5)
    with_bin(checkpoint, state | {f"cls.extra.{number}": large for number in range(50)})
    load_pretrained(checkpoint)
    assert not (tmp_path / "cache").exists()


DOUBLED = b"q\x00h\x00\x86" * 60  # a tuple that contains a tuple twice, 60 times: 2^60 leaves


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x03})" + DOUBLED + b"Ns.", "a tuple of 16 levels"),  # hashed as a key
        (b"\x80\x03})" + b"\x85" * 10**5 + b"Ns.", "a tuple of 51 levels"),  # overflows the stack
        (b"\x80\x03]r\xff\xff\xff\x7f.", "its memo entry 2,147,483,647 comes after 2 operations"),
        (b"\x80\x03cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.", "not callable"),  # memory without numbers
        (b"\x80\x03" + b"(" * 2_000_000, "it has more than 1,500,001 operations"),
        (b"\x80\x03]K\x05R.", "it calls something other than a function that it names"),
        (b"\x80\x03X\xff\xff\xff\xff.", "expected .* bytes"),
        (pickle.dumps([nested(20)], 3), "levels"),
        (pickle.dumps(old_pickle(torch.ones(1, 3).expand(5, 3)), 3), "is not a list with one matrix"),
        (pickle.dumps(old_pickle(vectors_of_words().vectors.numpy().astype("O")), 3), r"an array of O8"),
        (pickle.dumps({"a": 1}, 3), "is not a list with one matrix"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # some bytes differ between processes
)  # fmt: skip
def test_pickles_that_ask_for_time_or_memory(data, message, tmp_path):
    (tmp_path / "v.pickle3").write_bytes(data)
    refused(tmp_path / "v.pickle3", message, lambda path: read_vectors(path, WORDS))


@pytest.mark.parametrize("name", ["torch\nFloatTensor", "torch\nTensor", "torch\nFloatStorage", "builtins\nbytearray"])
def test_a_pickle_calls_no_class_of_any_size(name, tmp_path):
    """torch admits them; the numbers of such a tensor are what was in memory before."""
    given = name.replace("\n", " ")
    by_text = b"\x80\x02" + f"c{name}\n".encode() + b"J\xff\xff\xff\x0fK\x04\x86R."
    module, short = name.split("\n")
    on_stack = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, short))
    for data in (by_text, on_stack + b"\x93K\x04\x85R.", on_stack + b"\x93q\x000h\x00K\x04\x85\x81."):
        with pytest.raises(ValueError, match=f"^it calls {given}$"):
            check_pickle(io.BytesIO(data))


def test_arrays_of_an_old_pickle_keep_order_and_byte_order(tmp_path):
    table = vectors_of_words().vectors.double().numpy()
    for array in (table, table.astype(">f8"), table.copy(order="F"), table.astype("f4")):
        (tmp_path / "v.pickle3").write_bytes(pickle.dumps(old_pickle(array), 3))
        torch.testing.assert_close(read_vectors(tmp_path / "v.pickle3", WORDS).vectors, vectors_of_words().vectors)


# --------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture
def adapter(request, tmp_path: Path) -> Path:
    model = tiny("bert")
    save_pretrained(model, tmp_path / "base")
    peft.save_adapter(adapt(model, getattr(request, "param", "lora")), tmp_path, "base")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": 5}, "base_model_name_or_path = 5 must be text or null"),
        ({"base_model_name_or_path": "\x1b[2J"}, "is neither a folder nor a hub id"),
        ({"r": "2"}, "r = '2' must be a whole number"),
        ({"r": 10**9}, "r 1000000000 is outside"),
        ({"r": 10**6}, "does not fit adapter_model.safetensors"),
        ({"rank_pattern": {"query": 10**6}}, "does not fit adapter_model.safetensors"),
        ({"rank_pattern": "x"}, "must be an object"),
        ({"lora_alpha": None}, "lora_alpha = None must be a finite number"),
        ({"lora_alpha": 1e300}, "lora_alpha .* is outside"),
        ({"lora_dropout": 1.5}, "dropout 1.5 is outside"),
        ({"target_modules": "(a+)+$"}, "target_modules: the pattern .* repeats a group"),
        ({"exclude_modules": "(.*)*x"}, "exclude_modules: the pattern .* repeats a group"),
        ({"layers_pattern": ["("], "layers_to_transform": [0]}, "is not a regular expression"),
        ({"alpha_pattern": {"a{99999999999}": 1.0}}, "is not a regular expression"),
        ({"target_modules": 5}, "target_modules = 5 must be a list"),
        ({"target_modules": ["\x1b[2J"]}, r"none of its target_modules \(\\x1b\[2J\)"),
        ({"method": "prompt"}, "method 'prompt' does not fit peft_type LORA"),
        ({"peft_type": ["LORA"]}, "peft_type .* is not supported"),
        ({"layers_to_transform": 0.5}, "layers_to_transform = 0.5 must be"),
        ({"id2label": {"0": "\x1b[2J", "1": "b"}}, "does not map class numbers to names"),
        ({"x\x1b[2J": 5}, "settings are not supported"),
        ({"target_modules": None}, "names no target_modules; add the layers that it adapts"),
    ],
)
def test_fields_of_an_adapter(changes, message, adapter):
    change_json(adapter / ADAPTER_CONFIG, **changes)
    refused(adapter, message, peft.load_adapted)


@pytest.mark.parametrize("value", ["orthogonal", "eva", "gaussian", False])
def test_initializations_that_leave_the_backbone_are_read(value, adapter):
    batch = torch.tensor([[3, 5, 7]]), torch.ones(1, 3, dtype=torch.bool)
    expected = peft.load_adapted(adapter).eval()(*batch)
    change_json(adapter / ADAPTER_CONFIG, init_lora_weights=value, eva_config={"rho": 2.0} if value == "eva" else None)
    assert torch.equal(peft.load_adapted(adapter).eval()(*batch), expected)


@pytest.mark.parametrize(
    "pattern",
    [
        ".*" * 12 + "x",
        "(.|.)" * 25 + "x",
        "a?" * 30 + "a" * 30,
        "(?x)(a+) +",
        "x" * 2000,
        r"(\w|a)" * 25 + "x",
        "(a|ab|abc)" * 20 + "x",
        "(b()e|b()e)" * 25 + "x",
        "([ab]|b)" * 25 + "x",
        "|".join([".*" * 5 + "x"] * 50),
    ],
)
def test_patterns_that_take_long_are_refused(pattern):
    assert pattern_problem(pattern) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(query|value)", r"(?!classifier$).*",
        r".*encoder.*layer\.(0|1|2|3|4|5|6|7|8|9|10|11)\.attention\.self\.query",
        r".*layer.*(attention|intermediate).*(query|key|value|dense).*",
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:Wqkv|Wo|Wi).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:Wqkv|Wo|Wi)))",
        r"^(?!.*head).*dense$", r"bert\.encoder\.layer\.[0-9]+\..*", r"layers\.\d+\.(self_)?attn\.[qv]_proj",
    ],
)  # fmt: skip
def test_usual_patterns_are_used(pattern):
    assert pattern_problem(pattern) is None


def test_the_backbone_of_an_adapter_is_inside_its_folder_or_as_recorded(adapter):
    change_json(adapter / ADAPTER_CONFIG, base_model_name_or_path=f"../{adapter.name}/base")
    with pytest.raises(FileNotFoundError, match="is not found; name it with --base"):
        adapter_base(adapter)


@pytest.mark.parametrize("adapter", ["prefix", "p_tuning"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_hidden_size": 10**6}, r"prompt_encoder\.safetensors does not fit adapter_config\.json"),
        ({"encoder_hidden_size": "7"}, "must be a whole number or null"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens 0 is outside"),
        (
            {"encoder_hidden_size": None},
            r"encoder\.safetensors needs encoder_hidden_size, which adapter_config\.json lacks",
        ),
    ],
)
def test_fields_of_virtual_tokens(changes, message, adapter):
    change_json(adapter / ADAPTER_CONFIG, **changes)
    refused(adapter, message, lambda folder: peft.load_adapted(folder, trainable=True))


@pytest.mark.parametrize("adapter", ["prefix"], indirect=True)
@pytest.mark.parametrize(("file", "name"), [(ADAPTER, "prompt_embeddings"), (ENCODER, "down.weight")])
@pytest.mark.parametrize("spoil", [lambda t: t * float("nan"), lambda t: t[:0].clone(), lambda t: t.long()])
def test_tensors_of_virtual_tokens(file, name, spoil, adapter):
    tensors = load_file(adapter / file)
    save_file(tensors | {name: spoil(tensors[name])}, adapter / file)
    refused(adapter, "NaN or infinity|rows of|does not fit", lambda folder: peft.load_adapted(folder, trainable=True))


# ----------------------------------------------------------------------------------------------------- word vectors


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"5 1000000000000\n", "announces vectors of 1,000,000,000,000 numbers"),
        (b"5 0\n", "announces vectors of 0 numbers"),
        (b"9" * 5000 + b" 3\ngood 1 2 3\n", "its first line says"),
        (b"good 1 2 3" + b" " * (1 << 22), "has a line of more than"),
        (b"\n" * 200, "is not a file of word vectors"),
        (b"good 1e39 1 2\n", "1e39 is not a finite number"),
    ],
)
def test_word_vectors_that_announce_too_much(data, message, tmp_path):
    (tmp_path / "v.txt").write_bytes(data)
    refused(tmp_path / "v.txt", message, lambda path: read_vectors(path, WORDS))


def test_a_compressed_file_that_expands_without_end(tmp_path):
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(b"a 1 2 3\n" + b"\n" * 10**7))
    refused(tmp_path / "v.txt.gz", "expands to more than 100 times", lambda path: read_vectors(path, WORDS))


def test_a_small_binary_file_is_not_read_as_text(tmp_path):
    make_vectors("v.bin")(tmp_path)
    assert torch.equal(read_vectors(tmp_path / "v.bin", WORDS).vectors, vectors_of_words().vectors)


@pytest.mark.parametrize("words", [5, {"a": 1}, [5] * 5, "abcde", [["a"]] * 5])
def test_words_that_are_no_list(words, tmp_path):
    save_file({"vectors": torch.zeros(5, 3)}, tmp_path / "v.safetensors", {"words": json.dumps(words)})
    refused(tmp_path / "v.safetensors", "no matrix of word vectors with a list", lambda path: read_vectors(path, WORDS))


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path)
    change_json(tmp_path / "run" / CONFIG)  # without its seal
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": None}, "max_length = None must be a whole number"),
        ({"max_length": 0}, "--max-length 0 must be at least 1"),
        ({"max_length": -1}, "--max-length -1 is negative"),
        ({"quantize": 5}, "quantize = 5 must be text"),
        (
            {"unknown\x1b[2J": 5},
            r"unknown options unknown\\x1b\[2J; another version .*; check out the commit in this file, or",
        ),
        ({"model": "berd"}, "unknown model 'berd'"),
        ({"loss": ["ce"]}, "loss = .* must be text"),
    ],
)
def test_options_of_a_run(changes, message, run):
    options = read_json(run / CONFIG)["options"] | changes
    change_json(run / CONFIG, options=options)
    refused(run, message, lambda folder: program.settings_of(Run.open(folder)))


def test_missing_options_of_a_run_have_their_defaults_and_are_named(run, capsys):
    options = {name: v for name, v in read_json(run / CONFIG)["options"].items() if name not in ("truncate", "seed")}
    change_json(run / CONFIG, options=options)
    settings = program.settings_of(Run.open(run))
    assert (settings.options.truncate, settings.options.seed) == ("head", 42)
    assert "lacks truncate, seed, as an older version wrote it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value", [{"parameters": 5}, {"parameters": {"trained": "x"}}, [], {"test": {"accuracy": "x"}}]
)
def test_a_damaged_result_is_named(value, run):
    write_json(run / "result.json", value)
    refused(run / "result.json", "damaged|must be an object", lambda path: comparison([Run.open(path.parent)]))


@pytest.mark.parametrize("line", ["[]", "{", '{"event": "epoch"}', '{"event": "epoch", "val_acc": "x"}'])
def test_a_damaged_log_is_named(line, run):
    (run / "log.jsonl").write_text(line + "\n", encoding="utf-8")
    refused(run / "log.jsonl", "log", lambda path: comparison([Run.open(path.parent)]))


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (True, float, False),
        (1, float, True), (True, int, False), (1.0, int, False), (10**400, float, False), ([1], list[int], True),
        ([1, "a"], tuple[int, ...], False), (None, int | None, True), ({"a": 1}, dict[str, int], True),
        ("a", str, True),
        ({"a": "b"}, dict[str, int], False), (0, bool, False),
    ],
)  # fmt: skip
def test_types_of_json_values(value, kind, expected):
    assert has_type(value, kind) is expected
