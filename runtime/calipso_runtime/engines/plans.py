"""Plans on disk: a serialised engine, and a record beside it that says what it is and where it runs.

    engines/sm90-11.4.0.106.json           the record; renamed into its place last, it makes a plan valid
    engines/sm90-11.4.0.106-1f0c9a2b.plan  what TensorRT wrote, named by its own hash

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
from calipso_runtime.engines.options import BatchRange, BuildOptions
from calipso_runtime.errors import BackendUnavailableError, BundleCorruptError, EngineBuildError
from calipso_runtime.graph_file import seal_of
from calipso_runtime.hashes import sha256_of
from calipso_runtime.locks import lock
from calipso_runtime.manifest import canonical
from calipso_runtime.signing import PublicKey

FOLDER = "engines"
RECORD_VERSION = 1
_LOCK_FILE = ".building"
_HASH_SHOWN = 8
# Compute capability from which a hardware-compatible plan runs: Ampere.
_AMPERE = (8, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan is tied to.

    Attributes:
        gpu: name of the device.
        capability: compute capability of it, (9, 0).
        tensorrt: version, "11.4.0.106".
        cuda_driver: the newest CUDA that the driver speaks, "13.0".
        system: operating system, "Linux".
        processor: of the host, "x86_64".
    """

    gpu: str
    capability: tuple[int, int]
    tensorrt: str
    cuda_driver: str
    system: str = dataclasses.field(default_factory=platform.system)
    processor: str = dataclasses.field(default_factory=platform.machine)

    @property
    def stem(self) -> str:
        """How plans for it are called: "sm90-11.4.0.106"."""
        return f"sm{self.capability[0]}{self.capability[1]}-{self.tensorrt}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What is known about a plan.

    Attributes:
        graph: digest of the graph that it was built from: see `bundle.seal_of`.
        machine: that it was built on.
        options: that it was built with.
        tensors: inputs and outputs: name, mode, dtype, shape.
        layers: what it was made of: see `layers.LayerReport`.
        checks: what was found after the build; `parity` is "passed", "failed" or "unknown".
        builds: of each build its seconds, its latency and how far its answers were off.
        plan: name, sha256 and bytes of the file.
    """

    graph: str
    machine: Machine
    options: BuildOptions
    tensors: Sequence[Mapping[str, Any]]
    layers: Mapping[str, Any]
    checks: Mapping[str, Any]
    builds: Sequence[Mapping[str, Any]]
    plan: Mapping[str, Any]

    @property
    def parity(self) -> str:
        """Whether the plan answers like eager PyTorch: "passed", "failed", "unknown"."""
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
            machine = {**document["machine"], "capability": tuple(document["machine"]["capability"])}
            profiles = tuple(BatchRange(**each) for each in document["options"]["profiles"])
            values = {name: document[name] for name in ("graph", "tensors", "layers", "checks", "builds", "plan")}
            return cls(
                machine=Machine(**machine),
                options=BuildOptions(**{**document["options"], "profiles": profiles}),
                **values,
            )
        except (KeyError, TypeError, AttributeError) as error:
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
        return min(found, key=lambda plan: plan.record.machine.stem != machine.stem)
    because = "; ".join(refusals) or f"{engines_folder(bundle)} holds none"
    message = (
        f"no engine of {bundle.path} for {machine.gpu} (compute capability {_dotted(machine.capability)}) with "
        f"TensorRT {machine.tensorrt}: {because}. Build one here: calipso build {bundle.path}"
    )
    raise BackendUnavailableError(message)


def why_unfit(record: PlanRecord, bundle: Bundle, machine: Machine) -> str | None:
    """Why a plan does not run on a machine, as the end of a sentence; None if it does."""
    built, options = record.machine, record.options
    if record.graph != seal_of(bundle.model_path):
        return "it was built from another graph, or from this one before it was exported again"
    if (built.system, built.processor) != (machine.system, machine.processor):
        return f"it was built on {built.system} {built.processor}, this is {machine.system} {machine.processor}"
    if not _fits_version(built.tensorrt, machine.tensorrt, is_compatible=options.version_compatible):
        compatible = ", version compatible," if options.version_compatible else ""
        return f"it was built{compatible} by TensorRT {built.tensorrt}, here is {machine.tensorrt}"
    if built.capability != machine.capability and not (
        options.hardware_compatible and min(built.capability, machine.capability) >= _AMPERE
    ):
        return (
            f"it was built for {built.gpu} (compute capability {_dotted(built.capability)}), here is {machine.gpu} "
            f"({_dotted(machine.capability)})"
        )
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
    stem = record.machine.stem
    digest = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{digest[:_HASH_SHOWN]}.plan"
    entry = {"file": name, "sha256": digest, "bytes": memoryview(content).nbytes}
    record = dataclasses.replace(record, plan=entry)
    document = record.as_json()
    document["sha256"] = _digest(document)
    record_path = folder / f"{stem}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / name, content)
        _write(record_path, (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode())
        for old in folder.glob(f"{stem}-*.plan"):
            if old.name != name:
                old.unlink(missing_ok=True)
    except OSError as error:
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
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield
        finally:
            (folder / _LOCK_FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()


def _write(path: Path, content: Any) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fits_version(built: str, here: str, *, is_compatible: bool) -> bool:
    """The same version; or with a version-compatible plan a later one."""
    return built == here or (is_compatible and _numbers(built) <= _numbers(here))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(document).encode(errors="surrogatepass")).hexdigest()


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
