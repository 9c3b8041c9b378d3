"""The ship kit's program: prints what Python prints, refuses what was edited, and fits NVIDIA's own headers.

It runs on stand-ins for TensorRT and CUDA that compute the tests' tiny graph. Against the real headers it is compiled
and linked only where these are found: TENSORRT_ROOT, and CUDA_ROOT or /usr/local/cuda.
"""

import dataclasses
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from runtime_samples import SIZE, weights

from calipso_runtime.bundle import open_bundle
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.engines.plans import Machine, PlanRecord, engines_folder, write_plan
from calipso_runtime.graph_file import seal_of
from calipso_runtime.reference import read_reference
from calipso_runtime.ship.kit import Order, ship
from calipso_runtime.ship.sample import write_sample

STAND_INS = Path(__file__).parent / "ship_stand_ins"
CUDA_ROOT = Path(os.environ.get("CUDA_ROOT", "/usr/local/cuda"))
# A leak, a use after free or an overflow ends the program with an error.
SANITISED = "-fsanitize=address,undefined -fno-sanitize-recover=all"

needs_compiler = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++")), reason="no CMake or no C++ compiler"
)


# Nearly all of the time goes into the compiler.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kit(checkable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    wheel = folder / "calipso-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("calipso_runtime/__init__.py", "")
    ship(Order(bundle=checkable, target="server", options=BuildOptions(), wheel=wheel), folder / "kit")
    return folder / "kit"


def library(folder: Path, name: str, *sources: str, include: Path, flags: str = "") -> Path:
    path = folder / f"lib{name}.so"
    files = [STAND_INS / source for source in sources]
    command = ["c++", "-std=c++17", "-shared", "-fPIC", *flags.split(), f"-I{include}", *files, "-o", path]
    subprocess.run(command, check=True)
    return path


def compiled(kit: Path, folder: Path, flags: str, **settings: Path) -> Path:
    configured = [f"-D{name}={value}" for name, value in settings.items()]
    # Every warning is an error here, deprecated names included.
    configure = ["cmake", "-S", kit / "cpp", "-B", folder, f"-DCMAKE_CXX_FLAGS=-Werror {flags}", *configured]
    result = subprocess.run(configure, capture_output=True, text=True, check=False)
    if result.returncode != 0 and "OpenSSL" in result.stderr:
        pytest.skip("no headers of OpenSSL (libssl-dev)")
    assert result.returncode == 0, result.stderr
    built = subprocess.run(["cmake", "--build", folder], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "calipso-classify"


@pytest.fixture(scope="module")
def program(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand-ins")
    return compiled(
        kit,
        folder,
        SANITISED,
        TENSORRT_INCLUDE=STAND_INS,
        CUDA_INCLUDE=STAND_INS,
        TENSORRT_LIBRARY=library(folder, "nvinfer", "nvinfer.cpp", include=STAND_INS, flags=SANITISED),
        CUDA_LIBRARY=library(folder, "cudart", "cudart.cpp", include=STAND_INS, flags=SANITISED),
    )


def record(kit: Path, *, least: int = 1, most: int = 4, content: bytes | None = None, **options: bool) -> Path:
    """Of a plan that the stand-in for TensorRT takes, written as `calipso build` writes it."""
    bundle = open_bundle(kit / "bundle")
    features, text = weights()
    plan = np.array([least, most], np.int64).tobytes() + features.tobytes() + text.tobytes()
    # NVIDIA's structures are padded to their alignment, and so is the stand-in's.
    plan += b"\0" * (-len(plan) % 8)
    about = PlanRecord(
        graph=seal_of(bundle.model_path),
        machine=Machine(gpu="stand-in", capability=(9, 0), tensorrt="10.3.0", cuda_driver="12.6"),
        options=BuildOptions(profiles=(BatchRange(least=least, best=most, most=most),), **options),
        tensors=(),
        layers={
            "deceiving": '\n  "plan": {\n    "file": "other.plan"',
            "nested": {"plan": {"file": "x", "sha256": "y"}},
        },
        checks={},
        builds=(),
        plan={},
    )
    return write_plan(engines_folder(bundle), plan if content is None else content, about).record_path


def run(program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.fixture
def own_kit(kit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kit, tmp_path / "kit"))


@needs_compiler
@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 4), (4, 4), (5, 64)])
def test_the_program_prints_the_lines_that_python_prints(program: Path, own_kit: Path, least: int, most: int) -> None:
    cpp = own_kit / "cpp"

    result = run(program, record(own_kit, least=least, most=most), cpp / "labels.txt", cpp / "sample.npy")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (cpp / "expected.txt").read_text()


@needs_compiler
def test_the_program_has_the_bundles_temperature_and_tells_unknown_pictures(program: Path, own_kit: Path) -> None:
    cpp, bundle = own_kit / "cpp", open_bundle(own_kit / "bundle")
    assert bundle.manifest is not None
    reference = read_reference(bundle)
    assert reference is not None
    confidence = {"temperature": 0.37, "unknown": {"threshold": 0.9}}
    write_sample(cpp, reference, dataclasses.replace(bundle.manifest, confidence=confidence))

    result = run(program, record(own_kit), cpp / "labels.txt", cpp / "sample.npy")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (cpp / "expected.txt").read_text()
    assert 0 < result.stdout.count("   unknown  (below 90.00%)") < result.stdout.count("sample.npy[")


@needs_compiler
@pytest.mark.parametrize("content", ["", "1.0", "0 0", "warm"])
def test_a_confidence_file_without_its_numbers_is_refused(program: Path, own_kit: Path, content: str) -> None:
    cpp = own_kit / "cpp"
    (cpp / "confidence.txt").write_text(content)

    result = run(program, record(own_kit), cpp / "labels.txt", cpp / "sample.npy")

    assert (result.returncode, result.stdout) == (1, "")
    assert "confidence.txt does not hold a temperature above 0" in result.stderr


@needs_compiler
def test_an_edited_plan_never_reaches_tensorrt(program: Path, own_kit: Path) -> None:
    path = record(own_kit)
    (plan,) = path.parent.glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-1] + b"\1")

    result = run(program, path, own_kit / "cpp" / "labels.txt", own_kit / "cpp" / "sample.npy")

    assert (result.returncode, result.stdout) == (1, "")
    assert "its sha256 differs" in result.stderr


@needs_compiler
def test_a_plan_that_tensorrt_refuses_says_what_it_said(program: Path, own_kit: Path) -> None:
    path = record(own_kit, content=b"of another version")

    result = run(program, path, own_kit / "cpp" / "labels.txt", own_kit / "cpp" / "sample.npy")

    assert result.returncode == 1
    assert "calipso build): the plan was built elsewhere" in result.stderr


@needs_compiler
@pytest.mark.parametrize("option", ["version_compatible", "strip_weights", "weight_streaming"])
def test_a_plan_that_needs_more_than_the_program_does_is_refused(program: Path, own_kit: Path, option: str) -> None:
    path = record(own_kit, **{option: True})

    result = run(program, path, own_kit / "cpp" / "labels.txt", own_kit / "cpp" / "sample.npy")

    assert result.returncode == 1
    assert f"a plan with {option}, which this program does not set up" in result.stderr


@needs_compiler
def test_a_machine_without_a_gpu_is_told_before_tensorrt_is_touched(program: Path, own_kit: Path) -> None:
    path = record(own_kit)

    result = run(program, path, own_kit / "cpp" / "labels.txt", own_kit / "cpp" / "sample.npy", STAND_IN_NO_DEVICE="1")

    assert result.returncode == 1
    assert result.stderr == "error: CUDA cannot find a device: no CUDA-capable device is detected\n"


@needs_compiler
@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3, *SIZE)), "expected float32 in C order"),
        (np.asfortranarray(np.zeros((2, 3, *SIZE), np.float32)), "expected float32 in C order"),
        (np.zeros((3, *SIZE), np.float32), "expected float32 in C order"),
        (np.zeros((0, 3, *SIZE), np.float32), "has 0 bytes of values"),
        (np.zeros((2, 3, 24, 16), np.float32), "the images are 3x24x16, the engine takes 3x16x16"),
        (np.full((1, 3, *SIZE), np.nan, np.float32), "not finite"),
    ],
)
def test_images_that_the_engine_cannot_take_are_refused(
    program: Path, own_kit: Path, tmp_path: Path, array: np.ndarray, said: str
) -> None:
    np.save(tmp_path / "images.npy", array)

    result = run(program, record(own_kit), own_kit / "cpp" / "labels.txt", tmp_path / "images.npy")

    assert (result.returncode, result.stdout) == (1, "")
    assert said in result.stderr


@needs_compiler
@pytest.mark.parametrize("length", [0, 5, 11, 40, 1000])
def test_truncated_images_are_refused(program: Path, own_kit: Path, length: int) -> None:
    images = own_kit / "cpp" / "sample.npy"
    images.write_bytes(images.read_bytes()[:length])

    result = run(program, record(own_kit), own_kit / "cpp" / "labels.txt", images)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {images} ")


@needs_compiler
def test_labels_of_another_bundle_are_refused(program: Path, own_kit: Path) -> None:
    labels = own_kit / "cpp" / "labels.txt"
    labels.write_text("only\none\n")

    result = run(program, record(own_kit), labels, own_kit / "cpp" / "sample.npy")

    assert result.returncode == 1
    assert "has 2 labels, the engine 7 classes" in result.stderr


@needs_compiler
@pytest.mark.parametrize("content", [None, b"", b"{}", b'{\n  "plan": {\n    "file": "a.plan"\n  }\n}'])
def test_what_is_no_record_is_refused(program: Path, own_kit: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)

    result = run(program, path, own_kit / "cpp" / "labels.txt", own_kit / "cpp" / "sample.npy")

    assert result.returncode == 1
    assert result.stderr.startswith("error: ")


@needs_compiler
def test_a_wrong_number_of_arguments_is_bad_usage(program: Path) -> None:
    assert run(program, "one").returncode == 2


@needs_compiler
def test_the_program_compiles_and_links_with_nvidias_own_headers(kit: Path, tmp_path: Path) -> None:
    headers = Path(os.environ.get("TENSORRT_ROOT", "/usr")) / "include"
    cuda = CUDA_ROOT / "include"
    if not (headers / "NvInfer.h").is_file() or not (cuda / "crt" / "host_defines.h").is_file():
        pytest.skip("no headers of TensorRT (TENSORRT_ROOT) or CUDA (CUDA_ROOT)")

    program = compiled(
        kit,
        tmp_path,
        "",
        TENSORRT_INCLUDE=headers,
        CUDA_INCLUDE=cuda,
        TENSORRT_LIBRARY=library(tmp_path, "nvinfer", "nvinfer_empty.cpp", include=cuda),
        CUDA_LIBRARY=library(tmp_path, "cudart", "cudart.cpp", include=cuda),
    )

    result = run(program, record(kit), kit / "cpp" / "labels.txt", kit / "cpp" / "sample.npy")
    assert (result.returncode, result.stderr) == (1, "error: TensorRT cannot start: it does not say why\n")
