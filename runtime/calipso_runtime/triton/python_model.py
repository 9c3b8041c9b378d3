"""What Triton's Python back end runs: pictures as their files' bytes in, the bundle's classes out.

Imported by the server alone: `triton_python_backend_utils` is a part of it.
"""

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import calipso_runtime
from calipso_runtime.errors import ImageError
from calipso_runtime.manifest import POINTS, Manifest
from calipso_runtime.triton.repository import BUNDLE_FOLDER, OUTPUTS, PICTURE, UNKNOWN


class TritonPythonModel:
    """An instance of the model; the names of its methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle. What is raised here is why the server says that the model is not ready."""
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: int(each["string_value"]) for name, each in parameters.items()}
        self._top = values["top"]
        self._classifier = calipso_runtime.load(
            Path(args["model_repository"], args["model_version"], BUNDLE_FOLDER), threads=values.get("threads")
        )
        # The first call of an engine takes longest: nobody waits for it here.
        for _ in self._classifier.classify_stream([_sample(self._classifier.manifest)]):
            pass

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests that came together, computed together. One that holds an unreadable picture fails alone."""
        given = [self._triton.get_input_tensor_by_name(request, PICTURE).as_numpy() for request in requests]
        pictures = [bytes(picture) for batch in given for picture in batch.reshape(-1)]
        stream = self._classifier.classify_stream(pictures, top=self._top, batch=max(1, len(pictures)))
        answers = iter([answer for _, answer in stream])
        return [self._response([next(answers) for _ in range(batch.size)]) for batch in given]

    def finalize(self) -> None:
        """Give the engine's memory back."""
        self._classifier.close()

    def _response(self, answers: Sequence["calipso_runtime.Prediction | ImageError"]) -> Any:
        failures = [
            f"picture {place}: {answer}" for place, answer in enumerate(answers) if isinstance(answer, ImageError)
        ]
        if failures:
            return self._triton.InferenceResponse(error=self._triton.TritonError("; ".join(failures)))
        predictions = [answer for answer in answers if not isinstance(answer, ImageError)]
        arrays = {
            name: np.array(
                [[getattr(score, name) for score in prediction] for prediction in predictions],
                np.object_ if dtype == "string" else dtype,
            )
            for name, dtype in OUTPUTS
        }
        arrays[UNKNOWN] = np.array([[prediction.is_unknown] for prediction in predictions], np.bool_)
        return self._triton.InferenceResponse([self._triton.Tensor(name, values) for name, values in arrays.items()])


def _sample(manifest: Manifest) -> bytes:
    """Something that the bundle classifies: a black picture, or points, as a file's bytes."""
    if manifest.input_name == POINTS:
        stream = io.BytesIO()
        np.save(stream, np.zeros(manifest.input_shape, np.float32))
        return stream.getvalue()
    pixels = manifest.pixels
    height, width = pixels.size if pixels is not None and pixels.size is not None else manifest.preprocess.size
    return f"P6 {width} {height} 255\n".encode() + bytes(height * width * 3)
