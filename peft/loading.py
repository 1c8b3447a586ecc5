"""Loads adapter directories in huggingface/peft's layout (peft/files.py), strictly.

LoRA or IA³ on a layer of the head is merged into this layer, since the head is trained whole here. Modules of the
backbone that a file replaces (modules_to_save) are loaded, trained and saved with the adapter.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module

from data.checked import about, listed, read_object, show
from data.checksums import warn_of_changes
from data.hub import (
    ADAPTER,
    ADAPTER_BIN,
    ADAPTER_CONFIG,
    ENCODER,
    adapter_base,
    adapter_method,
    fetch_config,
    find_adapter,
    read_adapter_config,
    subfolder_hint,
)
from data.labels import SENTIMENT, canonical
from data.weight_files import WeightFile
from nn import Model
from nn.checkpoint import (
    MOST_CLASSES,
    TRAINING_ONLY,
    Unfilled,
    load_pretrained,
    model_class,
    reorder_classes,
    translate,
)
from nn.encoder import Encoder, init_weights
from nn.heads import Head, check_kind, check_task, match_head, placeholder_names, published_names
from nn.quant import is_quantized
from peft import ia3, lora
from peft.adapters import add_method, apply, backbone_name, remember_backbone, set_labels
from peft.files import adapter_parameters, class_order, module_name, published
from peft.p_tuning import PromptEncoder
from peft.prefix import PrefixEncoder, attach_prefix, prefix_width
from peft.prompt import SoftPrompt, Table
from peft.rules import (
    MERGE_THERE,
    check_config,
    from_pattern,
    in_layers,
    is_saved_module,
    matches,
    matches_end,
    saved_modules,
)
from peft.wrapped import linear_layers, wrapped

COPY = re.compile(r"\.(original_module|modules_to_save)\.")  # with bias="all", peft saves the head's biases three times


def adapter_file(directory: Path) -> WeightFile:
    """Opens the tensors of an adapter. Raises FileNotFoundError that names the missing files."""
    for name in (ADAPTER, ADAPTER_BIN):
        if (directory / name).is_file():
            return WeightFile(directory / name)
    raise FileNotFoundError(f"{directory} holds no {ADAPTER} (nor {ADAPTER_BIN}); fetch the adapter again")


def adapter_directory(source: str | Path) -> Path:
    """Returns the directory of an adapter. Raises FileNotFoundError that says what is missing."""
    directory = find_adapter(source)
    if directory is None:
        hint = subfolder_hint(Path(source), (ADAPTER_CONFIG,)) if Path(source).is_dir() else ""
        raise FileNotFoundError(f"{source} holds no adapter: {ADAPTER_CONFIG} and {ADAPTER} are missing{hint}")
    warn_of_changes(directory)
    return directory


def target_layers(model: Encoder, config: dict[str, Any], file: WeightFile) -> list[str]:
    """Returns the layers that an adapter's config adapts. Raises ValueError for none, and for embeddings."""
    targets, excluded = config.get("target_modules") or [], config.get("exclude_modules") or []
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = r"(?!classifier$).*"
    modules = {name: module_name(model, name) for name in linear_layers(model)}
    saved = [rf"(^|.*\.){name}($|\..*)" for name in saved_modules(config)]
    names = [
        name
        for name, module in modules.items()
        if matches(module, targets)
        and in_layers(module, config)
        and not matches(module, excluded)
        and not any(re.match(pattern, module) for pattern in saved)
    ]
    where = file.path.parent
    if not targets:
        raise ValueError(f"{where / ADAPTER_CONFIG} names no target_modules; add the layers that it adapts")
    if not names and any("lora_embedding" in name for name in file.shapes):
        raise ValueError(f"{where}: LoRA on embeddings is not supported; {MERGE_THERE}")
    if not names:
        shown = show(targets) if isinstance(targets, str) else listed(targets, 20)
        raise ValueError(f"{where}: none of its target_modules ({shown}) is in this model")
    return names


def check_ranks(layers: dict[str, tuple[int, float]], file: WeightFile) -> None:
    """Raises ValueError for a rank that no tensor of the file has, before layers of this rank are built."""
    largest = max((max(shape, default=0) for shape, _ in file.shapes.values()), default=0)
    for name, (rank, _) in layers.items():
        if not 1 <= rank <= max(largest, 1):
            raise ValueError(
                f"the rank {rank} of {name} does not fit {file.path.name}, whose largest width is {largest}"
            )


def attach_lora(model: Encoder, config: dict[str, Any], file: WeightFile) -> None:
    """Attaches LoRA to `model`, in place, with the settings of an adapter_config.json."""
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    layers = {}
    for name in target_layers(model, config, file):
        module = module_name(model, name)
        layers[name] = (
            from_pattern(module, config.get("rank_pattern"), rank),
            from_pattern(module, config.get("alpha_pattern"), alpha),
        )
    check_ranks(layers, file)
    options = lora.LoRAOptions(
        rank=rank,
        alpha=alpha,
        lora_dropout=config.get("lora_dropout") or 0.0,
        lora_bias=config.get("bias") or "none",
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )
    add_method(model, "lora", lambda: lora.wrap(model, layers, options))


def attach_ia3(model: Encoder, config: dict[str, Any], file: WeightFile) -> None:
    """Attaches IA³ to `model`, in place, to the layers that an adapter_config.json names."""
    names, patterns = target_layers(model, config, file), config.get("feedforward_modules") or []
    inputs = [name for name in names if matches_end(module_name(model, name), patterns)]
    add_method(model, "ia3", lambda: ia3.wrap(model, names, inputs))


def attach_houlsby(model: Encoder, config: dict[str, Any]) -> None:
    """Attaches Houlsby adapters to `model`, in place, of the size in an adapter_config.json. Raises ValueError."""
    if not isinstance(size := config.get("adapter_size"), int):
        raise ValueError(f"{ADAPTER_CONFIG} lacks adapter_size")
    apply(model, "houlsby", adapter_size=size)


def read_virtual_tokens(file: WeightFile, width: int, config: dict[str, Any]) -> Tensor:
    """Reads the virtual tokens of an adapter file: fp32 [P, width]. Raises ValueError."""
    if "prompt_embeddings" not in file.shapes:
        raise ValueError(f"{file.path} has no prompt_embeddings")
    shape, kind = file.shapes["prompt_embeddings"]
    if len(shape) != 2 or shape[0] < 1 or shape[1] != width or kind != "float":
        raise ValueError(f"{file.path}: prompt_embeddings {shape}, but this model needs rows of {width} numbers")
    rows = file.read("prompt_embeddings").float()
    if (count := config.get("num_virtual_tokens") or len(rows)) != len(rows):
        raise ValueError(f"{file.path} has {len(rows)} virtual tokens, its {ADAPTER_CONFIG} says {count}")
    if not rows.isfinite().all():
        raise ValueError(f"{file.path}: prompt_embeddings holds NaN or infinity")
    return rows


def read_encoder(path: Path, build: Callable[[Tensor], Module], rows: Tensor) -> Module:
    """Reads the encoder of virtual tokens: build(rows) with the tensors of its file.

    Its shapes are compared with those of the file before it is built. Raises ValueError that names what does not fit.
    """
    file = WeightFile(path)
    with torch.device("meta"), Unfilled():
        expected = {name: (list(tensor.shape), "float") for name, tensor in build(rows.to("meta")).state_dict().items()}
    if wrong := [name for name in {**expected, **file.shapes} if expected.get(name) != file.shapes.get(name)]:
        raise ValueError(f"{path} does not fit {ADAPTER_CONFIG}: {listed(wrong)} is missing, surplus or misshaped")
    tensors = {name: file.read(name).float() for name in expected}
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path}: {listed(wrong)} holds NaN or infinity")
    source = build(rows)
    source.load_state_dict(tensors)
    return source


def attach_virtual_tokens(model: Encoder, config: dict[str, Any], file: WeightFile, trainable: bool) -> None:
    """Attaches the virtual tokens of an adapter to `model`, in place; with their encoder if trainable."""
    deep = config["peft_type"] == "PREFIX_TUNING"
    kind = (config.get("encoder_reparameterization_type") or "MLP").lower()
    hidden = config.get("encoder_hidden_size") or 0
    width = prefix_width(model) if deep else model.embeddings.word.embedding_dim
    rows = read_virtual_tokens(file, width, config)
    source: Module = Table(rows)
    if trainable and (encoder := file.path.parent / ENCODER).is_file():
        if hidden < 1:
            raise ValueError(f"{encoder} needs encoder_hidden_size, which {ADAPTER_CONFIG} lacks")
        if deep:
            source = read_encoder(encoder, lambda r: PrefixEncoder(r, model.config.hidden_size, hidden), rows)
        else:
            source = read_encoder(encoder, lambda r: PromptEncoder(r, kind, hidden), rows)
    apply(model, "head")
    settings = {"method": adapter_method(file.path.parent), "virtual_tokens": len(rows)}
    if deep:
        attach_prefix(model, source)
        model.adapter |= settings | {"prefix_hidden": hidden}
    else:
        pool = config.get("pool") or "virtual"  # huggingface/peft has no other
        model.virtual = SoftPrompt(source, pool)
        model.adapter |= settings | {"pool": pool, "prompt_encoder": kind, "prompt_hidden": hidden}


def load_adapter(model: Model, source: str | Path, trainable: bool = False) -> Encoder:
    """Applies an adapter to a plain model, in place, and returns the model.

    source: an adapter's directory or hub id.  trainable: restores the encoder of virtual tokens as well, so that
    training can continue. The classes are matched by name to those of the model; the model gets the adapter's names if
    they are others. Raises FileNotFoundError, or ValueError for an unsupported adapter, listing all tensors that are
    missing, surplus or misshaped. After an error the adapter is attached in part: load the model again. Warns if
    DeBERTa's pooler is in no file.
    """
    if not isinstance(model, Encoder):
        raise ValueError(f"{source} is an adapter for encoders, not for {model.model_type}")
    directory = adapter_directory(source)
    config = read_adapter_config(directory)
    check_config(config, directory)
    file = adapter_file(directory)
    with about(directory):
        if config["peft_type"] == "LORA":
            attach_lora(model, config, file)
        elif config["peft_type"] == "IA3":
            attach_ia3(model, config, file)
        elif config["peft_type"] == "HOULSBY":
            attach_houlsby(model, config)
        elif config["peft_type"] in ("HEAD", "BITFIT"):
            apply(model, adapter_method(directory))
        else:
            attach_virtual_tokens(model, config, file, trainable)
    replace_backbone(model, config, file)
    fill_parameters(model, config, file)
    merge_head(model)
    order_classes(model, config, file)
    return model


def tensor_names(config: dict[str, Any], file: WeightFile) -> set[str]:
    """Returns the names of the tensors that become parameters: neither virtual tokens, their encoder nor copies."""
    names = {name for name in file.shapes if name != "prompt_embeddings" and not COPY.search(name)}
    if config["peft_type"] == "P_TUNING":
        names = {name for name in names if not name.startswith("prompt_encoder.")}
    return names


def plain_names(model: Encoder) -> dict[str, str]:
    """Returns {huggingface/peft's name: name in the plain model} of the parameters of head and backbone."""
    names = ((name, backbone_name(name)) for name, _ in model.named_parameters() if not name.startswith(TRAINING_ONLY))
    return {published(model, name): plain for name, plain in names if plain is not None}


def replace_backbone(model: Encoder, config: dict[str, Any], file: WeightFile) -> None:
    """Makes the parameters of the backbone that an adapter file contains part of the adapter, and trainable.

    Raises ValueError for huggingface/peft's prompts with a word table, which peft writes and does not use.
    """
    keys = (tensor_names(config, file) & plain_names(model).keys()) - adapter_parameters(model).keys()
    found = sorted(plain_names(model)[key] for key in keys)
    prompts = config["peft_type"] in ("PROMPT_TUNING", "P_TUNING") and not config.get("method")
    if prompts and "embeddings.word.weight" in found:
        raise ValueError(f"{file.path} has a word table, which huggingface/peft does not use with virtual tokens")
    model.adapter["replaced"] = (*model.adapter.get("replaced", ()), *found)
    remember_backbone(model)
    for name, parameter in model.named_parameters():
        if backbone_name(name) in model.adapter["replaced"]:
            parameter.requires_grad_(True)


def fill_parameters(model: Encoder, config: dict[str, Any], file: WeightFile) -> None:
    """Copies the tensors of an adapter file into the model, in place. Parameters of the head that the file need not
    contain keep the values of the checkpoint.

    Raises ValueError with all tensors that do not fit. Warns of a pooler that is in no file.
    """
    expected, where = adapter_parameters(model), file.path.parent
    spelled = bias_names(expected.keys(), tensor_names(config, file))
    found = spelled.keys()
    required, optional = split_required(model, config)
    biases = {name for name in expected if name.endswith(".base_layer.bias")}
    if config.get("bias") == "lora_only" and biases and not biases & found:
        print(f"note: {where} contains no biases, as versions of peft before 0.20 saved it; they are the backbone's")
        required, expected = required - biases, {name: p for name, p in expected.items() if name not in biases}
    problems = [f"missing {name}" for name in sorted((expected.keys() | required) - found - optional.keys())]
    problems += [f"surplus {name}{surplus_reason(model, name)}" for name in sorted(found - expected.keys())]
    for name in sorted(found & expected.keys()):
        shape, kind = file.shapes[spelled[name]]
        if shape != list(expected[name].shape):
            problems.append(f"misshaped {name}: {shape}, not {list(expected[name].shape)}")
        elif kind != "float":
            problems.append(f"{name} does not hold floating point numbers")
        elif not torch.isfinite(tensor := file.read(spelled[name]).to(expected[name].dtype)).all():
            problems.append(f"{name} holds NaN or infinity")
        else:
            expected[name].data.copy_(tensor)
    if problems:
        shown = "; ".join(show(problem, 300) for problem in problems[:20])
        raise ValueError(f"{where} does not fit the model ({len(problems)} problems): {shown}")
    random = sorted(name for key, name in optional.items() if key not in found and name in model.newly_initialized)
    if any(name.startswith("classifier.") for name in random):
        raise ValueError(f"neither {where} nor the weights contain a classifier")
    if random:
        print(f"warning: neither {where} nor the weights contain the pooler: it is random, and so are the answers")


def bias_names(expected: Iterable[str], found: set[str]) -> dict[str, str]:
    """Returns {published name: name in the file} of the tensors of a file.

    peft 0.5 and earlier saved the bias of an adapted layer as X.bias, later versions save it as X.base_layer.bias.
    """
    names = {name: name for name in found}
    for name in expected:
        old = name.replace(".base_layer.bias", ".bias")
        if name != old and name not in found and old in found:
            names[name] = names.pop(old)
    return names


def split_required(model: Encoder, config: dict[str, Any]) -> tuple[set[str], dict[str, str]]:
    """Returns the published names of parameters of the plain model that an adapter file must contain, by its
    modules_to_save, and {published name: our name} of those of the head that it may lack."""
    required, optional = set(), {}
    for key, name in plain_names(model).items():
        if is_saved_module(translate(name, model.KEYS).rpartition(".")[0], config):
            required.add(key)
        elif name.split(".")[0] in model.HEAD:
            optional[key] = name
    return required, optional


def surplus_reason(model: Encoder, name: str) -> str:
    """Returns why a tensor of an adapter file cannot be used, in parentheses, if there is a known reason."""
    if "lora_embedding" in name:
        return f" (LoRA on embeddings is not supported; {MERGE_THERE})"
    if is_quantized(model) and name.endswith(".weight") and ".lora_" not in name:
        return " (it would replace quantized weights; load without --quantize)"
    return ""


def merge_head(model: Encoder) -> None:
    """Merges LoRA and IA³ on layers of the head into these layers, in place."""
    for name, layer in wrapped(model):
        if name.split(".")[0] in model.HEAD:
            model.set_submodule(name, layer.merged())
            model.adapter["names"].remove(name)
    if not model.adapter.get("names", True):
        model.adapter["method"] = "head"


# -------------------------------------------------------------------------------------------------------- classes


def file_labels(config: dict[str, Any], count: int, where: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes in the order of an adapter's file; None if they are those of the backbone.

    A file of this project with two classes and without id2label has the order negative, positive.
    """
    if config.get("id2label") is None and "method" in config and count == len(SENTIMENT):
        return SENTIMENT
    return published_names(config, count, where)


def order_classes(model: Encoder, config: dict[str, Any], file: WeightFile) -> None:
    """Puts the rows of the classifier, which have the order of the file, into the order of the model's classes."""
    if published(model, "classifier.weight") not in file.shapes:
        return
    labels = model.config.labels
    names, order = file_labels(config, len(labels), file.path.parent), class_order(model)
    if names is not None and (head := head_by_name(names, labels)) is not None:
        order = head.order
    elif names is not None:
        order = model.adapter["class_order"] = ()
        set_labels(model, names)
        print(f"labels: the adapter distinguishes {', '.join(names)}")
    reorder_classes(model, order or tuple(range(len(labels))))


def head_by_name(names: tuple[str, ...], labels: tuple[str, ...]) -> Head | None:
    """Returns the head that puts the rows of `names` into the order of `labels`; None if these are other classes."""
    rows = {canonical(name): row for row, name in enumerate(names)}
    if {canonical(label) for label in labels} != rows.keys():
        return None
    order = tuple(rows[canonical(label)] for label in labels)
    return Head(tuple(names[row] for row in order), order)


def adapter_classes(directory: Path, backbone: str) -> tuple[int | None, tuple[str, ...] | None]:
    """Returns the number of classes of an adapter and their names in the order of its file.

    The number is None if the adapter has no classifier. The names are those of the backbone if its number is the same
    and the adapter has none; None if neither names them.
    """
    config, shapes, path = read_adapter_config(directory), adapter_file(directory).shapes, fetch_config(backbone)
    base = read_object(path)
    cls = model_class(base, path)
    if not issubclass(cls, Encoder):
        raise ValueError(f"{directory} is an adapter for encoders, not for {cls.model_type}")
    key = translate("classifier.weight", cls.KEYS)
    shape = next((shape for name, (shape, _) in shapes.items() if name.endswith(f".{key}")), None)
    if shape is None:
        return None, None
    if len(shape) != 2 or not 1 <= shape[0] <= MOST_CLASSES:
        raise ValueError(f"{directory}: {key} {shape} has no row for each of at most {MOST_CLASSES} classes")
    count = shape[0]
    task = config.get("auto_mapping")
    task = task.get("base_model_class") if isinstance(task, dict) else None
    check_task({"architectures": [task]} if task else {}, directory)
    check_kind(base, count, directory)
    names = file_labels(config, count, directory)
    table = base.get("id2label")
    if names is None and isinstance(table, dict) and len(table) == count:
        names = published_names(base, count, path)
    return count, names


def load_adapted(
    source: str | Path,
    base: str = "",
    labels: tuple[str, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: str = "none",
    trainable: bool = False,
    new_head: bool = False,
) -> Encoder:
    """Loads an adapter's directory or hub id on its backbone.

    base: the backbone, if it is not where the adapter's file says (`--base`).  labels: the classes that the model must
    distinguish, in order, matched by name (nn/heads.py); None: the adapter's.  dtype, quantize: as in load_pretrained.
    trainable: as in load_adapter.  new_head: initializes the last layer at random for `labels`. Raises
    FileNotFoundError and ValueError as the two functions do.
    """
    directory = adapter_directory(source)
    check_config(read_adapter_config(directory), directory)
    backbone = adapter_base(directory, base)
    count, names = adapter_classes(directory, backbone)
    if count is None:
        return load_adapter(load_pretrained(backbone, labels, dtype, quantize, new_head), directory, trainable)
    plain = load_pretrained(backbone, names or placeholder_names(count), dtype, quantize, new_head=True)
    model = load_adapter(plain, directory, trainable)
    if labels is not None and new_head:
        replace_head(model, labels)
    elif labels is not None:
        head = head_by_name(names or (), labels)
        if head is None:
            head = match_head({"id2label": dict(enumerate(names))} if names else {}, count, labels, directory)
        reorder_classes(model, head.order)
        set_labels(model, head.labels)
        model.adapter["class_order"] = head.order
    return model


def replace_head(model: Encoder, labels: tuple[str, ...]) -> None:
    """Replaces the last layer of an adapted model by a newly initialized one for `labels`, in place."""
    old = model.classifier.weight
    model.classifier = Linear(old.size(1), len(labels), device=old.device, dtype=old.dtype)
    init_weights(model.classifier, model.config.initializer_range)
    model.newly_initialized |= {"classifier.weight", "classifier.bias"}
    set_labels(model, labels)
    model.adapter["class_order"] = ()
    before, _ = model.adapter["before"]
    before |= {f"classifier.{name}": p.detach().clone() for name, p in model.classifier.named_parameters()}
    model.adapter["before"] = before, labels
