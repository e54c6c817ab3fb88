from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from netgraft.architecture.cost import refit_images
from netgraft.architecture.endings import find_endings
from netgraft.architecture.graph import LayerGraph
from netgraft.channels.coordinates import find_token_streams
from netgraft.errors import UsageError
from netgraft.passes.protocol import Row, Stage
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.pairing import follow
from netgraft.passes.refitting.walk import MOST_ROWS, refit
from netgraft.plan import REFITTED, Pairing
from netgraft.trace.replay import Replay, check_replay

CHECKED = 4
"""Images on which running a network node by node is compared with running it as a whole."""


@dataclass(frozen=True)
class Refit:
    """Refit each layer to what its source layer makes of synthetic images, by ridge regression in closed form.

    OPERATORS part 3. Both networks see the same images; the target's layers are fitted in execution order, each on what
    the refitted layers before it give. No data, no labels, no gradient steps.
    """

    images: int = field(default=512, metadata={"help": "how many images; fewer where activations are large"})
    pairs: Literal["stages", "plan"] = field(
        default="stages", metadata={"help": "follow how far the source has come, or the layers that weights came from"}
    )
    rows: int = field(default=MOST_ROWS, metadata={"help": "most positions a layer is fitted on"})
    values: bool = field(
        default=False,
        metadata={"help": "choose what attention carries where neighbours said what it looks at"},
    )

    fate = REFITTED

    def __post_init__(self) -> None:
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
        """Refit the stage's target; R^2 by layer, and why layers were left as they were."""
        count = refit_images(stage.source.graph, stage.target.graph, self.images)
        drawn = stage.images(count, seed=0)
        stage.progress(f"refitting {stage.target.model.name} on {count} images")
        shown = [stage.shown(drawn, network) for network in (stage.source, stage.target)]
        with torch.no_grad():
            for network, images in zip((stage.source, stage.target), shown, strict=True):
                check_replay(Replay(network.module, images[:CHECKED]))
            source, target = Replay(stage.source.module, shown[0]), Replay(stage.target.module, shown[1])
        pairs = [
            (stage.source.graph.layers[p.source], stage.target.graph.layers[p.target]) for p in stage.plan.pairing.pairs
        ]
        channels = OutputChannels(stage.source.graph, stage.target.graph, pairs, stage.norms)
        wanted = self._pairs(stage.source.graph, stage.target.graph, stage.plan.pairing)
        generator = torch.Generator().manual_seed(stage.seed)
        prepared = stage.prepared if self.values else replace(stage.prepared, attentions=[])
        done, left = refit(source, target, wanted, channels, generator, self.rows, prepared)
        if not done:
            raise UsageError(
                "Not a single layer of the target can be refitted.",
                where="; ".join(dict.fromkeys(left.values())),
                hint="Use --recipe graft or distil.",
            )
        return {
            "images": count,
            "layers": [
                {"layer": d.layer, "source": d.partner, "r2": None if d.r2 is None else round(d.r2, 3), "how": d.how}
                for d in done
            ],
            "left": left,
        }

    @staticmethod
    def lines(report: Mapping[str, Any]) -> Iterator[str | Row]:
        """The spread of R^2, each layer, and what was left as it was."""
        layers, left = report["layers"], report["left"]
        known = [layer["r2"] for layer in layers if layer["r2"] is not None]
        spread = f": R^2 from {min(known):.2f} to {max(known):.2f}" if known else ""
        yield f"refit: {len(layers)} layers on {report['images']} images{spread}"
        yield ("follows", "target layer", "R^2", "how")
        for layer in layers:
            r2 = "" if layer["r2"] is None else f"{layer['r2']:.2f}"
            yield (layer["source"], layer["layer"], r2, layer["how"])
        for why in dict.fromkeys(left.values()):
            names = [name for name, reason in left.items() if reason == why]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"  {', '.join(names[:3])}{more}: {why}"

    def _pairs(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> list[tuple[str, str]]:
        """(source layer, target layer); what the user mapped or skipped counts first."""
        if self.pairs == "stages":
            chosen = {name: partner for partner, name in follow(source, target)}
        else:
            chosen = {p.target: p.source for p in pairing.pairs if p.target not in target.head_names}
        chosen |= pairing.mapped
        kernels = (layer.name for layer in target.kernels())
        return [(chosen[name], name) for name in kernels if name in chosen and name not in pairing.skipped]
