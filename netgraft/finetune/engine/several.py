"""What is refused where images may have several classes each, and what needs one class for each image."""

from __future__ import annotations

from netgraft.data.pictures import LabelledPictures
from netgraft.errors import UsageError
from netgraft.finetune.settings import TrainingSettings


def check_labels(settings: TrainingSettings, train: LabelledPictures) -> None:
    """Raise UsageError for options that the labels do not allow: most where an image may have several classes.

    Methods refuse by themselves: ``toolbox.labels``.
    """
    if settings.triplet and settings.source_data is not None:
        what = "The triplet loss does not go with images of two domains."
        raise UsageError(what, where="--triplet, --source-data", hint="Leave out --triplet.")
    if not train.multilabel:
        return
    given = {
        "--source-data": settings.source_data is not None,
        "--smoothing": settings.smoothing != 0,
        "--triplet": settings.triplet != 0,
        "--class-images": settings.class_images is not None,
        "--retrieval": settings.retrieval is not None,
    }
    if wrong := [option for option, here in given.items() if here]:
        what = f"{wrong[0]} needs one class for each image, and these have several."
        raise UsageError(what, where=settings.data, hint=f"Leave out {wrong[0]}, or take other data.")
