"""What each host answers, and how long it takes: one bundle of raw pixels, the same photographs, eager PyTorch beside.

    python -m benchmarks.hosts PHOTOS [--hosts C++,browser] [--screenshot]

Every host gets the files, and one thread. Python is asked in turns with each, so that a row can be measured by itself;
the rows of other hosts are kept. A host is a function in `HOSTS`: of a bundle, it gives what answers files.
"""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks import RESULTS, ROOT
from benchmarks.chromium import Chromium, find_chromium
from benchmarks.host_tables import REFERENCE
from calipso_bench.contenders.eager_module import of_rebuilt
from calipso_bench.environment import commit, environment
from calipso_export import ExportConfig, export
from calipso_export.progress import silent
from calipso_export.rebuild import rebuild
from calipso_runtime import load
from calipso_runtime.manifest import read_manifest

MODEL = ROOT / "models" / "shapes-vit" / "shapes-vit"
WEB = ROOT / "examples" / "web"
ROUNDS = 5
# Every tenth photograph is timed, all are compared.
TIMED = 10
SHOWN = ("red mushroom", "blue striped star", "yellow key")
_PATIENCE_S = 900.0

Logits = npt.NDArray[np.float32]


class Answers(NamedTuple):
    """What a host says of files: logits float32 [N,K], labels in order, and the time from file to answer of each."""

    logits: Logits
    milliseconds: list[float]


Ask = Callable[[Sequence[Path]], Answers]


class HostUnavailable(Exception):  # noqa: N818 - not an error: the cell stays empty
    """Why this host cannot be measured here."""


def main() -> int:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path, help="folder of photographs, searched for .jpg")
    parser.add_argument("--hosts", default=",".join(HOSTS))
    parser.add_argument("--screenshot", action="store_true", help="write docs/web.png too")
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.rglob("*.jpg"))
    wanted = arguments.hosts.split(",")
    if not photos or not set(wanted) <= set(HOSTS):
        parser.error(f"{arguments.photos} has {len(photos)} photographs; hosts are {', '.join(HOSTS)}")
    with tempfile.TemporaryDirectory() as name:
        bundle = exported(Path(name))
        eager = eager_logits(bundle, photos)
        for host in wanted:
            keep(measured(host, bundle, photos, eager))
        if arguments.screenshot:
            screenshot(bundle, Path(name))
    return 0


def keep(row: dict[str, Any]) -> None:
    """Put a row into the results, in the place of an earlier one of its host."""
    path = RESULTS / "hosts.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    found = {each["host"]: each for each in (*rows, row)}
    document = {
        "schema_version": 1,
        "what": "one bundle of raw pixels on every host, against eager PyTorch and in turns with Python",
        "rows": list(found.values()),
    }
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{row['host']}: wrote {path.name}", flush=True)


def exported(folder: Path) -> Path:
    """The shipped model with the demo's classes, for pictures of any size."""
    draw = [sys.executable, str(ROOT / "examples/shapes/draw.py"), "--out", str(folder / "task")]
    subprocess.run([*draw, "--shots", "1", "--held-out", "1"], check=True, capture_output=True)
    export(
        ExportConfig(
            model=f"{MODEL}.json",
            checkpoint=Path(f"{MODEL}.safetensors"),
            classes=tuple((folder / "task/classes.txt").read_text(encoding="utf-8").splitlines()),
            templates="photo",
            pixels=True,
            calip=False,
            output=folder / "shapes.calipso",
        )
    )
    return folder / "shapes.calipso"


def eager_logits(bundle: Path, photos: Sequence[Path]) -> Logits:
    """open_clip's own transform and model, picture by picture."""
    manifest = read_manifest(bundle / "manifest.json")
    checkpoint = Path(f"{MODEL}.safetensors")
    model = of_rebuilt(rebuild(bundle, manifest, checkpoint=checkpoint, model=f"{MODEL}.json", progress=silent))
    answers = []
    with torch.inference_mode():
        for path in photos:
            with Image.open(path) as image:
                answers.append(model.module(model.transform(image)[None])[0][0].numpy())
    return np.stack(answers)


def measured(host: str, bundle: Path, photos: Sequence[Path], eager: Logits) -> dict[str, Any]:
    """A host's row: its agreement with eager PyTorch, and its times in turns with Python's; or why there are none."""
    timed = photos[::TIMED]
    try:
        with HOSTS[host](bundle) as ask, python(bundle) as ask_python:
            logits = ask(photos).logits
            # All have been asked before they are timed.
            ask_python(timed[:1])
            rounds = [(ask(timed).milliseconds, ask_python(timed).milliseconds) for _ in range(ROUNDS)]
    except HostUnavailable as reason:
        return {"host": host, "reason": str(reason)}
    errors = np.abs(logits - eager).max(axis=1) / np.abs(eager).max(axis=1)
    return {
        "host": host,
        "commit": commit(),
        "environment": environment(),
        "photographs": len(photos),
        "agreement": float((logits.argmax(axis=1) == eager.argmax(axis=1)).mean()),
        "relative_logit_error": float(errors.max()),
        "samples_ms": [[round(sample, 3) for sample in own] for own, _ in rounds],
        "python_ms": [[round(sample, 3) for sample in reference] for _, reference in rounds],
    }


@contextmanager
def python(bundle: Path) -> Iterator[Ask]:
    """The runtime, on ONNX Runtime."""
    with load(bundle, backend="ort", threads=1, keep_optimised=False) as classifier:

        def ask(files: Sequence[Path]) -> Answers:
            logits, milliseconds = [], []
            for path in files:
                start = time.perf_counter()
                logits.append(classifier.logits(str(path)))
                milliseconds.append(1e3 * (time.perf_counter() - start))
            return Answers(np.stack(logits), milliseconds)

        yield ask


@contextmanager
def cpp(bundle: Path) -> Iterator[Ask]:
    """examples/cpp, built here."""
    cmake = shutil.which("cmake")
    if cmake is None:
        message = "there is no CMake"
        raise HostUnavailable(message)
    with tempfile.TemporaryDirectory() as name:
        for command in (["-S", str(ROOT / "examples/cpp"), "-B", name], ["--build", name]):
            done = subprocess.run([cmake, *command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                message = (
                    "it was not built: no headers of ONNX Runtime (ONNXRUNTIME_ROOT), or another library is missing"
                )
                raise HostUnavailable(message)
        labels = read_manifest(bundle / "manifest.json").labels
        program = [f"{name}/calipso-pixels", "--threads", "1", "--times", "--top", str(len(labels)), str(bundle)]

        def ask(files: Sequence[Path]) -> Answers:
            # The first picture is asked twice: what a process does but once is not counted.
            command = [*program, *map(str, (files[0], *files))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            return answers_of([json.loads(line) for line in done.stdout.splitlines()[1:]], labels)

        yield ask


@contextmanager
def served(bundle: Path) -> Iterator[Chromium]:
    """examples/web in a headless Chromium, with one thread, loaded."""
    program = find_chromium()
    if program is None or not (WEB / "node_modules/onnxruntime-web").is_dir():
        message = f"there is no {'Chromium' if program is None else 'node_modules in examples/web'}"
        raise HostUnavailable(message)
    sys.path.insert(0, str(WEB))
    server = importlib.import_module("serve").server(bundle, port=0, isolated=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as name, Chromium(program, Path(name), "--hide-scrollbars") as page:
            page.open(f"http://localhost:{server.server_port}/?engine=wasm&threads=1")
            yield page
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser(bundle: Path) -> Iterator[Ask]:
    """The page, whose input is given the files."""
    labels = read_manifest(bundle / "manifest.json").labels
    with served(bundle) as page:

        def ask(files: Sequence[Path]) -> Answers:
            return answers_of(asked(page, files), labels)

        yield ask


def asked(page: Chromium, files: Sequence[Path]) -> list[dict[str, Any]]:
    """What the page says of files.

    Raises:
        TimeoutError: it does not answer.
    """
    count: int = page.evaluate("import('./page.js').then(page => page.answers.length)")
    page.choose("#files", files)
    ends = time.monotonic() + _PATIENCE_S
    while page.evaluate("import('./page.js').then(page => page.answers.length)") < count + len(files):
        if time.monotonic() > ends:
            message = f"the page does not answer {len(files)} files in {_PATIENCE_S:.0f} s"
            raise TimeoutError(message)
        time.sleep(0.1)
    found: list[dict[str, Any]] = page.evaluate(f"import('./page.js').then(page => page.answers.slice({count}))")
    return found


def answers_of(lines: Sequence[dict[str, Any]], labels: Sequence[str]) -> Answers:
    """JSON lines with all classes and times, as arrays."""
    by_label = [{score["label"]: score["logit"] for score in line["predictions"]} for line in lines]
    logits = np.array([[logits[label] for label in labels] for logits in by_label], np.float32)
    return Answers(logits, [line["times"]["decode_ms"] + line["times"]["run_ms"] for line in lines])


def screenshot(bundle: Path, folder: Path) -> None:
    """docs/web.png: the page with drawn pictures, whose rights are clear, in few colours."""
    pictures = [folder / f"{name}.png" for name in SHOWN]
    for picture in pictures:
        shutil.copy(folder / "task" / "held-out" / picture.stem / "000.png", picture)
    with served(bundle) as page:
        # The times that are shown are those of a page in use.
        for _ in range(3):
            asked(page, pictures)
        page.evaluate("new Promise(shown => setTimeout(shown, 500))")
        page.screenshot(folder / "web.png", width=900, height=600)
    with Image.open(folder / "web.png") as image:
        image.convert("RGB").quantize(96).save(ROOT / "docs" / "web.png", optimize=True)


HOSTS: dict[str, Callable[[Path], AbstractContextManager[Ask]]] = {
    REFERENCE: python,
    "C++": cpp,
    "browser": browser,
}


if __name__ == "__main__":
    sys.exit(main())
