"""The page in a real Chromium: what it answers is what Python answers, and what it refuses is told."""

import base64
import hashlib
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.chromium import Chromium, find_chromium
from host_samples import (
    CLOSE,
    CLOSER,
    CONFIDENCE,
    DATA,
    photographs,
    plain_pictures,
    refused_pictures,
    same_as_python,
    scene,
    unusable_bundles,
    with_confidence,
)
from PIL import Image

import serve
from child_process import child

CHROMIUM = find_chromium()
LIBRARY = serve.PAGE / "node_modules" / "onnxruntime-web"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path; CALIPSO_CHROMIUM names another place"),
    pytest.mark.skipif(not LIBRARY.is_dir(), reason="no node_modules: run `npm install` in examples/web"),
]
# Chromium's own software renderer, and its own camera.
WITHOUT_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader")
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
PATIENCE_S = 300
# What a session would be given of a file's bytes: its shape, and the sha256 of its values.
DECODED = """async (content) => {
    const { Classifier } = await import("./calipso.js");
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    let given;
    const session = { run: async ({ pixels }) => ((given = pixels), { logits: { data: [0] } }) };
    class Tensor { constructor(type, data, shape) { Object.assign(this, { type, data, shape }); } }
    const manifest = { labels: ["one"], input: { channels: "rgb", size: null } };
    const classifier = new Classifier(manifest, session, { Tensor, env: { wasm: {} } }, "wasm");
    await classifier.classify(new Blob([bytes]), "picture");
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", given.data));
    return [given.shape, Array.from(digest, (value) => value.toString(16).padStart(2, "0")).join("")];
}"""
Answers = list[dict[str, Any]]


@pytest.fixture(scope="module")
def served(pixel_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Gives the page's URL for a bundle, with the headers that threads need or without."""
    servers = {isolated: serve.server(pixel_bundles, port=0, isolated=isolated) for isolated in (True, False)}
    for each in servers.values():
        threading.Thread(target=each.serve_forever, daemon=True).start()

    def give(bundle: str, *, isolated: bool = True, **settings: object) -> str:
        query = "".join(f"&{name}={value}" for name, value in settings.items())
        return f"http://localhost:{servers[isolated].server_port}/?bundle=bundle/{bundle}/{query}"

    yield give
    for each in servers.values():
        each.shutdown()
        each.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert CHROMIUM is not None
    with Chromium(CHROMIUM, tmp_path_factory.mktemp("profile"), *WITHOUT_GPU, *FAKE_CAMERA) as started:
        yield started


def text(browser: Chromium, element: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{element}').innerText"))


def wait(browser: Chromium, condition: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not browser.evaluate(condition):
        assert time.monotonic() < ends, condition
        time.sleep(0.05)


def answers(browser: Chromium, files: list[Path]) -> Answers:
    """What the page says of files that are chosen in its input."""
    before = browser.evaluate("import('./page.js').then(page => page.answers.length)")
    browser.choose("#files", files)
    wait(browser, f"import('./page.js').then(page => page.answers.length >= {before + len(files)})")
    found: Answers = browser.evaluate(f"import('./page.js').then(page => page.answers.slice({before}))")
    return found


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason=f"real photographs are not at {DATA}; set CALIPSO_REAL_DATA")
def test_real_photographs_get_python_s_labels_and_logits(
    browser: Chromium, served: Callable[..., str], pixel_bundles: Path
) -> None:
    files = photographs()
    assert len(files) == 630
    browser.open(served("any", engine="wasm"))

    assert same_as_python(pixel_bundles / "any", files, answers(browser, files)) < CLOSER


@pytest.mark.parametrize("settings", [{"threads": 1}, {"threads": 2}, {"isolated": False}])
def test_every_kind_of_plain_picture_gets_python_s_answer(
    settings: dict[str, Any], browser: Chromium, served: Callable[..., str], pixel_bundles: Path, tmp_path: Path
) -> None:
    files = plain_pictures(tmp_path / "pictures")
    browser.open(served("any", **settings))

    assert same_as_python(pixel_bundles / "any", files, answers(browser, files)) < CLOSE
    threads = settings.get("threads", 1)
    assert f"WebAssembly, {threads} thread" in text(browser, "facts")
    assert browser.evaluate("crossOriginIsolated") is settings.get("isolated", True)


def test_decoded_pixels_are_pillow_s(browser: Chromium, served: Callable[..., str], tmp_path: Path) -> None:
    files = [*plain_pictures(tmp_path / "plain"), *photographs()[::60]]
    browser.open(served("any"))

    for path in files:
        content = base64.b64encode(path.read_bytes()).decode()
        shape, found = browser.evaluate(f"({DECODED})('{content}')")
        with Image.open(path) as image:
            wanted = np.asarray(image.convert("RGB"))
        assert shape == [1, *wanted.shape]
        assert found == hashlib.sha256(wanted.tobytes()).hexdigest(), path


def test_pictures_that_cannot_be_answered_are_told_and_answers_go_on(
    browser: Chromium, served: Callable[..., str], pixel_bundles: Path, tmp_path: Path
) -> None:
    refused, plain = refused_pictures(tmp_path / "refused"), plain_pictures(tmp_path / "plain")
    browser.open(served("any"))

    for path, word in refused.items():
        (answer,) = answers(browser, [path])
        assert path.name in answer["error"], answer
        assert word in answer["error"], answer
        assert text(browser, "status") == answer["error"]
    assert same_as_python(pixel_bundles / "any", plain[:1], answers(browser, plain[:1])) < CLOSE


def test_bundles_that_cannot_be_used_are_told(
    browser: Chromium, served: Callable[..., str], pixel_bundles: Path
) -> None:
    for name, said in unusable_bundles(pixel_bundles, pixel_bundles / "unusable"):
        browser.open(served(f"unusable/{name}"))

        assert said in text(browser, "status"), name
        assert f"unusable/{name}" in text(browser, "status")
        assert browser.evaluate("document.getElementById('files').disabled")


def test_bundles_of_any_labels_and_of_taught_heads_are_told_to_be_python_s(
    browser: Chromium, served: Callable[..., str], bundles_for_python: dict[str, Path]
) -> None:
    for kind in bundles_for_python:
        browser.open(served(kind))

        assert f'{kind}/manifest.json has a head of kind "{kind}"' in text(browser, "status")
        assert "for Python alone" in text(browser, "status")
        assert browser.evaluate("document.getElementById('files').disabled")


def test_a_graph_of_one_size_takes_rgba_on_webgpu_and_refuses_others(
    browser: Chromium, served: Callable[..., str], pixel_bundles: Path, tmp_path: Path
) -> None:
    good, other = tmp_path / "good.png", tmp_path / "other.png"
    scene(size=(128, 96)).save(good)
    scene(size=(96, 128)).save(other)
    for engine in ("wasm", "webgpu"):
        browser.open(served("fixed", engine=engine))
        if engine == "webgpu" and not browser.evaluate("navigator.gpu?.requestAdapter().then(found => found !== null)"):
            pytest.skip("this Chromium has no adapter for WebGPU")
        first, second = answers(browser, [good, other])

        assert same_as_python(pixel_bundles / "fixed", [good], [first]) < CLOSE
        assert "takes pictures of 128 x 96 alone" in second["error"]
        assert ("WebGPU" in text(browser, "facts")) == (engine == "webgpu")


def test_webgpu_is_refused_for_graphs_of_any_size(browser: Chromium, served: Callable[..., str]) -> None:
    browser.open(served("any", engine="webgpu"))

    assert "--pixels-size" in text(browser, "status")


@pytest.mark.parametrize("wrong", [{"engine": "gpu"}, {"threads": "two"}, {"threads": -1}])
def test_wrong_settings_are_told(wrong: dict[str, object], browser: Chromium, served: Callable[..., str]) -> None:
    browser.open(served("any", **wrong))

    assert f"?{next(iter(wrong))}=" in text(browser, "status")


def test_the_bundle_s_temperature_and_unknown_pictures_are_told(
    browser: Chromium, served: Callable[..., str], pixel_bundles: Path, tmp_path: Path
) -> None:
    with_confidence(pixel_bundles, pixel_bundles / "confident")
    files = plain_pictures(tmp_path / "pictures")
    browser.open(served("confident"))

    found = answers(browser, files)

    assert same_as_python(pixel_bundles / "any", files, found, CONFIDENCE) < CLOSE
    unknown = [answer["unknown"] for answer in found]
    assert text(browser, "answers").count("probably none of the classes") == sum(unknown) > 0


def test_the_page_shows_labels_times_and_the_manifest(
    browser: Chromium, served: Callable[..., str], tmp_path: Path
) -> None:
    (file, *_) = plain_pictures(tmp_path / "pictures")
    browser.open(served("any"))
    answers(browser, [file])

    assert all(label in text(browser, "answers") for label in ("circle", "square", "triangle", "star", "%"))
    assert " ms" in text(browser, "answers")
    assert "shapes-vit" in text(browser, "facts")
    assert browser.evaluate("JSON.parse(document.getElementById('manifest').textContent).schema_version") == 1


def test_dropped_files_are_answered(browser: Chromium, served: Callable[..., str]) -> None:
    browser.open(served("any"))

    browser.evaluate(
        """(async () => {
        const canvas = new OffscreenCanvas(70, 50);
        canvas.getContext("2d").fillRect(0, 0, 70, 50);
        const data = new DataTransfer();
        data.items.add(new File([await canvas.convertToBlob()], "dropped.png"));
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
        })()"""
    )
    wait(browser, "import('./page.js').then(page => page.answers.length === 1)")

    assert "dropped.png" in text(browser, "answers")
    assert "70 x 50" in text(browser, "answers")


def test_the_camera_s_frames_are_answered(browser: Chromium, served: Callable[..., str]) -> None:
    browser.open(served("any"))

    browser.evaluate("document.getElementById('camera').click()")
    wait(browser, "document.getElementById('live').innerText.includes('circle')")

    assert "answered in" in text(browser, "live")
    assert not browser.evaluate("document.getElementById('video').hidden")


def test_the_script_serves_with_the_headers_or_without(pixel_bundles: Path) -> None:
    for flags, isolated in ((["--port", "0"], True), (["--port", "0", "--single-thread"], False)):
        command = [sys.executable, serve.__file__, pixel_bundles / "any", *flags]
        with child(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with urllib.request.urlopen(f"{url}bundle/manifest.json") as answer:  # noqa: S310 - our own server
                assert ("Cross-Origin-Embedder-Policy" in answer.headers) is isolated
                assert b"schema_version" in answer.read()


def test_the_script_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    command = [sys.executable, serve.__file__, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 2
    assert "has no manifest.json" in result.stderr
