"""The backends of both TensorRTs on stand-ins: memory, threads, captured graphs, and a device that fails.

What they share is tested with both: `family` says which one the machine has. What only TensorRT for RTX has is in
test_rtx_backend.py.
"""

import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from gpu import Gpu
from onnx import TensorProto, helper, numpy_helper
from rtx_plans import write_rtx_plan
from runtime_samples import LABELS, MakeBundle, reference_logits, tiny_manifest

import calipso_runtime
from calipso_runtime import GpuOptions, bundle, graph_file
from calipso_runtime.backends import connect
from calipso_runtime.engines.build import build
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.errors import (
    BackendError,
    BackendUnavailableError,
    BundleCorruptError,
    CalipsoWarning,
    DeviceLostError,
    DeviceMemoryError,
    InputError,
    UsageError,
)

OUT_OF_MEMORY, ILLEGAL_ADDRESS, CAPTURE_FAILED = 2, 700, 901
ROW_BYTES = 3 * 16 * 16 * 4


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3, 16, 16)).astype(np.float32)


def quiet(what: str, done: int, total: int) -> None:
    pass


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "opened" in metafunc.fixturenames:
        metafunc.parametrize("family", ["tensorrt", "tensorrt-rtx"])


@pytest.fixture
def built(gpu: Gpu, own: Path) -> Path:
    """A bundle with an engine for batches of 1 and of 2 to 8."""
    profiles = (BatchRange(least=1, best=1, most=1), BatchRange(least=2, best=4, most=8))
    if gpu.family == "tensorrt-rtx":
        write_rtx_plan(gpu, own, profiles=profiles)
    else:
        build(own, BuildOptions(profiles=profiles), report=quiet)
    assert gpu.held == {}
    gpu.forget_launches()
    return own


Open = Callable[..., object]


@pytest.fixture
def opened(gpu: Gpu, built: Path, family: str) -> Iterator[Open]:
    """Opens the backend itself; at the end nothing may be held, and nothing that was freed may have been used."""
    backends = []

    def make(**options: object):
        opened, _ = connect(bundle.open_bundle(built), backend=family, threads=None, gpu=GpuOptions(**options))
        backends.append(opened)
        return opened

    yield make
    for backend in backends:
        backend.close()
    assert gpu.held == {}
    assert gpu.violations == 0


def check(backend, count: int, seed: int = 0) -> None:
    found = backend.run(images(count, seed), ("logits", "embedding"))

    np.testing.assert_allclose(found["logits"], reference_logits(images(count, seed)), atol=1e-5, rtol=1e-5)
    assert found["embedding"].shape == (count, 5)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_profile_answers_what_numpy_answers(opened: Open, count: int) -> None:
    check(opened(), count)


def test_auto_prefers_an_engine_and_says_so(gpu: Gpu, built: Path) -> None:
    with calipso_runtime.load(built) as classifier:
        assert classifier.backend == "tensorrt"
        assert classifier.provider == "TensorRT 10.3.0 on Stand-in GPU"
        assert "tensorrt runs engines/sm90-10.3.0-" in classifier.backend_reason


def test_without_an_engine_auto_goes_on_and_says_how_to_build_one(gpu: Gpu, own: Path) -> None:
    with calipso_runtime.load(own) as classifier:
        assert classifier.backend == "ort"
        assert f"Build one here: calipso build {own}" in classifier.backend_reason


def test_a_batch_beyond_every_profile_is_split(opened: Open) -> None:
    check(opened(), 21)


def test_a_batch_beyond_every_profile_is_refused_where_that_is_asked_for(opened: Open) -> None:
    with pytest.raises(BackendError, match=r"a batch of 9 is larger than every profile of the engine \(8\)"):
        opened(oversize="refuse").run(images(9), ("logits",))


def test_a_batch_below_every_profile_is_filled_up(gpu: Gpu, own: Path) -> None:
    build(own, BuildOptions(profiles=(BatchRange(least=4, best=4, most=8),)), report=quiet)

    with calipso_runtime.load(own, backend="tensorrt") as classifier:
        np.testing.assert_allclose(classifier.logits(images(1)), reference_logits(images(1)), atol=1e-5, rtol=1e-5)


def test_batches_that_come_again_are_captured_and_answer_the_same(opened: Open, gpu: Gpu) -> None:
    backend = opened()

    for turn in range(12):
        check(backend, 1 + turn % 3, seed=turn)

    # Of each of three sizes the first two runs are not launches of a graph.
    assert gpu.launches == 12 - 2 * 3


def test_graphs_can_be_switched_off(opened: Open, gpu: Gpu) -> None:
    backend = opened(cuda_graphs=False)

    for seed in range(5):
        check(backend, 1, seed)

    assert gpu.launches == 0


def test_of_many_sizes_the_graphs_last_used_are_kept(opened: Open, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened()
    monkeypatch.setattr("calipso_runtime.backends.tensorrt_common.bound.MOST_GRAPHS", 2)
    monkeypatch.setattr("calipso_runtime.backends.tensorrt_common.bound.MOST_UNUSED", 8)
    for count in (2, 3):
        for _ in range(3):
            check(backend, count)

    # Of three sizes one has not come for long: its graph gives way.
    for _ in range(8):
        for count in (3, 4):
            check(backend, count)
    gpu.forget_launches()
    for count in (2, 3, 4):
        check(backend, count)

    assert gpu.held["launchable graphs"] == 2
    assert gpu.launches == 2


def test_more_sizes_in_turn_than_graphs_are_not_captured_whenever_they_come(
    opened: Open, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    monkeypatch.setattr("calipso_runtime.backends.tensorrt_common.bound.MOST_GRAPHS", 2)
    sizes = (2, 3, 4, 5)
    for count in 3 * sizes:
        check(backend, count)
    gpu.faults.destroyed.clear()
    gpu.forget_launches()

    for count in 5 * sizes:
        check(backend, count)

    assert (gpu.launches, gpu.faults.destroyed) == (5 * 2, [])


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_an_error_in_the_middle_of_a_capture_costs_the_graph_and_not_the_answer(
    opened: Open, gpu: Gpu, function: str
) -> None:
    backend = opened()
    check(backend, 1)
    gpu.fail(function, CAPTURE_FAILED)

    for seed in range(4):
        check(backend, 1, seed)

    assert gpu.launches == 0
    gpu.cuda.standin_fail(b"", 0, 0, 1)


def test_an_engine_that_refuses_while_it_is_captured_goes_on_without(opened: Open, gpu: Gpu) -> None:
    backend = opened()
    check(backend, 1)
    executed: list[str] = []
    context = gpu.tensorrt.Context.execute_async_v3

    def refuse_once(self, stream_handle: int) -> bool:
        executed.append("call")
        # The second run of this size is the answer, the third call is its capture.
        return len(executed) != 2 and context(self, stream_handle)

    gpu.tensorrt.Context.execute_async_v3 = refuse_once
    check(backend, 1)
    check(backend, 1)

    assert (len(executed), gpu.launches) == (3, 0)


def test_ten_thousand_calls_hold_what_the_first_ones_held(opened: Open, gpu: Gpu) -> None:
    backend = opened(lanes=2)
    tensors = {count: images(count) for count in (1, 2, 3)}
    for _ in range(3):
        for image in tensors.values():
            backend.run(image, ("logits",))
    held, held_bytes = gpu.held, gpu.held_bytes

    for turn in range(10_000):
        backend.run(tensors[1 + turn % 3], ("logits",))

    assert (gpu.held, gpu.held_bytes) == (held, held_bytes)


def test_answers_that_were_taken_are_kept_nowhere(opened: Open) -> None:
    backend = opened()

    taken = [weakref.ref(backend.run(images(1), ("logits",))["logits"]) for _ in range(5)]

    assert [reference() for reference in taken] == [None] * 5


def test_no_more_lanes_are_made_than_allowed(opened: Open, gpu: Gpu) -> None:
    backend = opened(lanes=2)
    failures: list[Exception] = []

    def ask(seed: int) -> None:
        try:
            for turn in range(30):
                check(backend, 1 + (seed + turn) % 8, seed)
        except (BackendError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert gpu.held["streams"] <= 2


def test_threads_that_need_contexts_ask_the_engine_one_after_another(opened: Open, gpu: Gpu) -> None:
    backend = opened(lanes=4)
    gpu.faults.context_s = 0.01
    pending: list[object] = []

    threads = [
        threading.Thread(target=lambda: pending.append(backend.submit(images(2), ("logits",)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(pending) == 4


def test_more_batches_than_lanes_can_be_under_way_in_one_thread(opened: Open) -> None:
    backend = opened(lanes=2)

    pending = [backend.submit(images(2, seed), ("logits",)) for seed in range(7)]

    for seed, each in reversed(list(enumerate(pending))):
        np.testing.assert_allclose(each.result()["logits"], reference_logits(images(2, seed)), atol=1e-5, rtol=1e-5)
        assert each.result() is each.result()


def test_batches_under_way_overlap(opened: Open, gpu: Gpu) -> None:
    backend = opened(lanes=2)
    before = gpu.faults.executed

    first, second = (backend.submit(images(1, seed), ("logits",)) for seed in range(2))

    # Queued in two streams, and nobody has waited for either.
    assert gpu.faults.executed == before
    second.result()
    assert gpu.faults.executed == before + 1
    first.result()
    assert gpu.held["streams"] == 2


def test_where_no_further_lane_fits_one_has_to_do(opened: Open, gpu: Gpu) -> None:
    backend = opened(lanes=4)
    check(backend, 1)
    gpu.fail("cuStreamCreate", OUT_OF_MEMORY, once=False)

    pending = [backend.submit(images(1, seed), ("logits",)) for seed in range(5)]
    answers = [each.result()["logits"] for each in pending]

    wanted = reference_logits(np.concatenate([images(1, seed) for seed in range(5)]))
    np.testing.assert_allclose(np.concatenate(answers), wanted, atol=1e-5, rtol=1e-5)
    assert gpu.held["streams"] == 1


@pytest.mark.parametrize("where", ["driver", "context memory", "execution memory"])
def test_where_the_memory_of_a_further_lane_does_not_suffice_one_has_to_do(
    opened: Open, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    backend = opened(lanes=4)
    check(backend, 4)
    if where == "driver":
        gpu.limit(gpu.held_bytes + ROW_BYTES)
    else:
        # What fails is new contexts, and the first run in one.
        original = gpu.tensorrt.Engine.create_execution_context

        def fail(self, strategy):
            gpu.faults.failing.add(where)
            return original(self, strategy)

        monkeypatch.setattr(gpu.tensorrt.Engine, "create_execution_context", fail)
        lane_free = backend._lanes._drop
        monkeypatch.setattr(backend._lanes, "_drop", lambda lane: (gpu.faults.failing.clear(), lane_free(lane)))

    pending = [backend.submit(images(4, seed), ("logits",)) for seed in range(5)]

    for seed, each in enumerate(pending):
        np.testing.assert_allclose(each.result()["logits"], reference_logits(images(4, seed)), atol=1e-5, rtol=1e-5)
    assert gpu.held["streams"] == 1


def test_memory_that_tensorrt_lacks_is_told_as_such(opened: Open, gpu: Gpu) -> None:
    backend = opened()
    gpu.faults.failing.add("execution memory")

    with pytest.raises(DeviceMemoryError, match=r"cannot run the engine: Cuda Runtime \(out of memory\)"):
        backend.run(images(1), ("logits",))


def test_an_engine_that_does_not_fit_says_so_and_leaves_nothing(opened: Open, gpu: Gpu) -> None:
    backend = opened()
    gpu.limit(ROW_BYTES)

    with pytest.raises(DeviceMemoryError, match="use smaller batches or fewer lanes"):
        backend.run(images(8), ("logits",))

    assert "device memory" not in gpu.held
    gpu.limit(1 << 30)
    check(backend, 8)


def test_a_lost_device_says_so_and_closes_all_the_same(opened: Open, gpu: Gpu) -> None:
    backend = opened()
    check(backend, 1)
    gpu.fail("cuEventSynchronize", ILLEGAL_ADDRESS)

    with pytest.raises(DeviceLostError, match="start the process again"):
        backend.run(images(1), ("logits",))
    with pytest.raises(DeviceLostError):
        backend.run(images(1), ("logits",))
    backend.close()
    gpu.cuda.standin_reset()


def test_an_engine_that_cannot_run_says_why_and_can_be_asked_again(opened: Open, gpu: Gpu) -> None:
    backend = opened()
    gpu.faults.failing.add("execute")

    with pytest.raises(BackendError, match=r"^TensorRT (10\.3\.0|for RTX 1\.7\.1) cannot run the engine"):
        backend.run(images(1), ("logits",))

    gpu.faults.failing.clear()
    check(backend, 1)


def test_contexts_go_before_the_engine_and_the_engine_before_its_runtime(opened: Open, gpu: Gpu) -> None:
    backend = opened()
    check(backend, 1)
    check(backend, 5)
    gpu.faults.destroyed.clear()

    backend.close()

    # Of TensorRT for RTX the kernels and the configuration go between the contexts and the engine.
    between = {"tensorrt": [], "tensorrt-rtx": ["runtimeconfig", "runtimecache"]}[gpu.family]
    assert sorted(gpu.faults.destroyed[:-2]) == ["context", "context", *sorted(between)]
    assert gpu.faults.destroyed[:2] == ["context", "context"]
    assert gpu.faults.destroyed[-2:] == ["engine", "runtime"]


def test_closing_waits_for_what_is_under_way(opened: Open) -> None:
    backend = opened()
    pending = backend.submit(images(3), ("logits",))

    backend.close()
    backend.close()

    np.testing.assert_allclose(pending.result()["logits"], reference_logits(images(3)), atol=1e-5, rtol=1e-5)
    with pytest.raises(BackendError, match="is closed: load the bundle again"):
        backend.run(images(1), ("logits",))


def test_two_threads_may_close_while_a_third_one_fails(opened: Open, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(lanes=1)
    is_running, may_go_on = threading.Event(), threading.Event()

    def fail_late(self, stream_handle: int) -> bool:
        is_running.set()
        return may_go_on.wait(10) and False

    monkeypatch.setattr(gpu.tensorrt.Context, "execute_async_v3", fail_late)

    def ask() -> None:
        with pytest.raises(BackendError, match="cannot run the engine"):
            backend.run(images(1), ("logits",))

    threads = [threading.Thread(target=ask, daemon=True)]
    threads[0].start()
    assert is_running.wait(10)
    threads += [threading.Thread(target=backend._lanes.close, daemon=True) for _ in range(2)]
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.05)
    may_go_on.set()
    for thread in threads:
        thread.join(10)

    assert not any(thread.is_alive() for thread in threads)


def test_who_waits_for_a_batch_hears_that_the_wait_was_interrupted(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    pending = backend.submit(images(1), ("logits",))

    def interrupt(self) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("calipso_runtime.cuda.device.Event.wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pending.settle()

    with pytest.raises(BackendError, match="was interrupted: classify it again"):
        pending.result()
    check(backend, 1)


class OnDevice:
    """A batch in the stand-in's device memory, as CuPy shows it."""

    def __init__(self, gpu: Gpu, array: np.ndarray, *, offset_bytes: int = 0, **changes: object) -> None:
        from calipso_runtime.cuda.device import Device, DeviceBuffer

        self.device = Device()
        with self.device.current():
            self.buffer = DeviceBuffer(self.device.driver, array.nbytes + offset_bytes)
        address = self.buffer.handle + offset_bytes
        gpu.tensorrt.on_device(address, array.shape, array.dtype)[...] = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (address, False),
            "version": 3,
            **changes,
        }

    def free(self) -> None:
        with self.device.current():
            self.buffer.free()
        self.device.free()


@pytest.mark.parametrize("count", [1, 3])
def test_images_on_the_device_are_answered_where_they_lie(built: Path, gpu: Gpu, count: int) -> None:
    lent = OnDevice(gpu, images(count))
    with calipso_runtime.load(built, backend="tensorrt") as classifier:
        for _ in range(4):
            np.testing.assert_allclose(classifier.logits(lent), reference_logits(images(count)), atol=1e-5, rtol=1e-5)
        assert [each.label for each in classifier.classify(lent)] == [
            LABELS[place] for place in reference_logits(images(count)).argmax(1)
        ]
    lent.free()

    # Not one of them was copied to the host and back, and the repeats were captured with their own address.
    assert gpu.launches == 3
    assert gpu.held == {}


def test_few_images_on_the_device_are_never_read_beyond_their_end(gpu: Gpu, own: Path) -> None:
    build(own, BuildOptions(profiles=(BatchRange(least=4, best=4, most=8),)), report=quiet)
    lent = OnDevice(gpu, images(2))

    with calipso_runtime.load(own, backend="tensorrt") as classifier:
        np.testing.assert_allclose(classifier.logits(lent), reference_logits(images(2)), atol=1e-5, rtol=1e-5)
    lent.free()

    assert gpu.violations == 0


def test_images_at_an_address_that_tensorrt_does_not_read_from_are_copied(built: Path, gpu: Gpu) -> None:
    lent = OnDevice(gpu, images(3), offset_bytes=64)

    with calipso_runtime.load(built, backend="tensorrt") as classifier:
        np.testing.assert_allclose(classifier.logits(lent), reference_logits(images(3)), atol=1e-5, rtol=1e-5)
    lent.free()


def test_images_on_the_device_that_are_refused_cost_no_context(built: Path, gpu: Gpu) -> None:
    right, wrong, none = (OnDevice(gpu, array) for array in (images(1), images(1)[:, :2], images(1)))
    none.__cuda_array_interface__["shape"] = (0, 3, 16, 16)
    with calipso_runtime.load(built, backend="tensorrt") as classifier:
        classifier.logits(right)
        gpu.faults.destroyed.clear()

        for array in (wrong, none):
            with pytest.raises(InputError, match="the array on the device is"):
                classifier.logits(array)

        assert gpu.faults.destroyed == []
        np.testing.assert_allclose(classifier.logits(right), reference_logits(images(1)), atol=1e-5, rtol=1e-5)
    for lent in (right, wrong, none):
        lent.free()


def test_images_on_the_device_of_another_shape_or_type_are_refused(built: Path, gpu: Gpu) -> None:
    lent = OnDevice(gpu, images(1).astype(np.float16))
    reason = r"is float16 \[1, 3, 16, 16\]: expected float32 \['N', 3, 16, 16\]"
    with calipso_runtime.load(built, backend="tensorrt") as classifier, pytest.raises(InputError, match=reason):
        classifier.logits(lent)
    lent.free()


def test_images_on_a_device_are_refused_by_an_engine_on_the_cpu(built: Path, gpu: Gpu) -> None:
    lent = OnDevice(gpu, images(1))
    with calipso_runtime.load(built, backend="ort") as classifier, pytest.raises(InputError, match="copy them to the"):
        classifier.logits(lent)
    lent.free()


def test_a_stream_decodes_while_the_device_works(built: Path, gpu: Gpu) -> None:
    pictures = list(images(10))
    read: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for place, image in enumerate(pictures):
            read.append(place)
            yield image

    with calipso_runtime.load(built, backend="tensorrt") as classifier:
        answers = classifier.classify_stream(camera(), batch=2, ahead=1)
        first = next(answers)
        assert read == [0, 1, 2, 3]
        labels = [first[1].label, *(prediction.label for _, prediction in answers)]

    assert labels == [LABELS[place] for place in reference_logits(np.stack(pictures)).argmax(1)]


# Plans that must not be loaded.


def plan_of(built: Path) -> Path:
    return next((built / "engines").glob("*.plan"))


def test_a_truncated_plan_is_refused_before_tensorrt_sees_it(built: Path, gpu: Gpu) -> None:
    plan = plan_of(built)
    plan.write_bytes(plan.read_bytes()[:-7])
    gpu.faults.destroyed.clear()

    with pytest.raises(BundleCorruptError, match="it is truncated or was edited"):
        calipso_runtime.load(built, backend="tensorrt")

    assert gpu.faults.destroyed == []


def test_an_edited_plan_is_refused_before_tensorrt_sees_it(built: Path, gpu: Gpu) -> None:
    plan = plan_of(built)
    content = bytearray(plan.read_bytes())
    content[-1] ^= 1
    plan.write_bytes(content)

    with pytest.raises(BundleCorruptError, match="its sha256 is not its record's"):
        calipso_runtime.load(built, backend="tensorrt")


def test_an_edited_record_is_refused(built: Path, gpu: Gpu) -> None:
    (record,) = (built / "engines").glob("*.json")
    record.write_text(record.read_text().replace("Stand-in GPU", "Another GPU"))

    with pytest.raises(BundleCorruptError, match="does not match its own sha256"):
        calipso_runtime.load(built, backend="tensorrt")


def test_a_plan_of_another_gpu_is_not_loaded_and_the_command_that_builds_one_is_told(
    built: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calipso_runtime.cuda.device.Device._attribute", lambda *_: 8)

    with pytest.raises(
        BackendUnavailableError, match=r"was built for Stand-in GPU \(compute capability 9\.0\), here is"
    ):
        calipso_runtime.load(built, backend="tensorrt")


def test_a_plan_of_another_version_is_not_loaded(built: Path, gpu: Gpu) -> None:
    gpu.tensorrt.__version__ = "10.13.0"

    with pytest.raises(
        BackendUnavailableError, match=r"was built by TensorRT 10\.3\.0, here is 10\.13\.0.*calipso build"
    ):
        calipso_runtime.load(built, backend="tensorrt")


def test_a_plan_that_tensorrt_refuses_all_the_same_is_told_with_its_reason(built: Path, gpu: Gpu) -> None:
    gpu.faults.failing.add("deserialize")

    with pytest.raises(BackendUnavailableError, match=r"does not take .*magicTagRead.*Build it again on this machine"):
        calipso_runtime.load(built, backend="tensorrt")

    assert gpu.held == {}


def test_a_plan_of_an_earlier_export_is_not_loaded(built: Path, gpu: Gpu, make_bundle: MakeBundle) -> None:
    other = make_bundle(precision="fp16")
    (other / "engines").mkdir()
    for path in (built / "engines").iterdir():
        (other / "engines" / path.name).write_bytes(path.read_bytes())

    with pytest.raises(BackendUnavailableError, match="it was built from another graph"):
        calipso_runtime.load(other, backend="tensorrt")


def test_a_version_compatible_plan_runs_through_the_lean_runtime_of_the_version_that_built_it(
    gpu: Gpu, own: Path
) -> None:
    build(own, BuildOptions(version_compatible=True), report=quiet)
    gpu.tensorrt.__version__ = "10.13.0"

    with calipso_runtime.load(own, backend="tensorrt") as classifier:
        assert classifier.logits(images(1)).shape == (1, len(LABELS))
        gpu.faults.destroyed.clear()
    # The one that loaded it goes after it: the bindings do not see to that.
    assert gpu.faults.destroyed == ["context", "engine", "lean runtime", "runtime"]
    gpu.faults.failing.add("load_runtime")
    with pytest.raises(BackendUnavailableError, match=r"lean runtime of TensorRT 10\.3\.0 \(libnvinfer_lean\.so\.10\)"):
        calipso_runtime.load(own, backend="tensorrt")


def test_host_code_is_never_allowed(gpu: Gpu, own: Path) -> None:
    seen = []
    original = gpu.tensorrt.Runtime.deserialize_cuda_engine

    def spy(self, serialized_engine):
        seen.append(self.engine_host_code_allowed)
        return original(self, serialized_engine)

    gpu.tensorrt.Runtime.deserialize_cuda_engine = spy
    build(own, BuildOptions(version_compatible=True), report=quiet)
    calipso_runtime.load(own, backend="tensorrt").close()

    assert seen
    assert not any(seen)
    assert {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} <= gpu.faults.flags


def test_stripped_weights_are_put_in_from_the_graph(gpu: Gpu, own: Path) -> None:
    build(own, BuildOptions(strip_weights=True), report=quiet)

    with calipso_runtime.load(own, backend="tensorrt") as classifier:
        np.testing.assert_allclose(classifier.logits(images(3)), reference_logits(images(3)), atol=1e-5, rtol=1e-5)
    assert plan_of(own).stat().st_size < 500


@pytest.mark.parametrize(
    ("fault", "reason"), [("refit", "do not go into"), ("missing", "lacks the weights tower.weight")]
)
def test_weights_that_do_not_fit_are_told(gpu: Gpu, own: Path, fault: str, reason: str) -> None:
    build(own, BuildOptions(strip_weights=True), report=quiet)
    gpu.faults.failing.add(fault)

    with pytest.raises(BackendError, match=reason):
        calipso_runtime.load(own, backend="tensorrt")
    assert gpu.held == {}


def test_weights_that_are_streamed_are_not_captured(gpu: Gpu, own: Path) -> None:
    build(own, BuildOptions(weight_streaming=True), report=quiet)

    gpu.forget_launches()
    with calipso_runtime.load(own, backend="tensorrt") as classifier:
        for _ in range(5):
            classifier.logits(images(1))
    assert gpu.launches == 0
    assert "WEIGHT_STREAMING" in gpu.faults.flags


def test_a_plan_can_be_named(gpu: Gpu, built: Path, tmp_path: Path) -> None:
    (record,) = (built / "engines").glob("*.json")

    with calipso_runtime.load(built, backend="tensorrt", gpu=GpuOptions(plan=record)) as classifier:
        assert classifier.logits(images(1)).shape == (1, len(LABELS))
    with pytest.raises(UsageError, match="is not there: expected the record"):
        calipso_runtime.load(built, backend="tensorrt", gpu=GpuOptions(plan=tmp_path / "none.json"))


@pytest.mark.parametrize("options", [{"lanes": 0}, {"oversize": "drop"}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected 1 or more, and split or refuse"):
        GpuOptions(**options)


def test_an_engine_that_was_published_by_force_is_warned_of(gpu: Gpu, make_bundle: MakeBundle) -> None:
    # A manifest that says fp16 over a graph in fp32: the engine is silently in fp32.
    own = make_bundle(precision="fp16")
    build(own, BuildOptions(), force=True, report=quiet)

    with pytest.warns(CalipsoWarning, match="failed its checks when it was built: no layer computes in fp16"):
        calipso_runtime.load(own, backend="tensorrt").close()


def test_pixels_go_in_as_bytes_where_the_graph_takes_them(gpu: Gpu, tmp_path: Path) -> None:
    """A graph of uint8 [batch,H,W,3]: its mean level per channel is its logits."""
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 5, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([1, 2], np.int64), "axes")],
    )
    edges = {"inputs": {"image": {"dtype": "uint8"}}, "outputs": {"logits": {"dtype": "float32"}}}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    properties = {
        graph_file.METADATA_MANIFEST: json.dumps(tiny_manifest(graph=edges).core()),
        graph_file.METADATA_DIGEST: graph_file.DIGEST_PLACEHOLDER.decode(),
    }
    helper.set_model_props(model, properties)
    path = tmp_path / "pixels.onnx"
    onnx.save(model, str(path))
    graph_file.seal_model(path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)

    build(path, BuildOptions(), report=quiet)
    from calipso_runtime.backends.tensorrt.backend import TensorRtBackend

    backend = TensorRtBackend(bundle.open_bundle(path))
    np.testing.assert_allclose(backend.run(pixels, ("logits",))["logits"], pixels.mean((1, 2)), rtol=1e-5)
    backend.close()
