"""What no host may answer, made for all of them, each with a word that the refusal has to hold."""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from PIL import Image
from runtime_samples import picture

WIDTH = 60_000


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that says its size, and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def bad_pictures() -> Mapping[str, tuple[bytes, str]]:
    """By name: a file's content, and what Python says of it."""
    jpeg = encoded(picture("RGB", 70, 50), "JPEG")
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "zero.png": (header_of_png(0, 5), "cannot be used as a picture"),
        "wide.png": (encoded(Image.new("L", (WIDTH, 2000)), "PNG"), "too large"),
        "bomb.png": (header_of_png(WIDTH, WIDTH), "too large"),
        "empty.jpg": (b"", "cannot be used as a picture"),
        "text.jpg": (b"no picture", "cannot be used as a picture"),
    }


def two_channels() -> bytes:
    """Grey with alpha: another number of channels than a graph takes, and a picture all the same."""
    return encoded(picture("LA", 60, 40), "PNG")


def no_models(folder: Path) -> Mapping[Path, str]:
    """Files and folders that Calipso did not write."""
    folder.mkdir()
    for name, content in (("text.onnx", b"no graph"), ("photo.onnx", two_channels())):
        (folder / name).write_bytes(content)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["logits"])], "other", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(folder / "other.onnx"))
    for name, manifest in (("nothing", None), ("json", {"name": "other"}), ("no-json", "no JSON")):
        (folder / name).mkdir()
        if manifest is not None:
            text = manifest if isinstance(manifest, str) else json.dumps(manifest)
            (folder / name / "manifest.json").write_text(text)
            (folder / name / "model.onnx").write_bytes(b"no graph")
    return {
        **{folder / f"{name}.onnx": "carries no Calipso digest" for name in ("text", "photo", "other")},
        folder / "nothing": "manifest.json",
        folder / "json": "schema",
        folder / "no-json": "JSON",
    }
