"""Shots: a folder of example photos, or a file of ready keys -> the cache's keys."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from calipso_export.config import ExportConfig
from calipso_export.fewshot.encode import encode_photos
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.store import FeatureStore
from calipso_export.files import PARSING_ERRORS
from calipso_export.heads import candidates, few_shot_class
from calipso_export.models import LoadedModel
from calipso_export.photos import Photos
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.steps.prompt import TextFeatures
from calipso_runtime.caching import cache_folder
from calipso_runtime.errors import ShotsError


class EncodeShots:
    """Encode the example photos; without any, there are features of zero photos."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel, TextFeatures, Photos)
    ensures: ClassVar[tuple[type, ...]] = (PhotoFeatures,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, text = made[ExportConfig], made[TextFeatures].values
        model, photos = made[LoadedModel], made[Photos].photos
        if not photos:
            made.add(_ready_keys(config, text) if config.cache_file and config.cache else no_features(text))
            return
        with FeatureStore(config.feature_cache or cache_folder()) as store:
            features = encode_photos(
                model,
                photos,
                text,
                with_calip=config.uses_calip and model.why_no_tokens is None,
                with_tokens=config.calip_fs,
                with_keys=config.cache and config.epochs > 0,
                with_views=config.cache and any(few_shot_class(name).with_views for name in candidates(config.head)),
                epochs=config.epochs,
                seed=config.seed,
                store=store,
                progress=progress,
            )
        made.add(features)


def no_features(text: torch.Tensor) -> PhotoFeatures:
    """Those of no photos.

    Args:
        text: float32 [K,D], of the classes.
    """
    classes, width = text.shape
    nothing = torch.empty(0, width)
    return PhotoFeatures(
        labels=torch.empty(0, dtype=torch.int64),
        contents=torch.empty(0, dtype=torch.int64),
        keys=nothing,
        plain=nothing,
        calip=torch.empty(0, 0, classes),
    )


def _read_arrays(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, float32, and labels, int64, of a `.npz`."""
    try:
        # Opened here: NumPy does not close a file that turns out to be no archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            keys, labels = arrays["keys"], arrays["labels"]
    except PARSING_ERRORS as error:
        message = f"{path} is not a readable .npz with `keys` and `labels`: {error}"
        raise ShotsError(message) from error
    if not np.issubdtype(keys.dtype, np.floating) or not np.issubdtype(labels.dtype, np.integer):
        message = f"{path} has keys of {keys.dtype} and labels of {labels.dtype}: expected floats and integers"
        raise ShotsError(message)
    return torch.from_numpy(keys.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


def _ready_keys(config: ExportConfig, text: torch.Tensor) -> PhotoFeatures:
    """Read a `.npz` of `keys` [M,D] and `labels` [M], and check it against the classes and the model."""
    path = Path(str(config.cache_file))
    keys, labels = _read_arrays(path)
    classes, width = text.shape
    if keys.ndim != 2 or keys.shape[1] != width or labels.shape != keys.shape[:1]:  # noqa: PLR2004
        message = f"{path} has keys {list(keys.shape)} and labels {list(labels.shape)}: expected [M,{width}] and [M]"
        raise ShotsError(message)
    if not bool(torch.isfinite(keys).all()) or not bool((keys.norm(dim=1) > 0).all()):
        message = f"{path} has keys that are NaN, infinite or all zero"
        raise ShotsError(message)
    if sorted(set(labels.tolist())) != list(range(classes)):
        message = f"{path} must hold at least one key of each of the {classes} classes, labelled 0 to {classes - 1}"
        raise ShotsError(message)
    order = labels.argsort(stable=True)
    keys = functional.normalize(keys[order], dim=-1)
    return PhotoFeatures(
        labels=labels[order],
        contents=torch.arange(len(keys)),
        keys=keys,
        plain=keys,
        calip=torch.empty(len(keys), 0, classes),
    )
