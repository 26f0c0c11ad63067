"""Measures a language model on documents that it does not train on.

Legend: T tasks.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pictish.data.mixture import Mixture, Report
from pictish.lm.config import TrainConfig
from pictish.lm.documents import Maker, some_documents, sources_of
from pictish.lm.model import ImageTokens, UnifiedModel
from pictish.lm.objective import Objective, means, preferences
from pictish.lm.packing import Position, batches, pack
from pictish.lm.sequence import TASKS, Document

DOCUMENTS = 256  # of each source


def validation_documents(
    config: TrainConfig, maker: Maker, image_tokens: ImageTokens | None, run: Path, report: Report
) -> dict[str, list[Document]]:
    """The first documents of each validation source, nothing dropped; `report` takes in the damage."""
    sources = config.data.validation
    keep_all = replace(maker, sources=sources, dropout=config.dropout.none())
    found = {}
    for source in sources_of(sources, {}):
        mixture = Mixture(
            [source],
            config.seed,
            tokenizer=None if image_tokens is None else image_tokens.fingerprint,
            strict=config.data.strict,
            cache=run / "cache",
        )
        found[source.name] = some_documents(keep_all, mixture, DOCUMENTS)
        report.note(mixture.report.skipped)
    return found


@torch.no_grad()
def validate(
    model: UnifiedModel, objective: Objective, documents: dict[str, list[Document]], config: TrainConfig
) -> dict[str, float]:
    """Mean loss a learned token (or pair) of all documents, for each task and for each source.

    Anything random in the objective is the same each time.
    """
    model.eval()
    device = next(model.parameters()).device
    sums, compared = {}, torch.zeros(4)
    for source, members in documents.items():
        generator = torch.Generator().manual_seed(config.seed)
        sums[source] = torch.zeros(2, len(TASKS))
        stream: Iterator[tuple[Document, Position]] = ((document, {}) for document in members)
        for rows, _ in batches(stream, config.data.rows, config.data.length):
            packed = objective.prepare(pack(rows, config.data.length), generator, 1.0).to(device)
            packed = objective.referenced(packed)
            losses = objective.losses(model(packed, True), packed)
            sums[source] += torch.stack([losses.by_task, losses.counts]).cpu()
            compared += losses.preference.cpu()
    model.train()
    pooled = {**means(*torch.stack(list(sums.values())).sum(dim=0)), **preferences(compared)}
    each = {f"validation_{source}_loss": means(*own)["loss"] for source, own in sums.items()}
    return {**{f"validation_{name}": value for name, value in pooled.items()}, **each}
