"""A GPU and TensorRT out of stand-ins, in one object for tests."""

import ctypes
import importlib.util
import shutil
import subprocess
import types
from pathlib import Path

KINDS = ("device memory", "pinned memory", "streams", "events", "graphs", "launchable graphs", "contexts")


def compile_driver(folder: Path) -> Path | None:
    """The stand-in for libcuda, compiled into a folder; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library, source = folder / "libcuda.so", Path(__file__).with_name("cuda.c")
    command = [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-lpthread"]
    subprocess.run(command, check=True)
    return library


class Gpu:
    """What tests ask of the stand-ins, and how they make them fail.

    Args:
        cuda: the compiled stand-in for libcuda.
        family: "tensorrt" or "tensorrt-rtx": which of the two is installed.

    Attributes:
        cuda: see above.
        family: see above.
        tensorrt: the stand-in for the module.
        faults: of TensorRT.
    """

    def __init__(self, cuda: ctypes.CDLL, family: str = "tensorrt") -> None:
        self.cuda, self.family = cuda, family
        self._forgotten = 0
        for name in ("standin_live", "standin_violations", "standin_launches"):
            getattr(cuda, name).restype = ctypes.c_long
        cuda.standin_held_bytes.restype = ctypes.c_size_t
        cuda.standin_limit.argtypes = (ctypes.c_size_t,)
        cuda.standin_fail.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)
        cuda.standin_reset()
        self.tensorrt: types.ModuleType = _module("fake_tensorrt")
        self.tensorrt.attach(cuda)
        if family == "tensorrt-rtx":
            self.tensorrt.become_rtx()
        self.faults = self.tensorrt.faults

    @property
    def modules(self) -> dict[str, types.ModuleType | None]:
        """What `import` finds: one of the two libraries, and none of the other."""
        names = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx", "tensorrt_rtx_bindings": ""}
        return {name: self.tensorrt if family == self.family else None for name, family in names.items()}

    @property
    def held(self) -> dict[str, int]:
        """What was taken and not given back, by kind; empty if nothing."""
        found = {kind: int(self.cuda.standin_live(place)) for place, kind in enumerate(KINDS)}
        return {kind: count for kind, count in found.items() if count}

    @property
    def held_bytes(self) -> int:
        return int(self.cuda.standin_held_bytes())

    @property
    def violations(self) -> int:
        """Uses of memory that is not there, or not any more."""
        return int(self.cuda.standin_violations())

    @property
    def launches(self) -> int:
        """Of captured graphs, since `forget_launches`."""
        return int(self.cuda.standin_launches()) - self._forgotten

    def forget_launches(self) -> None:
        """Count from here on."""
        self._forgotten = int(self.cuda.standin_launches())

    def limit(self, size_bytes: int) -> None:
        """Memory of the device."""
        self.cuda.standin_limit(size_bytes)

    def fail(self, function: str, code: int, *, after: int = 0, once: bool = True) -> None:
        """Let a function of the driver answer a code, after so many calls that do not."""
        self.cuda.standin_fail(function.encode(), after, code, int(once))


def _module(name: str) -> types.ModuleType:
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
