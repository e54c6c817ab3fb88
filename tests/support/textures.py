"""Images of several classes each: class k is a texture that is laid over 8x8 pixels."""

import numpy as np
from PIL import Image

CLASSES = ("a", "b", "c", "d")
ROWS, COLUMNS = np.indices((8, 8))
TEXTURES = [60 * each for each in (ROWS % 2, COLUMNS % 2, (ROWS // 2 + COLUMNS // 2) % 2, np.ones((8, 8), dtype=int))]


def write_textures(folder, count=48, seed=0, columns=False, table="labels.csv"):
    """``count`` images and their table in ``folder``; returns the truth ``[count, 4]``."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((count, 4)) < 0.4).astype(int)
    (folder / "images").mkdir(parents=True)
    lines = ["file," + (",".join(CLASSES) if columns else "labels")]
    for i, row in enumerate(truth):
        pixels = rng.integers(0, 15, (8, 8))
        for k in np.flatnonzero(row):
            pixels += TEXTURES[k]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        named = [CLASSES[k] for k in np.flatnonzero(row)]
        lines.append(f"images/{i}.png," + (",".join(map(str, row)) if columns else ";".join(named)))
    (folder / table).write_text("\n".join(lines) + "\n")
    return truth
