"""losses/mlm.py and losses/rtd.py: masking, the two losses, the shared embeddings."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import ENCODERS, tiny, token_batch

from data.batches import Batch
from data.tokenization import train_tokenizer
from data.word_vectors import WordVectors, put_vectors
from losses import OBJECTIVES, mlm, rtd
from losses.mlm import Pieces, choose, corrupt
from nn.checkpoint import load_pretrained, save_pretrained
from nn.files import open_tensors
from train import Options

PRETRAINING = [name for name, entry in OBJECTIVES.items() if entry.pretraining]
V, MASK, SPECIAL = 61, 4, [0, 1, 2, 3, 4]
ORDINARY = torch.arange(V) > 4
PIECES = Pieces(MASK, ORDINARY, (torch.arange(V) % 3 > 0) | ~ORDINARY)  # every third ordinary piece goes on a word


class PieceNames:
    """What masking asks of a tokenizer, for the pieces of `tiny`."""

    kind = "unigram"

    def __init__(self, mask: str = "mask") -> None:
        self.special = {"pad": "p", "cls": "c", "sep": "s", "unk": "u", mask: "m"}
        self.words = [*self.special.values(), *(f"{'▁' * (n % 3 > 0)}{n}" for n in range(5, V))]

    def id_of(self, piece: str) -> int | None:
        return self.words.index(piece) if piece in self.words else None

    def starts_word(self, piece: str) -> bool:
        return piece.startswith("▁")


def texts(count: int = 40, length: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = token_batch([length - n % 7 for n in range(count)])
    ids[:, 0] = 1
    return ids, mask


def prepared(name: str, objective: str, **changes):
    options = dataclasses.replace(
        Options(), model=name, **OBJECTIVES[objective].training | {"loss": objective} | changes
    )
    model = tiny(name)
    OBJECTIVES[objective].prepare(model, options, PieceNames())
    for parameter in model.pretraining.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ids, mask = token_batch([19, 17, 13, 11])
    ids[:, 0] = 1  # [CLS]
    return model, Batch(ids, mask, torch.full((4,), -1), torch.arange(4)), options


# -------------------------------------------------------------------------------------------------------- masking


def test_pieces_of_a_tokenizer():
    pieces = Pieces.of(PieceNames())
    assert pieces.mask_id == MASK
    assert torch.equal(pieces.ordinary, ORDINARY)
    assert pieces.starts.tolist() == [False] * 5 + [n % 3 > 0 for n in range(5, V)]


@pytest.mark.parametrize(("kind", "begins", "goes_on"), [("wordpiece", "the", "##s"), ("unigram", "▁the", "s")])
def test_which_pieces_begin_a_word(kind, begins, goes_on):
    tokenizer = train_tokenizer(kind, ["the cats saw the dogs"] * 9, 300)
    assert tokenizer.starts_word(begins)
    assert not tokenizer.starts_word(goes_on)


@pytest.mark.parametrize("whole_words", [False, True])
def test_fifteen_percent_of_real_ordinary_tokens_are_chosen(whole_words):
    torch.manual_seed(0)
    ids, mask = texts(400)
    chosen = choose(ids, mask, PIECES, whole_words)
    candidates = mask & ORDINARY[ids]
    assert not (chosen & ~candidates).any()
    assert abs(chosen.sum() / candidates.sum() - 0.15) < 0.01


def test_whole_words_are_chosen_together():
    torch.manual_seed(0)
    ids, mask = texts()
    chosen = choose(ids, mask, PIECES, whole_words=True)
    goes_on = mask & ~PIECES.starts[ids]
    goes_on[:, 0] = False
    rows, places = goes_on.nonzero(as_tuple=True)
    inside = ORDINARY[ids[rows, places - 1]]
    rows, places = rows[inside], places[inside]
    assert len(rows) > 100
    assert torch.equal(chosen[rows, places], chosen[rows, places - 1])


def test_eighty_ten_ten():
    torch.manual_seed(0)
    ids, mask = texts(400)
    chosen = choose(ids, mask, PIECES)
    out = corrupt(ids, chosen, PIECES)
    assert torch.equal(out[~chosen], ids[~chosen])
    before, after = ids[chosen], out[chosen]
    assert abs((after == MASK).float().mean() - 0.8) < 0.02
    other = after[(after != MASK) & (after != before)]
    assert ORDINARY[other].all()
    assert abs(len(other) / len(after) - 0.1 * 55 / 56) < 0.02


@pytest.mark.parametrize("objective", PRETRAINING)
def test_the_same_seed_gives_the_same_loss(objective):
    model, batch, options = prepared("deberta", objective)
    model.train()
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(OBJECTIVES[objective].objective(model, batch, options)[0].item())
    assert losses[0] == losses[1] != losses[2]


# --------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", ENCODERS)
def test_mlm_equals_the_dense_formula_with_gradients(name, monkeypatch):
    model, batch, options = prepared(name, "mlm")
    model = model.double().eval()
    ids, mask = batch.input_ids, batch.mask
    torch.manual_seed(5)
    chosen = choose(ids, mask, PIECES)
    broken = corrupt(ids, chosen, PIECES)
    head, table = model.pretraining.head, model.embeddings.word.weight
    h = model.encode(model.embed(broken, mask), mask)
    log_p = F.log_softmax(head.norm(head.activation(head.dense(h))) @ table.T + head.bias, -1)  # [B, T, V]
    places = [(b, t) for b in range(4) for t in range(ids.size(1)) if chosen[b, t]]
    naive = -sum(log_p[b, t, ids[b, t]] for b, t in places) / len(places)
    wanted = torch.autograd.grad(naive, [table, head.dense.weight, head.bias])
    torch.manual_seed(5)
    loss, decisions = mlm.objective(model, batch, options)
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(torch.autograd.grad(loss, [table, head.dense.weight, head.bias]), wanted)
    assert len(decisions["acc"]) == len(places)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_bag_equals_the_loop_over_its_pieces_with_gradients(name):
    model, batch, options = prepared(name, "mlm", bag_weight=2.0)
    model = model.double().eval()
    ids, mask, aside = batch.input_ids, batch.mask, model.pretraining
    torch.manual_seed(5)
    broken = corrupt(ids, choose(ids, mask, PIECES), PIECES)
    h, table = model.encode(model.embed(broken, mask), mask)[:, 0], model.embeddings.word.weight  # [CLS]
    terms = []
    for text in range(4):
        pieces = {v for v, real in zip(ids[text].tolist(), mask[text].tolist(), strict=True) if real and ORDINARY[v]}
        scores = table @ (aside.bag.dense.weight @ h[text] + aside.bag.dense.bias) + aside.bag.bias  # [V]
        total = torch.logsumexp(scores, 0)
        terms.append(sum(total - scores[v] for v in pieces) / len(pieces))
    of_bag = [table, *aside.bag.parameters(), *model.layers[0].parameters()]
    naive = 2 * sum(terms) / 4
    wanted = torch.autograd.grad(naive, of_bag, allow_unused=True)
    losses = []
    for weight in (0.0, 2.0):
        torch.manual_seed(5)
        losses.append(mlm.objective(model, batch, dataclasses.replace(options, bag_weight=weight))[0])
    difference = losses[1] - losses[0]
    torch.testing.assert_close(difference, naive)
    found = torch.autograd.grad(difference, of_bag, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_a_text_of_special_tokens_alone_has_an_empty_bag():
    logits = torch.randn(2, V, requires_grad=True)
    occurs = mlm.bag(torch.tensor([[5, 6, 6], [5, 5, 5]]), torch.tensor([[True, True, True], [False] * 3]), V)
    assert occurs.nonzero().tolist() == [[0, 5], [0, 6]]
    mlm.bag_loss(logits, occurs).backward()
    assert logits.grad[0].abs().sum() > 0 == logits.grad[1].abs().sum()


@pytest.mark.parametrize("objective", PRETRAINING)
def test_nothing_chosen_gives_a_finite_loss(objective, monkeypatch):
    model, batch, options = prepared("bert", objective)
    for module in (mlm, rtd):
        monkeypatch.setattr(module, "choose", lambda ids, mask, *_: torch.zeros_like(mask))
    loss, _ = OBJECTIVES[objective].objective(model, batch, options)
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", ENCODERS)
def test_rtd_asks_exactly_where_the_sampled_token_differs(name, monkeypatch):
    model, batch, options = prepared(name, "rtd")
    model = model.double().eval()
    ids, mask, aside = batch.input_ids, batch.mask, model.pretraining
    torch.manual_seed(6)
    chosen = choose(ids, mask, PIECES)
    drawn = ids[chosen].clone()
    drawn[::2] = (drawn[::2] + 1) % V  # every second one is another token, the rest happen to be right
    monkeypatch.setattr(rtd, "sample", lambda logits: drawn)
    seen = ids.clone()
    seen[chosen] = drawn
    torch.manual_seed(6)
    loss, decisions = rtd.objective(model, batch, options)
    h = model.encode(model.embed(seen, mask), mask)
    p = torch.sigmoid(aside.detector(h))
    terms = [
        -torch.log(p[b, t] if seen[b, t] != ids[b, t] else 1 - p[b, t])
        for b in range(4)
        for t in range(ids.size(1))
        if mask[b, t]
    ]
    masked = torch.where(chosen, MASK, ids)
    h = aside.generator.encode(aside.generator.embed(masked, mask), mask)
    log_p = F.log_softmax(aside.head(h, aside.generator.embeddings.word.weight), -1)
    guess = -log_p[chosen].gather(1, ids[chosen][:, None]).mean()
    torch.testing.assert_close(loss, guess + 50 * sum(terms) / len(terms), rtol=1e-6, atol=1e-6)
    assert len(decisions["found"]) == (seen != ids).sum() == (len(drawn) + 1) // 2
    assert len(decisions["acc"]) == mask.sum()


def test_samples_follow_the_generator():
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    drawn = rtd.sample(p.log().expand(20_000, 4))
    assert (drawn.bincount(minlength=4) / 20_000 - p).abs().max() < 0.02


@pytest.mark.parametrize("name", ENCODERS)
def test_the_discriminator_moves_its_difference_and_not_the_generators_table(name):
    """With λ = 0 and λ = 50, E_G gets the same gradient; E_Δ gets one only from the second."""
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


@pytest.mark.parametrize("objective", PRETRAINING)
@pytest.mark.parametrize("name", ENCODERS)
def test_no_dead_operation(name, objective):
    model, batch, options = prepared(name, objective)
    torch.manual_seed(1)
    OBJECTIVES[objective].objective(model.train(), batch, options)[0].backward()
    for key, parameter in model.named_parameters():
        if key.split(".")[0] in model.HEAD:
            assert parameter.grad is None, key
        elif "key.bias" not in key:
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ENCODERS)
def test_the_model_is_saved_with_the_sum_of_the_tables_and_without_what_served_training(name, tmp_path):
    model, batch, _ = prepared(name, "rtd")
    model.embeddings.word.delta.data.normal_()
    save_pretrained(model, tmp_path, heads=False)
    loaded = load_pretrained(tmp_path)
    wanted = model.pretraining.generator.embeddings.word.weight + model.embeddings.word.delta
    assert torch.equal(loaded.embeddings.word.weight, wanted)
    assert {key.split(".")[0] for key in loaded.fresh} == set(model.HEAD)
    h, same = (m.eval().encode(m.embed(*batch[:2]), batch.mask) for m in (model, loaded))
    torch.testing.assert_close(h, same)


def test_half_precision_files_load(tmp_path):
    model = tiny("deberta")
    save_pretrained(model, tmp_path, torch.float16)
    with open_tensors(tmp_path / "model.safetensors") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    loaded = load_pretrained(tmp_path)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight.half().float())


def test_word_vectors_go_into_the_generators_table():
    model, *_ = prepared("deberta", "rtd")
    put_vectors(model.embeddings.word.table.data, {"a": 7, "b": 9}, WordVectors(["a", "b"], torch.randn(2, 12)))
    for table in (model.pretraining.generator.embeddings.word.weight, model.embeddings.word.weight):
        assert torch.equal(table[7], model.embeddings.word.table[7])


def test_a_bag_weight_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"bag weight -0\.5 must not be negative"):
        prepared("bert", "mlm", bag_weight=-0.5)


def test_a_tokenizer_without_a_mask_is_refused():
    with pytest.raises(ValueError, match="has no mask token"):
        Pieces.of(PieceNames(mask="other"))
