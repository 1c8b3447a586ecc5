"""Tokenizer files: settings that are honoured, with their smallest inputs, and settings that are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizer_cases as cases
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from data.checked import read_json
from data.pipelines import template_tokens
from data.spm_segmenter import lower, punctuation
from data.tokenization import Tokenizer, load_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "café", "cafe", "good", "GOOD", "電影"]


def ids(folder: Path, text: str) -> list[int]:
    return next(load_tokenizer(folder).encode([text], 50))


def files(
    folder: Path, words: list[str] | None = None, model: str = "bert", config: dict | None = None, **others: Any
) -> Path:
    """Writes a vocab.txt of ten words and JSON files."""
    cases.vocab(folder, words or WORDS, model=model, config=config, **others)
    return folder


@pytest.mark.parametrize(
    ("text", "config", "expected"),
    [
        ("café", {}, [2, 6, 3]),
        ("café", {"do_lower_case": True, "strip_accents": False}, [2, 5, 3]),
        ("GOOD café", {"do_lower_case": False}, [2, 8, 5, 3]),
        ("GOOD café", {"do_lower_case": False, "strip_accents": True}, [2, 8, 6, 3]),
        ("電影", {}, [2, 1, 1, 3]),
        ("電影", {"tokenize_chinese_chars": False}, [2, 9, 3]),
    ],
)
def test_options_of_a_vocabulary(text: str, config: dict, expected: list[int], tmp_path: Path):
    assert ids(files(tmp_path, config=config), text) == expected


def test_only_line_feeds_end_a_line_of_a_vocabulary(tmp_path: Path):
    for extra in ("\u2028", "\u0085", "\x0b", "\x1c", ""):
        assert ids(files(tmp_path, [*WORDS[:5], extra, *WORDS[5:]]), "good") == [2, 8, 3]
    cases.vocab(tmp_path, WORDS, end="\r\n")
    assert ids(tmp_path, "good") == [2, 7, 3]
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff")
    with pytest.raises(ValueError, match=r"vocab\.txt is not UTF-8"):
        load_tokenizer(tmp_path)


def test_equal_lines_keep_the_ids_of_all_others(tmp_path: Path):
    tokenizer = load_tokenizer(files(tmp_path, [*WORDS, "good", "good  ", " "], added_tokens={"[MOVIE]": 13}))
    assert (tokenizer.vocab_size, len(tokenizer.tokens)) == (14, 14)
    assert [tokenizer.tokens[i] for i in (6, 8, 11, 13)] == ["cafe", "GOOD", "good", "[MOVIE]"]
    assert next(tokenizer.encode(["good [MOVIE]"], 50)) == [2, 11, 13, 3]


def test_unused_ids_have_no_token():
    model = models.WordPiece({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 6}, unk_token="[UNK]")
    tokenizer = Tokenizer(Backend(model), "wordpiece")
    assert (tokenizer.vocab_size, tokenizer.tokens) == (7, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "", "", "a"])


def test_added_tokens_match_and_special_tokens_do_not(tmp_path: Path):
    files(tmp_path / "added", added_tokens={"[MOVIE]": 10})
    assert ids(tmp_path / "added", "good[MOVIE]good [SEP]") == [2, 7, 10, 7, 1, 1, 1, 3]
    tokens = {"10": {"content": "[MOVIE]", "special": False}, "11": {"content": "<url>", "special": True}}
    files(tmp_path / "decoder", config={"added_tokens_decoder": tokens}, added_tokens={"[IGNORED]": 99})
    assert ids(tmp_path / "decoder", "good <url> [MOVIE]") == [2, 7, 11, 10, 3]
    files(tmp_path / "map", special_tokens_map={"additional_special_tokens": ["<url>"]})
    assert ids(tmp_path / "map", "good <url> [CLS]") == [2, 7, 10, 1, 1, 1, 3]


@pytest.mark.parametrize(
    ("config", "added", "message"),
    [
        ({}, {"[MOVIE]": 12}, r"the added token '\[MOVIE\]' has the id 12 in its file, but the id 10"),
        ({}, {"good": 10}, r"the added token 'good' has the id 10 in its file, but the id 7"),
        ({}, {"[A]": 10, "[B]": 10}, "two added tokens have the same id"),
        ({}, {"[A]": "x"}, "the ids of added tokens must be integers"),
        ({"added_tokens_decoder": {"10": {"text": "[A]"}}}, {}, r"\{'text': '\[A\]'\} is not a token"),
        ({"do_lower_case": "false"}, {}, "do_lower_case must be true or false, not 'false'"),
        ({"tokenize_chinese_chars": None}, {}, "tokenize_chinese_chars must be true or false, not None"),
        ({"model_max_length": 0}, {}, "model_max_length must be a positive number, not 0"),
        ({"sp_model_kwargs": {"enable_sampling": True}}, {}, "sp_model_kwargs .* is not supported"),
        ({"split_special_tokens": True}, {}, "split_special_tokens = true is not supported"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, {}, r"BertJapaneseTokenizer needs a tokenizer\.json"),
        ({"cls_token": "<C>"}, {}, "is not a WordPiece vocabulary: <C> missing"),
    ],
)
def test_settings_that_are_refused(config: dict, added: dict, message: str, tmp_path: Path):
    files(tmp_path, config=config, added_tokens=added)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_the_class_names_the_files(tmp_path: Path):
    files(tmp_path, config={"tokenizer_class": "RobertaTokenizer"})
    with pytest.raises(FileNotFoundError, match=r"RobertaTokenizer reads tokenizer\.json or vocab\.json"):
        load_tokenizer(tmp_path)
    files(tmp_path, model="modernbert")
    with pytest.raises(FileNotFoundError, match="contains no tokenizer"):
        load_tokenizer(tmp_path)
    cases.spm(tmp_path, "byte", config={"tokenizer_class": "BertTokenizer"})
    files(tmp_path, model="deberta-v2", config={"tokenizer_class": "BertTokenizer"})
    assert load_tokenizer(tmp_path).kind == "wordpiece"


def test_the_largest_length_is_read_and_saved(tmp_path: Path):
    for value, expected in ((512, 512), (int(1e30), None), (1e30, None), (None, None), (8192.0, 8192)):
        tokenizer = load_tokenizer(files(tmp_path / "from", config={"model_max_length": value}))
        assert tokenizer.model_max_length == expected
        tokenizer.save(tmp_path / "to")
        assert load_tokenizer(tmp_path / "to").model_max_length == expected


def test_the_space_before_a_text_is_saved_for_both_versions_of_transformers(tmp_path: Path):
    """The generic class of version 4 takes a missing add_prefix_space as false, and changes the file's pipeline."""
    for value in (True, False):
        (tmp_path / "from").mkdir(exist_ok=True)
        cases.merges(tmp_path / "from", config={"add_prefix_space": value})
        load_tokenizer(tmp_path / "from").save(tmp_path / "to")
        assert read_json(tmp_path / "to/tokenizer_config.json").get("add_prefix_space", False) is value


def test_special_tokens_have_the_names_in_the_files(tmp_path: Path):
    cases.whole(tmp_path, cases.bpe_json("bert"), "modernbert", config=cases.named("bert") | {"model_max_length": 8192})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special == cases.MAPS["bert"]
    assert (tokenizer.kind, tokenizer.pad_id, tokenizer.word_start) == ("bpe", tokenizer.id_of("[PAD]"), "Ġ")
    assert next(tokenizer.encode([""], 9)) == [tokenizer.id_of("[CLS]"), tokenizer.id_of("[SEP]")]
    cases.spm(tmp_path / "xlm", "xlm", "xlm-roberta")
    xlm = load_tokenizer(tmp_path / "xlm")
    assert [xlm.special_id(role) for role in ("cls", "pad", "sep", "unk", "mask")] == [0, 1, 2, 3, xlm.vocab_size - 1]


def test_a_word_that_spells_a_special_token_of_any_name_is_text(tmp_path: Path):
    """The pre-tokenizer leaves "CLS" whole, and the vocabulary contains it."""
    words = ["PAD", "UNK", "CLS", "SEP", "good", "C", "LS"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="UNK"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{role}_token": role.upper() for role in ("pad", "unk", "cls", "sep")}
    cases.whole(tmp_path, backend, "bert", config={"tokenizer_class": "PreTrainedTokenizerFast"} | names)
    assert list(load_tokenizer(tmp_path).subword_ids(["good CLS", "SEP"])) == [[4, 5, 6], [1, 1]]


@pytest.mark.parametrize(("pad", "is_read"), [("!", False), ("\ue000", True)])
def test_a_special_token_that_texts_contain_is_refused(pad: str, is_read: bool, tmp_path: Path):
    words = [pad, "[UNK]", "[CLS]", "[SEP]", "good"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": pad, "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    cases.whole(tmp_path, backend, "bert", config={"tokenizer_class": "PreTrainedTokenizerFast"} | names)
    if is_read:
        assert list(load_tokenizer(tmp_path).subword_ids(["good"])) == [[4]]
        return
    with pytest.raises(ValueError, match=r"has the special token !: a text with this character would be read as the"):
        load_tokenizer(tmp_path)


FAST, BERT = {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "BertTokenizer"}


@pytest.mark.parametrize(
    ("make", "model", "config", "message"),
    [
        (lambda: cases.bpe_json("roberta"), "bert", BERT, "has a bpe model"),
        (lambda: cases.wordpiece_json(post="none"), "bert", FAST, "no token before"),
        (
            lambda: cases.wordpiece_json(post="none"), "bert", {"tokenizer_class": "GPT2TokenizerFast"},
            "no token before a text, which GPT2Tokenizer.* leaves to its post_processor.*such as BertTokenizer",
        ),
        (lambda: cases.wordpiece_json("other"), "bert", BERT, "lacks the special tokens"),
        (
            lambda: normalized(normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])), "bert",
            {"do_lower_case": False}, "do_lower_case = false.* differ",
        ),
        (lambda: normalized(normalizers.NFC()), "", {"strip_accents": True}, "strip_accents = true.* differ"),
        (lambda: cases.unigram_json("bert"), "deberta-v2", {"add_prefix_space": False}, "space = false.* differ"),
    ],
)  # fmt: skip
def test_a_tokenizer_json_that_is_refused(make: Any, model: str, config: dict, message: str, tmp_path: Path):
    cases.whole(tmp_path, make(), model, config=config)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("in_a_sequence", [False, True])
def test_transformers_5_writes_first_for_no_prefix_space(tmp_path: Path, in_a_sequence: bool):
    backend, config = cases.unigram_json("bert"), {"tokenizer_class": "DebertaV2Tokenizer"}
    part = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([part]) if in_a_sequence else part
    cases.whole(tmp_path, backend, "deberta-v2", config=config)
    expected = ids(tmp_path, "good bad")
    cases.settings(tmp_path, "deberta-v2", config | {"add_prefix_space": False})
    assert ids(tmp_path, "good bad") == expected


def normalized(normalizer: Any) -> Backend:
    backend = cases.wordpiece_json()
    backend.normalizer = normalizer
    return backend


def test_dropout_of_a_bpe_model_is_refused(tmp_path: Path):
    backend = cases.bpe_json("roberta")
    model = backend.model
    model.dropout = 0.1
    backend.model = model
    cases.whole(tmp_path, backend, "roberta")
    with pytest.raises(ValueError, match=r"dropout 0\.1.* gives random ids"):
        load_tokenizer(tmp_path)


def test_deberta_options_change_a_tokenizer_json(tmp_path: Path):
    config = {"tokenizer_class": "DebertaV2Tokenizer"}
    cases.whole(tmp_path, cases.unigram_json("bert"), "deberta-v2", config=config)
    plain = load_tokenizer(tmp_path)
    cases.settings(tmp_path, "deberta-v2", config | {"do_lower_case": True, "split_by_punct": True})
    assert next(load_tokenizer(tmp_path).subword_ids(["GOOD,bad"])) == next(plain.subword_ids(["good , bad"]))


def test_template_tokens():
    text, cls = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    tokens = {"[CLS]": {"id": "[CLS]", "ids": [2, 2], "tokens": ["[CLS]", "x"]}}
    template = {"type": "TemplateProcessing", "single": [cls, text], "special_tokens": tokens}
    roberta = {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]}
    assert template_tokens({}) == template_tokens({"type": "ByteLevel"}) == ([], [])
    assert template_tokens(template) == (["[CLS]", "x"], [])
    assert template_tokens({"type": "Sequence", "processors": [roberta, template]}) == (["[CLS]", "x", "<s>"], ["</s>"])
    with pytest.raises(ValueError, match="does not contain the text exactly once"):
        template_tokens(template | {"single": [cls]})
    typed = {"Sequence": {"id": "A", "type_id": 1}}
    with pytest.raises(ValueError, match="gives tokens the type 1; only type 0 is supported"):
        template_tokens(template | {"single": [cls, typed]})
    with pytest.raises(ValueError, match="its post_processor Other is not supported"):
        template_tokens({"type": "Other"})


# ------------------------------------------------------------------------------------------------------ SentencePiece


def spm_ids(folder: Path, text: str, config: dict, **others: Any) -> list[int]:
    cases.spm(folder, "byte", config=config, **others)
    return ids(folder, text)


def test_deberta_lowercases_and_splits_before_sentencepiece(tmp_path: Path):
    assert spm_ids(tmp_path, "GOOD ΟΔΟΣ", {"do_lower_case": True}) == spm_ids(tmp_path, "good οδοσ", {})
    (left, right), both = (spm_ids(tmp_path, text, {})[1:-1] for text in ("good", ",")), {"split_by_punct": True}
    assert spm_ids(tmp_path, "good ,good", both) == [1, *left, *right, *left, 2]
    tokenizer, text = load_tokenizer(tmp_path), "good [x] , good!  ( good )"
    assert tokenizer.backend.encode(text, add_special_tokens=False).ids == next(tokenizer.subword_ids([text]))
    with pytest.raises(ValueError, match="add_prefix_space = false is not supported"):
        spm_ids(tmp_path, "good", {"add_prefix_space": False})


def test_added_tokens_of_deberta(tmp_path: Path):
    good = spm_ids(tmp_path, "good", {})[1:-1]
    added = {"[MASK]": 1200, "[MOVIE]": 1201}
    assert spm_ids(tmp_path, "good [MOVIE] good[MOVIE]", {}, added_tokens=added) == [1, *good, 1201, *good, 1201, 2]
    lowercase = spm_ids(tmp_path, "GOOD [movie] [MASK]", {"do_lower_case": True}, added_tokens=added)
    assert lowercase[: len(good) + 2] == [1, *good, 1201]
    assert 1200 not in lowercase


def test_a_tokenizer_json_that_segments_in_another_way_is_refused(tmp_path: Path):
    """The class is generic, for which transformers reads tokenizer.json alone."""
    cases.spm(tmp_path, "byte", config=cases.named("bert"))
    load_tokenizer(tmp_path).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, content["normalizer"]]}
    cases.dump(tmp_path, "tokenizer.json", content)
    with pytest.raises(
        ValueError, match=r"spm\.model and tokenizer\.json differ in their normalizer; keep only the file"
    ):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_with_other_subwords_is_refused(tmp_path: Path):
    cases.spm(tmp_path, "byte", config=cases.named("bert"))
    load_tokenizer(tmp_path).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"][300][0] = "changed"
    cases.dump(tmp_path, "tokenizer.json", content)
    with pytest.raises(ValueError, match="have different subwords"):
        load_tokenizer(tmp_path)


def test_settings_of_xlm_roberta_that_are_refused(tmp_path: Path):
    for config, message in (
        ({"do_lower_case": True}, "do_lower_case = true is not supported with it"),
        ({"cls_token": "[CLS]"}, r"lacks the special tokens \[CLS\]"),
    ):
        cases.spm(tmp_path, "xlm", "xlm-roberta", config=config)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path)
    cases.spm(tmp_path, "xlm", "xlm-roberta")
    with pytest.raises(ValueError, match="the variant hf5"):
        load_tokenizer(tmp_path, "hf5")
    cases.spm(tmp_path, "byte", "xlm-roberta")
    with pytest.raises(ValueError, match=r"it begins with \[PAD\], \[CLS\], \[SEP\]"):
        load_tokenizer(tmp_path)


def test_lowercase_and_punctuation_of_characters():
    assert lower("ΑΣ ΑΣΑ İ") == "ασ ασα i\u0307"
    assert punctuation().split("a,b…c$d_e。") == ["a", ",", "b", "…", "c", "$", "d", "_", "e", "。", ""]


@pytest.mark.parametrize(
    ("flag", "film", "tag"),
    [(False, ["x", "film"], ["a", "Ġ", "[TAG]", "Ġb"]), (True, ["x", "##f", "##il", "##m"], ["a", "[TAG]", "b"])],
)
def test_flags_of_added_tokens(flag: bool, film: list[str], tag: list[str], tmp_path: Path):
    """A token with single_word matches whole words; lstrip and rstrip remove the spaces around it."""
    single, stripped = AddedToken("film", single_word=flag), AddedToken("[TAG]", lstrip=flag, rstrip=flag)
    for backend, model, added, text, expected in (
        (cases.wordpiece_json(), "bert", single, "xfilm", film),
        (cases.bpe_json("roberta"), "roberta", stripped, "a [TAG] b", tag),
    ):
        (tmp_path / model).mkdir()
        cases.whole(tmp_path / model, backend, model, added=[added])
        tokenizer = load_tokenizer(tmp_path / model)
        assert [tokenizer.tokens[i] for i in next(tokenizer.subword_ids([text]))] == expected
