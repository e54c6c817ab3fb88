"""Makes the folders of pictures that the study learns from: ten kinds of things, out of packages that others ship.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb tux
    python examples/imagenet/data.py photographs tux/usr/share/tuxpaint/stamps pictures

    npm pack emoji-datasource-google && mkdir google && tar xzf emoji-datasource-google-*.tgz -C google
    python examples/imagenet/data.py emoji google/package pictures

    npm pack openmoji && tar xzf openmoji-*.tgz && apt-get install librsvg2-bin
    python examples/imagenet/data.py openmoji package pictures

``photographs`` are Tux Paint's stamps, objects cut out of photographs: without cartoons, toys, and pictures that are
another one mirrored; ``photographs-all`` has those of other things too, in no folders, for what needs no labels.
``emoji-google`` is what a font draws for the same kinds; ``openmoji-color`` and
``openmoji-black`` are another one, in colour and as outlines, and ``openmoji-shift`` is trained on in colour and tested
on outlines of other things. Packages of openmoji hold SVG alone: ``rsvg-convert`` draws them.

Each folder has ``train``, ``validation`` and ``test``, with a folder for each kind. Which part a picture is in follows
from its place among the sorted names of its kind: every second is for tests, every second of the rest for validation.
Pictures are square, on white. Nothing of this is part of netgraft: see the packages' licences.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from PIL import Image

PARTS = ("train", "test", "validation", "test")  # of the first picture of a kind, the second, and so on
SIDE = 256
KINDS = {  # the folder of the stamps, the subgroups of emoji
    "bird": ("animals/birds", ("animal-bird",)),
    "fruit": ("food/fruit", ("food-fruit",)),
    "flower": ("plants/flowers", ("plant-flower",)),
    "vegetable": ("food/vegetables", ("food-vegetable",)),
    "mammal": ("animals/mammals", ("animal-mammal",)),
    "insect": ("animals/insects", ("animal-bug",)),
    "fish": ("animals/fish", ("animal-marine",)),
    "tool": ("household/tools", ("tool",)),
    "vehicle": ("vehicles", ("transport-ground", "transport-air", "transport-water")),
    "clothes": ("clothes", ("clothing",)),
}
NO_VEHICLES = ("light", "fuel pump", "construction", "anchor", "stop sign", "bus stop", "seat", "track", "motorway")
"""Words in the names of what Unicode counts among means of transport, and nobody would call a vehicle."""
ALL = ("animals", "clothes", "food", "hobbies", "household", "plants", "seasonal", "sports", "vehicles")
"""Folders of stamps with photographs of things."""
Drawn = Mapping[str, Mapping[str, Path]]
"""Pictures by kind and name."""


def stamps(root: Path) -> Drawn:
    """Tux Paint's photographs. Raises SystemExit where a kind has none."""
    found: dict[str, dict[str, Path]] = {}
    for kind, (folder, _) in KINDS.items():
        files = [file for file in sorted((root / folder).rglob("*.png")) if _is_photograph(file.relative_to(root))]
        found[kind] = {_name(file.relative_to(root / folder)): file for file in files}
    return _checked(found, root)


def all_stamps(root: Path) -> dict[str, Path]:
    """All photographs of things among the stamps, by name."""
    files = [file for folder in ALL for file in sorted((root / folder).rglob("*.png"))]
    return {_name(file.relative_to(root)): file for file in files if _is_photograph(file.relative_to(root))}


def _name(file: Path) -> str:
    return "-".join(file.with_suffix("").parts)


def _is_photograph(file: Path) -> bool:
    drawn = {"cartoon", "toys", "plastic"} & set(file.parts)
    return not drawn and "_mirror" not in file.name and "_flip" not in file.name


def emoji(package: Path) -> tuple[str, Drawn]:
    """The pictures of an unpacked ``emoji-datasource-*``, and the name of their drawer."""
    vendor = next((path.name for path in (package / "img").glob("*") if (path / "64").is_dir()), None)
    if vendor is None:
        raise SystemExit(f"{package} has no img/*/64: unpack emoji-datasource-google, -apple, -twitter or -facebook.")
    found: dict[str, dict[str, Path]] = {kind: {} for kind in KINDS}
    for each in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        kind = kind_of(each["subcategory"], each["name"].lower())
        file = package / "img" / vendor / "64" / each["image"]
        if kind and file.is_file():
            found[kind][each["unified"].lower()] = file
    return vendor, _checked(found, package)


def openmoji(package: Path, style: str) -> Drawn:
    """The SVG files of an unpacked ``openmoji``; ``style`` is "color" or "black"."""
    found: dict[str, dict[str, Path]] = {kind: {} for kind in KINDS}
    with (package / "data" / "openmoji.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            kind = kind_of(row["subgroups"], row["annotation"].lower())
            drawn = package / style / "svg" / f"{row['hexcode']}.svg"
            if kind and drawn.is_file():
                found[kind][row["hexcode"].lower()] = drawn
    return _checked(found, package)


def kind_of(subgroup: str, name: str) -> str | None:
    """The kind of an emoji by Unicode's subgroup and its name; None for what is of no kind."""
    kind = next((kind for kind, (_, subgroups) in KINDS.items() if subgroup in subgroups), None)
    return None if kind == "vehicle" and any(word in name for word in NO_VEHICLES) else kind


def _checked(found: Drawn, root: Path) -> Drawn:
    if missing := [kind for kind, files in found.items() if len(files) < len(PARTS)]:
        raise SystemExit(f"{root} lacks pictures of {', '.join(missing)}: is that the folder?")
    return found


def parts(found: Drawn) -> Iterator[tuple[str, str, str, Path]]:
    """Part, kind, name and file of each picture."""
    for kind, files in found.items():
        for place, (name, file) in enumerate(sorted(files.items())):
            yield PARTS[place % len(PARTS)], kind, name, file


def write(found: Drawn, out: Path, read: Callable[[Path], Image.Image], only: tuple[str, ...] = PARTS) -> int:
    """The pictures of these parts, square, as PNG below ``out``; how many there are."""
    count = 0
    for part, kind, name, file in parts(found):
        if part in only:
            (out / part / kind).mkdir(parents=True, exist_ok=True)
            squared(read(file)).save(out / part / kind / f"{name}.png")
            count += 1
    return count


def squared(picture: Image.Image) -> Image.Image:
    """In the middle of a white square, ``SIDE`` pixels wide."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def rasterised(file: Path) -> Image.Image:
    """An SVG file as librsvg draws it."""
    program = shutil.which("rsvg-convert")
    if program is None:
        raise SystemExit("SVG files are drawn by rsvg-convert, which is not here: apt-get install librsvg2-bin")
    with tempfile.NamedTemporaryFile(suffix=".png") as drawn:
        size = str(SIDE)
        subprocess.run([program, "-w", size, "-h", size, "-o", drawn.name, str(file)], check=True)
        return Image.open(drawn.name).copy()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make folders of pictures for the study.")
    parser.add_argument("what", choices=("photographs", "emoji", "openmoji"))
    parser.add_argument("package", type=Path, help="the folder that was unpacked")
    parser.add_argument("out", type=Path, help="below it the folders are made")
    options = parser.parse_args()
    if options.what == "photographs":
        everything = options.out / "photographs-all"
        everything.mkdir(parents=True, exist_ok=True)
        for name, file in all_stamps(options.package).items():
            squared(Image.open(file)).save(everything / f"{name}.png")
        print(write(stamps(options.package), options.out / "photographs", Image.open), "photographs")
    elif options.what == "emoji":
        vendor, found = emoji(options.package)
        print(write(found, options.out / f"emoji-{vendor}", Image.open), f"emoji-{vendor}")
    else:
        colour, black = (openmoji(options.package, style) for style in ("color", "black"))
        print(write(colour, options.out / "openmoji-color", rasterised), "openmoji-color")
        print(write(black, options.out / "openmoji-black", rasterised), "openmoji-black")
        shift = options.out / "openmoji-shift"
        learnt = write(colour, shift, rasterised, ("train", "validation"))
        print(learnt + write(black, shift, rasterised, ("test",)), "openmoji-shift")


if __name__ == "__main__":
    main()
