from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from netgraft.architecture.cost import MOST_ROWS, batch_size
from netgraft.architecture.endings import find_endings
from netgraft.architecture.graph import LayerGraph
from netgraft.channels.coordinates import find_token_streams
from netgraft.errors import UsageError
from netgraft.passes._learner import check_classes
from netgraft.passes.protocol import LiveModel, Row, Stage
from netgraft.passes.refitting.batches import Batches
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.pairing import follow
from netgraft.passes.refitting.settled import find_settled
from netgraft.passes.refitting.walk import Refitted, refit
from netgraft.plan import REFITTED, Pairing
from netgraft.trace.replay import Replay, check_replay

MOST_ASIDE = 64
"""Images on top that nothing is fitted on: a quarter as many as are fitted on, and not more than so many."""


@dataclass(frozen=True)
class Refit:
    """Refit each layer to what its source layer makes of synthetic images, by ridge regression in closed form.

    OPERATORS part 3. Both networks see the same images; the target's layers are fitted in execution order, each on what
    the refitted layers before it give, about the weights that it has where these came from the source. No data, no
    labels, no gradient steps. R^2 is that on images kept aside, which nothing is fitted on. Layers that give what the
    source gives are left alone, bit for bit, and so are those before them, by this pass and by ``recalibrate`` and
    ``rescale`` after it. A layer whose fit explains no more than its weights do keeps them.
    """

    images: int = field(default=512, metadata={"help": "most images; layers whose maps are large see fewer"})
    pairs: Literal["stages", "plan"] = field(
        default="stages", metadata={"help": "follow how far the source has come, or the layers that weights came from"}
    )
    rows: int = field(default=MOST_ROWS, metadata={"help": "most positions a layer is fitted on"})
    ridge: float | None = field(
        default=None,
        metadata={"help": "penalty, in mean variances of an input; none: layer by layer, by images left out at first"},
    )
    side: int | None = field(
        default=None, metadata={"help": "pixels that images are shrunk to, of convolutional networks; none: full size"}
    )
    head: Literal["own", "keep"] = field(
        default="own", metadata={"help": "keep: the target's head is fitted to the source's answers, last of all"}
    )
    cut: int | None = field(default=None, metadata={"help": "most layers that are fitted, the first ones; none: all"})
    values: bool = field(
        default=False,
        metadata={"help": "choose what attention carries where neighbours said what it looks at"},
    )

    fate = REFITTED

    def __post_init__(self) -> None:
        if self.ridge is not None and not self.ridge > 0:
            raise ValueError("ridge must be positive")
        if self.images < 2 or self.rows < 2:
            raise ValueError("a regression needs two images and two positions")

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:
        """Kernels that have a pair, the norms after them, and layer scales at the end of their branches."""
        endings = find_endings(target)
        keys: dict[str, None] = {}
        for _, kernel in self._pairs(source, target, pairing):
            ending = endings.get(kernel)
            if ending is None or not target.layers[kernel].rules.refits:
                continue
            names = [name for name in (kernel, ending.norm, ending.scale) if name is not None]
            for name in names:
                for slot in target.layers[name].tensors.values():
                    keys.update(dict.fromkeys(slot.keys))
        for stream in find_token_streams(target) if self.values else ():
            for attention in stream.attentions:
                keys.update(dict.fromkeys(target.layers[attention.value].tensors["weight"].keys))
        return tuple(keys)

    def __call__(self, stage: Stage) -> dict[str, Any]:
        """Refit the stage's target; R^2 by layer, and why layers were left as they were.

        ``images``: how many were fitted on, by the last layers; ``aside``: how many more nothing was fitted on.
        ``layers`` got new weights; ``kept`` have those they had, which explain as much; ``settled`` already gave what
        the source gives, or stand before one that does; ``left`` could not be fitted.
        """
        batches = self._batches(stage)
        fitted, aside = batches.size * batches.fitted, batches.size * batches.aside
        stage.progress(f"refitting {stage.target.model.name} on {fitted} images")
        pairs = [
            (stage.source.graph.layers[p.source], stage.target.graph.layers[p.target]) for p in stage.plan.pairing.pairs
        ]
        channels = OutputChannels(stage.source.graph, stage.target.graph, pairs, stage.norms)
        grafted = _grafted(stage)
        generator = torch.Generator().manual_seed(stage.seed)
        with torch.no_grad():
            source = Replay(stage.source.module, batches.source(0))
            target = Replay(stage.target.module, batches.target(0))
            check_replay(source)
            check_replay(target)
            kept_aside = range(batches.aside)
            sources = [source.beside(batches.source(k)) for k in kept_aside]
            targets = [target.beside(batches.target(k)) for k in kept_aside]
            settled = find_settled(sources, targets, pairs, channels, grafted, generator)
            stage.settled |= settled
        chosen = self._pairs(stage.source.graph, stage.target.graph, stage.plan.pairing)
        wanted = [pair for pair in chosen if pair[1] not in settled]
        prepared = stage.prepared if self.values else replace(stage.prepared, attentions=[])
        enough = partial(self._enough, stage)
        outcome = refit(
            source, target, batches, wanted, channels, generator, self.rows, prepared, grafted, self.ridge, enough
        )
        stage.fitted |= {each.layer for each in outcome.done}
        exact = [layer.name for layer in stage.target.graph.kernels() if layer.name in settled]
        if not (outcome.done or outcome.kept or exact):
            raise UsageError(
                "Not a single layer of the target can be refitted.",
                where="; ".join(dict.fromkeys(outcome.left.values())),
                hint="Use --recipe graft or distil.",
            )
        return {
            "images": fitted,
            "aside": aside,
            "layers": [_facts(each) for each in outcome.done],
            "kept": [_facts(each) for each in outcome.kept],
            "settled": exact,
            "left": outcome.left,
            "cut": outcome.cut,
        }

    def _enough(self, stage: Stage, done: int, of: int) -> bool:
        stage.progress(f"refitting {stage.target.model.name}: layer {done + 1} of {of}")
        return done >= self.cut if self.cut is not None else done > 0 and stage.enough()

    def _batches(self, stage: Stage) -> Batches:
        """Of as many images as fit beside one another; one for four of those that are fitted on is kept aside."""
        small = stage.shrunk(self.side)
        source, target = small.source, small.target
        pixels = [prod(each.image_size[1:]) / prod(each.shrunk(None).image_size[1:]) for each in (source, target)]
        size = batch_size(source.graph, target.graph, self.images, max(pixels))
        aside = max(min(self.images // 4, MOST_ASIDE) // size, 1)

        def shown(network: LiveModel) -> Callable[[int], Tensor]:
            return lambda k: stage.shown(stage.images(size, seed=0, first=size * k), network)

        return Batches(size, aside, -(-self.images // size), shown(source), shown(target))

    @staticmethod
    def lines(report: Mapping[str, Any]) -> Iterator[str | Row]:
        """The spread of R^2, each layer, and what was left as it was."""
        layers, kept, left = report["layers"], report.get("kept", []), report["left"]
        known = [layer["r2"] for layer in layers]
        spread = f": R^2 from {min(known):.2f} to {max(known):.2f}" if known else ""
        aside = f" on the {report['aside']} kept aside" if known and "aside" in report else ""
        cut = f" (cut short after {report['cut']})" if report.get("cut") is not None else ""
        yield f"refit: {len(layers)} layers{cut} on {report['images']} images{spread}{aside}"
        if layers:
            yield ("follows", "target layer", "before", "R^2", "how")
        for layer in layers:
            before = "" if layer.get("before") is None else f"{layer['before']:.2f}"
            yield (layer["source"], layer["layer"], before, f"{layer['r2']:.2f}", layer["how"])
        groups = {"already gives what the source gives: left as it is": report.get("settled", [])}
        groups |= {why: [each["layer"] for each in kept if each["how"] == why] for why in {k["how"]: 0 for k in kept}}
        groups |= {why: [name for name, reason in left.items() if reason == why] for why in left.values()}
        for why, names in groups.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            if names:
                yield f"  {', '.join(names[:3])}{more}: {why}"

    def _pairs(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> list[tuple[str, str]]:
        """(source layer, target layer); what the user mapped or skipped counts first. Raises UsageError."""
        if self.pairs == "stages":
            chosen = {name: partner for partner, name in follow(source, target)}
        else:
            chosen = {p.target: p.source for p in pairing.pairs if p.target not in target.head_names}
        if self.head == "keep":
            chosen |= _heads(source, target)
        chosen |= pairing.mapped
        kernels = (layer.name for layer in target.kernels())
        return [(chosen[name], name) for name in kernels if name in chosen and name not in pairing.skipped]


def _heads(source: LayerGraph, target: LayerGraph) -> dict[str, str]:
    """The target's head, and the source's, which it is to follow."""
    sides = source.heads(), target.heads()
    if [len(heads) for heads in sides] != [1, 1]:
        raise UsageError(
            "Only a single head can be kept.", where=f"the source has {len(sides[0])}, the target {len(sides[1])}"
        )
    (theirs,), (own,) = sides
    check_classes(own, theirs.out_channels)
    return {own.name: theirs.name}


def _facts(each: Refitted) -> dict[str, Any]:
    before = None if each.before is None else round(each.before, 3)
    found = {"layer": each.layer, "source": each.partner, "before": before, "r2": round(each.r2, 3), "how": each.how}
    return found if each.ridge is None else found | {"ridge": each.ridge}


def _grafted(stage: Stage) -> frozenset[str]:
    """Layers of the target whose weight was made of the source's."""
    moved = {move.key for move in stage.plan.moves if move.source_key}
    weights = {name: layer.tensors.get("weight") for name, layer in stage.target.graph.layers.items()}
    return frozenset(name for name, slot in weights.items() if slot is not None and slot.key in moved)
