"""Beam search for text: the B likeliest beginnings go on together, and the best ended one is taken.

The bookkeeping is that of transformers 4.33, with which LaVIT's captions and answers were made. There a call
that is given embeddings counts one id that nobody wrote, BOS, as part of each text; so do lengths here.

Legend: P prompts that go on, B beams of each, V ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from pictish.lm.autoregressive import Branch, DecodeBatch, Progress
from pictish.lm.config import BeamSearchConfig
from pictish.lm.sampling import NEVER
from pictish.lm.vocabulary import Vocabulary
from pictish.training.isolation import inference

FAR = -1e9  # score of a beam that is not there yet: at first all would be the same


@dataclass
class _Ended:
    """The best texts of one prompt that have ended, at most as many as beams."""

    settings: BeamSearchConfig
    texts: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, ids: list[int], total: float) -> None:
        """Enter a text whose ids have this log-probability together, if it is among the best."""
        score = total / (1 + len(ids)) ** self.settings.length_penalty
        if len(self.texts) == self.settings.num_beams:
            worst = min(self.texts, key=lambda text: text[0])
            if score <= worst[0]:
                return
            self.texts.remove(worst)
        self.texts.append((score, ids))

    def done(self, best: float, length: int) -> bool:
        """Whether no beam can be better any more; `best` is the score of one of `length` ids."""
        if len(self.texts) < self.settings.num_beams:
            return False
        if self.settings.early_stopping or self.settings.num_beams == 1:
            return True
        return min(score for score, _ in self.texts) >= best / (1 + length) ** self.settings.length_penalty


@inference
def beam_search(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Sequence[Branch],
    settings: BeamSearchConfig,
    *,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Text ids, without EOS, that follow each of `prompts`; at least `settings.min_new_tokens`.

    Any id below the images' may be among them. `progress` and ValueError as `generate`, and ValueError for
    a model without EOS.
    """
    eos = vocabulary.eos
    if eos is None:
        raise ValueError("the text tokenizer has no end-of-text token; beam search needs one")
    if not prompts:
        return []
    beams = settings.num_beams
    ended = [_Ended(settings) for _ in prompts]
    going = list(range(len(prompts)))  # P
    written: list[list[int]] = [[] for _ in range(len(prompts) * beams)]  # of P x B rows
    batch = DecodeBatch(model, prompts, settings.max_new_tokens, "dynamic", vocabulary)
    batch.keep([place for place in going for _ in range(beams)])
    scores = torch.tensor([[0.0] + [FAR] * (beams - 1)] * len(going), device=batch.logits.device)  # (P, B)
    for length in range(1, settings.max_new_tokens + 1):
        chances = batch.logits.log_softmax(dim=-1)  # (P x B, V)
        if not chances.amax(dim=1).isfinite().all():
            raise ValueError("the model's logits are not finite numbers; its weights may have diverged")
        chances[:, vocabulary.text :] = NEVER
        if length <= settings.min_new_tokens:
            chances[:, eos] = NEVER
        totals = (chances + scores.flatten()[:, None]).view(len(going), -1)  # (P, B x V)
        best = totals.topk(2 * beams, dim=1)
        chosen: list[tuple[int, int, float]] = []  # row, id and score of beams that go on
        stay = []
        for place, prompt in enumerate(going):
            candidates = zip(best.values[place].tolist(), best.indices[place].tolist(), strict=True)
            found = _extend(list(candidates), chances.shape[1], place * beams, eos, written, ended[prompt])
            if not ended[prompt].done(best.values[place, 0].item(), length):
                stay.append(prompt)
                chosen += found
        going = stay
        if not going:
            break
        written = [[*written[row], token] for row, token, _ in chosen]
        scores = torch.tensor([total for *_, total in chosen], device=scores.device).view(-1, beams)
        if length < settings.max_new_tokens:
            batch.keep([row for row, *_ in chosen])
            batch.step([token for _, token, _ in chosen])
        if progress is not None:
            progress(length, settings.max_new_tokens)
    for place, prompt in enumerate(going):
        for beam in range(beams):
            ended[prompt].add(written[place * beams + beam], scores[place, beam].item())
    # of equals the last, as in transformers
    return [max(reversed(one.texts), key=lambda text: text[0])[1] for one in ended]


def _extend(
    candidates: list[tuple[float, int]],
    width: int,
    first: int,
    eos: int,
    written: list[list[int]],
    ended: _Ended,
) -> list[tuple[int, int, float]]:
    """The beams of one prompt that go on, from `candidates` (score, beam x width + id), best first.

    Those that end are entered in `ended`, if they are among as many best as there are beams.
    """
    found: list[tuple[int, int, float]] = []
    beams = ended.settings.num_beams
    for rank, (total, place) in enumerate(candidates):
        row, token = first + place // width, place % width
        if token != eos:
            found.append((row, token, total))
        elif rank < beams:
            ended.add(written[row], total)
        if len(found) == beams:
            break
    return found
