"""What an initialisation carries of what the source sees: a number between 0 and 1, without a label.

    images of another kind  ->  last features of both  ->  ridge regression  ->  share of variance predicted

The features are what the head reads, averaged over places. The regression is fitted on one part of the images and
judged on the other; neither part has been shown to a pass. From few images many features cannot be learned, however
good they are: of the source's features its leading principal directions are asked for, one for every ``PER_DIRECTION``
images of the fit. With those the source predicts itself to the last digit, from as few images as one likes. The share
is 1 - squared error / variance, over all directions together, and what is below zero counts as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from netgraft.architecture.cost import multiply_adds
from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import input_image, shrunk, takes_image
from netgraft.data.images import ImageSource, shown_as
from netgraft.evidence.features import FrozenNetwork, Observed
from netgraft.evidence.parity import Party
from netgraft.evidence.ridge import fit_ridge
from netgraft.models.construct import brief_without_paths
from netgraft.models.normalisation import Normalisation, normalisation_for, normalisation_of
from netgraft.models.running import one_thread
from netgraft.plan import KEPT, SET, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 0
MOST, ENOUGH, LEAST = 640, 256, 48
"""Images: at most, so many that none need shrinking for the sake of more, and so few that fewer tell nothing."""
COST, LIMIT = 1e10, 2e11
"""Multiply-adds of all networks on all images: about two seconds of one thread, and what is never exceeded unasked.

The latter is what a decision between fits is worth, which take minutes.
"""
SIDES = (160, 128, 96, 64)
"""To so many pixels images are shrunk, if the networks take that, until there can be ``ENOUGH`` of them."""
HELD_OUT_SHARE = 1 / 4
PER_DIRECTION = 8
BATCH = 32
NETWORKS = 3  # the source, the target, and the target's own initialisation
MARGIN = 0.005
"""A smaller difference of two shares is noise, whatever the images say."""
DIGITS = 3


@dataclass(frozen=True)
class Carried:
    """What one state of the target carries."""

    share: float  # 0 to 1
    errors: Tensor  # [held-out images], squared errors over the variance of all; they sum to 1 - share, if not clipped
    agreement: float  # share of held-out images with the source's top class; NaN where there is no answer to compare

    def gain(self, other: Carried) -> tuple[float, float]:
        """How much more this carries than another state, and up to what that is noise.

        Two standard errors of the paired difference over the held-out images, and ``MARGIN`` at least.
        """
        differences = other.errors - self.errors
        noise = 2 * float(differences.std()) * len(differences) ** 0.5
        return self.share - other.share, max(noise, MARGIN)


class Ruler:
    """A source and the images on which states of one target are measured by it."""

    def __init__(
        self, source: Party, target: Party, shown: ImageSource, *, large: bool = False, cost: float = COST
    ) -> None:
        """``target`` is the architecture with any weights; ``shown`` is what passes are shown, or would be.

        ``large``: however much it costs; else it is worth ``cost`` multiply-adds, or what ``LEAST`` images take. Raises
        _Unmeasurable, and whatever a model of the user's raises.
        """
        self.target = FrozenNetwork(target.model, target.graph, target.tensors, "cpu", BATCH)
        network = FrozenNetwork(source.model, source.graph, source.tensors, "cpu", BATCH)
        self.graphs = source.graph, target.graph
        inputs = _draw((source, network), (target, self.target), shown, large=large, cost=cost)
        self.inputs, self.of = inputs[1], inputs[2]
        self.sizes = {"source": inputs[0].size, "target": inputs[1].size}
        self.fitted = round(len(self.inputs) * (1 - HELD_OUT_SHARE))
        self.source = network.observe(inputs[0], outputs=not _ends_in_head(source.graph))
        self.wanted = leading(self.source.features, self.fitted)

    def look(self, tensors: Mapping[str, Tensor]) -> Carried:
        """What the target carries with these tensors, its whole state_dict."""
        self.target.load(tensors)
        seen = self.target.observe(self.inputs, outputs=not _ends_in_head(self.graphs[1]))
        errors = prediction_errors(seen.features, self.wanted, self.fitted)
        share = min(max(1 - float(errors.sum()), 0.0), 1.0)
        return Carried(share, errors, _agreement(self.source, seen, self.fitted))

    def record(self) -> dict[str, Any]:
        """On what is measured, as JSON."""
        return {
            "images": self.of,
            "fitted": self.fitted,
            "held_out": len(self.inputs) - self.fitted,
            "sizes": {role: list(size) for role, size in self.sizes.items()},
            "directions": self.wanted.shape[1],
        }


class Measure:
    """``Ruler`` for networks of the user's, which may fail: then there is a reason, and never an error."""

    def __init__(
        self, source: Party, target: Party, shown: ImageSource, *, large: bool = False, cost: float = COST
    ) -> None:
        self.ruler: Ruler | None = None
        self.why = ""  # nothing can be measured
        self.own = target
        with self._excused():
            self.ruler = Ruler(source, target, shown, large=large, cost=cost)

    def look(self, tensors: Mapping[str, Tensor]) -> Carried | None:
        """What these tensors carry; None, with ``why``, where that cannot be measured."""
        found = None
        if self.ruler is not None:
            with self._excused():
                found = self.ruler.look(tensors)
        return found

    def record(self, found: Carried | None, plan: Plan) -> dict[str, Any]:
        """The entry ``carried`` of a receipt, for the target's tensors after the plan."""
        if self.ruler is None or found is None:
            return {"skipped": self.why}
        own = self.look(self.own.tensors)
        document = self.ruler.record() | {"share": round(found.share, DIGITS)}
        if own is not None:
            document["own" if self.own.model.weights else "random"] = round(own.share, DIGITS)
        if found.agreement == found.agreement and _same_classes(plan, *self.ruler.graphs):
            document["agreement"] = round(found.agreement, DIGITS)
        return document

    @contextmanager
    def _excused(self) -> Iterator[None]:
        """One thread and fixed chance; a failure becomes the reason."""
        try:
            with one_thread(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                yield
        except _Unmeasurable as error:
            self.why = str(error)
        except (Exception, SystemExit) as error:  # it is the user's code that runs
            self.why = f"the networks cannot be compared: {brief_without_paths(error)}"


class _Unmeasurable(Exception):
    """Why nothing is measured."""


# ---------------------------------------------------------------------------------------------------------- the numbers


def leading(features: Tensor, fitted: int) -> Tensor:  # [N, p] -> [N, r] float64
    """The features along their leading principal directions among the first ``fitted`` images."""
    features = features.double()
    centred = features - features[:fitted].mean(0)
    _, strengths, directions = torch.linalg.svd(centred[:fitted], full_matrices=False)
    varying = int(((strengths > 0) & (strengths > 1e-6 * strengths.max())).sum())
    if not varying or not float(centred[fitted:].square().sum()) > 0:
        raise _Unmeasurable("the source's last features do not vary")
    along: Tensor = centred @ directions[: min(varying, max(fitted // PER_DIRECTION, 1))].T
    return along


def prediction_errors(features: Tensor, wanted: Tensor, fitted: int) -> Tensor:  # [N, p], [N, r] -> [N - fitted]
    """The squared error at each image after the first ``fitted``, over the variance of ``wanted`` at all of these.

    The regression is fitted on the first ``fitted`` images. The sum is 1 - R^2.
    """
    ridge = fit_ridge(features[:fitted], wanted[:fitted], each=False)
    held_out = wanted[fitted:].double()
    variance = (held_out - held_out.mean(0)).square().sum()
    errors: Tensor = (ridge(features[fitted:]) - held_out).square().sum(1) / variance
    return errors


def _agreement(source: Observed, target: Observed, fitted: int) -> float:
    one, other = source.answers, target.answers
    if one is None or other is None or one.shape != other.shape:
        return float("nan")
    return float((one[fitted:].argmax(1) == other[fitted:].argmax(1)).double().mean())


def _same_classes(plan: Plan, source: LayerGraph, target: LayerGraph) -> bool:
    """Whether the target's head speaks of the source's classes, in their order."""
    if len(source.heads()) != 1 or len(target.heads()) != 1:
        return False
    keys = {slot.key for layer in target.heads() for slot in layer.tensors.values()}
    relabelled = any(move.key in keys and any(step.operator == "labels" for step in move.steps) for move in plan.moves)
    return bool(keys) and not relabelled and all(plan.fates[key] not in (KEPT, SET) for key in keys)


# ----------------------------------------------------------------------------------------------------------- the images


class _Inputs:
    """What one of the networks is shown."""

    def __init__(self, drawn: Tensor, size: Sequence[int], normalisation: Normalisation | None) -> None:
        self.drawn, self.size, self.normalisation = drawn, tuple(size), normalisation

    def __len__(self) -> int:
        return len(self.drawn)

    def batch(self, indices: Sequence[int]) -> Tensor:
        chosen = self.drawn[list(indices)]
        return chosen if self.normalisation is None else shown_as(chosen, self.size, self.normalisation)


_Side = tuple[Party, FrozenNetwork]


def _draw(
    source: _Side, target: _Side, shown: ImageSource, *, large: bool, cost: float
) -> tuple[_Inputs, _Inputs, str]:
    """Inputs for both networks, one for one, and what they are."""
    graphs = [party.graph for party, _ in (source, target)]
    costs = [multiply_adds(graph, 1) for graph in graphs]
    if not all(map(takes_image, graphs)):
        count = _count(costs[0] + (NETWORKS - 1) * costs[1], MOST, cost, large=large)
        drawn, what = _numbers(graphs, count)
        return _Inputs(drawn, drawn.shape[1:], None), _Inputs(drawn, drawn.shape[1:], None), what
    images = shown.held_out()
    norms = (
        normalisation_of(source[0].model, source[1].module),
        normalisation_for(target[0].model, [source[0].model], target[1].module),
    )
    sizes, costs = _affordable(source, target, norms, costs, cost)
    count = _count(costs[0] + (NETWORKS - 1) * costs[1], images.most(MOST), cost, large=large)
    largest = max(sizes, key=lambda size: size[1] * size[2])
    drawn = images.draw(count, (sizes[0][0], *largest[1:]), SEED)
    one, other = (_Inputs(drawn, size, norm) for size, norm in zip(sizes, norms, strict=True))
    return one, other, "images held out of the folder" if images.folder else images.name


def _count(each: int, most: int, cost: float, *, large: bool) -> int:
    """How many images are to be had for a cost, each so many multiply-adds."""
    if each * LEAST > LIMIT and not large:
        few = f"the networks are large: {LEAST} images would take {each * LEAST:.1e} multiply-adds"
        raise _Unmeasurable(f"{few}, more than {LIMIT:.0e} (--receipt runs them)")
    return min(max(int(cost // max(each, 1)), LEAST), most)


def _affordable(
    source: _Side, target: _Side, norms: Sequence[Normalisation], costs: list[int], cost: float
) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Sizes (channels, height, width) at which there can be enough images, and what one image then costs each."""
    sizes = [input_image(party.graph)[1:] for party, _ in (source, target)]
    for side in SIDES:
        if cost / max(costs[0] + (NETWORKS - 1) * costs[1], 1) >= ENOUGH:
            break
        for i, (party, network) in enumerate((source, target)):
            size = shrunk(sizes[i], side)
            if max(size[1:]) < max(sizes[i][1:]) and _takes(network, size, norms[i]):
                sizes[i] = size
                full = input_image(party.graph)[1:]
                costs[i] = multiply_adds(party.graph, 1) * size[1] * size[2] // (full[1] * full[2])
    return [(size[0], size[1], size[2]) for size in sizes], costs


def _takes(network: FrozenNetwork, size: Sequence[int], normalisation: Normalisation) -> bool:
    """Whether the network runs on images of this size."""
    try:
        network.observe(_Inputs(torch.full((2, *size), 0.5), size, normalisation))
    except (Exception, SystemExit):
        return False
    return True


def _numbers(graphs: Sequence[LayerGraph], count: int) -> tuple[Tensor, str]:
    """Random numbers, or token numbers that both know, for two networks with one input of the same shape."""
    inputs = [[node for node in graph.nodes if node.op == "input"] for graph in graphs]
    shapes = [[tuple(node.shape[1:]) for node in nodes if node.shape] for nodes in inputs]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        one, other = (" and ".join("x".join(map(str, shape)) for shape in found) or "nothing" for found in shapes)
        raise _Unmeasurable(f"the source takes {one}, the target {other}")
    vocabularies = [
        graph.layers[reader.layer].shape[0]
        for graph, nodes in zip(graphs, inputs, strict=True)
        for reader in (graph.by_id[id] for id in graph.readers[nodes[0].id])
        if reader.layer is not None and graph.layers[reader.layer].kind == "embedding"
    ]
    generator = torch.Generator().manual_seed(SEED)
    if vocabularies:
        return torch.randint(min(vocabularies), (count, *shapes[0][0]), generator=generator), "random tokens"
    return torch.randn((count, *shapes[0][0]), generator=generator), "random numbers"


def _ends_in_head(graph: LayerGraph) -> bool:
    """Whether all that it gives comes straight from linear layers: what these read is then all there is to see.

    A trunk, a decoder or an encoder without a head gives what it has to give itself.
    """
    stack = [id for node in graph.nodes if node.op == "output" for id in node.inputs]
    while stack:
        node = graph.by_id[stack.pop()]
        kernel = graph.kernel_of(node)
        if kernel is None and len(node.inputs) == 1:
            stack += node.inputs
        elif kernel is None or kernel.kind != "linear":
            return False
    return True
