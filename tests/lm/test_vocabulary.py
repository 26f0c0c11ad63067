import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from pictish.lm.vocabulary import (
    BEGIN,
    END,
    MASK,
    Vocabulary,
    code_string,
    skip_string,
    text_ids,
    vocabulary_of,
    widen,
)
from tests.lm.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

SIZE = len(tiny_tokenizer())


def widened(architecture="llama", rows=SIZE, codes=16, tied=False, has_mask=True, tokenizer=None):
    model = tiny_model(architecture, rows, tied=tied, dtype=torch.float32)
    tokenizer = tokenizer or tiny_tokenizer()
    vocabulary = widen(model, tokenizer, codes, has_mask, generator=torch.Generator().manual_seed(3))
    return model, tokenizer, vocabulary


def test_lavits_ids():
    lavit = Vocabulary(32000, 16384, has_mask=False)
    assert (lavit.begin, lavit.end, lavit.first_code, lavit.mask, lavit.size) == (
        32000,
        32001,
        32002,
        None,
        48386,
    )
    ours = Vocabulary(32000, 16384)
    assert (ours.mask, ours.size) == (48386, 48387)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_ranges_follow_each_other_and_skips_come_last(kind):
    vocabulary = Vocabulary(10, 5, skips=3)
    found = {name: (one.first, one.count) for name, one in vocabulary.ranges.items()}
    assert found == {"text": (0, 10), "markers": (10, 2), "codes": (12, 5), "mask": (17, 1), "skips": (18, 3)}
    assert (vocabulary.cells, vocabulary.size, vocabulary.mask) == (4, 21, 17)
    assert Vocabulary(10, 5).cells is None
    skips = vocabulary.ranges["skips"]
    ids = skips.ids_of(kind([1, 3]))
    assert ids.tolist() == [18, 20]
    assert skips.values_of(ids).tolist() == [1, 3]
    assert skips.holds(kind([17, 18, 20, 21])).tolist() == [False, True, True, False]
    assert not vocabulary.is_code(ids).any()
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"^skips 1 to 3 were asked for, found {wrong}$"):
            skips.ids_of(kind([wrong]))
    with pytest.raises(ValueError, match=r"^ids 18 to 20 of skips were asked for, found 17$"):
        skips.values_of(kind([17]))


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_codes_and_ids_round_trip(kind):
    vocabulary = Vocabulary(10, 5)
    codes = kind([[0, 4, 2], [1, 1, 3]])
    ids = vocabulary.ids_of(codes)
    assert type(ids) is type(codes)
    assert ids.tolist() == [[12, 16, 14], [13, 13, 15]]
    assert vocabulary.codes_of(ids).tolist() == codes.tolist()
    assert vocabulary.ids_of(codes[:0]).shape == (0, 3)
    everything = kind(list(range(20)))
    assert everything[vocabulary.is_code(everything)].tolist() == [12, 13, 14, 15, 16]


def test_an_offset_does_not_overflow_the_narrow_type_of_the_disk():
    codes = np.array([65535], dtype=np.uint16)
    assert Vocabulary(60000, 65536).ids_of(codes).tolist() == [125537]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_what_is_no_code_is_refused(kind):
    vocabulary = Vocabulary(10, 5)
    with pytest.raises(ValueError, match=r"^codes 0 to 4 were asked for, found 5$"):
        vocabulary.ids_of(kind([1, 5]))
    with pytest.raises(ValueError, match="found -1"):
        vocabulary.ids_of(kind([-1]))
    for wrong in (9, 10, 11, 17):
        with pytest.raises(ValueError, match=f"^ids 12 to 16 of codes were asked for, found {wrong}$"):
            vocabulary.codes_of(kind([12, wrong]))
    with pytest.raises(ValueError, match="10 text ids, -1 codes and 0 skips; 0 of each"):
        Vocabulary(10, -1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_widened_model_loads_as_any_other(architecture, tied, tmp_path):
    before = tiny_model(architecture, SIZE, tied=tied, dtype=torch.float32)
    model, tokenizer, vocabulary = widened(architecture, tied=tied)
    blank = {text_ids(tokenizer, space)[0] for space in (" ", "\t", "\n")}
    assert blank | {0, 1, 2} <= vocabulary.blank
    assert not vocabulary.blank & set(text_ids(tokenizer, "a redé\N{RED APPLE}"))
    assert vocabulary == Vocabulary(SIZE, 16, True, eos=2, unspoken=(0, 1), blank=vocabulary.blank)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)

    assert vocabulary_of(tokenizer) == vocabulary
    picture = BEGIN + "".join(map(code_string, (0, 15, 3, 3))) + END
    ids = tokenizer("a red " + picture + " apple" + MASK, add_special_tokens=False).input_ids
    codes = vocabulary.ids_of(np.array([0, 15, 3, 3])).tolist()
    expected = [vocabulary.begin, *codes, vocabulary.end]
    start = ids.index(vocabulary.begin)
    assert ids[start : start + 6] == expected
    assert ids[-1] == vocabulary.mask
    assert ids[:start] == tiny_tokenizer().encode("a red ")
    assert ids[start + 6 : -1] == tiny_tokenizer().encode(" apple")
    assert tokenizer.decode(ids) == "a red " + picture + " apple" + MASK

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding.shape == head.shape == (vocabulary.size, 32)
    assert (embedding.data_ptr() == head.data_ptr()) == tied
    assert model.config.vocab_size == vocabulary.size
    assert torch.equal(embedding[:SIZE], before.get_input_embeddings().weight)
    assert torch.equal(head[:SIZE], before.get_output_embeddings().weight)
    with torch.no_grad():
        text = torch.tensor([ids[:start]])
        torch.testing.assert_close(model(text).logits[..., :SIZE], before(text).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_drawn_like_the_old_ones(tied):
    before = tiny_model("llama", SIZE, tied=tied, dtype=torch.float32)
    with torch.no_grad():  # far from what transformers would draw by itself
        for weight in {before.get_input_embeddings().weight, before.get_output_embeddings().weight}:
            weight.copy_(weight * torch.linspace(0.1, 4, 32) + torch.linspace(-3, 5, 32))
    states = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        model = tiny_model("llama", SIZE, tied=tied, dtype=torch.float32)
        model.load_state_dict(before.state_dict())
        torch.manual_seed(noise)
        expected = torch.rand(1)
        torch.manual_seed(noise)
        widen(model, tiny_tokenizer(), 4096, generator=torch.Generator().manual_seed(seed))
        assert torch.rand(1) == expected, "the global generator was used"
        states.append((model.get_input_embeddings().weight, model.get_output_embeddings().weight))
    olds = before.get_input_embeddings().weight, before.get_output_embeddings().weight
    for old, new in zip(olds, states[0], strict=True):
        torch.testing.assert_close(new[SIZE:].std(dim=0), old.std(dim=0), rtol=0.08, atol=0)
        assert ((new[SIZE:].mean(dim=0) - old.mean(dim=0)).abs() < 0.08 * old.std(dim=0)).all()
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])
    assert not torch.equal(states[0][0], states[2][0])
    assert torch.equal(states[0][0], states[0][1]) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_codes_of_similar_vectors_start_with_similar_rows(tied):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 16, generator=generator).repeat_interleave(512, dim=0)
    vectors = centres + 0.1 * torch.randn(4096, 16, generator=generator)
    model = tiny_model("llama", SIZE, tied=tied, dtype=torch.float32)
    old = [m.weight.clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    vocabulary = widen(model, tiny_tokenizer(), 4096, cells=9, code_vectors=vectors, generator=generator)
    codes = vocabulary.ids_of(torch.arange(4096))
    for before, layer in zip(old, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        rows = layer.weight[codes] - before.mean(dim=0)
        alike = torch.nn.functional.cosine_similarity(rows[:-1], rows[1:])
        assert alike.median() > 0.85, "neighbours in the list are of one centre, but for seven"
        assert (alike < 1 - 1e-3).all(), "but no two rows are equal"
        apart = torch.nn.functional.cosine_similarity(rows[:512], rows[-512:])
        assert apart.abs().median() < 0.7
        assert 0.7 < (rows.std() / before.std()) < 1.3
        others = [vocabulary.begin, vocabulary.end, *range(vocabulary.size - 8, vocabulary.size)]
        marks = layer.weight[others] - before.mean(dim=0)
        assert torch.nn.functional.cosine_similarity(marks[:-1], marks[1:]).abs().median() < 0.4


def test_a_padded_vocabulary_keeps_model_and_tokenizer_together():
    rows = SIZE + 24
    old = tiny_model("qwen3", rows, dtype=torch.float32).get_input_embeddings().weight
    model, tokenizer, vocabulary = widened("qwen3", rows=rows)
    assert vocabulary.text == rows
    assert vocabulary.unspoken == (0, 1, *range(SIZE, rows))
    assert torch.equal(model.get_input_embeddings().weight[:rows], old)
    assert model.get_input_embeddings().weight.shape[0] == vocabulary.size == len(tokenizer)
    assert tokenizer.encode(BEGIN + code_string(0) + END) == [rows, rows + 2, rows + 1]
    assert max(text_ids(tokenizer, f"<unused-{SIZE:06d}> {code_string(0)}")) < SIZE


def test_a_tokenizer_longer_than_its_model():
    model, tokenizer, vocabulary = widened(rows=SIZE - 7)
    assert vocabulary.text == SIZE
    assert model.get_input_embeddings().weight.shape[0] == vocabulary.size == len(tokenizer)


def test_a_head_with_a_bias():
    model = tiny_model("llama", SIZE, dtype=torch.float32)
    model.lm_head = torch.nn.Linear(32, SIZE)
    torch.nn.init.normal_(model.lm_head.bias, mean=7.0)
    vocabulary = widen(model, tiny_tokenizer(), 1000, generator=torch.Generator().manual_seed(0))
    assert model.lm_head.bias.shape == (vocabulary.size,)
    assert abs(model.lm_head.bias[SIZE:].mean() - 7) < 0.3


def test_without_a_mask_token():
    _, tokenizer, vocabulary = widened(has_mask=False)
    assert vocabulary.mask is None
    assert vocabulary_of(tokenizer) == vocabulary
    assert len(tokenizer) == vocabulary.size == SIZE + 2 + 16


@pytest.mark.parametrize("has_mask", [False, True])
def test_a_widened_model_may_have_skips(has_mask, tmp_path):
    model = tiny_model("llama", SIZE, dtype=torch.float32)
    tokenizer, generator = tiny_tokenizer(), torch.Generator().manual_seed(3)
    vocabulary = widen(model, tokenizer, 16, has_mask, cells=9, generator=generator)
    assert (vocabulary.cells, vocabulary.skips, vocabulary.has_mask) == (9, 8, has_mask)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == vocabulary.size
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert vocabulary_of(loaded) == vocabulary
    assert loaded.convert_ids_to_tokens(list(range(SIZE, vocabulary.size))) == list(vocabulary.strings)
    assert max(text_ids(loaded, "a <skip-00003>")) < vocabulary.text
    with pytest.raises(ValueError, match="a grid of 1 cells was given; 2 or more"):
        widen(model, tiny_tokenizer(), 16, cells=1, generator=generator)


@pytest.mark.parametrize("text", ["draw [IMG] now", "[IMG]<code-00003>[/IMG]", "[MASK]", "<eos><bos>", ""])
def test_markers_a_user_types_stay_text(text, tmp_path):
    _, tokenizer, vocabulary = widened()
    tokenizer.save_pretrained(tmp_path)
    for reader in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = text_ids(reader, text)
        assert all(2 < token < vocabulary.text for token in ids)
        assert reader.decode(ids) == text
        assert text_ids(reader, "a red apple") == tiny_tokenizer().encode(
            "a red apple", add_special_tokens=False
        )


def test_tokenizers_that_are_not_widened_or_wrongly_so():
    with pytest.raises(ValueError, match="knows no images"):
        vocabulary_of(tiny_tokenizer())
    wrong = {
        "are not in order": [BEGIN, END, code_string(1), code_string(0)],
        "from id 280 on are not": [BEGIN, code_string(0), END],
        "image tokens from id 280 on are": [BEGIN, END, code_string(0), skip_string(2), skip_string(1)],
        "tokens from id 280 on are not": [BEGIN, END, code_string(0), skip_string(2)],
        "must be special": [AddedToken(token, special=False) for token in (BEGIN, END, code_string(0))],
        "knows no images": [BEGIN, END],
    }
    for message, tokens in wrong.items():
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(tokens, special_tokens=message != "must be special")
        with pytest.raises(ValueError, match=message):
            vocabulary_of(tokenizer)


def test_widening_twice_is_refused():
    model, tokenizer, _ = widened()
    with pytest.raises(ValueError, match=r"already has 19 of the tokens to add, \[IMG\] first"):
        widen(model, tokenizer, 16, generator=torch.Generator())
    assert len(tokenizer) == SIZE + 19
