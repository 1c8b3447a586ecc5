"""Masked language modelling and replaced-token detection: masking, losses, sampling, shared embeddings."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ENCODERS, adapt, tiny, token_batch
from torch import Tensor
from torch.nn import Module

import train
from data.batches import Batch
from data.corpus import Corpus
from data.files import open_tensors
from data.options import Options
from data.resolve import resolve
from data.tokenization import train_tokenizer
from data.word_vectors import WordVectors
from losses import OBJECTIVES, mlm, rtd
from losses.mlm import MLMOptions, Vocabulary, choose, corrupt
from nn.checkpoint import load_pretrained, save_pretrained
from nn.dropout import Dropout, set_dropout
from nn.runtime import Machine
from nn.vectors import put_vectors
from peft.scoring import held_out_loss

# of encoders; those of networks over words are in tests/test_lm.py and tests/test_tv.py
PRETRAINING = [name for name, entry in OBJECTIVES.items() if entry.pretraining and name not in ("lm", "tv")]
V, MASK = 61, 4
ORDINARY = torch.arange(V) > 4  # the first five ids are special tokens
STARTS = (torch.arange(V) % 3 > 0) & ORDINARY  # every third ordinary token continues a word
VOCABULARY = Vocabulary(mask_id=MASK, ordinary=ORDINARY, starts=STARTS)


def test_the_generator_has_the_first_half_of_any_layer_types():
    types = ("sliding_attention", "full_attention", "sliding_attention", "sliding_attention")
    model = tiny("modernbert", num_layers=4, layer_types=types)
    assert rtd.RTD(model, VOCABULARY).generator.config.layer_types == types[:2]


@pytest.mark.parametrize(("layers", "expected"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_the_generator_has_half_of_the_layers_rounded_down_but_at_least_one(layers, expected):
    assert len(rtd.RTD(tiny("bert", num_layers=layers), VOCABULARY).generator.layers) == expected


def test_new_heads_are_initialized_as_the_layers():
    """Weights are drawn from N(0, initializer_range²), biases are 0."""
    parts = rtd.RTD(tiny("bert", initializer_range=0.001), VOCABULARY)
    for layer in (parts.head.dense, parts.detector.dense, parts.detector.query):
        assert 0.001 < layer.weight.abs().max() < 0.005
        assert (layer.bias == 0).all()


class FakeTokenizer:
    """Has the members of Tokenizer that masking reads, for the vocabulary of `tiny`."""

    kind = "unigram"

    def __init__(self, mask: str = "mask") -> None:
        self.special = {"pad": "p", "cls": "c", "sep": "s", "unk": "u", mask: "m"}
        self.tokens = [*self.special.values(), *(f"{'▁' * (n % 3 > 0)}{n}" for n in range(5, V))]

    def id_of(self, token: str) -> int | None:
        return self.tokens.index(token) if token in self.tokens else None

    def starts_word(self, token: str) -> bool:
        return token.startswith("▁")


def texts(count: int = 40, length: int = 50) -> tuple[Tensor, Tensor]:
    """Returns (ids, mask) of texts of up to `length` tokens that begin with [CLS]."""
    ids, mask = token_batch([length - n % 7 for n in range(count)])
    ids[:, 0] = 1
    return ids, mask


def prepared(name: str, objective: str, **options: Any) -> tuple[Module, Batch, Any]:
    """Returns a tiny model with its pretraining heads, a batch of four texts, and the options of the objective."""
    settings, model = OBJECTIVES[objective].options(**options), tiny(name)
    OBJECTIVES[objective].prepare(model, settings, FakeTokenizer())
    for parameter in model.pretraining.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ids, mask = token_batch([19, 17, 13, 11])
    ids[:, 0] = 1  # [CLS]
    return model, Batch(ids, mask, torch.full((4,), -1), torch.arange(4)), settings


def fix_draws(monkeypatch: pytest.MonkeyPatch, uniform: Tensor, integers: Tensor | None = None) -> None:
    """Replaces the results of torch.rand and torch.randint."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **keywords: uniform)
    monkeypatch.setattr(torch, "randint", lambda *arguments, **keywords: integers)


# -------------------------------------------------------------------------------------------------------- masking


def test_vocabulary_of_a_tokenizer():
    vocabulary = Vocabulary.of(FakeTokenizer())
    assert vocabulary.mask_id == MASK
    assert torch.equal(vocabulary.ordinary, ORDINARY)
    assert torch.equal(vocabulary.starts, STARTS)


@pytest.mark.parametrize(("kind", "first", "later"), [("wordpiece", "the", "##s"), ("unigram", "▁the", "s")])
def test_which_tokens_start_a_word(kind, first, later):
    tokenizer = train_tokenizer(kind, ["the cats saw the dogs"] * 9, 300)
    assert tokenizer.starts_word(first)
    assert not tokenizer.starts_word(later)


@pytest.mark.parametrize("whole_words", [False, True])
def test_fifteen_percent_of_real_ordinary_tokens_are_chosen(whole_words):
    torch.manual_seed(0)
    ids, mask = texts(400)
    chosen = choose(ids, mask, VOCABULARY, whole_words)
    candidates = mask & ORDINARY[ids]
    assert not (chosen & ~candidates).any()
    assert abs(chosen.sum() / candidates.sum() - 0.15) < 0.01


def test_a_token_is_chosen_if_its_draw_is_below_the_rate(monkeypatch):
    """Of 100 draws 0.00, 0.01, …, 0.99, exactly 15 are below 0.15."""
    ids, mask = torch.arange(200).view(2, 100) % (V - 5) + 5, torch.ones(2, 100, dtype=torch.bool)
    fix_draws(monkeypatch, uniform=torch.arange(100).div(100).expand(2, 100))
    assert choose(ids, mask, VOCABULARY).sum(1).tolist() == [15, 15]
    assert choose(ids, mask, VOCABULARY, rate=0.4).sum(1).tolist() == [40, 40]
    ids[0, 3], mask[0, 10:] = MASK, False  # a special token and padding
    assert choose(ids, mask, VOCABULARY).nonzero().tolist() == [
        *([0, t] for t in (0, 1, 2, 4, 5, 6, 7, 8, 9)),
        *([1, t] for t in range(15)),
    ]


def test_whole_words_equal_the_loop_over_words():
    """The word of number n in a text is chosen, with all its subwords, if the n-th draw of the text is below the rate.

    A special token is a word of its own.
    """
    ids, mask = texts()
    ids[::2, 7] = MASK
    ids[:5, 0] = 6  # these texts begin within a word, as a later part of a long document does
    torch.manual_seed(0)
    chosen = choose(ids, mask, VOCABULARY, whole_words=True, rate=0.3)
    torch.manual_seed(0)
    draws = torch.rand(ids.shape)
    several = 0
    for b, row in enumerate(ids.tolist()):
        number = -1
        for t, token in enumerate(row):
            begins = STARTS[token] or not ORDINARY[token]
            number += int(begins)
            expected = mask[b, t] and ORDINARY[token] and draws[b, max(0, number)] < 0.3
            assert chosen[b, t] == expected, (b, t)
            several += int(expected and not begins)
    assert several > 100  # chosen tokens that continue a word


def test_subwords_of_a_word_are_chosen_together():
    torch.manual_seed(0)
    ids, mask = texts()
    chosen = choose(ids, mask, VOCABULARY, whole_words=True)
    continues = mask & ORDINARY[ids] & ~STARTS[ids]
    rows, positions = continues[:, 1:].nonzero(as_tuple=True)
    after_ordinary = ORDINARY[ids[rows, positions]]  # the token before
    rows, positions = rows[after_ordinary], positions[after_ordinary]
    assert len(rows) > 100
    assert torch.equal(chosen[rows, positions + 1], chosen[rows, positions])


def test_eighty_ten_ten_of_a_hundred_equal_draws(monkeypatch):
    """Of 100 draws 0.00, 0.01, …, 0.99, exactly 80 give [MASK], 10 a random token and 10 the original."""
    ids, chosen = torch.full((2, 100), 7), torch.tensor([[True], [False]]).expand(2, 100)
    fix_draws(
        monkeypatch,
        uniform=torch.arange(100).div(100).expand(2, 100),
        integers=torch.arange(100).remainder(56).expand(2, 100),
    )
    first, second = corrupt(ids, chosen, VOCABULARY).tolist()
    assert first[:80] == [MASK] * 80
    assert first[80:90] == [5 + n % 56 for n in range(80, 90)]  # the n-th ordinary token has the id 5 + n
    assert first[90:] == [7] * 10
    assert second == [7] * 100


def test_corruption_by_frequency():
    torch.manual_seed(0)
    ids, mask = texts(2000)
    chosen = choose(ids, mask, VOCABULARY)
    out = corrupt(ids, chosen, VOCABULARY)
    assert torch.equal(out[~chosen], ids[~chosen])
    before, after = ids[chosen], out[chosen]
    assert abs((after == MASK).float().mean() - 0.8) < 0.02
    random = after[(after != MASK) & (after != before)]
    assert {*random.tolist()} == {*range(5, V)}  # every ordinary token, and no special one
    assert abs(len(random) / len(after) - 0.1 * 55 / 56) < 0.02


@pytest.mark.parametrize("objective", PRETRAINING)
def test_the_seed_determines_the_loss(objective):
    model, batch, options = prepared("deberta", objective)
    model.train()
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(OBJECTIVES[objective].objective(model, batch, options)[0].item())
    assert losses[0] == losses[1] != losses[2]


# ------------------------------------------------------------------------------------ masked language modelling


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_mlm_equals_the_dense_formula_with_gradients(name, whole_words):
    """The plain form computes the logits of all positions."""
    model, batch, options = prepared(name, "mlm", whole_words=whole_words)
    model = model.double().eval()
    ids, mask = batch.input_ids, batch.mask
    torch.manual_seed(5)
    chosen = choose(ids, mask, VOCABULARY, whole_words)
    corrupted = corrupt(ids, chosen, VOCABULARY)
    head, table = model.pretraining.head, model.embeddings.word.weight
    h = model.encode(model.embed(corrupted, mask), mask)
    log_p = F.log_softmax(head.norm(head.activation(head.dense(h))) @ table.T + head.bias, -1)  # [B, T, V]
    positions = chosen.nonzero().tolist()
    assert len(positions) > 5
    plain = -sum(log_p[b, t, ids[b, t]] for b, t in positions) / len(positions)
    inputs = [table, *head.parameters()]
    expected = torch.autograd.grad(plain, inputs)
    torch.manual_seed(5)
    loss, correct = mlm.objective(model, batch, options)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), expected)
    assert correct["acc"].tolist() == [bool(log_p[b, t].argmax() == ids[b, t]) for b, t in positions]


def test_the_loss_of_bf16_logits_is_computed_in_fp32():
    (model, batch, options), logits = prepared("bert", "mlm"), []
    model.pretraining.head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    torch.manual_seed(5)
    loss, _ = mlm.objective(model.bfloat16().eval(), batch, options)
    torch.manual_seed(5)
    targets = batch.input_ids[choose(batch.input_ids, batch.mask, VOCABULARY, options.whole_words)]
    assert logits[0].dtype == torch.bfloat16
    torch.testing.assert_close(loss, F.cross_entropy(logits[0].float(), targets))


@pytest.mark.parametrize(("act", "function"), [("gelu", F.gelu), ("relu", F.relu)])
def test_the_head_has_the_activation_and_the_epsilon_of_the_layers(act, function):
    head, x = mlm.head_for(tiny("bert", hidden_act=act, layer_norm_eps=0.003)), torch.linspace(-2, 2, 9)
    assert torch.equal(head.activation(x), function(x))
    assert head.norm.eps == 0.003


@pytest.mark.parametrize("objective", PRETRAINING)
def test_held_out_masks_depend_on_the_seed_alone_and_the_random_state_is_restored(objective):
    model, batch, options = prepared("bert", objective)
    rows = [ids[mask].tolist() for ids, mask in zip(batch.input_ids, batch.mask, strict=True)]
    corpus, machine = Corpus.from_rows(rows, [-1] * len(rows), pad_id=0), Machine(torch.device("cpu"), torch.float32)

    def evaluate(seed: int) -> dict[str, float]:
        """Returns the held-out loss and accuracies."""
        return held_out_loss(model, corpus, OBJECTIVES[objective].objective, options, machine, seed)

    found = []
    for start in (1, 2):
        torch.manual_seed(start)
        before = torch.get_rng_state()
        found.append(evaluate(seed=7))
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training
    assert found[0] == found[1] != evaluate(seed=8)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_bag_equals_the_loop_over_its_tokens_with_gradients(name):
    model, batch, options = prepared(name, "mlm", bag_weight=2.0)
    model = model.double().eval()
    ids, mask, heads = batch.input_ids, batch.mask, model.pretraining
    torch.manual_seed(5)
    corrupted = corrupt(ids, choose(ids, mask, VOCABULARY), VOCABULARY)
    h, table = model.encode(model.embed(corrupted, mask), mask)[:, 0], model.embeddings.word.weight  # [CLS]
    terms, found = [], []
    for text in range(4):
        tokens = {v for v, real in zip(ids[text].tolist(), mask[text].tolist(), strict=True) if real and ORDINARY[v]}
        scores = table @ (heads.bag.dense.weight @ h[text] + heads.bag.dense.bias) + heads.bag.bias  # [V]
        terms.append(sum(torch.logsumexp(scores, 0) - scores[v] for v in tokens) / len(tokens))
        found += [v in tokens for v in scores.topk(50).indices.tolist()]
    inputs = [table, *heads.bag.parameters(), *model.layers[0].parameters()]
    plain = 2 * sum(terms) / 4
    losses = []
    for weight in (0.0, 2.0):
        torch.manual_seed(5)
        loss, correct = mlm.objective(model, batch, dataclasses.replace(options, bag_weight=weight))
        losses.append(loss)
    difference = losses[1] - losses[0]
    torch.testing.assert_close(difference, plain)
    assert correct["bag"].tolist() == found
    gradients = (torch.autograd.grad(y, inputs, materialize_grads=True) for y in (difference, plain))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_bag_loss_equals_the_loop_with_gradients():
    """The second text is empty: it adds 0 and counts in the mean."""
    torch.manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    bags = [{1, 4, 5}, set(), {6}]
    occurs = torch.tensor([[v in tokens for v in range(7)] for tokens in bags])
    plain = torch.zeros((), dtype=torch.float64)
    for row, tokens in zip(logits, bags, strict=True):
        for v in tokens:
            plain = plain - (row[v].exp() / row.exp().sum()).log() / len(tokens) / len(bags)
    ours = mlm.bag_loss(logits, occurs)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, plain)))


def test_the_bag_contains_the_counted_tokens_once():
    ids, counted = torch.tensor([[5, 6, 6], [5, 5, 5]]), torch.tensor([[True, True, True], [False] * 3])
    assert mlm.bag(ids, counted, V).nonzero().tolist() == [[0, 5], [0, 6]]


@pytest.mark.parametrize("objective", PRETRAINING)
def test_an_empty_choice_gives_a_finite_loss(objective, monkeypatch):
    model, batch, options = prepared("bert", objective)
    for module in (mlm, rtd):
        monkeypatch.setattr(module, "choose", lambda ids, mask, *_, **__: torch.zeros_like(mask))
    loss, correct = OBJECTIVES[objective].objective(model, batch, options)
    loss.backward()
    assert torch.isfinite(loss)
    if objective == "mlm":
        assert loss == 0
        assert len(correct["acc"]) == 0


# ------------------------------------------------------------------------------------- replaced-token detection


@pytest.mark.parametrize("name", ENCODERS)
def test_rtd_equals_the_loop_over_tokens_with_gradients(name, monkeypatch):
    """Every second sampled token differs from the original; a sample that equals the original is not a replacement."""
    model, batch, options = prepared(name, "rtd", rtd_weight=7.0)
    model = model.double().eval()
    ids, mask, parts = batch.input_ids, batch.mask, model.pretraining
    torch.manual_seed(3)
    chosen = choose(ids, mask, VOCABULARY)
    drawn = ids[chosen].clone()
    drawn[::2] = (drawn[::2] + 1) % V
    assert len(drawn) > 9
    monkeypatch.setattr(rtd, "sample", lambda logits, *_, **__: drawn)
    corrupted = ids.clone()
    corrupted[chosen] = drawn
    torch.manual_seed(3)
    loss, correct = rtd.objective(model, batch, options)
    d = parts.detector
    h = d.activation(d.dense(model.encode(model.embed(corrupted, mask), mask)))
    p = torch.sigmoid(h @ d.query.weight[0] + d.query.bias)  # [B, T]
    terms, detected = [], []
    for b, t in mask.nonzero().tolist():
        replaced = bool(corrupted[b, t] != ids[b, t])
        terms.append(-torch.log(p[b, t] if replaced else 1 - p[b, t]))
        detected.append((replaced, bool(p[b, t] > 0.5) == replaced))
    masked = torch.where(chosen, MASK, ids)
    h = parts.generator.encode(parts.generator.embed(masked, mask), mask)
    log_p = F.log_softmax(parts.head(h, parts.generator.embeddings.word.weight), -1)
    generator_loss = -log_p[chosen].gather(1, ids[chosen][:, None]).mean()
    plain = generator_loss + 7 * sum(terms) / len(terms)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)  # the detection loss is computed in fp32
    inputs = [p for key, p in model.named_parameters() if key.split(".")[0] not in model.HEAD]
    gradients = (torch.autograd.grad(y, inputs, materialize_grads=True) for y in (loss, plain))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert correct["acc"].tolist() == [right for _, right in detected]
    assert correct["found"].tolist() == [right for replaced, right in detected if replaced]
    assert len(correct["found"]) == (len(drawn) + 1) // 2
    assert correct["guessed"].tolist() == (log_p.argmax(-1) == ids)[chosen].tolist()


def test_the_detection_loss_of_bf16_scores_is_computed_in_fp32(monkeypatch):
    (model, batch, options), scores = prepared("bert", "rtd", rtd_weight=1.0), []
    monkeypatch.setattr(rtd, "mean_loss", lambda logits, targets: torch.zeros(()))
    model.pretraining.detector.register_forward_hook(lambda module, inputs, output: scores.append(output[batch.mask]))
    torch.manual_seed(5)
    loss, correct = rtd.objective(model.bfloat16().eval(), batch, options)
    replaced = (scores[0] > 0) == correct["acc"]
    assert scores[0].dtype == torch.bfloat16
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(scores[0].float(), replaced.float()))


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    p = torch.tensor([[0.5, 0.0, 0.3, 0.2], [0.0, 0.1, 0.9, 0.0]])
    drawn = rtd.sample((p.log() + 3.0).repeat_interleave(20_000, 0)).view(2, 20_000)
    for row, expected in zip(drawn, p, strict=True):
        frequencies = row.bincount(minlength=4) / 20_000
        assert (frequencies - expected).abs().max() < 0.015  # four standard deviations
        assert (frequencies[expected == 0] == 0).all()


def test_a_sample_inverts_the_cumulative_distribution_up_to_its_last_value(monkeypatch):
    """Rounding ends the cumulative sums slightly below or above 1; a draw u selects the first sum above u · last.

    The draws lie within a few units in the last place of each step of the distribution.
    """
    torch.manual_seed(0)
    logits = torch.randn(200, 7)
    sums = logits.softmax(-1).cumsum(-1)
    last = sums[:, -1:]
    assert (last < 1).sum() > 20 < (last > 1).sum()
    for step in range(7):
        for ulps in (-2, -1, 0, 1, 2):
            draws = (sums[:, step : step + 1] / last * (1 + ulps * 2.0**-24)).clamp(max=1 - 2.0**-24)
            fix_draws(monkeypatch, uniform=draws)
            expected = []
            for row, draw, total in zip(sums.tolist(), draws, last, strict=True):
                threshold = (draw * total).item()  # in fp32
                expected.append(next(token for token in range(7) if row[token] > threshold))
            assert rtd.sample(logits).tolist() == expected


def test_the_extreme_draws_select_no_impossible_token(monkeypatch):
    torch.manual_seed(0)
    logits = torch.randn(200, 5)
    logits[:, [0, 4]] = -torch.inf
    for draw, token in ((0.0, 1), (1 - 2.0**-24, 3)):
        fix_draws(monkeypatch, uniform=torch.full((200, 1), draw))
        assert rtd.sample(logits).tolist() == [token] * 200


@pytest.mark.parametrize("name", ENCODERS)
def test_detection_trains_the_difference_and_not_the_generators_table(name):
    """The gradient of E_G is the same for λ = 0 and λ = 50; E_Δ has one for λ = 50 only."""
    tables, differences = [], []
    for weight in (0.0, 50.0):
        model, batch, options = prepared(name, "rtd", rtd_weight=weight)
        model.eval()
        torch.manual_seed(7)
        rtd.objective(model, batch, options)[0].backward()
        tables.append(model.pretraining.generator.embeddings.word.weight.grad)
        differences.append(model.embeddings.word.delta.grad)
    assert torch.equal(*tables)
    assert tables[0].abs().sum() > 0
    assert differences[0].abs().sum() == 0 < differences[1].abs().sum()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_generator_is_a_copy_of_the_lower_half_without_a_head(name):
    plain, model = tiny(name, num_layers=4), tiny(name, num_layers=4)
    OBJECTIVES["rtd"].prepare(model, rtd.RTDOptions(), FakeTokenizer())
    generator = model.pretraining.generator
    assert len(generator.layers) == 2
    assert not [key for key, _ in generator.named_parameters() if key.split(".")[0] in model.HEAD]
    for key, value in generator.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key


@pytest.mark.parametrize("name", ENCODERS)
def test_the_generator_has_the_dropout_and_the_checkpointing_of_the_model(name):
    model = tiny(name, num_layers=4)
    set_dropout(model, 0.4)
    model.checkpointing = True
    OBJECTIVES["rtd"].prepare(model, rtd.RTDOptions(), FakeTokenizer())
    generator = model.pretraining.generator
    assert {module.p for module in generator.modules() if isinstance(module, Dropout)} == {0.4}
    assert generator.checkpointing


# --------------------------------------------------------------------------------- parameters, files and messages


@pytest.mark.parametrize("objective", PRETRAINING)
@pytest.mark.parametrize("name", ENCODERS)
def test_no_dead_operation(name, objective):
    """Every parameter but those of the classification head gets a gradient."""
    model, batch, options = prepared(name, objective, **{"bag_weight": 1.0} if objective == "mlm" else {})
    torch.manual_seed(1)
    OBJECTIVES[objective].objective(model.train(), batch, options)[0].backward()
    for key, parameter in model.named_parameters():
        if key.split(".")[0] in model.HEAD:
            assert parameter.grad is None, key
        elif "key.bias" not in key:  # a shift of all keys cancels in the softmax
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ENCODERS)
def test_a_model_is_saved_with_the_sum_of_the_tables_and_without_pretraining_modules(name, tmp_path):
    model, batch, _ = prepared(name, "rtd")
    model.embeddings.word.delta.data.normal_()
    save_pretrained(model, tmp_path, heads=False)
    loaded = load_pretrained(tmp_path)
    expected = model.pretraining.generator.embeddings.word.weight + model.embeddings.word.delta
    assert torch.equal(loaded.embeddings.word.weight, expected)
    assert loaded.pretraining is None
    assert {key.split(".")[0] for key in loaded.newly_initialized} == set(model.HEAD)
    h, same = (m.eval().encode(m.embed(*batch[:2]), batch.mask) for m in (model, loaded))
    torch.testing.assert_close(h, same)


def test_half_precision_files_load(tmp_path):
    model = tiny("deberta")
    save_pretrained(model, tmp_path, torch.float16)
    with open_tensors(tmp_path / "model.safetensors") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    loaded = load_pretrained(tmp_path)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight.half().float())


def test_word_vectors_are_copied_to_the_generators_table():
    model, *_ = prepared("deberta", "rtd")
    vectors = WordVectors(["a", "b"], torch.randn(2, 12))
    put_vectors(model.embeddings.word.table.data, {"a": 7, "b": 9}, vectors=vectors)
    generator = model.pretraining.generator.embeddings.word.weight
    factor = vectors.vectors[0] / generator[7]
    torch.testing.assert_close(factor, factor[:1].expand(12), rtol=1e-4, atol=0)
    assert torch.equal(model.embeddings.word.weight[7], generator[7])


@pytest.mark.parametrize("objective", PRETRAINING)
def test_unsupported_models_methods_and_tokenizers_raise(objective):
    entry = OBJECTIVES[objective]
    with pytest.raises(ValueError, match="pretrain encoders over subwords, not lstm"):
        entry.prepare(tiny("lstm"), entry.options(), FakeTokenizer())
    with pytest.raises(ValueError, match="leave out --peft lora"):
        entry.prepare(adapt(tiny("bert"), "lora"), entry.options(), FakeTokenizer())
    with pytest.raises(ValueError, match="the unigram tokenizer has no mask token"):
        entry.prepare(tiny("bert"), entry.options(), FakeTokenizer(mask="other"))


def test_a_negative_bag_weight_raises():
    with pytest.raises(ValueError, match=r"bag weight -0\.5 must not be negative"):
        MLMOptions(bag_weight=-0.5)


@pytest.mark.parametrize("model", ["electra", "roberta", "modernbert"])
def test_rates_of_fine_tuning_are_not_those_of_pretraining(model):
    """A model's layer decay and weight decay are for the training of its classifier."""
    options = resolve(["--model", model, "--loss", "mlm"], train.TABLES)[0].options
    assert (options.layer_decay, options.weight_decay) == (Options.layer_decay, Options.weight_decay)


def test_an_unused_id_is_not_an_ordinary_token():
    """Published vocabularies have gaps, which are empty tokens here."""
    tokenizer = FakeTokenizer()
    tokenizer.tokens = [*tokenizer.tokens, "", ""]
    assert Vocabulary.of(tokenizer).ordinary.tolist() == [*ORDINARY.tolist(), False, False]


def test_the_bag_of_a_vocabulary_of_fewer_than_fifty_tokens_has_all_of_them():
    model, tokenizer = tiny("bert", vocab_size=40), FakeTokenizer()
    tokenizer.tokens = tokenizer.tokens[:40]
    options = MLMOptions(bag_weight=1.0)
    OBJECTIVES["mlm"].prepare(model, options, tokenizer)
    ids, mask = token_batch([19, 17], 40)
    _, correct = mlm.objective(model, Batch(ids, mask, torch.full((2,), -1), torch.arange(2)), options)
    assert len(correct["bag"]) == 2 * 40


def test_a_sample_of_logits_that_are_not_finite_is_a_token():
    """The loss, which is NaN too, then ends the run with its message."""
    assert rtd.sample(torch.full((3, 5), torch.nan)).max() < 5
