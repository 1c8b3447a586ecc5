"""Loads classifiers and scores reviews with them: a finished run, a checkpoint, an ensemble of them.

A `Scorer` has a model, its tokenizer, and the truncation with which the model was trained. `load_classifier` takes
what `--teacher` names; eval.py loads what `--run` and `--weights` name.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data import ranks
from data.batches import no_check
from data.calibration import calibration
from data.checked import about, as_object, listed
from data.checksums import check_checksums, tensors_digest
from data.corpus import Corpus, examples_of, warn_unknown
from data.ensemble import Blend, Ensemble, Member, Part, read_members
from data.explanation import Explanation
from data.files import in_shell, user_path
from data.flags import check_choice, check_different
from data.hub import ADAPTER_CONFIG, BUILTIN, LINEAR, MEMBERS, backbone_is_missing, find_adapter
from data.imdb import as_frame
from data.labels import UNKNOWN
from data.options import Options, Tables, truncation_of
from data.resolve import recorded_settings
from data.runs import Run
from data.tokenization import Tokenizer, load_tokenizer
from data.weight_files import backbone_digests
from data.windows import Truncation, checked_truncation, read_truncation, replaced
from nn import MODELS, Model, name_of
from nn.checkpoint import load_pretrained
from nn.explain import explain
from nn.quant import FORMS
from nn.runtime import Machine
from nn.sharding import is_sharded
from peft.adapters import positions, set_labels
from peft.loading import load_adapted
from peft.scoring import score


class Scorer:
    """Scores and explains reviews with one model."""

    def __init__(self, model: Model, tokenizer: Tokenizer, machine: Machine, truncation: Truncation) -> None:
        self.model, self.tokenizer, self.machine = model, tokenizer, machine
        self.truncation = truncation
        self.labels: tuple[str, ...] = model.config.labels
        self.kind = model.model_type
        self.is_compared = ranks.alone()  # whether the models of all ranks were compared

    @classmethod
    def of_run(
        cls, run: Run, trained: Options, machine: Machine, quantize: str = "run", base: str = "", **other: Any
    ) -> "Scorer":
        """Loads the best model of a run.

        trained: the run's options.  quantize: int8, nf4, none, or run: as it was trained.  base: as `load_run`.
        other: fields that replace those of the run's truncation.
        """
        check_choice("quantize", quantize, dict.fromkeys(("run", *FORMS)))
        model, tokenizer = load_run(run, machine.device, trained.quantize if quantize == "run" else quantize, base)
        set_labels(model, run.labels or model.config.labels)  # a checkpoint may spell those of the data differently
        return cls(model, tokenizer, machine, replaced(truncation_of(trained), **other))

    @classmethod
    def of_checkpoint(
        cls, weights: str, machine: Machine, quantize: str = "none", base: str = "", max_length: int = 0, **other: Any
    ) -> "Scorer":
        """Loads a checkpoint: a folder or a hub id. Raises ValueError if it has no classifier.

        base: the backbone of its adapter, if it was moved.  max_length: in tokens; 0: that of its training, if the
        checkpoint records it, else the model's, 512 at most for an encoder.  other: fields that replace those of the
        truncation.
        """
        check_choice("quantize", quantize, dict.fromkeys(FORMS))
        if (adapter := find_adapter(weights)) is not None:
            model: Model = load_adapted(weights, base, quantize=quantize)
            check_backbone(Run.of_weights(weights), model, base)
        elif base:
            raise ValueError(f"--base names the backbone of an adapter, and {weights} is not an adapter")
        else:
            model = load_pretrained(weights, quantize=quantize)
        tokenizer = load_tokenizer(weights, base=base)
        lacks = sorted(model.newly_initialized)
        if lacks and model.adapter is None:  # an adapter's file has its classifier (peft/loading.py)
            command = f"train.py --model {name_of(type(model))} --weights {in_shell(weights)}"
            raise ValueError(f"{weights} has no classifier (its files lack {listed(lacks)}); {command} trains one")
        folder = adapter or model.source
        recorded = folder and (read_truncation(folder) or recorded_truncation(folder))
        own = recorded or usual_truncation(model, tokenizer)
        if max_length:
            own = own._replace(max_length=max_length)
        return cls(model.to(machine.device).eval(), tokenizer, machine, replaced(own, **other))

    def corpus(self, frame: pd.DataFrame, cache: Path | None = None) -> Corpus:
        """Tokenizes the reviews of a frame. Raises ValueError for a token that is not in the model's word table."""
        corpus, rows = examples_of(self.tokenizer, frame, self.truncation, cache), self.model.config.vocab_size
        largest = max(self.tokenizer.pad_id, int(corpus.ids.max(initial=0)))
        if largest >= rows:
            token = f"{self.tokenizer.tokens[largest]!r} has the id {largest}"
            raise ValueError(f"{self.tokenizer.source}: {token}, the model only {rows:,} tokens; they do not fit")
        return corpus

    def logits(self, corpus: Corpus, check: Callable[[], None] = no_check, bar: bool = True) -> np.ndarray:
        """Computes logits: float32 [N, C]. Raises ValueError if the ranks have different models."""
        if not self.is_compared:
            check_same_model(self.model)
            self.is_compared = True
        return score(self.model, corpus, self.machine, check, bar)

    def score_frame(self, frame: pd.DataFrame, check: Callable[[], None] = no_check) -> np.ndarray:
        """Computes the logits of the reviews of a frame: float32 [N, C]. check: called between batches"""
        corpus = self.corpus(frame)
        warn_unknown(self.tokenizer, corpus, has_text=(frame["review"] != "").to_numpy())
        return self.logits(corpus, check)

    def score_texts(self, texts: list[str], bar: bool = True) -> np.ndarray:
        """Computes the logits of cleaned texts: float32 [N, C]"""
        return self.logits(self.corpus(as_frame([("text", text, UNKNOWN) for text in texts])), bar=bar)

    def explain(self, text: str, key: str = "", truth: str = "", label: int | None = None) -> Explanation:
        """Explains a label of a cleaned text.

        label: index; None: the predicted one.  key, truth: id and label in a file.
        """
        return explain(self.model, self.tokenizer, text, self.truncation, self.score_texts, key, truth, label)


def check_same_model(model: Model) -> None:
    """Raises ValueError if the ranks, which score a share of the reviews each, have different models."""
    if is_sharded(model):  # whose weights are those of rank 0
        return
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    if len(set(ranks.gather(tensors_digest(tensors, {"labels": ", ".join(model.config.labels)})))) > 1:
        ranks.fail(ValueError("the ranks load different models; give them folders that are equal on all machines"))


def recorded_truncation(folder: Path) -> Truncation | None:
    """Returns how a run cut its reviews if `folder` is its best/; an older version wrote no truncation.json there.

    Raises ValueError for a damaged config.json.
    """
    run = Run.of_weights(str(folder))
    if run is None or not run.config_file.is_file():
        return None
    names = {"max_length": "max_length", "truncate": "truncate", "window_stride": "stride", "window_pooling": "pooling"}
    with about(run.config_file):
        options = as_object(run.config.get("options"), "options")
        if "max_length" not in options:
            return None
        return checked_truncation({field: options[name] for name, field in names.items() if name in options})


def usual_truncation(model: Model, tokenizer: Tokenizer) -> Truncation:
    """Returns the default truncation, for a checkpoint that does not record the truncation of its training."""
    trained = MODELS[name_of(type(model))].training
    limit = trained.get("max_length", 512)
    virtual, available = positions(model)
    limit = int(min(limit, tokenizer.model_max_length or limit, available - virtual))
    return Truncation(limit, "tail" if tokenizer.truncation_side == "left" else trained.get("truncate", "head"))


def is_adapter(run: Run) -> bool:
    """Returns whether the best model of a run is an adapter."""
    return (run.best / ADAPTER_CONFIG).is_file()


def load_run(run: Run, device: torch.device, quantize: str, base: str = "") -> tuple[Model, Tokenizer]:
    """Loads the best model of a run, in eval() mode, and its tokenizer.

    quantize: int8, nf4 or none.  base: the backbone of its adapter, if it was moved. Raises ValueError for a base
    without an adapter, and FileNotFoundError if no epoch was finished or the backbone is not found.
    """
    check_checksums(run.best)
    check_checksums(run.tokenizer)
    if is_adapter(run):
        model: Model = load_adapted(run.best, base=base, labels=run.labels, quantize=quantize)
        check_backbone(run, model, base)
    elif base:
        raise ValueError(f"--base names the backbone of an adapter, which {run.folder} does not have; leave it out")
    elif (run.best / "config.json").is_file():
        model = load_pretrained(run.best, run.labels, quantize=quantize)
    else:
        problem = "restore it" if run.result is not None else "no epoch of the run is finished yet"
        raise FileNotFoundError(f"{run.best} holds no model; {problem}")
    if not run.tokenizer.is_dir():
        raise FileNotFoundError(f"{run.tokenizer} is missing; restore it")
    return model.to(device).eval(), load_tokenizer(run.tokenizer)


def check_backbone(run: Run | None, model: Model, base: str) -> None:
    """Compares the frozen weights under the adapter of a run with those of its training.

    base: --base. Raises ValueError if a file of the backbone changed, or prints a warning if --base names the backbone.
    """
    if run is None or model.source is None or model.source == run.best / "base":  # trained: best/ has its checksums
        return
    changed, way_out = run.changed_backbone(backbone_digests(model.source)), "restore it"
    if model.source.resolve() == BUILTIN.resolve() and run.predates_builtin():
        changed, way_out = "model.safetensors", f"check out the commit in {run.config_file}"
    if changed:
        problem = f"{model.source / changed} is not as it was when {run.folder} was trained"
        if not base:
            raise ValueError(f"{problem}; {way_out}, or score with eval.py --base {in_shell(model.source)} as it is")
        print(f"warning: {problem}")


def load_checkpoint(weights: str, machine: Machine, **how: Any) -> Scorer | Blend:
    """Loads a checkpoint, or the members that its members.json lists. how: arguments of `Scorer.of_checkpoint`"""
    folder = user_path(weights)
    if not (folder / MEMBERS).is_file():
        return Scorer.of_checkpoint(weights, machine, **how)
    return Blend(
        [
            Part(m.folder.name, m.factor, Scorer.of_checkpoint(str(m.folder), machine, **how), m.power)
            for m in read_members(folder)
        ]
    )


def load_classifier(sources: Sequence[str], machine: Machine, tables: Tables) -> Scorer | Blend | Ensemble:
    """Loads a classifier from run folders, checkpoint folders or hub ids; none: the built-in linear model.

    Several are an ensemble. The temperature of a checkpoint is 1, since its validation reviews are not known. Raises
    ValueError for a run without a classifier and for different classes. Raises FileNotFoundError for a source that is
    none of these and for a run whose backbone was moved.
    """
    check_different(sources, "--teacher")
    members: list[Member] = []
    for source in sources or [str(LINEAR)]:
        if not (user_path(source) / "log.jsonl").is_file():
            members.append(Member(source, 1.0, load_checkpoint(source, machine)))
            continue
        run = Run.open(user_path(source))
        check_classifier(run, tables)
        if is_adapter(run) and backbone_is_missing(run.best):
            command = f"eval.py --run {in_shell(source)} --base DIR_OR_ID --merge FOLDER"
            way_out = f"restore it, or run {command}, and let --teacher name FOLDER"
            raise FileNotFoundError(f"the backbone of the adapter {run.best} is not found; {way_out}")
        temperature = calibration(run) if len(sources) > 1 else 1.0
        members.append(Member(source, temperature, Scorer.of_run(run, recorded_settings(run, tables).options, machine)))
    return members[0].scorer if len(members) == 1 else Ensemble(members)


def is_pretraining(run: Run, tables: Tables) -> bool:
    """Returns whether a run, of any version, was pretraining, which leaves no classifier."""
    return run.config["options"].get("loss") in [name for name, entry in tables.objectives.items() if entry.pretraining]


def check_classifier(run: Run, tables: Tables) -> None:
    """Raises ValueError for a run that was pretraining."""
    model = recorded_settings(run, tables).options.model
    if is_pretraining(run, tables):
        way_out = f"train.py --model {model} --weights {in_shell(run.best)} adds one"
        raise ValueError(f"{run.folder} was pretrained and has no classifier; {way_out}")
