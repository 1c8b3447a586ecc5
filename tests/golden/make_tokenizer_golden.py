"""Writes the base files of tests/tokenizer_cases.py (tokenizers/) and the ids of published code (tokenizers.json).

    python tests/golden/make_tokenizer_golden.py base REVIEWS_TSV        once; the files are committed
    python tests/golden/make_tokenizer_golden.py ids REVIEWS_TSV SPM_DIR

It needs a separate environment with transformers 5.24.0, sentencepiece 0.2.3 and the requirements of this project.

tokenizers.json: configuration -> hash of the ids of `made_texts`, hash of the ids of `choose_reviews` of the test
reviews, and the ids of FRAGILE. WordPiece, BPE and tokenizer.json: transformers. Models of SentencePiece:
sentencepiece, with the text around it as in DebertaV2Tokenizer and XLMRobertaTokenizer of transformers 4.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parent.parent)]  # last, so that transformers imports huggingface's `peft`

os.environ["HF_HUB_OFFLINE"] = "1"


# --------------------------------------------------------------------------------------------------------- base files


def write_base(reviews_file: str) -> None:
    """Writes vocab.txt, vocab.json with merges.txt, and four models of SentencePiece, from 3,000 reviews."""
    import sentencepiece
    from tokenizer_cases import BASE, MAPS, made_texts

    from data.imdb import load_reviews
    from data.tokenization import train_tokenizer

    BASE.mkdir(exist_ok=True)
    reviews = load_reviews(reviews_file)["review"][:3000].tolist()
    lower = train_tokenizer("wordpiece", reviews, 900).tokens
    cased = [word for review in reviews[:300] for word in re.findall(r"[A-Z]\w+", review)]
    single = sorted({char for text in made_texts() for char in text if char.isprintable() and not char.isspace()})[::3]
    extra = ["caf\u00e9", "cafe", "\u00e9t\u00e9", "\u96fb\u5f71", "GOOD", "Good", "##OD", "\u00c9COLE", "ecole"]
    lines = [*lower, *extra, *single, *(f"##{char}" for char in single), *sorted(set(cased))[:300]]
    (BASE / "vocab.txt").write_text("".join(f"{line}\n" for line in dict.fromkeys(lines)), encoding="utf-8")
    train_tokenizer("bpe", reviews, 900).backend.model.save(str(BASE))
    rules = Path(tempfile.mkdtemp()) / "rules.tsv"
    rules.write_text("".join(f"{source}\t{target}\n" for source, target in normal_forms()), encoding="utf-8")
    names = MAPS["bert"]
    special = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    bert = special | {
        "pad_piece": names["pad"],
        "bos_piece": names["cls"],
        "eos_piece": names["sep"],
        "unk_piece": names["unk"],
    }
    user = ["[MOVIE]", "\u2581<extra_id_0>", "good", "://"]
    for name, size, options in (
        ("byte", 1200, bert | {"byte_fallback": True}),
        ("user", 1200, bert | {"byte_fallback": True, "user_defined_symbols": user}),
        ("plain", 1000, special | {"pad_piece": "<pad>"}),
        ("xlm", 1000, {}),
        ("user_xlm", 1000, {"user_defined_symbols": user}),
    ):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(reviews), model_prefix=str(BASE / name), model_type="unigram", vocab_size=size,
            normalization_rule_tsv=str(rules), character_coverage=0.9995, num_threads=1, minloglevel=2, **options,
        )  # fmt: skip
        (BASE / f"{name}.vocab").unlink()


def normal_forms() -> list[tuple[str, str]]:
    """Returns a small character map: (hexadecimal source, target)."""
    pairs = {
        "\t": " ",
        "\n": " ",
        "\r": " ",
        "\u00a0": " ",
        "\u2028": " ",
        "\u200b": " ",
        "\u3000": " ",
        "\x07": "",
        "\u00ad": "",
    }
    pairs |= {chr(0xFF21 + i): chr(65 + i) for i in range(26)} | {"\ufb01": "fi", "\u2460": "1", "\u00bd": "1/2"}
    for char in "\u00e9\u00c9\u00e8\u00ef\u00f1":
        pairs |= {unicodedata.normalize("NFD", char): char}
    return [(" ".join(f"{ord(c):X}" for c in a), " ".join(f"{ord(c):X}" for c in b)) for a, b in sorted(pairs.items())]


# ---------------------------------------------------------------------------------------------------------------- ids


def transformers_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    """Returns the ids of AutoTokenizer. Where a text spells a special token with a role, this token is split."""
    from tokenizer_cases import spells
    from tokenizers import Tokenizer as Backend
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    content = json.loads(theirs.backend_tokenizer.to_str())
    roles = [
        token
        for role in ("cls", "sep", "pad", "unk", "mask", "bos", "eos")
        if (token := getattr(theirs, f"{role}_token"))
    ]
    for token in content["added_tokens"]:
        token["special"] = token["content"] in roles
    split = Backend.from_str(json.dumps(content))
    split.encode_special_tokens = True
    split.no_truncation()
    found = [encoding.ids for encoding in split.encode_batch(texts)]
    plain = theirs(texts)["input_ids"]
    for text, a, b in zip(texts, found, plain, strict=True):
        assert a == b or spells(text, roles), (folder, text)
    return found


def sentencepiece_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    """Returns the ids of the sentencepiece library, with the steps of transformers 4 around it."""
    import sentencepiece

    config = json.loads((folder / "tokenizer_config.json").read_text())
    fairseq = (folder / "sentencepiece.bpe.model").is_file()
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / ("sentencepiece.bpe.model" if fairseq else "spm.model"))
    )
    path = folder / "added_tokens.json"
    added = (
        {token: i for token, i in json.loads(path.read_text()).items() if token != "[MASK]"} if path.is_file() else {}
    )
    lower = bool(config.get("do_lower_case"))
    added = {token.lower() if lower else token: number for token, number in added.items()}
    start, end = (0, 2) if fairseq else (model.bos_id(), model.eos_id())

    def encode(text: str) -> list[int]:
        ids = model.encode(text)
        return [i + 1 if i else 3 for i in ids] if fairseq else ids

    def parts(text: str) -> list[str]:
        text = "".join(char.lower() for char in text) if lower else text
        found = re.split(f"({'|'.join(map(re.escape, added))})", text) if added else [text]
        if config.get("split_by_punct"):
            found = [word for part in found for word in split_punctuation(part)]
        return found

    return [
        [start, *(i for p in parts(text) for i in ([added[p]] if p in added else encode(p))), end] for text in texts
    ]


def split_punctuation(text: str) -> list[str]:
    """Returns the words of a text and its punctuation marks (SPMTokenizer._run_split_on_punc)."""
    out: list[str] = []
    new = True
    for char in text:
        mark = (33 <= ord(char) <= 126 and not char.isalnum()) or unicodedata.category(char).startswith("P")
        if mark or new:
            out.append(char)
        else:
            out[-1] += char
        new = mark
    return out


def digest(rows: list[list[int]]) -> str:
    """Returns a hash of the ids of texts."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def write_ids(reviews_file: str, spm_folder: str) -> None:
    """Writes tokenizers.json. Prints each configuration, the largest id in the reviews, and the number of texts."""
    import sentencepiece
    import transformers
    from tokenizer_cases import CASES, FRAGILE, PUBLISHED, SPM, choose_reviews, made_texts, texts_for, write

    from data.imdb import load_reviews

    made, reviews = made_texts(), choose_reviews(load_reviews(reviews_file)["review"].tolist())
    golden: dict[str, Any] = {}
    for name in CASES | PUBLISHED:
        with tempfile.TemporaryDirectory() as temporary:
            folder = write(name, Path(temporary), Path(spm_folder) if name in PUBLISHED else None)
            parts = [texts_for(name, texts) for texts in (made, reviews, FRAGILE)]
            ids = sentencepiece_ids if name in SPM | PUBLISHED else transformers_ids
            rows = [ids(folder, texts) for texts in parts]
        golden[name] = {"made": digest(rows[0]), "reviews": digest(rows[1]), "fragile": rows[2]}
        print(f"{name:45} {max(max(row) for row in rows[1]):6} {len(rows[0]) + len(rows[1]):,}", flush=True)
    versions = {"transformers": transformers.__version__, "sentencepiece": sentencepiece.__version__}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in golden.items())
    head = f'"versions": {json.dumps(versions)}, "texts": {len(made)}, "reviews": {len(reviews)}'
    (HERE / "tokenizers.json").write_text(f'{{{head}, "cases": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    {"base": write_base, "ids": write_ids}[sys.argv[1]](*sys.argv[2:])
