"""Draws the pictures of the shapes example and writes its demo task (class names, shots, held-out pictures).

Every picture is drawn from a Spec and a numpy Generator alone, so equal seeds give equal bytes, in whatever order
the pictures are drawn.

    python examples/shapes/draw.py --out DIR [--shots 16] [--held-out 40] [--seed 0]
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from forms import form
from world import (
    CLUTTERED,
    COLOURS,
    DEMO_CLASSES,
    GRADIENT,
    GRAINY,
    GROUND_COLOURS,
    SOLID,
    UNSEEN_COLOURS,
    Spec,
    caption,
    sample_spec,
)

__all__ = ["Spec", "caption", "draw", "main", "write_task"]

Plane = NDArray[np.float32]

SUPERSAMPLING = 2
"""Masks are drawn this much larger and averaged down, which smooths their edges."""
PICTURE_SIZES_PX = ((96, 96), (96, 96), (96, 96), (120, 96), (96, 120))
"""The demo task's picture sizes (width, height), drawn evenly: a few are not square."""
DEFAULT_SHOTS, DEFAULT_HELD_OUT = 16, 40
_SHOTS_STREAM, _HELD_OUT_STREAM = 1, 2
"""Numbers that keep the random streams of the two folders apart."""

_COLOUR_JITTER = 22.0
_LIGHT_RANGE_ACROSS, _LIGHT_RANGE_DOWN = (0.62, 1.15), (0.8, 1.1)
_MAX_BLUR_PX = 1.1
_MAX_NOISE = 18.0
_GRAIN = 30.0
_MIN_CLUTTER, _MAX_CLUTTER = 6, 18
_BIT_CORNERS = 5
_LIGHT_SECOND_TONE, _BLURRED = 0.5, 0.5
"""How often a texture's second tone is a light one, and how often a picture is blurred."""
_MIDDLE_GREY = 128.0
_DOT_RADIUS = 0.3
"""As a share of the distance between two dots."""
_FINEST_PERIOD_PX = 9.0


def draw(spec: Spec, rng: np.random.Generator) -> Image.Image:
    """Draw one picture; light, blur, noise, clutter and the exact colours are the generator's choice."""
    ground = _draw_ground(spec, rng)
    main = _jittered({**COLOURS, **UNSEEN_COLOURS}[spec.colour], rng)
    second = _second_tone(spec.colour, main, rng)
    mask, pattern = _draw_masks(spec, rng)
    ink = main + pattern[..., None] * (second - main)
    pixels = ground + mask[..., None] * (ink - ground)
    return _photographed(pixels, rng)


def _jittered(rgb: tuple[int, int, int], rng: np.random.Generator) -> Plane:
    return np.clip(np.array(rgb) + rng.uniform(-_COLOUR_JITTER, _COLOUR_JITTER, 3), 0, 255).astype(np.float32)


def _second_tone(colour: str, main: Plane, rng: np.random.Generator) -> Plane:
    """What alternates with the main colour in a texture: nearly white or nearly black, but never the same tone."""
    light = rng.random() < _LIGHT_SECOND_TONE and colour not in ("white", "yellow")
    target = np.float32(255.0 if light else 0.0)
    share = np.float32(rng.uniform(0.6, 0.9))
    return (main + share * (target - main)).astype(np.float32)


def _coordinates(width: int, height: int) -> tuple[Plane, Plane]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x, y


def _draw_ground(spec: Spec, rng: np.random.Generator) -> Plane:
    """The background as an array of height x width x 3."""
    width, height = spec.size_px
    base = _jittered(GROUND_COLOURS[spec.ground_colour], rng)
    ground = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    if spec.ground == GRADIENT:
        x, y = _coordinates(width, height)
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5) + 0.5
        target = 255.0 if base.mean() < _MIDDLE_GREY else 0.0
        ground = ground + (0.75 * np.clip(ramp, 0, 1)[..., None] * (target - ground)).astype(np.float32)
    elif spec.ground == GRAINY:
        ground = ground + rng.normal(0, _GRAIN, (height, width, 1)).astype(np.float32)
    elif spec.ground == CLUTTERED:
        ground = _with_clutter(ground, spec, rng)
    return ground


def _with_clutter(ground: Plane, spec: Spec, rng: np.random.Generator) -> Plane:
    """Scatter small plain bits of any colour; they are too small and too simple to be a shape of their own."""
    canvas = Image.fromarray(ground.astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    palette = list(GROUND_COLOURS.values())
    short = min(spec.size_px)
    for _ in range(int(rng.integers(_MIN_CLUTTER, _MAX_CLUTTER))):
        x, y = rng.uniform(0, spec.size_px[0]), rng.uniform(0, spec.size_px[1])
        angles = np.sort(rng.uniform(0, 2 * np.pi, _BIT_CORNERS))
        radius = short * rng.uniform(0.02, 0.08)
        bit = [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles]
        rgb = _jittered(palette[int(rng.integers(len(palette)))], rng)
        pen.polygon(bit, fill=(int(rgb[0]), int(rgb[1]), int(rgb[2])))
    return np.asarray(canvas, dtype=np.float32)


def _draw_masks(spec: Spec, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Where the shape is, and where inside it the second tone is; both from 0 to 1."""
    width, height = (side * SUPERSAMPLING for side in spec.size_px)
    short = min(width, height)
    radius = spec.radius * short
    centre = np.array([width / 2 + spec.offset[0] * short, height / 2 + spec.offset[1] * short])
    tilt = np.radians(spec.tilt_deg)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    stretch = np.array([rng.uniform(0.88, 1.12), 1.0])
    canvas = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(canvas)
    for index, outline in enumerate(form(spec.shape)):
        points = [(float(x), float(y)) for x, y in outline * stretch @ turn * radius + centre]
        if spec.texture == "outlined":
            stroke = max(2, round(radius * rng.uniform(0.14, 0.2)))
            pen.line([*points, points[0], points[1]], fill=255, width=stroke, joint="curve")
        else:
            pen.polygon(points, fill=0 if index else 255)
    pattern = _pattern(spec.texture, (width, height), centre, radius, rng)
    return _averaged(canvas), _averaged(pattern) if pattern else np.zeros(spec.size_px[::-1], np.float32)


def _averaged(mask: Image.Image) -> Plane:
    return np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def _pattern(
    texture: str, size: tuple[int, int], centre: NDArray[np.float64], radius: float, rng: np.random.Generator
) -> Image.Image | None:
    """The second tone's mask over the whole picture, or None where the texture has but one tone."""
    if texture in (SOLID, "outlined"):
        return None
    x, y = _coordinates(*size)
    angle = rng.uniform(0, np.pi)
    # A period in pixels has a floor: a finer pattern would vanish when the picture is made smaller.
    period = np.float32(max(radius * rng.uniform(0.38, 0.6), _FINEST_PERIOD_PX * SUPERSAMPLING))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    phase_u, phase_v = rng.uniform(0, 1, 2).astype(np.float32)
    u = (cos * (x - centre[0]) + sin * (y - centre[1])) / period + phase_u
    v = (cos * (y - centre[1]) - sin * (x - centre[0])) / period + phase_v
    if texture == "striped":
        inked = (u % 1) < np.float32(0.5)
    elif texture == "dotted":
        inked = ((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < np.float32(_DOT_RADIUS**2)
    else:
        inked = (np.floor(u) + np.floor(v)) % 2 < 1
    return Image.fromarray(inked.astype(np.uint8) * np.uint8(255))


def _photographed(pixels: Plane, rng: np.random.Generator) -> Image.Image:
    """Make the drawing look taken by a camera: uneven light, a little blur and sensor noise."""
    height, width = pixels.shape[:2]
    left, right = (float(end) for end in rng.uniform(*_LIGHT_RANGE_ACROSS, 2))
    top, bottom = (float(end) for end in rng.uniform(*_LIGHT_RANGE_DOWN, 2))
    across = np.linspace(left, right, width, dtype=np.float32)
    down = np.linspace(top, bottom, height, dtype=np.float32)
    lit = pixels * (across[None, :, None] * down[:, None, None])
    lit = lit + rng.normal(0, rng.uniform(0, _MAX_NOISE), (height, width, 1)).astype(np.float32)
    picture = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    if rng.random() < _BLURRED:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, _MAX_BLUR_PX)))
    return picture


def draw_demo_picture(name: str, index: int, seed: int, *, held_out: bool) -> Image.Image:
    """One picture of the demo task: number `index` of class `name`, of the shots or of the held-out pictures."""
    stream = _HELD_OUT_STREAM if held_out else _SHOTS_STREAM
    rng = np.random.default_rng([seed, stream, list(DEMO_CLASSES).index(name), index])
    size_px = PICTURE_SIZES_PX[int(rng.integers(len(PICTURE_SIZES_PX)))]
    return draw(sample_spec(DEMO_CLASSES[name], rng, size_px), rng)


def write_task(out: Path, *, shots: int = DEFAULT_SHOTS, held_out: int = DEFAULT_HELD_OUT, seed: int = 0) -> None:
    """Write the demo task: OUT/classes.txt, OUT/shots/<class>/*.png and OUT/held-out/<class>/*.png.

    The folder is written beside its place and then renamed, so that an interrupted run leaves no half of it.

    Raises:
        FileExistsError: If `out` exists.
        ValueError: If `shots` or `held_out` is negative.
    """
    if out.exists():
        msg = f"{out} exists: expected a new folder. Choose another one or pass --overwrite."
        raise FileExistsError(msg)
    for label, count in (("shots", shots), ("held_out", held_out)):
        if count < 0:
            msg = f"{label} is {count}: expected 0 or more pictures a class."
            raise ValueError(msg)
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    for folder, count in (("shots", shots), ("held-out", held_out)):
        for name in DEMO_CLASSES:
            target = partial / folder / name
            target.mkdir(parents=True)
            for index in range(count):
                picture = draw_demo_picture(name, index, seed, held_out=folder == "held-out")
                picture.save(target / f"{index:03d}.png")
    (partial / "classes.txt").write_text("".join(f"{name}\n" for name in DEMO_CLASSES), encoding="utf-8")
    partial.rename(out)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write the demo task."""
    parser = argparse.ArgumentParser(description="Draw the demo task of the shapes example.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--shots", type=int, default=DEFAULT_SHOTS, help="shots a class (default: %(default)s)")
    parser.add_argument(
        "--held-out", type=int, default=DEFAULT_HELD_OUT, help="held-out pictures a class (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every picture (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    options = parser.parse_args(arguments)
    if options.overwrite and options.out.exists():
        shutil.rmtree(options.out)
    try:
        write_task(options.out, shots=options.shots, held_out=options.held_out, seed=options.seed)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f"Wrote {len(DEMO_CLASSES)} classes of {options.shots} shots and {options.held_out} held-out pictures each.")


if __name__ == "__main__":
    main()
