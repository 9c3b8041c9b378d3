"""The C++ program, built with sanitisers: what it prints is what Python prints, and what it refuses is told.

ONNX Runtime's headers and library are found through ONNXRUNTIME_ROOT, or where the system has them.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from host_samples import (
    CLOSE,
    CLOSER,
    CONFIDENCE,
    DATA,
    photographs,
    plain_pictures,
    refused_pictures,
    same_as_python,
    scene,
    unusable_bundles,
    with_confidence,
)

SOURCES = Path(__file__).resolve().parents[2] / "examples" / "cpp"
# A leak, a use after free or an overflow ends the program with an error.
SANITISED = "-fsanitize=address,undefined -fno-sanitize-recover=all"
ALL_CLASSES = ("--top", "99", "--threads", "1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no CMake or no C++ compiler"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    # Every warning is an error here.
    configure = ["cmake", "-S", SOURCES, "-B", folder, f"-DCMAKE_CXX_FLAGS=-Werror {SANITISED}"]
    configured = subprocess.run(configure, capture_output=True, text=True, check=False)
    if configured.returncode != 0:
        pytest.skip(f"what it is built with is not all here (ONNXRUNTIME_ROOT): {configured.stderr[:500]}")
    built = subprocess.run(["cmake", "--build", folder], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "calipso-pixels"


def run(program: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def lines(result: "subprocess.CompletedProcess[str]") -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason=f"real photographs are not at {DATA}; set CALIPSO_REAL_DATA")
def test_real_photographs_get_python_s_labels_and_logits(program: Path, pixel_bundles: Path) -> None:
    files = photographs()
    assert len(files) == 630

    result = run(program, *ALL_CLASSES, pixel_bundles / "any", *files)

    assert (result.returncode, result.stderr) == (0, "")
    assert same_as_python(pixel_bundles / "any", files, lines(result)) < CLOSER


def test_every_kind_of_plain_picture_gets_python_s_answer(program: Path, pixel_bundles: Path, tmp_path: Path) -> None:
    files = plain_pictures(tmp_path / "pictures")

    result = run(program, *ALL_CLASSES, pixel_bundles / "any", *files)

    assert (result.returncode, result.stderr) == (0, "")
    assert same_as_python(pixel_bundles / "any", files, lines(result)) < CLOSE


def test_pictures_that_cannot_be_answered_are_told_and_answers_go_on(
    program: Path, pixel_bundles: Path, tmp_path: Path
) -> None:
    refused, plain = refused_pictures(tmp_path / "refused"), plain_pictures(tmp_path / "plain")

    result = run(program, *ALL_CLASSES, pixel_bundles / "any", *refused, tmp_path / "missing.png", plain[0])

    assert result.returncode == 1
    *errors, missing, summary = result.stderr.splitlines()
    for (path, word), error in zip(refused.items(), errors, strict=True):
        assert error.startswith(f"error: {path} ")
        assert word in error
    assert "missing.png cannot be read" in missing
    assert summary == f"error: {len(refused) + 1} of {len(refused) + 2} pictures could not be answered"
    assert same_as_python(pixel_bundles / "any", plain[:1], lines(result)) < CLOSE


def test_bundles_that_cannot_be_used_are_told(program: Path, pixel_bundles: Path, tmp_path: Path) -> None:
    for name, said in unusable_bundles(pixel_bundles, tmp_path / "unusable"):
        result = run(program, tmp_path / "unusable" / name, "picture.png")

        assert (result.returncode, result.stdout) == (1, ""), name
        assert said in result.stderr
        assert str(tmp_path / "unusable" / name) in result.stderr


def test_bundles_of_any_labels_and_of_taught_heads_are_told_to_be_python_s(
    program: Path, bundles_for_python: dict[str, Path]
) -> None:
    for kind, bundle in bundles_for_python.items():
        result = run(program, bundle, "picture.png")

        assert (result.returncode, result.stdout) == (1, ""), kind
        assert f'{bundle / "manifest.json"} has a head of kind "{kind}"' in result.stderr
        assert "for Python alone" in result.stderr


def test_a_graph_of_one_size_takes_rgba_and_refuses_other_sizes(
    program: Path, pixel_bundles: Path, tmp_path: Path
) -> None:
    good, other = tmp_path / "good.png", tmp_path / "other.png"
    scene(size=(128, 96)).save(good)
    scene(size=(96, 128)).save(other)

    result = run(program, *ALL_CLASSES, pixel_bundles / "fixed", good, other)

    assert result.returncode == 1
    assert same_as_python(pixel_bundles / "fixed", [good], lines(result)) < CLOSE
    assert f"{other} is 96 x 128: this graph takes pictures of 128 x 96 alone" in result.stderr


def test_the_bundle_s_temperature_and_unknown_pictures_are_told(
    program: Path, pixel_bundles: Path, tmp_path: Path
) -> None:
    bundle = with_confidence(pixel_bundles, tmp_path / "confident")
    files = plain_pictures(tmp_path / "pictures")

    found = lines(run(program, *ALL_CLASSES, bundle, *files))

    assert same_as_python(pixel_bundles / "any", files, found, CONFIDENCE) < CLOSE
    assert any(answer["unknown"] for answer in found)


def test_times_and_the_number_of_classes_are_given_on_request(
    program: Path, pixel_bundles: Path, tmp_path: Path
) -> None:
    (file, *_) = plain_pictures(tmp_path / "pictures")

    (short,) = lines(run(program, "--top", 2, "--times", pixel_bundles / "any", file))
    (usual,) = lines(run(program, pixel_bundles / "any", file))

    assert set(short) == {"image", "predictions", "times"}
    assert short["predictions"] == usual["predictions"][:2]  # type: ignore[index]
    assert len(usual["predictions"]) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [(), ("bundle",), ("--top", "0", "b", "p"), ("--top", "x", "b", "p"), ("b", "p", "--threads")]
)
def test_bad_usage_exits_2(program: Path, arguments: tuple[str, ...]) -> None:
    result = run(program, *arguments)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr
