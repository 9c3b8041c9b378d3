"""What the preparation of pictures in the graph is worth: levels against open_clip's transform, answers, and time.

    python -m benchmarks.pixels --photos DIR [--parts levels answers samples_ms]

Levels: every photograph of a folder, and noise of 200 sizes at which resizes go wrong. Answers: the shipped model on
the same, and on drawn shapes of many sizes. Times: JPEG bytes to label with ViT-B/32 of random weights, one thread, in
turns with the bundle of prepared images that Pillow prepares. Raw samples go to results/.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import torch
from PIL import Image

from benchmarks import RESULTS, ROOT
from benchmarks.forms import timed
from calipso_bench.contenders.eager_module import of_rebuilt
from calipso_bench.environment import commit, environment
from calipso_export import ExportConfig, export
from calipso_export.pixels import attach
from calipso_export.progress import silent
from calipso_export.rebuild import rebuild
from calipso_runtime import load
from calipso_runtime.manifest import Preprocess, read_manifest
from calipso_runtime.pixel_input import MATMUL, PixelInput
from calipso_runtime.preprocess import resize_and_crop

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = ROOT / "models" / "shapes-vit"
SHAPES = ("circle", "square", "triangle")
MODES = ("shortest", "longest", "squash")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE, NASTY = 224, 200
HELD_OUT, SIDES_PX = 20, (40, 400)
FULL_SIZE, SIZES = "ViT-B-32", ((200, 300), (480, 640), (1280, 1920))
QUALITY, SECONDS_ROUNDS = 90, 3


def main() -> int:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="others are kept")
    arguments = parser.parse_args()
    paths = sorted(arguments.photos.rglob("*.jpg"))
    path = RESULTS / "pixels.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    document |= {
        "schema_version": 1,
        "what": "the preparation of pictures in the graph: levels against Pillow's, answers, and JPEG bytes to label",
        "commits": {**document.get("commits", {}), **dict.fromkeys(arguments.parts, commit())},
        "environment": environment(),
        "model": FULL_SIZE,
    }
    with tempfile.TemporaryDirectory() as name:
        for part in arguments.parts:
            document[part] = PARTS[part](paths, Path(name))
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {path.name}")
    return 0


def all_levels(paths: list[Path], _: Path) -> list[dict[str, Any]]:
    """Of all pictures in all modes."""
    rows = []
    for what, made in pictures_of(paths).items():
        for mode in MODES:
            rows.append({"pictures": what, "mode": mode, **compared(made(), mode)})
            print(rows[-1], flush=True)
    return rows


def all_answers(paths: list[Path], folder: Path) -> list[dict[str, Any]]:
    """Of all pictures in all modes."""
    rows = []
    for mode in MODES:
        rows.append({"what": "drawn shapes", **answered(mode, folder)})
        for what, made in pictures_of(paths).items():
            rows.append({"what": what, "mode": mode, **against_eager(folder / "shapes.calipso", made())})
            print(rows[-1], flush=True)
    return rows


def pictures_of(paths: list[Path]) -> "dict[str, Callable[[], Iterator[Image.Image]]]":
    """What makes each kind of picture."""
    return {"photographs": partial(photographs, paths), "200 sizes of noise": nasty}


def photographs(paths: list[Path]) -> Iterator[Image.Image]:
    """Every photograph, decoded."""
    for path in paths:
        with Image.open(path) as image:
            image.load()
            yield image


def nasty() -> Iterator[Image.Image]:
    """Noise of sizes at which resizes go wrong: one pixel, long, tall, prime, odd, 8K."""
    named = [(1, 1), (1, 5000), (5000, 1), (4000, 3), (3, 4000), (4320, 7680), (7680, 4320), (223, 225), (225, 223)]
    rng = np.random.default_rng(0)
    drawn = [tuple(map(int, 2 * rng.integers(1, 600, 2) + 1)) for _ in range(NASTY - len(named))]
    for place, (height, width) in enumerate([*named, *drawn]):
        pixels = np.random.default_rng(place).integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield Image.fromarray(pixels)


def compared(pictures: Iterator[Image.Image], mode: str) -> dict[str, Any]:
    """Levels of both forms against Pillow's; of constant matrices for pictures of up to a megapixel."""
    config = Preprocess(size=(SIZE, SIZE), mean=MEAN, std=STD, resize_mode=mode)
    operator = session(PixelInput(), config)
    found: dict[str, Any] = {name: {"pictures": 0, "values": 0, "different": 0, "most": 0} for name in ("op", MATMUL)}
    for picture in pictures:
        try:
            wanted = resized_by_pillow(picture, config)
        except ValueError:
            # Of a picture so long nothing is left.
            continue
        pixels = np.asarray(picture.convert("RGB"))
        size = (picture.height, picture.width)
        add(found["op"], levels(operator, pixels, config), wanted)
        if picture.height * picture.width <= 1 << 20 and found[MATMUL]["pictures"] < NASTY:
            fixed = session(PixelInput(size=size, resize=MATMUL), config)
            add(found[MATMUL], levels(fixed, pixels, config), wanted)
    return found


def resized_by_pillow(picture: Image.Image, config: Preprocess) -> npt.NDArray[Any]:
    """Without the runtime's own way of cutting enormous pictures: the whole of them, as open_clip resizes."""
    if config.resize_mode != "shortest":
        return resize_and_crop(picture, config)
    short, long = sorted(picture.size)
    scaled = int(SIZE * long / short)
    high, wide = (scaled, SIZE) if picture.width <= picture.height else (SIZE, scaled)
    whole = picture.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - SIZE) / 2.0), round((high - SIZE) / 2.0)
    return np.asarray(whole.crop((left, top, left + SIZE, top + SIZE)).convert("RGB"))


def session(taken: PixelInput, config: Preprocess) -> onnxruntime.InferenceSession:
    """A graph that prepares pictures, and does nothing else."""
    image = ir.Value(name="image", shape=ir.Shape(["batch", 3, SIZE, SIZE]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Identity", [image], name="tower/Identity")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "prepared", image.shape, image.type
    graph = ir.Graph([image], node.outputs, nodes=[node], opset_imports={"": 18}, name="preparation")
    proto = ir.to_proto(attach(ir.Model(graph, ir_version=10), taken, config, casts_first=False))
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def levels(graph: onnxruntime.InferenceSession, pixels: npt.NDArray[Any], config: Preprocess) -> npt.NDArray[Any]:
    """What the graph makes of a picture, before it is normalised."""
    (images,) = graph.run(None, {"pixels": pixels[None]})
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (config.mean, config.std))
    found: npt.NDArray[Any] = np.rint((images[0] * std + mean) * 255).astype(int).transpose(1, 2, 0)
    return found


def add(row: dict[str, int], found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> None:
    """Count one picture more."""
    difference = np.abs(found - wanted.astype(int))
    row["pictures"] += 1
    row["values"] += difference.size
    row["different"] += int((difference > 0).sum())
    row["most"] = max(row["most"], int(difference.max()))


def answered(mode: str, folder: Path) -> dict[str, Any]:
    """The shipped model on drawn pictures of many sizes: what its verification measured."""
    task = folder / "task"
    if not task.is_dir():
        draw = [sys.executable, str(ROOT / "examples/shapes/draw.py"), "--out", str(task)]
        subprocess.run([*draw, "--shots", "1", "--held-out", str(HELD_OUT)], check=True, capture_output=True)
        rng = np.random.default_rng(0)
        for path in sorted((task / "held-out").rglob("*.png")):
            with Image.open(path) as image:
                width, height = map(int, rng.integers(*SIDES_PX, 2))
                image.resize((width, height), Image.Resampling.BICUBIC).save(path)
    config = ExportConfig(
        model=str(MODEL / "shapes-vit.json"),
        checkpoint=MODEL / "shapes-vit.safetensors",
        classes=tuple((task / "classes.txt").read_text(encoding="utf-8").splitlines()),
        preprocess={"resize_mode": mode},
        pixels=True,
        calip=False,
        verify_data=task / "held-out",
        output=folder / "shapes.calipso",
        overwrite=True,
    )
    _, parity = export(config)
    document = parity.document
    print(mode, document["worst"], flush=True)
    return {
        "mode": mode,
        "pictures": int(document["accuracy"]["pictures"]),
        "eager": document["accuracy"]["eager"]["top1"],
        "shipped": document["accuracy"]["shipped"]["top1"],
        "same_top1": document["worst"]["same_top1"],
        "relative_logit_error": max(each["relative_logit_error"]["max"] for each in document["by_batch"].values()),
        "median_logit_error": max(each["relative_logit_error"]["p50"] for each in document["by_batch"].values()),
    }


def against_eager(bundle: Path, pictures: Iterator[Image.Image]) -> dict[str, Any]:
    """A bundle's answers to pictures, against open_clip's own transform and model."""
    rebuilt = rebuild(
        bundle,
        read_manifest(bundle / "manifest.json"),
        checkpoint=MODEL / "shapes-vit.safetensors",
        model=str(MODEL / "shapes-vit.json"),
        progress=silent,
    )
    model = of_rebuilt(rebuilt)
    errors, margins = [], []
    with torch.inference_mode(), load(bundle, backend="ort", threads=1, keep_optimised=False) as classifier:
        for picture in pictures:
            try:
                image = model.transform(picture)
            except ValueError:
                # Of a picture so long nothing is left.
                continue
            wanted = model.module(image[None])[0][0].numpy()
            found = classifier.logits(picture)
            scale = np.abs(wanted).max()
            errors.append(float(np.abs(found - wanted).max() / scale))
            if (best := int(found.argmax())) != int(wanted.argmax()):
                margins.append(float((wanted.max() - wanted[best]) / scale))
    return {
        "pictures": len(errors),
        "same_top1": 1 - len(margins) / len(errors),
        "flip_margins": margins,
        "relative_logit_error": max(errors),
        "median_logit_error": statistics.median(errors),
    }


def times(paths: list[Path], folder: Path) -> dict[str, dict[str, list[float]]]:
    """Milliseconds from JPEG bytes to label, by size of the picture and by who prepares it."""
    bundles: dict[str, dict[str, Any]] = {"Pillow": {}, "graph, any size": {"pixels": True}}
    found: dict[str, dict[str, list[float]]] = {}
    with Image.open(paths[0]) as image:
        photo = image.convert("RGB")
    for settings in bundles.values():
        settings |= {"model": FULL_SIZE, "random_init": 0, "classes": SHAPES, "calip": False, "reference": False}
    for name, settings in bundles.items():
        export(ExportConfig(output=folder / name, **settings))
    for height, width in SIZES:
        stream = io.BytesIO()
        photo.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=QUALITY)
        content = stream.getvalue()
        fixed = {**bundles["graph, any size"], "pixels_size": f"{height}x{width}"}
        export(ExportConfig(output=folder / "fixed", overwrite=True, **fixed))
        calls: dict[str, Callable[[], Any]] = {}
        with contextlib.ExitStack() as stack:
            for name, path in (*((name, folder / name) for name in bundles), ("graph, one size", folder / "fixed")):
                classifier = stack.enter_context(load(path, backend="ort", threads=1, keep_optimised=False))
                calls[name] = partial(classifier.classify, content)
            rounds = [timed(calls, 1).samples_ms for _ in range(SECONDS_ROUNDS)]
        found[f"{width} x {height}"] = {name: [ms for each in rounds for ms in each[name]] for name in calls}
    return found


PARTS: "dict[str, Callable[[list[Path], Path], Any]]" = {
    "levels": all_levels,
    "answers": all_answers,
    "samples_ms": times,
}


if __name__ == "__main__":
    sys.exit(main())
