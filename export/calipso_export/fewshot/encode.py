"""Example photos -> cache keys, and what the search for the parameters needs.

A photo is encoded in batches of its own: its augmented views, and the photo as it is. So its
features never depend on its neighbours, and a resumed run gives the same bits as a fresh one. The
views do not depend on the classes' texts either: other prompts cost one view per photo, not eleven.

Source of the recipe: Tip-Adapter's released code: RandomResizedCrop (scale 0.5 to 1, bicubic) and a
horizontal flip; the features are averaged over the epochs before they are normalised.
"""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch.nn import functional

from calipso_export.clip import transforms
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.store import FeatureStore, key_of
from calipso_export.heads import calip
from calipso_export.models import LoadedModel
from calipso_export.photos import Photo, opened
from calipso_export.progress import Progress, track
from calipso_runtime.errors import ShotsError

_CROP_SCALE = (0.5, 1.0)
# A new number whenever the same photo would get other features: old entries are then not used.
_RECIPE = 2
# Packages that decide a photo's pixels and features.
_VERSIONED = ("torch", "torchvision", "open_clip_torch", "pillow")
_GIB = 2**30
# Of all photos together; a batch in training comes on top (docs/methods.md).
MOST_TOKEN_BYTES = 4 * _GIB


def encode_photos(
    model: LoadedModel,
    photos: tuple[Photo, ...],
    text: torch.Tensor,
    *,
    with_calip: bool,
    with_keys: bool = True,
    with_views: bool = False,
    with_tokens: bool = False,
    epochs: int,
    seed: int,
    store: FeatureStore,
    progress: Progress,
) -> PhotoFeatures:
    """Encode photos one by one; what is in the store is not encoded again.

    Args:
        model: the model.
        photos: the photos.
        text: float32 [K,D], L2-normalised text features, for CALIP's terms.
        with_calip: whether the terms are needed.
        with_keys: whether the keys are; without, no augmented view is encoded, and they are the plain features.
        with_views: whether the features of every augmented view are.
        with_tokens: whether the tokens of the photos as they are; without, none are kept.
        epochs: augmented views per photo; 0 takes the photo as it is.
        seed: of the augmentation.
        store: where features are kept.
        progress: told after each photo.

    Raises:
        ShotsError: the tokens of so many photos would not fit into `MOST_TOKEN_BYTES`.
    """
    # A photo that is not augmented is the only view of itself: then neither keys nor views are encoded apart.
    is_augmented = model.front_end.is_augmented and epochs > 0
    own_keys, own_views = (asked and is_augmented for asked in (with_keys, with_views))
    classes, width = text.shape
    terms = 2 if with_calip else 0
    tower = model.tower(model.visual, with_tokens=False).eval()
    token_tower = _Encoder(model, with_tokens=with_calip or with_tokens).eval()
    augment = augmentation(model)
    weight = (model.scale * text).T.contiguous()
    about = {
        "recipe": _RECIPE,
        "weights": model.weights["sha256"],
        # The same tensors are another model with another activation or number of heads.
        "architecture": model.architecture,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
        "preprocess": dataclasses.asdict(model.preprocess),
        **({} if model.front_end.is_augmented else {"front_end": model.front_end.as_json()}),
    }
    text_sha256 = hashlib.sha256(text.numpy().tobytes()).hexdigest() if with_calip else None
    rows = torch.empty(len(photos), 2 * width + terms * classes)
    views = torch.empty(len(photos), epochs if own_views else 0, width)
    positions = _positions(token_tower, model, len(photos)) if with_tokens else 0
    tokens = torch.empty(len(photos), positions, width)
    for index, photo in enumerate(track(photos, "encoding photos", progress)):
        row = rows[index]
        encoded = partial(_views, tower, photo, augment, epochs=epochs, seed=seed)
        augmented = {"photo": photo.sha256, "epochs": epochs, "seed": seed}
        if own_views:
            kept = _kept(store, key_of(**about, **augmented, views=True), epochs * width, encoded)
            views[index] = kept.reshape(epochs, width)
            encoded = partial(torch.Tensor.flatten, views[index])
        if own_keys:
            row[:width] = _kept(store, key_of(**about, **augmented), width, partial(_key, encoded, width))
        row[width:] = _kept(
            store,
            key_of(**about, photo=photo.sha256, text=text_sha256),
            width + terms * classes,
            partial(_plain, token_tower, photo, model, weight if with_calip else None),
        )
        if with_tokens:
            encoded = partial(_tokens, token_tower, photo, model)
            kept = _kept(store, key_of(**about, photo=photo.sha256, tokens=True), positions * width, encoded)
            tokens[index] = kept.reshape(positions, width)
    plain = rows[:, width : 2 * width].contiguous()
    contents = {photo.sha256: index for index, photo in enumerate(photos)}
    return PhotoFeatures(
        labels=torch.tensor([photo.label for photo in photos], dtype=torch.int64),
        contents=torch.tensor([contents[photo.sha256] for photo in photos], dtype=torch.int64),
        keys=rows[:, :width].contiguous() if own_keys else plain,
        plain=plain,
        calip=rows[:, 2 * width :].reshape(len(photos), terms, classes),
        views=plain[:, None] if with_views and not own_views else functional.normalize(views, dim=-1),
        tokens=tokens,
    )


class _Encoder(torch.nn.Module):
    """What a graph has before its heads: input -> (global, tokens)."""

    def __init__(self, model: LoadedModel, *, with_tokens: bool) -> None:
        super().__init__()
        self.projection, self.views = model.front_end.modules()
        self.tower = model.tower(model.visual, with_tokens=with_tokens)

    def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        pooled, tokens = self.tower(given if self.projection is None else self.projection(given))
        return (pooled, tokens) if self.views is None else self.views(pooled, tokens)


def augmentation(model: LoadedModel) -> transforms.Compose:
    """PIL image -> one augmented view, float32 [3,H,W]."""
    settings = model.preprocess
    interpolation = transforms.InterpolationMode(settings.interpolation)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(settings.size, scale=_CROP_SCALE, interpolation=interpolation),
            transforms.RandomHorizontalFlip(),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(settings.mean, settings.std),
        ]
    )


def _kept(store: FeatureStore, key: str, length: int, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """A vector out of the store, made and kept where it is not there yet."""
    kept = store.get(key, length)
    if kept is not None:
        return torch.from_numpy(kept)
    made = make()
    store.put(key, made.numpy())
    return made


def views_of(photo: Photo, augment: transforms.Compose, *, epochs: int, seed: int) -> torch.Tensor:
    """[epochs,3,H,W]: augmented views, drawn from the seed and the photo's content."""
    with torch.random.fork_rng(devices=[]), opened(photo.path) as image:
        torch.manual_seed(int(key_of(seed=seed, photo=photo.sha256)[:15], 16))
        return torch.stack([augment(image) for _ in range(epochs)])


@torch.no_grad()
def _forward(tower: torch.nn.Module, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    return cast("tuple[torch.Tensor, torch.Tensor | None]", tower(views))


def _views(
    tower: torch.nn.Module, photo: Photo, augment: transforms.Compose, *, epochs: int, seed: int
) -> torch.Tensor:
    """The features of the photo's augmented views, before they are normalised, [epochs * D]."""
    pooled, _ = _forward(tower, views_of(photo, augment, epochs=epochs, seed=seed))
    return pooled.flatten()


def _key(encoded: Callable[[], torch.Tensor], width: int) -> torch.Tensor:
    """The photo's key [D]."""
    return functional.normalize(encoded().reshape(-1, width).mean(dim=0), dim=-1)


def _plain(tower: torch.nn.Module, photo: Photo, model: LoadedModel, weight: torch.Tensor | None) -> torch.Tensor:
    """The photo's feature, then CALIP's terms where there is a weight for them: [D + 2K] or [D]."""
    pooled, tokens = _forward(tower, model.front_end.eager_input(photo.path).unsqueeze(0))
    feature = functional.normalize(pooled, dim=-1)
    parts = [feature]
    if tokens is not None and weight is not None:
        parts += calip.terms(feature, functional.normalize(tokens, dim=-1), weight, scale=model.scale)
    return torch.cat([part.flatten() for part in parts])


def _tokens(tower: torch.nn.Module, photo: Photo, model: LoadedModel) -> torch.Tensor:
    """The photo's tokens, [P * D]."""
    _, tokens = _forward(tower, model.front_end.eager_input(photo.path).unsqueeze(0))
    return functional.normalize(cast("torch.Tensor", tokens), dim=-1).flatten()


def _positions(tower: torch.nn.Module, model: LoadedModel, photos: int) -> int:
    """How many tokens a photo has, if those of all photos may be kept."""
    _, tokens = _forward(tower, torch.zeros(1, *model.front_end.shape))
    _, positions, width = cast("torch.Tensor", tokens).shape
    needed = 4 * photos * positions * width
    if needed > MOST_TOKEN_BYTES:
        message = (
            f"CALIP-FS is trained on every token of every photo: {photos} photos of {positions} tokens of {width} "
            f"numbers take {needed / _GIB:.1f} GiB of memory, of which there may be {MOST_TOKEN_BYTES / _GIB:g}. Give "
            "fewer photos, or leave out --calip-fs"
        )
        raise ShotsError(message)
    return positions
