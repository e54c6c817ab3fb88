"""What the user says about a training: plain values, written to ``config.json`` and read from it. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from netgraft.errors import UnknownName, UsageError

Bn = Literal["train", "eval", "sync"]
Distance = Literal["euclidean", "cosine"]
DtnhScope = Literal["all", "shared", "per-tensor"]
AmpDtype = Literal["bfloat16", "float16"]
CropMode = Literal["rrc", "rkrc", "rkrr", "rc"]

FREE = ("out", "workers", "log_interval", "recovery_interval", "tensorboard", "cache", "pictures", "picture_interval")
"""Settings that may differ when a training is resumed: they do not change what is computed."""


SOFT = "soft"
"""The value of ``--triplet-margin`` for log(1 + exp(x)) in place of a margin."""
IMAGES_OF_A_CLASS = 4
"""``--class-images`` of the triplet loss."""

TRANSFERRED = "transferred"
"""The value of ``--freeze`` for all that came from a source."""


@dataclass(frozen=True)
class TrainingSettings:
    """All of a training. Names are those of timm's train script where it has one."""

    target: str
    data: str
    out: str
    method: str = "plain"
    set: Mapping[str, object] = field(default_factory=dict)  # options of the method
    combine: str | None = None  # None: the method's own rule
    dtnh_scope: DtnhScope = "all"  # which parameters the rule dtnh compares gradients of
    lam: float = 1.0  # factor of all regularisers
    lambdas: tuple[float, ...] | None = None  # values of lam to choose from, by cross-validation
    folds: int | None = None  # of cross-validation
    lam_decay: float = 1.0  # lambda is lam * lam_decay^epoch
    init: str | None = None
    source: str | None = None
    source_weights: str | None = None
    random_source: bool = False
    source_arg: Mapping[str, object] = field(default_factory=dict)
    source_input_size: tuple[int, ...] | None = None
    target_arg: Mapping[str, object] = field(default_factory=dict)
    input_size: tuple[int, ...] | None = None
    pairs: str = "stages"  # "stages", "all", "SOURCE:TARGET,..."
    matcher: str | None = None  # None: by how far the networks have come, or the ledger of a transfer of weights
    source_data: str | None = None
    unlabelled: str | None = None
    samples_per_class: int | None = None
    data_dir: str | None = None
    download: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    epochs: int = 10
    val_split: float | None = None  # share of the training images by which ``best`` is chosen
    val_interval: int = 1  # epochs between two evaluations; there is always one after the last
    retrieval: Distance | None = None  # test images are searched for by their features too
    batch_size: int = 64  # of one process
    accumulate: int = 1  # batches whose gradients make one step
    opt: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    sched: str = "cosine"
    warmup_epochs: int = 0
    min_lr: float = 0.0
    decay_epochs: float = 10.0
    decay_rate: float = 0.1
    milestones: tuple[int, ...] | None = None  # epochs after which the rate decays, of sched "multistep"
    triplet: float = 0.0  # weight of the triplet loss beside the cross-entropy
    triplet_margin: str = "0.3"  # a number, or "soft"
    class_images: int | None = None  # a batch has so many images of each of its classes
    smoothing: float = 0.0
    clip_grad: float | None = None
    freeze: str | None = None  # so many first layers of the chain, "3", or "transferred"
    unfreeze_every: int | None = None  # epochs after which the next layer trains too, from the head down
    lr_exact: float = 1.0  # factors of the learning rate by what the ledger of --init says of a tensor
    lr_refitted: float = 1.0
    lr_fresh: float = 1.0
    aug: bool | None = None  # None: unless the data are netgraft's own
    train_crop_mode: CropMode = "rrc"
    crop_pct: float = 0.875  # of crop mode "rc": edge of the crop by that of the image
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    aa: str | None = None
    reprob: float = 0.0
    views: int | None = None  # random views of an image; None: a new one in every epoch
    bn: Bn = "train"
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    amp: bool = False
    amp_dtype: AmpDtype = "bfloat16"  # float16 scales the losses
    channels_last: bool = False
    compile_source: bool = False
    seed: int = 0
    draw_seed: int = 0
    device: str = "auto"
    workers: int = 0
    log_interval: int = 50
    recovery_interval: int = 0  # batches between saved states; 0: at the end of every epoch only
    tensorboard: bool = True
    pictures: int = 8  # of so many test images, by methods that make any; 0: none
    picture_interval: int = 0  # epochs between two pictures; there is always one after the last. 0: that one alone
    cache: str | None = None

    def __post_init__(self) -> None:
        for name in ("input_size", "source_input_size", "mean", "std", "scale", "ratio", "milestones", "lambdas"):
            if isinstance(value := getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(value))
        least_values = {
            "epochs": 1,
            "val_interval": 1,
            "batch_size": 1,
            "accumulate": 1,
            "lr": 0,
            "lam": 0,
            "lam_decay": 0,
            "pictures": 0,
            "picture_interval": 0,
            "seed": 0,
        }
        least_values |= dict.fromkeys(("lr_exact", "lr_refitted", "lr_fresh", "triplet"), 0)
        if self.class_images is not None:
            least_values["class_images"] = 2
        if self.unfreeze_every is not None:
            least_values["unfreeze_every"] = 1
        for name, least in least_values.items():
            if getattr(self, name) < least:
                raise UsageError(f"--{option(name)} is at least {least}.", where=str(getattr(self, name)))
        if self.val_split is not None and not 0 < self.val_split < 1:
            raise UsageError("--val-split is a share, more than 0 and less than 1.", where=str(self.val_split))
        if self.lam_decay > 1:
            raise UsageError("--lambda-decay is between 0 and 1.", where=str(self.lam_decay))
        if self.freeze not in (None, TRANSFERRED) and not (self.freeze.isdecimal() and int(self.freeze)):
            hint = "Type --freeze 3 for the first three layers, or --freeze transferred."
            raise UsageError("What is to be frozen cannot be understood.", where=f"--freeze {self.freeze}", hint=hint)
        self._check_milestones()
        self._check_folds()
        if self.triplet_margin != SOFT and not re.fullmatch(r"\d+(\.\d*)?|\.\d+", self.triplet_margin):
            raise UsageError(
                "The margin is no number.", where=f"--triplet-margin {self.triplet_margin}", hint="0.3, soft"
            )
        if self.bn not in ("train", "eval", "sync"):
            raise UnknownName("--bn", self.bn, ("train", "eval", "sync"))
        if self.retrieval not in (None, *get_args(Distance)):
            raise UnknownName("--retrieval", str(self.retrieval), get_args(Distance))
        if self.dtnh_scope not in (scopes := get_args(DtnhScope)):
            raise UnknownName("--dtnh-scope", self.dtnh_scope, scopes)
        if self.train_crop_mode not in (modes := get_args(CropMode)):
            raise UnknownName("--train-crop-mode", self.train_crop_mode, modes)
        if not 0 < self.crop_pct <= 1:
            raise UsageError("--crop-pct is a share, more than 0 and at most 1.", where=str(self.crop_pct))
        if self.crop_pct != 0.875 and self.train_crop_mode != "rc":
            where = f"--crop-pct {self.crop_pct} --train-crop-mode {self.train_crop_mode}"
            raise UsageError("Only the crop mode rc has such a share.", where=where, hint="Add --train-crop-mode rc.")
        if self.amp_dtype not in (kinds := get_args(AmpDtype)):
            raise UnknownName("--amp-dtype", self.amp_dtype, kinds)
        if self.amp_dtype != "bfloat16" and not self.amp:
            where = f"--amp-dtype {self.amp_dtype}"
            raise UsageError("Without mixed precision its type says nothing.", where=where, hint="Add --amp.")

    def _check_milestones(self) -> None:
        if (self.milestones is not None) != (self.sched == "multistep"):
            where = f"--sched {self.sched}" + ("" if self.milestones is None else " with --milestones")
            hint = "Type --sched multistep --milestones 30,60 for a rate that falls after 30 and after 60 epochs."
            raise UsageError("Milestones belong to the schedule multistep, and it to them.", where=where, hint=hint)
        given = self.milestones if self.milestones is not None else (1,)
        if not given or min(given) < 1 or list(given) != sorted(set(given)):
            what = "Milestones are numbers of epochs from 1 on, each larger than the one before."
            raise UsageError(what, where=f"--milestones {','.join(map(str, given))}", hint="--milestones 30,60")
        if self.milestones is not None and given[-1] >= self.epochs:
            what = f"The training ends after {self.epochs} epochs, before the last milestone."
            raise UsageError(
                what, where=f"--milestones {','.join(map(str, given))}", hint="Add --epochs, or leave it out."
            )

    def _check_folds(self) -> None:
        lambdas = self.lambdas or ()
        if (self.lambdas is None) != (self.folds is None):
            where = "no --folds" if self.folds is None else f"--folds {self.folds} and one lambda"
            hint = "Type --lambda 0.01,0.1,1 --folds 5 to choose between them on the training images."
            raise UsageError("Cross-validation needs several lambdas and a number of folds.", where=where, hint=hint)
        if self.lambdas is not None and (len(set(lambdas)) < max(2, len(lambdas)) or not all(v >= 0 for v in lambdas)):
            where = f"--lambda {','.join(map(str, lambdas))}"
            raise UsageError("The lambdas to choose from are different numbers, 0 or more.", where=where)
        if self.folds is not None and self.folds < 2:
            raise UsageError("--folds is at least 2.", where=str(self.folds))
        if self.folds is not None and self.val_split is not None:
            hint = "Leave out --val-split: lambda is chosen on the folds, and the last training is on all images."
            raise UsageError("--val-split and --folds do not go together.", hint=hint)

    @property
    def images_of_a_class(self) -> int:
        """How many images of each of its classes a batch has; 0 where it is drawn without a look at classes."""
        return self.class_images or (IMAGES_OF_A_CLASS if self.triplet else 0)

    @property
    def margin(self) -> float | None:
        """That of the triplet loss; None for a soft one."""
        return None if self.triplet_margin == SOFT else float(self.triplet_margin)

    def document(self) -> dict[str, Any]:
        """As JSON, in the order of the fields."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    def resumable(self) -> dict[str, Any]:
        """What must be the same when a training is resumed."""
        return {name: value for name, value in self.document().items() if name not in FREE}


def option(name: str) -> str:
    """The field's name on the command line, without dashes in front."""
    return {"lam": "lambda", "lambdas": "lambda", "lam_decay": "lambda-decay"}.get(name, name.replace("_", "-"))


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a ``config.json``, by field. Raises UsageError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError("The configuration cannot be read.", where=f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError("The configuration is not JSON.", where=f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise UsageError("The configuration is not an object of settings.", where=str(path))
    known = [f.name for f in fields(TrainingSettings)]
    for name in document:
        if name not in known:
            raise UnknownName("setting", name, known, where=str(path))
    return document
