"""The frozen source: loaded, fed with the target's images, and remembered in a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.errors import UsageError
from netgraft.finetune.engine.cache import FeatureCache
from netgraft.finetune.engine.loader import Loader
from netgraft.finetune.engine.run import SourceNet
from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.settings import TrainingSettings
from netgraft.models.model import Model, load_model, read_weights
from netgraft.models.normalisation import Normalisation, normalisation_of
from netgraft.models.running import load_state


def load_source(settings: TrainingSettings) -> Model | None:
    """The source that the user named, unread. Raises what ``load_model`` raises."""
    if settings.source is None:
        return None
    return load_model(
        settings.source,
        role="source",
        args=settings.source_arg,
        input_size=settings.source_input_size,
        weights_file=Path(settings.source_weights) if settings.source_weights else None,
        random_weights=settings.random_source,
    )


def build_source(
    settings: TrainingSettings, source: Model, size: tuple[int, ...], target: Normalisation, device: torch.device
) -> tuple[SourceNet, dict[str, Any]]:
    """The source with its weights, in eval mode and without gradients, and what provenance tells of it.

    ``size`` and ``target`` are the shape and the normalisation of the target's images.
    """
    weights = read_weights(source)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        module = source.build()
    load_state(module, weights.tensors)
    module.to(device).eval().requires_grad_(False)
    if settings.channels_last:
        module.to(memory_format=torch.channels_last)
    own = normalisation_of(source, module)
    own_or_target = target if own.said == "nobody" else own
    wanted = source.input_size if settings.source_input_size else None
    channels = source.input_size[0] if source.input_size else size[0]
    adapt = _adapter(size[0], channels, target, own_or_target, wanted, device)
    record = {"name": source.name, "sha256": weights.origin.sha256, "description": weights.origin.description}
    return SourceNet(module, adapt, compiled=settings.compile_source), record


def _adapter(
    have: int,
    want: int,
    target: Normalisation,
    source: Normalisation,
    size: tuple[int, ...] | None,
    device: torch.device,
) -> Callable[[Tensor], Tensor]:
    """The target's images as the source's: its channels, normalisation and, where it was given, its size."""
    mean, std = (t.to(device) for t in target.tensors(have))
    source_mean, source_std = (t.to(device) for t in source.tensors(want))
    same = have == want and torch.equal(mean, source_mean) and torch.equal(std, source_std)

    def adapt(images: Tensor) -> Tensor:
        if not same:
            images = images * std + mean
            if have != want:
                images = images.mean(1, keepdim=True).expand(-1, want, -1, -1)
            images = (images - source_mean) / source_std
        if size is not None and images.shape[2:] != size[1:]:
            images = F.interpolate(images, size=size[1:], mode="bilinear", align_corners=False, antialias=True)
        return images

    return adapt


def make_cache(
    settings: TrainingSettings, source: dict[str, Any], loader: Loader, pairs: tuple[FeaturePair, ...]
) -> FeatureCache | None:
    """The cache of the source's features, if it is wanted. Raises UsageError where views never come again."""
    if settings.cache is None:
        return None
    sets = {"target": loader.target, **loader.others}
    if any(views.transform is not None and views.views is None for views in sets.values()):
        hint = "Add --views 4, so that each image has four random views; or --no-aug."
        raise UsageError("Images that are augmented anew in every epoch cannot be cached.", hint=hint)
    layers = tuple(dict.fromkeys(pair.source for pair in pairs))
    key = {
        "source": source.get("sha256"),
        "name": source.get("name"),
        "arguments": {name: repr(value) for name, value in settings.source_arg.items()},
        "layers": list(layers),
        "precision": settings.amp_dtype if settings.amp else "float32",
        "size": [list(loader.target.size), list(settings.source_input_size or ())],
        "data": {name: views.key() for name, views in sets.items()},
    }
    counts = {name: len(views) for name, views in sets.items()}
    return FeatureCache(Path(settings.cache), key, counts, layers)
