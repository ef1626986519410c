"""A package index, and a company's proxy that opens TLS, on the loopback interface."""

from __future__ import annotations

import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Get = Callable[[str], bytes | None]
"""The file of an address, or None. Through the proxy an address is whole, else it is a path."""

COMMANDS = (
    "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=CA",
    "openssl req -newkey rsa:2048 -nodes -keyout proxy.key -out proxy.csr -subj /CN=proxy",
    "openssl x509 -req -in proxy.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2"
    " -extfile extensions -out proxy.crt",
)
EXTENSIONS = """\
subjectAltName = DNS:pypi.org, DNS:files.pythonhosted.org
subjectKeyIdentifier = none
authorityKeyIdentifier = none
"""
"""Companies' certificates lack the key identifiers that Python 3.13 asks for by default."""


class Server(ThreadingHTTPServer):
    """What it was asked for is in `asked`."""

    daemon_threads = True

    def __init__(self, get: Get, tls: ssl.SSLContext | None, secret: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.get, self.tls = get, tls
        self.wanted = secret and f"Basic {b64encode(secret.encode()).decode()}"
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; behind CONNECT it speaks TLS as the host that was asked for."""

    protocol_version = "HTTP/1.1"
    server: Server
    host = ""

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        assert self.server.tls is not None
        try:
            self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        except OSError:  # The client does not trust the authority.
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.host = f"https://{self.path.partition(':')[0]}"
        self.close_connection = False

    def do_GET(self) -> None:
        url = self.host + self.path
        self.server.asked.append(url)
        allowed = self.server.wanted in (None, self.headers["Authorization"])
        body = self.server.get(url) if allowed else None
        self.send_response((404 if body is None else 200) if allowed else 401)
        self.send_header("Content-Type", "text/html" if url.endswith("/") else "application/zip")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest's output is not the place."""


@contextmanager
def serve(
    get: Get, *, tls: ssl.SSLContext | None = None, secret: str | None = None
) -> Iterator[Server]:
    """With `tls` a proxy, with `secret` (user:password) for those who know it."""
    with Server(get, tls, secret) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def company(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A company's CA certificate, and what its proxy shows for PyPI's hosts."""
    (folder / "extensions").write_text(EXTENSIONS)
    for command in COMMANDS:
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "proxy.crt", folder / "proxy.key")
    return folder / "ca.crt", context
