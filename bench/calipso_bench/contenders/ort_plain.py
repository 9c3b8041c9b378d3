"""The naive ONNX export on ONNX Runtime, with its default options but the number of threads."""

from calipso_bench.contenders import ContenderUnavailable, Float32, Source, first_line
from calipso_bench.contenders.numpy_ends import PlainContender

try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as _native
except ImportError as error:
    _MESSAGE = f"onnxruntime cannot be imported ({error}): pip install 'calipso[ort]'"
    raise ContenderUnavailable(_MESSAGE) from error

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_FATAL = 4
# onnxruntime's own have no base in common but Exception.
_LOAD_ERRORS = (_native.Fail, _native.InvalidGraph, _native.InvalidArgument, _native.NotImplemented, RuntimeError)


class OrtPlain(PlainContender):
    """One session; on CUDA where a session really runs there."""

    def __init__(self, subject: Source, *, name: str, threads: int | None) -> None:
        super().__init__(subject, name=name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(self._path, options, providers=_providers())
        except _LOAD_ERRORS as error:
            message = f"onnxruntime cannot load the plain export: {first_line(error)}"
            raise ContenderUnavailable(message) from error
        # Generous: without it a session computes the heads even where only the embedding is asked for.
        self._only_what_is_asked = onnxruntime.RunOptions()
        self._only_what_is_asked.only_execute_path_to_fetches = True
        provider = self._session.get_providers()[0]
        self.about = f"torch.onnx.export on onnxruntime {onnxruntime.__version__}, {provider}, fp32"
        self.device = "cuda" if provider == _CUDA else "cpu"

    def close(self) -> None:
        """Drop the session."""
        del self._session

    def _run(self, images: Float32, output: str) -> Float32:
        answer: Float32 = self._session.run([output], {"image": images}, self._only_what_is_asked)[0]
        return answer


def _providers() -> list[tuple[str, dict[str, str]]]:
    """CUDA without TF32, which would not be fp32, where it really comes up; then the CPU."""
    from calipso_runtime.backends.ort import why_unavailable

    cuda = [(_CUDA, {"use_tf32": "0"})] if why_unavailable(_CUDA) is None else []
    return [*cuda, (_CPU, {})]
