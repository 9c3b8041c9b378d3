"""Serves a bundle over HTTP with Ray Serve: a picture file is posted, its classes come back as JSON.

    python examples/ray_serve.py animals.calipso --replicas 2
    curl --data-binary @photo.jpg http://127.0.0.1:8000/

Requests that come together are computed together. 400 says why a picture cannot be read, 413 that it is too large.
`GET /` says what is served. Ray replaces replicas that die.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import calipso_runtime
from calipso_runtime.errors import ImageError
from calipso_runtime.head.file import refuse_labels
from calipso_runtime.prediction import as_json

_MB = 1_000_000
_WAIT_S = 0.005
_MAX_BATCH = 32


class Service:
    """A replica: the loaded bundle, and the batches that it answers."""

    def __init__(self, bundle: str, *, top: int, threads: int, backend: str, limit_bytes: int) -> None:
        self._classifier = calipso_runtime.load(bundle, backend=backend, threads=threads)
        self._top, self._limit_bytes = top, limit_bytes

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        if request.method != "POST":
            served = {"labels": list(self._classifier.labels), "provider": self._classifier.provider}
            return JSONResponse(served, status_code=200 if request.method == "GET" else 405)
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > self._limit_bytes:
                return JSONResponse({"error": f"more than {self._limit_bytes} bytes"}, status_code=413)
        answer: dict[str, Any] = await self.answers(bytes(content))
        return JSONResponse(answer, status_code=400 if "error" in answer else 200)

    @serve.batch(max_batch_size=_MAX_BATCH, batch_wait_timeout_s=_WAIT_S)
    async def answers(self, pictures: list[bytes]) -> list[dict[str, Any]]:
        """Answer pictures that came together; other requests are taken meanwhile."""
        return await asyncio.to_thread(self._answers, pictures)

    def _answers(self, pictures: list[bytes]) -> list[dict[str, Any]]:
        stream = self._classifier.classify_stream(pictures, top=self._top, batch=_MAX_BATCH)
        return [
            {"error": " ".join(str(answer).split())}
            if isinstance(answer, ImageError)
            else as_json(answer, self._classifier.confidence)
            for _, answer in stream
        ]


def main() -> int:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("bundle")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPUs of a replica")
    parser.add_argument("--gpus-per-replica", type=float, default=0.0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--max-mb", type=float, default=50.0, help="larger pictures are refused")
    arguments = parser.parse_args()
    # A bundle that cannot be loaded is told here, and not by replicas that are started again and again.
    try:
        with calipso_runtime.load(arguments.bundle, backend=arguments.backend) as classifier:
            why = "a request brings none: use it with `calipso_runtime.load`"
            refuse_labels(Path(arguments.bundle), classifier.manifest, why)
    except calipso_runtime.CalipsoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    deployment = serve.deployment(
        Service,
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.threads, "num_gpus": arguments.gpus_per_replica},
        max_ongoing_requests=4 * _MAX_BATCH,
    )
    serve.run(
        deployment.bind(
            str(Path(arguments.bundle).resolve()),
            top=arguments.top,
            threads=arguments.threads,
            backend=arguments.backend,
            limit_bytes=int(arguments.max_mb * _MB),
        )
    )
    print(f"serving on http://{arguments.host}:{arguments.port}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        serve.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
