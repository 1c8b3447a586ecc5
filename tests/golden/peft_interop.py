"""Exchanges adapters with huggingface/peft: its adapters must give equal logits here, and ours there.

    python tests/golden/peft_interop.py theirs          with transformers 5.23.0, peft 0.21.2: writes adapters/
    python tests/golden/peft_interop.py ours FOLDER     with this project: reads adapters/, writes its own into FOLDER
    python tests/golden/peft_interop.py back FOLDER     with transformers and peft: reads FOLDER

The steps need two environments, and imports inside functions, because both packages are called peft. Each step prints a
table with a row for each method and a column for each family. A cell is the largest difference of logits, or the error
of a program that cannot run the method. The backbones are the tiny checkpoints in this folder. The classifier reads the
first virtual token of a prompt, as in huggingface/peft. The rows of READ are written by huggingface/peft, read here,
and saved again:

    lora_head      DoRA on all linear layers, the pooler among them
    lora_layers    layers_to_transform, in adapter_model.bin
    lora_modules   modules_to_save with the embeddings and the norms of the backbone
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module

HERE = Path(__file__).parent
ADAPTERS = HERE / "adapters"
# the layers that each family's adapters change: query and value, which ModernBERT has in one layer
FAMILIES = {
    "bert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "roberta": ["query", "value"],
    "deberta_v3": ["query_proj", "value_proj"],
    "electra": ["query", "value"],
    "xlm_roberta": ["query", "value"],
    "modernbert": ["Wqkv"],
}
# the layers that IA³ scales, and those whose input it scales, in the families for which peft has none
IA3 = {
    "distilbert": (["k_lin", "v_lin", "lin2"], ["lin2"]),
    "electra": (["key", "value", "output.dense"], ["output.dense"]),
    "xlm_roberta": (["key", "value", "output.dense"], ["output.dense"]),
    "modernbert": (["Wqkv", "mlp.Wo"], ["mlp.Wo"]),
}
# families for which peft's all-linear leaves the classification head out; for the others a pattern does
ALL_LINEAR = ("distilbert", "roberta", "electra", "xlm_roberta", "modernbert")
READ = ("lora_head", "lora_layers", "lora_modules")
METHODS = ("lora", "lora_all", "dora", "rslora", "ia3", *READ, "prompt", "p_tuning_mlp", "p_tuning_lstm", "prefix")
P, SCALE = 4, 0.15
# our method and its options for each row
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 3, "lora_bias": "all", "rank_pattern": "layers.1=2"}),
    "lora_all": ("lora", {"rank": 3, "targets": "all-linear"}),
    "dora": ("lora", {"rank": 3, "dora": True}),
    "rslora": ("lora", {"rank": 3, "rslora": True, "lora_bias": "lora_only", "alpha_pattern": "layers.0=5"}),
    "ia3": ("ia3", {}),
    "prompt": ("prompt", {"virtual_tokens": P, "pool": "virtual"}),
    "p_tuning_mlp": ("p_tuning", {"virtual_tokens": P, "pool": "virtual", "prompt_hidden": 9}),
    "p_tuning_lstm": (
        "p_tuning",
        {"virtual_tokens": P, "pool": "virtual", "prompt_hidden": 9, "prompt_encoder": "lstm"},
    ),
    "prefix": ("prefix", {"virtual_tokens": P}),
}


def batch(family: str) -> tuple[Tensor, Tensor]:
    """Returns the token ids and the mask of a family's golden batch: int64 and bool [B, T]."""
    expected = load_file(HERE / family / "expected.safetensors")
    return expected["input_ids"], expected["mask"]


def move_trainable_parameters(model: Module) -> None:
    """Adds noise to every trainable parameter, so that those that start at 0 change the logits."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += SCALE * torch.randn_like(parameter)


def show(rows: dict[str, dict[str, str]]) -> None:
    """Prints a table {method: {family: cell}} with short cells, and the full text of the cells that are no numbers."""
    print(f"{'':14}" + "".join(f"{family:14}" for family in FAMILIES))
    for method, cells in rows.items():
        print(f"{method:14}" + "".join(f"{cells.get(family, '-')[:13]:14}" for family in FAMILIES))
    for text in sorted({cell for cells in rows.values() for cell in cells.values() if not cell[0].isdigit()}):
        print(f"  {text}")


# ------------------------------------------------------------------------------------------ with huggingface/peft


def their_config(method: str, family: str) -> Any:
    """Returns huggingface/peft's config of a method for a family."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    sizes = json.loads((HERE / family / "config.json").read_text())
    virtual = {"task_type": "SEQ_CLS", "num_virtual_tokens": P}
    if family == "distilbert":  # peft does not find these sizes in its config
        virtual |= {"token_dim": sizes["dim"], "num_layers": sizes["n_layers"], "num_attention_heads": sizes["n_heads"]}
    if "embedding_size" in sizes and method != "prefix":  # peft takes the width of the layers
        virtual |= {"token_dim": sizes["embedding_size"]}
    targets = FAMILIES[family]
    query = targets[0]
    lora = {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 7, "target_modules": targets}
    match method:
        case "lora":
            pooler = "head" if family == "modernbert" else "pooler"
            return LoraConfig(**lora, modules_to_save=[pooler], bias="all", rank_pattern={query: 2})
        case "lora_all":
            everything = "all-linear" if family in ALL_LINEAR else r".*encoder\.layer.*(query|key|value|dense).*"
            return LoraConfig(
                **(lora | {"target_modules": everything}),
                exclude_modules=["pre_classifier", "classifier.dense", "classifier.out_proj", "head.dense"],
            )
        case "ia3":
            scaled, inner = IA3.get(family, (None, None))  # None: peft's own, which scale a layer after attention too
            return IA3Config(task_type="SEQ_CLS", target_modules=scaled, feedforward_modules=inner)
        case "lora_head":
            everything = {"target_modules": "all-linear", "use_dora": True, "bias": "all"}
            return LoraConfig(**(lora | everything))
        case "lora_layers":
            return LoraConfig(**lora, layers_to_transform=[1])
        case "lora_modules":
            modules = (
                ["embeddings.norm", "tok_embeddings"] if family == "modernbert" else ["word_embeddings", "LayerNorm"]
            )
            return LoraConfig(**lora, modules_to_save=modules)
        case "dora":
            return LoraConfig(**lora, use_dora=True)
        case "rslora":
            return LoraConfig(**lora, use_rslora=True, alpha_pattern={query: 5}, bias="lora_only")
        case "prompt":
            return PromptTuningConfig(**virtual)
        case "p_tuning_mlp":
            return PromptEncoderConfig(**virtual, encoder_hidden_size=9)
        case "p_tuning_lstm":
            return PromptEncoderConfig(**virtual, encoder_hidden_size=9, encoder_reparameterization_type="LSTM")
    return PrefixTuningConfig(**virtual)


def their_adapter(method: str, family: str) -> str:
    """Writes an adapter of huggingface/peft with its logits. Returns a cell of the table."""
    from transformers import AutoModelForSequenceClassification

    from peft import get_peft_model

    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(HERE / family)
    ids, mask = batch(family)
    folder = ADAPTERS / f"{family}-{method}"
    try:
        model = get_peft_model(base, their_config(method, family)).eval()
        move_trainable_parameters(model)
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
    except (ValueError, TypeError) as error:
        return f"peft: {error}"
    model.save_pretrained(folder, safe_serialization=method != "lora_layers")
    (folder / "README.md").unlink(missing_ok=True)
    save_file({"logits": logits.detach()}, folder / "expected.safetensors")
    return "0 (written)"


def theirs() -> None:
    """Writes the adapters of huggingface/peft for all methods and families."""
    shutil.rmtree(ADAPTERS, ignore_errors=True)
    show({method: {family: their_adapter(method, family) for family in FAMILIES} for method in METHODS})


def back(folder: Path) -> None:
    """Reads our adapters with huggingface/peft and compares the logits."""
    from transformers import AutoModelForSequenceClassification

    from peft import PeftModel

    rows: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*-*")):
        family, method = path.name.split("-")
        base = AutoModelForSequenceClassification.from_pretrained(HERE / family)
        ids, mask = batch(family)
        try:
            model = PeftModel.from_pretrained(base, path).eval()
            logits = model(input_ids=ids, attention_mask=mask.long()).logits
            cell = f"{(logits - load_file(path / 'expected.safetensors')['logits']).abs().max():.1e}"
        except (ValueError, KeyError, RuntimeError) as error:
            cell = f"peft: {error}"
        rows.setdefault(method, {})[family] = cell
    show(rows)


# ---------------------------------------------------------------------------------------------- with this project


def ours(folder: Path) -> None:
    """Reads the adapters of huggingface/peft, compares the logits, and writes our own adapters into `folder`."""
    sys.path.insert(0, str(HERE.parent.parent))
    import peft
    from nn.checkpoint import load_pretrained

    def read(method: str, family: str) -> str:
        """Returns a cell of the table."""
        path = ADAPTERS / f"{family}-{method}"
        if not path.is_dir():
            return "- (peft cannot run it)"
        model = peft.load_adapter(load_pretrained(HERE / family), path).eval()
        expected = load_file(path / "expected.safetensors")["logits"]
        return f"{(model(*batch(family)) - expected).abs().max():.1e}"

    print("written by peft, read by us")
    show({method: {family: read(method, family) for family in FAMILIES} for method in METHODS})
    for family in FAMILIES:
        for row in (row for row in READ if (ADAPTERS / f"{family}-{row}").is_dir()):
            model = peft.load_adapter(load_pretrained(HERE / family), ADAPTERS / f"{family}-{row}").eval()
            path = folder / f"{family}-{row}"
            peft.save_adapter(model, path, str(HERE / family))
            save_file({"logits": model(*batch(family)).detach()}, path / "expected.safetensors")
    for row, (method, options) in OURS.items():
        for family in FAMILIES:
            torch.manual_seed(0)
            model = peft.apply(load_pretrained(HERE / family), method, [3, 5, 7, 11], **options).eval()
            move_trainable_parameters(model)
            path = folder / f"{family}-{row}"
            peft.save_adapter(model, path, str(HERE / family))
            save_file({"logits": model(*batch(family)).detach()}, path / "expected.safetensors")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["theirs"]:
            theirs()
        case ["ours", folder]:
            ours(Path(folder))
        case ["back", folder]:
            back(Path(folder))
        case _:
            sys.exit(__doc__)
