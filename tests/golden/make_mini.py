"""Writes mini.json: the outputs of transformers with the built-in checkpoint, and the hashes of its files.

pip install torch transformers && python tests/golden/make_mini.py
"""

import hashlib
import json
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / "data" / "weights" / "deberta-mini"
TEXTS = [
    "A wonderful little film. The acting is superb, and I didn't want it to end!",
    "Two hours of my life that I'll never get back: wooden, predictable, dull.",
]

if __name__ == "__main__":
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(FOLDER)
    model = transformers.DebertaV2Model.from_pretrained(FOLDER, dtype=torch.float32).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        h = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    golden = {
        "transformers": transformers.__version__,
        "texts": TEXTS,
        "input_ids": [
            ids[: sum(mask)]
            for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
        ],
        "hidden": [[round(value, 6) for value in row] for row in h[:, 0].tolist()],
        "sha256": {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(FOLDER.glob("*")) if p.suffix != ".md"
        },
    }
    (HERE / "mini.json").write_text(json.dumps(golden) + "\n")
