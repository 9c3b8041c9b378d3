"""Says what each shape of the drawn world looks like: closed outlines in a unit square around the origin.

A form is a list of outlines, each an array of (x, y) points with y pointing down and a radius of about 1. The first
outline is filled; every further one is cut out of it (a ring's hole, a key's eye).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]
_CURVE_POINTS = 40
"""Enough corners that a curve of at most 300 supersampled pixels looks round."""


def form(shape: str) -> list[Outline]:
    """The outlines of a shape.

    Raises:
        ValueError: If the shape is not one of those known here.
    """
    if shape not in _FORMS:
        msg = f"Unknown shape {shape!r}: expected one of {', '.join(sorted(_FORMS))}."
        raise ValueError(msg)
    return _FORMS[shape]()


def _arc(radius_x: float, radius_y: float, start_deg: float = 0.0, stop_deg: float = 360.0) -> Outline:
    """Points on an ellipse around the origin, clockwise from the right."""
    angles = np.radians(np.linspace(start_deg, stop_deg, _CURVE_POINTS))
    return np.stack([radius_x * np.cos(angles), radius_y * np.sin(angles)], axis=1)


def _regular(corners: int, inner: float | None = None) -> Outline:
    """A regular polygon with a corner on top; with `inner`, a star whose notches lie at that radius."""
    count = corners if inner is None else 2 * corners
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    radii = np.ones(count)
    if inner is not None:
        radii[1::2] = inner
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _polygon(*points: tuple[float, float]) -> Outline:
    return np.array(points, dtype=np.float64)


def _heart() -> Outline:
    t = np.linspace(0.0, 2 * np.pi, _CURVE_POINTS)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 16.5, -(y + 2.5) / 15.5], axis=1)


def _flower() -> Outline:
    t = np.linspace(0.0, 2 * np.pi, 2 * _CURVE_POINTS)
    radius = 0.72 + 0.28 * np.cos(5 * t)
    return np.stack([radius * np.sin(t), -radius * np.cos(t)], axis=1)


def _crescent() -> Outline:
    outer = _arc(1.0, 1.0, 60.0, 300.0)
    inner = _arc(0.5, 0.866, 300.0, 60.0)
    centred: Outline = np.concatenate([outer, inner]) + np.array([0.25, 0.0])
    return centred


def _cross() -> Outline:
    a, b = 0.32, 0.95
    return _polygon((-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a),
                    (-a, -a))  # fmt: skip


def _mushroom() -> Outline:
    cap = _arc(0.95, 0.9, 180.0, 360.0)
    stem = _polygon((0.3, 0.0), (0.36, 0.9), (-0.36, 0.9), (-0.3, 0.0))
    return np.concatenate([cap, stem])


def _fish() -> Outline:
    # The body is open on the right, where the tail joins it.
    body = _arc(0.68, 0.5, 20.0, 340.0) - np.array([0.3, 0.0])
    tail = _polygon((0.95, -0.62), (0.72, 0.0), (0.95, 0.62))
    return np.concatenate([body, tail])


def _key() -> list[Outline]:
    bow = _arc(0.45, 0.45, 20.0, 340.0) - np.array([0.5, 0.0])
    blade = _polygon((0.95, -0.15), (0.95, 0.45), (0.75, 0.45), (0.75, 0.15), (0.6, 0.15), (0.6, 0.4), (0.4, 0.4),
                     (0.4, 0.15))  # fmt: skip
    return [np.concatenate([bow, blade]), _arc(0.2, 0.2) - np.array([0.5, 0.0])]


_FORMS: dict[str, Callable[[], list[Outline]]] = {
    "circle": lambda: [_arc(0.92, 0.92)],
    "oval": lambda: [_arc(1.0, 0.55)],
    "square": lambda: [_polygon((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))],
    "triangle": lambda: [_polygon((0.0, -1.0), (0.95, 0.75), (-0.95, 0.75))],
    "star": lambda: [_regular(5, inner=0.42)],
    "pentagon": lambda: [_regular(5)],
    "hexagon": lambda: [_regular(6)],
    "diamond": lambda: [_polygon((0.0, -1.0), (0.6, 0.0), (0.0, 1.0), (-0.6, 0.0))],
    "heart": lambda: [_heart()],
    "cross": lambda: [_cross()],
    "ring": lambda: [_arc(0.95, 0.95), _arc(0.45, 0.45)],
    "crescent": lambda: [_crescent()],
    "arrow": lambda: [
        _polygon((-0.95, -0.28), (0.1, -0.28), (0.1, -0.75), (1.0, 0.0), (0.1, 0.75), (0.1, 0.28), (-0.95, 0.28))
    ],
    "semicircle": lambda: [_arc(1.0, 1.0, 180.0, 360.0) + np.array([0.0, 0.45])],
    "flower": lambda: [_flower()],
    "bolt": lambda: [_polygon((0.25, -1.0), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1.0), (0.6, -0.25), (0.05, -0.25))],
    "hourglass": lambda: [_polygon((-0.7, -1.0), (0.7, -1.0), (0.12, 0.0), (0.7, 1.0), (-0.7, 1.0), (-0.12, 0.0))],
    "fish": lambda: [_fish()],
    "mushroom": lambda: [_mushroom()],
    "house": lambda: [
        _polygon((0.0, -0.95), (0.95, -0.15), (0.7, -0.15), (0.7, 0.85), (-0.7, 0.85), (-0.7, -0.15), (-0.95, -0.15)),
        _polygon((-0.2, 0.85), (-0.2, 0.3), (0.2, 0.3), (0.2, 0.85)),
    ],
    "key": _key,
}
