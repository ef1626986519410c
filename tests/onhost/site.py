"""Small HTTP servers for tests: a site whose answers a test gives, and a proxy."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

Handler = http.server.BaseHTTPRequestHandler


class Site:
    """What was asked, and what is answered: a body, or a function that answers by itself."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Callable[[Handler], None]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Path and headers, names in lower case."""
        self.port = 0
        self.scheme = "http"
        self.wanted = ""
        """Value of Authorization without which the answer is 401; "": none is wanted."""

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def answer(self, handler: Handler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append((handler.path, headers))
        if self.wanted and headers.get("authorization") != self.wanted:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="lab"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        found = self.answers.get(handler.path)
        if found is None:
            handler.send_error(404)
        elif isinstance(found, bytes):
            send(handler, found)
        else:
            found(handler)


def send(handler: Handler, body: bytes, **headers: str) -> None:
    handler.send_response(200)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def redirect(target: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@contextmanager
def site(certificate: Path | None = None) -> Iterator[Site]:
    """A site on the loopback interface; with TLS where there is a certificate with its key."""
    made = Site()
    with _served(made.answer, certificate) as port:
        made.port, made.scheme = port, "https" if certificate else "http"
        yield made


@contextmanager
def proxy() -> Iterator[Site]:
    """A proxy that fetches plain URLs itself; `asked` tells them. It refuses tunnels."""
    made = Site()

    def answer(handler: Handler) -> None:
        made.asked.append((handler.path, {k.lower(): v for k, v in handler.headers.items()}))
        if not urlsplit(handler.path).scheme:
            handler.send_error(403)
            return
        request = Request(handler.path, headers=dict(handler.headers.items()))
        with build_opener(ProxyHandler({})).open(request, timeout=20) as found:
            send(handler, found.read())

    with _served(answer, None) as port:
        made.port = port
        yield made


@contextmanager
def _served(answer: Callable[[Handler], None], certificate: Path | None) -> Iterator[int]:
    class Asked(Handler):
        def handle_any(self) -> None:
            answer(self)

        do_GET = do_HEAD = do_CONNECT = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the test's own output is what matters."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def certificate(folder: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that vouches for itself."""
    file = folder / "server.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=lab", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv += ["-keyout", str(file), "-out", str(folder / "cert.pem")]
    subprocess.run(argv, check=True, capture_output=True)
    file.write_text(file.read_text() + (folder / "cert.pem").read_text())
    return file
