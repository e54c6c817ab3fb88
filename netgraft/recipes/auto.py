"""The best recipe for a pair of architectures: candidates to be measured, and which of them the rule expects.

The rule is what the benchmark says (tests/benchmarks/transfer_quality).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from netgraft import plugins
from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import takes_image
from netgraft.recipes._costs import Seconds, estimated_seconds, minutes, unteachable
from netgraft.recipes._same import same_backbone
from netgraft.recipes._shared import copied_in_words, drafted, has_rest, inner, is_nearly, is_whole, keys_of
from netgraft.recipes.distil import REFIT_IMAGES, steps_for
from netgraft.recipes.protocol import Choice, LayerOptions
from netgraft.recipes.refit import worth_refitting
from netgraft.recipes.run import Fates
from netgraft.recipes.translate import same_network

SHARES = (1, 1 / 2, 1 / 6)
"""Distillation takes as many of its usual steps as fit into the budget, of these."""
IMAGES = (2048, 1024, 512, 256, 128)
"""A refit takes as many images as fit into the budget, of these."""
GAIN = 2.0
"""Of growth: the scale of kernels at which training does not wash out what they hold."""
WEIGHTS = {
    "almost-equal": "what source and target have in common, bit for bit; what is new starts as nothing",
    "same-names": "tensors of equal name and shape, as load_state_dict(strict=False) takes them",
    "grow": "exact growth wherever the target contains the source",
    "graft": "weights alone",
}
"""Recipes that take no time to speak of, and so are always candidates."""


@dataclass(frozen=True)
class Auto(LayerOptions):
    """The candidate that carries most of what the source sees: copies, ``grow``, ``graft``, ``refit``, ``distil``.

    Two implementations of one network come first (``translate``): proven by running both, nothing else is tried. Other
    candidates are made in the order of their cost, as the budget allows, and measured on images that nothing was fitted
    on; a dearer one is taken only if it carries more, beyond noise, and none that carries less than the copy by name.
    In a tie, and where the networks cannot be run, a rule decides: a copy where there is one, else exact growth, else
    ``distil``, ``refit`` or ``graft``, as the budget allows. There is a copy where nine tenths of the tensors that the
    source has for the target, its head apart, can be taken as they are (by ``grow`` or ``same-names``); nothing is
    fitted or rescaled over it. Where most of both is one and the same, only the rest is fitted (``fit-seam``). Growth
    applies where the target contains the source. A transformer is refitted if the source is one too, or its attention
    can be made to read neighbours. What was taken, and why, stands in the ledger. Costs are estimated from the two
    architectures before anything runs.
    """

    budget: float = field(default=5.0, metadata={"help": "minutes that a transfer may take, as estimated"})
    generator: str = field(
        default="mix", metadata={"help": "where images come from: a generator, or unlabelled ones (folder or picture)"}
    )
    keep_head: bool = field(default=False, metadata={"help": "train the target's own head on the source's classes"})
    translate: bool = field(
        default=True, metadata={"help": "take over all weights where both are one network, if running both proves it"}
    )

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise ValueError("budget must be positive")

    def choose(self, source: LayerGraph, target: LayerGraph, device: str) -> Choice:
        """The recipe for these two architectures on "cpu" or "cuda", by rule."""
        return next(each for each in self.candidates(source, target, device) if each.expected)

    def candidates(self, source: LayerGraph, target: LayerGraph, device: str) -> Sequence[Choice]:
        """What may carry most, the cheapest first. Over a copy nothing is fitted; the copy by name is always there."""
        weights = {name: self._of_weights(name) for name in WEIGHTS}
        settled = self._settled(source, target)
        if settled is not None and settled.name in ("graft", "translate"):
            return [settled._replace(expected=True), weights["same-names"]]
        nearly = drafted("almost-equal", self.head, source, target)
        if settled is not None:
            others = [weights[name] for name in ("almost-equal", "same-names") if name != settled.name]
            return [settled._replace(expected=True), *others, *self._seam(nearly, source, target, device)]
        if is_nearly(nearly, source, target):
            fitted = self._seam(nearly, source, target, device)
            last = fitted[0] if fitted else weights["almost-equal"]
            return [*(weights[name] for name in WEIGHTS if name != last.name), last._replace(expected=True)]
        *cheaper, expected = self._within_budget(source, target, device)
        chosen = [*cheaper, expected._replace(expected=True)]
        return [*(weights[name] for name in WEIGHTS if name not in [each.name for each in chosen]), *chosen]

    def unproven(self) -> Auto:
        return replace(self, translate=False)

    def _settled(self, source: LayerGraph, target: LayerGraph) -> Choice | None:
        """The copy or the exact growth over which nothing is to be fitted; None where there is neither."""
        overridden = bool(self.maps or self.skip)
        if not overridden and same_backbone(source, target) is not None:
            return _choice("graft", self._layer_options(), "source and target are one architecture, which is copied")
        if self.translate and not overridden and same_network(source, target) is not None:
            why = "source and target have the form of one network; running both must prove it"
            return _choice("translate", {"head": self.head}, why)
        grown = drafted("grow", self.head, source, target)
        if copied := self._copies(source, target, grown):
            return copied
        if not overridden and grown.moves and is_whole(grown, target):
            why = "the target contains the source: exact growth keeps all it can do"
            if grown.pairing.notes:
                why = "the target is the source with axes more or fewer: growth keeps what still inputs give"
            return _choice("grow", {"head": self.head, "gain": GAIN}, why)
        return None

    def _seam(self, fates: Fates, source: LayerGraph, target: LayerGraph, device: str) -> list[Choice]:
        """``fit-seam`` on as many steps as the budget allows; nothing where all is copied, or nothing is."""
        plain = {move.key for move in fates.moves if move.is_copy}
        around = [layer for layer in inner(target) if keys_of([layer]) & plain]
        shown = takes_image(source) and takes_image(target)
        if not around or not has_rest(fates, source, target) or not shown or unteachable(source, target):
            return []
        seconds = estimated_seconds(source, target, device)
        for steps in [round(share * steps_for(target)) for share in SHARES]:
            if (time := seconds.learning(steps)) <= 60 * self.budget:
                options = {"generator": self.generator, "steps": steps, "keep_head": self.keep_head}
                why = f"{len(around)} of {len(inner(target))} kernels are copied; {steps} label-free steps for the rest"
                why = f"{why} take about {minutes(time)} ({device}, estimated)"
                return [_choice("fit-seam", self._layer_options() | options, why)]
        return []

    def _within_budget(self, source: LayerGraph, target: LayerGraph, device: str) -> list[Choice]:
        """The dearest of ``graft``, ``refit`` and ``distil`` that the budget allows, after a refit if both fit in."""
        common = self._layer_options()
        shown = common | {"generator": self.generator, "keep_head": self.keep_head}
        if not (takes_image(source) and takes_image(target)):
            why = "only weights can be used: one of the networks does not take one image"
            return [_choice("graft", common, why)]
        seconds = estimated_seconds(source, target, device)
        refits = worth_refitting(source, target)
        if refits and seconds.refit(IMAGES[-1]) > 60 * self.budget:
            needed = minutes(seconds.refit(IMAGES[-1]))
            why = f"refitting would take about {needed}, the budget is {self.budget:g} min (--budget)"
            return [_choice("graft", common, why)]
        second = _refit(shown, seconds, 60 * self.budget) if refits else _choice("graft", common, "")
        if why := unteachable(source, target):
            return [second._replace(why=f"the target cannot be taught by distillation: {why}")]
        before = seconds.refit(REFIT_IMAGES) if refits else 0
        counts = [round(share * steps_for(target)) for share in SHARES]
        took = {steps: before + seconds.learning(steps) for steps in counts}
        for steps, time in took.items():
            if time <= 60 * self.budget:
                why = f"{steps} label-free steps take about {minutes(time)} ({device}, estimated)"
                if steps < max(took):
                    why += f"; --budget {took[max(took)] / 60 + 0.5:.0f} would allow {max(took)}"
                distil = _choice("distil", shown | {"steps": steps}, why)
                left = 60 * self.budget - time
                beside = refits and seconds.refit(IMAGES[-1]) <= left
                return [_refit(shown, seconds, left), distil] if beside else [distil]
        why = f"{steps} label-free steps would take about {minutes(time)}, the budget is {self.budget:g} min (--budget)"
        return [second._replace(why=why)]

    def _of_weights(self, name: str) -> Choice:
        return _choice(name, self._layer_options(), WEIGHTS.get(name, ""))

    def fallback(self, why: str) -> Choice:
        """Weights alone, where the networks cannot be run for a refit or for distillation."""
        left = _choice("graft", self._layer_options() | {"repair": False}, f"only weights can be used: {why}")
        return left._replace(expected=True)

    def _layer_options(self) -> dict[str, object]:
        """What the user said of single layers, for the recipe that is taken."""
        return {"head": self.head, "maps": self.maps, "skip": self.skip}

    def _copies(self, source: LayerGraph, target: LayerGraph, grown: Fates) -> Choice | None:
        """Growth or the copy by name, whichever fills more of the target; None where neither copies enough as it is."""
        last = keys_of(target.heads())
        ways = [(name, str(self.head)) for name in ("grow", "almost-equal", "same-names")]
        if self.head == "same-size":
            ways.insert(1, ("grow", "always"))  # the target's last layer may be one of the source's inner ones
        best: Choice | None = None
        most = 0
        for name, head in ways:
            known = (name, head) == ("grow", self.head)
            fates = grown if known else drafted(name, head, source, target)
            if head != self.head and any(move.steps for move in fates.moves if move.key in last):
                continue  # it would make a classifier of other classes
            filled = sum(bool(move.source_key) for move in fates.moves)
            if filled > most and (why := copied_in_words(source, target, fates.moves)):
                way = " by name and shape" if name == "same-names" else ""
                why = f"{why} are copied as they are{way}: nothing is fitted over them"
                best, most = _choice(name, self._layer_options() | {"head": head}, why), filled
            if best is not None and is_whole(fates, target):
                break
        return best


def _refit(options: Mapping[str, object], seconds: Seconds, time: float) -> Choice:
    """A refit on as many images as the time allows, or on the fewest that are worth it."""
    images = next((images for images in IMAGES if seconds.refit(images) <= time), IMAGES[-1])
    why = f"a refit on {images} images takes about {minutes(seconds.refit(images))}"
    return _choice("refit", {**options, "refit_images": images}, why)


def _choice(name: str, options: Mapping[str, object], why: str) -> Choice:
    return Choice(name, plugins.create("recipes", name, dict(options)), why)
