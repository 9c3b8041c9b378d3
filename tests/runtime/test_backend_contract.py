"""What every engine keeps to, whichever it is."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rtx_plans import remove_plans, write_rtx_plan
from runtime_samples import LABELS, reference_logits

import calipso_runtime
from calipso_runtime.engines.build import build
from calipso_runtime.engines.options import BuildOptions
from calipso_runtime.errors import BackendError, BackendUnavailableError, BundleCorruptError

# Those that compute on any machine, both TensorRTs on stand-ins; "ort-cuda" is bound and graphs, and plug-ins are the
# last one, on other providers.
ENGINES = ("ort", "openvino", "tensorrt", "tensorrt-rtx", "bound-on-cpu", "graphs-on-cpu", "plugin-on-cpu")


def pixels(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def family(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["engine"])


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "tensorrt":
        request.getfixturevalue("gpu")
        build(tiny, BuildOptions(), report=lambda *_: None)
    elif request.param == "tensorrt-rtx":
        write_rtx_plan(request.getfixturevalue("gpu"), tiny)
    else:
        pytest.importorskip("openvino" if request.param == "openvino" else "onnxruntime")
    if request.param.endswith("-on-cpu"):
        import bound_on_cpu

        bound_on_cpu.register(monkeypatch)
    yield str(request.param)
    # The bundle is everyone's.
    remove_plans(tiny)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_it_answers_what_numpy_answers(engine: str, tiny: Path, count: int) -> None:
    with calipso_runtime.load(tiny, backend=engine) as classifier:
        tensors = np.random.default_rng(count).uniform(-1, 1, (count, 3, 16, 16)).astype(np.float32)

        np.testing.assert_allclose(classifier.logits(tensors), reference_logits(tensors), atol=1e-5, rtol=1e-5)


def test_it_gives_each_output_that_is_asked_for(engine: str, tiny: Path) -> None:
    with calipso_runtime.load(tiny, backend=engine) as classifier:
        both = classifier.run(pixels(0), ("embedding", "logits"))
        alone = classifier.embed(pixels(0))

    assert {name: values.shape for name, values in both.items()} == {"embedding": (1, 5), "logits": (1, len(LABELS))}
    np.testing.assert_array_equal(alone, both["embedding"])


def test_it_tells_its_graph_provider_and_metadata(engine: str, tiny: Path) -> None:
    with calipso_runtime.load(tiny, backend=engine) as classifier:
        assert classifier.backend == engine
        graph = {"tensorrt": "engines/sm90-", "tensorrt-rtx": "engines/rtx-sm90-"}.get(engine, "model.onnx on ")
        assert ("Stand-in GPU" if engine in ("tensorrt", "tensorrt-rtx") else "CPU") in classifier.provider
        assert f"{engine} runs {graph}" in classifier.backend_reason
        assert classifier.outputs == ("logits", "embedding")


def test_a_bare_graph_is_enough(engine: str, tiny: Path) -> None:
    with (
        calipso_runtime.load(tiny / "model.onnx", backend=engine) as bare,
        calipso_runtime.load(tiny, backend=engine) as whole,
    ):
        np.testing.assert_array_equal(bare.logits(pixels(1)), whole.logits(pixels(1)))


def test_several_threads_get_their_own_answers(engine: str, tiny: Path) -> None:
    with calipso_runtime.load(tiny, backend=engine, threads=1) as classifier:
        wanted = [classifier.logits(pixels(seed)) for seed in range(4)]
        found: dict[int, list[np.ndarray]] = {}

        def ask(seed: int) -> None:
            found[seed] = [classifier.logits(pixels(seed)) for _ in range(25)]

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for seed, answers in found.items():
        for answer in answers:
            np.testing.assert_array_equal(answer, wanted[seed])


def test_an_answer_is_not_overwritten_by_the_next(engine: str, tiny: Path) -> None:
    with calipso_runtime.load(tiny, backend=engine) as classifier:
        first = classifier.logits(pixels(0))
        kept = first.copy()
        classifier.logits(pixels(1))

    np.testing.assert_array_equal(first, kept)


def test_closed_it_says_so(engine: str, tiny: Path) -> None:
    classifier = calipso_runtime.load(tiny, backend=engine)
    classifier.close()
    classifier.close()

    with pytest.raises(BackendError, match="is closed: load the bundle again"):
        classifier.logits(pixels(0))


# Of a plan TensorRT's backend reads no graph: what it does with a damaged one is in test_tensorrt_backend.py.
@pytest.mark.parametrize("engine", ENGINES[:2], indirect=True)
def test_a_graph_that_is_none_is_corrupt(engine: str, tmp_path: Path) -> None:
    from calipso_runtime import backends
    from calipso_runtime.bundle import Bundle

    path = tmp_path / "cut.onnx"
    path.write_bytes(b"no graph at all")

    with pytest.raises(BundleCorruptError, match=r"cut\.onnx is not a graph that"):
        backends.connect(
            Bundle(path=path, model_path=path, manifest=None, digest="unchecked"), backend=engine, threads=None
        )


def test_an_engine_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "calipso_runtime.backends.openvino", raising=False)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'calipso\[openvino\]'"):
        calipso_runtime.load(tiny, backend="openvino")
