"""A command line as it may be kept: without passwords."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from llamafleet.protocol.redact import MASK
from llamafleet.terminal import SECRET, masked

FLAGS = frozenset({"--same-sudo-password", "--use-sudo-password", "--ssh-password-prompt"})
"""Options of pyinfra that are named so and take no value."""

URL = re.compile("[a-z]+://")
QUERY_OF_URL = re.compile(r"(://[^\s?#;]*[?#;])\S+")
USER_OF_HOST = re.compile(r"^[^\s/@]*:[^\s/@]*@")
"""As pyinfra takes a list of hosts in the inventory's place."""


def without_secrets(
    arguments: Sequence[str], shown: Container[str], secretive: Container[str]
) -> tuple[str, ...]:
    """The arguments of pyinfra, with the program's name alone and secrets masked.

    Of --data KEY=VALUE the value is kept only for keys in `shown`: nobody knows what others hold.
    Of those in `secretive` only a URL is kept, masked as all URLs are.
    """
    kept = [Path(arguments[0]).name]
    mask: Callable[[str], str] | None = None
    for argument in arguments[1:]:
        if mask:  # The value of the option before.
            kept.append(mask(argument))
            mask = None
            continue
        option, equals, value = argument.partition("=")
        mask = _mask(option, shown, secretive)
        if mask and equals:
            kept.append(f"{option}={mask(value)}")
            mask = None
        else:
            kept.append(USER_OF_HOST.sub(f"{MASK}@", _url(argument)))
    return tuple(kept)


def _mask(
    option: str, shown: Container[str], secretive: Container[str]
) -> Callable[[str], str] | None:
    """What is kept of an option's value; None: the option has no value that is a secret."""
    if option == "--data":
        return lambda pair: _data(pair, shown, secretive)
    if option.startswith("--") and SECRET.search(option) and option not in FLAGS:
        return lambda value: MASK
    return None


def _data(pair: str, shown: Container[str], secretive: Container[str]) -> str:
    key, equals, value = pair.partition("=")
    if not equals:
        return MASK
    known = key in shown and (key not in secretive or URL.match(value))
    return f"{key}={_url(value) if known else MASK}"


def _url(text: str) -> str:
    """An index or a mirror may be named with user and password, or be signed."""
    return QUERY_OF_URL.sub(rf"\1{MASK}", masked(text))
