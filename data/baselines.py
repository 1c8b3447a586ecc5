"""Lists the rows of this project's predecessor, each with the closest published row of this project.

The figures of the other project are its validation accuracies. The public test accuracies are the best of four public
repositories of the same family, computed from the predictions that they publish for testData.tsv.
"""

from typing import NamedTuple


class Baseline(NamedTuple):
    """One row of the other project: its two accuracies, and the row here that is compared with it."""

    name: str
    reported: str  # validation accuracy; – if it reports none
    public: str  # test accuracy
    ours: str  # a row of data/results
    stand_in: str = ""  # what the weights of the row here are, if those of the other project could not be downloaded


MINILM = "MiniLM, 22 M, for bert-base, 110 M"
DISTIL = "MiniLM, 22 M, for distilbert-base, 66 M"
ROBERTA = "MiniLM, 22 M, for roberta-base, 125 M"
MINI = "the built-in DeBERTa, 7.5 M, for deberta-v3-base, 184 M"
XXLARGE = "the built-in DeBERTa, 7.5 M, for deberta-v2-xxlarge, 1,570 M"

BASELINES = (
    Baseline("attention_lstm", ".87", ".8766", "attention_lstm"),
    Baseline("capsule_lstm", ".89", ".8833", "capsule_lstm"),
    Baseline("cnn", ".81", ".7726", "cnn"),
    Baseline("cnnlstm", ".86", ".8501", "cnn_lstm"),
    Baseline("gru", ".88", ".8572", "gru"),
    Baseline("lstm", ".82", ".8782", "lstm"),
    Baseline("transformer", ".88", ".8423", "transformer"),
    Baseline("bert_native", ".92", ".9130", "minilm-full", MINILM),
    Baseline("bert_scratch", "–", ".9352", "minilm-full", MINILM),
    Baseline("bert_trainer", "–", ".9395", "minilm-full", MINILM),
    Baseline("distilbert", ".92", ".9317", "minilm-full", DISTIL),
    Baseline("roberta_trainer", "–", ".9540", "minilm-full", ROBERTA),
    Baseline("deberta-v3-base, LoRA", ".9346", ".9536", "mini-lora", MINI),
    Baseline("deberta-v3-base, P-tuning", ".6745", ".9578", "mini-p_tuning", MINI),
    Baseline("deberta-v3-base, prompt", ".6379", ".9547", "mini-prompt", MINI),
    Baseline("deberta-v3-base, prefix", ".5343", ".5326", "mini-prefix", MINI),
    Baseline("deberta-v2-xxlarge, LoRA, int8", "–", ".9375", "mini-lora", XXLARGE),
    Baseline("deberta-v2-xxlarge, LoRA", ".9658", ".9584", "mini-lora", XXLARGE),
    Baseline("BERT, R-Drop", ".9374", ".9403", "mini-rdrop", "the built-in DeBERTa, 7.5 M, for bert-base, 110 M"),
    Baseline("BERT, R-Drop, LoRA", ".9251", ".9252", "minilm-lora", MINILM + "; without R-Drop"),
)
