"""What is known of the example photos: the features that heads are fitted on."""

import dataclasses

import torch

_LEAST = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoFeatures:
    """What is known of M photos.

    Attributes:
        labels: int64 [M], class index.
        contents: int64 [M], the same number for photos of the same content.
        keys: float32 [M,D], L2-normalised, averaged over the augmented views: the cache.
        plain: float32 [M,D], L2-normalised, of the photo as it is: what the search classifies.
        calip: float32 [M,2,K], CALIP's two terms before b2 and b3; [M,0,K] where CALIP is off.
        views: float32 [M,V,D], L2-normalised, of every augmented view; [M,0,D] where no head needs them.
        tokens: float32 [M,P,D], L2-normalised, of the photo as it is; [M,0,D] where CALIP's layers are not learned.
    """

    labels: torch.Tensor
    contents: torch.Tensor
    keys: torch.Tensor
    plain: torch.Tensor
    calip: torch.Tensor
    views: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 0, 0))
    tokens: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 0, 0))

    def rows(self, rows: torch.Tensor) -> "PhotoFeatures":
        """Some of the photos."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return PhotoFeatures(**{name: value[rows] if len(value) else value for name, value in values.items()})


def single_classes(labels: torch.Tensor, contents: torch.Tensor, classes: int) -> list[int]:
    """Return the classes with fewer than two different photos: held out, nothing is left of them.

    Args:
        labels: int64 [M], class index.
        contents: int64 [M], the same number for photos of the same content.
        classes: how many there are.
    """
    different = torch.unique(torch.stack([labels, contents]), dim=1)[0]
    return (torch.bincount(different, minlength=classes) < _LEAST).nonzero().flatten().tolist()
