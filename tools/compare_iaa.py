"""Compare an import of IAA's weights with numbers that the official code gave, stage by stage.

    python -m tools.compare_iaa FIXTURE

FIXTURE holds `recorded.json` (sizes, insertion points, what was found of each path) and
`recorded.safetensors`: the checkpoint as `state/*` under official names, and for each case, whose name begins
with its path (`text`, `mm`, `g`), inputs and stages. Seeds and sizes may be any. Ids must be equal, tensors
within 1e-4. Exits 1 when a stage is outside, or when something recorded was not compared.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionModel, DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from pictish.lm.adapted import Base, ReadAdaptor, read_adaptor, read_base
from pictish.lm.adaptors import Adaptor, adapted, base_layer_places
from pictish.lm.autoregressive import Branch, DecodeBatch, embed_ids
from pictish.pipelines.import_iaa import import_iaa
from tools.compare_lavit import Recorded, Row, _Silent, main, same, tensors

PATHS = {"text": None, "mm": "general", "g": "grounding"}
INPUTS = ("input_ids", "images")


@dataclass
class Run:
    """A recording, and what was imported from it."""

    info: dict[str, Any]
    recorded: Recorded
    base: Base
    adaptors: dict[str, ReadAdaptor]
    tower: CLIPVisionModel

    def path(self, case: str) -> PreTrainedModel:
        """The model that a case was computed by."""
        which = PATHS[path_of(case)]
        return (
            self.base.language if which is None else adapted(self.base.language, self.adaptors[which].adaptor)
        )


def path_of(case: str) -> str:
    """`mm` of `mm_without_image`; ValueError for a name that begins with no path."""
    start = case.partition("_")[0]
    if start not in PATHS:
        raise ValueError(f"the case {case!r} begins with none of {', '.join(PATHS)}")
    return start


def read(fixture: Path, work: Path) -> Run:
    """Write the recorded checkpoint as the official folder has it, and import that."""
    info = json.loads((fixture / "recorded.json").read_text("utf-8"))
    recorded = Recorded(load_file(fixture / "recorded.safetensors"))
    state = {name: recorded[f"state/{name}"] for name in recorded.kinds("state/")}
    source, out = work / "checkpoint", work / "model"
    source.mkdir()
    save_file(state, source / "model.safetensors")
    settings = {name: value for name, value in info["config"].items() if name not in ("clip", "image_index")}
    (source / "config.json").write_text(json.dumps({**settings, "model_type": "IAA"}))
    words = {f"word{number}": number for number in range(settings["vocab_size"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(source)
    heads = info["config"]["clip"]["num_attention_heads"]
    import_iaa(source, out, progress=_Silent(), heads=heads, points=tuple(info["insertion_points"]))
    base = read_base(out / "lm")
    base.language.set_attn_implementation("eager")  # as recorded
    adaptors = {path.name: read_adaptor(path, base) for path in sorted((out / "adaptors").iterdir())}
    tower = CLIPVisionModel.from_pretrained(out / "vision_tower", attn_implementation="eager")
    return Run(info, recorded, base, adaptors, tower.eval())


def embeddings(run: Run, case: str) -> tuple[Tensor, list[Row]]:
    """What a case reads (B, L, D), and the stages on the way there."""
    ids, model = run.recorded[f"{case}/input_ids"], run.path(case)
    rows: list[Row] = []
    placeholder = run.info["config"]["image_index"]
    embedded = embed_ids(model, ids.clamp_min(0))
    if f"{case}/images" in run.recorded:
        states = run.tower(run.recorded[f"{case}/images"], output_hidden_states=True).hidden_states
        features = states[-2][:, 1:]
        which = PATHS[path_of(case)]
        assert which is not None, "text has no pictures"
        projector = run.adaptors[which].projector
        assert projector is not None
        projected = projector(features)
        for name, ours in (("tower_features", features), ("projected_features", projected)):
            rows += stage(run, case, name, ours)
        pictures = iter(projected)
        rows_of = [splice(r, e, placeholder, pictures) for r, e in zip(ids, embedded, strict=True)]
        embedded = pad_sequence(rows_of, batch_first=True)  # causal: what stands behind a row changes nothing
    rows += stage(run, case, "inputs_embeds", embedded)
    return embedded, rows


def splice(ids: Tensor, embedded: Tensor, placeholder: int, pictures: Iterator[Tensor]) -> Tensor:
    """A row (L, D) with the features (N, D) of the next image in the place of each placeholder."""
    parts = [
        next(pictures) if token == placeholder else row[None]
        for token, row in zip(ids.tolist(), embedded, strict=True)
    ]
    return torch.cat(parts)


def stage(run: Run, case: str, name: str, ours: Tensor) -> list[Row]:
    """A comparison, if the stage was recorded."""
    key = f"{case}/{name}"
    if key not in run.recorded:
        return []
    theirs = run.recorded[key]
    return [tensors(key, ours, theirs) if theirs.is_floating_point() else same(key, ours, theirs)]


def compare_case(run: Run, case: str) -> list[Row]:
    """All stages of a case."""
    embedded, rows = embeddings(run, case)
    model, which = run.path(case), PATHS[path_of(case)]
    mask = run.recorded.get(f"{case}/attention_mask")
    output = model(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True)
    states, layers = output.hidden_states, run.base.language.config.num_hidden_layers
    places = list(range(layers))
    if which is not None:
        places = base_layer_places(run.adaptors[which].adaptor, layers)
    rows += stage(run, case, "hidden_states", torch.stack([*(states[place] for place in places), states[-1]]))
    rows += stage(run, case, "logits", output.logits)
    if f"{case}/greedy_tokens" in run.recorded:
        count = run.recorded[f"{case}/greedy_tokens"].shape[1]
        whole, cached = greedy(model, embedded, count), greedy_cached(model, embedded, count)
        rows += stage(run, case, "greedy_tokens", whole[0]) + stage(run, case, "greedy_logits", whole[1])
        rows += [
            same(f"{case}/greedy with a cache, tokens", cached[0], whole[0]),
            tensors(f"{case}/greedy with a cache, logits", cached[1], whole[1]),
        ]
    return rows


def greedy(model: PreTrainedModel, embedded: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` likeliest ids (B, count) and their logits (B, count, V), all computed anew at each step."""
    tokens, logits = [], []
    for _ in range(count):
        last = model(inputs_embeds=embedded, use_cache=False).logits[:, -1]
        tokens.append(last.argmax(dim=-1))
        logits.append(last)
        embedded = torch.cat([embedded, embed_ids(model, tokens[-1])[:, None]], dim=1)
    return torch.stack(tokens, dim=1), torch.stack(logits, dim=1)


def greedy_cached(model: PreTrainedModel, embedded: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same, as pictish generates: with a cache."""
    batch = DecodeBatch(model, list(map(Branch.of, embedded)), count, "dynamic")
    tokens, logits = [], []
    for step in range(count):
        tokens.append(batch.logits.argmax(dim=-1))
        logits.append(batch.logits)
        if step < count - 1:
            batch.step(tokens[-1].tolist())
    return torch.stack(tokens, dim=1), torch.stack(logits, dim=1)


def compare_claims(run: Run, cases: list[str]) -> list[Row]:
    """What was found of the paths beside numbers: which of them a change of an adaptor reaches."""
    claims, rows = run.info["cases"], []
    firsts = {path_of(case): case for case in reversed(cases)}
    inputs = {path: embeddings(run, case)[0] for path, case in firsts.items()}

    def logits() -> dict[str, Tensor]:
        return {path: run.path(case)(inputs_embeds=inputs[path]).logits for path, case in firsts.items()}

    for path, found in claims.get("greedy", {}).items():
        which = PATHS[path]
        layers = run.path(path).config.num_hidden_layers
        groups = [count for count in found["cache_groups"] if count]
        rows.append(
            same(
                f"{path}: layers of the cache", len(DynamicCache(config=run.path(path).config).layers), layers
            )
        )
        rows.append(same(f"{path}: cache groups", layers, sum(groups)))
        assert (which is None) == (len(groups) == 1)
    before = logits()
    identity = "silent_insertion_layers_and_copied_ends_reproduce_text_logits_bitwise"
    if claims.get(identity) is not None and "text" in inputs:
        for which, one in run.adaptors.items():
            model = adapted(run.base.language, silenced(run.base.language, one.adaptor))
            ours = torch.equal(model(inputs_embeds=inputs["text"]).logits, before["text"])
            rows.append(same(f"{which}: identity start, bit for bit", ours, claims[identity]))
    for name, changed in (("general", ["general"]), ("both", ["general", "grounding"])):
        suffix = "general_adaptor" if name == "general" else "both_adaptors"
        claimed = claims.get(f"bitwise_equal_after_changing_{suffix}", {})
        kept = {w: {n: t.clone() for n, t in run.adaptors[w].adaptor.state_dict().items()} for w in changed}
        for which in changed:
            for parameter in run.adaptors[which].adaptor.parameters():
                parameter.add_(0.05)
        after = logits()
        for which in changed:
            run.adaptors[which].adaptor.load_state_dict(kept[which])
        for path, equal in claimed.items():
            if path in before:
                ours = torch.equal(before[path], after[path])
                rows.append(same(f"{path}: unchanged by a change of {name}", ours, equal))
    return rows


def silenced(base: PreTrainedModel, adaptor: Adaptor) -> Adaptor:
    """An adaptor of this form that does nothing: output projections of 0 and the base's ends."""
    from pictish.lm.adaptors import new_adaptor

    made: nn.Module = new_adaptor(base, adaptor.points).eval()
    assert isinstance(made, Adaptor)
    return made


def compare(fixture: Path, work: Path) -> list[Row]:
    """All rows of a recording."""
    run = read(fixture, work)
    cases = sorted({name.partition("/")[0] for name in run.recorded} - {"state"})
    rows = [row for case in cases for row in compare_case(run, case)]
    rows += compare_claims(run, cases)
    inputs = tuple(f"/{name}" for name in INPUTS)
    left = [n for n in run.recorded if n not in run.recorded.seen and not n.endswith(inputs)]
    note = f"{len(left)} recorded and not compared, such as {left[0]}" if left else ""
    return [*rows, Row("everything recorded", not left, note=note)]


if __name__ == "__main__":
    sys.exit(main(__doc__, compare))
