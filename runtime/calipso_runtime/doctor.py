"""Finds out what this machine can run. Asks; imports no engine but onnxruntime, and no torch."""

import importlib
import importlib.metadata
import importlib.util
import platform
from typing import TypedDict

from calipso_runtime import backends, devices
from calipso_runtime.errors import BackendUnavailableError

# Distribution names: onnxruntime comes as any of these, always as the module `onnxruntime`.
_ORT_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
_TENSORRT_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_TENSORRT_RTX_DISTRIBUTIONS = ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13")
_EXPORTER_MODULES = ("calipso_export", "torch", "torchvision", "open_clip", "onnx", "onnxscript")


class Status(TypedDict):
    """One execution provider of ONNX Runtime, or one backend of ours."""

    name: str
    works: bool
    detail: str


class Report(TypedDict):
    """Everything that `calipso doctor` tells; `--json` prints it as it is."""

    calipso: str
    python: str
    platform: str
    cpu: str
    cpu_count: int
    instruction_sets: list[str]
    memory_bytes: int | None
    packages: dict[str, str | None]
    onnxruntime: str | None
    onnxruntime_problem: str | None
    providers: list[Status]
    backends: list[Status]
    cuda_driver: str | None
    cuda_problem: str | None
    gpus: list[str]
    tensorrt: str | None
    tensorrt_rtx: str | None
    exporter: dict[str, bool]


def examine() -> Report:
    """Look at this machine. NVIDIA's driver is asked first, before any engine that would need it."""
    import calipso_runtime

    driver = devices.cuda_driver()
    ort_problem, providers = _providers()
    return Report(
        calipso=calipso_runtime.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=devices.cpu_name(),
        cpu_count=devices.cpu_count(),
        instruction_sets=list(devices.instruction_sets()),
        memory_bytes=devices.memory_bytes(),
        packages={name: installed_version(name) for name in ("numpy", "pillow", "click", "rich", "tokenizers", "ftfy")},
        onnxruntime=installed_version(*_ORT_DISTRIBUTIONS),
        onnxruntime_problem=ort_problem,
        providers=providers,
        backends=[_backend(name) for name in backends.ALL_BACKENDS],
        cuda_driver=driver.version,
        cuda_problem=driver.problem,
        gpus=list(driver.devices),
        tensorrt=installed_version(*_TENSORRT_DISTRIBUTIONS),
        tensorrt_rtx=installed_version(*_TENSORRT_RTX_DISTRIBUTIONS),
        exporter={name: importlib.util.find_spec(name) is not None for name in _EXPORTER_MODULES},
    )


def installed_version(*names: str) -> str | None:
    """Version of the first distribution that is installed, read from its metadata: nothing is imported."""
    for name in names:
        for distribution in importlib.metadata.distributions(name=name):
            return distribution.version
    return None


def _providers() -> tuple[str | None, list[Status]]:
    """Why onnxruntime cannot be imported, or each provider it lists with whether a session on it comes up."""
    try:
        ort = importlib.import_module("calipso_runtime.backends.ort")
    except BackendUnavailableError as error:
        return str(error), []
    statuses = []
    for name in ort.listed_providers():
        problem = ort.why_unavailable(name)
        detail = "a session runs on it" if problem is None else problem
        statuses.append(Status(name=name, works=problem is None, detail=detail))
    return None, statuses


def _backend(name: str) -> Status:
    problem = backends.why_unavailable(name)
    detail = f"--backend {name} can be used" if problem is None else problem
    return Status(name=name, works=problem is None, detail=detail)
