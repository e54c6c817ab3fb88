"""Refusing what a method cannot do without, before any work. No torch."""

from __future__ import annotations

from netgraft.errors import UsageError
from netgraft.finetune.describe import Described
from netgraft.finetune.protocol import Need
from netgraft.finetune.settings import Settings

_WHY = {
    Need.START: "an initialisation to start from and stay near",
    Need.SOURCE_MODEL: "the source network",
    Need.SOURCE_GRADIENTS: "the source network, for gradients through it",
    Need.SOURCE_DATA: "images of the source's task",
    Need.PAIRS: "layers of a source paired with the target's",
    Need.SAME_CLASSES: "a source network with the target's classes",
    Need.UNLABELLED: "images without labels",
}


def check_needs(settings: Settings, method: Described) -> None:
    """Raise UsageError naming everything that the method needs and the user has not given."""
    given = {
        Need.START: settings.init is not None or "=" in settings.target,
        Need.SOURCE_MODEL: settings.source is not None,
        Need.SOURCE_GRADIENTS: settings.source is not None,
        Need.SOURCE_DATA: settings.source_data is not None,
        Need.PAIRS: settings.source is not None,
        Need.SAME_CLASSES: settings.source is not None,
        Need.UNLABELLED: settings.unlabelled is not None,
    }
    missing = [need for need in Need if need in method.needs and not given[need]]
    if missing:
        what = f"The method {method.name} needs {' and '.join(_WHY[need] for need in missing)}."
        add = " ".join(dict.fromkeys(need.value.partition(" (")[0].partition(" whose")[0] for need in missing))
        raise UsageError(what, where="it is not given", hint=f"Add {add}")
