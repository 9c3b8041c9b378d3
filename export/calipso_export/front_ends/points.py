"""Point clouds: projected inside the graph into depth maps of several views, which the tower encodes as images.

Source of the method: Zhang et al., "PointCLIP: Point Cloud Understanding by CLIP", CVPR 2022; released code
ZrrSkywalker/PointCLIP, trainers/mv_utils_zs.py (6 views, distance 1.6) and mv_utils_fs.py (10 views, 1.4). As there:
the views, the perspective, the harmonic mean of the depths that meet in a pixel, and depth itself as the pixel's
value, in all three channels and not normalised, over a background of 0. With a point q of a cloud centred and scaled
to the unit sphere, the rotation R and distance d of a view, and an image of H x W:

    (x, y, z) = R q + (0, 0, d)        z > 0: depth
    row    = (x / z + 1) H / 2         column = (y / z + 1) W / 2
    k(t)   = max(0, 1 - |t| / r)       r: splat
    cover  = sum_points k(row - i - 1/2) k(column - j - 1/2)
    value  = cover min(1, cover) / sum_points k k / z

The released code rounds each point to a pixel of 128 x 128 and enlarges the map to 224 by bilinear interpolation:
the same as a tent of r = 224 / 128 around the rounded place. Here the tent stands around the place itself, so that
the map is a continuous function of the points, and two engines that round the last bit differently agree. Both
kernels are separable: the sums over points are one product of two matrices, exact on every engine, with no scatter.

The feature of a cloud is the sum of its views' normalised features times the views' weights: the logits are
PointCLIP's weighted sum of the views' logits, over the length of that sum, which is the same for all classes.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional

from calipso_export.front_ends.base import Content, Float32
from calipso_runtime.clouds import CLOUD_EXTENSIONS, tensor

# Euler angles about x and y of each view, in quarters of a turn; the one about z is a quarter turn for all. Views are
# named after the place of the eye: front is -z, right is +x, top is +y.
_SIDES = {"front": (0.0, 0.0), "left": (1.0, 0.0), "back": (2.0, 0.0), "right": (3.0, 0.0)}
_CORNERS = {
    "back-right-bottom": (2.5, -0.5),
    "back-right-top": (2.5, 0.5),
    "front-right-top": (3.5, -0.5),
    "front-right-bottom": (3.5, 0.5),
}
_ENDS = {"top": (0.0, -1.0), "bottom": (0.0, 1.0)}
VIEWS = {6: {**_SIDES, **_ENDS}, 10: {**_SIDES, **_CORNERS, **_ENDS}}
# From the centre to the eye, in radii of the cloud, as in the two released files.
DISTANCES = {6: 1.6, 10: 1.4}
# The released map is 128 pixels wide, however large the image.
_MAP_PX = 128
# What a map's sum of 1 / z is never below where a point shows at all; keeps 0 / 0 away elsewhere.
_LEAST_SUM = 1e-6
_LEAST_EXTENT, _LEAST_RADIUS = 1e-30, 0.25
_EDGE_SEED = 0


def rotations(views: int) -> torch.Tensor:
    """float64 [V,3,3]: the rotation of each view, `Rx Ry Rz`; for quarter turns exactly of 0, 1 and -1."""
    made = []
    for about_x, about_y in VIEWS[views].values():
        turns = (about_x, about_y, 1.0)
        (sx, sy, sz), (cx, cy, cz) = (
            [round(f(turn * math.pi / 2), 15) for turn in turns] for f in (math.sin, math.cos)
        )
        x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]], dtype=torch.float64)
        y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], dtype=torch.float64)
        z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]], dtype=torch.float64)
        made.append(x @ y @ z)
    return torch.stack(made)


def splat_px(size: tuple[int, int]) -> float:
    """Half the width of the tent that stands for a point; at least a pixel, so that none falls between pixels."""
    return max(1.0, min(size) / _MAP_PX)


class Projection(nn.Module):
    """Points float32 [B,P,3] -> depth maps [B*V,3,H,W] of the views that count.

    Args:
        rotation: float64 [V,3,3].
        distance: of the eye, in radii of the cloud.
        size: height and width of a map.
    """

    def __init__(self, rotation: torch.Tensor, *, distance: float, size: tuple[int, int]) -> None:
        super().__init__()
        self.rotation = nn.Parameter(rotation.float()[None, :, None], requires_grad=False)
        self.distance, self.size, self.splat = distance, size, splat_px(size)
        height, width = size
        self.rows = nn.Parameter(torch.arange(height) + 0.5, requires_grad=False)
        self.columns = nn.Parameter(torch.arange(width) + 0.5, requires_grad=False)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """See the module."""
        height, width = self.size
        # Not a matrix product: GPUs may round the factors of one to 10 bits, a tenth of a pixel.
        seen = (unit(points)[:, None, :, None] * self.rotation).sum(dim=-1)
        depth = seen[..., 2:] + self.distance
        rows = self._tent((seen[..., :1] / depth + 1) * (height / 2) - self.rows)
        columns = self._tent((seen[..., 1:2] / depth + 1) * (width / 2) - self.columns)
        sums = rows.transpose(2, 3) @ torch.cat([columns, columns / depth], dim=-1)
        cover, inverse = sums[..., :width], sums[..., width:]
        maps = cover * cover.clamp(max=1.0) / inverse.clamp(min=_LEAST_SUM)
        return maps.reshape(-1, 1, height, width).expand(-1, 3, -1, -1)

    def _tent(self, off: torch.Tensor) -> torch.Tensor:
        return functional.relu(1 - off.abs() / self.splat)


def unit(points: torch.Tensor) -> torch.Tensor:
    """Clouds [B,P,3] with their mean at the origin and their farthest point at distance 1; one point alone at 0."""
    # Differences first: far from the origin, sums of coordinates would round away the cloud itself.
    points = points - points[:, :1]
    points = points / points.abs().amax(dim=(1, 2), keepdim=True).clamp(min=_LEAST_EXTENT)
    points = points - points.mean(dim=1, keepdim=True)
    # The first point and another are at least 1 apart by now, so one of them is 1/2 from the mean; or all are equal.
    return points / points.square().sum(dim=2, keepdim=True).amax(dim=1, keepdim=True).sqrt().clamp(min=_LEAST_RADIUS)


class Views(nn.Module):
    """Features of all views -> of the clouds: (global [B*V,D], tokens [B*V,P,D]) -> ([B,D], [B,V*P,D]).

    Args:
        weights: float32 [V], that sum to 1.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights[:, None], requires_grad=False)

    def forward(self, pooled: torch.Tensor, tokens: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See the class."""
        views, width = len(self.weights), pooled.shape[-1]
        feature = (functional.normalize(pooled, dim=-1).reshape(-1, views, width) * self.weights).sum(dim=1)
        return feature, None if tokens is None else tokens.reshape(-1, views * tokens.shape[1], width)


def reference_maps(
    points: torch.Tensor, rotation: torch.Tensor, *, distance: float, size: tuple[int, int]
) -> torch.Tensor:
    """The formulas of this file in double, point by point over the pixels that it touches: [B,P,3] -> [B*V,H,W]."""
    points = points.double()
    points = points - points[:, :1]
    points = points - points.mean(dim=1, keepdim=True)
    radius = points.norm(dim=2).amax(dim=1)[:, None, None]
    points = torch.where(radius > 0, points / radius, 0.0)
    seen = torch.einsum("vij,bpj->bvpi", rotation, points).flatten(0, 1)
    depth = seen[..., 2] + distance
    height, width = size
    splat = splat_px(size)
    row, column = (seen[..., 0] / depth + 1) * height / 2, (seen[..., 1] / depth + 1) * width / 2
    cover = torch.zeros(len(seen), height * width, dtype=torch.float64)
    inverse = torch.zeros_like(cover)
    reach = math.ceil(splat) + 1
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            i, j = row.floor() + down, column.floor() + right
            share = (1 - (row - i - 0.5).abs() / splat).clamp(min=0) * (1 - (column - j - 0.5).abs() / splat).clamp(
                min=0
            )
            share = torch.where((i >= 0) & (i < height) & (j >= 0) & (j < width), share, 0.0)
            pixel = (i.clamp(0, height - 1) * width + j.clamp(0, width - 1)).long()
            cover.scatter_add_(1, pixel, share)
            inverse.scatter_add_(1, pixel, share / depth)
    maps = torch.where(cover > 0, cover * cover.clamp(max=1.0) / inverse, 0.0)
    return maps.reshape(-1, height, width)


class PointsFrontEnd:
    """See `FrontEnd`.

    Args:
        points: of one cloud in the graph.
        views: 6 or 10.
        size: height and width of the tower's images.
        weights: of the views, at least 0 and not all 0; those of weight 0 are not encoded.
        chosen: how the weights were chosen, for the manifest.
    """

    name: ClassVar[str] = "points"
    extensions: ClassVar[frozenset[str]] = CLOUD_EXTENSIONS
    is_augmented: ClassVar[bool] = False

    def __init__(
        self,
        *,
        points: int,
        views: int,
        size: tuple[int, int],
        weights: Sequence[float],
        chosen: dict[str, Any] | None = None,
    ) -> None:
        self.points, self.views, self.size = points, views, size
        self.weights = tuple(weights)
        self.chosen = chosen or {"method": "equal"}
        self._used = [place for place, weight in enumerate(self.weights) if weight > 0]
        given = torch.tensor([self.weights[place] for place in self._used], dtype=torch.float64)
        self._shares = given / given.sum()
        self._rotation = rotations(views)[self._used]

    @property
    def shape(self) -> tuple[int, ...]:
        """[P,3]."""
        return (self.points, 3)

    @property
    def images(self) -> int:
        """One per view that counts."""
        return len(self._used)

    def modules(self) -> tuple[nn.Module | None, nn.Module | None]:
        """Depth maps before the tower, weighted views after it."""
        projection = Projection(self._rotation, distance=DISTANCES[self.views], size=self.size)
        return projection, Views(self._shares.float())

    def attached(self, graph: ir.Model, *, casts_first: bool = True) -> ir.Model:  # noqa: ARG002
        """Nothing is missing."""
        return graph

    def shown(self, content: Content) -> Content:
        """Itself."""
        return content

    def given(self, content: Content, *, name: str) -> Float32:
        """See `FrontEnd.given`."""
        return tensor(content, self.points, name=name)

    def carried(self, content: Content, *, name: str) -> npt.NDArray[Any]:
        """The cloud as it is given to the graph."""
        return self.given(content, name=name)

    def eager_input(self, content: Content) -> torch.Tensor:
        """As the runtime reads it: there is no other reader of these files to compare with."""
        return torch.from_numpy(self.given(content, name="points"))

    def eager_images(self, batch: torch.Tensor) -> torch.Tensor:
        """Depth maps by `reference_maps`."""
        maps = reference_maps(batch, self._rotation, distance=DISTANCES[self.views], size=self.size)
        return maps.float()[:, None].expand(-1, 3, -1, -1)

    def eager_feature(self, pooled: torch.Tensor) -> torch.Tensor:
        """The weighted sum over a cloud's views."""
        features = functional.normalize(pooled.double(), dim=-1).reshape(-1, self.images, pooled.shape[-1])
        return torch.einsum("v,bvd->bd", self._shares, features).float()

    def edge_cases(self) -> dict[str, Content]:
        """Of no extent, of every size and place that float32 can hold, and of other numbers of points."""
        generator = np.random.default_rng(_EDGE_SEED)

        def noise(count: int, *, scale: float = 1.0, offset: float = 0.0) -> Float32:
            return (generator.standard_normal((count, 3)) * scale + offset).astype(np.float32)

        line = np.linspace(0, 1, self.points, dtype=np.float32)[:, None] * np.array([1, 2, 3], np.float32)
        plane = noise(self.points) * np.array([1, 1, 0], np.float32)
        outlier = noise(self.points)
        outlier[-1] = 1e4
        return {
            "noise": noise(self.points),
            "all points equal": np.full((self.points, 3), 0.3, np.float32),
            "one point": noise(1),
            "two points": noise(2),
            "few points": noise(max(1, self.points // 3)),
            "many points": noise(3 * self.points + 1),
            "line": line,
            "plane": plane,
            "outlier": outlier,
            "far away": noise(self.points, offset=1e4),
            "tiny": noise(self.points, scale=1e-12),
            "huge": noise(self.points, scale=1e12),
        }

    def as_json(self) -> dict[str, Any]:
        """Points and views, with what they are projected by."""
        return {
            "name": self.name,
            "points": self.points,
            "range": "any finite coordinates; centred and scaled to the unit sphere inside the graph",
            "views": list(VIEWS[self.views]),
            "view_weights": list(self.weights),
            "weights_chosen": self.chosen,
            "distance": DISTANCES[self.views],
            "splat_px": splat_px(self.size),
        }
