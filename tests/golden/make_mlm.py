"""Writes the golden files in mlm/: tiny random masked language models saved by transformers, with their logits.

    cd /tmp && python FOLDER/tests/golden/make_mlm.py

It needs a separate environment with torch 2.13.0 and transformers 5.24.0 (5.23.0 wrote the folders other than
modernbert* and *_relu). Each subdirectory contains config.json, model.safetensors and expected.safetensors with
input_ids, mask [B, T] and logits [B, T, V].
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

OUT = Path(__file__).parent / "mlm"
SIZES = {"vocab_size": 61, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 9}
PLACES = {"max_position_embeddings": 24, "pad_token_id": 0}
V3 = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}
V3 |= {"pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
MODERNBERT = {**SIZES, **PLACES, "global_attn_every_n_layers": 1, "cls_token_id": 1, "sep_token_id": 2, **ENDS}
BIASED = {"classifier_bias": True, "norm_bias": True, "classifier_activation": "relu"}
MODELS = {
    "bert": BertForMaskedLM(BertConfig(**SIZES, **PLACES)),
    "deberta": DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, **PLACES, **V3)),
    "deberta_published": DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, **PLACES, **V3, legacy=False)),
    "distilbert": DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=61, dim=12, n_layers=1, n_heads=2, hidden_dim=9, **PLACES)
    ),
    "electra": ElectraForMaskedLM(ElectraConfig(**SIZES, **PLACES, embedding_size=8)),
    "modernbert": ModernBertForMaskedLM(ModernBertConfig(**MODERNBERT)),
    "modernbert_biased": ModernBertForMaskedLM(ModernBertConfig(**MODERNBERT, **BIASED)),
    "roberta": RobertaForMaskedLM(RobertaConfig(**SIZES, **PLACES, **ENDS)),
    # the heads of these two do not follow hidden_act
    "electra_relu": ElectraForMaskedLM(ElectraConfig(**SIZES, **PLACES, embedding_size=8, hidden_act="relu")),
    "roberta_relu": RobertaForMaskedLM(RobertaConfig(**SIZES, **PLACES, **ENDS, hidden_act="relu")),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    ids = torch.randint(3, 61, (2, 9))
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    for name, model in MODELS.items():
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight.data[module.padding_idx] = 0
        model.eval().save_pretrained(OUT / name)
        (OUT / name / "generation_config.json").unlink(missing_ok=True)
        with torch.no_grad():
            logits = model(input_ids=ids * mask, attention_mask=mask.long()).logits
        expected = {"input_ids": ids * mask, "mask": mask, "logits": logits.clone()}
        save_file(expected, OUT / name / "expected.safetensors")
