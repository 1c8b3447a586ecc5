"""Builds the model of a run: random or published weights, an adapter that is continued, or a new one."""

from dataclasses import asdict

import torch

from data.labels import SENTIMENT
from data.options import Options, Settings
from data.resolve import adapter_folder
from data.runs import Run
from data.seeds import derive_seed
from data.tokenization import Tokenizer
from nn import Model
from nn.build import check_architecture, pretrained_model, random_model
from nn.dropout import Dropout, set_dropout
from nn.optim import reinitialize
from peft.adapters import apply, check_positions
from peft.classifier import check_backbone
from peft.loading import load_adapted
from peft.prompt import VirtualTokenOptions
from peft.wrapped import added_modules


def build_model(settings: Settings, tokenizer: Tokenizer, labels: tuple[str, ...] | None = SENTIMENT) -> Model:
    """Builds the model from random or published weights and applies the method.

    labels: names of the classes; None: those of the weights, for pretraining. Raises ValueError for weights, a
    tokenizer or options that do not fit the model.
    """
    options = settings.options
    torch.manual_seed(derive_seed(options.seed, "initialisation"))
    continues_adapter = options.weights != "none" and adapter_folder(options.weights) is not None
    if options.weights == "none":
        model = random_model(options.model, options.shape, labels or SENTIMENT, tokenizer)
    elif continues_adapter:
        model = continued_model(options, labels)
    else:
        model = pretrained_model(options.model, options.weights, labels, options.quantize, options.head == "new")
    if tokenizer.vocab_size > model.config.vocab_size:
        sizes = f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model {model.config.vocab_size:,}"
        raise ValueError(f"{sizes}: they do not belong together; fetch the checkpoint again, or use other --weights")
    if options.dropout >= 0:
        set_dropout(model, options.dropout, skip=added_modules(model))  # an adapter has a rate of its own
    if min(options.dropout, options.classifier_dropout) >= 0 and not has_other_dropout(model):
        print(f"note: --dropout has no effect: --classifier-dropout sets the only dropout of this {options.model}")
    if options.classifier_dropout >= 0:
        model.dropout = Dropout(options.classifier_dropout)
    if options.checkpointing and not len(model.layers):
        raise ValueError(f"--checkpointing recomputes stacked layers; {options.model} has none")
    model.checkpointing = options.checkpointing
    reinitialize(model, options.reinit_layers)
    if not continues_adapter:
        apply_method(model, settings, tokenizer)
    if options.weights == "none" and options.peft != "none":
        print(f"warning: random weights are all trained, including those that --peft {options.peft} would freeze")
    check_positions(model, options.max_length)
    return model


def has_other_dropout(model: Model) -> bool:
    """Returns whether a model has dropout besides that of its head."""
    return any(isinstance(module, Dropout) and module is not model.dropout for module in model.modules())


def continued_model(options: Options, labels: tuple[str, ...] | None) -> Model:
    """Loads an adapter and its backbone to train them further. Raises ValueError if either is not what was recorded."""
    weights, new_head = options.weights, options.head == "new"
    model = load_adapted(weights, options.base, labels, quantize=options.quantize, trainable=True, new_head=new_head)
    check_architecture(type(model), options.model, weights)
    check_backbone(Run.of_weights(weights), model, options.base)
    return model


def apply_method(model: Model, settings: Settings, tokenizer: Tokenizer) -> None:
    """Applies the parameter-efficient method to the model, in place."""
    init_ids = None
    if isinstance(settings.method, VirtualTokenOptions):
        init_ids = next(tokenizer.subword_ids([settings.method.prompt_text]))
    apply(model, settings.options.peft, init_ids, **asdict(settings.method))
