"""Encoding example photos: the same bits every time, whatever else is encoded, and however often it is interrupted."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_samples import CLASSES, noise, write_shots
from PIL import Image, PngImagePlugin
from torch.nn import functional

from calipso_export.fewshot import encode
from calipso_export.fewshot.encode import encode_photos
from calipso_export.fewshot.features import PhotoFeatures
from calipso_export.fewshot.store import FeatureStore
from calipso_export.heads import calip
from calipso_export.models import LoadedModel
from calipso_export.photos import Photo, check_photos, find_photos
from calipso_export.progress import Progress, silent

Encode = Callable[..., PhotoFeatures]
TEXT = functional.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=-1)


def photos_of(folder: Path, model: LoadedModel, classes: tuple[str, ...] = CLASSES) -> tuple[Photo, ...]:
    found = find_photos(folder, classes)
    return check_photos(found, model.front_end, classes, skip_unreadable=False, progress=silent).photos


@pytest.fixture
def photos(shots: Path, vit: LoadedModel) -> tuple[Photo, ...]:
    return photos_of(shots, vit)


@pytest.fixture
def run(vit: LoadedModel, photos: tuple[Photo, ...], tmp_path: Path) -> Encode:
    """Encode the shots into a store of this test's own; keywords change what and how."""

    def encode_them(
        *,
        model: LoadedModel = vit,
        photos: tuple[Photo, ...] = photos,
        text: torch.Tensor = TEXT,
        with_calip: bool = True,
        with_views: bool = False,
        epochs: int = 3,
        seed: int = 0,
        folder: str = "store",
        progress: Progress = silent,
    ) -> PhotoFeatures:
        with FeatureStore(tmp_path / folder) as store:
            return encode_photos(
                model,
                photos,
                text,
                with_calip=with_calip,
                with_views=with_views,
                epochs=epochs,
                seed=seed,
                store=store,
                progress=progress,
            )

    return encode_them


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each batch that is really encoded from now on: the views of a photo, then the photo."""
    counts: list[int] = []
    original = encode._forward

    def count(tower: torch.nn.Module, views: torch.Tensor) -> object:
        counts.append(len(views))
        return original(tower, views)

    monkeypatch.setattr(encode, "_forward", count)
    return counts


def same(first: PhotoFeatures, second: PhotoFeatures) -> bool:
    return all(torch.equal(*pair) for pair in zip(*map(values, (first, second)), strict=True))


def values(features: PhotoFeatures) -> list[torch.Tensor]:
    return [getattr(features, field.name) for field in dataclasses.fields(features)]


def test_two_runs_are_bit_for_bit_the_same(run: Encode) -> None:
    assert same(run(folder="first"), run(folder="second"))


def test_another_seed_gives_other_keys_and_the_same_plain_features(run: Encode) -> None:
    first, second = run(), run(seed=1)

    assert not torch.isclose(first.keys, second.keys).all(dim=1).any()
    assert torch.equal(first.plain, second.plain)


def test_a_photo_does_not_depend_on_the_others(run: Encode, photos: tuple[Photo, ...]) -> None:
    everything = run()

    some = run(photos=(photos[7], photos[2]), folder="some")

    assert torch.equal(some.keys, everything.keys[[7, 2]])
    assert torch.equal(some.calip, everything.calip[[7, 2]])


def test_a_photo_does_not_depend_on_where_it_lies(run: Encode, vit: LoadedModel, tmp_path: Path) -> None:
    elsewhere = write_shots(tmp_path / "elsewhere")

    assert same(run(photos=photos_of(elsewhere, vit), folder="other store"), run())


def test_the_callers_random_numbers_are_left_alone(run: Encode) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)

    run()

    assert torch.equal(torch.rand(3), wanted)


def test_features_are_of_length_1_and_labelled(run: Encode) -> None:
    features = run()

    assert features.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for vectors in (features.keys, features.plain):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(9))
    assert features.calip.shape == (9, 2, 3)


def test_the_plain_feature_is_open_clips_of_open_clips_transform(
    run: Encode, vit: LoadedModel, photos: tuple[Photo, ...]
) -> None:
    with torch.no_grad():
        image = torch.stack([vit.transform(Image.open(photo.path)) for photo in photos])
        wanted = functional.normalize(vit.visual(image), dim=-1)

    torch.testing.assert_close(run().plain, wanted, atol=1e-6, rtol=0)


def test_without_augmentation_a_key_is_the_plain_feature(
    run: Encode, vit: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "augmentation", lambda model: model.transform)

    features = run()

    torch.testing.assert_close(features.keys, features.plain, atol=1e-6, rtol=0)


def test_a_key_is_the_mean_of_its_views_before_they_are_normalised(
    run: Encode, vit: LoadedModel, photos: tuple[Photo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    shades = [torch.full((3, 32, 32), level) for level in (-1.0, 0.2, 2.0)]
    shades[1][0, :16] = 2.0
    views = iter(shades)
    monkeypatch.setattr(encode, "augmentation", lambda _: lambda _: next(views))

    key = run(photos=photos[:1]).keys

    with torch.no_grad():
        mean = vit.visual(torch.stack(shades)).mean(dim=0, keepdim=True)
    torch.testing.assert_close(key, functional.normalize(mean, dim=-1), atol=1e-6, rtol=0)


def test_calips_terms_are_those_of_the_plain_photo(run: Encode, vit: LoadedModel, photos: tuple[Photo, ...]) -> None:
    with torch.no_grad():
        image = vit.transform(Image.open(photos[4].path)).unsqueeze(0)
        pooled, tokens = (functional.normalize(each, dim=-1) for each in vit.tower.reference(vit.visual, image))
        wanted = [
            calip.reference(pooled, tokens, TEXT, calip.CalipParameters(b2=b2, b3=1 - b2), scale=vit.scale)
            for b2 in (1.0, 0.0)
        ]

    torch.testing.assert_close(run().calip[4], torch.cat(wanted), atol=1e-4, rtol=0)


def test_without_calip_there_are_no_terms_and_the_same_keys(run: Encode) -> None:
    features = run(with_calip=False)

    assert features.calip.shape == (9, 0, 3)
    torch.testing.assert_close(features.keys, run().keys, atol=1e-6, rtol=0)


def test_a_second_run_encodes_nothing(run: Encode, encoded: list[int]) -> None:
    first = run()
    assert encoded == [3, 1] * 9
    encoded.clear()

    assert same(run(), first)
    assert encoded == []


def test_an_interrupted_run_goes_on_where_it_stopped_and_gives_the_same_bits(run: Encode, encoded: list[int]) -> None:
    whole = run(folder="whole")
    encoded.clear()

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=interrupt)
    assert encoded == [3, 1] * 4
    resumed = run()

    assert encoded == [3, 1] * 9
    assert same(resumed, whole)


def test_a_changed_photo_is_encoded_again_and_the_others_are_not(
    run: Encode, vit: LoadedModel, tmp_path: Path, encoded: list[int]
) -> None:
    folder = write_shots(tmp_path / "own")
    before = run(photos=photos_of(folder, vit))
    encoded.clear()
    noise(77).save(folder / "bee" / "0.png")

    after = run(photos=photos_of(folder, vit))

    assert encoded == [3, 1]
    assert [row for row in range(9) if not torch.equal(before.keys[row], after.keys[row])] == [3]


@pytest.mark.parametrize(
    ("changes", "again"),
    [({"epochs": 2}, [2]), ({"seed": 3}, [3]), ({"text": TEXT.flip(0)}, [1])],
    ids=["other views", "another seed", "other texts"],
)
def test_another_setting_encodes_what_depends_on_it(
    run: Encode, encoded: list[int], changes: dict[str, object], again: list[int]
) -> None:
    run()
    encoded.clear()

    run(**changes)

    assert encoded == again * 9


def test_other_weights_are_encoded_again(run: Encode, vit: LoadedModel, encoded: list[int]) -> None:
    run()

    run(model=dataclasses.replace(vit, weights={**vit.weights, "sha256": "of other weights"}))

    assert encoded == [3, 1] * 18


def odd_photos(folder: Path) -> None:
    for mode in ("L", "LA", "RGBA", "P", "1"):
        noise(3, mode=mode).save(folder / f"{mode}.png")
    noise(4, mode="CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(5).save(folder / "turned.jpg", exif=exif)
    noise(6).save(folder / "moving.gif", save_all=True, append_images=[noise(7), noise(8)])
    noise(9).quantize(16).save(folder / "palette.png", transparency=bytes([0, 128, 255]))
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 100)
    noise(10).save(folder / "text.png", pnginfo=text)


def by_open_clip(model: LoadedModel, photo: Photo) -> torch.Tensor:
    with warnings.catch_warnings(), Image.open(photo.path) as image:
        # Pillow's, about the palette with transparency: users of open_clip see it too.
        warnings.simplefilter("ignore", UserWarning)
        return model.transform(image)


def test_photos_of_every_odd_kind_are_prepared_like_open_clip(run: Encode, vit: LoadedModel, tmp_path: Path) -> None:
    for name in ("odd", "plain"):
        (tmp_path / "own" / name).mkdir(parents=True)
    odd_photos(tmp_path / "own" / "odd")
    noise(1).save(tmp_path / "own" / "plain" / "0.png")
    photos = photos_of(tmp_path / "own", vit, ("odd", "plain"))

    with torch.no_grad():
        image = torch.stack([by_open_clip(vit, photo) for photo in photos])
        wanted = functional.normalize(vit.visual(image), dim=-1)

    assert len(photos) == 11
    torch.testing.assert_close(run(photos=photos).plain, wanted, atol=1e-6, rtol=0)


def test_without_augmentation_the_photo_is_its_only_view(run: Encode) -> None:
    features = run(with_views=True, epochs=0)

    assert torch.equal(features.views, features.plain[:, None])
    assert torch.equal(features.keys, features.plain)


def test_views_are_kept_and_change_no_key(run: Encode, encoded: list[int]) -> None:
    without = run()
    first = run(with_views=True)
    asked = len(encoded)

    again = run(with_views=True)

    assert len(encoded) == asked
    assert (without.views.numel(), first.views.shape) == (0, (9, 3, 32))
    assert torch.equal(first.keys, without.keys)
    assert torch.equal(again.views, first.views)
    torch.testing.assert_close(first.views.norm(dim=-1), torch.ones(9, 3))


def test_keys_are_made_of_the_views_without_encoding_them_again(run: Encode, encoded: list[int]) -> None:
    without = run(folder="first")
    encoded.clear()

    found = run(with_views=True, folder="second")

    assert encoded == 9 * [3, 1]
    assert torch.equal(found.keys, without.keys)
