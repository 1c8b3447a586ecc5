"""Loads adapter directories in huggingface/peft's layout (peft/files.py), strictly.

LoRA or IA³ on a layer of the head is merged into this layer, since the head is trained whole here. Modules of the
backbone that a file replaces (modules_to_save) are loaded, trained and saved with the adapter.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn import Linear

from data.checked import read_object, show
from data.checksums import warn_of_changes
from data.hub import (
    ADAPTER,
    ADAPTER_BIN,
    ADAPTER_CONFIG,
    MERGE_THERE,
    adapter_base,
    fetch_config,
    find_adapter,
    read_adapter_config,
    subfolder_hint,
)
from data.labels import SENTIMENT, canonical
from data.weight_files import WeightFile
from nn import Model
from nn.checkpoint import (
    CLASS_ROWS,
    MOST_CLASSES,
    TRAINING_ONLY,
    load_pretrained,
    model_class,
    reorder_classes,
    translate,
)
from nn.class_matching import (
    Head,
    check_kind,
    check_task,
    checked_names,
    match_head,
    names_of_backbone,
    placeholder_names,
    published_names,
)
from nn.encoder import Encoder, init_weights
from nn.quant import is_quantized
from peft.adapters import backbone_name, remember_backbone, set_labels
from peft.attaching import attach_described
from peft.files import adapter_parameters, class_order, published
from peft.rules import check_config, is_saved_module
from peft.wrapped import wrapped

# copies of a module that peft trains: with bias="all", it saves the biases of the head three times
COPY = re.compile(r"\.(original_module|modules_to_save)\.")


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


def load_adapter(model: Model, source: str | Path, trainable: bool = False, new_head: bool = False) -> Encoder:
    """Applies an adapter to a plain model, in place, and returns the model.

    source: an adapter's directory or hub id.  trainable: restores the encoder of virtual tokens as well, so that
    training can continue.  new_head: the caller replaces the last layer. The classes are matched by name to those of
    the model; the model gets the adapter's names if they differ. Raises FileNotFoundError, or ValueError for an
    unsupported adapter, listing all tensors that are missing, surplus or misshaped. After an error the adapter is
    attached in part: load the model again. Warns if neither the adapter nor the checkpoint contains the pooler.
    """
    if not isinstance(model, Encoder):
        raise ValueError(f"{source} is an adapter for encoders, not for {model.model_type}")
    directory = adapter_directory(source)
    config = read_adapter_config(directory)
    check_config(config, directory)
    file = adapter_file(directory)
    check_copies(file)
    own_head = published(model, "classifier.weight") in file.shapes
    # an adapter without a classifier may change that of the backbone, in the order of the backbone's file
    order = () if own_head else model.class_order
    reorder_classes(model, tuple(order.index(row) for row in range(len(order))))
    attach_described(model, config, file, trainable)
    replace_backbone(model, config, file)
    fill_parameters(model, config, file)
    merge_head(model)
    if own_head:
        names = order_classes(model, config, file)
        if names and not new_head:
            print(f"labels: the adapter distinguishes {', '.join(names)}")
    elif order:
        reorder_classes(model, order)
        before, labels = model.adapter["before"]
        rows = {name: value[list(order)] for name, value in before.items() if name in CLASS_ROWS}
        model.adapter["before"] = before | rows, labels
    return model


def check_copies(file: WeightFile) -> None:
    """Raises ValueError for a copy with other values than the tensor that is read: peft would use the copy.

    It writes such files if one of modules_to_save contains another one.
    """
    for name in file.shapes:
        found = COPY.search(name)
        if found is None or found[1] == "original_module":
            continue
        names = (re.sub(pattern, ".", name) for pattern in (r"\.modules_to_save\.", r"\.modules_to_save\.[^.]+\."))
        plain = next((plain for plain in names if plain in file.shapes), None)
        if plain is None or not torch.equal(file.read(plain), file.read(name)):
            raise ValueError(
                f"{file.path} holds {show(name, 200)}, a copy of its own: one of modules_to_save contains another; "
                + MERGE_THERE
            )


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
            problems.append(f"misshaped {name}: {shape}, not {list(expected[name].shape)}{shape_reason(name)}")
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
        what = "it is random, so the predictions are meaningless"
        print(f"warning: neither {where} nor the weights contain the pooler: {what}")


def shape_reason(name: str) -> str:
    """Explains the shape of a tensor of another model, as far as a cause is known."""
    if "word_embeddings" not in name and "tok_embeddings" not in name:
        return ""
    way = "resize the backbone's embeddings, load the adapter, call merge_and_unload() and save the result as a model"
    return f" (if tokens were added before the training: in transformers, {way})"


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


def order_classes(model: Encoder, config: dict[str, Any], file: WeightFile) -> tuple[str, ...]:
    """Puts the rows of the classifier, which have the order of the file, into the order of the model's classes.

    Returns the names of the file's classes if they are others, which the model has then; otherwise ().
    """
    labels = model.config.labels
    names, order = file_labels(config, len(labels), file.path.parent), class_order(model)
    others: tuple[str, ...] = ()
    if names is not None and (head := head_by_name(names, labels)) is not None:
        order = head.order
    elif names is not None:
        order = model.adapter["class_order"] = ()
        set_labels(model, names)
        others = names
    reorder_classes(model, order or tuple(range(len(labels))))
    return others


def head_by_name(names: tuple[str, ...], labels: tuple[str, ...]) -> Head | None:
    """Returns the head that puts the rows of `names` into the order of `labels`; None if these are other classes."""
    rows = {canonical(name): row for row, name in enumerate(names)}
    if {canonical(label) for label in labels} != rows.keys():
        return None
    order = tuple(rows[canonical(label)] for label in labels)
    return Head(tuple(names[row] for row in order), order)


def adapter_classes(
    directory: Path, backbone: str, new_head: bool = False
) -> tuple[int | None, tuple[str, ...] | None]:
    """Returns the number of classes of an adapter and their names in the order of its file.

    The number is None if the adapter has no classifier. If the adapter does not name the classes and the backbone has
    the same number of them, the names are those of the backbone; None if neither names them, or if a new last layer
    replaces the adapter's. Raises ValueError for a backbone that is not an encoder, and for a head that is not a
    classifier.
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
    if new_head:
        return count, None
    task = config.get("auto_mapping")
    task = task.get("base_model_class") if isinstance(task, dict) else None
    check_task({"architectures": [task]} if task else {}, directory)
    check_kind(base, count, directory)
    names = file_labels(config, count, directory)
    return count, names_of_backbone(base, count, path) if names is None else names


def load_adapted(
    source: str | Path,
    base: str = "",
    labels: tuple[str, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: str = "none",
    trainable: bool = False,
    new_head: bool = False,
) -> Encoder:
    """Loads an adapter's directory or hub id on its backbone, in eval() mode.

    base: the backbone, if it is not where the adapter's file says (`--base`).  labels: the classes that the model must
    distinguish, in order, matched by name (nn/class_matching.py); None: the adapter's.  dtype, quantize: as in
    load_pretrained.  trainable: as in load_adapter.  new_head: initializes the last layer at random for `labels`.
    Raises FileNotFoundError, TypeError and ValueError as the two functions do.
    """
    directory = adapter_directory(source)
    labels = None if labels is None else checked_names(labels)
    check_config(read_adapter_config(directory), directory)
    backbone = adapter_base(directory, base)
    count, names = adapter_classes(directory, backbone, new_head)
    if count is None and not new_head:
        return load_adapter(load_pretrained(backbone, labels, dtype, quantize), directory, trainable)
    if count is None:  # the adapter may change the classifier of the backbone, which is replaced afterwards
        try:
            plain = load_pretrained(backbone, None, dtype, quantize)
        except ValueError:  # a head of another task, which no adapter of a classifier changes
            plain = load_pretrained(backbone, labels, dtype, quantize, new_head=True)
        plain.newly_initialized -= {"classifier.weight", "classifier.bias"}
        model = load_adapter(plain, directory, trainable)
        replace_head(model, labels or model.config.labels)
        return model
    rows = names or placeholder_names(count)
    plain = load_pretrained(backbone, rows if count > 1 else SENTIMENT, dtype, quantize, new_head=True)
    if count == 1:  # of a regression, until a new layer replaces it
        resize_head(plain, rows)
    model = load_adapter(plain, directory, trainable, new_head)
    if new_head:
        replace_head(model, labels or SENTIMENT)
    elif labels is not None:
        head = head_by_name(names or (), labels)
        if head is None:
            head = match_head({"id2label": dict(enumerate(names))} if names else {}, count, labels, directory)
        reorder_classes(model, head.order)
        set_labels(model, head.labels)
        model.adapter["class_order"] = head.order
    elif names is None:
        print(f"labels: {directory} does not name its classes; by position they are {', '.join(model.config.labels)}")
    return model


def resize_head(model: Any, labels: tuple[str, ...]) -> None:
    """Replaces the last layer of a model with a newly initialized one for `labels`, in place."""
    old = model.classifier.weight
    model.classifier = Linear(old.size(1), len(labels), device=old.device, dtype=old.dtype)
    init_weights(model.classifier, model.config.initializer_range)
    model.newly_initialized |= {"classifier.weight", "classifier.bias"}
    set_labels(model, labels)


def replace_head(model: Encoder, labels: tuple[str, ...]) -> None:
    """Replaces the last layer of an adapted model with a newly initialized one for `labels`, in place."""
    resize_head(model, labels)
    model.adapter["class_order"] = ()
    before, _ = model.adapter["before"]
    before |= {f"classifier.{name}": p.detach().clone() for name, p in model.classifier.named_parameters()}
    model.adapter["before"] = before, labels
