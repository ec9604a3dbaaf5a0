"""Local servers that emulate cloud buckets, and a proxy that makes requests fail.

`gcs()` emulates the JSON API of Google Cloud Storage. Unlike common emulators, `gcs()` does not
ignore the condition `ifGenerationMatch`. `s3()` starts the S3 emulator moto. The context managers
`gcs()` and `s3()` serve a bucket 'tickets' through a `Proxy`, and yield the environment variables
that a program needs to use the bucket.
"""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "tickets"
# A fault: 'before' resets the connection before the request is executed, 'after' resets the
# connection after the request is executed, 'slow' delays the answer, and a number is an HTTP status
# that replaces the answer.
Fault = str | int | None
Plan = Callable[[str, str], Fault]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def body(self) -> bytes:
        """Return the body of the HTTP request."""
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a response."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _serving(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True, args=(0.05,)).start()
    return server


class Proxy:
    """Forwards requests to a server, except requests for which `plan` returns a fault."""

    def __init__(self, port: int):
        """Start a server on a free port that forwards all requests to the port `port`."""
        self.plan: Plan = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        proxy = self

        class Handler(_Handler):
            def forward(self) -> None:
                body = self.body()
                fault = proxy.plan(self.command, self.path)
                proxy.requests.append((self.command, self.path))
                if isinstance(fault, int):
                    return self.answer(fault, b"{}")
                if fault == "slow":
                    time.sleep(2)
                if fault == "before":
                    return self.reset()
                server = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k != "Transfer-Encoding"}
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                data = answer.read()
                server.close()
                if fault == "after":
                    return self.reset()
                kept = ("Content-Length", "Transfer-Encoding", "Connection", "Date", "Server")
                return self.answer(
                    answer.status,
                    data,
                    {k: v for k, v in answer.getheaders() if k.title() not in kept},
                )

            def reset(self) -> None:
                self.close_connection = True
                self.connection.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().handle()

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

        self._server = _serving(Handler)
        self.port = self._server.server_address[1]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class Gcs:
    """A server of one in-memory bucket, with the JSON API of Google Cloud Storage."""

    def __init__(self) -> None:
        """Start the server on a free port, with an empty bucket."""
        objects: dict[str, tuple[int, bytes]] = {}
        lock, last = threading.Lock(), [0]

        class Handler(_Handler):
            def do_GET(self) -> None:
                path, query = self.parts()
                if path == f"/storage/v1/b/{BUCKET}/o":
                    return self.listed(query)
                key = self.key(path)
                with lock:
                    entry = objects.get(key) if key is not None else None
                if entry is None:
                    return self.error(404)
                generation, data = entry
                if query.get("ifGenerationNotMatch") == str(generation):
                    return self.error(304)
                if query.get("ifGenerationMatch", str(generation)) != str(generation):
                    return self.error(412)
                return self.answer(200, data, {"x-goog-generation": str(generation)})

            def do_POST(self) -> None:
                data = self.body()
                path, query = self.parts()
                if path != f"/upload/storage/v1/b/{BUCKET}/o":
                    return self.error(404)
                with lock:
                    if not self.fits(query["name"], query):
                        return self.error(412)
                    last[0] += 1
                    objects[query["name"]] = (last[0], data)
                    return self.json({"name": query["name"], "generation": str(last[0])})

            def do_DELETE(self) -> None:
                path, query = self.parts()
                key = self.key(path)
                with lock:
                    if key is None or not self.fits(key, query):
                        return self.error(412 if key is not None else 404)
                    return self.error(404) if objects.pop(key, None) is None else self.answer(204)

            def parts(self) -> tuple[str, dict[str, str]]:
                url = urllib.parse.urlsplit(self.path)
                return url.path, dict(urllib.parse.parse_qsl(url.query))

            def key(self, path: str) -> str | None:
                prefix = f"/storage/v1/b/{BUCKET}/o/"
                return (
                    urllib.parse.unquote(path[len(prefix) :]) if path.startswith(prefix) else None
                )

            def fits(self, key: str, query: dict[str, str]) -> bool:
                stored = objects[key][0] if key in objects else 0
                return int(query.get("ifGenerationMatch", stored)) == stored

            def listed(self, query: dict[str, str]) -> None:
                with lock:
                    names = sorted(objects)
                first, end = query.get("startOffset", ""), query.get("endOffset", "")
                first = max(first, query.get("pageToken", ""))
                names = [n for n in names if n >= first and (not end or n < end)]
                names = [n for n in names if n.startswith(query.get("prefix", ""))]
                page = names[:1000]
                more = {"nextPageToken": names[1000]} if len(names) > 1000 else {}
                items = [{"name": n, "size": "1", "generation": "1"} for n in page]
                self.json({"items": items, **more})

            def json(self, value: object) -> None:
                self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

            def error(self, status: int) -> None:
                message = {"error": {"code": status, "message": http.client.responses[status]}}
                self.answer(status, b"" if status == 304 else json.dumps(message).encode())

        self.objects = objects
        self._server = _serving(Handler)
        self.port = self._server.server_address[1]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def gcs() -> Iterator[tuple[str, dict[str, str], Proxy]]:
    """Serve ``gs://tickets``; yield the bucket's address, environment variables and the proxy."""
    server = Gcs()
    proxy = Proxy(server.port)
    try:
        yield f"gs://{BUCKET}", {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{proxy.port}"}, proxy
    finally:
        proxy.close()
        server.close()


@contextlib.contextmanager
def s3() -> Iterator[tuple[str, dict[str, str], Proxy]]:
    """Serve ``s3://tickets`` by moto; yield its address, environment variables and the proxy.

    Raises:
      ModuleNotFoundError: moto's server is not installed.
    """
    import flask_cors  # noqa: F401, which moto's server needs
    import moto  # noqa: F401

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as server:
        try:
            _create(port)
            proxy = Proxy(port)
            environment = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
                "AWS_ACCESS_KEY_ID": "a",
                "AWS_SECRET_ACCESS_KEY": "b",
                "AWS_REGION": "us-east-1",
            }
            yield f"s3://{BUCKET}", environment, proxy
            proxy.close()
        finally:
            server.kill()


def _create(port: int) -> None:
    """Wait until moto's server answers, then create the bucket."""
    for _ in range(300):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            return connection.close()
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("moto's server did not start")


SERVERS = {"gs": gcs, "s3": s3}
