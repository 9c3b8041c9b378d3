"""ONNX Runtime on an NVIDIA GPU: IO binding, and one CUDA graph per batch shape."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends.ort import (
    CUDA_PROVIDER,
    ORT_ERRORS,
    Ask,
    OrtBackend,
    Session,
    metadata_of,
    open_session,
    version,
)
from calipso_runtime.backends.ort_binding import BoundSession, GraphSession
from calipso_runtime.bundle import Bundle
from calipso_runtime.head.file import has_input_head, takes_token_ids

if TYPE_CHECKING:
    from typing import Self

# Before, a captured Concat read its list of inputs from memory of the host that other batches write to
# (microsoft/onnxruntime#32121): every ViT has one, and answers would be wrong after a batch of another size.
FIRST_WITH_GRAPHS = (1, 31)


class OrtCudaBackend(OrtBackend):
    """The portable graph on CUDA; single operators that CUDA lacks run on the CPU, and then no CUDA graph is captured.

    Attributes:
        device: where inputs are put.
    """

    name = "ort-cuda"
    wanted_provider = CUDA_PROVIDER
    device = "cuda"
    _bound: BoundSession | GraphSession | None

    def _open(self, model_path: Path, bundle: Bundle, *, keep: bool) -> tuple[Session, Mapping[str, str]]:
        """With CUDA graphs where onnxruntime takes them for this graph; `graph` says why not."""
        del keep
        self._open_plain = functools.partial(open_session, str(model_path), self.wanted_provider, threads=self._threads)
        self._graphs = False
        several = has_input_head(bundle) or takes_token_ids(bundle)
        why = "it has several inputs" if several else self._why_no_graphs()
        if why is None:
            try:
                session = self._open_plain(settings={"enable_cuda_graph": "1"})
            except ORT_ERRORS as error:
                # Whatever else is wrong with the file is told again without them.
                why = _first_line(error)
            else:
                self._graphs = True
                return session, metadata_of(session)
        session = self._open_plain()
        self.graph = f"{model_path.name}, without CUDA graphs ({why}),"
        return session, metadata_of(session)

    def _why_no_graphs(self) -> str | None:
        if not self._gpu.cuda_graphs:
            return "switched off"
        if tuple(map(int, version().split(".")[:2])) < FIRST_WITH_GRAPHS:
            first = ".".join(map(str, FIRST_WITH_GRAPHS))
            return f"onnxruntime {version()} can replay them wrongly; {first} is the first"
        return None

    def bind(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> "Self":
        """See `HeadBackend.bind`; the arrays are copied to the device once."""
        return self._holding(arrays)

    def _asker(self, session: Session, held: Mapping[str, npt.NDArray[np.generic]]) -> Ask:
        if self._graphs:
            self._bound = GraphSession(session, self._open_plain, self.device)
        else:
            self._bound = BoundSession(session, self.device, held=held)
        return self._bound.run

    def close(self) -> None:
        """Drop the session, its memory on the device and what was captured."""
        super().close()
        bound, self._bound = self._bound, None
        if bound is not None:
            bound.close()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
