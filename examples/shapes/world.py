"""Says what the drawn world consists of: its words, its random pictures, its captions and the demo task's classes.

A picture is described by a Spec. Training pictures come from `sample_training_spec`, which never gives a
combination of the demo task; `caption` puts a Spec into words. Nothing here draws: see draw.py.
"""

from dataclasses import dataclass

import numpy as np

SHAPES = (
    "circle", "square", "triangle", "star", "pentagon", "hexagon", "diamond", "heart",
    "cross", "ring", "crescent", "arrow", "oval", "semicircle", "flower", "bolt",
)  # fmt: skip
UNSEEN_SHAPES = ("hourglass", "fish", "mushroom", "house", "key")
"""Shapes of the demo task whose form and word never occur in training."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 40),
    "orange": (240, 135, 30),
    "yellow": (240, 215, 50),
    "green": (50, 155, 60),
    "cyan": (60, 200, 205),
    "blue": (45, 80, 200),
    "purple": (130, 55, 170),
    "pink": (240, 130, 180),
    "brown": (125, 80, 45),
    "white": (240, 240, 240),
}
GROUND_COLOURS: dict[str, tuple[int, int, int]] = {**COLOURS, "black": (25, 25, 25), "grey": (130, 130, 130)}

UNSEEN_COLOURS: dict[str, tuple[int, int, int]] = {
    "maroon": (115, 15, 45),
    "olive": (120, 125, 30),
    "navy": (20, 25, 95),
    "beige": (225, 205, 165),
    "turquoise": (35, 150, 140),
    "magenta": (215, 30, 150),
}
"""Colours of the demo task whose word never occurs in training."""

SOLID = "solid"
TEXTURES = (SOLID, "striped", "dotted", "checkered", "outlined")
TEXTURE_NOUNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
PLAIN, GRADIENT, GRAINY, CLUTTERED = "plain", "gradient", "grainy", "cluttered"
GROUNDS = (PLAIN, GRADIENT, GRAINY, CLUTTERED)

SMALL_BELOW, LARGE_ABOVE = 0.24, 0.34
"""A shape's radius as a share of the picture's shorter side: below is called small, above large."""
OFF_CENTRE_ABOVE = 0.09
"""An offset from the centre, as a share of the shorter side, that a caption may mention."""
RADIUS_RANGE = (0.17, 0.42)
_REACH = 0.48
"""How far from the centre a shape may reach, as a share of the shorter side."""
TILT_RANGE_DEG = (-35.0, 35.0)
TRAINING_SIDE_PX = 96

_KNOWN_WORDS = (
    ("green", "striped", "star"), ("green", "striped", "cross"), ("green", "dotted", "star"),
    ("blue", "striped", "star"), ("red", "checkered", "heart"), ("red", "dotted", "heart"),
    ("orange", "checkered", "heart"), ("red", "checkered", "flower"), ("purple", "outlined", "hexagon"),
    ("purple", "outlined", "pentagon"), ("blue", "outlined", "hexagon"), ("purple", "checkered", "hexagon"),
    ("yellow", "dotted", "arrow"), ("yellow", "striped", "arrow"), ("orange", "dotted", "arrow"),
    ("cyan", "striped", "crescent"), ("cyan", "striped", "semicircle"), ("pink", "dotted", "ring"),
)  # fmt: skip
_NEW_SHAPES = (
    ("green", "striped", "fish"), ("green", SOLID, "house"), ("red", SOLID, "mushroom"),
    ("purple", "checkered", "hourglass"), ("yellow", SOLID, "key"), ("cyan", "dotted", "fish"),
)  # fmt: skip
_NEW_COLOURS = (
    ("maroon", "striped", "circle"), ("olive", "striped", "circle"), ("navy", "checkered", "square"),
    ("beige", "checkered", "square"), ("turquoise", "dotted", "hexagon"), ("magenta", "dotted", "hexagon"),
)  # fmt: skip
DEMO_CLASSES: dict[str, tuple[str, str, str]] = {
    " ".join(word for word in combination if word != SOLID): combination
    for combination in (*_KNOWN_WORDS, *_NEW_SHAPES, *_NEW_COLOURS)
}
"""The demo task: class name -> (colour, texture, shape). None of these combinations occurs in training."""
HELD_OUT = frozenset(DEMO_CLASSES.values())

_PLACE_NAMED, _GROUND_NAMED, _FULL_STOP = 0.4, 0.6, 0.5
"""How often a caption names the place, names the background, and ends in a full stop."""
_SIZE_NAMED, _COLOUR_NAMED, _TEXTURE_NAMED, _SOLID_NAMED = 0.5, 0.92, 0.92, 0.3
_TEXTURE_AS_NOUN, _TEXTURE_FIRST = 0.1, 0.3
"""How often it says "star with stripes", and how often "striped green" instead of "green striped"."""
_GROUND_KIND_OMITTED, _CLUTTER_AS_BITS, _WORD_BACKGROUND = 0.3, 0.3, 0.75

_TEMPLATES = (
    "a photo of {a} {s}", "a picture of {a} {s}", "a drawing of {a} {s}", "{a} {s}", "{s}", "there is {a} {s}",
    "this shows {a} {s}", "we see {a} {s}",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """One picture: what is on it, on what, how big and where.

    Attributes:
        colour: A key of COLOURS or UNSEEN_COLOURS.
        texture: One of TEXTURES.
        shape: One of SHAPES or UNSEEN_SHAPES.
        ground: One of GROUNDS.
        ground_colour: A key of GROUND_COLOURS other than colour.
        radius: The shape's radius as a share of the shorter side.
        offset: Its centre's distance (x, y) from the picture's, as a share of the shorter side; y points down.
        tilt_deg: Its rotation, clockwise.
        size_px: The picture's (width, height).
    """

    colour: str
    texture: str
    shape: str
    ground: str
    ground_colour: str
    radius: float
    offset: tuple[float, float]
    tilt_deg: float
    size_px: tuple[int, int]


def sample_spec(
    combination: tuple[str, str, str], rng: np.random.Generator, size_px: tuple[int, int] | None = None
) -> Spec:
    """A random picture of the given (colour, texture, shape)."""
    colour, texture, shape = combination
    radius = float(rng.uniform(*RADIUS_RANGE))
    free = _REACH - radius  # what the shape may move before it leaves the centre crop
    others = [name for name in GROUND_COLOURS if name != colour]
    return Spec(
        colour=colour,
        texture=texture,
        shape=shape,
        ground=GROUNDS[int(rng.integers(len(GROUNDS)))],
        ground_colour=others[int(rng.integers(len(others)))],
        radius=radius,
        offset=(float(rng.uniform(-free, free)), float(rng.uniform(-free, free))),
        tilt_deg=float(rng.uniform(*TILT_RANGE_DEG)),
        size_px=size_px or (TRAINING_SIDE_PX, TRAINING_SIDE_PX),
    )


def sample_training_spec(rng: np.random.Generator) -> Spec:
    """A random picture of the training world: any seen shape, but no combination of the demo task."""
    colours = tuple(COLOURS)
    while True:
        combination = (
            colours[int(rng.integers(len(colours)))],
            TEXTURES[int(rng.integers(len(TEXTURES)))],
            SHAPES[int(rng.integers(len(SHAPES)))],
        )
        if combination not in HELD_OUT:
            return sample_spec(combination, rng)


def caption(spec: Spec, rng: np.random.Generator) -> str:
    """Put a picture into words; each call may word it differently and may leave attributes out."""
    subject = _subject(spec, rng)
    article = "an" if subject[0] in "aeiou" else "a"
    text = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))].format(a=article, s=subject)
    place = _place(spec)
    if place and rng.random() < _PLACE_NAMED:
        text += f" {place}"
    if rng.random() < _GROUND_NAMED:
        text += f" {_ground(spec, rng)}"
    return text + ("." if rng.random() < _FULL_STOP else "")


def _subject(spec: Spec, rng: np.random.Generator) -> str:
    """The noun phrase: size, texture, colour and shape, some of them left out."""
    size = "small" if spec.radius < SMALL_BELOW else "large" if spec.radius > LARGE_ABOVE else ""
    size = size if rng.random() < _SIZE_NAMED else ""
    colour = spec.colour if rng.random() < _COLOUR_NAMED else ""
    # A caption that names no texture mostly means a solid one; sometimes the word is simply left out.
    texture_named = rng.random() < (_SOLID_NAMED if spec.texture == SOLID else _TEXTURE_NAMED)
    texture, tail = (spec.texture if texture_named else ""), ""
    style = rng.random()
    if texture in TEXTURE_NOUNS and style < _TEXTURE_AS_NOUN:
        texture, tail = "", f"with {TEXTURE_NOUNS[texture]}"
    adjectives = (texture, colour) if style > 1 - _TEXTURE_FIRST else (colour, texture)
    return " ".join(word for word in (size, *adjectives, spec.shape, tail) if word)


def _place(spec: Spec) -> str:
    """Where the shape is, in words; empty near the centre."""
    x, y = spec.offset
    column = "left" if x < -OFF_CENTRE_ABOVE else "right" if x > OFF_CENTRE_ABOVE else ""
    row = "top" if y < -OFF_CENTRE_ABOVE else "bottom" if y > OFF_CENTRE_ABOVE else ""
    words = f"{row} {column}".strip()
    return f"at the {words}" if words else ""


def _ground(spec: Spec, rng: np.random.Generator) -> str:
    """What the shape is on, in words."""
    if spec.ground == CLUTTERED and rng.random() < _CLUTTER_AS_BITS:
        return "among scattered bits"
    kind = "" if spec.ground == PLAIN or rng.random() < _GROUND_KIND_OMITTED else f"{spec.ground} "
    if rng.random() < _WORD_BACKGROUND:
        return f"on a {kind}{spec.ground_colour} background"
    return f"on {kind}{spec.ground_colour}"
