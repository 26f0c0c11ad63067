import itertools
import math

import pytest
import torch
from torch import Tensor

from pictish.lm.autoregressive import Guidance, Prompt, embed_ids, generate
from pictish.lm.grammar import (
    DecodingState,
    GenerationConstraints,
    ImageSegment,
    TextSegment,
    legal_ids,
    one_image,
)
from pictish.lm.sampling import Sampling, draw
from pictish.lm.vocabulary import Vocabulary
from tests.lm.test_grammar import VOCABULARY, check
from tests.lm.tiny import ARCHITECTURES, tiny_model

ROWS = VOCABULARY.size + 3  # a padded model
MIXED = GenerationConstraints(20, max_images=2, min_codes=2, max_codes=4)
PICTURES = GenerationConstraints(25, text=False, max_images=3, min_codes=2, max_codes=9)
GUIDANCE = Guidance(text_scale=2.5, image_scale=1.4)
GREEDY = Sampling(0)


def seeded(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + place) for place in range(count)]


def vectors(model, length: int, seed: int) -> Tensor:
    """A prompt of embedded ids and, as an image may enter, of features that are no id's."""
    ids = torch.randint(VOCABULARY.size, (length,), generator=torch.Generator().manual_seed(seed))
    embedded = embed_ids(model, ids).clone()
    noise = torch.randn(length, embedded.shape[1], generator=torch.Generator().manual_seed(seed))
    embedded[::3] += noise[::3].to(embedded)
    return embedded


def four_prompts(model) -> list[Prompt]:
    """Of different lengths, unguided and guided in both ways, inside and outside of an image."""
    return [
        Prompt(vectors(model, 9, 0)),
        Prompt(vectors(model, 4, 1), None, vectors(model, 1, 2), inside=True),
        Prompt(vectors(model, 13, 3), vectors(model, 6, 4), vectors(model, 2, 5)),
        Prompt(vectors(model, 1, 6), None, vectors(model, 3, 7)),
    ]


@torch.no_grad()
def slow(
    model,
    prompt: Prompt,
    constraints: GenerationConstraints,
    sampling: Sampling,
    guidance: Guidance,
    generator,
):
    """The same without cache, batch or padding, guidance as it is written in the papers."""
    decoding, legal = DecodingState(VOCABULARY, constraints, prompt.inside), legal_ids(VOCABULARY, ROWS)
    branches = {"full": prompt.full, "image_only": prompt.image_only, "nothing": prompt.nothing}
    branches = {name: branch[None] for name, branch in branches.items() if branch is not None}
    while decoding.state is not None:
        found = {
            name: model(inputs_embeds=branch, use_cache=False).logits[0, -1].log_softmax(dim=0)
            for name, branch in branches.items()
        }
        logits = found["full"]
        if decoding.inside and "image_only" in found:
            text, image = found["full"] - found["image_only"], found["image_only"] - found["nothing"]
            logits = found["nothing"] + guidance.image_scale * image + guidance.text_scale * text
        elif decoding.inside and "nothing" in found:
            logits = found["nothing"] + guidance.text_scale * (found["full"] - found["nothing"])
        token = draw(logits[None].masked_fill(~legal.of([decoding]), float("-inf")), sampling, [generator])
        decoding.take(token.item())
        read = embed_ids(model, token)[None]
        branches = {name: torch.cat([branch, read], dim=1) for name, branch in branches.items()}
    return decoding.segments


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("wanted", "sampling"), [(PICTURES, GREEDY), (MIXED, Sampling(1.5, top_k=9, top_p=0.98))]
)
def test_a_batch_with_either_cache_is_four_slow_single_runs(architecture, wanted, sampling):
    model = tiny_model(architecture, ROWS)
    prompts = four_prompts(model)
    settings = {"sampling": sampling, "guidance": GUIDANCE}
    expected = [
        slow(model, prompt, wanted, generator=generator, **settings)
        for prompt, generator in zip(prompts, seeded(4), strict=True)
    ]
    for cache in ("dynamic", "static"):
        found = generate(model, VOCABULARY, prompts, wanted, generators=seeded(4), cache=cache, **settings)
        assert found == expected
    for prompt, segments in zip(prompts, expected, strict=True):
        check(segments, wanted, prompt.inside)
    # not vacuous: images were drawn, and prompts got different things
    assert sum(isinstance(segment, ImageSegment) for segments in expected for segment in segments) >= 2
    assert len(set(map(tuple, expected))) >= 3


def test_eager_attention_with_padding():
    model = tiny_model("llama", ROWS, dtype=torch.float32)  # transformers' eager mask needs it: no float64
    prompts = four_prompts(model)
    expected = generate(model, VOCABULARY, prompts, MIXED, guidance=GUIDANCE, generators=seeded(4))
    model.set_attn_implementation("eager")
    assert expected == generate(model, VOCABULARY, prompts, MIXED, guidance=GUIDANCE, generators=seeded(4))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_text_and_pictures_are_those_of_transformers(architecture):
    wide = Vocabulary(60, 50, eos=2, unspoken=(0, 1))
    model = tiny_model(architecture, wide.size)
    every = torch.arange(wide.size)
    lengths = []
    for seed in range(2):
        ids = torch.randint(3, 60, (1, 3 + 2 * seed), generator=torch.Generator().manual_seed(seed))
        settings = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}

        illegal = every[(every >= wide.text) | (every < 2)].tolist()
        theirs = model.generate(ids, max_new_tokens=25, eos_token_id=2, suppress_tokens=illegal, **settings)
        theirs = theirs[0, ids.shape[1] :].tolist()
        ours = generate(
            model, wide, [Prompt(embed_ids(model, ids[0]))], GenerationConstraints(25), sampling=GREEDY
        )[0]
        ended = [2] if theirs[-1] == 2 else []
        assert [token for segment in ours for token in segment.ids] + ended == theirs

        ids = torch.cat([ids, torch.tensor([[wide.begin]])], dim=1)
        settings["attention_mask"] = torch.ones_like(ids)
        illegal = every[~wide.is_code(every) & (every != wide.end)].tolist()
        theirs = model.generate(
            ids,
            max_new_tokens=20,
            min_new_tokens=5,
            eos_token_id=wide.end,
            suppress_tokens=illegal,
            **settings,
        )
        theirs = [token for token in theirs[0, ids.shape[1] :].tolist() if token != wide.end]
        prompt = Prompt(embed_ids(model, ids[0]), inside=True)
        [[picture]] = generate(model, wide, [prompt], one_image(20, min_codes=5), sampling=GREEDY)
        assert wide.ids_of(torch.tensor(picture.codes)).tolist() == theirs
        lengths.append(len(theirs))
        assert len(set(theirs)) > 1
    assert min(lengths) >= 5


def counted(model) -> list[int]:
    """Rows of each forward that the model will run, filled as it runs."""
    sizes: list[int] = []

    def note(module, args, kwargs):
        sizes.append(len(kwargs["inputs_embeds"]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def test_scale_one_is_unguided_and_costs_no_rows():
    model = tiny_model("llama", ROWS)
    sizes = counted(model)
    guided = four_prompts(model)
    bare = [Prompt(prompt.full, inside=prompt.inside) for prompt in guided]
    expected = generate(model, VOCABULARY, bare, PICTURES, guidance=GUIDANCE, generators=seeded(4))
    assert sizes[0] == 4
    sizes.clear()
    assert expected == generate(model, VOCABULARY, guided, PICTURES, generators=seeded(4))
    assert sizes[0] == 4
    sizes.clear()
    assert expected != generate(model, VOCABULARY, guided, PICTURES, guidance=GUIDANCE, generators=seeded(4))
    assert sizes[0] == 1 + 2 + 3 + 2
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]  # rows leave when done


def test_equal_scales_need_no_image_only_row():
    model = tiny_model("qwen3", ROWS)
    prompts, guidance = four_prompts(model)[2:3], Guidance(1.8, 1.8)
    sizes = counted(model)
    found = generate(model, VOCABULARY, prompts, one_image(8), guidance=guidance, generators=seeded(1))
    assert sizes[0] == 2
    assert found == [slow(model, prompts[0], one_image(8), Sampling(), guidance, seeded(1)[0])]


def test_text_is_never_guided():
    model = tiny_model("llama", ROWS)
    guided = four_prompts(model)[2:]
    bare = [Prompt(prompt.full) for prompt in guided]
    found = generate(
        model, VOCABULARY, guided, GenerationConstraints(12), guidance=Guidance(9, 5), generators=seeded(2)
    )
    assert found == generate(model, VOCABULARY, bare, GenerationConstraints(12), generators=seeded(2))
    assert any(found)


def test_same_seeds_same_ids_and_other_seeds_others():
    model = tiny_model("gpt2", ROWS)
    prompt = four_prompts(model)[1]
    settings = {"guidance": GUIDANCE, "constraints": one_image(12, min_codes=12)}
    several = generate(model, VOCABULARY, [prompt] * 5, generators=seeded(5), **settings)
    assert several == generate(model, VOCABULARY, [prompt] * 5, generators=seeded(5), **settings)
    assert several[2:3] == generate(model, VOCABULARY, [prompt], generators=seeded(1, first=2), **settings)
    assert len({segments[0] for segments in several}) == 5
    assert {len(segments[0].codes) for segments in several} == {12}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_weights_codes_lie_inside_the_grid(seed):
    placed = Vocabulary(6, 5, skips=15, eos=2, unspoken=(0, 1), blank=frozenset({0, 1, 2, 5}))
    model = tiny_model(ARCHITECTURES[seed % 3], placed.size, seed=seed, dtype=torch.float32)
    for constraints in (
        one_image(16, cells=16),
        one_image(4, 4, cells=16),
        one_image(16, 12, cells=16),
        GenerationConstraints(30, max_images=3, min_codes=2, max_codes=5),
    ):
        prompts = [
            Prompt(each.full, each.image_only, each.nothing, each.inside) for each in four_prompts(model)
        ]
        found = generate(model, placed, prompts, constraints, guidance=GUIDANCE, generators=seeded(4, seed))
        images = [segment for segments in found for segment in segments if isinstance(segment, ImageSegment)]
        assert len(images) >= 1
        for image in images:
            assert image.cells is not None
            assert constraints.min_codes <= len(image.codes) == len(image.cells) <= constraints.max_codes
            assert all(a < b for a, b in itertools.pairwise((-1, *image.cells, 16)))
    gaps = [image.cells != tuple(range(len(image.codes))) for image in images]
    assert any(gaps), "some cells were passed over"


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_weights_pieces_are_legal(seed):
    model = tiny_model(ARCHITECTURES[seed % 3], ROWS, seed=seed, tied=seed % 2 == 1, dtype=torch.bfloat16)
    prompts = four_prompts(model)
    requests = [
        GenerationConstraints(7, max_images=3, min_codes=3, max_codes=3),
        GenerationConstraints(15, text=False, max_images=2, min_codes=1, max_codes=5),
        GenerationConstraints(30, max_images=4, max_codes=2),
    ]
    for constraints in requests:
        found = generate(
            model, VOCABULARY, prompts, constraints, guidance=GUIDANCE, generators=seeded(4, seed)
        )
        for prompt, segments in zip(prompts, found, strict=True):
            check(segments, constraints, prompt.inside)
    only = generate(model, VOCABULARY, prompts, one_image(6, 2), generators=seeded(4, seed))
    assert all(len(segments) == 1 and 2 <= len(segments[0].codes) <= 6 for segments in only)
    texts = generate(model, VOCABULARY, prompts[2:], GenerationConstraints(5), sampling=GREEDY)
    assert all(
        len(segments) <= 1 and all(isinstance(segment, TextSegment) for segment in segments)
        for segments in texts
    )


def test_a_prompt_may_fill_the_context_but_not_more():
    model = tiny_model("gpt2", ROWS)
    constraints = one_image(10, min_codes=10)
    assert generate(model, VOCABULARY, [Prompt(vectors(model, 116, 0))], constraints, sampling=GREEDY)
    with pytest.raises(ValueError, match="a prompt of 117 tokens with 12 new ones asked for; 128 in all"):
        generate(model, VOCABULARY, [Prompt(vectors(model, 117, 0))], constraints, sampling=GREEDY)


def test_guidance_that_overflows_is_named_and_not_the_weights():
    model = tiny_model("llama", ROWS, dtype=torch.float32)
    full, nothing = (embed_ids(model, ids) for ids in ([5, 6, VOCABULARY.begin], [VOCABULARY.begin]))
    prompt = Prompt(full, nothing=nothing, inside=True)
    with pytest.raises(ValueError, match=r"guidance scales 3e\+38 and 1.0: guided logits are not finite"):
        generate(model, VOCABULARY, [prompt], one_image(4), sampling=GREEDY, guidance=Guidance(3e38))


def test_a_diverged_model_is_named():
    model = tiny_model("llama", ROWS)
    prompts = four_prompts(model)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(ValueError, match="its weights may have diverged"):
        generate(model, VOCABULARY, prompts, MIXED, generators=seeded(4))


def test_wrong_input_is_one_clear_line():
    model = tiny_model("llama", ROWS)
    prompt = Prompt(vectors(model, 3, 0))
    assert generate(model, VOCABULARY, [], MIXED, generators=[]) == []
    with pytest.raises(ValueError, match="2 prompts to sample for need as many generators, not 1"):
        generate(model, VOCABULARY, [prompt, prompt], MIXED, generators=seeded(1))
    with pytest.raises(ValueError, match="not 0"):
        generate(model, VOCABULARY, [prompt], MIXED)
    with pytest.raises(ValueError, match="cache 'quick' asked for; dynamic or static"):
        generate(model, VOCABULARY, [prompt], MIXED, sampling=GREEDY, cache="quick")
    with pytest.raises(ValueError, match=r"full of a prompt is \(0, 32\); \(1 or more, D\) would fit"):
        Prompt(embed_ids(model, []))
    with pytest.raises(ValueError, match="image_only but not nothing"):
        Prompt(prompt.full, image_only=prompt.full)
    with pytest.raises(ValueError, match="the vocabulary has 14 ids, the model only 13"):
        generate(tiny_model("llama", 13), VOCABULARY, [prompt], MIXED, sampling=GREEDY)
    with pytest.raises(ValueError, match="guidance scales nan"):
        Guidance(float("nan"))


def by_hand(model, prompt: Prompt, codes: int, guidance: Guidance) -> tuple[int, ...]:
    """A greedy image, its guidance ramped and rescaled as the papers write it."""
    full, nothing, drawn = prompt.full, prompt.nothing, []
    every = torch.arange(ROWS)
    for place in range(codes):
        likely = [model(inputs_embeds=b[None], use_cache=False).logits[0, -1] for b in (full, nothing)]
        strength = (1 - math.cos(math.pi * (place / codes) ** guidance.ramp)) / 2
        scale = 1 + (guidance.text_scale - 1) * strength
        mixed = (likely[1] + scale * (likely[0] - likely[1]))[VOCABULARY.is_code(every)]
        again = mixed * likely[0][VOCABULARY.is_code(every)].std() / mixed.std()
        mixed = guidance.rescale * again + (1 - guidance.rescale) * mixed
        drawn.append(int(mixed.argmax()))
        read = embed_ids(model, VOCABULARY.ids_of(torch.tensor([drawn[-1]])))
        full, nothing = torch.cat([full, read]), torch.cat([nothing, read])
    return tuple(drawn)


def test_guidance_rises_by_a_cosine_over_the_picture():
    model = tiny_model("llama", ROWS)
    constraints = one_image(9, 9)
    found = set()
    for seed in range(4):
        prompt = Prompt(vectors(model, 4, seed), None, vectors(model, 1, 2), inside=True)
        guidance = Guidance(text_scale=4.0, ramp=1.5, rescale=0.7)
        (segments,) = generate(model, VOCABULARY, [prompt], constraints, sampling=GREEDY, guidance=guidance)
        with torch.no_grad():
            assert segments == [ImageSegment(by_hand(model, prompt, 9, guidance))]
        plain = Guidance(text_scale=4.0)
        found |= {
            segments[0]
            != generate(model, VOCABULARY, [prompt], constraints, sampling=GREEDY, guidance=plain)[0][0]
        }
    assert True in found, "and it makes a difference"
    assert Guidance(ramp=2).strength(0) == 0
    assert Guidance(ramp=2).strength(1) == 1


def test_rescaled_logits_have_the_deviation_of_unguided_ones(monkeypatch):
    model = tiny_model("llama", ROWS)
    deviations = []
    monkeypatch.setattr(
        "pictish.lm.autoregressive.draw",
        lambda logits, sampling, generators: (
            deviations.append(float(logits[0][VOCABULARY.is_code(torch.arange(ROWS))].std()))
            or draw(logits, sampling, generators)
        ),
    )
    prompt = Prompt(vectors(model, 4, 1), None, vectors(model, 1, 2), inside=True)
    for guidance in (Guidance(), Guidance(5.0), Guidance(5.0, rescale=1.0)):
        generate(model, VOCABULARY, [prompt], one_image(1, 1), sampling=GREEDY, guidance=guidance)
    unguided, guided, rescaled = deviations[0::2][:3]
    assert guided > 1.5 * unguided
    assert rescaled == pytest.approx(unguided, rel=1e-5)


def test_settings_of_guidance_out_of_range_are_refused():
    for wrong in ({"ramp": -1.0}, {"rescale": 1.5}, {"ramp": float("nan")}):
        with pytest.raises(ValueError, match=r"guidance ramp .+ 0 or more"):
            Guidance(**wrong)
