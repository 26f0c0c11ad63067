"""Every quantizer through the one interface: ids and codes agree, float32 always, and each one trains."""

import pytest
import torch
from pydantic import TypeAdapter

from pictish.tokenizer.quantizers import Quantizer, build_quantizer
from pictish.tokenizer.quantizers.config import QuantizerConfig
from tests.tokenizer.conftest import tiny_network

KINDS = {
    "cosine": {"kind": "cosine", "codes": 64, "dim": 8},
    "fsq": {"kind": "fsq", "levels": (4, 4, 4)},
    "lfq": {"kind": "lfq", "codes": 64},
    "simvq": {"kind": "simvq", "codes": 64, "dim": 8},
}


def build(kind: str) -> Quantizer:
    torch.manual_seed(0)
    quantizer = build_quantizer(TypeAdapter(QuantizerConfig).validate_python(KINDS[kind]))
    quantizer.start(torch.randn(512, quantizer.dim))
    return quantizer


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_vectors_agree(kind):
    quantizer = build(kind).eval()
    vectors = torch.randn(300, quantizer.dim, generator=torch.Generator().manual_seed(1))
    vectors_out, ids, loss = quantizer(vectors)
    assert vectors_out.shape == vectors.shape
    assert ids.dtype == torch.int64
    assert ids.shape == (300,)
    assert ids.min() >= 0
    assert ids.max() < quantizer.codes == 64
    assert loss == 0 or kind == "lfq"
    assert torch.allclose(quantizer.decode(ids), vectors_out, atol=1e-6)
    assert torch.equal(quantizer.decode(ids.view(3, 100)), quantizer.decode(ids).view(3, 100, -1))
    assert len(ids.unique()) > 8


@pytest.mark.parametrize("kind", KINDS)
def test_ids_do_not_depend_on_autocast_or_batch(kind):
    quantizer = build(kind).eval()
    vectors = torch.randn(300, quantizer.dim, generator=torch.Generator().manual_seed(2))
    plain = quantizer(vectors).ids
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(vectors).ids, plain)
    assert torch.equal(torch.cat([quantizer(part).ids for part in vectors.split(64)]), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_lower_the_loss(kind):
    network = tiny_network(spread=False, quantizer=KINDS[kind])
    source, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)

    def batch() -> torch.Tensor:
        """Images of 4 x 4 cells, each of one of eight colours: (8, 32, 32, 3) uint8."""
        chosen = torch.randint(0, 8, (8, 4, 4), generator=source)
        colours = torch.stack([(chosen >> bit & 1) * 255 for bit in range(3)], dim=-1).to(torch.uint8)
        return colours.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)

    network.quantizer.start(torch.cat([network.code_vectors(batch(), generator) for _ in range(8)]))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        pixels = batch()
        losses = network(pixels, pixels[:, ::2, ::2], None, generator, quantize=True)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        errors.append(float(losses.mse))
    assert sum(errors[-5:]) < 0.8 * sum(errors[:5])
    assert network.to_code[-1].weight.grad.abs().sum() > 0, "the codes must pass a gradient on"


def test_too_few_vectors_for_kmeans_are_refused():
    torch.manual_seed(0)
    quantizer = build_quantizer(TypeAdapter(QuantizerConfig).validate_python(KINDS["cosine"]))
    with pytest.raises(AssertionError, match="cannot place 64"):
        quantizer.start(torch.randn(63, 8))


def test_lfq_wants_a_power_of_two():
    with pytest.raises(ValueError, match="power of two"):
        build_quantizer(TypeAdapter(QuantizerConfig).validate_python({"kind": "lfq", "codes": 100}))


def test_dead_codes_come_back():
    quantizer = build("cosine").train()
    corner = torch.nn.functional.normalize(
        torch.randn(256, 8, generator=torch.Generator().manual_seed(3)) * 0.05 + 1.0, dim=-1
    )
    used_at_first = len(quantizer(corner).ids.unique())
    for _ in range(700):  # counts of about 8 decay to 0.1 in 440 steps of 0.99
        quantizer(corner + 0.05 * torch.randn(256, 8))
    assert len(quantizer(corner).ids.unique()) > 2 * used_at_first
