"""Replay what was recorded of the official LLaDA, LLaDA-V and Fast-dLLM code with ours.

    python -m tools.compare_lladav FIXTURE

FIXTURE holds `recorded.json` and `recorded.safetensors`, whose `layout` says what they hold. Samplers are
compared id by id at each call of the network, losses with every gradient, caches by what they compute. Where
a recording depends on what the official code does by accident (it says so: masks left, ties, scores of minus
infinity that are committed) it is replayed with `official_quirks`, and the line says so. Exits 1 when a
comparison fails.

tools/lladav_vision_cases.py compares images, turns and names.
"""

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pictish.lm.autoregressive import Guidance, Prompt, mixed
from pictish.lm.config import MaskedCache, MaskedForm
from pictish.lm.masked import rates_of, weighed
from pictish.lm.masked_batch import MaskedBatch
from pictish.lm.masked_sampling import (
    Denoise,
    MaskedSampling,
    MaskState,
    Rules,
    counts_of,
    fill,
    steps_per_block,
)
from pictish.lm.model import Output, head_at
from pictish.lm.objective import cross_entropy
from pictish.lm.packing import IGNORED, Packed, attention_mask
from pictish.lm.sampling import Sampling

TOLERANCE = 1e-4
USUAL = {"steps": 128, "gen_length": 128, "block_length": 128, "mask_id": 126336, "cfg_scale": 0.0}
USUAL |= {"temperature": 0.0, "remasking": "low_confidence"}
RENAMED = {  # the original names of LLaDA's layers, those of Llama
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    **{f"{name}_proj": f"self_attn.{name}_proj" for name in "qkv"},
}


class Row(NamedTuple):
    """One comparison."""

    name: str
    right: bool
    note: str = ""


class Differs(Exception):
    """Ours left the recorded path; says where."""


@dataclass(eq=False)
class Case:
    """One recorded case: what its JSON says and its tensors, whose ids are indices of `active`."""

    name: str
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    special: Mapping[str, int]
    kwargs: dict[str, Any] = field(init=False)
    active: list[int] = field(init=False)  # the ids that have logits and embeddings

    def __post_init__(self) -> None:
        self.kwargs = {**USUAL, **self.facts.get("kwargs", {})}
        known = self.find("active_ids")
        count = self.facts.get("vocab", 0) if known is None else 0
        self.active = list(range(count)) if known is None else known.tolist()
        self.index = {token: number for number, token in enumerate(self.active)}

    def find(self, name: str) -> Tensor | None:
        """A tensor of the case, or of those that share its first name."""
        shared = self.name.split("/", maxsplit=1)[0]
        found = self.tensors.get(f"{self.name}/{name}")
        return self.tensors.get(f"{shared}/{name}") if found is None else found

    def __getitem__(self, name: str) -> Tensor:
        found = self.find(name)
        if found is None:
            raise Differs(f"the recording has no {name}")
        return found

    def ids(self, name: str) -> Tensor:
        """Recorded ids as indices of `active`."""
        return self[name].clone().apply_(lambda token: self.index.get(int(token), -1))

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below `prefix`, by what follows it."""
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}

    @property
    def accidents(self) -> str:
        """What the official code did by accident here; empty where nothing."""
        found = [
            name
            for name in ("masks_left", "tie_order_decides_tokens", "topk_ran_out_of_finite_scores_at")
            if self.facts.get(name)
        ]
        found += ["equal_scores_at_the_cut_at"] * bool(self.facts.get("equal_scores_at_the_cut_at"))
        found += ["several stops"] * (len(self.kwargs.get("stopping_criteria", ())) > 1)
        return ", ".join(found)

    def settings(self, quirks: bool, *, float64: bool) -> MaskedSampling:
        """The recorded call's settings as ours."""
        kwargs = self.kwargs
        steps = steps_per_block(kwargs["gen_length"], kwargs["block_length"], kwargs["steps"])
        threshold = kwargs.get("threshold")
        if threshold is not None:
            steps = kwargs[
                "block_length"
            ]  # the official code then ignores its steps, and commits one at least
        return MaskedSampling(
            steps, remasking=kwargs["remasking"], threshold=threshold, float64=float64, official_quirks=quirks
        )

    def rules(self, quirks: bool, forbidden: list[int], stops: tuple[tuple[int, ...], ...] = ()) -> Rules:
        """What may be written, in indices of `active`."""
        eos, eot = self.special["eos"], self.special["eot"]
        mask = self.kwargs["mask_id"]
        never = [*forbidden, *([eos] if self.kwargs.get("logits_eos_inf") else [])]
        last = []
        if self.kwargs.get("confidence_eos_eot_inf"):  # with noise only one of the two is reached
            last = [eot] if self.kwargs["temperature"] and quirks else [eos, eot]
        barred = torch.zeros(len(self.active), dtype=torch.bool)
        barred[[self.index[token] for token in never if token in self.index]] = True
        known = tuple(self.index[token] for token in last if token in self.index)
        return Rules(self.index[mask], barred, stops=stops, last=known)

    def uniform(self, before: int, calls: "Calls") -> Callable[[int, Tensor, int | None], Tensor]:
        """The recorded draws, in the order they were made; `before` places stand before the span."""
        kinds = bool(self.kwargs["temperature"]) + (self.kwargs["remasking"] == "random")

        def draw(row: int, places: Tensor, width: int | None) -> Tensor:
            number = calls.number * kinds + (0 if width is not None else kinds - 1)
            drawn = self[f"rand/{number:03d}"][row]
            if width is not None and drawn.shape[-1] != width:
                drawn = drawn[:, self.active]
            return drawn[places + before - calls.first].double()

        return draw


@dataclass(eq=False)
class Calls:
    """Counts the recorded calls of the network; those of a block begin where the official code's do."""

    per_block: int | None  # None: as many as come
    number: int = -1
    block: int = -1
    first: int = 0  # the column that the latest call begins at

    def next(self, step: int) -> int:
        self.block += step == 0
        self.number = self.number + 1 if self.per_block is None else self.block * self.per_block + step
        return self.number


def guided(case: Case, conditional: Tensor, unconditional: Tensor | None) -> Tensor:
    """Logits by our guidance, whose scale is the official one more 1."""
    if unconditional is None:
        return conditional
    scale = case.kwargs["cfg_scale"] + 1
    both = torch.stack([conditional, unconditional])
    return mixed(both, [scale, 1 - scale], Guidance(scale), 0.5, None)


def sampled_ids(case: Case, quirks: bool) -> Iterator[Row]:
    """Samplers on ids: LLaDA's, and LLaDA-V's that was never live."""
    prompt, mask = case.ids("prompt"), case.index[case.kwargs["mask_id"]]
    rows, length = prompt.shape
    ids = F.pad(prompt, (0, case.kwargs["gen_length"]), value=mask)
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, length:] = True
    if quirks:
        masked |= ids == mask
    state = MaskState(ids.clone(), masked, masked.clone())
    settings = case.settings(quirks, float64=case.facts["function"].startswith("LLaDA-V"))
    calls, inputs, logits = Calls(settings.steps), case.ids("calls/input_ids"), case["calls/logits"]

    def denoise(state: MaskState, asked: Tensor, block: slice, step: int) -> Tensor:
        number = calls.next(step)
        if number >= len(inputs):
            raise Differs(f"call {number}: only {len(inputs)} were recorded")
        for row in asked.tolist():
            _same_ids(f"call {number}, row {row}", state.ids[row], inputs[number, row])
        unconditional = None
        if case.kwargs["cfg_scale"]:
            wanted = state.ids[asked].clone()
            wanted[:, :length] = mask
            _same_ids(f"call {number}, unconditional", wanted, inputs[number, rows + asked])
            unconditional = logits[number, rows + asked]
        return guided(case, logits[number, asked], unconditional)[:, block]

    fill(
        denoise,
        state,
        case.rules(quirks, []),
        settings,
        case.uniform(0, calls),
        sampling=Sampling(case.kwargs["temperature"]),
        block_length=case.kwargs["block_length"],
        first=length,
    )
    later = inputs[calls.number + 1 :]
    idle = bool((later[:, :rows] == state.ids).all())  # the official code goes on when nothing is masked
    _same_ids("output", state.ids, case.ids("output"))
    yield Row(case.name, idle, f"{calls.number + 1} calls of {len(inputs)}")


def sampled_embeddings(case: Case, quirks: bool) -> Iterator[Row]:
    """LLaDA-V's sampler on embeddings, with suppressed ids, stops and a suffix."""
    inputs, logits, table = case["calls/inputs_embeds"], case["calls/logits"], case["embed_rows"]
    prompt, mask = case["prompt_embeds"], case.index[case.special["mask"]]
    before = prompt.shape[1]
    calls = Calls(None)

    def denoise(state: MaskState, asked: Tensor, block: slice, step: int) -> Tensor:
        number = calls.next(step)
        if number >= len(inputs):
            raise Differs(f"call {number}: only {len(inputs)} were recorded")
        own = table[state.ids.masked_fill(state.masked, mask)]
        _same_rows(f"call {number}", torch.cat([prompt, own], dim=1), inputs[number, :1])
        unconditional = None
        if case.kwargs["cfg_scale"]:
            bare = torch.cat([table[mask].expand_as(prompt), own], dim=1)
            _same_rows(f"call {number}, unconditional", bare, inputs[number, 1:])
            unconditional = logits[number, 1:, before:]
        return guided(case, logits[number, :1, before:], unconditional)[:, block]

    found = _answered(case, quirks, denoise, calls, before)
    _same_ids("output", found, case.ids("output")[0])
    yield Row(case.name, calls.number + 1 == len(inputs), f"{calls.number + 1} calls of {len(inputs)}")


def _answered(case: Case, quirks: bool, denoise: Denoise, calls: Calls, before: int) -> Tensor:
    """Ids that LLaDA-V's settings give behind a prompt of `before` tokens, suffix included."""
    case.kwargs["mask_id"] = case.special["mask"]
    known, special = case.facts.get("tokenizer") or {}, case.special
    suffix = [case.index[token] for token in known.get(case.kwargs.get("generation_suffix"), [])]
    stops = tuple(
        tuple(case.index[token] for token in known[stop]) for stop in case.kwargs.get("stopping_criteria", ())
    )
    length, mask = case.kwargs["gen_length"], case.index[special["mask"]]
    ids = torch.tensor([[mask] * length + suffix])
    masked = torch.tensor([[True] * length + [False] * len(suffix)])
    state = MaskState(ids, masked, masked.clone(), before)
    suppressed = [special[name] for name in ("eos", "bos", "start_header", "end_header")]
    fill(
        denoise,
        state,
        case.rules(quirks, suppressed, stops),
        case.settings(quirks, float64=True),
        case.uniform(before, calls),
        sampling=Sampling(case.kwargs["temperature"]),
        block_length=case.kwargs["block_length"],
        last=length,
    )
    end = min(int(state.end[0]), length)
    return torch.cat([state.ids[0, :end], state.ids[0, length:]])


def network(state: Mapping[str, Tensor], probe: Callable[[LlamaForCausalLM], float]) -> LlamaForCausalLM:
    """A Llama with these weights; how many heads it has, which no shape says, is what `probe` finds best."""
    vocabulary, width = state["model.embed_tokens.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("model.layers."))
    found: list[tuple[float, LlamaForCausalLM]] = []
    for heads in (n for n in range(1, width // 2 + 1) if width % n == 0 and width // n % 2 == 0):
        for theta in (500000.0, 10000.0):
            key_width = state["model.layers.0.self_attn.k_proj.weight"].shape[0]
            if key_width % (width // heads):
                continue
            config = LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=state["model.layers.0.mlp.up_proj.weight"].shape[0],
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=key_width // (width // heads),
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": theta},
                tie_word_embeddings=False,
                attn_implementation="sdpa",
            )
            model = LlamaForCausalLM(config).eval()
            model.load_state_dict(state)
            with torch.no_grad():
                found.append((probe(model), model))
    return min(found, key=lambda pair: pair[0])[1]


def states(model: LlamaForCausalLM, embedded: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (B, L, D) and logits (B, L, V) of rows in which 0 in `padding` (B, L) is none."""
    mask = attention_mask(padding, blocks=torch.zeros_like(padding))
    positions = torch.arange(embedded.shape[1]).expand(len(embedded), -1)
    hidden = model.model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False)
    return hidden.last_hidden_state, model.lm_head(hidden.last_hidden_state)


def backbone(case: Case) -> LlamaForCausalLM:
    """LLaDA-V's recorded network; ids that are not among the active ones have rows of zeros."""
    embedded, wanted = case["forward/inputs_embeds"], case["forward/logits"]
    ones = torch.ones(embedded.shape[:2], dtype=torch.long)
    state = case.state("lladav_backbone/state/")
    model = network(state, lambda model: float((states(model, embedded, ones)[1] - wanted).abs().max()))
    for old in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert isinstance(old, nn.Embedding | nn.Linear)
        rows = old.weight.new_zeros(case.facts["vocab"], old.weight.shape[1])
        rows[case["active_ids"]] = old.weight.detach()
        old.weight = nn.Parameter(rows)
    case.active = list(range(len(rows)))
    case.index = {token: token for token in case.active}
    return model


def forwards(case: Case, quirks: bool) -> Iterator[Row]:
    """The backbone's hidden states and logits, with and without padding."""
    model, embedded, padding = backbone(case), case["forward/inputs_embeds"], case["forward/padding_mask"]
    active = case["active_ids"]
    with torch.no_grad():
        hidden, logits = states(model, embedded, torch.ones_like(padding))
        padded, _ = states(model, embedded, padding)
    yield _close("lladav_backbone/forward/hidden", hidden, case["forward/hidden"])
    yield _close("lladav_backbone/forward/logits", logits[..., active], case["forward/logits"])
    real = padding.bool()
    yield _close("lladav_backbone/forward/hidden_padded", padded[real], case["forward/hidden_padded"][real])


def losses(case: Case, quirks: bool) -> Iterator[Row]:
    """A loss and all its gradients, by our weights, masks and cross entropy."""
    model, mask = backbone(case).train(), case.index[case.special["mask"]]
    labels = case.ids("labels").masked_fill(case["labels"] == IGNORED, IGNORED)
    given = case["inputs_embeds"].clone().requires_grad_()
    candidates = labels != IGNORED
    rates = rates_of(case["t"])[:, None].expand(labels.shape)
    masked = candidates & (case["uniform"] < rates)
    zeros = torch.zeros_like(labels)
    turns, padding = case.find("conversation_ids"), case.find("attention_mask")
    packed = Packed(
        labels.clamp_min(0),
        labels,
        zeros + 1 if padding is None else padding,
        zeros,
        zeros,
        zeros,
        zeros.bool(),
        None,
        torch.zeros(2, 0).long(),
    )
    packed = weighed(packed, candidates, zeros.bool(), masked, masked, rates)
    embedded = torch.where(masked[..., None], model.get_input_embeddings().weight[mask], given)
    positions = torch.arange(labels.shape[1]).expand(labels.shape)
    seen = attention_mask(packed.documents, blocks=zeros if turns is None else turns)
    with head_at(model, packed.targets != IGNORED):
        logits = model(
            inputs_embeds=embedded, attention_mask=seen, position_ids=positions, use_cache=False
        ).logits
    loss = cross_entropy(Output(logits), packed).total / packed.learned
    loss.backward()
    yield _close(f"{case.name}/loss", loss.detach()[None], case["loss"])
    active = case["active_ids"]
    yield _close(f"{case.name}/logits", logits.detach()[:, active], case["logits"][masked])
    assert given.grad is not None
    yield _close(f"{case.name}/grad_inputs_embeds", given.grad, case["grad_inputs_embeds"])
    for name, wanted in case.state(f"{case.name}/grad/").items():
        gradient = model.get_parameter(name).grad
        if gradient is not None and len(gradient) == case.facts["vocab"]:
            gradient = gradient[active]
        yield _close(
            f"{case.name}/grad/{name}", torch.zeros_like(wanted) if gradient is None else gradient, wanted
        )


def cached_answers(case: Case, quirks: bool) -> Iterator[Row]:
    """LLaDA-V's sampler on its network, also with dLLM-Cache."""
    model, prompt, inputs = backbone(case), case["prompt_embeds"], case["calls/inputs_embeds"]
    asked = case.facts.get("dllm_cache")
    cache = MaskedCache()
    if asked is not None:
        intervals = {"prompt_interval": asked["prompt"], "answer_interval": asked["gen"]}
        cache = MaskedCache(kind="interval", ratio=asked["ratio"], **intervals)
    mask, room = case.index[case.special["mask"]], case.kwargs["gen_length"]
    nothing = None
    if case.kwargs["cfg_scale"]:
        nothing = model.get_input_embeddings().weight[mask].detach().expand_as(prompt[0])
    guidance = Guidance(case.kwargs["cfg_scale"] + 1)
    whole = Prompt(prompt[0], nothing=nothing)
    batch = MaskedBatch(model, [whole], mask, MaskedForm(), room=room, guidance=guidance, cache=cache)
    calls, table = Calls(None), model.get_input_embeddings().weight.detach()

    def denoise(state: MaskState, rows: Tensor, block: slice, step: int) -> Tensor:
        number = calls.next(step)
        if number >= len(inputs):
            raise Differs(f"call {number}: only {len(inputs)} were recorded")
        own = torch.cat([prompt, table[state.ids.masked_fill(state.masked, mask)]], dim=1)
        _same_rows(f"call {number}", own, inputs[number, :1])
        return batch(state, rows, block, step)

    with torch.no_grad():
        found = _answered(case, quirks, denoise, calls, prompt.shape[1])
    _same_ids("output", found, case.ids("output")[0])
    yield Row(case.name, calls.number + 1 == len(inputs), f"{calls.number + 1} calls of {len(inputs)}")


def fast_answers(case: Case, quirks: bool) -> Iterator[Row]:
    """Fast-dLLM's samplers on their network: without cache, with prefix cache, with dual cache."""
    model = fast_network(case)
    prompt, mask, length = case["prompt"], case.kwargs["mask_id"], case.kwargs["gen_length"]
    table = model.get_input_embeddings().weight.detach()
    kind = re.search(r"with_(dual|prefix)_cache", case.facts["function"])
    cache = MaskedCache(kind="none" if kind is None else kind[1])
    batch = MaskedBatch(model, [Prompt(table[prompt[0]])], mask, MaskedForm(), room=length, cache=cache)
    recorded = _calls(case)
    masked = torch.ones(1, length, dtype=torch.bool)
    state = MaskState(torch.full((1, length), mask), masked, masked.clone(), prompt.shape[1])
    whole, calls = prompt.shape[1] + length, Calls(None)

    def denoise(state: MaskState, rows: Tensor, block: slice, step: int) -> Tensor:
        at = calls.next(step)
        if kind is not None and step == 0:  # the official code may have looked once more at a filled block
            while at < len(recorded) and recorded[at][0].shape[1] != whole:
                at = calls.next(step)
        if at >= len(recorded):
            raise Differs(f"call {at}: only {len(recorded)} were recorded")
        ids, logits = recorded[at]
        ours = torch.cat([prompt, state.ids.masked_fill(state.masked, mask)], dim=1)
        calls.first = first = 0 if ids.shape[1] == whole else prompt.shape[1] + block.start
        _same_ids(f"call {at}", ours[:, first : first + ids.shape[1]], ids)
        found = batch(state, rows, block, step)
        here = slice(prompt.shape[1] + block.start - first, prompt.shape[1] + block.stop - first)
        if not torch.allclose(found, logits[:, here], atol=TOLERANCE):
            raise Differs(f"call {at}: logits differ by {float((found - logits[:, here]).abs().max()):.2g}")
        return logits[:, here]  # so that rounding does not decide between two that are nearly as likely

    with torch.no_grad():
        fill(
            denoise,
            state,
            case.rules(quirks, []),
            case.settings(quirks, float64=True),
            case.uniform(prompt.shape[1], calls),
            sampling=Sampling(case.kwargs["temperature"]),
            block_length=case.kwargs["block_length"],
        )
    _same_ids("output", torch.cat([prompt, state.ids], dim=1), case["output"])
    yield Row(case.name, True, f"{calls.number + 1} calls of {len(recorded)}")


def fast_network(case: Case) -> LlamaForCausalLM:
    """Fast-dLLM's recorded network, whose layers have LLaDA's original names."""
    state = {}
    for name, tensor in case.state("fastdllm/state/model.transformer.").items():
        block = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.weight", name)
        ends = {"wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight"}
        new = (
            f"model.layers.{block[1]}.{RENAMED[block[2]]}.weight"
            if block
            else ends.get(name, "lm_head.weight")
        )
        state[new] = tensor
    ids, wanted = case["probe_ids"], case["probe_logits"]
    return network(
        state,
        lambda model: float(
            (states(model, model.get_input_embeddings()(ids), torch.ones_like(ids))[1] - wanted).abs().max()
        ),
    )


def _calls(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Ids and logits of each call, which may be of different lengths."""
    if (ids := case.find("calls/input_ids")) is not None:
        return list(zip(ids, case["calls/logits"], strict=True))
    count = len(case.state(f"{case.name}/calls/")) // 2
    return [(case[f"calls/{n:03d}/input_ids"], case[f"calls/{n:03d}/logits"]) for n in range(count)]


def schedules(tensors: Mapping[str, Tensor]) -> Iterator[Row]:
    """How many ids each step commits, wherever it was recorded."""
    for name, table in tensors.items():
        if name.endswith("/num_transfer_tokens"):
            rows = [row[row >= 0].tolist() for row in table]
            yield Row(name, all(counts_of(n, steps, "linear") == wanted for n, steps, *wanted in rows))


def _same_ids(where: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.tolist() != theirs.tolist():
        raise Differs(f"{where}: {ours.tolist()} instead of {theirs.tolist()}")


def _same_rows(where: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-6):
        raise Differs(f"{where}: other embeddings")


def _close(name: str, ours: Tensor, theirs: Tensor) -> Row:
    if ours.shape != theirs.shape:
        return Row(name, False, f"{tuple(ours.shape)} instead of {tuple(theirs.shape)}")
    difference = float((ours.double() - theirs.double()).abs().max())
    return Row(
        name, difference <= TOLERANCE * max(1.0, float(theirs.abs().max())), f"off by {difference:.1e}"
    )


KINDS: dict[str, Callable[[Case, bool], Iterator[Row]]] = {  # by what a case's name begins with
    "llada/": sampled_ids,
    "lladav_tokens/": sampled_ids,
    "lladav_embeds/": sampled_embeddings,
    "lladav_backbone/loss/": losses,
    "lladav_backbone/sample/": cached_answers,
    "fastdllm/": fast_answers,
}


def compare(folder: Path) -> Iterator[Row]:
    """A row for each comparison; ValueError for a folder that holds no such recording."""
    try:
        recorded = json.loads((folder / "recorded.json").read_text("utf-8"))
        tensors = load_file(folder / "recorded.safetensors")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no recording ({error})") from error
    special, cases = recorded["special_ids"], recorded["cases"]
    vision: Any = None
    if importlib.util.find_spec("tools.lladav_vision_cases") is not None:
        vision = importlib.import_module("tools.lladav_vision_cases")
        yield from vision.compare(cases, tensors, special)
    yield from schedules(tensors)
    if "lladav_backbone/forward/logits" in tensors:
        yield from _tried(forwards, Case("lladav_backbone/forward", _backbone_facts(cases), tensors, special))
    for name, facts in cases.items():
        if vision is not None and name in vision.CASES:
            continue
        kind = next((function for start, function in KINDS.items() if name.startswith(start)), None)
        if kind is None:
            yield Row(name, False, "no comparison is known for it")
        else:
            yield from _tried(kind, Case(name, facts, tensors, special))


def _backbone_facts(cases: Mapping[str, Any]) -> Mapping[str, Any]:
    """What any case of the backbone says of it."""
    return next(facts for name, facts in cases.items() if name.startswith("lladav_backbone/"))


def _tried(kind: Callable[[Case, bool], Iterator[Row]], case: Case) -> Iterator[Row]:
    """A case by our own rules, or, where the recording depends on accidents, by the official ones."""
    quirks = bool(case.accidents)
    try:
        rows = list(kind(case, quirks))
    except (Differs, ValueError) as error:
        rows = [Row(case.name, False, str(error)[:300])]
    for row in rows:
        yield row._replace(note=f"{row.note} (official quirks: {case.accidents})") if quirks else row


def main() -> int:
    """Print each comparison and how many are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("fixture", type=Path, metavar="FIXTURE")
    try:
        rows = list(compare(parser.parse_args().fixture))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for row in rows:
        print(f"{'equal  ' if row.right else 'DIFFERS'} {row.name}  {row.note}")
    print(f"{sum(row.right for row in rows)} of {len(rows)} equal")
    return int(not rows or not all(row.right for row in rows))


if __name__ == "__main__":
    sys.exit(main())
