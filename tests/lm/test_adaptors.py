"""Inner adaptors: identity start, the text path untouched bit for bit, several beside one base."""

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

from pictish.lm.adaptors import Adaptor, adapted, base_layer_places, default_points, new_adaptor
from pictish.lm.autoregressive import Branch, DecodeBatch, Prompt, cache_argument, embed_ids, generate
from pictish.lm.grammar import GenerationConstraints
from pictish.lm.sampling import Sampling
from pictish.lm.vocabulary import Vocabulary
from tests.lm.tiny import ARCHITECTURES, tiny_model

ROWS = 50
VOCABULARY = Vocabulary(30, 10, eos=2)  # 43 ids, padded to 50 rows


def base(architecture: str, **settings) -> PreTrainedModel:
    return tiny_model(architecture, ROWS, dtype=torch.float32, **settings)


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(30, (rows, length), generator=torch.Generator().manual_seed(seed))


def trained(model: PreTrainedModel, seed: int, points: tuple[int, ...] = (0, 1), **ends) -> Adaptor:
    """An adaptor that has moved away from its start."""
    adaptor = new_adaptor(model, points, **ends)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adaptor.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return adaptor.eval()


def cached(model: PreTrainedModel, tokens: Tensor, kind: str) -> Tensor:
    """Logits (R, V) behind two prompts of different length and one more id, by a batch with a cache."""
    with torch.no_grad():
        prompts = [Branch.of(embed_ids(model, ids)) for ids in (tokens[0], tokens[1, 3:])]
        batch = DecodeBatch(model, prompts, 4, kind)
        batch.step([3, 4])
        return batch.logits


@torch.no_grad()
def text_logits(model: PreTrainedModel) -> list[Tensor]:
    """All ways in which text is read: plain, with padding, with either cache."""
    tokens = ids(2, 9)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    return [
        model(tokens).logits,
        model(tokens, attention_mask=mask).logits,
        cached(model, tokens, "dynamic"),
        cached(model, tokens, "static"),
    ]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
@pytest.mark.parametrize("end", ["own", "tied"])
def test_a_new_adaptor_gives_the_logits_of_its_base_bit_for_bit(architecture, end):
    model = base(architecture)
    path = adapted(model, new_adaptor(model, (0, 1), table=end, norm=end, head=end))
    for ours, theirs in zip(text_logits(path), text_logits(model), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_executes_nothing_of_any_adaptor(architecture):
    model = base(architecture)
    before = text_logits(model)
    names = {name: id(module) for name, module in model.named_modules()}
    calls: list[nn.Module] = []
    paths = []
    for seed in (1, 2):
        adaptor = trained(model, seed)
        for module in adaptor.modules():
            module.register_forward_hook(lambda module, *_: calls.append(module))
        paths.append(adapted(model, adaptor))
        assert all(torch.equal(a, b) for a, b in zip(text_logits(model), before, strict=True))
    assert not calls
    adaptor_logits = text_logits(paths[0])
    assert calls, "the hooks would have told"
    assert not torch.equal(adaptor_logits[0], before[0])
    calls.clear()
    assert all(torch.equal(a, b) for a, b in zip(text_logits(model), before, strict=True))
    del paths
    assert all(torch.equal(a, b) for a, b in zip(text_logits(model), before, strict=True))
    assert not calls
    assert {name: id(module) for name, module in model.named_modules()} == names
    assert [getattr(m, "layer_idx", None) for m in model.modules() if hasattr(m, "layer_idx")] == [
        n for n in range(2) for _ in range(sum(hasattr(m, "layer_idx") for m in model.modules()) // 2)
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_adaptor_does_not_change_another(architecture):
    model = base(architecture)
    first, second = trained(model, 1), trained(model, 2, (1,))
    path, other = adapted(model, first), adapted(model, second)
    before = text_logits(path)
    text_logits(other)
    for parameter in second.parameters():
        parameter.data.fill_(1e3)
    assert all(torch.equal(a, b) for a, b in zip(text_logits(path), before, strict=True))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_an_adapted_model_reads_with_a_cache_what_it_reads_without(architecture):
    model = base(architecture)
    path = adapted(model, trained(model, 1))
    tokens = ids(2, 9)
    tokens[0, -1] = tokens[1, -1]
    with torch.no_grad():
        whole = path(tokens).logits
    for make in (DynamicCache, lambda config: StaticCache(config, max_cache_len=12)):
        cache = make(config=path.config)
        with torch.no_grad():
            path(tokens[:, :5], use_cache=True, **{cache_argument(model): cache})
            rest = path(
                tokens[:, 5:],
                use_cache=True,
                position_ids=torch.arange(5, 9)[None].expand(2, 4),
                **{cache_argument(model): cache},
            ).logits
        torch.testing.assert_close(rest, whole[:, 5:], atol=1e-4, rtol=1e-4)


def test_insertion_layers_stand_behind_the_layers_they_name():
    model = base("llama")
    adaptor = trained(model, 1, (0,), table="tied", norm="tied", head="tied")
    path = adapted(model, adaptor)
    tokens = ids(1, 6)
    with torch.no_grad():
        states = path(tokens, output_hidden_states=True).hidden_states
        plain = model(tokens, output_hidden_states=True).hidden_states
        again = adapted(model, adaptor)(tokens, output_hidden_states=True).hidden_states
    assert len(states) == len(again) == 4, "one adaptor may be read through any number of times"
    assert torch.equal(states[1], plain[1]), "base layer 0"
    assert not torch.equal(states[2], plain[1]), "what it inserts behind it replaces the state"
    assert base_layer_places(adaptor, 2) == [0, 2]
    assert default_points(32) == (0, 1, 5, 6, 10, 11, 15, 16, 20, 21, 25, 26, 30, 31)


def test_rows_of_text_and_of_two_adaptors_get_in_one_batch_what_each_gets_alone():
    model = base("llama")
    paths = [None, adapted(model, trained(model, 1)), adapted(model, trained(model, 2, (1,)))]
    order = [1, 0, 2, 1, 0]
    prompts = [
        Prompt(embed_ids(paths[which] or model, ids(1, 4 + row, row)[0]), model=paths[which])
        for row, which in enumerate(order)
    ]

    def said(chosen: list[Prompt]):
        constraints = GenerationConstraints(8)
        return generate(model, VOCABULARY, chosen, constraints, sampling=Sampling(temperature=0))

    together = said(prompts)
    assert together == [said([prompt])[0] for prompt in prompts]
    plain = [Prompt(embed_ids(model, ids(1, 4 + row, row)[0])) for row in range(len(order))]
    assert said(plain) != together, "adaptors do change what is said"


def test_points_that_a_base_does_not_have_are_refused():
    model = base("llama")
    for points in ((0, 2), (1, 0), (0, 0), (-1,)):
        with pytest.raises(ValueError, match=r"rising numbers from 0 to 1 would fit"):
            new_adaptor(model, points)


def test_gradients_reach_an_adaptor_and_not_its_base():
    model = base("qwen3").requires_grad_(False)
    adaptor = new_adaptor(model, (1,))
    adapted(model, adaptor).train()(ids(1, 5)).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in adaptor.layers.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
