"""Compares this project with transformers, sentencepiece and sentence-transformers and prints the differences.

    python tests/golden/compare.py logits
    python tests/golden/compare.py tokens IMDB_DIR SPM_DIR BERT_DIR
    python tests/golden/compare.py embeddings IMDB_DIR BERT_DIR
    python tests/golden/compare.py predictions IMDB_DIR CHECKPOINT [MAX_LENGTH]

It needs a separate environment with torch 2.13.0, transformers 5.23.0, sentencepiece 0.2.3, sentence-transformers and
the requirements of this project. CHECKPOINT: a directory written by train.py or `eval.py --merge`.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Texts = list[str]

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent.parent))  # last, so that transformers imports huggingface's `peft`, not ours


def logits() -> None:
    """Compares the golden checkpoints on new random batches. Prints the largest difference of two logits, and the
    largest ratio of a difference to the tolerance 1e-5 + 1e-5·|x|."""
    from transformers import AutoModelForSequenceClassification

    from nn.checkpoint import load_pretrained

    print(f"{'checkpoint':26} {'largest difference':>20} {'of the tolerance':>18}")
    for folder in sorted(path.parent for path in HERE.glob("*/config.json")):
        theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        ours = load_pretrained(folder).eval()
        largest = ratio = 0.0
        for seed in range(20):
            torch.manual_seed(seed)
            mask = torch.arange(19) < torch.randint(1, 20, (5, 1))
            ids = torch.where(mask, torch.randint(2, 61, mask.shape), ours.config.pad_token_id)
            with torch.no_grad():
                a, b = ours(ids, mask), theirs(input_ids=ids, attention_mask=mask.long()).logits
            largest = max(largest, (a - b).abs().max().item())
            ratio = max(ratio, ((a - b).abs() / (1e-5 + 1e-5 * b.abs())).max().item())
        print(f"{folder.name:26} {largest:20.2e} {ratio:18.2f}")


def show(name: str, texts: Texts, ours: Callable[[Texts], Iterable], theirs: Callable[[Texts], list]) -> None:
    """Prints the number of texts with different token ids, and the seconds that both sides take."""
    start = time.perf_counter()
    a = list(ours(texts))
    middle = time.perf_counter()
    b = theirs(texts)
    end = time.perf_counter()
    different = sum(x != y for x, y in zip(a, b, strict=True))
    seconds = f"{middle - start:.1f} s, theirs {end - middle:.1f} s"
    print(f"{name}: {different} of {len(texts):,} differ; {seconds}", flush=True)


def without_special_tokens(tokenizer: Any) -> Callable[[Texts], list[list[int]]]:
    """Returns a function from texts to the ids of a tokenizer of transformers."""
    return lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]


def tokens(imdb: str, spm: str, bert: str) -> None:
    """Compares the token ids of the test reviews."""
    import sentencepiece
    from transformers import AutoTokenizer, RobertaTokenizer

    from data.imdb import load_reviews
    from data.tokenization import load_tokenizer, train_tokenizer

    texts = load_reviews(Path(imdb) / "testData.tsv.gz")["review"].tolist()

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(Path(spm) / "spm.model"))
    show("DeBERTa, sentencepiece", texts, ours=load_tokenizer(spm).subword_ids, theirs=theirs.encode)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spm.model").symlink_to(Path(spm).resolve() / "spm.model")
        (Path(folder) / "config.json").write_text('{"model_type": "deberta-v2"}')
        hf5 = without_special_tokens(AutoTokenizer.from_pretrained(folder))
        name = "DeBERTa, --tokenizer hf5, transformers"
        show(name, texts, ours=load_tokenizer(spm, "hf5").subword_ids, theirs=hf5)
    wordpiece = without_special_tokens(AutoTokenizer.from_pretrained(bert))
    show("WordPiece, transformers", texts, ours=load_tokenizer(bert).subword_ids, theirs=wordpiece)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_tokenizer("bpe", texts[:5000], vocab_size=20_000)  # the files of roberta-base need a network
        trained.backend.model.save(folder)
        bpe = without_special_tokens(RobertaTokenizer.from_pretrained(folder))
        show("byte-level BPE, transformers", texts, ours=load_tokenizer(folder).subword_ids, theirs=bpe)


def embeddings(imdb: str, bert: str, count: int = 1000) -> None:
    """Compares sentence embeddings with sentence-transformers: the mean of the last hidden states over real tokens,
    scaled to length 1."""
    from sentence_transformers import SentenceTransformer

    from data.imdb import load_reviews
    from data.tokenization import load_tokenizer
    from nn.checkpoint import load_pretrained

    texts = load_reviews(Path(imdb) / "testData.tsv.gz")["review"][:count].tolist()
    reference = SentenceTransformer(bert, device="cpu")
    length = reference.max_seq_length
    theirs = reference.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    model, tokenizer = load_pretrained(bert).eval(), load_tokenizer(bert)
    ours = []
    for start in range(0, count, 25):
        ids, mask = tokenizer.encode_batch(texts[start : start + 25], length)
        with torch.no_grad():
            h = model.encode(model.embed(ids, mask), mask)
        ours.append((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    ours = torch.nn.functional.normalize(torch.cat(ours), dim=-1)
    print(f"{count} sentence embeddings, {length} tokens: largest difference {(ours - theirs).abs().max():.2e}")


def predictions(imdb: str, checkpoint: str, max_length: str = "128") -> None:
    """Compares the predictions of this project and of transformers for all test reviews, from the same checkpoint."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from data.batches import Corpus, batches, sorted_order
    from data.imdb import load_reviews
    from data.tokenization import load_tokenizer
    from nn.checkpoint import load_pretrained

    frame = load_reviews(Path(imdb) / "testData.tsv.gz")
    length = int(max_length)
    theirs = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ours, tokenizer = load_pretrained(checkpoint).eval(), load_tokenizer(checkpoint)
    rows = list(tokenizer.encode(frame["review"], length))
    their_rows = their_tokenizer(frame["review"].tolist(), truncation=True, max_length=length)["input_ids"]
    print("reviews with different ids:", sum(a != b for a, b in zip(rows, their_rows, strict=True)))
    logits = np.empty((2, len(rows), 2), np.float32)
    corpus = Corpus.from_rows(rows, frame["sentiment"], tokenizer.pad_id)
    for batch in batches(corpus, sorted_order(corpus.lengths, 16_384), torch.device("cpu")):
        with torch.inference_mode():
            logits[0, batch.rows] = ours(batch.input_ids, batch.mask)
            logits[1, batch.rows] = theirs(input_ids=batch.input_ids, attention_mask=batch.mask.long()).logits
    equal = (logits[0].argmax(1) == logits[1].argmax(1)).sum()
    accuracy = (logits[0].argmax(1) == corpus.labels).mean()
    largest = np.abs(logits[0] - logits[1]).max()
    print(f"{equal:,} of {len(rows):,} predictions are equal, largest logit difference {largest:.2e}")
    print(f"accuracy at {length} tokens: {accuracy:.4f}")


if __name__ == "__main__":
    commands = {f.__name__: f for f in (logits, tokens, embeddings, predictions)}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
