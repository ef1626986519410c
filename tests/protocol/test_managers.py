"""Package managers: the words in which each is asked."""

from __future__ import annotations

import pytest

from llamafleet.protocol.managers import APT, DNF, MANAGERS


def test_a_hold_names_each_package() -> None:
    assert APT.hold_command(["a", "b:i386"]) == "apt-mark hold a b:i386"
    assert APT.release_command(["a"]) == "apt-mark unhold a"
    assert DNF.hold_command(["a", "b"]) == "dnf -y '--disablerepo=*' versionlock add a b"
    assert DNF.release_command(["a"]) == "dnf -y '--disablerepo=*' versionlock delete a"
    assert not any(MANAGERS[name].hold for name in MANAGERS if name not in ("apt", "dnf"))


@pytest.mark.parametrize(
    ("name", "lifted", "looked"),
    [
        ("apt", "sudo apt-mark unhold a; ", "apt-mark showhold; "),
        ("dnf", "sudo dnf versionlock delete a; ", "dnf versionlock list; "),
        ("zypper", "", ""),
    ],
)
def test_how_a_person_lifts_a_hold(name: str, lifted: str, looked: str) -> None:
    assert (MANAGERS[name].lift("a"), MANAGERS[name].lift("")) == (lifted, looked)


def test_what_a_person_types() -> None:
    assert APT.install_by_hand("a", "b") == "sudo apt install a b"
    assert MANAGERS["pacman"].install_by_hand("python") == "sudo pacman -S python"
