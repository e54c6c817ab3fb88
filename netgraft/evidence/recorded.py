"""What a checkpoint's metadata says of where its weights come from, as far as their images are concerned.

Metadata comes from strangers: a Python file or module that it names is run only if the user names it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from netgraft.errors import NetgraftError
from netgraft.evidence.rebuild import load_recorded, recorded_request
from netgraft.files.checkpoint import read_provenance
from netgraft.models.model import Model
from netgraft.models.normalisation import Normalisation, normalisation_for, trained_on
from netgraft.models.references import Reference, parse_reference

_UNKNOWN = {"args": (), "input_size": None, "weights": "none"}  # of files that were written before it was recorded


def choose_normalisation(target: Model, files: Sequence[Path], sources: Sequence[Model] = ()) -> Normalisation:
    """What the images of ``target`` are normalised by when it has the weights in one of ``files``.

    The training that wrote a file knows; else it is as ``normalisation_for`` says, with the sources in the files'
    metadata before ``sources``, which the user named. A source that is not at hand is told in the remark. Raises what
    building a model raises.
    """
    for file in files:
        if (trained := trained_on(file)) is not None:
            return trained.fitted(target.input_size[0] if target.input_size else None)
    recorded = [found for file in files if (found := recorded_source(file, (target, *sources)))]
    chosen = normalisation_for(target, [*(each for each in recorded if isinstance(each, Model)), *sources])
    missing = [each for each in recorded if isinstance(each, str)]
    if missing and chosen.said in ("nobody", "catalogue"):
        return replace(chosen, remark=" ".join([chosen.remark] * bool(chosen.remark) + missing[:1]))
    return chosen


def recorded_source(file: Path, named: Iterable[Model]) -> Model | str:
    """The source that the file's weights come from, or why it is not at hand; an empty text if the file names none.

    A Python file or module counts only if it is one of ``named``, which the user gave. No weights are read.
    """
    try:
        provenance = read_provenance(file)
        text = provenance["plan"]["source"]
    except (NetgraftError, KeyError, TypeError):
        return ""
    if not isinstance(text, str):
        return ""
    missing = f"{file} was made from {text}, whose normalisation is not known"
    try:
        parsed = parse_reference(text)
        if parsed.kind in ("file", "module"):
            same = next((model for model in named if _same_code(model.reference, parsed)), None)
            return same or f"{missing}: Python code is not run because a file names it. Give --mean and --std."
        try:
            asked = recorded_request(provenance, file)["source"]
        except NetgraftError:
            asked = _UNKNOWN
        found = load_recorded("source", text, asked)
    except NetgraftError as error:
        return f"{missing}: {error.what} Give --mean and --std."
    return found if isinstance(found, Model) else f"{missing}: {found}. Give --mean and --std."


def _same_code(one: Reference, other: Reference) -> bool:
    if (one.kind, one.attribute) != (other.kind, other.attribute):
        return False
    if one.kind == "file":
        return Path(one.name).expanduser().resolve() == Path(other.name).expanduser().resolve()
    return one.name == other.name
