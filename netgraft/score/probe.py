"""Does an initialisation help? A verdict without training.

    features of the frozen network  ->  closed-form ridge classifier  ->  accuracy on test images  ->  against scratch

The features are what the network's head reads. Scratch is the target's own random initialisation, several times. The
ranking goes with that of fine-tuned networks (rank correlations of 0.7 to 0.95 were measured over the cells of a
benchmark); the accuracies do not. Deep random networks with BatchNorm have poor features and still train well: a lead
over scratch of a few points promises nothing. What is said holds for the training images that were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.data.opening import open_data
from netgraft.data.pictures import LabelledPictures, Pixels, few
from netgraft.errors import UsageError
from netgraft.evidence.features import FrozenNetwork
from netgraft.evidence.recorded import choose_normalisation
from netgraft.evidence.ridge import fit_ridge
from netgraft.files.checkpoint import file_sha256
from netgraft.models.model import load_model, read_weights
from netgraft.models.running import find_device
from netgraft.models.side import Side, own_weights
from netgraft.score.interval import paired_difference
from netgraft.score.settings import ScoreSettings
from netgraft.score.verdict import Probe, Scored, Verdicts
from netgraft.trace import trace

Progress = Callable[[str], None]


class Bench:
    """A target and its data, on which any of its state_dicts can be probed."""

    def __init__(
        self,
        target: Side,
        settings: ScoreSettings,
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
        net = FrozenNetwork(self.model, self.graph, tensors, self.device, self.settings.batch)
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

    def result(self, scratch: tuple[Probe, ...], probes: Mapping[str, Probe], **more: Any) -> Verdicts:
        """The verdicts. ``more`` are further fields of Verdicts; ``sha256`` by name."""
        digests = more.pop("sha256", {})
        others = torch.stack([probe.right for probe in scratch])
        scored = [
            Scored(name, probe, *paired_difference(probe.right, others), digests.get(name, ""))
            for name, probe in probes.items()
        ]
        return Verdicts(
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

    def _open(self) -> tuple[LabelledPictures, LabelledPictures]:
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
    settings: ScoreSettings,
    *,
    progress: Progress = lambda _: None,
) -> Verdicts:
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
