"""Initialisations by name: ``scratch``, ``upper``, ``RECIPE[:OPTION=VALUE,...][@CONTROL]``."""

from __future__ import annotations

import functools
import hashlib
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

import netgraft
from netgraft.files.checkpoint import file_sha256
from netgraft.models.embedded import catalogue as embedded
from netgraft.planning import TransferRequest
from netgraft.transfer import transfer
from transfer_quality import pretrain
from transfer_quality.domains import DOMAINS, EMBEDDED, FAMILIES, TARGETS, Domain
from transfer_quality.rival import iatransfer

BASELINES = ("same-names", "weight-selection", "front", "mimetic", "structured")
"""Recipes that are there to be measured against."""
SOURCELESS = ("mimetic", "structured")
"""Of these the ones that read nothing of a source: they are made once for each target."""
CONTROLS = ("shuffled", "untrained")
OUTSIDE = ("cli", "report", "score", "data", "finetune")  # of netgraft: does not change what a transfer writes
PATTERN = re.compile(r"(?P<recipe>[^:@]+)(:(?P<options>[^@]*))?(@(?P<control>\w+))?")


@dataclass(frozen=True)
class Spec:
    """One initialisation, as typed and as read."""

    text: str
    recipe: str
    options: tuple[tuple[str, str], ...] = ()
    control: str = ""

    @property
    def needs_source(self) -> bool:
        return self.recipe not in ("scratch", "upper", *SOURCELESS)


def parse(text: str) -> Spec:
    """Raises SystemExit for what cannot be read."""
    match = PATTERN.fullmatch(text)
    if not match or match["control"] not in (None, *CONTROLS):
        raise SystemExit(f"{text}: an initialisation is RECIPE[:OPTION=VALUE,...][@shuffled or @untrained].")
    options = [option.partition("=") for option in (match["options"] or "").split(",") if option]
    return Spec(text, match["recipe"], tuple((name, value) for name, _, value in options), match["control"] or "")


@dataclass(frozen=True)
class Source:
    """A pretrained net: ``FAMILY-SEED``, or ``FAMILY-embedded`` for the one that netgraft ships (glyphs only)."""

    family: str
    seed: str

    @classmethod
    def parse(cls, text: str) -> Source:
        family, _, seed = text.partition("-")
        known = [*(f"{name}-0" for name in FAMILIES), *(f"{name}-embedded" for name in EMBEDDED)]
        if family not in FAMILIES or not (seed.isdigit() or (seed == "embedded" and family in EMBEDDED)):
            raise SystemExit(f"{text}: a source is FAMILY-SEED, for example {', '.join(known)}.")
        return cls(family, seed)

    def __str__(self) -> str:
        return f"{self.family}-{self.seed}"

    def weights(self, cache: Path, domain_name: str, control: str, steps: int) -> Path:
        """The file of its weights, or of the control's."""
        domain, reference = DOMAINS[domain_name], FAMILIES[self.family]
        shipped = self.seed == "embedded"
        if shipped and domain_name != "glyphs":
            raise SystemExit(f"{self} knows letters only; the domain {domain_name} needs {self.family}-0.")
        if control == "untrained":
            return pretrain.untrained(cache, domain, self.family, reference, 0 if shipped else int(self.seed))
        if shipped:
            file = embedded.weights_path(EMBEDDED[self.family].partition(":")[2])
        else:
            file = pretrain.pretrained(cache, domain, self.family, reference, int(self.seed), steps)
        return pretrain.shuffled(cache, domain, file) if control == "shuffled" else file


@dataclass(frozen=True)
class Made:
    """An initialisation and the digest of its bytes. For scratch no tensors, for each seed draws its own."""

    tensors: dict[str, Tensor]
    sha256: str
    seconds: float  # that the transfer took


def make(
    cache: Path, domain_name: str, source: Source | None, target: str, spec: Spec, *, steps: int, reuse: bool = False
) -> Made:
    """The initialisation of a target, from the cache where netgraft's code is still the same (or ``reuse``).

    Raises NetgraftError where the recipe refuses the pair.
    """
    domain, reference = DOMAINS[domain_name], TARGETS[target]
    if spec.recipe == "scratch":
        return Made({}, digest(pretrain.build(domain, reference, source=False, seed=0).state_dict()), 0.0)
    if spec.recipe == "upper":
        return _read(pretrain.pretrained(cache, domain, f"target-{target}", reference, 0, steps))
    if spec.recipe in SOURCELESS:
        source = Source(next(iter(FAMILIES)), "0")  # any: its weights are not read
        weights = source.weights(cache, domain_name, "untrained", steps)
    else:
        assert source is not None
        weights = source.weights(cache, domain_name, spec.control, steps)
    trained = "" if source.seed == "embedded" else f"-{steps}"
    stem = re.sub(r"[^\w=.,@-]", "_", f"{source}{trained}--{target}--{spec.text}")
    folder = cache / domain_name / "initialisations"
    made_from = hashlib.sha256((code_hash() + file_sha256(weights)).encode()).hexdigest()[:12]
    file = folder / f"{stem}--{made_from}.safetensors"
    older = sorted(folder.glob(f"{stem}--*.safetensors"))
    if reuse and older:
        file = older[-1]
    if not file.exists():
        began = time.perf_counter()
        tensors = _transferred(domain, source, reference, spec, weights)
        pretrain.write(file, tensors, {"seconds": f"{time.perf_counter() - began:.2f}"})
        for old in older:
            old.unlink(missing_ok=True)
    return _read(file)


def _transferred(domain: Domain, source: Source, target: str, spec: Spec, weights: Path) -> dict[str, Tensor]:
    """The state_dict that the recipe makes."""
    if spec.recipe == "iatransfer":
        theirs = pretrain.build(domain, FAMILIES[source.family], source=True, seed=0)
        theirs.load_state_dict(safetensors.torch.load_file(weights))
        return iatransfer(theirs, pretrain.build(domain, target, source=False, seed=0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "init.safetensors"
        sides = (
            domain.side(FAMILIES[source.family], source=True, weights=weights),
            domain.side(target, source=False),
        )
        transfer(TransferRequest(*sides, file, recipe=spec.recipe, options=dict(spec.options), receipt=False))
        return safetensors.torch.load_file(file)


def _read(file: Path) -> Made:
    with safetensors.safe_open(file, "pt") as opened:
        seconds = float((opened.metadata() or {}).get("seconds", 0))
        tensors = {key: opened.get_tensor(key) for key in sorted(opened.keys())}
    return Made(tensors, digest(tensors), seconds)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of keys and bytes."""
    found = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        found.update(key.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]


@functools.cache
def code_hash() -> str:
    """Of what netgraft's transfers run, and of the benchmark's nets."""
    root = Path(netgraft.__file__).parent
    found = hashlib.sha256(Path(__file__).with_name("nets.py").read_bytes())
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] not in OUTSIDE:
            found.update(file.read_bytes())
    return found.hexdigest()[:12]
