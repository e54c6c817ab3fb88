"""The images that a distillation is made with: which are taken, and which are mixed with one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from netgraft.data.mixing import Mixing, mix_latter_half
from netgraft.passes._choosing import check_has_statistics, nearest_to_statistics
from netgraft.passes.protocol import Stage

Choice = Literal["any", "statistics"]


def draw(
    stage: Stage, count: int, held_out: int, seed: int, *, mixing: Mixing, choose: Choice, candidates: int, batch: int
) -> tuple[Tensor, dict[str, Any]]:
    """Images to train on and, behind them, others, which are neither chosen nor mixed; and how they were chosen.

    What is mixed is mixed here, once: the source answers the mixed image itself, not the mean of two answers. With
    "statistics" there are ``candidates`` times ``count`` images in memory until the choice is made.
    """
    report: dict[str, Any] = {}
    if choose == "any":
        drawn = stage.images(count + held_out, seed)
    else:
        check_has_statistics(stage)
        drawn = stage.images(count * candidates + held_out, seed)
        of = len(drawn) - held_out
        found = nearest_to_statistics(stage, drawn[:of], count, batch)
        numbers = {"departure": found.of_chosen, "departure_of_all": found.of_all}
        report["chosen"] = {"of": of} | {name: float(f"{number:.4g}") for name, number in numbers.items()}
        drawn = torch.cat([drawn[found.places], drawn[of:]])
    mix_latter_half(drawn[:count], mixing, stage.seed)
    return drawn, report


def choice_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """How much nearer to the source's statistics the images are for having been chosen; nothing if they were not."""
    if chosen := report.get("chosen"):
        yield (
            f"distil: the images were chosen from {chosen['of']}; their statistics depart from the source's by "
            f"{chosen['departure']:.3g} ({chosen['departure_of_all']:.3g} without a choice)"
        )
