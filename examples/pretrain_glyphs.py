"""Trains the embedded nets (``resnet20-glyphs``, ``vgg11-glyphs``): letters a to z, drawn from installed fonts.

Every usable font is drawn once, large, letter by letter (upper and lower case share a class; digits are never drawn, so
that digits stay an unseen task). Training and evaluation then see fresh 16x16 renders of those drawings: random size,
aspect, translation, rotation, shear, stroke weight, softness, contrast, shading, noise and polarity.

Fonts are split by family, not by render, so that the held-out accuracy is on typefaces the net never saw. Clones (two
families with nearly the same outlines, such as Arimo and Liberation Sans) count as one family; fonts nearly identical
to another file are dropped, as are fonts which lack a letter or whose letters are not letters (symbols, barcodes).

The shipped weights were made on Debian 12 with these packages, all free and from Debian's main archive (no font is
shipped, only weights)::

    apt-get install --no-install-recommends \\
        fonts-3270 fonts-adf-accanthis fonts-adf-baskervald fonts-adf-berenis fonts-adf-gillius \\
        fonts-adf-ikarius fonts-adf-irianis fonts-adf-libris fonts-adf-mekanus fonts-adf-oldania \\
        fonts-adf-romande fonts-adf-solothurn fonts-adf-switzera fonts-adf-tribun fonts-adf-universalis \\
        fonts-adf-verana fonts-agave fonts-allerta fonts-anonymous-pro fonts-apropal fonts-arapey \\
        fonts-arkpandora fonts-averia-gwf fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-b612 \\
        fonts-bajaderka fonts-bebas-neue fonts-beteckna fonts-blankenburg fonts-breip fonts-bwht fonts-cabin \\
        fonts-cabinsketch fonts-cantarell fonts-cardo fonts-century-catalogue fonts-cherrybomb fonts-clear-sans \\
        fonts-cmu fonts-comfortaa fonts-comic-neue fonts-compagnon fonts-courier-prime fonts-croscore \\
        fonts-crosextra-caladea fonts-crosextra-carlito fonts-dancingscript fonts-dejavu-core fonts-dejavu-extra \\
        fonts-dkg-handwriting fonts-dosis fonts-dustin fonts-ebgaramond fonts-ebgaramond-extra \\
        fonts-ecolier-court fonts-elstob fonts-engadget fonts-essays1743 fonts-eurofurence fonts-f500 \\
        fonts-fantasma fonts-fantasque-sans fonts-fanwood fonts-femkeklaver fonts-ferrite-core fonts-firacode \\
        fonts-freefont-ttf fonts-georgewilliams fonts-gfs-artemisia fonts-gfs-baskerville \\
        fonts-gfs-bodoni-classic fonts-gfs-didot fonts-gfs-neohellenic fonts-gnutypewriter fonts-go \\
        fonts-gotico-antiqua fonts-goudybookletter fonts-hack fonts-havana fonts-hermit fonts-humor-sans \\
        fonts-inconsolata fonts-inter fonts-isabella fonts-jetbrains-mono fonts-joscelyn fonts-junction \\
        fonts-junicode fonts-jura fonts-karla fonts-karmilla fonts-kaushanscript fonts-klaudia-berenika \\
        fonts-kristi fonts-lato fonts-le-murmure fonts-league-mono fonts-league-spartan fonts-leckerli-one \\
        fonts-lemonada fonts-levien-museum fonts-levien-typoscript fonts-liberation2 fonts-lindenhill \\
        fonts-linuxlibertine fonts-lmodern fonts-lobster fonts-lobstertwo fonts-manrope fonts-millimetre \\
        fonts-monofur fonts-monoid fonts-mononoki fonts-mplus fonts-nanum fonts-national-park fonts-noto-core \\
        fonts-noto-mono fonts-ocr-a fonts-ocr-b fonts-okolaks fonts-oldstandard fonts-open-sans fonts-opendin \\
        fonts-opendyslexic fonts-osifont fonts-oxygen fonts-paratype fonts-play fonts-prociono fonts-proggy \\
        fonts-quattrocento fonts-quicksand fonts-radisnoir fonts-reggae fonts-roadgeek fonts-roboto-slab \\
        fonts-roboto-unhinted fonts-rocknroll fonts-routed-gothic fonts-rufscript fonts-sil-andika \\
        fonts-sil-charis fonts-sil-doulos fonts-sil-gentium fonts-sil-gentium-basic fonts-sjfonts \\
        fonts-smc-chilanka fonts-smc-gayathri fonts-smc-manjari fonts-solide-mirage fonts-sora fonts-staypuft \\
        fonts-stick fonts-stix fonts-summersby fonts-texgyre fonts-tiresias fonts-tlwg-loma-ttf \\
        fonts-tlwg-purisa-ttf fonts-tlwg-sawasdee-ttf fonts-tlwg-typewriter-ttf fonts-tomsontalks fonts-tuffy \\
        fonts-ubuntu-title fonts-unfonts-core fonts-urw-base35 fonts-vollkorn fonts-yanone-kaffeesatz \\
        fonts-yrsa-rasa fonts-yusei-magic ttf-bitstream-vera

and then, with Pillow installed::

    python examples/pretrain_glyphs.py --arch resnet20-glyphs --bank glyphs.npz
    python examples/pretrain_glyphs.py --arch vgg11-glyphs --bank glyphs.npz

The same fonts, seed, options and versions of torch and FreeType give the same bytes. About twelve minutes per net on
one CPU core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import string
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from netgraft.models.embedded import catalogue as embedded

GLYPHS = string.ascii_lowercase + string.ascii_uppercase  # glyph i shows class i % 26
CLASSES = 26
SIDE, INK = 48, 40  # a drawing is 48x48; its longer side of ink is 40
MEAN, STD = 0.5, 0.35  # of the images as augmented here, nearly
FONT_DIRS = ("/usr/share/fonts", "/usr/share/texmf/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
NOT_LETTERS = re.compile(
    r"symbol|dingbat|ornament|icon|emoji|awesome|braille|barcode|music|math|initials|outline", re.I
)
STYLE_WORDS = re.compile(
    r"\b((extra|ultra|semi|demi)?[ -]?(thin|light|bold|black|heavy|condensed|expanded)|regular|medium|book|roman|italic"
    r"|oblique|narrow|cond|\d+)\b",
    re.I,
)


@dataclass(frozen=True)
class Bank:
    """Large drawings of all letters in many fonts, in a fixed order."""

    glyphs: np.ndarray  # uint8 [fonts, 52, 48, 48], ink 255 on 0
    families: tuple[str, ...]  # one per font; clones share one

    def select(self, keep: Sequence[int]) -> Bank:
        return Bank(self.glyphs[list(keep)], tuple(self.families[i] for i in keep))


# --- fonts to drawings --------------------------------------------------------------------------------------------


def draw(font: ImageFont.FreeTypeFont) -> np.ndarray | None:
    """Drawings ``[52, 48, 48]`` of a font, each scaled and centred, or None where it lacks a letter."""
    missing = _ink(font, "\U0010ffff")
    drawings = []
    for letter in GLYPHS:
        ink = _ink(font, letter)
        if ink is None or min(ink.size) < 2 or (missing is not None and ink.tobytes() == missing.tobytes()):
            return None
        zoom = INK / max(ink.size)
        size = tuple(max(1, round(side * zoom)) for side in ink.size)
        page = Image.new("L", (SIDE, SIDE))
        page.paste(ink.resize(size, Image.Resampling.BOX), tuple((SIDE - side) // 2 for side in size))
        drawings.append(np.asarray(page))
    return None if _repeats(drawings) else np.stack(drawings)


def _ink(font: ImageFont.FreeTypeFont, text: str) -> Image.Image | None:
    """What ``text`` leaves on paper, cropped to its ink; None where that is nothing or runs off the page."""
    page = Image.new("L", (320, 320))
    ImageDraw.Draw(page).text((110, 90), text, fill=255, font=font)
    box = page.getbbox()
    return None if box is None or 0 in box[:2] or 320 in box[2:] else page.crop(box)


def _repeats(drawings: Sequence[np.ndarray]) -> bool:
    """Whether two different letters look exactly the same; I and l may, as they do in many a sans serif."""
    shown: dict[bytes, str] = {}
    for glyph, drawing in zip(GLYPHS.lower().replace("l", "i"), drawings, strict=True):
        if shown.setdefault(drawing.tobytes(), glyph) != glyph:
            return True
    return False


def family_of(name: str) -> str:
    """The family of a font's name, without words for weight, width and slant: 'Noto Sans SemiBold' -> 'noto sans'."""
    return " ".join(STYLE_WORDS.sub(" ", name).lower().split()) or name.lower()


def font_files(folders: Sequence[str]) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    """Family and font of every scalable font file under ``folders``, symbol fonts left out by name, sorted by name."""
    found = []
    for folder in folders:
        for path in sorted(Path(folder).expanduser().rglob("*")):
            if path.suffix.lower() not in {".ttf", ".otf", ".ttc"}:
                continue
            try:
                font = ImageFont.truetype(path, 96, layout_engine=ImageFont.Layout.BASIC)
            except OSError:  # not scalable, or broken
                continue
            family, style = (part or "" for part in font.getname())
            if family and not NOT_LETTERS.search(f"{family} {style} {path.stem}"):
                found.append((family, style, path.name, font))
    for family, _, _, font in sorted(found, key=lambda entry: entry[:3]):
        yield family_of(family), font


def make_bank(fonts: Iterator[tuple[str, ImageFont.FreeTypeFont]]) -> Bank:
    """Draws the fonts, drops the unreadable and the repeated, and lets clones share a family."""
    glyphs, families = [], []
    for family, font in fonts:
        drawings = draw(font)
        if drawings is not None:
            glyphs.append(drawings)
            families.append(family)
    if not glyphs:
        raise SystemExit("No font with all letters was found; name a folder of fonts with --fonts DIR.")
    bank = Bank(np.stack(glyphs), tuple(families))
    bank = bank.select(readable(bank))
    return merge_clones(bank)


def _coarse(bank: Bank) -> np.ndarray:
    """The drawings at 12x12: float32 ``[fonts, 52, 144]``."""
    small = bank.glyphs.reshape(len(bank.glyphs), len(GLYPHS), 12, 4, 12, 4).mean(axis=(3, 5), dtype=np.float32)
    return small.reshape(len(small), len(GLYPHS), 144)


def readable(bank: Bank, least: float = 0.2) -> list[int]:
    """The fonts of which the mean drawings of all fonts recognise at least a share ``least`` of the letters."""
    drawings = _coarse(bank)
    means = np.median(drawings, axis=0)
    means = means - means.mean(axis=1, keepdims=True)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    nearest = (drawings @ means.T).argmax(axis=2) % CLASSES
    share = (nearest == np.arange(len(GLYPHS)) % CLASSES).mean(axis=1)
    return [i for i, value in enumerate(share) if value >= least]


def merge_clones(bank: Bank, same: float = 0.998, clone: float = 0.95) -> Bank:
    """Drops a font which resembles an earlier one by more than ``same``; joins families of which two fonts resemble
    each other by more than ``clone`` in small letters or in capitals (cosine of the drawings, less their mean)."""
    drawings = _coarse(bank)
    drawings = drawings - drawings.mean(axis=0)
    cases = drawings[:, :CLASSES].reshape(len(drawings), -1), drawings[:, CLASSES:].reshape(len(drawings), -1)
    cases = tuple(case / np.maximum(np.linalg.norm(case, axis=1, keepdims=True), 1e-6) for case in cases)
    small, capital = (case @ case.T for case in cases)
    keep: list[int] = []
    for i in range(len(drawings)):
        if not (np.minimum(small, capital)[i, keep] > same).any():
            keep.append(i)
    leader = {family: family for family in bank.families}
    for i, j in zip(*np.nonzero(np.triu(np.maximum(small, capital) > clone, 1)), strict=True):
        one, other = _lead(leader, bank.families[i]), _lead(leader, bank.families[j])
        leader[max(one, other)] = min(one, other)
    return Bank(bank.glyphs[keep], tuple(_lead(leader, bank.families[i]) for i in keep))


def _lead(leader: dict[str, str], family: str) -> str:
    while leader[family] != family:
        family = leader[family]
    return family


def split(families: Sequence[str], seed: int, held_out: float = 0.15) -> tuple[list[int], list[int]]:
    """Indices of the training fonts and of the held-out ones. A family is held out by a hash of its name and ``seed``,
    so it stays on its side when fonts come or go."""
    sides: tuple[list[int], list[int]] = ([], [])
    for i, family in enumerate(families):
        digest = hashlib.sha256(f"{seed}:{family}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < held_out * 2**64].append(i)
    return sides


# --- drawings to images -------------------------------------------------------------------------------------------


def render(
    drawings: Tensor,  # uint8 [n, 48, 48]
    rng: torch.Generator,
    strength: float = 1.0,
) -> Tensor:  # float [n, 1, 16, 16], normalised
    """Random 16x16 images of the drawings; ``strength`` 0 gives them upright, centred, white on black, unblurred."""
    n = len(drawings)

    def spread(low: float, high: float) -> Tensor:  # [n], around the middle in proportion to strength
        middle, half = (low + high) / 2, strength * (high - low) / 2
        return middle + half * (2 * torch.rand(n, generator=rng) - 1)

    def upto(high: float) -> Tensor:  # [n, 1, 1, 1]
        return (strength * high * torch.rand(n, generator=rng))[:, None, None, None]

    image = drawings[:, None].float() / 255

    weight = spread(-0.6, 0.9)[:, None, None, None] if strength else torch.zeros(n, 1, 1, 1)
    bolder, thinner = F.max_pool2d(image, 3, 1, 1), -F.max_pool2d(-image, 3, 1, 1)
    image = image + weight.clamp(min=0) * (bolder - image) - weight.clamp(max=0) * (thinner - image)

    angle, shear = spread(-12, 12) * (math.pi / 180), spread(-0.25, 0.25)
    zoom, stretch = spread(0.75, 1.2), torch.exp(spread(-0.2, 0.2))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
    skew = torch.stack([stretch, shear, torch.zeros(n), 1 / stretch], dim=1).view(n, 2, 2)
    shift = torch.stack([spread(-0.15, 0.15), spread(-0.15, 0.15)], dim=1)[:, :, None]
    grid = F.affine_grid(torch.cat([turn @ skew / zoom[:, None, None], shift], dim=2), [n, 1, 32, 32], False)
    image = F.avg_pool2d(F.grid_sample(image, grid, align_corners=False), 2)  # [n, 1, 16, 16]

    soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    image = torch.lerp(image, soft, upto(0.8))
    paper, ink = upto(0.2), 1 - upto(0.3)
    image = paper + (ink - paper) * image
    across = torch.linspace(-1, 1, 16)
    image = image + (upto(0.2) - upto(0.2)) * across + (upto(0.2) - upto(0.2)) * across[:, None]
    image = image + upto(0.07) * torch.randn(image.shape, generator=rng)
    negative = (torch.rand(n, generator=rng) < 0.5 * strength)[:, None, None, None]
    image = torch.where(negative, 1 - image, image).clamp(0, 1)
    return (image - MEAN) / STD


def batches(
    bank: Bank, size: int, rng: torch.Generator, strength: float = 1.0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One render of each letter of each font, in random order: images ``[size, 1, 16, 16]``, classes and fonts."""
    drawings = torch.from_numpy(bank.glyphs).flatten(0, 1)
    for chosen in torch.randperm(len(drawings), generator=rng).split(size):
        yield render(drawings[chosen], rng, strength), chosen % len(GLYPHS) % CLASSES, chosen // len(GLYPHS)


# --- training -----------------------------------------------------------------------------------------------------


def train(
    net: nn.Module, bank: Bank, *, epochs: int, batch: int, lr: float, rng: torch.Generator, steps: int | None = None
) -> None:
    """SGD with Nesterov momentum, a warm-up (a tenth of the steps, at most one epoch), a cosine to nothing, label
    smoothing 0.1. An epoch is one render of each letter of each font; ``steps`` is their number instead of epochs."""
    per_epoch = math.ceil(len(bank.glyphs) * len(GLYPHS) / batch)
    total = epochs * per_epoch if steps is None else steps
    warm = min(per_epoch, total // 10 + 1)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    step, began = 0, time.process_time()
    net.train().to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    for epoch in range(epochs):
        seen, wrong, loss_sum = 0, 0, 0.0
        for images, classes, _ in batches(bank, batch, rng):
            if step == total:
                return
            rate = lr * min(
                (step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, total - warm)))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            logits = net(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, classes, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            seen += len(classes)
            wrong += int((logits.argmax(1) != classes).sum())
            loss_sum += float(loss.detach()) * len(classes)
        minutes = (time.process_time() - began) / 60
        print(
            f"epoch {epoch + 1:3}  loss {loss_sum / seen:.3f}  error {wrong / seen:.2%}  {minutes:.1f} CPU minutes",
            flush=True,
        )


@torch.no_grad()
def accuracy(net: nn.Module, bank: Bank, rng: torch.Generator, *, renders: int, strength: float = 1.0) -> float:
    """Share of right answers over ``renders`` fresh renders of each letter of each font, every family counting the
    same however many fonts it has."""
    net.eval()
    right = torch.zeros(len(bank.families))
    for _ in range(renders):
        for images, classes, fonts in batches(bank, 1024, rng, strength):
            right.index_add_(0, fonts, (net(images).argmax(1) == classes).float())
    by_family: dict[str, list[float]] = {}
    for family, share in zip(bank.families, (right / (renders * len(GLYPHS))).tolist(), strict=True):
        by_family.setdefault(family, []).append(share)
    return sum(sum(shares) / len(shares) for shares in by_family.values()) / len(by_family)


def save(net: nn.Module, path: Path, facts: dict[str, object]) -> None:
    """Writes fp16 weights and ``facts`` (as JSON under ``training``), the same bytes for the same arguments."""
    tensors = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in net.state_dict().items()}
    content = safetensors.torch.save(tensors)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header = {"__metadata__": {"format": "pt", "training": json.dumps(facts)}, **header}  # save() would shuffle these
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, draws the fonts or loads their drawings, trains, writes, and evaluates what was written."""
    parser = argparse.ArgumentParser(description="Train an embedded net on the letters of this computer's fonts.")
    parser.add_argument("--arch", choices=embedded.names(), default="resnet20-glyphs")
    parser.add_argument("--out", type=Path, help="weights to write; ARCH.safetensors by default")
    parser.add_argument("--fonts", action="append", metavar="DIR", help="where fonts lie; may be repeated")
    parser.add_argument("--bank", type=Path, help="drawings of the fonts (.npz): loaded where it exists, else written")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="train for so few steps instead, to try it out")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--renders", type=int, default=4, help="renders per letter and font in the evaluation")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    if options.bank and options.bank.exists():
        with np.load(options.bank) as stored:
            bank = Bank(stored["glyphs"], tuple(stored["families"].tolist()))
    else:
        bank = make_bank(font_files(options.fonts or FONT_DIRS))
        if options.bank:
            np.savez(options.bank, glyphs=bank.glyphs, families=np.array(bank.families))
    seen, unseen = (bank.select(side) for side in split(bank.families, options.seed))
    if not seen.families or not unseen.families:
        raise SystemExit("Too few font families to hold some out; install more, or try another --seed.")
    print(f"train: {_count(seen)}; held out: {_count(unseen)}", flush=True)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        net = embedded.build(options.arch)
    rng = torch.Generator().manual_seed(options.seed)
    train(net, seen, epochs=options.epochs, batch=options.batch, lr=options.lr, rng=rng, steps=options.steps)

    # Judge the weights as they will be read: rounded to fp16.
    net.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()})
    rng.manual_seed(options.seed + 1)
    scores = {
        "held_out_fonts": accuracy(net, unseen, rng, renders=options.renders),
        "held_out_fonts_plain": accuracy(net, unseen, rng, renders=1, strength=0),
        "training_fonts": accuracy(net, seen, rng, renders=options.renders),
    }
    scores = {name: round(score, 4) for name, score in scores.items()}
    facts = {
        "name": options.arch,
        "classes": string.ascii_lowercase,
        "input_size": [1, 16, 16],
        "mean": MEAN,
        "std": STD,
        "accuracy": scores,
        "fonts": {"training": len(seen.families), "held_out": len(unseen.families)},
        "families": {"training": len(set(seen.families)), "held_out": len(set(unseen.families))},
        "epochs": options.epochs,
        "batch": options.batch,
        "lr": options.lr,
        "seed": options.seed,
    }
    out = options.out or Path(f"{options.arch}.safetensors")
    save(net, out, facts)
    print(f"{out}: " + ", ".join(f"{name} {score:.2%}" for name, score in scores.items()))


def _count(bank: Bank) -> str:
    return f"{len(bank.families)} fonts of {len(set(bank.families))} families"


if __name__ == "__main__":
    main()
