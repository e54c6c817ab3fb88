"""The images of a training: opened by name, drawn, normalised, augmented, and dealt to the processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from netgraft.data.folds import HeldOutFold, without_fold
from netgraft.data.opening import open_data
from netgraft.data.pictures import LabelledPictures, few, hold_out
from netgraft.data.search import has_tests, open_search
from netgraft.errors import UsageError
from netgraft.evidence.recorded import choose_normalisation
from netgraft.finetune.engine.loader import Augmentation, Loader, Views
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.settings import TrainingSettings
from netgraft.models.model import Model
from netgraft.models.normalisation import Normalisation


class ImageSets(NamedTuple):
    """What a training sees."""

    train: LabelledPictures
    validation: LabelledPictures | None  # training images that are held out, by which ``best`` is chosen
    test: LabelledPictures | None  # None in a fold, or where there are only queries and a gallery
    search: tuple[LabelledPictures, LabelledPictures] | None  # queries and gallery, where the data have them
    others: dict[str, LabelledPictures]  # beside every batch: "source", "unlabelled", where they are given

    def record(self) -> dict[str, Any]:
        """Which images these are, as JSON, by their use."""
        own = {"train": self.train, "validation": self.validation, "test": self.test}
        own |= dict(zip(("query", "gallery"), self.search or (), strict=False))
        return {use: pictures.record() for use, pictures in {**own, **self.others}.items() if pictures is not None}


def open_sets(settings: TrainingSettings, fold: HeldOutFold | None = None) -> ImageSets:
    """All images by name. Those for validation are held out of the few that are drawn: they are labelled too.

    With ``fold`` it is held out for validation. Raises what ``open_data``, ``few``, ``hold_out`` and ``without_fold``
    raise.
    """
    root = Path(settings.data_dir) if settings.data_dir else None

    def opened(name: str, split: Any = "train", multilabel: bool = True) -> LabelledPictures:
        return open_data(name, split=split, root=root, download=settings.download, multilabel=multilabel)

    train = opened(settings.data)
    search = open_search(settings.data) if fold is None else None
    looked_at = fold is None and (search is None or has_tests(settings.data))
    test = opened(settings.data, "test") if looked_at else None
    if settings.samples_per_class is not None:
        train = few(train, settings.samples_per_class, settings.draw_seed)
    validation = None
    if settings.val_split is not None:
        train, validation = hold_out(train, settings.val_split, settings.draw_seed)
    if fold is not None:
        train, validation = without_fold(train, fold, settings.draw_seed)
    others = {}
    if settings.source_data is not None:
        others["source"] = opened(settings.source_data, multilabel=False)
    if settings.unlabelled is not None:
        others["unlabelled"] = opened(settings.unlabelled)
    return ImageSets(train, validation, test, search, others)


def make_loader(
    settings: TrainingSettings,
    size: tuple[int, ...],
    normalisation: Normalisation,
    train: LabelledPictures,
    others: dict[str, LabelledPictures],
    processes: Processes,
) -> Loader:
    """The training batches of this process. Raises UsageError where there are more processes than images."""

    def views(pictures: LabelledPictures) -> Views:
        own = pictures.name.startswith("netgraft:")  # letters and digits must not be mirrored
        wanted = settings.aug if settings.aug is not None else not own
        augmentation = None
        if wanted:
            augmentation = Augmentation(
                settings.scale,
                settings.ratio,
                settings.hflip,
                settings.vflip,
                settings.color_jitter,
                settings.aa,
                settings.reprob,
                settings.train_crop_mode,
                settings.crop_pct,
            )
        return Views(pictures, size, normalisation, augmentation, settings.seed, settings.views)

    if processes.world > len(train):
        raise UsageError("There are more processes than images.", where=f"{processes.world}, {len(train)}")
    return Loader(
        views(train),
        settings.batch_size,
        processes.rank,
        processes.world,
        settings.seed,
        settings.workers,
        {name: views(pictures) for name, pictures in others.items()},
        settings.accumulate,
        settings.images_of_a_class,
    )


def find_normalisation(settings: TrainingSettings, target: Model, source: Model | None) -> Normalisation:
    """What the user says, else what ``choose_normalisation`` finds. Raises UsageError."""
    if (settings.mean is None) != (settings.std is None):
        raise UsageError("--mean and --std belong together.", hint="For example --mean 0.5 --std 0.35.")
    if settings.mean is not None and settings.std is not None:
        return Normalisation(settings.mean, settings.std, "user", "--mean and --std")
    files = [Path(settings.init)] if settings.init else []
    return choose_normalisation(target, files, [source] if source is not None else [])
