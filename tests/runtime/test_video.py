"""Videos: every frame gets the answer that its picture gets, when it comes, and what is missing is told."""

import http.server
import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bad_inputs import no_models
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from open_samples import write_open_bundle
from PIL import Image
from runtime_samples import MakeBundle

import calipso_runtime
from calipso_runtime.cli import calipso
from calipso_runtime.errors import BackendUnavailableError, ImageError, InputError, UsageError
from calipso_runtime.video import Smoother, _chooser, classify_video, frames
from child_process import child

av = pytest.importorskip("av", reason="needs PyAV: pip install 'calipso[video]'")

PROJECT = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("CALIPSO_REAL_DATA", PROJECT.parent / "shared" / "data" / "caltech101"))
WIDTH, HEIGHT, RATE = 64, 48, 10
# Codecs that keep every value, so that a frame is its picture.
LOSSLESS = {".mkv": ("ffv1", "bgr0"), ".avi": ("png", "rgb24"), ".mp4": ("libx264rgb", "rgb24")}
Encode = Callable[..., Path]


def drawn(count: int) -> list[Image.Image]:
    """Gradients that differ from frame to frame."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [np.stack([down * 5 + k * 9, across * 3 + k * 31, (down + across) * 2 + k * 57], -1) for k in range(count)]
    return [Image.fromarray((plane % 256).astype(np.uint8)) for plane in planes]


def write_film(
    path: Path, pictures: Sequence[Image.Image], codec: str, pix_fmt: str, container: dict[str, str] | None = None
) -> Path:
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, pix_fmt
        if codec.startswith("libx264"):
            stream.options = {"qp": "0", "preset": "ultrafast"}
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_image(picture).reformat(format=pix_fmt)):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return path


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, lossless."""
    return write_film(tmp_path_factory.mktemp("film") / "film.mkv", drawn(20), *LOSSLESS[".mkv"])


@pytest.fixture
def classifier(tiny: Path) -> Iterator[calipso_runtime.Classifier]:
    with calipso_runtime.load(tiny) as loaded:
        yield loaded


def classify(*arguments: object) -> Result:
    return CliRunner().invoke(calipso, ["classify", *map(str, arguments)])


def lines(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("extension", LOSSLESS)
@pytest.mark.parametrize("batch", [1, 8])
def test_each_frame_gets_the_answer_of_its_picture(
    tmp_path: Path, classifier: calipso_runtime.Classifier, extension: str, batch: int
) -> None:
    pictures = drawn(11)
    path = write_film(tmp_path / f"film{extension}", pictures, *LOSSLESS[extension])

    answers = list(classify_video(classifier, str(path), top=3, batch=batch))

    assert [frame.number for frame, _ in answers] == list(range(11))
    np.testing.assert_allclose([frame.time_s for frame, _ in answers], np.arange(11) / RATE, atol=1e-3)
    for (frame, answer), picture in zip(answers, pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(frame.picture), np.asarray(picture))
        expected = classifier.classify(picture, top=3)
        assert [score.label for score in answer] == [score.label for score in expected]
        np.testing.assert_allclose([s.logit for s in answer], [s.logit for s in expected], rtol=1e-5)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real photographs at {REAL_DATA} (set CALIPSO_REAL_DATA)")
def test_a_film_of_real_photographs_is_answered_like_the_photographs(tmp_path: Path, tiny: Path) -> None:
    photos = sorted(REAL_DATA.glob("images/*/*.jpg"))[::21]
    pictures = [Image.open(photo).convert("RGB").resize((320, 240)) for photo in photos]
    path = write_film(tmp_path / "photos.mkv", pictures, *LOSSLESS[".mkv"])

    found = lines(classify(tiny, path, "--top", 2))

    assert len(found) == len(photos) == 30
    with calipso_runtime.load(tiny) as loaded:
        for line, expected in zip(found, loaded.classify(pictures, top=2), strict=True):
            assert [each["label"] for each in line["predictions"]] == [score.label for score in expected]


@pytest.mark.parametrize("kind", ["open", "embed"])
def test_frames_are_answered_over_labels_that_the_call_names(tmp_path: Path, film: Path, kind: str) -> None:
    bundle = write_open_bundle(tmp_path / "open.calipso", kind=kind)

    found = lines(classify(bundle, film, "--labels", "cat,dog,bird", "--smooth", "0.5", "--every", 5))

    assert len(found) == 4
    with calipso_runtime.load(bundle) as loaded:
        wanted = loaded.classify(drawn(1)[0], labels=["cat", "dog", "bird"])
    first = {score["label"]: score["logit"] for score in found[0]["predictions"]}
    assert first == pytest.approx({score.label: score.logit for score in wanted}, abs=1e-4)


def test_every_and_fps_choose_frames(film: Path) -> None:
    def numbers(**options: object) -> list[int]:
        return [frame.number for frame in frames(str(film), **options)]

    assert numbers(every=7) == [0, 7, 14]
    assert numbers(fps=5) == list(range(0, 20, 2))
    assert numbers(fps=4) == [0, 3, 5, 8, 10, 13, 15, 18]
    assert numbers(fps=60) == list(range(20))
    assert numbers(every=2, fps=5) == list(range(0, 20, 2))


@given(fps=st.floats(0.1, 60), rate=st.sampled_from([10.0, 23.976, 25.0, 29.97, 60.0]))
def test_frames_that_are_taken_are_the_first_of_their_intervals(fps: float, rate: float) -> None:
    wanted = _chooser(1, fps)

    taken = [number for number in range(200) if wanted(number, number / rate)]

    intervals = [int(number / rate * fps + 1e-3) for number in range(200)]
    assert taken == [number for number in range(200) if number == 0 or intervals[number] != intervals[number - 1]]


def test_smoothed_probabilities_are_the_formulas(film: Path, classifier: calipso_runtime.Classifier) -> None:
    plain = [answer for _, answer in classify_video(classifier, str(film), top=99)]
    answers = list(classify_video(classifier, str(film), smooth_s=0.35, top=99))

    expected = probabilities(plain[0])
    for place, (_, answer) in enumerate(answers):
        if place:
            weight = np.exp(-(1 / RATE) / 0.35)
            expected = weight * expected + (1 - weight) * probabilities(plain[place])
        np.testing.assert_allclose(probabilities(answer), expected, rtol=1e-9)
        assert [score.probability for score in answer] == sorted(probabilities(answer), reverse=True)
        assert {score.index: score.logit for score in answer} == {score.index: score.logit for score in plain[place]}


def probabilities(prediction: calipso_runtime.Prediction) -> npt.NDArray[np.float64]:
    return np.array([score.probability for score in sorted(prediction, key=lambda score: score.index)])


@given(times=st.lists(st.floats(0, 100), min_size=1, max_size=20), tau=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_smoothing_does_not_depend_on_how_often_one_looks(times: list[float], tau: float, seed: int) -> None:
    before, after = np.random.default_rng(seed).dirichlet(np.ones(5), 2)
    often, once = Smoother(tau), Smoother(tau)
    for smoother in (often, once):
        smoother.smoothed(0.0, before)

    for moment in sorted(times):
        found = often.smoothed(moment, after)

    np.testing.assert_allclose(found, once.smoothed(max(times), after), atol=1e-9)
    assert found.sum() == pytest.approx(1)


def test_smoothing_takes_a_single_frame_of_something_else_away(
    tmp_path: Path, classifier: calipso_runtime.Classifier
) -> None:
    candidates = drawn(20)
    usual = candidates[0]
    other = next(each for each in candidates if classifier.classify(each).label != classifier.classify(usual).label)
    path = write_film(tmp_path / "flicker.mkv", [usual] * 5 + [other] + [usual] * 5, *LOSSLESS[".mkv"])

    def labels(**options: object) -> set[str]:
        return {answer.label for _, answer in classify_video(classifier, str(path), **options)}

    assert len(labels()) == 2
    assert labels(smooth_s=2.0) == {classifier.classify(usual).label}


def test_an_unknown_is_told_by_the_smoothed_probability(make_bundle: MakeBundle, film: Path) -> None:
    bundle = make_bundle(confidence={"temperature": 1.0, "unknown": {"threshold": 0.99999}})

    told = lines(classify(bundle, film, "--smooth", 1))

    assert [line["unknown"] for line in told] == [line["predictions"][0]["probability"] < 0.99999 for line in told]
    assert any(line["unknown"] for line in told)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_a_film_that_was_taken_sideways_is_turned_upright(
    tmp_path: Path, matrix: tuple[int, int, int, int], turns: int
) -> None:
    picture = drawn(1)[0]
    path = write_film(tmp_path / "phone.mp4", [picture] * 2, *LOSSLESS[".mp4"])
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", content, content.rfind(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)

    shown = [np.asarray(frame.picture) for frame in frames(str(path))]

    np.testing.assert_array_equal(shown[0], np.rot90(np.asarray(picture), turns))


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "cut.mp4", "cut.webm"])
@pytest.mark.parametrize("batch", [1, 8])
def test_of_a_truncated_film_what_is_there_is_answered_and_the_end_is_told(
    tmp_path: Path, tiny: Path, name: str, batch: int
) -> None:
    extension = Path(name).suffix
    codec = LOSSLESS.get(extension, ("libvpx-vp9", "yuv420p"))
    pictures = [Image.effect_noise((WIDTH, HEIGHT), 60 + k).convert("RGB") for k in range(20)]
    # With its index in front: behind, nothing of a truncated film could be read.
    faststart = {"movflags": "faststart"} if extension == ".mp4" else None
    path = write_film(tmp_path / name, pictures, *codec, faststart)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    result = classify(tiny, path, "--batch", batch)

    assert result.exit_code == 1
    assert 3 < len(lines(result)) < 15
    assert result.stderr.startswith(f"error: {path} ends early: after {len(lines(result))} frames")
    assert result.stderr.count("\n") == 1


def test_a_film_that_is_damaged_in_its_middle_goes_on_behind_it(tmp_path: Path, tiny: Path) -> None:
    pictures = [Image.effect_noise((WIDTH, HEIGHT), 60 + k).convert("RGB") for k in range(20)]
    path = write_film(tmp_path / "scratched.avi", pictures, "png", "rgb24")
    content = bytearray(path.read_bytes())
    at = content.find(b"\x89PNG", len(content) // 2)
    content[at : at + 4] = b"junk"
    path.write_bytes(content)

    result = classify(tiny, path)

    assert result.exit_code == 1
    # The decoder may lose what it worked on beside the damaged one.
    assert 15 < len(lines(result)) < 20
    assert lines(result)[-1]["time_s"] == 1.9
    assert result.stderr.startswith(f"error: {path} is damaged: 1 of its packets could not be decoded")


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le" if path.suffix == ".mkv" else "aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        for each in (frame, None):
            for packet in stream.encode(each):
                output.mux(packet)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (write_sound, "holds no video"),
        (lambda path: path.write_bytes(b""), "cannot be used as a video"),
        (lambda path: path.write_text("no film"), "cannot be used as a video"),
        (lambda path: path.unlink(missing_ok=True), "cannot be used as a video: No such file"),
    ],
)
@pytest.mark.parametrize("name", ["film.mkv", "film.mp4"])
def test_what_is_no_video_is_told(tmp_path: Path, tiny: Path, write: Callable[[Path], object], told: str, name) -> None:
    write(tmp_path / name)

    result = classify(tiny, tmp_path / name)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {tmp_path / name} {told}")
    assert result.stderr.count("\n") == 1


def write_y4m(path: Path, header: str, *frames: bytes) -> Path:
    content = b"".join(b"FRAME\n" + frame for frame in frames)
    path.write_bytes(f"YUV4MPEG2 {header} F25:1 Ip\n".encode() + content)
    return path


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("W60000 H2000 C420jpeg", "is too large to be decoded safely: it has 60000 x 2000 pixels, Pillow's limit is"),
        ("W60000 H60000 C420jpeg", "cannot be used as a video"),
        ("W0 H16 C420jpeg", "cannot be used as a video"),
        ("W16 H16 C999", "cannot be used as a video"),
    ],
)
def test_a_size_or_a_kind_of_pixel_that_cannot_be_is_told(tmp_path: Path, tiny: Path, header: str, told: str) -> None:
    path = write_y4m(tmp_path / "film.y4m", header, bytes(1000))

    result = classify(tiny, path)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path} {told}")
    assert result.stderr.count("\n") == 1


def test_a_film_of_sixty_thousand_pixels_width_and_few_lines_is_answered(
    tmp_path: Path, classifier: calipso_runtime.Classifier
) -> None:
    plane = np.random.default_rng(0).integers(0, 256, (2, 60_000), np.uint8)
    path = write_y4m(tmp_path / "film.y4m", "W60000 H2 Cmono", plane.tobytes())

    ((frame, answer),) = classify_video(classifier, str(path))

    np.testing.assert_array_equal(np.asarray(frame.picture), np.stack([plane] * 3, -1))
    assert answer.label == classifier.classify(Image.fromarray(plane)).label


def test_frames_of_one_or_four_channels_are_answered_as_their_rgb(tmp_path: Path) -> None:
    grey = np.asarray(drawn(1)[0].convert("L"))
    opaque = drawn(1)[0].convert("RGBA")
    opaque.putalpha(77)
    one = write_y4m(tmp_path / "grey.y4m", f"W{WIDTH} H{HEIGHT} Cmono", grey.tobytes())
    four = write_film(tmp_path / "alpha.avi", [opaque], "png", "rgba")

    (of_one,), (of_four,) = list(frames(str(one))), list(frames(str(four)))

    np.testing.assert_array_equal(np.asarray(of_one.picture), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(np.asarray(of_four.picture), np.asarray(opaque.convert("RGB")))


def test_a_frame_that_is_a_truncated_jpeg_is_told_and_not_answered(tmp_path: Path, tiny: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise((WIDTH, HEIGHT), 60).convert("RGB").save(stream, "JPEG")
    whole = stream.getvalue()
    path = tmp_path / "film.mjpeg"
    path.write_bytes(whole + whole[: len(whole) // 2] + b"\xff\xd9" + whole)

    result = classify(tiny, path)

    assert result.exit_code == 1
    assert [line["frame"] for line in lines(result)] == [0, 1]
    assert result.stderr.startswith(f"error: {path} is damaged: 1 of its packets could not be decoded")


@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p"), ("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p")])
def test_a_frame_of_which_half_is_made_up_is_told_and_not_answered(
    tmp_path: Path, tiny: Path, codec: str, pix_fmt: str
) -> None:
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=RATE)
        # Every frame for itself, as they are encoded.
        stream.width, stream.height, stream.pix_fmt, stream.gop_size, stream.max_b_frames = WIDTH, HEIGHT, pix_fmt, 1, 0
        pictures = [Image.effect_noise((WIDTH, HEIGHT), 60 + k).convert("RGB") for k in range(10)]
        frames = [av.VideoFrame.from_image(picture).reformat(format=pix_fmt) for picture in pictures]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        for place, packet in enumerate(packets):
            content = bytes(packet)
            half = av.Packet(content[: len(content) // 2])
            half.stream, half.pts, half.dts = stream, packet.pts, packet.dts
            half.time_base, half.is_keyframe = packet.time_base, packet.is_keyframe
            output.mux(half if place == 4 else packet)

    result = classify(tiny, path)

    assert result.exit_code == 1
    assert [line["time_s"] for line in lines(result)] == [0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert result.stderr == f"error: {path} is damaged: 1 of its packets could not be decoded. 9 frames were answered\n"


def test_what_is_no_calipso_file_is_told_before_the_film_is_opened(tmp_path: Path, film: Path) -> None:
    for path, said in no_models(tmp_path / "models").items():
        result = classify(path, film)

        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {path}")
        assert said in result.stderr


def test_a_film_without_a_frame_is_told(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "empty.y4m"
    path.write_bytes(b"YUV4MPEG2 W16 H16 F25:1 Ip C420jpeg\n")

    result = classify(tiny, path)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path} holds no frame that can be decoded")


def test_a_camera_that_is_not_there_is_told(tiny: Path) -> None:
    result = classify(tiny, "camera:97")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: camera:97 cannot be used as a video")


def test_one_of_two_films_may_fail(tmp_path: Path, tiny: Path, film: Path) -> None:
    result = classify(tiny, tmp_path / "lost.mp4", film, "--fps", 1)

    assert result.exit_code == 1
    assert [(line["video"], line["frame"], line["time_s"]) for line in lines(result)] == [
        (str(film), 0, 0.0),
        (str(film), 10, 1.0),
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("film.mp4", "photo.jpg"), "film.mp4 is a video, and others are not"),
        (("photo.jpg", "--fps", "2"), "--fps is for videos, and photo.jpg is none"),
        (("photo.jpg", "--smooth", "2"), "--smooth is for videos"),
        (("film.mp4", "--fps", "0"), "fps is 0.0: expected a number above 0"),
        (("film.mp4", "--fps", "nan"), "fps is nan"),
        (("film.mp4", "--smooth", "-1"), "smoothing over -1.0 seconds"),
        (("film.mp4", "--every", "0"), "--every"),
    ],
)
def test_bad_usage_exits_2(tiny: Path, arguments: tuple[str, ...], told: str) -> None:
    result = classify(tiny, *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_python_is_told_the_same(film: Path, classifier: calipso_runtime.Classifier) -> None:
    for options in ({"every": 0}, {"fps": -1.0}, {"smooth_s": float("inf")}):
        with pytest.raises(UsageError, match=r"expected a (whole )?number"):
            next(classify_video(classifier, str(film), **options))
    with pytest.raises(InputError, match="batch is 0"):
        next(classify_video(classifier, str(film), batch=0))
    with pytest.raises(ImageError, match="No such file"):
        next(classify_video(classifier, "lost.mp4"))


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(BackendUnavailableError, match=r"pip install 'calipso\[video\]'"):
        next(frames(str(film)))


@pytest.fixture
def stream(film: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a film of which the second half never comes."""
    path = write_film(tmp_path / "live.ts", drawn(100), "mpeg2video", "yuv420p")
    content, over = path.read_bytes(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            over.wait(60)

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/live.ts"
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_live_stream_is_answered_as_it_comes_and_ctrl_c_ends_it(tiny: Path, stream: str) -> None:
    command = [sys.executable, "-m", "calipso_runtime", "classify", tiny, stream, "--top", "1"]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # The film has not ended, and these are there.
        came = [json.loads(line)["frame"] for line in itertools.islice(process.stdout, 20)]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert came == list(range(20))
    assert (process.returncode, err) == (130, "")
    assert all(json.loads(line) for line in out.splitlines())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
def test_memory_does_not_grow_with_the_film(tmp_path: Path, tiny: Path) -> None:
    # As pixels, 400 frames are 370 MB.
    pictures = [Image.new("RGB", (640, 480), (k % 256, 0, 0)) for k in range(400)]
    long = write_film(tmp_path / "long.mp4", pictures, *LOSSLESS[".mp4"])
    short = write_film(tmp_path / "short.mp4", pictures[:40], *LOSSLESS[".mp4"])
    code = (
        "import resource, sys; from calipso_runtime.cli import calipso; "
        "calipso(sys.argv[1:], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak_kb(path: Path) -> int:
        command = [sys.executable, "-c", code, "classify", str(tiny), str(path), "--threads", "1"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

    assert peak_kb(long) < peak_kb(short) + 60_000
