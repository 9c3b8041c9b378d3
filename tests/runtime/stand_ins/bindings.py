"""TensorRT's own Python bindings, importable on a machine that has no TensorRT.

The wheel of the bindings alone is fetched from the package index when a test asks for it, laid out as the
package `tensorrt`, and set beside stand-ins of the libraries that it loads (tensorrt.c). Nothing of a wheel
is kept but in the cache folder that the caller names.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from stand_ins.names import Description

# The oldest that is supported (JetPack 6), those of JetPack 7.1 and 7.2, and the newest.
VERSIONS = ("10.3.0", "10.13.0.35", "10.16.1.11", "11.4.0.106")
STAND_INS = Path(__file__).parent
SOURCES = {"stand_in.so": STAND_INS / "tensorrt.c", "libcuda.so.1": STAND_INS / "cuda.c"}
RUNTIME = STAND_INS.parents[2] / "runtime"
# Our code that imports tensorrt or is given it, and a small example of such code.
_BACKENDS = Path("calipso_runtime", "backends")
ENGINE_CODE = (_BACKENDS / "tensorrt", _BACKENDS / "tensorrt_common")
SAMPLE = STAND_INS / "sample_engine.py"
_DISTRIBUTION = "tensorrt-cu12-bindings"
_NEEDED_LIBRARY = re.compile(rb"libnv[a-z_]+\.so\.\d+")
_SECONDS = 240


def engine_sources(runtime: Path = RUNTIME) -> list[Path]:
    """Files of our engine code, or of a copy of it."""
    return sorted(path for folder in ENGINE_CODE for path in (runtime / folder).glob("*.py"))


class UnavailableError(Exception):
    """These bindings cannot be had here: the message says why."""


@dataclass(frozen=True)
class Bindings:
    """One version of the bindings.

    Attributes:
        version: of TensorRT.
        folder: holds the package `tensorrt` and, in `libraries`, the stand-ins.
    """

    version: str
    folder: Path

    def describe(self) -> Description:
        """Every name in it, with the parameters that it takes: see describe.py."""
        described: Description = json.loads(self.python(STAND_INS / "describe.py"))
        return described

    def python(self, *arguments: str | Path, path: tuple[Path, ...] = (), **variables: str) -> str:
        """Run Python with these bindings and the runtime importable; what it prints.

        Args:
            arguments: of the interpreter.
            path: more folders to import from, before the runtime's.
            variables: of the environment.

        Raises:
            AssertionError: it failed or crashed; with all that it wrote.
        """
        result = self.run(*arguments, path=path, **variables)
        if result.returncode != 0:
            message = f"with TensorRT {self.version}: exit {result.returncode}\n{result.stdout}{result.stderr}"
            raise AssertionError(message)
        return result.stdout

    def run(
        self, *arguments: str | Path, path: tuple[Path, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """As `python`, whatever comes of it."""
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": _joined(self.folder / "libraries", os.environ.get("LD_LIBRARY_PATH")),
            "PYTHONPATH": _joined(self.folder, *path, RUNTIME, os.environ.get("PYTHONPATH")),
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-X", "faulthandler", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )


def obtain(version: str, cache: Path) -> Bindings:
    """Bindings of a version, from the cache or newly fetched and compiled.

    Raises:
        UnavailableError: no compiler, no package index, or no wheel for this machine.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        message = f"the stand-ins of TensorRT's libraries are for Linux on x86-64, not {platform.platform()}"
        raise UnavailableError(message)
    if compiler is None:
        message = "the stand-ins of TensorRT's libraries need a C compiler (cc, gcc or clang)"
        raise UnavailableError(message)
    sources = b"".join(path.read_bytes() for path in (*SOURCES.values(), Path(__file__)))
    digest = hashlib.sha256(sources).hexdigest()[:12]
    folder = cache / f"{version}-{sys.implementation.cache_tag}-{digest}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as work:
            _make(version, compiler, Path(work))
            _publish(Path(work) / "made", folder)
    return Bindings(version=version, folder=folder)


def _joined(*folders: Path | str | None) -> str:
    return os.pathsep.join(str(folder) for folder in folders if folder)


def _publish(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        # Another process was quicker.
        if not folder.is_dir():
            raise


def _make(version: str, compiler: str, work: Path) -> None:
    made, libraries = work / "made", work / "made" / "libraries"
    libraries.mkdir(parents=True)
    with zipfile.ZipFile(_fetch(version, work)) as wheel:
        wheel.extractall(work)
    shutil.move(work / "tensorrt_bindings", made / "tensorrt")
    # Imported by the bindings: where TensorRT is installed it would load the real libraries.
    (made / "tensorrt_libs.py").touch()
    for library, source in SOURCES.items():
        command = [compiler, "-std=gnu11", "-O1", "-fPIC", "-shared", "-o", str(libraries / library), str(source)]
        subprocess.run([*command, "-lpthread"], check=True, timeout=_SECONDS)
    for name in set(_NEEDED_LIBRARY.findall((made / "tensorrt" / "tensorrt.so").read_bytes())):
        (libraries / name.decode()).symlink_to("stand_in.so")


def _fetch(version: str, work: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(work), f"{_DISTRIBUTION}=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["pip says nothing"]
        message = f"{_DISTRIBUTION} {version} cannot be fetched for this Python: {lines[-1]}"
        raise UnavailableError(message)
    return next(work.glob("*.whl"))
