"""Continuous batching: each sequence as if it were alone, whoever joins and leaves beside it."""

import pytest
import torch

from pictish.lm.autoregressive import Guidance, Prompt, embed_ids, generate
from pictish.lm.continuous import ContinuousBatch
from pictish.lm.grammar import GenerationConstraints, ImageSegment, one_image
from pictish.lm.sampling import Sampling
from tests.lm.tiny import tiny_unified

GUIDANCE = Guidance(2.0, 1.5, ramp=1.0, rescale=0.3)
SAMPLING = Sampling(0.9, top_p=0.95)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request):
    return tiny_unified(request.param, cells=16, attention="eager" if request.param == "gemma2" else None)


def prompt_of(model, text: str, image: tuple[int, ...] = ()) -> Prompt:
    vocabulary = model.vocabulary
    begin, end = vocabulary.begin, vocabulary.end
    seen = [begin, *(vocabulary.first_code + code for code in image), end] if image else []
    words = model.text_tokenizer.encode(text)
    embed = lambda ids: embed_ids(model.language, ids)  # noqa: E731
    return Prompt(
        embed([*seen, *words, begin]),
        embed([*seen, begin]) if image else None,
        embed([begin]),
        inside=True,
    )


def add(model, batch: ContinuousBatch, number: int):
    prompt = prompt_of(model, "a red apple " * (1 + number % 3), (3, 1, 4) if number % 2 else ())
    generator = torch.Generator().manual_seed(number)
    constraints = one_image(10, cells=16)
    return batch.add(prompt, constraints, sampling=SAMPLING, guidance=GUIDANCE, generator=generator)


def run(batch: ContinuousBatch) -> None:
    while batch.members:
        for member in list(batch.members):
            batch.choose(member)
        batch.read()


def alone(model, number: int) -> tuple[list, torch.Tensor]:
    batch = ContinuousBatch(model.language, model.vocabulary, rows=6)
    member = add(model, batch, number)
    run(batch)
    return member.decoding.segments, member.logits


def test_a_sequence_is_the_same_to_the_bit_in_any_company(model):
    expected = [alone(model, number) for number in range(7)]
    batch = ContinuousBatch(model.language, model.vocabulary, rows=6)
    members = [add(model, batch, 0), add(model, batch, 1)]
    for number in range(2, 7):  # each joins two steps after the one before
        for _ in range(2):
            for member in list(batch.members):
                batch.choose(member)
            batch.read()
        members.append(add(model, batch, number))
    run(batch)
    for member, (segments, logits) in zip(members, expected, strict=True):
        assert member.decoding.segments == segments
        assert torch.equal(member.logits, logits)


def test_it_writes_what_generate_writes(model):
    batch = ContinuousBatch(model.language, model.vocabulary)
    member = add(model, batch, 1)
    run(batch)
    (expected,) = generate(
        model.language,
        model.vocabulary,
        [prompt_of(model, "a red apple " * 2, (3, 1, 4))],
        one_image(10, cells=16),
        sampling=SAMPLING,
        guidance=GUIDANCE,
        generators=[torch.Generator().manual_seed(1)],
    )
    assert member.decoding.segments == expected
    assert isinstance(expected[0], ImageSegment)


def test_text_and_pictures_share_a_batch(model):
    words = Prompt(embed_ids(model.language, model.text_tokenizer.encode("two green")))
    greedy = {"sampling": Sampling(0.0), "guidance": Guidance(), "generator": torch.Generator()}
    batch = ContinuousBatch(model.language, model.vocabulary)
    text = batch.add(words, GenerationConstraints(8), **greedy)
    image = add(model, batch, 0)
    run(batch)
    expected = generate(
        model.language, model.vocabulary, [words], GenerationConstraints(8), sampling=Sampling(0.0)
    )
    assert text.decoding.segments == expected[0]
    assert image.decoding.segments == alone(model, 0)[0]


def test_a_member_that_is_removed_leaves_the_others_alone(model):
    batch = ContinuousBatch(model.language, model.vocabulary, rows=6)
    kept, gone = add(model, batch, 2), add(model, batch, 3)
    for member in (kept, gone):
        batch.choose(member)
    batch.read()
    batch.remove(gone)
    run(batch)
    assert kept.decoding.segments == alone(model, 2)[0]
    assert gone.decoding.state is not None


def test_the_partial_image_grows_to_the_image(model):
    batch = ContinuousBatch(model.language, model.vocabulary)
    member, seen = add(model, batch, 4), []
    while batch.members:
        batch.choose(member)
        seen.append(member.decoding.partial_image)
        batch.read()
    (image,) = member.decoding.segments
    parts = [part for part in seen if part is not None]
    assert parts[-1] == image or len(parts[-1].codes) == len(image.codes) - 1 or not parts
    assert all(part.codes == image.codes[: len(part.codes)] for part in parts)
    assert all(part.cells == image.cells[: len(part.cells)] for part in parts)


def test_a_prompt_beyond_the_context_is_refused_and_takes_no_row():
    model = tiny_unified("llama")
    batch = ContinuousBatch(model.language, model.vocabulary)
    prompt = Prompt(embed_ids(model.language, [5] * 120))
    with pytest.raises(ValueError, match="128 in all fit"):
        batch.add(
            prompt,
            GenerationConstraints(20),
            sampling=Sampling(0.0),
            guidance=Guidance(),
            generator=torch.Generator(),
        )
    assert batch.members == []
