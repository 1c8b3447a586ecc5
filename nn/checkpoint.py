"""Loads and saves published checkpoint directories, strictly.

A directory has Hugging Face's layout: config.json with model.safetensors, or with several shards and
model.safetensors.index.json. KEYS and CONFIG_KEYS of each model translate tensor and config names in both directions.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from data.checked import about, read_object, reading, show
from data.files import write_json, write_tensors
from data.flags import check_choice
from data.hub import CONFIG, WEIGHTS, fetch_config, find_pretrained
from data.weight_files import WeightFile, weight_files
from nn import MODELS, Model
from nn.class_matching import NEW_LAYER, NEW_MODEL, OTHER_HEADS, check_task, checked_names, match_head
from nn.configs import build_config
from nn.encoder import SharedEmbedding, init_weights
from nn.nb_linear import NGramEmbedding
from nn.quant import FORMS, QUANTIZED, Int8Embedding, Int8Linear, form_of, put_quantized, quantizable
from nn.words import WordClassifier

QUANTIZATION, SCALE = "quantization", "_scale"  # field of a quantized checkpoint's config; suffix of s after a weight
MOST_CLASSES = 10_000  # of a classifier
TRAINING_ONLY = ("projection.", "pretraining.")  # modules that exist during training only
CLASS_ROWS = ("classifier.weight", "classifier.bias", "classes.weight")  # parameters with one row per class
NUMBERS = {"int8": "8-bit numbers", "float": "floating point numbers", "int64": "64-bit integers"}
BACKBONE = re.compile(r"^(bert|roberta|distilbert|deberta|electra|model)\.")

# ------------------------------------------------------------------------------------------------------- names


def translate(name: str, keys: dict[str, str]) -> str:
    """Maps `layers.3.attention.query.weight` to its published name by `keys`; the last component stays.

    Word networks have no published names and empty `keys`: their names stay. Raises ValueError for an unknown name.
    """
    if not keys:
        return name
    module, _, leaf = name.rpartition(".")
    pattern = re.sub(r"\.(\d+)(?=\.)", ".{}", module)
    if pattern not in keys:
        raise ValueError(f"{name} has no published name")
    return ".".join((keys[pattern].format(*re.findall(r"\.(\d+)(?=\.)", module)), leaf))


def strip_backbone(name: str) -> str:
    """Maps `bert.encoder…` to `encoder…`, and the legacy `LayerNorm.gamma` / `.beta` to `.weight` / `.bias`."""
    name = BACKBONE.sub("", name)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def stripped_names(model: Model) -> dict[str, str]:
    """Returns {published name without backbone: our name} of all parameters."""
    return {strip_backbone(translate(name, model.KEYS)): name for name, _ in model.named_parameters()}


def model_class(published: dict[str, Any], where: Path | str) -> type[Model]:
    """Returns the class that implements a published config. Raises ValueError that lists the supported ones."""
    kind = published.get("model_type")
    for entry in MODELS.values():
        if entry.build.model_type == kind:
            return entry.build
    supported = sorted(entry.build.model_type for entry in MODELS.values())
    raise ValueError(f"{where}: model_type {show(repr(kind))} is not supported; supported: {', '.join(supported)}")


def read_config(cls: type[Model], published: dict[str, Any], labels: tuple[str, ...]) -> Any:
    """Builds cls.Config from a published config.

    Raises ValueError for a value that is not supported, and for a field that is given under two names.
    """
    for alias, name in cls.ALIASES.items():
        if alias in published and name in published and published[alias] != published[name]:
            raise ValueError(f"config: {alias} and {name} are one field; they have different values")
    published = {cls.ALIASES.get(name, name): value for name, value in published.items()}
    for name, accepted in cls.SUPPORTED.items():
        if name in published and published[name] not in accepted:
            raise ValueError(f"config: {name} = {show(repr(published[name]))} is not supported; supported: {accepted}")
    values = {}
    for field in fields(cls.Config):
        name = cls.CONFIG_KEYS.get(field.name, field.name)
        if name in published and field.name != "labels":
            values[field.name] = published[name]
    return build_config(cls.Config, values, labels, cls.CONFIG_KEYS)


def build_empty(cls: type[Model], published: dict[str, Any], labels: tuple[str, ...], where: Path, most: int) -> Model:
    """Builds the model of a published config on the meta device: shapes without values.

    where: the config.json.  most: number of tensors in the files, which is at least the number of layers. Raises
    ValueError for a config that these files cannot have.
    """
    with reading(where, "the config of a model", "correct it, or fetch it again"), about(where):
        config = read_config(cls, published, labels)
        if (layers := getattr(config, "num_layers", 0)) > max(most, 100):  # fewer are built and compared by name
            raise ValueError(
                f"{cls.CONFIG_KEYS.get('num_layers', 'num_layers')} {layers}, but there are {most} tensors"
            )
        with torch.device("meta"), Unfilled():
            return cls(config)


def write_config(model: Model) -> dict[str, Any]:
    """Returns the published config of a model, with the fields that transformers needs to load it."""
    values, defaults = asdict(model.config), {field.name: field.default for field in fields(model.config)}
    labels = values.pop("labels")
    kept = {name: value for name, value in values.items() if value is not None or defaults[name] is not None}
    published = {model.CONFIG_KEYS.get(name, name): value for name, value in kept.items()}
    return {
        "model_type": model.model_type,
        "architectures": [model.architecture],
        **published,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "dtype": "float32",
    }


# -------------------------------------------------------------------------------------------------------- load


class Unfilled(TorchFunctionMode):
    """Skips draws from a normal distribution in a `with` block, since the file's values replace the drawn ones.

    On the meta device, `normal_` computes nothing, but its first call imports torch._dynamo, which takes two seconds.
    `arange` of a meta tensor imports sympy, which takes half a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.arange and not kwargs:
            return torch.empty(len(range(*args)), dtype=torch.int64)
        return func(*args, **kwargs)


def load_pretrained(
    source: str | Path,
    labels: tuple[str, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: str = "none",
    new_head: bool = False,
) -> Model:
    """Loads a checkpoint directory or hub id as a model in `dtype`, in eval() mode.

    labels: the classes that the model must distinguish, in order; the head of the file is matched to them by name
    (nn/class_matching.py). None: the classes of the file's head, or negative and positive if it has none.  new_head:
    initializes the last layer at random instead.  quantize: int8 or nf4 quantizes tensor by tensor while loading
    (nn/quant.py); an 8-bit checkpoint stays in 8 bits.
    `model.newly_initialized` names the parameters that the file lacks and that are initialized at random; only layers
    of the head may be. Tensors are read and converted one at a time, so that memory peaks at the size of the model plus
    one tensor. Raises FileNotFoundError if there is no checkpoint. Raises TypeError for labels that are not strings and
    for a dtype that is not floating point. Raises ValueError for invalid or equal labels, a head with other classes, an
    unknown `quantize`, and for missing, surplus, misshaped or unusable tensors, which it lists.
    """
    labels = None if labels is None else checked_names(labels)
    check_dtype(dtype)
    check_choice("quantize", quantize, dict.fromkeys(FORMS))
    config_file = fetch_config(source)
    published = read_object(config_file)
    cls = model_class(published, config_file)  # before the weights are fetched
    directory = find_pretrained(source)
    files = [WeightFile(path) for path in weight_files(directory)]
    if not new_head:
        check_task(published, directory)
    if new_head and not cls.NEW_HEAD:
        raise ValueError(f"{directory} is a {cls.model_type}, which has no last layer to replace; {NEW_MODEL}")
    way_out = NEW_LAYER if cls.NEW_HEAD else NEW_MODEL
    head = match_head(published, None if new_head else head_size(cls, files), labels, directory, way_out)
    model = build_empty(cls, published, head.labels, config_file, most=sum(len(file.shapes) for file in files))
    stored_int8 = published.get(QUANTIZATION) == QUANTIZED
    check_not_quantized(published, files, config_file)
    if stored_int8 and quantize == "nf4":
        raise ValueError(f"{directory} holds 8-bit weights, which are not quantized to NF4; leave out --quantize nf4")
    ignored = CLASS_ROWS if new_head else ()
    missing = check_tensors(model, files, directory, stored_int8, ignored)
    if problems := fill(model, files, dtype, "int8" if stored_int8 else quantize, stored_int8, ignored):
        raise ValueError(f"{directory} cannot be used: {show('; '.join(problems[:20]), 3000)}")
    initialize(model, missing, dtype)
    reorder_classes(model, head.order)
    model.class_order = head.order
    for file in files:
        file.keep_converted()
    model.newly_initialized, model.source = frozenset(missing), directory
    return model.eval()


def head_size(cls: type[Model], files: list[WeightFile]) -> int | None:
    """Returns the number of classes of the last layer in the files, or None if they have no last layer.

    Raises ValueError for a last layer without rows, or with more than MOST_CLASSES.
    """
    known = [name for name in CLASS_ROWS if not cls.KEYS or name.rpartition(".")[0] in cls.KEYS]
    names = {strip_backbone(translate(name, cls.KEYS)) for name in known}
    for file in files:
        for key, (shape, _) in file.shapes.items():
            if strip_backbone(key) in names:
                if not shape or not 1 <= shape[0] <= MOST_CLASSES:
                    raise ValueError(
                        f"{file.path}: {show(key)} {shape} has no row for each of at most {MOST_CLASSES} classes"
                    )
                return shape[0]
    return None


def check_not_quantized(published: dict[str, Any], files: list[WeightFile], config_file: Path) -> None:
    """Raises ValueError for weights that another program quantized.

    Their config has a quantization_config, and some of their tensors are neither floating point nor int64.
    """
    form, kinds = published.get("quantization_config"), {kind for file in files for _, kind in file.shapes.values()}
    if isinstance(form, dict) and form and kinds - {"float", "int64"}:
        raise ValueError(
            f"{config_file}: weights quantized by {show(form.get('quant_method', 'a program'), 40)} are not read; "
            "in transformers: model.dequantize().save_pretrained(DIR), then --weights DIR"
        )


def reorder_classes(model: Model, order: tuple[int, ...]) -> None:
    """Permutes the rows of the last layer and the columns of n-grams, in place: i becomes the former order[i]."""
    if order != tuple(range(len(order))):
        for name, parameter in model.named_parameters():
            if name in CLASS_ROWS:
                parameter.data = parameter.data[list(order)]
        for table in (module for module in model.modules() if isinstance(module, NGramEmbedding)):
            for columns in (table.ratios, table.word.weight):
                columns.data = columns.data[:, list(order)]


def fill(
    model: Model,
    files: list[WeightFile],
    dtype: torch.dtype,
    quantize: str,
    stored_int8: bool,
    ignored: tuple[str, ...] = (),
) -> list[str]:
    """Replaces the parameters of `model` with the tensors of the files, in place. Returns the unusable tensors.

    quantize: none, int8 or nf4.  stored_int8: whether the files hold 8-bit weights with scales.  ignored: names of
    parameters that are not read.
    """
    expected = {key: name for key, name in stripped_names(model).items() if name not in ignored}
    problems = []
    quantized = {f"{name}.weight" for name in quantizable(model)} if quantize != "none" else set()
    for file in files:
        for key in (key for key in file.shapes if strip_backbone(key) in expected):
            tensor, name = file.read(key), expected[strip_backbone(key)]
            scale = file.read(f"{key}{SCALE}").float() if name in quantized and stored_int8 else None
            if name not in quantized:
                integers = not model.get_parameter(name).is_floating_point()
                if integers and (tensor.diff() <= 0).any():
                    problems.append(f"{key} does not hold numbers in ascending order")  # keys of n-grams
                tensor = tensor.to(torch.int64 if integers else dtype, copy=True)
            elif scale is None:
                tensor = tensor.float()
            if not torch.isfinite((tensor if scale is None else scale).sum(dtype=torch.float64)):
                problems.append(f"{key} holds NaN or infinity, or numbers beyond {dtype}")
            if name in quantized:
                put_quantized(model, name.removesuffix(".weight"), tensor, scale, quantize, dtype)
            else:
                put_parameter(model, name, tensor)
    return problems


def initialize(model: Model, names: list[str], dtype: torch.dtype) -> None:
    """Initializes the parameters `names` of a model on the meta device at random, in place.

    A word network initializes its layers in its constructor, so the values are copied from a new instance.
    """
    if isinstance(model, WordClassifier):
        new = dict(type(model)(model.config).named_parameters()) if names else {}
        for name in names:
            put_parameter(model, name, new[name].detach().to(dtype))
        return
    for name in names:  # `empty_like` of a meta tensor would import sympy, which takes half a second
        put_parameter(model, name, torch.empty(model.get_parameter(name).shape, dtype=dtype))
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in names):  # in their order: each draws random numbers
        module = model.get_submodule(owner)
        read = {leaf: p.detach().clone() for leaf, p in module.named_parameters() if f"{owner}.{leaf}" not in names}
        init_weights(module, model.config.initializer_range)
        for leaf, values in read.items():  # init_weights draws the whole layer, of which the file has these parameters
            module.get_parameter(leaf).data.copy_(values)


def put_parameter(model: Model, name: str, tensor: Tensor) -> None:
    """Registers `tensor` as the parameter `name`, in place."""
    owner, _, leaf = name.rpartition(".")
    trained = model.get_parameter(name).requires_grad
    model.get_submodule(owner).register_parameter(leaf, Parameter(tensor, requires_grad=trained))


def check_tensors(
    model: Model, files: list[WeightFile], directory: Path, stored_int8: bool, ignored: tuple[str, ...] = ()
) -> list[str]:
    """Returns the names of head parameters that the files lack, and those that are ignored.

    Raises ValueError with everything that does not fit.
    """
    quantized = {f"{name}.weight" for name in quantizable(model)} if stored_int8 else set()
    names, unused = stripped_names(model), (*model.EXTRAS, *(OTHER_HEADS if ignored else ()))
    found: set[str] = set()
    problems: list[str] = []
    for file in files:
        for key in file.shapes:
            stripped = strip_backbone(key)
            if names.get(stripped.removesuffix(SCALE)) in quantized and stripped.endswith(SCALE):
                continue
            if stripped not in names:
                if not any(re.fullmatch(extra, stripped) for extra in unused):
                    problems.append(f"surplus {key}")
                continue
            if names[stripped] in ignored:
                continue
            if stripped in found:
                problems.append(f"{key} comes twice")
            else:
                problems += tensor_problems(model, file, key, names[stripped], names[stripped] in quantized)
            found.add(stripped)
    missing = [name for stripped, name in names.items() if stripped not in found]
    in_head = [name for name in missing if name.split(".")[0] in model.HEAD]
    problems += [f"missing {translate(name, model.KEYS)}" for name in missing if name not in in_head]
    if prefix := wrapper_of([key for file in files for key in file.shapes], names, unused):
        way_out = "save the state of the model inside: torch's DataParallel and torch.compile add such a name"
        raise ValueError(f"{directory}: the name of every tensor begins with {prefix!r}; {way_out}")
    if problems:
        shown = "; ".join(show(problem, 300) for problem in problems[:20]) + ("; …" if len(problems) > 20 else "")
        raise ValueError(f"{directory} does not fit its {CONFIG} ({len(problems)} problems): {shown}")
    return in_head


def wrapper_of(keys: list[str], names: Iterable[str], unused: Iterable[str] = ()) -> str:
    """Returns the prefix that a wrapper of the model put before the name of every tensor, "" if there is none.

    names: those of the parameters;  unused: patterns of further tensors, which need not exist
    """
    for prefix in ("module.", "_orig_mod.", "base_model.model.", "model."):
        inner = {strip_backbone(key.removeprefix(prefix)) for key in keys if key.startswith(prefix)}
        known = inner & set(names)
        fit = all(any(re.fullmatch(pattern, key) for pattern in unused) for key in inner - known)
        if known and fit and len(inner) == len(keys) and not known <= set(map(strip_backbone, keys)):
            return prefix
    return ""


def tensor_problems(model: Model, file: WeightFile, key: str, name: str, quantized: bool) -> list[str]:
    """Returns the first reason why the tensor `key` of a file cannot become the parameter `name`, if there is one."""
    shape, kind = file.shapes[key]
    expected = list(model.get_parameter(name).shape)
    if shape != expected:
        return [f"misshaped {key}: {shape}, the config implies {expected}"]
    if quantized and file.shapes.get(key + SCALE) != (shape[:1], "float"):
        return [f"missing {key}{SCALE}, {shape[:1]} floating point numbers"]
    needed = "int8" if quantized else "float" if model.get_parameter(name).is_floating_point() else "int64"
    if kind != needed:
        return [f"{key} does not hold {NUMBERS[needed]}"]
    return []


# -------------------------------------------------------------------------------------------------------- save


def check_dtype(dtype: Any) -> None:
    """Raises TypeError unless dtype is a torch.dtype of floating-point numbers."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype {show(repr(dtype), 40)} is not a floating-point dtype; torch.float16 is one")


def published_state(model: Model, heads: bool = True) -> dict[str, Tensor]:
    """Returns parameters, and 8-bit weights with their scales, by published name. heads: include the head."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, p in model.named_parameters(remove_duplicate=False):  # also those that several layers share
        if not name.startswith(TRAINING_ONLY):
            kept[name] = p.detach().clone() if id(p) in seen else p
            seen.add(id(p))
    if isinstance(model.embeddings.word, SharedEmbedding):
        del kept["embeddings.word.delta"]
        kept["embeddings.word.weight"] = model.embeddings.word.weight
    state: dict[str, Tensor] = {
        translate(name, model.KEYS): p for name, p in kept.items() if heads or name.split(".")[0] not in model.HEAD
    }
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear | Int8Embedding):
            published = translate(f"{name}.weight", model.KEYS)
            state[published], state[f"{published}{SCALE}"] = module.weight, module.scale
    return state


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts a tensor to `dtype`. Raises ValueError if that makes a number infinite. name: in the message"""
    converted = tensor.to(dtype)
    if not torch.equal(converted.isinf(), tensor.isinf()):
        raise ValueError(f"{name} has numbers beyond {dtype}; float32 and bfloat16 hold them")
    return converted


def save_pretrained(
    model: Model, directory: str | Path, dtype: torch.dtype = torch.float32, heads: bool = True
) -> None:
    """Writes config.json and model.safetensors with the published names, in `dtype`.

    transformers loads the directory of an encoder that is not quantized. heads False omits the classifier's layers.
    Scales of 8-bit weights stay as they are. Raises ValueError for weights beyond the range of `dtype`, for NF4
    weights, which are quantized again at every load, and for an adapter with modules of its own, which a checkpoint
    cannot contain. Raises TypeError for a dtype that is not floating point.
    """
    check_dtype(dtype)
    if model.adapter is not None and model.adapter["method"] not in ("head", "bitfit"):
        raise ValueError("the model has an adapter: peft.merge or peft.detach_adapter first, or peft.save_adapter")
    directory, form = Path(directory), form_of(model)
    if form == "nf4":
        raise ValueError(f"{directory}: NF4 weights are not saved; load the model without --quantize nf4 and save that")
    quantized = {QUANTIZATION: QUANTIZED} if form == "int8" else {}
    state = published_state(model, heads)
    if any(p.is_floating_point() and p.dtype != dtype for p in state.values()):
        is_weight = {name: p.is_floating_point() and not name.endswith(SCALE) for name, p in state.items()}
        state = {name: cast(name, p, dtype) if is_weight[name] else p for name, p in state.items()}
    write_tensors(directory / WEIGHTS, state)  # first: a folder with a config.json is complete
    write_json(directory / CONFIG, write_config(model) | quantized | {"dtype": str(dtype).removeprefix("torch.")})
