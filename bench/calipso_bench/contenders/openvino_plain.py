"""The naive ONNX export on OpenVINO: latency hint, fp32 arithmetic."""

import functools
from typing import Any

from calipso_bench.contenders import ContenderUnavailable, Float32, Source, first_line
from calipso_bench.contenders.numpy_ends import PlainContender

try:
    import openvino
except ImportError as error:
    _MESSAGE = f"openvino cannot be imported ({error}): pip install 'calipso[openvino]'"
    raise ContenderUnavailable(_MESSAGE) from error


class OpenVinoPlain(PlainContender):
    """One compiled model per output asked for, so that encoding alone does not compute the heads."""

    def __init__(self, subject: Source, *, name: str, threads: int | None) -> None:
        super().__init__(subject, name=name)
        self._core = openvino.Core()
        self._model = self._core.read_model(self._path)
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._request = functools.lru_cache(self._new_request)
        try:
            self._request("logits")
        except RuntimeError as error:
            message = f"openvino cannot compile the plain export: {first_line(error)}"
            raise ContenderUnavailable(message) from error
        device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        version = openvino.__version__.partition("-")[0]
        self.about = f"torch.onnx.export on openvino {version}, CPU ({device}), fp32, latency hint"
        self.device = "cpu"

    def close(self) -> None:
        """Drop the compiled models."""
        self._request.cache_clear()
        del self._model, self._core

    def _new_request(self, output: str) -> Any:
        (result,) = (each for each in self._model.outputs if output in each.get_names())
        part = openvino.Model([result.get_node()], self._model.get_parameters(), output)
        return self._core.compile_model(part, "CPU", self._settings).create_infer_request()

    def _run(self, images: Float32, output: str) -> Float32:
        # The request's own buffer is overwritten by its next call.
        answer: Float32 = self._request(output).infer([images], share_inputs=True)[0].copy()
        return answer
