"""What a method makes of test images, written as pictures beside the weights: ``protocol.Shows``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from netgraft.data.optional import needed
from netgraft.data.pictures import Pixels
from netgraft.errors import UsageError
from netgraft.finetune.engine.folder import Folder
from netgraft.finetune.engine.parts import eval_mode
from netgraft.finetune.engine.run import LiveRun
from netgraft.finetune.protocol import Part, Shows
from netgraft.finetune.settings import TrainingSettings

GAP = 2  # white pixels around every image
EDGE = 64  # smaller images are enlarged, by a whole number


def are_due(settings: TrainingSettings, epoch: int) -> bool:
    """Whether there are pictures after this epoch, 0, 1, ...: after the last one, and as often as the user says."""
    done, every = epoch + 1, settings.picture_interval
    return settings.pictures > 0 and (done == settings.epochs or (every > 0 and done % every == 0))


@torch.no_grad()
def write_pictures(
    method: Shows, run: LiveRun, parts: Mapping[str, Part], test: Pixels, count: int, folder: Folder
) -> None:
    """The method's pictures of the first ``count`` test images. No random number of the run's own is drawn.

    Raises UsageError for pictures of another shape than the images.
    """
    images = test.batch(range(min(count, len(test))))
    run.at("pictures")
    with ExitStack() as modes:
        for part in parts.values():
            modes.enter_context(eval_mode(part.module))
        found = {name: row.float().cpu() for name, row in method.pictures(run, images.to(run.device), parts).items()}
    for name, row in found.items():
        if row.shape != images.shape:
            where = f"{name}: {tuple(row.shape)} for images of {tuple(images.shape)}"
            raise UsageError("A method's pictures have the shape of the images.", where=where)
    folder.write_picture(run.epoch + 1, _png({name: row * test.std + test.mean for name, row in found.items()}))


def _png(rows: Mapping[str, Tensor]) -> bytes:
    """Rows of images [n, C, H, W] with values from 0 to 1 below each other; their names are the file's text "rows"."""
    image, info = (
        needed("PIL.Image", "Pillow", "Writing pictures"),
        needed("PIL.PngImagePlugin", "Pillow", "").PngInfo(),
    )
    info.add_itxt("rows", ", ".join(rows))
    content = io.BytesIO()
    image.fromarray(mosaic(list(rows.values())).numpy()).save(content, "PNG", pnginfo=info)
    return content.getvalue()


def mosaic(rows: list[Tensor]) -> Tensor:
    """Rows of as many images [n, C, H, W] with values from 0 to 1, as one picture: uint8, [h, w] or [h, w, 3]."""
    count, channels, height, width = rows[0].shape
    factor = max(1, EDGE // max(height, width))
    high, wide = factor * height + GAP, factor * width + GAP
    picture = torch.full((channels, len(rows) * high + GAP, count * wide + GAP), 255, dtype=torch.uint8)
    for line, row in enumerate(rows):
        shades = (row.clamp(0, 1) * 255).round().to(torch.uint8)
        for place, one in enumerate(shades.repeat_interleave(factor, 2).repeat_interleave(factor, 3)):
            top, left = line * high + GAP, place * wide + GAP
            picture[:, top : top + high - GAP, left : left + wide - GAP] = one
    return picture[0] if channels == 1 else picture.permute(1, 2, 0).contiguous()
