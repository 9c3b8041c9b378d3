"""Holds a taught head in an engine to the formula in numpy, on the embeddings that the same engine gives."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calipso_runtime.backends import Backend, HeadBackend
from calipso_runtime.bundle import PARITY_FILE, Bundle
from calipso_runtime.head.classes import Head
from calipso_runtime.head.file import manifest_of
from calipso_runtime.parity import Answers, Gates, Parity, compare
from calipso_runtime.reference import BATCH_SIZES, as_given, kept_shape, read_gates, read_reference

_WANTED = ("logits", "embedding")
# Where the bundle carries no pictures: noise does to compare arithmetic.
_NOISE_PICTURES, _NOISE_SEED = 14, 0


def verify_head(engine: HeadBackend, head: Head, bundle: Bundle, *, batches: Sequence[int] = BATCH_SIZES) -> Parity:
    """Compare the logits that an engine computes with a head with those of `Head.logits`.

    Args:
        engine: of the bundle's graph.
        head: what it was taught.
        bundle: whose pictures and gates are used; noise, and the gates of fp32, where it carries none.
        batches: the batch sizes to ask.
    """
    manifest, reference = manifest_of(bundle), read_reference(bundle)
    if reference is None:
        shape = (_NOISE_PICTURES, *kept_shape(manifest))
        pixels = np.random.default_rng(_NOISE_SEED).integers(0, 256, shape, dtype=np.uint8)
        images = as_given(pixels, manifest)
        names = [f"<noise {place}>" for place in range(len(images))]
    else:
        names = list(reference.names)
        images = reference.images(range(len(names)), manifest)
    parity_path = bundle.path / PARITY_FILE
    bound: Backend = engine.bind(head.arrays())
    images = images.astype(next(each.dtype for each in bound.inputs if each.name == manifest.input_name), copy=False)
    shipped, expected = {}, None
    for batch in batches:
        parts = [bound.run(images[start : start + batch], _WANTED) for start in range(0, len(images), batch)]
        joined = {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in _WANTED}
        if expected is None:
            expected = _answers(head.logits(joined["embedding"]))
        shipped[str(batch)] = (list(range(len(names))), _answers(joined["logits"]))
    if expected is None:
        message = "no batch size to ask"
        raise ValueError(message)
    return compare(
        names,
        expected,
        shipped,
        truth=[None] * len(names),
        gates=read_gates(parity_path) if parity_path.is_file() else Gates(),
        about={
            "shipped": f"{bound.graph} through calipso_runtime, {bound.name} on {bound.provider}, as it was taught",
            "eager": f"the formula in numpy, {len(head.labels)} classes and {len(head.keys)} keys",
            "pictures": {"source": "the bundle" if reference else "noise", "count": len(names), "edge_cases": 0},
        },
        checks={},
    )


def _answers(logits: npt.NDArray[np.floating]) -> Answers:
    """Beside a single class one of logit 0: an error is relative to how far classes are apart."""
    alone = logits.shape[1] == 1
    return Answers(outputs={"logits": np.pad(logits, ((0, 0), (0, int(alone)))).astype(np.float32)})
