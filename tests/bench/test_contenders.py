"""Every contender answers like the others, or says why it cannot."""

import sys
from pathlib import Path

import numpy as np
import pytest

import calipso_runtime
from calipso_bench.contenders import BUNDLE_PREFIX, CONTENDERS, ContenderUnavailable, connect, is_bundle, names
from calipso_bench.contenders.numpy_ends import best
from calipso_bench.pictures import Pictures, gather
from calipso_bench.subject import Subject
from calipso_export.progress import silent
from calipso_runtime.backends import BACKENDS


@pytest.fixture
def subject(tiny: Path, tmp_path: Path) -> Subject:
    return Subject(tiny, tmp_path, checkpoint=None, model=None, progress=silent)


def test_the_bundle_takes_part_on_every_backend_that_the_runtime_knows() -> None:
    found = names(("eager",))

    assert found == ("eager", *(f"bundle/{backend}" for backend in BACKENDS))
    assert [is_bundle(name) for name in found][:2] == [False, True]


def test_the_bundle_takes_part_only_on_the_backends_that_are_asked_for() -> None:
    assert names(("eager",), ("ort-cuda",)) == ("eager", "bundle/ort-cuda")


def test_the_bundle_answers_through_the_runtimes_public_api(subject: Subject, tiny: Path, pictures: Pictures) -> None:
    contender = connect("bundle/ort", subject, threads=1)

    with calipso_runtime.load(tiny, backend="ort", threads=1) as classifier:
        assert np.array_equal(contender.classify(pictures.images), classifier.logits(pictures.images))
        assert np.array_equal(contender.encode(pictures.images), classifier.embed(pictures.images))
        first = classifier.classify(pictures.encoded[0], top=3)
        assert contender.answer(pictures.encoded[:1], 3) == [[score.index for score in first]]
    assert contender.exact
    assert contender.about.startswith(f"calipso {calipso_runtime.__version__}, ort runs ")


def test_a_backend_that_is_not_here_says_why(subject: Subject) -> None:
    with pytest.raises(ContenderUnavailable, match="CUDA"):
        connect("bundle/ort-cuda", subject, threads=1)


@pytest.mark.parametrize("name", CONTENDERS)
def test_without_its_package_a_rival_names_the_extra(
    name: str, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch", "openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in [module for module in sys.modules if module.startswith("calipso_bench.contenders.")]:
        monkeypatch.delitem(sys.modules, module)

    with pytest.raises(ContenderUnavailable, match=r"cannot be imported.*pip install 'calipso\["):
        connect(name, subject, threads=1)


def test_the_best_classes_come_in_order_and_ties_in_that_of_the_classes() -> None:
    logits = np.array([[0.0, 2.0, 2.0, 1.0]], np.float32)

    assert best(logits, 3) == [[1, 2, 3]]


@pytest.fixture(scope="module")
def whole(exported: Path, exported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A subject whose eager side can be rebuilt."""
    folder = tmp_path_factory.mktemp("work")
    return Subject(exported, folder, checkpoint=None, model=exported_model, progress=silent)


@pytest.fixture(scope="module")
def photos(whole: Subject) -> Pictures:
    return gather(None, 4, whole.preprocess, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ort-plain", "openvino", f"{BUNDLE_PREFIX}ort", "compile"])
def test_every_fp32_contender_answers_like_eager(name: str, whole: Subject, photos: Pictures) -> None:
    eager, other = (connect(each, whole, threads=1) for each in ("eager", name))

    np.testing.assert_allclose(other.classify(photos.images), eager.classify(photos.images), atol=2e-4)
    np.testing.assert_allclose(other.encode(photos.images), eager.encode(photos.images), atol=1e-5)
    assert other.answer(photos.encoded, 1) == eager.answer(photos.encoded, 1)
    assert other.exact
    assert other.weights_bytes > 0
    assert other.device_ms() is None
    other.close()


@pytest.mark.slow
def test_autocast_to_bf16_is_not_exact_and_about_right(whole: Subject, photos: Pictures) -> None:
    eager, half = (connect(each, whole, threads=1) for each in ("eager", "eager-bf16"))

    error = np.abs(half.classify(photos.images) - eager.classify(photos.images)).max()

    assert not half.exact
    assert 1e-5 < error < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager-fp16", "compile-fp16"])
def test_fp16_needs_a_gpu_and_says_so(whole: Subject, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ContenderUnavailable, match="float16 needs a CUDA device"):
        connect(name, whole, threads=1)


@pytest.mark.slow
def test_eager_takes_its_threads_back_from_whoever_had_the_turn_before(whole: Subject, photos: Pictures) -> None:
    import torch

    contender = connect("eager", whole, threads=2)
    torch.set_num_threads(1)

    contender.classify(photos.images)

    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_the_eager_model_comes_back_from_its_files(whole: Subject, photos: Pictures) -> None:
    import torch

    from calipso_bench.contenders.eager_module import load

    images = torch.from_numpy(photos.images)

    again, before = load(whole.eager_files()), whole.eager()

    with torch.inference_mode():
        for one, other in zip(again.module(images), before.module(images), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_the_plain_export_is_made_once_and_is_nobodys_own_time(whole: Subject) -> None:
    path = whole.plain_onnx()
    written, made_s = path.stat().st_mtime_ns, whole.made_s

    assert whole.plain_onnx() == path
    assert path.stat().st_mtime_ns == written
    assert whole.made_s == made_s > 0


@pytest.mark.slow
def test_without_the_weights_a_rival_says_which_flag_gives_them(exported: Path, tmp_path: Path) -> None:
    subject = Subject(exported, tmp_path, checkpoint=None, model=None, progress=silent)

    with pytest.raises(ContenderUnavailable, match=r"give it with --model"):
        connect("eager", subject, threads=1)


@pytest.mark.slow
def test_operations_are_counted_as_two_for_each_multiplication(whole: Subject) -> None:
    from calipso_bench.work import count

    found = count(whole)

    assert found is not None
    # The patches' product alone: 16 positions, 3 x 8 x 8 pixels, 64 channels.
    assert found["encoder_flops_per_image"] > 2 * 16 * 192 * 64
    assert found["flops_per_image"] > found["encoder_flops_per_image"]
    assert found["counted_by"] == "torch.utils.flop_counter"
