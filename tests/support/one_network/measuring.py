"""What is measured of a pair: lively weights, the outputs' relative error, and a transfer by the command line."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.one_network.pair import Pair, State
from torch import Tensor, nn

LIMIT = 1e-5
"""Of the relative error of one and the same network, in single precision."""


def build(pair: Pair, role: str, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network of one side, initialised with ``seed``, and one example of its inputs."""
    from netgraft.models.model import load_model

    reference, args = (pair.source, pair.source_args) if role == "source" else (pair.target, pair.target_args)
    model = load_model(reference, role="target", args=dict(args or {}), input_size=pair.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = model.build().eval()
        inputs = model.example_inputs() if pair.size is None and model.example_inputs else (_images(pair.size or ()),)
    return module, inputs


def _images(size: tuple[int, ...]) -> Tensor:
    """Four inputs that differ as pictures do: coarse patterns, fine ones, and another brightness each."""
    fine = 0.3 * torch.randn(4, *size)
    if len(size) != 3:
        return fine
    coarse = nn.functional.interpolate(torch.randn(4, size[0], 4, 4), size[1:], mode="bilinear")
    return coarse + fine + 0.5 * torch.randn(4, size[0], 1, 1)


def enliven(module: nn.Module, seed: int = 1) -> nn.Module:
    """Give it statistics, gammas and betas that a trained network could have; fixed tables stay as they are.

    What an initialisation leaves constant carries nothing: a branch behind a layer scale of 1e-6 or a zero gamma does
    not show whether it was copied. Ones and small scales become 0.5 ... 1.5, zeros noise of deviation 0.1; weights grow
    to a gain of 1.3, so that what distinguishes two inputs is still there at the end.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(value: Tensor) -> Tensor:
        return torch.rand(value.shape, generator=generator) + 0.5

    def normal(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator)

    with torch.no_grad():
        for key, value in module.named_buffers():
            if key.endswith(("running_mean", ".mean")) and value.is_floating_point():
                value.copy_(0.2 * normal(value))
            elif key.endswith(("running_var", ".var")):
                value.copy_(uniform(value))
        for key, value in module.named_parameters():
            constant = value.numel() < 2 or bool((value == value.flatten()[0]).all())
            if not value.requires_grad:
                continue
            if value.dim() == 1 and key.endswith("weight"):  # a norm's, whatever it starts with
                value.copy_(uniform(value))
            elif constant:
                value.copy_(0.1 * normal(value) if bool((value == 0).all()) else uniform(value))
            elif key.endswith("bias") and value.dim() == 1:
                value.add_(0.1 * normal(value))
            elif key.endswith("weight") and value.dim() > 1:
                value.mul_(max(1.0, 1.3 / float(value.std()) * (len(value) / value.numel()) ** 0.5))
    return module


def outputs(module: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The float tensors of the forward pass, in order."""
    with torch.no_grad():
        return list(_tensors(module.eval()(*inputs)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict) or hasattr(value, "items"):
        for _, each in value.items():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def relative_error(given: list[Tensor], wanted: list[Tensor]) -> float:
    """||given - wanted|| / ||wanted||, over the outputs that both have; infinity where a shape differs.

    Zero where both are zero, as a new head's may be: that shows nothing, so weights should be lively.
    """
    count = min(len(given), len(wanted))
    if not count or any(a.numel() != b.numel() for a, b in zip(given, wanted, strict=False)):
        return float("inf")
    one, other = (torch.cat([each.flatten().double() for each in side[:count]]) for side in (given, wanted))
    difference, size = float((one - other).norm()), float(other.norm())
    if difference == 0:
        return 0.0
    return difference / size if size and difference == difference else float("inf")


def aliveness(given: list[Tensor]) -> float:
    """How much the outputs differ from one example to another, relative to their size."""
    first = given[0].double().flatten(1)
    return float((first - first.mean(0)).norm() / first.norm()) if bool(first.any()) else 0.0


def loaded(module: nn.Module, found: State) -> nn.Module:
    """The module with these tensors; only buffers may be missing. Raises ValueError otherwise."""
    missing, unexpected = module.load_state_dict(found, strict=False)
    every = dict(module.named_parameters(remove_duplicate=False))
    given = {id(value) for key, value in every.items() if key in found}  # a weight may have several names
    lost = [key for key, value in every.items() if key in missing and id(value) not in given]
    lost += [key for key in missing if "running_" in key]
    if lost or unexpected:
        raise ValueError(f"missing: {lost}, unexpected: {list(unexpected)}")
    return module


def true_copy_error(pair: Pair, lively: bool = True) -> tuple[float, float]:
    """The relative error of the pair's own copy, and how alive the source's outputs are."""
    source, inputs = build(pair, "source")
    if lively:
        enliven(source)
    target, _ = build(pair, "target", seed=5)
    example = inputs[0] if len(inputs) == 1 else None
    wanted = outputs(source, inputs)
    loaded(target, pair.truth(source, target, example))
    return relative_error(outputs(target, inputs), wanted), aliveness(wanted)


# ----------------------------------------------------------------------------------------------------------- transfers


def measure(pair: Pair, folder: Path, *, lively: bool = True, recipe: str | None = None) -> dict[str, Any]:
    """Transfers as the command line does, with no map, and compares the two networks.

    ``seconds`` is the CPU time of the command less that of building both networks once.
    """
    from typer.testing import CliRunner

    from netgraft.cli import app
    from netgraft.files.checkpoint import read_provenance

    source, inputs = build(pair, "source")
    target, _ = build(pair, "target", seed=5)  # once beforehand: libraries are imported
    if lively:
        enliven(source)
    weights, out = folder / "source.safetensors", folder / "target.safetensors"
    save_file({key: value.clone().contiguous() for key, value in source.state_dict().items()}, weights)
    args = ["transfer", pair.source, pair.target, "--source-weights", str(weights), "-o", str(out), "--force"]
    args += ["--recipe", recipe] if recipe else []
    if pair.size is not None:
        size = ",".join(map(str, pair.size))
        args += ["--input-size", size, "--source-input-size", size]
    for option, given in (("--source-arg", pair.source_args), ("--target-arg", pair.target_args)):
        for name, value in (given or {}).items():
            args += [option, f"{name}={value}"]
    begin = time.process_time()
    build(pair, "source"), build(pair, "target")
    building = time.process_time() - begin
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, args, prog_name="netgraft")
    found: dict[str, Any] = {"seconds": round(time.process_time() - begin - building, 2), "exit": result.exit_code}
    if result.exit_code:
        lines = [line for line in result.stderr.splitlines() if line.startswith("netgraft:")]
        return found | {"error": float("inf"), "recipe": "-", "why": (lines or [repr(result.exception)])[0]}
    wanted = outputs(source, inputs)
    target.load_state_dict(load_file(out))
    recorded = read_provenance(out)
    error = relative_error(outputs(target, inputs), wanted)
    return found | {"error": error, "recipe": recorded["plan"]["recipe"], "why": ""}
