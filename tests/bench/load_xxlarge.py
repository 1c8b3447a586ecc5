"""Measures memory and time of loading a checkpoint of deberta-v2-xxlarge's shape: 1.57 billion random parameters, fp16.

    python tests/bench/load_xxlarge.py FOLDER [fp32|bf16]

The first call writes the checkpoint into FOLDER (3.2 GB, four shards). The next call loads it, runs one forward pass
over 64 tokens and prints the peak memory of loading, also as a multiple of the model's size in the target dtype. Needs
8 GB of memory for fp32, 5 GB for bf16.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data.files import write_json
from data.hub import CONFIG, INDEX
from nn.checkpoint import load_pretrained, translate, write_config
from nn.deberta import Deberta, DebertaConfig

SHARDS = 4
XXLARGE = DebertaConfig(
    hidden_size=1536,
    num_layers=48,
    num_heads=24,
    feed_forward_size=6144,
    attention_head_size=64,
    relative_attention=True,
    position_buckets=256,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type=("p2c", "c2p"),
    position_biased_input=False,
    conv_kernel_size=3,
    conv_act="gelu",
)


def random_weights(name: str, shape: torch.Size) -> torch.Tensor:
    """Draws N(0, 0.02²) in fp16; the scales of layer norms have mean 1."""
    return torch.randn(shape).mul_(0.02).add_(float("Norm.weight" in name)).half()


def write(folder: Path) -> None:
    """Writes the checkpoint, one shard in memory at a time."""
    with torch.device("meta"):
        model = Deberta(XXLARGE)
    shapes = [(translate(name, model.KEYS), p.shape) for name, p in model.named_parameters()]
    torch.manual_seed(0)
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {name: random_weights(name, shape) for name, shape in shapes[shard::SHARDS]}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})
    write_json(folder / CONFIG, write_config(model))


def peak() -> int:
    """Returns the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path, dtype: torch.dtype) -> None:
    """Loads the checkpoint, runs one forward pass and prints the measurements."""
    before, start = peak(), time.perf_counter()
    model = load_pretrained(folder, dtype=dtype).eval()
    seconds, loaded = time.perf_counter() - start, peak() - before
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    start = time.perf_counter()
    with torch.inference_mode():
        logits = model(torch.arange(1, 65)[None], torch.ones(1, 64, dtype=torch.bool))
    row = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "model_bytes": size,
        "peak_bytes_of_loading": loaded,
        "ratio": round(loaded / size, 3),
        "load_seconds": round(seconds, 1),
        "forward_seconds": round(time.perf_counter() - start, 1),
        "logits": [round(value, 4) for value in logits[0].float().tolist()],
    }
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    if (folder / INDEX).exists():
        main(folder, {"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2] if len(sys.argv) > 2 else "fp32"])
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
        print(f"written to {folder}; call again to load it in a new process")
