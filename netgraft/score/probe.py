"""Does an initialisation help? A verdict without training.

    features of the frozen network  ->  closed-form ridge classifier  ->  accuracy on test images  ->  against scratch

The features are what the network's head reads. Scratch is the target's own random initialisation, several times. The
ranking goes with that of fine-tuned networks (rank correlations of 0.7 to 0.95 were measured over the cells of a
benchmark); the accuracies do not. Deep random networks with BatchNorm have poor features and still train well: a lead
over scratch of a few points promises nothing. What is said holds for the training images that were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.data.opening import open_data
from netgraft.data.pictures import Pictures, Pixels, few
from netgraft.errors import CheckFailed, UsageError
from netgraft.evidence.recorded import choose_normalisation
from netgraft.files.checkpoint import file_sha256
from netgraft.models.model import load_model, read_weights
from netgraft.models.normalisation import Normalisation
from netgraft.models.running import find_device
from netgraft.models.side import Side, own_weights
from netgraft.score.features import Frozen
from netgraft.score.interval import Interval, paired_difference, wilson
from netgraft.score.ridge import fit_ridge
from netgraft.trace import trace

Bn = Literal["recalibrate", "as-is"]
Verdict = Literal["better", "no difference", "worse"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is scored on, and how."""

    data: str
    samples_per_class: int | None = None
    seed: int = 0  # of the draw of few training images
    seeds: int = 3  # how many random initialisations scratch is
    bn: Bn = "recalibrate"  # running statistics of BatchNorm anew from the training images, of all networks alike
    device: str = "auto"  # "auto": cuda where there is one, else cpu
    batch: int = 128
    normalisation: Normalisation | None = None  # None: as ``choose_normalisation`` finds
    root: Path | None = None  # where data sets with a name lie
    download: bool = False


@dataclass(frozen=True)
class Probe:
    """What the ridge classifier on a frozen network's features says of the test images."""

    right: Tensor  # [T] bool
    penalty: float

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def interval(self) -> Interval:
        return wilson(int(self.right.sum()), len(self.right))


@dataclass(frozen=True)
class Scored:
    """One initialisation against scratch."""

    name: str  # a file or a recipe
    probe: Probe
    difference: float
    interval: Interval  # of the difference
    sha256: str = ""

    @property
    def verdict(self) -> Verdict:
        """Better or worse where the whole interval of the difference is."""
        return "better" if self.interval.low > 0 else "worse" if self.interval.high < 0 else "no difference"


@dataclass(frozen=True)
class Scores:
    """All initialisations of a target, and what they were scored on."""

    target: str
    heads: tuple[str, ...]
    features: int
    norms: int  # BatchNorm layers whose statistics were re-estimated
    size: tuple[int, ...]
    normalisation: Normalisation
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    settings: Settings
    scratch: tuple[Probe, ...]  # by seed
    scored: tuple[Scored, ...]
    refused: Mapping[str, str] = field(default_factory=dict)  # recipe -> why
    source: str = ""  # of the recipes


class Bench:
    """A target and its data, on which any of its state_dicts can be probed."""

    def __init__(
        self,
        target: Side,
        settings: Settings,
        progress: Progress,
        files: Sequence[Path] = (),
        source: Side | None = None,
    ) -> None:
        """``files`` hold the weights to be scored, if they exist yet; ``source`` is what they are to be made from."""
        self.settings, self.progress = settings, progress
        self.model = target.load()
        if self.model.weights is not None:
            hint = f"Type {self.model.weights.file} {self.model.name}"
            raise UsageError(
                "The target has weights, and scratch is a target without.", where=target.reference, hint=hint
            )
        if self.model.input_size is None:
            hint = "Add --input-size C,H,W, or give the class an attribute input_size."
            raise UsageError(f"The input size of {self.model.name} is not known.", hint=hint)
        self.device = find_device(settings.device)
        self.normalisation = settings.normalisation or choose_normalisation(
            self.model, files, [source.load()] if source is not None else []
        )
        train, test = self._open()
        self.train = Pixels(train, self.model.input_size, self.normalisation)
        self.test = Pixels(test, self.model.input_size, self.normalisation)
        self.outputs = F.one_hot(self.train.labels, len(train.classes)).double()
        progress(f"tracing {self.model.name}")
        self.graph = trace(self.model)
        self.features = self.norms = 0

    def probe(self, tensors: Mapping[str, Tensor]) -> Probe:
        """The ridge classifier on the features of the target with these weights. No label of a test image is used."""
        net = Frozen(self.model, self.graph, tensors, self.device, self.settings.batch)
        self.norms = net.recalibrate(self.train) if self.settings.bn == "recalibrate" else 0
        features = net.features(self.train)
        self.features = features.shape[1]
        ridge = fit_ridge(features, self.outputs)
        return Probe(ridge(net.features(self.test)).argmax(1) == self.test.labels, ridge.penalty)

    def scratch(self) -> tuple[Probe, ...]:
        """The target's own random initialisations, seeds 0, 1, ..."""
        found = []
        for seed in range(self.settings.seeds):
            self.progress(f"scoring scratch, seed {seed}")
            found.append(self.probe(own_weights(self.model, seed, allow_nonfinite=False)[0]))
        return tuple(found)

    def weights(self, target: Side, file: Path) -> Mapping[str, Tensor]:
        """The file's tensors, fitted to the target. Raises what ``read_weights`` raises."""
        model = load_model(
            target.reference, role="target", args=target.args, input_size=target.input_size, weights_file=file
        )
        return read_weights(model).tensors

    def result(self, scratch: tuple[Probe, ...], probes: Mapping[str, Probe], **more: Any) -> Scores:
        """The verdicts. ``more`` are further fields of Scores; ``sha256`` by name."""
        digests = more.pop("sha256", {})
        others = torch.stack([probe.right for probe in scratch])
        scored = [
            Scored(name, probe, *paired_difference(probe.right, others), digests.get(name, ""))
            for name, probe in probes.items()
        ]
        return Scores(
            target=self.model.name,
            heads=tuple(layer.name for layer in self.graph.heads()),
            features=self.features,
            norms=self.norms,
            size=self.train.size,
            normalisation=self.normalisation,
            train=self.train.pictures.record(),
            test=self.test.pictures.record(),
            settings=self.settings,
            scratch=scratch,
            scored=tuple(scored),
            **more,
        )

    def _open(self) -> tuple[Pictures, Pictures]:
        settings = self.settings
        train, test = (
            open_data(settings.data, split=split, root=settings.root, download=settings.download)
            for split in ("train", "test")
        )
        if settings.samples_per_class is not None:
            train = few(train, settings.samples_per_class, settings.seed)
        return train, test


def score(
    files: Sequence[Path],
    target: Side,
    settings: Settings,
    *,
    progress: Progress = lambda _: None,
) -> Scores:
    """The verdict on checkpoints of the target. Same arguments, same verdict on a CPU.

    Raises a NetgraftError for a file that does not fit the target, data that are not there, a head that is not found.
    """
    digests = {str(file): file_sha256(file) for file in files}
    bench = Bench(target, settings, progress, files)
    weights = {str(file): bench.weights(target, file) for file in files}  # refused before anything is run
    probes = {}
    for name, tensors in weights.items():
        progress(f"scoring {name}")
        probes[name] = bench.probe(tensors)
    return bench.result(bench.scratch(), probes, sha256=digests)


def check_scratch(scores: Scores) -> None:
    """Raise CheckFailed if an initialisation is significantly worse than scratch; no difference is no failure."""
    worse = [scored.name for scored in scores.scored if scored.verdict == "worse"]
    if worse:
        hint = "Another recipe or source may do better: netgraft compare SOURCE TARGET --data ..."
        raise CheckFailed(f"Worse than scratch: {', '.join(worse)}.", hint=hint)
