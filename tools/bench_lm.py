"""Speed of the language model: generation against transformers' own, packing against padding and bucketing.

python tools/bench_lm.py generate      an image of 32 codes with guidance, batch 1 and 4
python tools/bench_lm.py pack          useful tokens a second of a training step at several row lengths
python tools/bench_lm.py shapes        ids a second of a training step by shape and attention

Weights are random: speed does not depend on them. Each figure is the median of several rounds in which the
rivals take turns. Run it on a machine that does nothing else.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
CODES = 2048
# The starter's size: pieces of text, width, depth, heads.
TEXT, WIDTH, LAYERS, HEADS = 2048, 256, 6, 4


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["generate", "pack", "shapes"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codes", type=int, default=32, help="of each generated picture")
    settings = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    {"generate": generation, "pack": packing, "shapes": shapes}[settings.what](settings)


def starter_sized():
    """A Llama of the starter's size with random weights, and its vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from pictish.lm.vocabulary import Vocabulary

    vocabulary = Vocabulary(TEXT, CODES, eos=0)
    config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), vocabulary


def rivals(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def generation(settings: argparse.Namespace) -> None:
    """Images with guidance, one and four at a time."""
    from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

    from pictish.lm.autoregressive import Guidance, Prompt, embed_ids, generate
    from pictish.lm.grammar import one_image
    from pictish.lm.sampling import Sampling

    model, vocabulary = starter_sized()
    codes = set(range(vocabulary.first_code, vocabulary.first_code + CODES))
    suppress = SuppressTokensLogitsProcessor(
        [i for i in range(vocabulary.size) if i not in codes], device="cpu"
    )
    for count in (1, 4):
        ids = [[5 + row, 9, 11, 40, 77, 3, vocabulary.begin] for row in range(count)]

        def ours(cache: str, ids=ids):
            nothing = embed_ids(model, [vocabulary.begin])
            prompts = [Prompt(embed_ids(model, row), nothing=nothing, inside=True) for row in ids]
            request = one_image(settings.codes, settings.codes)
            greedy, guidance = Sampling(temperature=0), Guidance(text_scale=3.0)
            generate(model, vocabulary, prompts, request, sampling=greedy, guidance=guidance, cache=cache)

        def theirs(ids=ids):
            prompt = torch.tensor(ids)
            start = torch.full((len(ids), 1), vocabulary.begin)
            with torch.inference_mode():
                model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    negative_prompt_ids=start,
                    negative_prompt_attention_mask=torch.ones_like(start),
                    guidance_scale=3.0,
                    do_sample=False,
                    max_new_tokens=settings.codes + 1,
                    logits_processor=LogitsProcessorList([suppress]),
                    pad_token_id=0,
                )

        work = {"dynamic cache": lambda o=ours: o("dynamic"), "static cache": lambda o=ours: o("static")}
        found = rivals({**work, "transformers": theirs}, settings.rounds)
        for name in work:
            print(
                f"batch {count}, {name:14}{found[name]:6.2f} s, transformers {found['transformers']:6.2f} s, "
                f"ratio {found['transformers'] / found[name]:.2f}",
                flush=True,
            )


def packing(settings: argparse.Namespace) -> None:
    """A forward and backward on documents as the starter's captions and images make them."""
    from pictish.lm.model import Output
    from pictish.lm.objective import cross_entropy
    from pictish.lm.packing import Packed, batches, pack
    from pictish.lm.sequence import Document

    model, _ = starter_sized()
    model.train()
    chance = np.random.default_rng(0)
    # 27.5 codes and a caption of 4 to 14 pieces; a third are edits with two images
    lengths = chance.normal(27.5, 9, 768).clip(4, 64).astype(int) + chance.integers(6, 17, 768)
    lengths[::3] += chance.normal(27.5, 9, len(lengths[::3])).clip(4, 64).astype(int)
    documents = [
        Document("drawing", chance.integers(0, TEXT, n), np.ones(n, bool), np.zeros(0, np.int64), None)
        for n in lengths.tolist()
    ]

    class Plain(torch.nn.Module):
        def forward(self, packed: Packed) -> torch.Tensor:
            from pictish.lm.packing import attention_mask

            return model(
                input_ids=packed.ids,
                attention_mask=attention_mask(packed.documents),
                position_ids=packed.positions,
                use_cache=False,
            ).logits

    plain = Plain()

    def step(batches: list[Packed]) -> None:
        for packed in batches:
            cross_entropy(Output(plain(packed)), packed).total.backward()
            model.zero_grad(set_to_none=True)

    useful = int(lengths.sum())
    batch = 16
    shuffled = [documents[i : i + batch] for i in range(0, len(documents), batch)]
    ordered = sorted(documents, key=len)
    bucketed = [ordered[i : i + batch] for i in range(0, len(documents), batch)]
    work: dict[str, list[Packed]] = {
        "padded to the longest of the batch": [pack([[d] for d in b], max(map(len, b))) for b in shuffled],
        "length buckets": [pack([[d] for d in b], max(map(len, b))) for b in bucketed],
    }
    for rows, length in ((6, 128), (12, 128), (24, 128), (8, 192), (16, 192), (12, 256)):
        stream = ((document, {}) for document in documents)
        steps = batches(stream, rows, length)
        work[f"packed {rows} rows of {length}"] = [pack([r for r in rows if r], length) for rows, _ in steps]
    found = rivals({name: lambda p=packed: step(p) for name, packed in work.items()}, settings.rounds)
    base = found["padded to the longest of the batch"]
    for name, seconds in found.items():
        places = sum(packed.ids.numel() for packed in work[name])
        waste = 1 - useful / places
        print(
            f"{name:36} {useful / seconds:9.0f} useful tokens/s  {base / seconds:5.2f}x  waste {waste:5.1%}"
        )


def shapes(settings: argparse.Namespace) -> None:
    """A whole step, optimizer included, on 32 full rows of 128 ids; 4,096 codes beside 1,500 text ids."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pictish.lm.model import Output
    from pictish.lm.objective import cross_entropy
    from pictish.lm.packing import attention_mask, pack
    from pictish.lm.sequence import Document
    from pictish.training.optimizer import adamw
    from pictish.training.runtime import keep_freed_memory

    keep_freed_memory()
    rows, length, size = 32, 128, 4096 + 1500
    chance = np.random.default_rng(0)
    documents = [
        Document("drawing", chance.integers(0, size, length), np.ones(length, bool), np.zeros(0, int), None)
        for _ in range(rows)
    ]
    packed = pack([[document] for document in documents], length)
    work, weights = {}, {}
    for architecture in ("llama", "qwen3"):
        for width, layers in ((256, 6), (512, 4), (640, 4)):
            torch.manual_seed(0)
            heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64, "head_dim": 64}
            config = AutoConfig.for_model(
                architecture,
                vocab_size=size,
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=layers,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
                **heads,
            )
            model = AutoModelForCausalLM.from_config(config).train()
            optimizer = adamw(model, 1e-3, 0.05)
            for attention in ("eager", "sdpa"):

                def step(model=model, attention=attention, optimizer=optimizer):
                    model.set_attn_implementation(attention)
                    dtype = torch.bool if attention == "sdpa" else torch.float32
                    mask = attention_mask(packed.documents, dtype)
                    logits = model(packed.ids, mask, packed.positions, use_cache=False).logits
                    (cross_entropy(Output(logits), packed).total / packed.learned).backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                name = f"{architecture} {width} x {layers}, {attention}"
                work[name] = step
                weights[name] = sum(parameter.numel() for parameter in model.parameters())
    for name, seconds in rivals(work, settings.rounds).items():
        speed = packed.ids.numel() / seconds
        print(f"{name:24} {weights[name] / 1e6:6.1f} M weights {speed:7.0f} ids/s")


if __name__ == "__main__":
    main()
