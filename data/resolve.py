"""Resolves the command line of train.py, or the record of a run, into settings, with the origin of each value.

The three tables of models, methods and objectives are arguments. A value comes from default < model < method <
objective < random or built-in weights < adapter < command line; for the built-in reviews see find_data.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from data import find_source
from data.checked import about, as_object, check_types, has_type, listed
from data.flags import check_choice, field_names, flag, merge_defaults, parse_flags
from data.hub import adapter_method, adapter_options, find_adapter
from data.labels import LONGEST_CLASS, is_class_name
from data.option_checks import check_effect, check_owners, check_values
from data.options import (
    COLUMNS,
    DESCRIPTION,
    EXAMPLES,
    FROM_BUILTIN,
    FROM_DEMO,
    FROM_RANDOM,
    OF_WORDS,
    Options,
    Settings,
    Tables,
)
from data.runs import Run


def parse(argv: list[str] | None, tables: Tables) -> dict[str, Any]:
    """Returns {field: value} for the flags on the command line."""
    lists = {"model": tables.models, "peft": tables.methods, "loss": tables.objectives}
    return parse_flags(tables.option_classes(), argv, DESCRIPTION, lists, EXAMPLES)


def resolve(argv: list[str] | None, tables: Tables) -> tuple[Settings, Run | None]:
    """Resolves the command line into settings; returns the run as well if it resumes one."""
    given = parse(argv, tables)
    if given.get("resume"):
        return resume(given, tables)
    model = check_choice("model", given.get("model", Options.model), tables.models)
    own = continued_adapter(given, tables)
    method = check_choice("method", (given | own).get("peft", Options.peft), tables.methods)
    objective = check_choice("objective", given.get("loss", Options.loss), tables.objectives)
    weights = given.get("weights", objective.training.get("weights", model.weights))
    own_words = OF_WORDS if weights != "none" else ()  # a checkpoint has its vocabulary and vectors
    of_model = {name: value for name, value in model.training.items() if name not in own_words}
    layers = [("model", of_model | {"weights": model.weights}), ("method", method.training)]
    layers += [("objective", objective_defaults(given, tables, weights))]
    if weights == "none" and model.weights != "none" and not objective.pretraining:
        layers += [("random weights", FROM_RANDOM)]
    if weights == "builtin" and not objective.pretraining:
        layers += [("built-in weights", FROM_BUILTIN | method.builtin)]
    classes = (Options, method.options, objective.options)
    values, origins = merge_defaults(classes, [*layers, ("adapter", own), ("command line", given)])
    settings = Settings.build(values, origins, tables)
    check_owners(given, settings.options, tables)
    check_effect(given, settings, model, objective)
    check_values(settings.options, model, objective)
    return settings, None


def objective_defaults(given: Mapping[str, Any], tables: Tables, weights: str) -> dict[str, Any]:
    """Returns the training defaults of the objective; with trained weights those to continue from them, and no shape.

    Raises ValueError for a model whose config lacks a field of the shape.
    """
    objective, model = given.get("loss", Options.loss), given.get("model", Options.model)
    defaults = dict(tables.objectives[objective].training)
    needed = {part.partition("=")[0] for part in defaults.get("shape", "").split()}
    fitting = [name for name, entry in tables.models.items() if needed <= field_names(entry.build.Config)]
    if model not in fitting:
        raise ValueError(f"--loss {objective} is for --model {' or '.join(fitting)}, not {model}")
    if weights != "none":
        defaults |= tables.objectives[objective].continued
        defaults.pop("shape", None)
    return defaults


def adapter_folder(weights: str) -> Path | None:
    """Returns the folder `weights` if it is an adapter, otherwise None; an adapter on the hub is not one."""
    return find_adapter(weights) if weights and Path(weights).expanduser().is_dir() else None


def continued_adapter(given: Mapping[str, Any], tables: Tables) -> dict[str, Any]:
    """Returns the method and its options if --weights is an adapter, which is then trained further; otherwise {}.

    Raises ValueError for a flag that contradicts the adapter's own settings.
    """
    weights = given.get("weights", "")
    directory = adapter_folder(weights)
    if directory is None:
        if given.get("base"):
            is_none = f"--weights {weights} is not one" if weights else "give that folder as --weights"
            raise ValueError(f"--base names the backbone of an adapter folder; {is_none}")
        return {}
    method = adapter_method(directory)
    if given.get("peft", method) != method:
        raise ValueError(f"{weights} is a {method} adapter; leave out --peft {given['peft']}")
    if given.get("reinit_layers"):
        raise ValueError(f"--reinit-layers changes a backbone, which the adapter {weights} leaves frozen; leave it out")
    fixed = field_names(tables.methods[method].options) - {"lora_plus"}
    if clash := [flag(name) for name in given if name in fixed]:
        raise ValueError(f"{weights} is an adapter with settings of its own; leave out {', '.join(clash)}")
    return {"peft": method} | adapter_options(directory)


def resume(given: Mapping[str, Any], tables: Tables) -> tuple[Settings, Run]:
    """Returns the settings of the run folder given["resume"], and the run. Raises ValueError for any other flag."""
    if others := [flag(name) for name in given if name != "resume"]:
        raise ValueError(f"--resume uses the run's own options; leave out {', '.join(others)}")
    run = Run.open(given["resume"], "--resume")
    return recorded_settings(run, tables), run


def recorded_settings(run: Run, tables: Tables) -> Settings:
    """Returns the settings that a run's config.json records.

    An option that is missing has its default, which is printed for a run folder. Raises ValueError that names the file
    for an unknown option, and for a value of another type or out of range: another version of this program may have
    written it.
    """
    path, config = run.config_file, run.config
    as_object(config, path)
    values, origins = as_object(config.get("options"), f"options of {path}"), config.get("origins", {})
    if isinstance(teacher := values.get("teacher"), str):  # one name, as older versions wrote it
        values = values | {"teacher": tuple(filter(None, [teacher]))}
    with about(path):
        check_types(values, {"model": str, "peft": str, "loss": str})
        if not has_type(origins, dict[str, str]) or not has_type(config.get("labels"), list[str] | None):
            raise ValueError("origins must be an object of texts, and labels a list of texts")
        if not all(map(is_class_name, config.get("labels") or ())):
            long = f"or more than {LONGEST_CLASS} characters"
            raise ValueError(f"labels has a name with control characters {long}: {listed(config['labels'])}")
        model = check_choice("model", values.get("model", ""), tables.models)
        method = check_choice("method", values.get("peft", ""), tables.methods)
        objective = check_choice("objective", values.get("loss", ""), tables.objectives)
        known = {field.name: field for cls in (Options, method.options, objective.options) for field in fields(cls)}
        if unknown := [name for name in values if name not in known]:
            way_out = "check out the commit in this file, or give the best/ of the run as --weights"
            raise ValueError(
                f"unknown options {listed(unknown)}; another version of this program wrote them; {way_out}"
            )
        missing = [name for name in known if name not in values]
        if missing and path.name == "config.json":  # a published row stays as it was
            warn_of_older_version(path, listed(missing))
        values = {name: field.default for name, field in known.items()} | values
        origins = dict.fromkeys(known, "default") | origins
        check_types(values, {name: field.type for name, field in known.items()})
        settings = Settings.build(values, origins, tables)
        check_values(settings.options, model, objective)
    return settings


@cache
def warn_of_older_version(path: Path, missing: str) -> None:
    """Prints once that a config.json lacks options."""
    print(f"warning: {path} lacks {missing}, as an older version wrote it; the defaults are used")


def absolute_paths(options: Any) -> Any:
    """Returns an options dataclass with absolute paths, so that a run can be used from any folder."""
    keywords = {"weights": ("none", "builtin"), "word_vectors": ("none", "train", "builtin")}
    changes: dict[str, Any] = {}
    for name in ("weights", "base", "word_vectors", "train", "validation", "test"):
        value = getattr(options, name, "")
        if value and value not in keywords.get(name, ()):
            changes[name] = absolute_path(value)
    if teacher := getattr(options, "teacher", ()):
        changes["teacher"] = tuple(map(absolute_path, teacher))
    return replace(options, **changes)


def absolute_path(name: str) -> str:
    """Returns the absolute path of a file or folder that exists; other names, such as hub ids, as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def find_data(settings: Settings, tables: Tables) -> tuple[Settings, str]:
    """Returns the settings with the data source that was found, and the reason.

    The built-in reviews have defaults of their own. A model may have further ones for them, and a method may have
    some for them and the built-in weights. They replace general defaults and those of the model, the method and the
    built-in weights.
    """
    options, origins = absolute_paths(settings.options), settings.origins
    settings = settings._replace(objective=absolute_paths(settings.objective))
    if options.train:
        return settings._replace(options=options), f"--train {options.train}"
    source, why = find_source(options.data)
    defaults: dict[str, Any] = {}
    if source == "demo":
        no_file = not (options.validation or options.test)
        if no_file and (idle := [name for name in (*COLUMNS, "skip_bad_rows") if origins[name] == "command line"]):
            raise ValueError(f"{flag(idle[0])} has no effect here: the built-in reviews are in no file")
        of_weights = tables.methods[options.peft].demo if options.weights == "builtin" else {}
        defaults = FROM_DEMO | tables.models[options.model].demo | of_weights
    replaced = ("default", "model", "method", "built-in weights")
    values = {name: value for name, value in defaults.items() if origins[name] in replaced}
    origins = origins | dict.fromkeys(values, "built-in reviews")
    return settings._replace(options=replace(options, data=source, **values), origins=origins), why


def repeats_batches(options: Options) -> bool:
    """Returns whether the weights come from a run with the same seed and data.

    This run would then see the same batches under the same dropout masks as that one, and those batches are memorized
    (data/results/SEARCH.md: "The same seed twice").
    """
    run = Run.of_weights(options.weights)
    before = run.config.get("options", {}) if run is not None else {}
    same = (
        "seed", "data", "train", "validation", "train_reviews", "train_on_validation", "truncate", "max_length",
        "batch_size", "tokens_per_batch",
    )  # fmt: skip
    return bool(before) and all(before.get(name, getattr(Options, name)) == getattr(options, name) for name in same)
