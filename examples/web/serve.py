"""Serves the page, and a bundle under /bundle/, to this machine.

    npm install
    python serve.py BUNDLE [--port 8000] [--single-thread]

WebAssembly has threads only in a page that is isolated from others, which two headers ask for. Any static server will
do: with these headers, or without them and with one thread.
"""

import argparse
import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).resolve().parent
BUNDLE_URL = "/bundle/"
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class Handler(SimpleHTTPRequestHandler):
    """Files of two folders: the page's, and the bundle's."""

    extensions_map = {  # noqa: RUF012 - as the base class has it
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".onnx": "application/octet-stream",
    }

    def __init__(self, *arguments: object, bundle: Path, isolated: bool) -> None:
        self._bundle, self._isolated = bundle, isolated
        super().__init__(*arguments)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """Where a URL's file lies."""
        in_bundle = path.startswith(BUNDLE_URL)
        self.directory = str(self._bundle if in_bundle else PAGE)
        return super().translate_path(path[len(BUNDLE_URL) - 1 :] if in_bundle else path)

    def end_headers(self) -> None:
        """Add the headers that isolate the page; nothing is kept, as the next bundle has the same URL."""
        for name, value in (ISOLATION if self._isolated else {}).items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def server(bundle: Path, *, port: int, isolated: bool) -> ThreadingHTTPServer:
    """A server that listens on this machine alone; port 0 takes a free one."""
    return ThreadingHTTPServer(
        ("127.0.0.1", port), functools.partial(Handler, bundle=bundle.resolve(), isolated=isolated)
    )


def main() -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--single-thread", action="store_true", help="leave out the headers that threads need")
    arguments = parser.parse_args()
    if not (arguments.bundle / "manifest.json").is_file():
        parser.error(f"{arguments.bundle} is no bundle: it has no manifest.json. `calipso export --pixels` writes one")
    if not (PAGE / "node_modules" / "onnxruntime-web").is_dir():
        parser.error(f"{PAGE} has no node_modules: run `npm install` there")
    try:
        with server(arguments.bundle, port=arguments.port, isolated=not arguments.single_thread) as serving:
            print(f"http://localhost:{serving.server_port}/", flush=True)
            serving.serve_forever()
    except OSError as error:
        print(f"error: port {arguments.port} cannot be used: {error}. Give another --port", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
