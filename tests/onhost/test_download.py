"""Downloads from real servers: what comes, what is told of credentials, and each way to fail."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from llamafleet.onhost import download
from llamafleet.onhost.download import DownloadError, Limits, Network, fetch
from tests.onhost.site import Handler, Site, certificate, proxy, redirect, send, site

PLAIN = Network()
LIMITS = Limits(octets=1000, seconds=20)
BASIC = "Basic " + base64.b64encode(b"lab:se cret").decode()


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture
def secrets(tmp_path: Path) -> Network:
    file = tmp_path / "netrc"
    file.write_text('machine 127.0.0.1 login lab password "se cret"\ndefault login x password y\n')
    return Network(netrc=str(file))


def read_bytes(url: str, network: Network, limits: Limits) -> bytes:
    return download.read_bytes(url, network, limits)[0]


def refused(url: str, network: Network = PLAIN, limits: Limits = LIMITS) -> DownloadError:
    with pytest.raises(DownloadError) as raised:
        read_bytes(url, network, limits)
    return raised.value


def test_what_is_there_comes(web: Site) -> None:
    web.answers |= {"/f": b"x" * 1000, "/to": redirect("/f")}
    seen: list[tuple[int, int]] = []
    target = BytesIO()
    final = fetch(web.url("/to"), target, PLAIN, LIMITS, on_bytes=lambda *told: seen.append(told))
    assert (target.getvalue(), final) == (b"x" * 1000, web.url("/f"))
    assert seen[-1] == (1000, 1000)


def test_credentials_of_netrc_reach_their_host_alone(web: Site, secrets: Network) -> None:
    web.answers |= {"/f": b"x", "/same": redirect("/f")}
    web.wanted = BASIC
    assert read_bytes(web.url("/f"), secrets, LIMITS) == b"x"
    assert read_bytes(web.url("/same"), secrets, LIMITS) == b"x"
    error = refused(web.url("/f"))
    assert "HTTP 401" in error.found and "setting netrc" in error.next
    # Not the one by the name "default".
    assert "HTTP 401" in refused(web.url("/f", host="localhost"), secrets).found
    assert "authorization" not in web.asked[-1][1]


def test_a_redirection_to_another_host_takes_no_credentials(web: Site, secrets: Network) -> None:
    with site() as other:
        other.answers["/f"] = b"x"
        web.answers["/away"] = redirect(other.url("/f"))
        assert read_bytes(web.url("/away"), secrets, LIMITS) == b"x"
        assert web.asked[0][1]["authorization"] == BASIC
        assert "authorization" not in other.asked[0][1], "another port is another server"


def test_a_redirection_out_of_the_web_is_refused(web: Site) -> None:
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/f"):
        web.answers["/away"] = redirect(target)
        assert "redirect" in refused(web.url("/away")).found.lower()


def test_a_netrc_that_can_t_be_read(web: Site, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("machine\n")
    for file in (tmp_path / "bad", tmp_path / "none"):
        assert (
            "credentials that can't be read" in refused(web.url(), Network(netrc=str(file))).found
        )


def chunked(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"64\r\n" + b"x" * 100 + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def test_too_much_is_refused(web: Site) -> None:
    web.answers |= {"/long": b"x" * 1001, "/chunked": chunked}
    assert "1001 bytes or more; at most 1000" in refused(web.url("/long")).found
    assert "at most 1000" in refused(web.url("/chunked")).found


def test_an_early_end_is_seen(web: Site) -> None:
    web.answers["/f"] = lambda handler: send(handler, b"x", Content_Length="99")
    assert "ended after 1 of 99 bytes" in refused(web.url("/f")).found


def drip(part: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        for _ in range(2000):
            handler.wfile.write(part)
            handler.wfile.flush()
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize("part", [b"", b"H", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\nx"])
def test_a_server_that_drips_ends_in_time(web: Site, part: bytes) -> None:
    web.answers["/f"] = drip(part)
    begun = time.monotonic()
    error = refused(web.url("/f"), limits=Limits(10**9, 0.5))
    assert time.monotonic() - begun < 40
    assert "no end of it after" in error.found


def test_a_server_that_is_slow_for_long(web: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE_S", 0.3)
    web.answers["/f"] = drip(b"HTTP/1.0 200 OK\r\n\r\nx")
    assert "less than 1024 bytes per second" in refused(web.url("/f")).found


def test_a_silent_server_that_has_ended(web: Site) -> None:
    assert "127.0.0.1 refused the connection" in refused("http://127.0.0.1:9/f").found


def test_words_tell_the_causes_apart(web: Site) -> None:
    assert "HTTP 404" in refused(web.url("/none")).found
    error = refused("http://no-such-name.invalid/f")
    assert "name no-such-name.invalid is not known" in error.found
    assert error.next == "getent hosts no-such-name.invalid"


def test_through_a_proxy_and_past_it(web: Site) -> None:
    web.answers["/f"] = b"x"
    with proxy() as between:
        proxies = {"http_proxy": between.url(), "no_proxy": ""}
        assert read_bytes(web.url("/f"), Network(proxies), LIMITS) == b"x"
        assert [path for path, _ in between.asked] == [web.url("/f")]
        past = Network(proxies | {"no_proxy": "127.0.0.1,other"})
        assert read_bytes(web.url("/f"), past, LIMITS) == b"x"
        assert len(between.asked) == 1


def test_a_proxy_that_refuses(web: Site) -> None:
    error = refused(web.url("/f"), Network({"http_proxy": "http://u:secret@127.0.0.1:9"}))
    assert "proxy http://***@127.0.0.1:9 refused the connection" in error.found
    error = refused(web.url("/f"), Network({"http_proxy": "http://no-such-proxy.invalid:3128"}))
    assert "name no-such-proxy.invalid is not known" in error.found
    with proxy() as between:
        error = refused("https://127.0.0.1:1/f", Network({"https_proxy": between.url()}))
    assert f"proxy http://127.0.0.1:{between.port} refused (403" in error.found


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_are_those_of_the_bundle(tmp_path: Path) -> None:
    own = certificate(tmp_path)
    with site(own) as tls, site() as plain:
        tls.answers |= {"/f": b"x", "/down": redirect(plain.url("/f"))}
        trusting = Network(ca_bundle=str(tmp_path / "cert.pem"))
        assert read_bytes(tls.url("/f"), trusting, LIMITS) == b"x"
        error = refused(tls.url("/f"))
        assert "does not vouch for" in error.found and "trust store" in error.next
        assert "redirection from https to http" in refused(tls.url("/down"), trusting).found
        assert plain.asked == []
        assert "no TLS" in refused(plain.url("/f").replace("http:", "https:"), trusting).found
