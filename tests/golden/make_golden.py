"""Writes the golden files in this directory: tiny random checkpoints saved by transformers, with its logits and
gradients, and the token ids of sentencepiece.

    python tests/golden/make_golden.py [SPM_MODEL [TEST_REVIEWS_TSV]]

It needs a separate environment with torch 2.13.0, transformers 5.23.0 and sentencepiece 0.2.3.

Each subdirectory contains config.json, model.safetensors and expected.safetensors with
    input_ids, mask    [B, T]
    labels             [B]
    logits             [B, C], of the padded batch
    single             [B, C], of each row separately, without padding
    grad.<name>        the gradient of the mean cross-entropy, by published name
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

HERE = Path(__file__).parent
SIZES = {"vocab_size": 61, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 23}
V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "max_position_embeddings": 64,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}
CONV = {"conv_kernel_size": 3, "conv_act": "gelu"}
MODERN = {
    "num_hidden_layers": 4,
    "global_attn_every_n_layers": 3,
    "local_attention": 8,
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "cls_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
}
BIASES = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)
BASES = {
    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
ACTS = {"hidden_activation": "gelu_new", "classifier_activation": "relu"}
DISTIL = {"dim": 20, "n_layers": 2, "n_heads": 2, "hidden_dim": 23, "max_position_embeddings": 24}
CONFIGS = {
    "bert": (BertConfig, {"max_position_embeddings": 24}),
    "bert_3_labels": (BertConfig, {"max_position_embeddings": 24, "num_labels": 3, "hidden_act": "gelu_new"}),
    "bert_no_types": (BertConfig, {"max_position_embeddings": 24, "type_vocab_size": 1, "hidden_act": "relu"}),
    "distilbert": (DistilBertConfig, DISTIL),
    "distilbert_sinusoidal": (DistilBertConfig, DISTIL | {"sinusoidal_pos_embds": True, "num_labels": 3}),
    "roberta": (RobertaConfig, {"max_position_embeddings": 26, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta_3_labels": (RobertaConfig, {"max_position_embeddings": 30, "num_labels": 3, "classifier_dropout": 0.3}),
    "deberta_v3": (DebertaV2Config, V3),
    "deberta_v3_long": (DebertaV2Config, V3 | {"position_buckets": 4, "max_position_embeddings": 12}),
    "deberta_v2_conv": (DebertaV2Config, V3 | CONV | {"attention_head_size": 10}),
    "deberta_v2_grouped_conv": (DebertaV2Config, V3 | {"conv_kernel_size": 5, "conv_groups": 2, "conv_act": "tanh"}),
    "deberta_unshared": (DebertaV2Config, V3 | {"share_att_key": False}),
    "deberta_c2p": (DebertaV2Config, V3 | {"pos_att_type": "c2p"}),
    "deberta_p2c_no_buckets": (
        DebertaV2Config,
        V3 | {"pos_att_type": "p2c", "position_buckets": -1, "max_relative_positions": 9, "norm_rel_ebd": "none"},
    ),
    "deberta_biased_input": (
        DebertaV2Config,
        V3 | {"position_biased_input": True, "type_vocab_size": 2, "embedding_size": 14},
    ),
    "electra": (ElectraConfig, {"max_position_embeddings": 24, "embedding_size": 14}),
    "electra_3_labels": (
        ElectraConfig,
        {"max_position_embeddings": 24, "embedding_size": 20, "num_labels": 3, "classifier_dropout": 0.3},
    ),
    "xlm_roberta": (XLMRobertaConfig, {"max_position_embeddings": 26, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm_roberta_3_labels": (XLMRobertaConfig, {"max_position_embeddings": 30, "num_labels": 3}),
    "modernbert": (ModernBertConfig, MODERN),
    "modernbert_mean": (
        ModernBertConfig,
        MODERN | BIASES | ACTS | {"classifier_pooling": "mean", "num_labels": 3, "rope_parameters": BASES},
    ),
    "modernbert_128": (
        ModernBertConfig,
        MODERN | {"num_hidden_layers": 2, "local_attention": 128, "classifier_pooling": "mean"},
    ),
}
LENGTHS = {"modernbert_128": [150, 3, 90]}  # more tokens than the window reaches; of all others: [19, 3, 11]
CLASSES = {
    BertConfig: BertForSequenceClassification,
    DistilBertConfig: DistilBertForSequenceClassification,
    RobertaConfig: RobertaForSequenceClassification,
    DebertaV2Config: DebertaV2ForSequenceClassification,
    ElectraConfig: ElectraForSequenceClassification,
    XLMRobertaConfig: XLMRobertaForSequenceClassification,
    ModernBertConfig: ModernBertForSequenceClassification,
}


def make(name: str, config_class: type, values: dict, seed: int) -> None:
    """Writes the checkpoint `name` with its expected tensors."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": SIZES["vocab_size"]} if config_class is DistilBertConfig else SIZES
    config = config_class(**sizes | values)
    pad = config.pad_token_id
    model = CLASSES[config_class](config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large, so that attention is far from uniform
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.15)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    lengths = LENGTHS.get(name, [19, 3, 11])
    input_ids = torch.full((len(lengths), max(lengths)), pad)
    for row, length in zip(input_ids, lengths, strict=True):
        row[:length] = torch.randint(pad + 1, SIZES["vocab_size"], (length,))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.tensor([1, 0, 1])
    out = model(input_ids=input_ids, attention_mask=mask.long(), labels=labels)
    out.loss.backward()
    rows = zip(input_ids, lengths, strict=True)
    single = [model(input_ids=row[None, :n], attention_mask=torch.ones(1, n).long()).logits for row, n in rows]
    tensors = {
        "input_ids": input_ids,
        "mask": mask,
        "labels": labels,
        "logits": out.logits,
        "single": torch.cat(single),
    }
    tensors |= {f"grad.{key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
    save_file({key: t.detach().contiguous() for key, t in tensors.items()}, folder / "expected.safetensors")


TEXTS = [
    "A wonderful little production.",
    "I can't wait... it's 100% GREAT!!! (really?)",
    "Full-width ＡＢＣ, ligature ﬁ, ellipsis …, ① and ½",
    "naïve café — “quotes” and ‘more’",
    "tabs\tand\nlines  and   runs of spaces ",
    "no-break\u00a0space and zero\u200bwidth",
    "emoji 😀 and ☕ and ᚠᛇ",
    "C1 controls \x85 \x96 stay",
    "unbelievably antidisestablishmentarianism",
]


def make_ids(model_file: str) -> None:
    """Writes spm.json: the token ids of TEXTS by sentencepiece."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=model_file)
    text = json.dumps({text: model.encode(text) for text in TEXTS}, ensure_ascii=True, indent=1)
    (HERE / "spm.json").write_text(text + "\n")


def make_review_ids(model_file: str, reviews_file: str, count: int = 5000) -> None:
    """Writes spm_reviews.json: the SHA-256 hash of the token ids of the first `count` test reviews by sentencepiece,
    after the cleaning of this project."""
    import sentencepiece

    sys.path.insert(0, str(HERE.parent.parent))
    from data.imdb import load_reviews

    model, digest = sentencepiece.SentencePieceProcessor(model_file=model_file), hashlib.sha256()
    for ids in model.encode(load_reviews(reviews_file)["review"][:count].tolist()):
        digest.update(np.asarray(ids, "<i4").tobytes() + b"\xff\xff\xff\xff")
    text = json.dumps({"reviews": count, "sentencepiece": sentencepiece.__version__, "sha256": digest.hexdigest()})
    (HERE / "spm_reviews.json").write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        make_ids(sys.argv[1])
    if sys.argv[2:]:
        make_review_ids(*sys.argv[1:3])
    for name, (config_class, values) in CONFIGS.items():
        make(name, config_class, values, seed=len(name))
        print(name)
