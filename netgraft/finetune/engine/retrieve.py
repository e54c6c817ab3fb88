"""Images searched for by what the classifier reads: CMC and mAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from netgraft.data.pictures import LabelledPictures, Pixels
from netgraft.errors import UsageError
from netgraft.finetune.engine.evaluate import Autocast
from netgraft.finetune.engine.parts import eval_mode
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.engine.ranking import AT_ONCE, found_in_order
from netgraft.finetune.settings import Distance, TrainingSettings
from netgraft.finetune.toolbox.domains import FEATURES, listening, pooled
from netgraft.models.normalisation import Normalisation

RANKS = (1, 5, 10)


class Marks(NamedTuple):
    """Who an image shows, and by which camera; 0 for all where that is not known."""

    identities: Tensor  # [N]
    cameras: Tensor  # [N]


@dataclass(frozen=True)
class Search:
    """What is searched for and where: each query in the gallery, or each among all others."""

    query: Pixels
    gallery: Pixels | None  # None: the queries without the one that is searched for
    distance: Distance

    @property
    def by_camera(self) -> bool:
        """Whether images of the query's identity by its own camera are left out."""
        return self.gallery is not None and self.query.pictures.cameras is not None

    @property
    def remark(self) -> str:
        """What is searched for, and by which rule."""
        among = "the rest" if self.gallery is None else f"a gallery of {len(self.gallery)}"
        rule = "images of its identity by its own camera do not count" if self.by_camera else "no cameras are known"
        return f"retrieval: {len(self.query)} queries, each in {among}; {rule}"

    def check(self) -> None:
        """Raise UsageError if no query has a match."""
        one, other = _marks(self.query), _marks(self.gallery or self.query)
        if not any(bool(self.matches(one, other, i)[1].any()) for i in torch.arange(len(self.query)).split(AT_ONCE)):
            where = self.query.pictures.name
            raise UsageError("No query has an image to be found.", where=where, hint="Put some into its gallery.")

    def matches(self, query: Marks, gallery: Marks, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What counts for these queries, and what is to be found, ``[rows, gallery]``."""
        same = query.identities[rows, None] == gallery.identities
        counts = torch.ones_like(same)
        if self.by_camera:
            counts = ~(same & (query.cameras[rows, None] == gallery.cameras))
        if self.gallery is None:
            counts[torch.arange(len(rows)), rows] = False
        return counts, same & counts


def make_search(
    settings: TrainingSettings,
    both: tuple[LabelledPictures, LabelledPictures] | None,
    test: Pixels | None,
    size: Sequence[int],
    normalisation: Normalisation,
) -> Search | None:
    """From queries and a gallery, or with --retrieval from the test images. Raises UsageError without any match."""
    if both is not None:
        query, gallery = (Pixels(pictures, size, normalisation) for pictures in both)
        search = Search(query, gallery, settings.retrieval or "euclidean")
    elif settings.retrieval is not None and test is not None:
        search = Search(test, None, settings.retrieval)
    else:
        return None
    search.check()
    return search


def retrieve(
    module: nn.Module, head: str, search: Search, processes: Processes, autocast: Autocast, batch_size: int
) -> dict[str, float]:
    """``cmc1``, ``cmc5``, ``cmc10``, the share of queries with a match among so many first, and ``map``, in percent.

    mAP is the mean over queries of the mean precision at each match. The nearest come first, by the distance of what
    the layer ``head`` reads, in eval mode. Queries without any match are left out.
    """
    query = _features(module, head, search.query, processes, autocast, batch_size)
    gallery = query
    if search.gallery is not None:
        gallery = _features(module, head, search.gallery, processes, autocast, batch_size)
    if search.distance == "cosine":
        query, gallery = (each / each.norm(dim=1, keepdim=True).clamp(min=1e-12) for each in (query, gallery))
    marks = _marks(search.query), _marks(search.gallery or search.query)
    first, precision = [], []
    for rows in torch.arange(len(query)).split(AT_ONCE):
        distances = torch.cdist(query[rows], gallery)  # of unit vectors in the order of the cosine
        found = found_in_order(distances, *search.matches(*marks, rows))
        first.append(found[0])
        precision.append(found[1])
    ranks, precisions = torch.cat(first), torch.cat(precision)
    there = ~precisions.isnan()
    measures = {f"cmc{most}": 100 * float((ranks[there] <= most).double().mean()) for most in RANKS}
    return measures | {"map": 100 * float(precisions[there].mean())}


def _marks(pixels: Pixels) -> Marks:
    cameras = pixels.pictures.cameras
    return Marks(pixels.labels, torch.zeros(len(pixels)) if cameras is None else torch.tensor(cameras))


@torch.no_grad()
def _features(
    module: nn.Module, head: str, pixels: Pixels, processes: Processes, autocast: Autocast, batch_size: int
) -> Tensor:  # float64 [N, width], on the CPU
    mine = []
    with eval_mode(module):
        for ids in torch.arange(len(pixels))[processes.rank :: processes.world].split(batch_size):
            with autocast(), listening(module, head) as heard:
                module(pixels.batch(ids.tolist()).to(processes.device))
            mine.append((ids, pooled(heard[FEATURES]).double().cpu()))
    shares = [pair for share in processes.all_objects(mine) for pair in share]
    ids, features = (torch.cat(each) for each in zip(*shares, strict=True))
    return features[ids.argsort()]
