"""The parts that cross-validation holds out, one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from netgraft.data.optional import needed
from netgraft.data.pictures import LabelledPictures, by_class
from netgraft.errors import UsageError


class HeldOutFold(NamedTuple):
    """One of several parts of the training images."""

    number: int  # 0, 1, ..., of - 1
    of: int


def without_fold(pictures: LabelledPictures, fold: HeldOutFold, seed: int) -> tuple[LabelledPictures, LabelledPictures]:
    """What is left to train with, and the fold; both in their old order.

    Every picture is in one fold, and the pictures of a class are in all of them alike, by scikit-learn's
    StratifiedKFold, shuffled with ``seed``. Raises UsageError for a class with fewer pictures than there are folds, and
    for pictures that have several classes each.
    """
    if pictures.multilabel:
        what = "Folds are dealt class by class; these images have several classes each."
        raise UsageError(what, where=pictures.name, hint="Type one --lambda, and --val-split 0.1 to choose best by.")
    for label, members in enumerate(by_class(pictures.labels, len(pictures.classes))):
        if len(members) < fold.of:
            what = f"The class {pictures.classes[label]!r} has {len(members)} images, too few for {fold.of} folds."
            raise UsageError(what, where=pictures.name, hint="Take fewer --folds.")
    selection = needed("sklearn.model_selection", "scikit-learn", "--folds")
    dealt = selection.StratifiedKFold(fold.of, shuffle=True, random_state=seed)
    rest, held = list(dealt.split([[0]] * len(pictures), pictures.labels))[fold.number]
    drawn = {**pictures.drawn, "folds": fold.of, "fold": fold.number, "folds_seed": seed}
    return replace(pictures.take(rest.tolist()), drawn=drawn), replace(pictures.take(held.tolist()), drawn=drawn)
