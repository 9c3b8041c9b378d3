"""Plans on disk: which machine they fit, what damage is found, and that two builds do not meet."""

import dataclasses
import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipso_runtime.bundle import Bundle, open_bundle
from calipso_runtime.engines import plans
from calipso_runtime.engines.families import Capability
from calipso_runtime.engines.options import BatchRange, BuildOptions, trtexec_command
from calipso_runtime.engines.plans import Machine, PlanRecord
from calipso_runtime.errors import BackendUnavailableError, BundleCorruptError, EngineBuildError, UsageError
from calipso_runtime.graph_file import seal_of
from child_process import child

HERE = Machine(
    gpu="Orin", capability=(8, 7), tensorrt="10.3.0.30", cuda_driver="12.6", system="Linux", processor="aarch64"
)
# A machine that a plan of TensorRT for RTX is compiled on, and one that runs it.
COMPILING = Machine(
    gpu="", capability=None, tensorrt="1.7.1", cuda_driver="", engine="tensorrt-rtx", system="Linux", processor="x86_64"
)
WORKSTATION = dataclasses.replace(COMPILING, gpu="RTX 4090", capability=(8, 9), cuda_driver="13.0")
CONTENT = b"a plan, as far as files go"


def record(
    bundle: Bundle, machine: Machine = HERE, compiled_for: tuple[Capability, ...] = (), **options: object
) -> PlanRecord:
    return PlanRecord(
        compiled_for=compiled_for,
        graph=seal_of(bundle.model_path),
        machine=machine,
        options=BuildOptions(**options),
        tensors=[{"mode": "input", "name": "image", "dtype": "float32", "shape": [None, 3, 16, 16]}],
        layers={"count": 1},
        checks={"parity": "passed", "failures": []},
        builds=[{"seconds": 1.0}],
        plan={},
    )


@pytest.fixture
def bundle(own: Path) -> Bundle:
    return open_bundle(own)


@pytest.fixture
def folder(bundle: Bundle) -> Path:
    return plans.engines_folder(bundle)


def test_a_plan_is_found_as_it_was_written(bundle: Bundle, folder: Path) -> None:
    written = plans.write_plan(folder, CONTENT, record(bundle))

    found = plans.find_plan(bundle, HERE)
    found.check()

    assert found.record == dataclasses.replace(written.record, tensors=found.record.tensors)
    assert found.path.read_bytes() == CONTENT
    assert found.path.name.startswith("sm87-10.3.0.30-")


def test_a_plan_built_for_the_bundle_fits_its_bare_graph(bundle: Bundle, folder: Path) -> None:
    plans.write_plan(folder, CONTENT, record(bundle))

    assert plans.find_plan(open_bundle(bundle.model_path), HERE).path.is_file()


def test_without_a_plan_the_command_that_builds_one_is_told(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailableError, match=r"engines holds none\. Build one here: calipso build "):
        plans.find_plan(bundle, HERE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capability": (8, 6), "gpu": "A10"}, r"built for A10 \(compute capability 8\.6\), here is Orin \(8\.7\)"),
        ({"tensorrt": "10.13.3.9"}, r"built by TensorRT 10\.13\.3\.9, here is 10\.3\.0\.30"),
        ({"processor": "x86_64"}, "built on Linux x86_64, this is Linux aarch64"),
        ({"system": "Windows"}, "built on Windows aarch64"),
    ],
)
def test_a_plan_of_another_machine_says_what_differs(
    bundle: Bundle, folder: Path, changes: dict[str, object], reason: str
) -> None:
    plans.write_plan(folder, CONTENT, record(bundle, dataclasses.replace(HERE, **changes)))

    with pytest.raises(BackendUnavailableError, match=reason):
        plans.find_plan(bundle, HERE)


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [("10.3.0.30", "10.13.0.1", True), ("10.13.0.1", "10.3.0.30", False), ("10.16.1", "11.4.0", True)],
)
def test_a_version_compatible_plan_runs_on_later_versions_only(
    bundle: Bundle, built: str, here: str, runs: bool
) -> None:
    made = record(bundle, dataclasses.replace(HERE, tensorrt=built), version_compatible=True)

    assert (plans.why_unfit(made, bundle, dataclasses.replace(HERE, tensorrt=here)) is None) == runs


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [((8, 7), (9, 0), True), ((9, 0), (8, 6), True), ((7, 5), (8, 7), False), ((8, 7), (7, 5), False)],
)
def test_a_hardware_compatible_plan_runs_from_ampere_on(
    bundle: Bundle, built: tuple[int, int], here: tuple[int, int], runs: bool
) -> None:
    made = record(bundle, dataclasses.replace(HERE, capability=built), hardware_compatible=True)

    assert (plans.why_unfit(made, bundle, dataclasses.replace(HERE, capability=here)) is None) == runs


def test_a_plan_for_exactly_this_machine_comes_before_a_compatible_one(bundle: Bundle, folder: Path) -> None:
    older = dataclasses.replace(HERE, tensorrt="10.2.0")
    plans.write_plan(folder, b"compatible", record(bundle, older, version_compatible=True))
    plans.write_plan(folder, b"exact", record(bundle))

    assert plans.find_plan(bundle, HERE).path.read_bytes() == b"exact"


def test_a_new_plan_replaces_the_old_one_of_the_same_machine(bundle: Bundle, folder: Path) -> None:
    plans.write_plan(folder, b"old", record(bundle))
    plans.write_plan(folder, b"new", record(bundle))

    assert [path.suffix for path in sorted(folder.iterdir())] == [".plan", ".json"]
    assert plans.find_plan(bundle, HERE).path.read_bytes() == b"new"


def test_a_plan_that_was_compiled_for_several_gpus_runs_on_each(bundle: Bundle, folder: Path) -> None:
    written = plans.write_plan(folder, CONTENT, record(bundle, COMPILING, ((8, 6), (8, 9), (12, 0))))

    found = plans.find_plan(bundle, WORKSTATION)

    assert written.record_path.name == "rtx-sm86-sm89-sm120-1.7.1.json"
    assert found.record.compiled_for == ((8, 6), (8, 9), (12, 0))
    assert (found.record.machine.capability, found.record.machine.compiler) == (None, "TensorRT for RTX 1.7.1")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capability": (12, 1), "gpu": "GB10"}, r"built for sm86, sm89, here is GB10 \(12\.1\)"),
        ({"tensorrt": "1.6.0"}, r"built by TensorRT for RTX 1\.7\.1, here is 1\.6\.0"),
        ({"system": "Windows"}, "built on Linux x86_64, this is Windows x86_64"),
        ({"engine": "tensorrt"}, "an engine of TensorRT for RTX, not of TensorRT"),
    ],
)
def test_a_plan_that_was_compiled_for_others_says_what_differs(
    bundle: Bundle, folder: Path, changes: dict[str, object], reason: str
) -> None:
    plans.write_plan(folder, CONTENT, record(bundle, COMPILING, ((8, 6), (8, 9))))

    with pytest.raises(BackendUnavailableError, match=reason):
        plans.find_plan(bundle, dataclasses.replace(WORKSTATION, **changes))


def test_without_a_plan_of_its_engine_the_command_names_engine_and_gpu(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailableError, match=r"Build one here: .* --engine tensorrt-rtx --capability sm89$"):
        plans.find_plan(bundle, WORKSTATION)


def test_a_plan_for_this_gpu_alone_comes_before_one_for_several(bundle: Bundle, folder: Path) -> None:
    plans.write_plan(folder, b"several", record(bundle, COMPILING, ((8, 6), (8, 9))))
    plans.write_plan(folder, b"one", record(bundle, COMPILING, ((8, 9),)))

    assert plans.find_plan(bundle, WORKSTATION).path.read_bytes() == b"one"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(CONTENT[:-1]), "it is truncated or was edited"),
        (lambda path: path.write_bytes(CONTENT[::-1]), "its sha256 is not its record's"),
        (lambda path: path.unlink(), "is missing: copy it again"),
    ],
)
def test_a_damaged_plan_is_corrupt(bundle: Bundle, folder: Path, damage, reason: str) -> None:
    written = plans.write_plan(folder, CONTENT, record(bundle))
    damage(written.path)

    with pytest.raises(BundleCorruptError, match=reason):
        plans.find_plan(bundle, HERE).check()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 1}', "[" * 100_000, '{"sha256": "0", "plan": {}}'])
def test_a_damaged_record_is_corrupt(bundle: Bundle, folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "sm87-10.3.0.30.json").write_text(text)

    with pytest.raises(BundleCorruptError, match="Build the engine again"):
        plans.find_plan(bundle, HERE)


def rewritten(path: Path, **changes: object) -> None:
    """A record whose own digest is right again after a change: what only someone who means it writes."""
    document = json.loads(path.read_text())
    document.pop("sha256")
    document.update(changes)
    path.write_text(json.dumps({**document, "sha256": plans._digest(document)}))


def test_a_record_of_a_newer_version_says_so(bundle: Bundle, folder: Path) -> None:
    written = plans.write_plan(folder, CONTENT, record(bundle))
    rewritten(written.record_path, record_version=99)

    with pytest.raises(BundleCorruptError, match="has record version 99: upgrade calipso"):
        plans.find_plan(bundle, HERE)


def test_a_record_cannot_name_a_file_elsewhere(bundle: Bundle, folder: Path) -> None:
    written = plans.write_plan(folder, CONTENT, record(bundle))
    rewritten(written.record_path, plan={**written.record.plan, "file": "../../model.onnx"})

    with pytest.raises(BundleCorruptError, match="which is no file beside it"):
        plans.find_plan(bundle, HERE).check()


def test_a_folder_that_cannot_be_written_leaves_nothing(bundle: Bundle, own: Path) -> None:
    (own / "engines").write_text("a file where the folder should be")

    with pytest.raises(EngineBuildError, match="cannot be written to"):
        plans.write_plan(own / "engines", CONTENT, record(bundle))
    with pytest.raises(EngineBuildError, match="cannot be written: "), plans.building(own / "engines"):
        pass


def test_a_plan_whose_record_cannot_be_written_does_not_stay(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans.write_plan(folder, b"old", record(bundle))
    before = sorted(folder.iterdir())
    write = plans.write_file

    def full(path: Path, content: object) -> None:
        if path.suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(plans, "write_file", full)

    for content in (b"new", b"old"):
        with pytest.raises(EngineBuildError, match="No space left on device"):
            plans.write_plan(folder, content, record(bundle))

    assert sorted(folder.iterdir()) == before


HOLD = """
import sys, time
from pathlib import Path
from calipso_runtime.engines import plans
from calipso_runtime.engines.families import Capability
with plans.building(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_build_into_one_bundle(folder: Path) -> None:
    with child([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        reason = rf"another process \({other.pid}\) is building into"
        with pytest.raises(EngineBuildError, match=reason), plans.building(folder):
            pass

    # However it ended, its lock is gone with it.
    with plans.building(folder):
        assert folder.is_dir()
    assert not folder.exists()


def test_one_range_of_batches_reads_like_it_is_written() -> None:
    assert BatchRange.parse("1,8,32") == BatchRange(least=1, best=8, most=32)
    assert BatchRange.parse("4") == BatchRange(least=4, best=4, most=4)
    assert str(BatchRange.parse("4")) == "4,4,4"


@pytest.mark.parametrize("text", ["", "a", "1,2", "0,1,2", "2,1,3", "1,3,2", "1,2,3,4", "-1"])
def test_batches_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected MIN,OPT,MAX"):
        BatchRange.parse(text)


@given(st.lists(st.integers(1, 512), min_size=3, max_size=3).map(sorted))
def test_a_range_survives_its_own_text(sizes: list[int]) -> None:
    least, best, most = sizes
    made = BatchRange(least=least, best=best, most=most)

    assert BatchRange.parse(str(made)) == made


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"profiles": ()}, "expected at least one profile"),
        ({"workspace_mib": 0}, "expected at least 1"),
        ({"optimisation_level": 6}, "expected 0 to 5"),
        ({"dla_core": -1}, "expected 0 or more"),
        ({"version_compatible": True, "strip_weights": True}, "choose one"),
        ({"dla_core": 0}, "DLA takes fixed batches only|--dla takes fixed batches only"),
        ({"dla_core": 0, "profiles": (BatchRange.parse("1"),), "weight_streaming": True}, "choose one"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        BuildOptions(**options)


def test_the_equivalent_of_trtexec_has_every_option() -> None:
    options = BuildOptions(
        profiles=(BatchRange.parse("1"), BatchRange.parse("2,8,32")),
        workspace_mib=512,
        optimisation_level=5,
        version_compatible=True,
        hardware_compatible=True,
    )

    command = trtexec_command(options, model="model.onnx", plan="model.plan", image=(3, 224, 224))

    assert command == [
        "trtexec",
        "--onnx=model.onnx",
        "--saveEngine=model.plan",
        "--stronglyTyped",
        "--profile=0",
        "--minShapes=image:1x3x224x224",
        "--optShapes=image:1x3x224x224",
        "--maxShapes=image:1x3x224x224",
        "--profile=1",
        "--minShapes=image:2x3x224x224",
        "--optShapes=image:8x3x224x224",
        "--maxShapes=image:32x3x224x224",
        "--builderOptimizationLevel=5",
        "--profilingVerbosity=detailed",
        "--memPoolSize=workspace:512M",
        "--noTF32",
        "--versionCompatible",
        "--excludeLeanRuntime",
        "--hardwareCompatibilityLevel=ampere+",
    ]
