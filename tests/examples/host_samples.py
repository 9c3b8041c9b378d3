"""Pictures that every host has to answer as Python does, or to refuse, and bundles that none can use."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import header_of_png
from PIL import Image, ImageCms

from calipso_runtime import load
from calipso_runtime.bundle import file_entry
from calipso_runtime.confidence import Confidence
from calipso_runtime.manifest import canonical
from calipso_runtime.prediction import rank

DATA = Path(
    os.environ.get("CALIPSO_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data" / "caltech101"
)
SIZE = (150, 110)
ROTATED = 6
# Of the largest logit: what engines differ by in fp32.
CLOSE = 1e-4
# On real photographs: what docs/hosts.md promises of C++ and of browsers.
CLOSER = 1e-5
CONFIDENCE = Confidence(temperature=0.37, unknown_below=0.9)


def photographs() -> list[Path]:
    """The real photographs, where there are any."""
    return sorted((DATA / "images").rglob("*.jpg"))


def scene(*, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """Smooth waves with some noise: what JPEG's upsampling of colours shows on."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (7 + 3 * channel) + y / (11 - 2 * channel)) for channel in range(3)]
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)).convert(mode)


def foreign_profile() -> bytes:
    """A colour profile that swaps red and green: to honour it is to change the picture."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return content.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


def plain_pictures(folder: Path) -> list[Path]:
    """Pictures with the same answer on every host, in a new folder."""
    folder.mkdir()
    exif = Image.Exif()
    exif[274] = ROTATED
    for name, settings in {
        "420.jpg": {"subsampling": 2, "quality": 60},
        "422.jpg": {"subsampling": 1, "quality": 60},
        "444.jpg": {"subsampling": 0, "quality": 95},
        "progressive.jpg": {"progressive": True},
        "rotated.jpg": {"exif": exif},
        "rotated.png": {"exif": exif},
        "profile.jpg": {"icc_profile": foreign_profile()},
        "profile.png": {"icc_profile": foreign_profile()},
        "rgb.png": {},
    }.items():
        scene().save(folder / name, **settings)
    for name, picture in {
        "grey.jpg": scene(mode="L"),
        "grey.png": scene(mode="L"),
        "opaque.png": scene(mode="RGBA"),
        "opaque-grey.png": scene(mode="LA"),
        "odd.jpg": scene(size=(101, 77)),
        "one.png": scene(size=(1, 1)),
        "high.png": scene(size=(1, 5000)),
        "wide.png": scene(size=(60_000, 3)),
    }.items():
        picture.save(folder / name)
    return sorted(folder.iterdir())


def refused_pictures(folder: Path) -> Mapping[Path, str]:
    """Pictures that no host but Python can answer, or none at all, with a word that the refusal has to hold."""
    folder.mkdir()
    transparent = scene(mode="RGBA")
    transparent.putalpha(100)
    made = {
        "transparent.png": (transparent, "transparent"),
        "transparent-grey.png": (transparent.convert("LA"), "transparent"),
        "palette.png": (scene().quantize(64), "palette"),
        "bits.png": (Image.fromarray((np.arange(4096).reshape(64, 64) * 15).astype(np.uint16)), "16 bits"),
        "black.png": (scene(mode="1"), "1 bits"),
        "cmyk.jpg": (scene(mode="CMYK"), "CMYK"),
        "large.png": (Image.new("RGB", (60_000, 2000)), "too large"),
        "whole.jpg": (scene(), ""),
        "whole.png": (scene(), ""),
    }
    for name, (picture, _) in made.items():
        picture.save(folder / name)
    words = {folder / name: word for name, (_, word) in made.items() if word}
    for name in ("whole.jpg", "whole.png"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / f"truncated-{name}").write_bytes(content[: len(content) // 2])
        words[folder / f"truncated-{name}"] = "truncated"
    for name, content, word in (
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"no picture", "no picture"),
        ("start.jpg", b"\xff\xd8", "no picture"),
        ("start.png", b"\x89PNG\r\n\x1a\n", "no picture"),
        ("zero.png", header_of_png(0, 5), "no picture"),
        ("bomb.png", header_of_png(60_000, 60_000), "too large"),
    ):
        (folder / name).write_bytes(content)
        words[folder / name] = word
    return words


def unusable_bundles(bundles: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Names of bundles in a new folder that no host can use, with what the refusal has to hold."""
    folder.mkdir()
    (folder / "nothing").mkdir()
    yield "nothing", "cannot be read"
    (folder / "other.onnx").write_bytes(b"no bundle")
    yield "other.onnx", "cannot be read"
    rewrite(Path(shutil.copytree(bundles / "any", folder / "image")), input={"name": "image"})
    yield "image", "does not take raw pixels"
    for name, content, said in (
        ("text", b"no JSON", "not a Calipso manifest"),
        ("empty", b"", "not a Calipso manifest"),
        ("list", b"[]", "not a Calipso manifest"),
        ("other", b'{"name": "other"}', "not a Calipso manifest"),
        ("newer", b'{"schema_version": 99}', "schema version 99"),
    ):
        own = Path(shutil.copytree(bundles / "any", folder / name))
        (own / "manifest.json").write_bytes(content)
        yield name, said
    for name, changed in (
        ("truncated", lambda content: content[:-1000]),
        ("edited", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    ):
        own = Path(shutil.copytree(bundles / "any", folder / name))
        (own / "model.onnx").write_bytes(changed((own / "model.onnx").read_bytes()))
        yield name, "not what its manifest says"
    # What the manifest promises, and no graph: the engine has to refuse it.
    own = Path(shutil.copytree(bundles / "any", folder / "no-graph"))
    (own / "model.onnx").write_bytes(b"no graph")
    files = json.loads((own / "manifest.json").read_text())["files"]
    rewrite(own, files={**files, "model.onnx": file_entry(own / "model.onnx")})
    yield "no-graph", "cannot be loaded"


def same_as_python(
    bundle: Path, files: Sequence[Path], found: Sequence[Mapping[str, Any]], confidence: Confidence | None = None
) -> float:
    """The worst error of a host's JSON lines, relative to the largest logit; all else has to be Python's.

    Args:
        bundle: as Python loads it.
        files: the pictures.
        found: the line of each, with all classes.
        confidence: where the host's bundle has another than Python's.
    """
    worst = 0.0
    with load(bundle, backend="ort", threads=1) as classifier:
        for path, answer in zip(files, found, strict=True):
            assert "error" not in answer, answer
            wanted = classifier.logits(str(path))
            best = rank(wanted, classifier.labels, 1, confidence or classifier.confidence)
            scores = answer["predictions"]
            assert Path(answer["image"]).name == path.name
            assert scores[0]["label"] == best.label, path
            assert scores[0]["probability"] == pytest.approx(best.probability, abs=1e-4)
            assert [score["logit"] for score in scores] == sorted((score["logit"] for score in scores), reverse=True)
            assert answer.get("unknown", False) == best.is_unknown
            by_label = {score["label"]: score["logit"] for score in scores}
            logits = np.array([by_label[label] for label in classifier.labels], np.float32)
            worst = max(worst, float(np.abs(logits - wanted).max() / np.abs(wanted).max()))
    return worst


def with_confidence(bundles: Path, folder: Path) -> Path:
    """The bundle with `CONFIDENCE`; Python refuses it, as its graph says otherwise."""
    own = Path(shutil.copytree(bundles / "any", folder))
    threshold = {"threshold": CONFIDENCE.unknown_below}
    rewrite(own, confidence={"temperature": CONFIDENCE.temperature, "unknown": threshold})
    return own


def rewrite(bundle: Path, **changes: object) -> None:
    """Change a manifest, and the digest that it carries of itself."""
    path = bundle / "manifest.json"
    document = {**json.loads(path.read_text()), **changes}
    document.pop("sha256")
    document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    path.write_text(json.dumps(document))
