"""Eager PyTorch: open_clip's own modules under inference mode, in fp32 or with autocast."""

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from calipso_bench.contenders import ContenderUnavailable, Float32, Source

try:
    import torch
    from PIL import Image

    # With what torch models are made of: importing it belongs to what eager costs.
    from calipso_bench.contenders.eager_module import EagerModel, Encoder
except ImportError as error:
    _MESSAGE = f"{error.name or error} cannot be imported: pip install 'calipso[export]'"
    raise ContenderUnavailable(_MESSAGE) from error

_MS = 1e3


class Eager:
    """fp32, on CUDA where there is one."""

    precision: ClassVar[torch.dtype | None] = None

    def __init__(self, subject: Source, *, name: str, threads: int | None) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._check_device()
        self._threads = threads
        model: EagerModel = subject.eager()
        # The subject's own module stays on the CPU: it is exported from there.
        module = model.module if self.device == "cpu" else copy.deepcopy(model.module).to(self.device)
        self.name = name
        self.exact = self.precision is None
        self.about = f"torch {torch.__version__} on {self._device_name()}, {self._precision_name()}"
        self.weights_bytes = sum(value.numel() * value.element_size() for value in module.state_dict().values())
        self._transform = model.transform
        self._classify, self._encode = self._prepared(module), self._prepared(Encoder(module.visual))
        self._device_s: float | None = None

    def encode(self, images: Float32) -> Float32:
        """See `Contender.encode`."""
        return _numpy(self._run(self._encode, torch.from_numpy(images)))

    def classify(self, images: Float32) -> Float32:
        """See `Contender.classify`."""
        return _numpy(self._run(self._classify, torch.from_numpy(images))[0])

    def answer(self, pictures: Sequence[bytes], top: int) -> list[list[int]]:
        """See `Contender.answer`."""
        images = torch.stack([self._transform(Image.open(io.BytesIO(picture))) for picture in pictures])
        logits = self._run(self._classify, images)[0]
        best: list[list[int]] = logits.topk(min(top, logits.shape[1]), dim=-1).indices.tolist()
        return best

    def device_ms(self) -> float | None:
        """Between CUDA events around the computation and the copies to and fro."""
        return None if self._device_s is None else self._device_s * _MS

    def close(self) -> None:
        """Nothing to do on the CPU, where the model belongs to the subject."""

    def _prepared(self, module: torch.nn.Module) -> Callable[[torch.Tensor], Any]:
        return module

    def _run(self, function: Callable[[torch.Tensor], Any], images: torch.Tensor) -> Any:
        # The number of threads is torch's, not the model's: another contender may have set it.
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        cast = torch.autocast(self.device, dtype=self.precision, enabled=self.precision is not None)
        with torch.inference_mode(), cast:
            if self.device == "cpu":
                return function(images)
            return self._on_cuda(function, images)

    def _on_cuda(self, function: Callable[[torch.Tensor], Any], images: torch.Tensor) -> Any:
        # TF32 keeps 10 bits of a mantissa: that would not be fp32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.precision is not None
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        answers = function(images.to(self.device))
        end.record()
        torch.cuda.synchronize()
        self._device_s = start.elapsed_time(end) / _MS
        return answers

    def _check_device(self) -> None:
        """Refuse a device that this precision is not for."""

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU"

    def _precision_name(self) -> str:
        return "fp32" if self.precision is None else f"{str(self.precision).removeprefix('torch.')} autocast"


class EagerBf16(Eager):
    """Autocast to bfloat16; without hardware for it this is slow."""

    precision = torch.bfloat16


class EagerFp16(Eager):
    """Autocast to float16 on CUDA."""

    precision = torch.float16

    def _check_device(self) -> None:
        if self.device != "cuda":
            message = "autocast to float16 needs a CUDA device: torch sees none"
            raise ContenderUnavailable(message)


def _numpy(tensor: torch.Tensor) -> Float32:
    array: Float32 = tensor.float().cpu().numpy()
    return array
