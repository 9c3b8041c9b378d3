"""TensorRT's own Python bindings, and those of TensorRT for RTX, importable on a machine that has neither.

The wheel of the bindings alone is fetched from the package index when a test asks for it, laid out as the
package `tensorrt`, and set beside stand-ins of the libraries that it loads (tensorrt.c). Nothing of a wheel
is kept but in the cache folder that the caller names. The bindings of TensorRT for RTX are the package
`tensorrt_rtx`, and what imports `tensorrt` gets them too.
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
# All of TensorRT for RTX that the package index has, for CUDA 13.
RTX_VERSIONS = ("1.4.0.76", "1.5.0.114", "1.6.1.120", "1.7.1.116")
STAND_INS = Path(__file__).parent
SOURCES = {"stand_in.so": STAND_INS / "tensorrt.c", "libcuda.so.1": STAND_INS / "cuda.c"}
RUNTIME = STAND_INS.parents[2] / "runtime"
# A small example of code that imports tensorrt.
SAMPLE = STAND_INS / "sample_engine.py"
_BACKENDS = Path("calipso_runtime", "backends")
_NEEDED_LIBRARY = re.compile(rb"lib(?:nv|tensorrt_)[a-z_]+\.so\.\d+")
_SECONDS = 240


@dataclass(frozen=True)
class Family:
    """Where the bindings of a library come from, and which of our code they are for.

    Attributes:
        distribution: on the package index.
        unpacked: the package in its wheel.
        package: as which it is imported here.
        title: of the library, in messages.
        code: folders of ours that import it or are given it.
    """

    distribution: str
    unpacked: str
    package: str
    title: str
    code: tuple[str, ...]


TENSORRT = Family(
    distribution="tensorrt-cu12-bindings",
    unpacked="tensorrt_bindings",
    package="tensorrt",
    title="TensorRT",
    code=("tensorrt", "tensorrt_common"),
)
RTX = Family(
    distribution="tensorrt-rtx-cu13-bindings",
    unpacked="tensorrt_rtx_bindings",
    package="tensorrt_rtx",
    title="TensorRT for RTX",
    code=("tensorrt_rtx", "tensorrt_rtx/runtime", "tensorrt_common"),
)


def engine_sources(runtime: Path = RUNTIME, family: Family = TENSORRT) -> list[Path]:
    """Files of our engine code, or of a copy of it."""
    return sorted(path for folder in family.code for path in (runtime / _BACKENDS / folder).glob("*.py"))


class UnavailableError(Exception):
    """These bindings cannot be had here: the message says why."""


@dataclass(frozen=True)
class Bindings:
    """One version of the bindings.

    Attributes:
        version: of the library.
        folder: holds the package and, in `libraries`, the stand-ins.
        family: whose bindings they are.
    """

    version: str
    folder: Path
    family: Family = TENSORRT

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
            message = (
                f"with {self.family.title} {self.version}: exit {result.returncode}\n{result.stdout}{result.stderr}"
            )
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


def obtain(version: str, cache: Path, family: Family = TENSORRT) -> Bindings:
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
            _make(version, family, compiler, Path(work))
            _publish(Path(work) / "made", folder)
    return Bindings(version=version, folder=folder, family=family)


def _joined(*folders: Path | str | None) -> str:
    return os.pathsep.join(str(folder) for folder in folders if folder)


def _publish(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        # Another process was quicker.
        if not folder.is_dir():
            raise


def _make(version: str, family: Family, compiler: str, work: Path) -> None:
    made, libraries = work / "made", work / "made" / "libraries"
    libraries.mkdir(parents=True)
    with zipfile.ZipFile(_fetch(version, family.distribution, work)) as wheel:
        wheel.extractall(work)
    package = made / family.package
    shutil.move(work / family.unpacked, package)
    # Imported by the bindings: where the library is installed it would load the real one.
    (made / f"{family.package}_libs.py").touch()
    if family.package != "tensorrt":
        alias = f"import sys\n\nimport {family.package}\n\nsys.modules[__name__] = {family.package}\n"
        (made / "tensorrt.py").write_text(alias, encoding="utf-8")
    for library, source in SOURCES.items():
        command = [compiler, "-std=gnu11", "-O1", "-fPIC", "-shared", "-o", str(libraries / library), str(source)]
        subprocess.run([*command, "-lpthread"], check=True, timeout=_SECONDS)
    for name in set(_NEEDED_LIBRARY.findall((package / f"{family.package}.so").read_bytes())):
        (libraries / name.decode()).symlink_to("stand_in.so")


def _fetch(version: str, distribution: str, work: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(work), f"{distribution}=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["pip says nothing"]
        message = f"{distribution} {version} cannot be fetched for this Python: {lines[-1]}"
        raise UnavailableError(message)
    return next(work.glob("*.whl"))
