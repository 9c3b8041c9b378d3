"""What each host answers, and how long it takes: one bundle of raw pixels, the same photographs, eager PyTorch beside.

    python -m benchmarks.hosts PHOTOS [--hosts "C++,browser"] [--screenshot]

Every host gets the files, and one thread. Python is asked in turns with each, so that a row can be measured by itself;
the rows of other hosts are kept. A host is a function in `HOSTS`: of a bundle, it gives what answers files. Ray and
Triton's client have to be installed beside what exports: where they are not, the row says so.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks import RESULTS, ROOT
from benchmarks.host_programs import Host, HostUnavailable, Logits, asked, browser, cpp, python, served, unseen
from benchmarks.host_servers import one_by_one, ray_serve, triton
from benchmarks.host_tables import REFERENCE
from calipso_bench.contenders.eager_module import of_rebuilt
from calipso_bench.environment import commit, environment
from calipso_export import ExportConfig, export
from calipso_export.progress import silent
from calipso_export.rebuild import rebuild
from calipso_runtime.manifest import read_manifest

MODEL = ROOT / "models" / "shapes-vit" / "shapes-vit"
FILE = RESULTS / "hosts.json"
WHAT = "one bundle of raw pixels on every host, against eager PyTorch and in turns with Python"
ROUNDS = 5
# Every tenth photograph is timed, all are compared.
TIMED = 10
# How long to look at what else the machine does.
LOOK_S = 2.0
SHOWN = ("red mushroom", "blue striped star", "yellow key")


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
    where = whereabouts()
    with tempfile.TemporaryDirectory() as name:
        bundle = exported(Path(name))
        eager = eager_logits(bundle, photos)
        for host in wanted:
            keep_row(FILE, WHAT, measured(host, bundle, photos, eager, where))
        if arguments.screenshot:
            screenshot(bundle, Path(name))
    return 0


def whereabouts() -> dict[str, Any]:
    """What measures, and on what; asked before results are written, which change the checkout."""
    return {"commit": commit(), "environment": environment()}


def keep_row(path: Path, what: str, row: dict[str, Any], keys: Sequence[str] = ("host",)) -> None:
    """Put a row into results, in the place of the one that has the same keys.

    A host that cannot be measured here leaves what was measured of it elsewhere, and else why it is empty.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    told = ", ".join(row[key] for key in keys)
    if "reason" in row:
        print(f"{told}: not measured, {row['reason']}", flush=True)
        if any(each["host"] == row["host"] and "reason" not in each for each in rows):
            return
    else:
        rows = [each for each in rows if each["host"] != row["host"] or "reason" not in each]
    found = {tuple(each[key] for key in keys): each for each in (*rows, row)}
    document = {"schema_version": 1, "what": what, "rows": list(found.values())}
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{told}: wrote {path.name}", flush=True)


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


def measured(host: str, bundle: Path, photos: Sequence[Path], eager: Logits, where: dict[str, Any]) -> dict[str, Any]:
    """A host's row: its agreement with eager PyTorch, and its times in turns with Python's; or why there are none."""
    timed, busy_percent = photos[::TIMED], psutil.cpu_percent(interval=LOOK_S)
    try:
        with HOSTS[host](bundle) as ask, python(bundle) as ask_python:
            logits = ask(photos).logits
            # All have been asked before they are timed.
            ask_python(timed[:1])
            rounds = [(ask(timed).milliseconds, ask_python(timed).milliseconds) for _ in range(ROUNDS)]
    except HostUnavailable as reason:
        return {"host": host, "reason": str(reason)}
    return {
        "host": host,
        **where,
        "busy_percent": busy_percent,
        "photographs": len(photos),
        **differences(logits, eager),
        "samples_ms": [[round(sample, 3) for sample in own] for own, _ in rounds],
        "python_ms": [[round(sample, 3) for sample in reference] for _, reference in rounds],
    }


def differences(logits: Logits, eager: Logits) -> dict[str, float]:
    """How often the best class is eager PyTorch's, and the worst error relative to a picture's largest logit."""
    errors = np.abs(logits - eager).max(axis=1) / np.abs(eager).max(axis=1)
    return {
        "agreement": float((logits.argmax(axis=1) == eager.argmax(axis=1)).mean()),
        "relative_logit_error": float(errors.max()),
    }


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


_OTHER_BACK_ENDS = "as the server that was at hand, nvidia-pytriton's, has the Python back end alone"
HOSTS: dict[str, Host] = {
    REFERENCE: python,
    "C++": cpp,
    "browser": browser,
    "browser (WebGPU)": unseen("as there was no GPU; onnxruntime-web takes graphs of one size alone on it"),
    "Triton (Python)": one_by_one(triton),
    "Triton (ONNX Runtime)": unseen(_OTHER_BACK_ENDS),
    "Triton (TensorRT)": unseen(_OTHER_BACK_ENDS),
    "Ray Serve": one_by_one(ray_serve),
}


if __name__ == "__main__":
    sys.exit(main())
