"""What a graph takes: one file per kind of input, one line each in `FRONT_ENDS`."""

from collections.abc import Callable

import torch
from PIL import Image

from calipso_export.config import ExportConfig
from calipso_export.front_ends.base import Content, FrontEnd
from calipso_export.front_ends.pictures import PicturesFrontEnd
from calipso_export.front_ends.pixels import PixelsFrontEnd
from calipso_export.front_ends.points import PointsFrontEnd
from calipso_runtime.manifest import Preprocess

__all__ = ["FRONT_ENDS", "Content", "FrontEnd", "front_end"]

Transform = Callable[[Image.Image], torch.Tensor]


def _pictures(config: ExportConfig, preprocess: Preprocess, transform: Transform) -> FrontEnd:
    taken = config.pixel_input
    if taken is None:
        return PicturesFrontEnd(preprocess, transform)
    return PixelsFrontEnd(preprocess, transform, taken)


def _points(config: ExportConfig, preprocess: Preprocess, transform: Transform) -> FrontEnd:
    del transform
    weights = config.weights_of_views
    return PointsFrontEnd(
        points=config.points,
        views=config.views,
        size=preprocess.size,
        weights=weights or (1.0,) * config.views,
        chosen={"method": "equal" if weights is None else "given"},
    )


# By the name of the traced graph's input, which is also what `--input` says.
FRONT_ENDS: dict[str, Callable[[ExportConfig, Preprocess, Transform], FrontEnd]] = {
    PicturesFrontEnd.name: _pictures,
    PointsFrontEnd.name: _points,
}


def front_end(config: ExportConfig, preprocess: Preprocess, transform: Transform) -> FrontEnd:
    """The front end that a configuration asks for."""
    return FRONT_ENDS[config.input](config, preprocess, transform)
