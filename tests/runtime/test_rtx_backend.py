"""What only the backend of TensorRT for RTX has: kernels that are compiled here and kept, and its own plans.

What it shares with TensorRT's is in test_tensorrt_backend.py.
"""

import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpu import Gpu
from rtx_plans import write_rtx_plan
from runtime_samples import reference_logits

import calipso_runtime
from calipso_runtime import backends, devices
from calipso_runtime.caching import CACHE_VARIABLE
from calipso_runtime.engines.options import BatchRange
from calipso_runtime.engines.plans import Machine
from calipso_runtime.errors import BackendError, BackendUnavailableError, BundleCorruptError, CalipsoWarning

RTX = "tensorrt-rtx"


@pytest.fixture
def family() -> str:
    return RTX


@pytest.fixture
def built(gpu: Gpu, own: Path) -> Path:
    """A bundle with an engine for the stand-in's GPU."""
    write_rtx_plan(gpu, own)
    return own


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / RTX


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3, 16, 16)).astype(np.float32)


def answer(path: Path, *counts: int, **options: object) -> None:
    """Load a bundle, and compare its answers with numpy's."""
    with calipso_runtime.load(path, backend=RTX, **options) as classifier:
        for count in counts:
            found = classifier.logits(images(count))
            np.testing.assert_allclose(found, reference_logits(images(count)), atol=1e-5, rtol=1e-5)


def kept(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


# Kernels that are compiled on the GPU.


def test_kernels_are_compiled_once_per_size_and_the_next_process_takes_them(built: Path, gpu: Gpu, cache: Path) -> None:
    answer(built, 1, 5, 1, 5, 5)
    assert gpu.faults.compiled == [1, 5]

    answer(built, 5, 1, 5)
    assert gpu.faults.compiled == [1, 5]
    (path,) = kept(cache)
    assert path.parent.name.startswith("sm90-1.7.1-")


def test_kernels_are_there_before_the_backend_is_closed(built: Path, gpu: Gpu, cache: Path) -> None:
    """A server is killed and never closes."""
    with calipso_runtime.load(built, backend=RTX) as classifier:
        classifier.logits(images(1))

        assert len(kept(cache)) == 1


def test_many_sizes_are_written_few_times(built: Path, gpu: Gpu, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calipso_runtime.backends.tensorrt_rtx.runtime import kernel_file

    written = []
    original = kernel_file._replace
    monkeypatch.setattr(kernel_file, "_replace", lambda *each: (written.append(each), original(*each)))

    answer(built, *range(1, 23))
    assert len(written) == 6  # after 1, 2, 4, 8 and 16 sizes, and at the end

    answer(built, *range(1, 23))
    assert len(written) == 6
    assert gpu.faults.compiled == list(range(1, 23))


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "empty", "other magic"])
def test_damaged_kernels_never_reach_the_library_and_are_made_again(
    built: Path, gpu: Gpu, cache: Path, damage: str
) -> None:
    answer(built, 1)
    (path,) = kept(cache)
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    damaged = {
        "flipped byte": flipped,
        "truncated": content[:-3],
        "empty": b"",
        "other magic": b"x" + content[1:],
    }
    path.write_bytes(damaged[damage])

    answer(built, 1)

    assert gpu.faults.compiled == [1, 1]
    assert path.read_bytes() == content


def test_kernels_that_the_library_does_not_take_are_made_again_and_are_no_error(
    built: Path, gpu: Gpu, cache: Path
) -> None:
    answer(built, 1)
    gpu.faults.failing.add("deserialize cache")

    with calipso_runtime.load(built, backend=RTX) as classifier:
        assert kept(cache) == []
        classifier.logits(images(1))
        # What the library said of the kernels is not the reason of a later error.
        gpu.faults.failing.add("execute")
        with pytest.raises(BackendError, match="cannot run the engine: TensorRT for RTX did not say why"):
            classifier.logits(images(2))

    assert gpu.faults.compiled == [1, 1]
    assert len(kept(cache)) == 1


def test_kernels_lie_apart_by_driver_gpu_version_and_graph(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    from calipso_runtime.backends.tensorrt_rtx.runtime.kernel_file import kernel_file

    here = Machine(gpu="RTX 5090", capability=(12, 0), tensorrt="1.7.1.116", cuda_driver="13.0", engine=RTX)
    others = ({"gpu": "RTX 5080"}, {"capability": (8, 9)}, {"tensorrt": "1.8.0"})
    paths = {kernel_file("graph", machine).path for machine in (here, *(replace(here, **each) for each in others))}
    paths.add(kernel_file("another graph", here).path)
    monkeypatch.setattr(devices, "driver_release", lambda: "580.82.07")
    paths.add(kernel_file("graph", here).path)

    assert len(paths) == 6


def test_kernels_of_another_version_are_not_taken(built: Path, gpu: Gpu, cache: Path) -> None:
    answer(built, 1)
    gpu.tensorrt.__version__ = "1.7.2"
    write_rtx_plan(gpu, built)

    answer(built, 1)

    assert gpu.faults.compiled == [1, 1]
    assert len(kept(cache)) == 2


def test_a_rebuilt_plan_of_the_same_graph_takes_the_same_file(built: Path, gpu: Gpu, cache: Path) -> None:
    answer(built, 1)
    first = write_rtx_plan(gpu, built)

    answer(built, 1)

    assert first.path.is_file()
    assert gpu.faults.compiled == [1]
    assert len(kept(cache)) == 1


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    built: Path, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "a file"))

    answer(built, 1, 3)


def test_a_disk_that_fills_up_leaves_the_older_kernels_and_no_part_of_the_new_ones(
    gpu: Gpu, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calipso_runtime.backends.tensorrt_rtx.runtime.kernel_file import KernelFile

    kernels = KernelFile(cache / "a.kernels")
    kernels.write(b"kernels")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        kernels.write(b"more" * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)

    assert [path.name for path in kept(cache)] == ["a.kernels"]
    assert kernels.read() == b"kernels"


def test_nothing_is_kept_where_that_is_not_wanted(built: Path, gpu: Gpu, cache: Path) -> None:
    answer(built, 1, keep_optimised=False)
    answer(built, 1, keep_optimised=False)

    assert kept(cache) == []
    assert gpu.faults.compiled == [1, 1]


def test_the_kernels_used_longest_ago_give_way(cache: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from calipso_runtime.backends.tensorrt_rtx.runtime import kernel_file

    monkeypatch.setattr(kernel_file, "MOST_FILES", 2)
    files = [kernel_file.KernelFile(cache / f"{name}.kernels") for name in "abc"]
    for place, each in enumerate(files):
        each.write(b"kernels")
        os.utime(each.path, (place, place))
    files[1].write(b"others")

    assert [path.name for path in kept(cache)] == ["b.kernels", "c.kernels"]
    assert files[1].read() == b"others"


def test_the_drivers_own_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    path = tmp_path / "version"
    monkeypatch.setattr(devices, "_DRIVER_FILE", path)
    assert devices.driver_release() == f"CUDA {devices.cuda_driver().version}"

    path.write_text("NVRM version: NVIDIA UNIX Kernel Module  580.65.06  Release Build\nGCC version: 12")
    assert devices.driver_release() == "580.65.06"


def test_a_context_that_cannot_be_captured_answers_without_graphs(built: Path, gpu: Gpu) -> None:
    gpu.faults.failing.add("capturable")
    gpu.forget_launches()

    answer(built, 1, 1, 1, 1)

    assert gpu.launches == 0


# Which backend is taken.


def test_auto_takes_the_engine_and_says_so(built: Path, gpu: Gpu) -> None:
    with calipso_runtime.load(built) as classifier:
        assert (classifier.backend, classifier.provider) == (RTX, "TensorRT for RTX 1.7.1 on Stand-in GPU")
        assert "tensorrt-rtx runs engines/rtx-sm90-1.7.1-" in classifier.backend_reason


def test_without_an_engine_auto_goes_on_and_says_how_to_build_one(own: Path, gpu: Gpu) -> None:
    with calipso_runtime.load(own) as classifier:
        assert classifier.backend == "ort"
        command = f"Build one here: calipso build {own} --engine tensorrt-rtx --capability sm90"
        assert command in classifier.backend_reason


# Plans that must not be loaded, and machines that cannot load any.


def test_without_a_driver_the_library_is_not_even_imported(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DRIVER_LIBRARY", "libcuda-of-no-machine.so")
    devices.cuda_driver.cache_clear()
    for name in [
        name for name in sys.modules if name.startswith(("calipso_runtime.backends.tensorrt_rtx", "tensorrt"))
    ]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(BackendUnavailableError, match=r"^tensorrt-rtx needs a CUDA device: no NVIDIA driver"):
        calipso_runtime.load(own, backend=RTX)

    assert "tensorrt_rtx" not in sys.modules
    devices.cuda_driver.cache_clear()


def test_without_the_library_the_extra_is_named(own: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'calipso\[rtx\]'"):
        calipso_runtime.load(own, backend=RTX)


def test_a_library_that_does_not_start_says_what_to_do(built: Path, gpu: Gpu) -> None:
    gpu.faults.failing.add("start")

    expected = r"TensorRT for RTX 1\.7\.1 does not start on a driver for CUDA .*calipso build --engine tensorrt-rtx$"
    with pytest.raises(BackendUnavailableError, match=expected):
        calipso_runtime.load(built, backend=RTX)
    assert backends.why_unavailable(RTX) is not None
    assert gpu.held == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capabilities": ((8, 6), (8, 9))}, r"it was built for sm86, sm89, here is Stand-in GPU \(9\.0\)"),
        ({"tensorrt": "1.6.1.120"}, r"it was built by TensorRT for RTX 1\.6\.1\.120, here is 1\.7\.1"),
        ({"system": "Windows"}, "it was built on Windows"),
        ({"engine": "tensorrt"}, "it is an engine of TensorRT, not of TensorRT for RTX"),
    ],
)
def test_a_plan_that_does_not_fit_is_not_loaded_and_the_command_that_builds_one_is_given(
    own: Path, gpu: Gpu, changes: dict[str, object], reason: str
) -> None:
    write_rtx_plan(gpu, own, **changes)

    with pytest.raises(BackendUnavailableError, match=f"{reason}.*--engine tensorrt-rtx --capability sm90"):
        calipso_runtime.load(own, backend=RTX)


@pytest.mark.parametrize("damage", ["truncated", "flipped byte"])
def test_a_damaged_plan_is_refused_before_the_library_sees_it(built: Path, gpu: Gpu, damage: str) -> None:
    (plan,) = (built / "engines").glob("*.plan")
    content = plan.read_bytes()
    plan.write_bytes(content[:-1] + (b"" if damage == "truncated" else bytes([content[-1] ^ 1])))
    gpu.faults.destroyed.clear()

    with pytest.raises(BundleCorruptError, match=r"truncated|its sha256 is not its record's"):
        calipso_runtime.load(built, backend=RTX)

    assert gpu.faults.destroyed == []


def test_a_plan_that_the_library_refuses_is_reported_with_its_reason(built: Path, gpu: Gpu) -> None:
    gpu.faults.failing.add("deserialize")

    with pytest.raises(BackendUnavailableError, match=r"magicTagRead.*calipso build --engine tensorrt-rtx$"):
        calipso_runtime.load(built, backend=RTX)

    assert gpu.held == {}


def test_an_engine_without_a_runtime_configuration_is_one_error(built: Path, gpu: Gpu) -> None:
    gpu.faults.failing.add("runtime config")

    with pytest.raises(BackendError, match="cannot make a runtime configuration: the stand-in was told"):
        calipso_runtime.load(built, backend=RTX)

    assert gpu.held == {}


def test_an_engine_that_was_published_by_force_is_warned_of(own: Path, gpu: Gpu) -> None:
    write_rtx_plan(gpu, own, checks={"parity": "passed", "failures": ["no layer computes in fp16"], "warnings": []})

    with pytest.warns(CalipsoWarning, match="failed its checks when it was built: no layer computes in fp16"):
        calipso_runtime.load(own, backend=RTX).close()


def test_one_profile_takes_a_single_picture_and_its_largest_batch(own: Path, gpu: Gpu) -> None:
    write_rtx_plan(gpu, own, profiles=(BatchRange(least=1, best=8, most=32),))

    answer(own, 1, 8, 32, 33, 1)

    assert gpu.faults.compiled[:3] == [1, 8, 32]
