"""Frames of a film, a camera or a stream, and answers to them as they come, smoothed over time if wanted.

PyAV decodes. It is imported by the first video, and one batch of frames is in memory at a time.
"""

import contextlib
import dataclasses
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calipso_runtime.asking import check_positive
from calipso_runtime.errors import BackendUnavailableError, ImageError, UsageError
from calipso_runtime.prediction import Prediction

if TYPE_CHECKING:
    from types import ModuleType

    from av import Packet, VideoFrame, VideoStream
    from PIL import Image

    from calipso_runtime.classifier import Classifier

VIDEO_EXTENSIONS = frozenset(
    (
        *(".3gp", ".avi", ".flv", ".h264", ".h265", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv", ".y4m"),
    )
)
CAMERA = "camera:"
# By sys.platform: FFmpeg's name of the system's interface to cameras, and how it names one of them.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
_DEVICE = "/dev/video"
_STREAMS = ("rtsp://", "rtsps://", "http://", "https://", "udp://", "srt://", "tcp://")
# A stream that is silent for so long has ended. Files and cameras are waited for.
_SILENCE_S = 10.0
# A container's length is that of its longest frame or sound: a film that ends so much earlier was cut off.
_SLACK_S = 0.5
_QUARTER_TURN = 90


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of a video.

    Attributes:
        number: its place among all frames, skipped ones included, from 0.
        time_s: seconds from the first frame, as the video says.
        picture: RGB, turned upright where the video says how.
    """

    number: int
    time_s: float
    picture: "Image.Image"


class Smoother:
    """Exponential smoothing of probabilities over time.

    After a frame with probabilities p at time t, the smoothed ones are s(t) = w s(t') + (1 - w) p with
    w = exp(-(t - t') / seconds), t' being the time of the frame before: the same whether or not frames are skipped
    in between, and still probabilities. The first frame is taken as it is.

    Args:
        seconds: after which what was seen counts 1/e, above 0.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._time_s = 0.0
        self._values: npt.NDArray[np.float64] | None = None

    def smoothed(self, time_s: float, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Take the next frame's probabilities [K]; gives the smoothed ones, [K]."""
        if self._values is None or self._values.shape != probabilities.shape:
            self._values = probabilities
        else:
            # A clock that goes back (a file that was glued together) is one that stood still.
            weight = math.exp(-max(0.0, time_s - self._time_s) / self._seconds)
            self._values = weight * self._values + (1 - weight) * probabilities
        self._time_s = time_s
        return self._values


def is_video(source: str) -> bool:
    """Whether an argument names a video file, a camera or a stream, and no picture."""
    if source.startswith((CAMERA, _DEVICE, *_STREAMS)):
        return True
    return Path(source).suffix.lower() in VIDEO_EXTENSIONS and not Path(source).is_dir()


def classify_video(
    classifier: "Classifier",
    source: str,
    *,
    every: int = 1,
    fps: float | None = None,
    smooth_s: float | None = None,
    labels: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    top: int = 5,
    batch: int = 1,
) -> Iterator[tuple[Frame, Prediction]]:
    """Classify a video's frames as they come.

    Args:
        classifier: of pictures.
        source: see `frames`.
        every: see there.
        fps: see there.
        smooth_s: smooth probabilities over so many seconds, see `Smoother`. Classes are then in the order of the
            smoothed probabilities; logits stay the frame's own.
        labels: see `Classifier.classify`.
        prompts: see there.
        top: how many classes, at most all of them.
        batch: how many frames are computed together; each answer waits for the last of them.

    Yields:
        Each frame that is not skipped, with its prediction.

    Raises:
        UsageError: `every`, `fps` or `smooth_s` cannot be.
        ImageError: see `frames`; frames before the error are answered.
        BackendUnavailableError: PyAV is not installed.
    """
    if smooth_s is not None and not (math.isfinite(smooth_s) and smooth_s > 0):
        message = f"smoothing over {smooth_s} seconds: expected a number above 0"
        raise UsageError(message)
    check_positive("top", top)
    smoother = None if smooth_s is None else Smoother(smooth_s)
    under_way: deque[Frame] = deque()
    failure: ImageError | None = None

    def pictures() -> Iterator["Image.Image"]:
        nonlocal failure
        try:
            for frame in frames(source, every=every, fps=fps):
                under_way.append(frame)
                yield frame.picture
        except ImageError as error:
            # What was read before is answered first.
            failure = error

    wanted = top if smoother is None else sys.maxsize
    answers = classifier.classify_stream(pictures(), labels=labels, prompts=prompts, top=wanted, batch=batch)
    for _, answer in answers:
        frame = under_way.popleft()
        if isinstance(answer, ImageError):
            message = f"frame {frame.number} of {source}: {answer}"
            raise ImageError(message)
        yield frame, answer if smoother is None else _smoothed(classifier, smoother, frame, answer, top)
    if failure is not None:
        raise failure


def frames(source: str, *, every: int = 1, fps: float | None = None) -> Iterator[Frame]:
    """The frames of a video, in the order in which they are shown.

    Args:
        source: a file; "camera:0" or "/dev/video0"; or the address of a stream, "rtsp://...".
        every: take the first of every so many frames.
        fps: of what `every` leaves, take at most so many a second: the first frame in each interval of 1 / fps.

    Yields:
        The frames that are not skipped.

    Raises:
        UsageError: `every` or `fps` cannot be.
        ImageError: it cannot be opened, holds no video or no frame; or, after all frames that could be decoded: parts
            of it were damaged, or it ends earlier than it says.
        BackendUnavailableError: PyAV is not installed.
    """
    check_positive("every", every, UsageError)
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        message = f"fps is {fps}: expected a number above 0"
        raise UsageError(message)
    return _frames(source, _chooser(every, fps))


def _frames(source: str, wanted: Callable[[int, float], bool]) -> Iterator[Frame]:
    av = _pyav()
    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(mode="r", **_input(source)))
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                message = f"{source} holds no video: expected a file with frames, not sound alone"
                raise ImageError(message)
            _check_size(stream.width, stream.height, source)
            # Decoding several frames at once gives each of them later: not for what is watched as it happens.
            stream.thread_type = "SLICE" if _is_live(source) else "AUTO"
            if stream.codec_context.name == "mjpeg" and not _is_live(source):
                # The rest of a truncated JPEG would be made up. Cameras' are often a little wrong, and whole.
                stream.codec_context.options = {"err_detect": "explode"}
            length_s = _declared_s(stream, container.format.name)
            reading = _Reading(source, stream, length_s, av.FFmpegError)
            for frame, number, time_s in reading.frames(container.demux(stream)):
                _check_size(frame.width, frame.height, f"frame {number} of {source}")
                if wanted(number, time_s):
                    yield Frame(number=number, time_s=time_s, picture=_upright(frame))
        except (av.FFmpegError, OSError) as error:
            message = f"{source} cannot be used as a video: {getattr(error, 'strerror', None) or error}"
            raise ImageError(message) from error
        reading.check_complete()


class _Reading:
    """Decodes packets, and remembers what tells whether that was all.

    Args:
        source: for messages.
        stream: of the packets.
        length_s: how long it says that it is, or None.
        decoder_error: what decoding raises.
    """

    def __init__(
        self, source: str, stream: "VideoStream", length_s: float | None, decoder_error: type[Exception]
    ) -> None:
        self._source, self._length_s, self._decoder_error = source, length_s, decoder_error
        self._rate = float(stream.guessed_rate or stream.average_rate or 25)
        self._first_s: float | None = None
        self._number, self._end_s = 0, 0.0
        self._damaged, self._is_cut = 0, False

    def frames(self, packets: "Iterator[Packet[VideoStream]]") -> "Iterator[tuple[VideoFrame, int, float]]":
        """Each frame with its number and its time in seconds from the first one."""
        for packet in packets:
            if packet.size:
                self._is_cut = packet.is_corrupt
            try:
                decoded = packet.decode()
            except self._decoder_error:
                self._damaged += 1
                continue
            for frame in decoded:
                time_s = self._time(frame)
                if frame.is_corrupt:
                    # What was missing is made up, of the frames before.
                    self._damaged += 1
                    continue
                yield frame, self._number, time_s
                self._number += 1

    def check_complete(self) -> None:
        """Raise ImageError if nothing, or not everything, could be decoded."""
        if self._number == 0:
            message = f"{self._source} holds no frame that can be decoded: it is empty, truncated or damaged"
            raise ImageError(message)
        if not _is_live(self._source) and (self._is_cut or (self._length_s or 0) > self._end_s + _SLACK_S):
            told = "" if self._length_s is None else f" of {self._length_s:.2f}"
            message = (
                f"{self._source} ends early: after {self._number} frames and {self._end_s:.2f}{told} seconds. It is "
                "truncated; the frames that are there were answered"
            )
            raise ImageError(message)
        if self._damaged:
            message = (
                f"{self._source} is damaged: {self._damaged} of its packets could not be decoded. "
                f"{self._number} frames were answered"
            )
            raise ImageError(message)

    def _time(self, frame: "VideoFrame") -> float:
        # It is None where the container has no times: raw H.264.
        given: float | None = frame.time
        if given is None:
            given = self._number / self._rate
        if self._first_s is None:
            self._first_s = given
        time_s = given - self._first_s
        self._end_s = max(self._end_s, time_s + 1 / self._rate)
        return time_s


def _chooser(every: int, fps: float | None) -> Callable[[int, float], bool]:
    last: int | None = None

    def wanted(number: int, time_s: float) -> bool:
        nonlocal last
        if number % every:
            return False
        if fps is None:
            return True
        # Times are rounded to the container's clock: 0.0999 at 10 a second is the second interval.
        interval = math.floor(time_s * fps + 1e-3)
        is_new, last = interval != last, interval
        return is_new

    return wanted


def _smoothed(
    classifier: "Classifier", smoother: Smoother, frame: Frame, prediction: Prediction, top: int
) -> Prediction:
    """The prediction of all classes, with smoothed probabilities, the best `top`."""
    probabilities = np.empty(len(prediction), np.float64)
    for score in prediction:
        probabilities[score.index] = score.probability
    values = smoother.smoothed(frame.time_s, probabilities)
    best = sorted(prediction, key=lambda score: (-values[score.index], score.index))[:top]
    return Prediction(
        tuple(dataclasses.replace(score, probability=float(values[score.index])) for score in best),
        is_unknown=classifier.confidence.is_unknown(float(values[best[0].index])),
    )


def _input(source: str) -> dict[str, Any]:
    """What PyAV opens."""
    if source.startswith(_STREAMS):
        return {"file": source, "timeout": _SILENCE_S}
    if not _is_live(source):
        return {"file": source}
    interface, name = _CAMERAS.get(sys.platform, (None, ""))
    if interface is None:
        message = f"{source}: cameras are known on {', '.join(_CAMERAS)} alone, and this is {sys.platform}"
        raise UsageError(message)
    return {"file": name.format(source[len(CAMERA) :]) if source.startswith(CAMERA) else source, "format": interface}


def _is_live(source: str) -> bool:
    return source.startswith((CAMERA, _DEVICE, *_STREAMS))


def _declared_s(stream: "VideoStream", container: str) -> float | None:
    """How long the video says that it is."""
    if container == "avi" and stream.frames and stream.average_rate:
        # The duration that FFmpeg tells is a guess from the size of what is left of the file.
        return float(stream.frames / stream.average_rate)
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # Matroska: "00:01:02.500000000".
    parts = stream.metadata.get("DURATION", "").split(":")
    with contextlib.suppress(ValueError):
        hours, minutes, seconds = map(float, parts)
        return (hours * 60 + minutes) * 60 + seconds
    return None


def _check_size(width: int, height: int, name: str) -> None:
    """Raise ImageError where a picture of that size would be refused as well."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        message = (
            f"{name} is too large to be decoded safely: it has {width} x {height} pixels, Pillow's limit is {limit}. "
            "If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS before, or scale it down"
        )
        raise ImageError(message)


def _upright(frame: "VideoFrame") -> "Image.Image":
    from PIL import Image

    pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / _QUARTER_TURN))))


def _pyav() -> "ModuleType":
    try:
        import av
    except ImportError as error:
        message = "PyAV is not installed, so videos cannot be decoded: pip install 'calipso[video]'"
        raise BackendUnavailableError(message) from error
    return av
