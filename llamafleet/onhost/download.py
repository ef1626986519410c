"""Downloads over HTTP: bounded in size and time, by the host's proxies, certificates and netrc.

Credentials go to the host that they are for, and not along with a redirection to another one.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import netrc
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from llamafleet.protocol.job import JobConfig
from llamafleet.protocol.redact import redacted

CHUNK = 1 << 20
SILENCE_S = 60.0
"""Longest time without an octet."""
SLOWEST = 1024
"""Bytes per second, over SILENCE_S: below that a download is given up."""
AGENT = "llamafleet"
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that a server takes back later."""


class Writable(Protocol):
    """What takes a download: a file, say."""

    def write(self, part: bytes, /) -> object: ...


class DownloadError(Exception):
    """Why a file did not come: "found ...; next: ..." in two parts, without credentials.

    `again`: the same may well succeed later; `after_s`: no sooner, as the server says. `status`: of
    an answer that is no success, else 0.
    """

    def __init__(
        self,
        found: str,
        next: str,
        *,
        again: bool = False,
        status: int = 0,
        after_s: float | None = None,
    ) -> None:
        super().__init__(redacted(found))
        self.found, self.next = redacted(found), redacted(next)
        self.again, self.status, self.after_s = again, status, after_s


class _Refused(ConnectionError):
    """What is not done, however often it is tried."""


@dataclass(frozen=True)
class Answer:
    """What a server says before it sends a file."""

    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""


@dataclass(frozen=True)
class Network:
    """How a host reaches others."""

    proxies: Mapping[str, str] = field(default_factory=dict)
    """http_proxy, https_proxy and no_proxy, by these names."""
    ca_bundle: str | None = None
    netrc: str | None = None
    accounts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """(user, password) by host: before those of the netrc."""

    @classmethod
    def of(cls, config: JobConfig) -> Network:
        return cls(config.proxies, config.ca_bundle, config.netrc)

    def credentials(self, url: str) -> tuple[str, str] | None:
        """(user, password) of the entry that names the URL's host. Raises DownloadError."""
        host = urlsplit(url).hostname
        if host is not None and host in self.accounts:
            return self.accounts[host]
        if self.netrc is None or not host:
            return None
        try:
            # An entry "default" is for whoever comes along.
            entry = netrc.netrc(self.netrc).hosts.get(host)
        except (OSError, netrc.NetrcParseError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is none"
            raise DownloadError(
                f"a file of credentials that can't be read ({self.netrc}: {why})",
                "compare it with netrc(5), and deploy again",
            ) from None
        return (entry[0], entry[2] or "") if entry else None


@dataclass(frozen=True)
class Limits:
    """Of one download."""

    octets: int
    seconds: float


def fetch(
    url: str,
    target: Writable,
    network: Network,
    limits: Limits,
    *,
    headers: Mapping[str, str] | None = None,
    on_answer: Callable[[Answer], object] = lambda answer: None,
    on_bytes: Callable[[int, int], object] = lambda done, total: None,
    method: str = "GET",
) -> str:
    """Write what `url` has to `target`; the URL that it came from in the end.

    `on_answer` is told first, `on_bytes` of bytes done and, where that is known, in all. Raises
    DownloadError, and what these and `target` raise, which should be no OSError: that would count
    as one of the connection.
    """
    watchdog = _Watchdog(limits.seconds)
    try:
        request = urllib.request.Request(
            url,
            headers={"User-Agent": AGENT, "Accept-Encoding": "identity", **(headers or {})},
            method=method,
        )
        _authorize(request, network)
        with (
            watchdog.running(),
            _opener(network, watchdog).open(request, timeout=SILENCE_S) as answer,
        ):
            told = {name.lower(): value for name, value in answer.headers.items()}
            on_answer(Answer(answer.status, told))
            if method != "HEAD":  # On a redirection it may have become another.
                _copy(answer, target, limits, on_bytes)
            if watchdog.expired:  # which looks like the end of an answer without a length
                raise TimeoutError
            return str(answer.geturl())
    except (OSError, http.client.HTTPException, ValueError) as error:
        if watchdog.expired:
            raise DownloadError(
                f"no end of it after {limits.seconds:.0f} s", f"curl -o /dev/null {url}", again=True
            ) from error
        raise _told(url, network, error) from error


def _copy(
    answer: http.client.HTTPResponse,
    target: Writable,
    limits: Limits,
    on_bytes: Callable[[int, int], object],
) -> None:
    length = answer.headers.get("Content-Length") or ""
    total = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
    size, since, before = 0, time.monotonic(), 0
    while size <= max(limits.octets, total) and (chunk := answer.read1(CHUNK)):
        size += len(chunk)
        if max(size, total) > limits.octets:
            break
        target.write(chunk)
        on_bytes(size, total)
        if time.monotonic() - since > SILENCE_S:
            if size - before < SLOWEST * SILENCE_S:
                raise TimeoutError(f"less than {SLOWEST} bytes per second")
            since, before = time.monotonic(), size
    if max(size, total) > limits.octets:
        raise DownloadError(
            f"{max(size, total)} bytes or more; at most {limits.octets} were expected",
            "look at what is served there",
        )
    if size < total:
        raise ConnectionError(f"it ended after {size} of {total} bytes")


class _Watchdog:
    """Ends connections when the time is over, whatever they wait for."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._open: list[socket.socket] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._timer.start()
        try:
            yield
        finally:
            self._timer.cancel()
            for one in self._open:
                one.close()

    def connect(self, *args: Any, **options: Any) -> socket.socket:
        """As socket.create_connection."""
        made = socket.create_connection(*args, **options)
        # A second handle: TLS takes the first one over.
        self._open.append(socket.socket(fileno=os.dup(made.fileno())))
        return made

    def _expire(self) -> None:
        self.expired = True
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _opener(network: Network, watchdog: _Watchdog) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=network.ca_bundle)
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Proxies(network.proxies),
        _Plain(watchdog),
        _Tls(watchdog, context),
        _Redirections(network),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, watchdog: _Watchdog) -> None:
        super().__init__()
        self._watchdog = watchdog

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connection(http.client.HTTPConnection, self._watchdog), req)


class _Tls(urllib.request.HTTPSHandler):
    def __init__(self, watchdog: _Watchdog, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._watchdog, self._trust = watchdog, context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        made = _connection(http.client.HTTPSConnection, self._watchdog)
        return self.do_open(made, req, context=self._trust)


def _connection(kind: Any, watchdog: _Watchdog) -> Any:
    """What makes connections of that kind whose sockets the watchdog knows."""

    def make(host: str, **options: Any) -> Any:
        connection = kind(host, **options)
        connection._create_connection = watchdog.connect
        return connection

    return make


class _Proxies(urllib.request.ProxyHandler):
    def __init__(self, proxies: Mapping[str, str]) -> None:
        by_scheme = {
            scheme: value
            for scheme in ("http", "https")
            if (value := proxies.get(f"{scheme}_proxy"))
        }
        super().__init__(by_scheme)
        self._but_for = proxies.get("no_proxy", "")

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:
        if _bypassed(req.host, self._but_for):
            return None
        return super().proxy_open(req, proxy, type)


def _bypassed(host: str, but_for: str) -> bool:
    """`but_for`: as the value of no_proxy."""
    return bool(urllib.request.proxy_bypass_environment(host, {"no": but_for}))  # type: ignore[attr-defined]


class _Redirections(urllib.request.HTTPRedirectHandler):
    def __init__(self, network: Network) -> None:
        self._network = network

    def redirect_request(
        self, req: urllib.request.Request, *rest: Any
    ) -> urllib.request.Request | None:
        newurl: str = rest[-1]
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == (
            "https",
            "http",
        ):
            raise _Refused(f"a redirection from {before.scheme} to {after.scheme}")
        # Headers that are "unredirected", as that of the credentials, are left behind by it.
        made = super().redirect_request(req, *rest)
        if made is not None and _origin(before) == _origin(after):
            _authorize(made, self._network)
        return made


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port


def _authorize(request: urllib.request.Request, network: Network) -> None:
    if found := network.credentials(request.full_url):
        value = base64.b64encode(":".join(found).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {value}")


def _told(url: str, network: Network, error: Exception) -> DownloadError:
    """What went wrong, from the error itself, and the command that shows it."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, urllib.error.HTTPError):
        return _answered(url, error)
    told = _of_connection(url, network, cause)
    told.again = _may_pass(cause)
    return told


def _may_pass(cause: object) -> bool:
    """A fault of the line or of a server that is restarted, and no answer that stays the same."""
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_AGAIN
    if isinstance(cause, ssl.SSLError):
        return isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    refused = isinstance(cause, _Refused) or "Tunnel connection failed" in str(cause)
    return not refused and isinstance(cause, (OSError, http.client.HTTPException))


def _of_connection(url: str, network: Network, cause: object) -> DownloadError:
    host, scheme = urlsplit(url).hostname or url, urlsplit(url).scheme
    proxy = network.proxies.get(f"{scheme}_proxy")
    if proxy and _bypassed(urlsplit(url).netloc, network.proxies.get("no_proxy", "")):
        proxy = None
    by = f"proxy {proxy}" if proxy else host
    look = f"curl -I {url}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        trusted = network.ca_bundle or "the certificates of this Python"
        return DownloadError(
            f"a certificate of {host} that {trusted} does not vouch for ({cause.verify_message})",
            "add the CA's certificate to the system's trust store",
        )
    if isinstance(cause, ssl.SSLError):
        return DownloadError(f"no TLS with {by} ({cause.reason or cause})", look)
    if isinstance(cause, socket.gaierror):
        named = urlsplit(proxy).hostname if proxy else host
        return DownloadError(
            f"that the name {named} is not known here ({cause.strerror}): no network, no name "
            "server, or a proxy is needed",
            f"getent hosts {named}",
        )
    if isinstance(cause, OSError) and "Tunnel connection failed" in str(cause):
        return DownloadError(f"that {by} refused ({str(cause).rpartition('failed: ')[2]})", look)
    if isinstance(cause, ConnectionRefusedError):
        return DownloadError(f"that {by} refused the connection", look)
    if isinstance(cause, TimeoutError):
        return DownloadError(f"no answer of {by} in time ({cause})", look)
    why = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    return DownloadError(f"no answer of {by} ({why or type(cause).__name__})", look)


def _answered(url: str, error: urllib.error.HTTPError) -> DownloadError:
    """Of an answer that is no success."""
    told = _of_status(url, error)
    told.status, told.again = error.code, error.code in AGAIN
    told.after_s = _seconds(error.headers.get("Retry-After") or "") if error.headers else None
    return told


def _seconds(text: str) -> float | None:
    """Of Retry-After: seconds, or a date (RFC 9110, 10.2.3). None: it says neither."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _of_status(url: str, error: urllib.error.HTTPError) -> DownloadError:
    said = f"HTTP {error.code} {error.reason}".strip()
    if error.code == 407:
        return DownloadError(f"{said}: the proxy asks for credentials", "name them in the proxy")
    if error.code in (401, 403):
        return DownloadError(
            f"{said}: the server wants other credentials",
            f"name user and password of {urlsplit(url).hostname} in the file of the setting netrc",
        )
    if error.code in (404, 410):
        return DownloadError(f"{said}: no such file there", f"curl -I {url}")
    return DownloadError(said, f"curl -I {url}")


def read_bytes(
    url: str, network: Network, limits: Limits, headers: Mapping[str, str] | None = None
) -> tuple[bytes, str]:
    """What `url` has, and the URL that it came from in the end. Raises DownloadError."""
    target = BytesIO()
    final = fetch(url, target, network, limits, headers=headers)
    return target.getvalue(), final
