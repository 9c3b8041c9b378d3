"""What engines without torch share: the runtime's own preprocessing, best classes, how the plain export is asked."""

from collections.abc import Sequence

import numpy as np

from calipso_bench.contenders import Float32, Source
from calipso_runtime import pictures as decoder
from calipso_runtime.manifest import Preprocess


class PlainContender:
    """The naive ONNX export in fp32, on an engine that a subclass brings with `about`, `device` and `_run`."""

    about: str
    device: str
    exact = True

    def __init__(self, subject: Source, *, name: str) -> None:
        self.name = name
        self._path = subject.plain_onnx()
        self._preprocess = subject.preprocess
        self.weights_bytes = sum(each.stat().st_size for each in self._path.parent.glob(f"{self._path.name}*"))

    def encode(self, images: Float32) -> Float32:
        """See `Contender.encode`."""
        return self._run(images, "embedding")

    def classify(self, images: Float32) -> Float32:
        """See `Contender.classify`."""
        return self._run(images, "logits")

    def answer(self, pictures: Sequence[bytes], top: int) -> list[list[int]]:
        """See `Contender.answer`."""
        return best(self.classify(preprocessed(pictures, self._preprocess)), top)

    def device_ms(self) -> float | None:
        """None of these engines has a device clock that can be asked."""
        return None

    def _run(self, images: Float32, output: str) -> Float32:
        raise NotImplementedError


def preprocessed(pictures: Sequence[bytes], preprocess: Preprocess) -> Float32:
    """Encoded pictures -> float32 [B,3,H,W], normalised."""
    return np.stack(
        [decoder.decode(picture, preprocess, name=f"picture {place}") for place, picture in enumerate(pictures)]
    )


def best(logits: Float32, top: int) -> list[list[int]]:
    """Indices of the `top` largest logits of each row, largest first; equal ones in the order of the classes."""
    indices: list[list[int]] = np.argsort(-logits, axis=1, kind="stable")[:, :top].tolist()
    return indices
