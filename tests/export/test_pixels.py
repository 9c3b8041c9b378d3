"""Preparing pictures in the graph: level for level open_clip's transform, on every size that anyone can think of."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pixel_samples import empty_graph, graph_of, levels, noise_pixels, open_clips, prepared, preparing

from calipso_export.lint import ERROR, tensorrt_findings
from calipso_export.pixels import attach, detach
from calipso_export.pixels.filters import is_vertical_first, split, weights
from calipso_runtime.errors import UsageError
from calipso_runtime.manifest import Preprocess
from calipso_runtime.pixel_input import CHANNEL_ORDERS, MATMUL, PILLOW_12, PILLOW_13, PixelInput, passes_of
from calipso_runtime.preprocess import resized_size

openvino = pytest.importorskip("openvino")

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("CALIPSO_REAL_DATA") or REPOSITORY.parent / "shared" / "data" / "caltech101")
MODES = ("shortest", "longest", "squash")
# What the two forms are compared on without drawing: each was wrong in some version of the graph.
SIZES = ((1, 1), (3, 2), (16, 96), (97, 89), (130, 61), (64, 64), (64, 65), (200, 99), (1, 300), (300, 1), (150, 301))

configs = st.builds(
    preparing,
    size=st.sampled_from([(32, 32), (24, 40), (41, 24)]),
    resize_mode=st.sampled_from(MODES),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill_color=st.integers(0, 255),
)
sides = st.integers(1, 200)


def agree(pixels: np.ndarray, config: Preprocess, *, most: int, **taken: object) -> None:
    try:
        wanted = open_clips(Image.fromarray(pixels), config)
    except ValueError:
        # Of a picture so long nothing is left; the runtime refuses it.
        return
    difference = np.abs(levels(pixels, config, **taken) - wanted)
    assert difference.max() <= most


@settings(max_examples=30, deadline=None)
@given(config=configs, height=sides, width=sides, seed=st.integers(0, 99))
def test_constant_matrices_give_the_levels_of_open_clip_itself(
    config: Preprocess, height: int, width: int, seed: int
) -> None:
    agree(noise_pixels(seed, height, width), config, most=0, size=(height, width), resize=MATMUL)


@settings(max_examples=40, deadline=None)
@given(config=configs, height=sides, width=sides, seed=st.integers(0, 99))
def test_the_operator_is_at_most_one_level_off(config: Preprocess, height: int, width: int, seed: int) -> None:
    agree(noise_pixels(seed, height, width), config, most=1)


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from(["shortest", "longest"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    height=st.integers(1, 63),
    width=st.integers(1, 63),
)
def test_pictures_that_grow_get_the_levels_of_open_clip_itself(
    mode: str, interpolation: str, height: int, width: int
) -> None:
    config = preparing(size=(64, 64), resize_mode=mode, interpolation=interpolation)

    agree(noise_pixels(height, height, width), config, most=0)


@pytest.mark.parametrize(("height", "width"), [(30, 400), (400, 30), (1, 64), (64, 1), (63, 65), (65, 63), (900, 63)])
def test_a_picture_that_grows_one_way_alone_gets_the_levels_of_open_clip_itself(height: int, width: int) -> None:
    config = preparing(size=(64, 64), resize_mode="squash")

    agree(noise_pixels(height, height, width), config, most=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_both_forms_agree_with_open_clip(mode: str, height: int, width: int) -> None:
    config = preparing(size=(64, 64), resize_mode=mode, fill_color=114)

    agree(noise_pixels(1, height, width), config, most=1)
    agree(noise_pixels(1, height, width), config, most=0, size=(height, width), resize=MATMUL)


def nasty_sizes(count: int) -> list[tuple[int, int]]:
    """Heights and widths at which resizes go wrong, the named ones first."""
    named = [(1, 1), (1, 5000), (5000, 1), (4000, 3), (3, 4000), (4320, 7680), (7680, 4320), (223, 225), (224, 224)]
    primes = [2, 3, 7, 13, 31, 61, 127, 223, 227, 251, 449, 509, 673, 1021, 1549, 2039]
    rng = np.random.default_rng(0)
    drawn = [tuple(map(int, rng.choice(primes, 2))) for _ in range(count)]
    odd = [tuple(map(int, 2 * rng.integers(1, 600, 2) + 1)) for _ in range(count)]
    return list(dict.fromkeys([*named, *(size for pair in zip(drawn, odd, strict=True) for size in pair)]))[:count]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_hundred_nasty_sizes_are_at_most_one_level_off(mode: str) -> None:
    config = preparing(resize_mode=mode)
    different, total = 0, 0
    sizes = nasty_sizes(200)
    assert len(sizes) == 200

    for place, (height, width) in enumerate(sizes):
        pixels = noise_pixels(place, height, width)
        try:
            wanted = open_clips(Image.fromarray(pixels), config)
        except ValueError:
            assert mode == "longest"
            continue
        difference = np.abs(levels(pixels, config) - wanted)
        assert difference.max() <= 1, (height, width)
        different, total = different + int((difference > 0).sum()), total + difference.size

    assert different / total < 5e-4


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason=f"real photographs are not at {DATA}; set CALIPSO_REAL_DATA")
@pytest.mark.parametrize("mode", MODES)
def test_real_photographs_are_at_most_one_level_off(mode: str) -> None:
    config = preparing(resize_mode=mode)
    paths = sorted((DATA / "images").rglob("*.jpg"))
    assert len(paths) == 630
    different, total = 0, 0

    for path in paths:
        with Image.open(path) as image:
            wanted, pixels = open_clips(image, config), np.asarray(image.convert("RGB"))
        difference = np.abs(levels(pixels, config) - wanted)
        assert difference.max() <= 1, path
        different, total = different + int((difference > 0).sum()), total + difference.size

    assert different / total < 2e-4


@pytest.mark.parametrize("channels", list(CHANNEL_ORDERS))
@pytest.mark.parametrize("form", [{}, {"size": (50, 70), "resize": MATMUL}])
def test_other_orders_of_channels_are_the_same_picture(channels: str, form: dict[str, object]) -> None:
    config, rgb = preparing(size=(32, 32)), noise_pixels(5, 50, 70)
    given = rgb[..., list(CHANNEL_ORDERS[channels])]
    if channels.endswith("a"):
        given = np.concatenate([given, noise_pixels(6, 50, 70, 1)], axis=2)

    found = prepared(given, config, channels=channels, **form)

    np.testing.assert_array_equal(found, prepared(rgb, config, **form))


def test_a_batch_of_several_pictures_is_what_each_is_alone() -> None:
    config, pixels = preparing(size=(32, 32)), noise_pixels(7, 3 * 50, 70).reshape(3, 50, 70, 3)
    small = pixels[:, :20, :20]
    for batch in (pixels, small):
        for form in ({}, {"size": batch.shape[1:3], "resize": MATMUL}):
            graph = graph_of(config, **form)
            session = __import__("onnxruntime").InferenceSession(graph.SerializeToString())
            together = session.run(None, {"pixels": batch})[0]
            for one, found in zip(batch, together, strict=True):
                np.testing.assert_array_equal(prepared(one, config, **form), found)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    channels=st.sampled_from(sorted(CHANNEL_ORDERS)),
    mode=st.sampled_from(MODES),
)
def test_onnx_runtimes_graph_casts_last_and_gives_the_same(height: int, width: int, channels: str, mode: str) -> None:
    config, pixels = preparing(size=(32, 32), resize_mode=mode), noise_pixels(9, height, width, len(channels))
    assume(0 not in resized_size(height, width, config))
    form = {"size": (height, width), "resize": MATMUL, "channels": channels}

    first, last = (prepared(pixels, config, casts_first=casts_first, **form) for casts_first in (True, False))

    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize("size", [(1, 64), (64, 1)])
def test_pictures_of_which_the_resize_leaves_nothing_are_refused(size: tuple[int, int]) -> None:
    config = preparing(size=(32, 32), resize_mode="longest")

    with pytest.raises(UsageError, match=rf"pictures of {size[0]}x{size[1]} \(--pixels-size\) are so long"):
        graph_of(config, size=size, resize=MATMUL)


def test_where_a_picture_shrinks_much_most_of_the_matrices_is_left_out() -> None:
    config, (height, width) = preparing(size=(64, 64), resize_mode="squash"), (1280, 1920)

    graph = graph_of(config, size=(height, width), resize=MATMUL).graph

    constants = sum(len(each.raw_data) for each in graph.initializer)
    assert constants < (64 * height + 64 * width) * 2 * 4 / 4
    assert {node.op_type for node in graph.node} >= {"MatMul", "Concat"}


@pytest.mark.parametrize("mode", MODES)
def test_openvino_computes_the_constant_matrices_exactly(mode: str) -> None:
    config, size = preparing(size=(64, 64), resize_mode=mode), (130, 201)
    pixels, core = noise_pixels(8, *size), openvino.Core()
    graph = graph_of(config, size=size, resize=MATMUL).SerializeToString()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    found = compiled({"pixels": pixels[None]})[0][0]

    np.testing.assert_allclose(found, prepared(pixels, config, size=size, resize=MATMUL), atol=1e-6)


@pytest.mark.parametrize("size", [(130, 201), (20, 31), (300, 90)])
@pytest.mark.parametrize("mode", MODES)
def test_constant_matrices_are_nothing_that_tensorrt_refuses(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    graph = graph_of(preparing(size=(64, 64), resize_mode=mode), size=size, resize=MATMUL, channels="bgra")

    findings = tensorrt_findings(graph, tmp_path)

    assert [str(each) for each in findings if each.severity == ERROR] == []


def test_the_operator_is_refused_for_tensorrt(tmp_path: Path) -> None:
    findings = tensorrt_findings(graph_of(preparing(size=(64, 64))), tmp_path)

    assert any("If" in str(each) or "Resize" in str(each) for each in findings if each.severity == ERROR)


@settings(max_examples=30, deadline=None)
@given(target=st.integers(1, 60), shrunk=st.floats(0.01, 200), filter_name=st.sampled_from(["bicubic", "bilinear"]))
def test_split_weights_are_the_weights_and_exact_in_any_engine(target: int, shrunk: float, filter_name: str) -> None:
    matrix = weights(max(1, int(target * shrunk)), target, filter_name)

    high, low, bits = split(matrix)

    np.testing.assert_array_equal(high.astype(np.int64) * 2**bits + low.astype(np.int64), matrix)
    for part in (high, low):
        assert np.abs(part).max() <= 2048
        assert np.abs(part).sum(axis=1).max() * 255 < 2**24
    # Pillow's own sums are off by a rounding per tap.
    np.testing.assert_allclose(matrix.sum(axis=1), 2**22, atol=matrix.shape[1])


def test_a_picture_that_would_become_enormous_costs_no_more_than_its_crop() -> None:
    config, size = preparing(size=(64, 64)), (1, 5000)

    agree(noise_pixels(1, *size), config, most=0)
    agree(noise_pixels(1, *size), config, most=0, size=size, resize=MATMUL)


def test_pictures_that_would_shrink_too_far_are_refused() -> None:
    with pytest.raises(UsageError, match="give a smaller pixels_size"):
        split(weights(3000, 2, "bicubic"))


def test_the_order_of_the_passes_is_that_of_the_release_of_pillow() -> None:
    assert passes_of("13.0.0") == PILLOW_13
    assert passes_of("12.2.0.post1") == PILLOW_12
    # Twice as high as wide, and a little more.
    assert is_vertical_first((1000, 499), (448, 224), PILLOW_13)
    assert not is_vertical_first((1000, 501), (447, 224), PILLOW_13)
    assert not is_vertical_first((1000, 499), (448, 224), PILLOW_12)
    assert is_vertical_first((1000, 9), (448, 224), PILLOW_12)
    # Nothing that grows.
    assert not is_vertical_first((100, 40), (560, 224), PILLOW_13)


def test_older_pillows_order_can_be_asked_for_in_both_forms() -> None:
    config, pixels = preparing(size=(32, 32)), noise_pixels(9, 200, 80)

    new, old = (levels(pixels, config, passes=passes) for passes in (PILLOW_13, PILLOW_12))
    fixed = levels(pixels, config, passes=PILLOW_12, size=(200, 80), resize=MATMUL)

    assert np.abs(new - old).max() >= 1
    assert np.abs(old - fixed).max() <= 1
    assert (old != fixed).mean() < 0.01 < (new != old).mean()


def test_detaching_gives_the_graph_from_before() -> None:
    graph = empty_graph((32, 32))

    whole = attach(graph, PixelInput(), preparing(size=(32, 32)))
    bare = detach(whole)

    assert [value.name for value in graph.graph.inputs] == ["image"]
    assert [value.name for value in bare.graph.inputs] == ["image"]
    assert [node.op_type for node in bare.graph] == ["Identity"]
    onnx.checker.check_model(ir.to_proto(bare))


def test_a_graph_of_images_is_not_detached_from_anything() -> None:
    graph = empty_graph((32, 32))

    assert [node.op_type for node in detach(graph).graph] == ["Identity"]


def test_a_graph_of_points_gets_no_pixels() -> None:
    graph = empty_graph((32, 32))
    graph.graph.inputs[0].name = "points"

    with pytest.raises(ValueError, match="begins with points"):
        attach(graph, PixelInput(), preparing(size=(32, 32)))
