"""Plans on disk: a serialised engine, and a record beside it that says what it is and where it runs.

    engines/sm90-11.4.0.106.json           the record; renamed into its place last, it makes a plan valid
    engines/sm90-11.4.0.106-1f0c9a2b.plan  what TensorRT wrote, named by its own hash
    engines/rtx-sm86-sm89-1.7.1.116.json   the same of a plan that TensorRT for RTX compiled for several GPUs
    engines/rtx-...-1f0c9a2b.5d41402a.verified   how such a plan answered where it was first loaded: see `first_load`

A plan is executable code. Nothing of it is given to TensorRT before its sha256 is the record's, and the
record's own is right: this finds damage; against intent there are signatures (`signing`).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calipso_runtime.bundle import Bundle
from calipso_runtime.engines.families import NAMES, TENSORRT, TENSORRT_RTX, Capability, sm
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.errors import BackendUnavailableError, BundleCorruptError, EngineBuildError
from calipso_runtime.graph_file import seal_of
from calipso_runtime.hashes import sha256_of
from calipso_runtime.locks import lock
from calipso_runtime.manifest import canonical
from calipso_runtime.signing import PublicKey

FOLDER = "engines"
# Of the file beside a plan that says how it answered on a machine: see `first_load`.
VERIFIED_SUFFIX = ".verified"
RECORD_VERSION = 2
_LOCK_FILE = ".building"
_HASH_SHOWN = 8
# Compute capability from which a hardware-compatible plan runs: Ampere.
_AMPERE = (8, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan is tied to.

    Attributes:
        gpu: name of the device; empty where a plan was compiled without one.
        capability: compute capability of it, (9, 0); None where there is no device.
        tensorrt: version of the engine, "11.4.0.106".
        cuda_driver: the newest CUDA that the driver speaks, "13.0"; empty where there is no driver.
        engine: of `families.NAMES`.
        system: operating system, "Linux".
        processor: of the host, "x86_64".
    """

    gpu: str
    capability: Capability | None
    tensorrt: str
    cuda_driver: str
    engine: str = TENSORRT
    system: str = dataclasses.field(default_factory=platform.system)
    processor: str = dataclasses.field(default_factory=platform.machine)

    @property
    def compiler(self) -> str:
        """Name and version of the engine: "TensorRT 11.4.0.106"."""
        return f"{NAMES.get(self.engine, self.engine)} {self.tensorrt}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What is known about a plan.

    Attributes:
        graph: digest of the graph that it was built from: see `bundle.seal_of`.
        machine: that it was built on.
        options: that it was built with.
        tensors: inputs and outputs: name, mode, dtype, shape.
        layers: what it was made of: see `layers.LayerReport`.
        checks: what was found after the build; `parity` is "passed", "failed", "unknown" or "unverified".
        builds: of each build its seconds, its latency and how far its answers were off.
        plan: name, sha256 and bytes of the file.
        compiled_for: compute capabilities that it was compiled for ahead of time; empty: for the machine's own GPU.
    """

    graph: str
    machine: Machine
    options: BuildOptions
    tensors: Sequence[Mapping[str, Any]]
    layers: Mapping[str, Any]
    checks: Mapping[str, Any]
    builds: Sequence[Mapping[str, Any]]
    plan: Mapping[str, Any]
    compiled_for: tuple[Capability, ...] = ()

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """Compute capabilities of the GPUs that it runs on."""
        own = self.machine.capability
        return self.compiled_for or (() if own is None else (own,))

    @property
    def stem(self) -> str:
        """How its files are called: "sm90-11.4.0.106", "rtx-sm86-sm89-1.7.1.116"."""
        family = ["rtx"] if self.machine.engine == TENSORRT_RTX else []
        return "-".join([*family, *map(sm, self.capabilities), self.machine.tensorrt])

    @property
    def parity(self) -> str:
        """Whether the plan answers like eager PyTorch: "passed", "failed", "unknown".

        "unverified" where no GPU has run it yet.
        """
        return str(self.checks.get("parity", "unknown"))

    @property
    def failures(self) -> tuple[str, ...]:
        """Checks that failed: it was published by force."""
        return tuple(self.checks.get("failures", ()))

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"record_version": RECORD_VERSION, **document}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, source: str) -> "PlanRecord":
        """Read a record.

        Raises:
            BundleCorruptError: it does not follow the schema, or is of a newer version.
        """
        try:
            if document["record_version"] > RECORD_VERSION:
                message = f"{source} has record version {document['record_version']}: upgrade calipso, or build again"
                raise BundleCorruptError(message)
            own = document["machine"]["capability"]
            machine = {**document["machine"], "capability": None if own is None else tuple(own)}
            profiles = tuple(BatchRange(**each) for each in document["options"]["profiles"])
            values = {name: document[name] for name in ("graph", "tensors", "layers", "checks", "builds", "plan")}
            return cls(
                machine=Machine(**machine),
                options=BuildOptions(**{**document["options"], "profiles": profiles}),
                compiled_for=tuple((major, minor) for major, minor in document.get("compiled_for", ())),
                **values,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"{source} is no record of a plan ({error!r}): build the engine again"
            raise BundleCorruptError(message) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan whose record was read; `check` before its content is used."""

    record_path: Path
    record: PlanRecord

    @property
    def path(self) -> Path:
        """Of the plan itself."""
        return self.record_path.with_name(str(self.record.plan["file"]))

    def check(self) -> None:
        """Compare size and sha256 with the record's.

        Raises:
            BundleCorruptError: the plan is missing, truncated or edited.
        """
        name = str(self.record.plan["file"])
        if Path(name).name != name:
            message = f"{self.record_path} names {name!r}, which is no file beside it: build the engine again"
            raise BundleCorruptError(message)
        if not self.path.is_file():
            message = f"{self.path} is missing: copy it again, or build the engine again"
            raise BundleCorruptError(message)
        size_bytes = self.path.stat().st_size
        if size_bytes != self.record.plan["bytes"]:
            message = (
                f"{self.path} has {size_bytes} bytes, its record says {self.record.plan['bytes']}: it is truncated or "
                "was edited. Copy it again, or build the engine again"
            )
            raise BundleCorruptError(message)
        if sha256_of(self.path) != self.record.plan["sha256"]:
            message = f"{self.path} was changed: its sha256 is not its record's. Build the engine again"
            raise BundleCorruptError(message)


def engines_folder(bundle: Bundle) -> Path:
    """Where the plans of a bundle, or of a bare `.onnx`, lie."""
    return (bundle.path if bundle.path.is_dir() else bundle.path.parent) / FOLDER


def read_plan(record_path: Path, key: PublicKey | None = None) -> Plan:
    """Read a record, and check the digest that it carries of itself, and before it the signature by a key.

    Raises:
        BundleCorruptError: it is truncated or was edited.
        SignatureError: it does not carry this key's signature.
    """
    content = record_path.read_bytes() if key is None else key.verified(record_path)
    try:
        document = json.loads(content.decode("utf-8"))
        claimed = document.pop("sha256")
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        message = f"{record_path} is no record of a plan: it is truncated or was edited. Build the engine again"
        raise BundleCorruptError(message) from error
    if claimed != _digest(document):
        message = f"{record_path} was edited: it does not match its own sha256. Build the engine again"
        raise BundleCorruptError(message)
    return Plan(record_path=record_path, record=PlanRecord.from_json(document, source=str(record_path)))


def find_plan(bundle: Bundle, machine: Machine) -> Plan:
    """The plan of a bundle that runs on a machine; one that was built on the same kind before a compatible one.

    Raises:
        BackendUnavailableError: there is none; says of each that is there why not, and how to build one.
        BundleCorruptError: a record is damaged.
    """
    refusals, found = [], []
    for path in sorted(engines_folder(bundle).glob("*.json")):
        plan = read_plan(path)
        if (reason := why_unfit(plan.record, bundle, machine)) is not None:
            refusals.append(f"{path.name}: {reason}")
            continue
        found.append(plan)
    if found:
        return min(found, key=lambda plan: _distance(plan.record, machine))
    because = "; ".join(refusals) or f"{engines_folder(bundle)} holds none"
    message = (
        f"no engine of {bundle.path} for {_device(machine)} with {machine.compiler}: {because}. "
        f"Build one here: {build_command(bundle, machine)}"
    )
    raise BackendUnavailableError(message)


def build_command(bundle: Bundle, machine: Machine) -> str:
    """Return the command that builds an engine for a machine."""
    if machine.engine == TENSORRT:
        return f"calipso build {bundle.path}"
    capability = "" if machine.capability is None else f" --capability {sm(machine.capability)}"
    return f"calipso build {bundle.path} --engine {machine.engine}{capability}"


def why_unfit(record: PlanRecord, bundle: Bundle, machine: Machine) -> str | None:
    """Why a plan does not run on a machine, as the end of a sentence; None if it does."""
    built, options = record.machine, record.options
    if record.graph != seal_of(bundle.model_path):
        return "it was built from another graph, or from this one before it was exported again"
    if built.engine != machine.engine:
        return f"it is an engine of {NAMES.get(built.engine, built.engine)}, not of {NAMES[machine.engine]}"
    if (built.system, built.processor) != (machine.system, machine.processor):
        return f"it was built on {built.system} {built.processor}, this is {machine.system} {machine.processor}"
    if not _fits_version(built.tensorrt, machine.tensorrt, is_compatible=options.version_compatible):
        compatible = ", version compatible," if options.version_compatible else ""
        return f"it was built{compatible} by {built.compiler}, here is {machine.tensorrt}"
    if not _fits_gpu(record, machine):
        made_for = ", ".join(map(sm, record.compiled_for)) or _device(built)
        return f"it was built for {made_for}, here is {machine.gpu} ({_dotted(machine.capability)})"
    return None


def write_plan(folder: Path, content: Any, record: PlanRecord) -> Plan:
    """Put a plan and its record into their places; the record last, so that a reader never sees half of it.

    Args:
        folder: `engines_folder` of the bundle.
        content: the bytes, or whatever has them as a buffer.
        record: less `plan`, which is filled in.

    Raises:
        EngineBuildError: the folder cannot be written.
    """
    stem = record.stem
    digest = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{digest[:_HASH_SHOWN]}.plan"
    entry = {"file": name, "sha256": digest, "bytes": memoryview(content).nbytes}
    record = dataclasses.replace(record, plan=entry)
    document = record.as_json()
    document["sha256"] = _digest(document)
    record_path = folder / f"{stem}.json"
    is_new = not (folder / name).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, content)
        write_file(record_path, (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode())
        _remove_older(folder, stem, name)
    except OSError as error:
        # Without a record a plan is nothing. One that was there before is the older record's.
        with contextlib.suppress(OSError):
            if is_new:
                (folder / name).unlink(missing_ok=True)
        message = f"the engine cannot be written to {folder}: {error.strerror or error}"
        raise EngineBuildError(message) from error
    return Plan(record_path=record_path, record=record)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two builds at once would take each other's memory and disturb each other's timing.

    The lock goes with the process, however it ends.

    Raises:
        EngineBuildError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream, is_held = lock(folder / _LOCK_FILE)
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror or error}"
        raise EngineBuildError(message) from error
    with stream:
        if not is_held:
            stream.seek(0)
            message = (
                f"another process ({stream.read().strip() or 'unknown'}) is building into {folder}: "
                "wait until it is done, then build again"
            )
            raise EngineBuildError(message)
        # Past the stream's buffer, which would fail once more when it is closed. On a full disk the lock holds as well.
        with contextlib.suppress(OSError):
            stream.truncate(0)
            os.write(stream.fileno(), str(os.getpid()).encode())
        try:
            yield
        finally:
            (folder / _LOCK_FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()


def _remove_older(folder: Path, stem: str, name: str) -> None:
    """Remove older plans of a stem, and what is known of their answers."""
    for old in (*folder.glob(f"{stem}-*.plan"), *folder.glob(f"{stem}-*{VERIFIED_SUFFIX}")):
        if not old.name.startswith(name.removesuffix("plan")):
            old.unlink(missing_ok=True)


def write_file(path: Path, content: Any) -> None:
    """Write a file in one step: it is there whole, or as it was.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fits_version(built: str, here: str, *, is_compatible: bool) -> bool:
    """The same version; or with a version-compatible plan a later one."""
    return built == here or (is_compatible and version_numbers(built) <= version_numbers(here))


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the parts of a version, to be compared: (11, 4, 0, 106)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(document).encode(errors="surrogatepass")).hexdigest()


def _fits_gpu(record: PlanRecord, machine: Machine) -> bool:
    """The same compute capability; or with a hardware-compatible plan, any from Ampere on."""
    capability = machine.capability
    if capability is None or capability in record.capabilities:
        return capability is not None
    return record.options.hardware_compatible and min(capability, *record.capabilities) >= _AMPERE


def _distance(record: PlanRecord, machine: Machine) -> tuple[bool, int]:
    """How far a plan that fits is from one that was built for this machine alone."""
    is_own = (record.machine.tensorrt, record.capabilities) == (machine.tensorrt, (machine.capability,))
    return not is_own, len(record.capabilities)


def _device(machine: Machine) -> str:
    return f"{machine.gpu} (compute capability {_dotted(machine.capability)})"


def _dotted(capability: Capability | None) -> str:
    return "unknown" if capability is None else ".".join(map(str, capability))
