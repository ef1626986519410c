"""NVIDIA's repository among the sources of a host's package manager."""

from __future__ import annotations

import pytest

from tests.facts.fakehost import FakeHost

SERVER = "https://developer.download.nvidia.com/compute/cuda/repos"
DEB822 = f"Types: deb\nURIs: {SERVER}/ubuntu2204/x86_64/\nSuites: /\n"
OTHER = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: trixie\n"
REPO = f"[cuda-rhel9-x86_64]\nbaseurl={SERVER}/rhel9/x86_64\n"


@pytest.mark.parametrize(
    ("name", "text", "there"),
    [
        ("apt/sources.list", f"deb {SERVER}/ubuntu2204/x86_64/ /\n", True),
        ("apt/sources.list.d/cuda.list", f"deb {SERVER}/ubuntu2204/x86_64/ /\n", True),
        ("apt/sources.list.d/cuda.list", f"# deb {SERVER}/ubuntu2204/x86_64/ /\n", False),
        ("apt/sources.list.d/cuda.list.save", f"deb {SERVER}/ubuntu2204/x86_64/ /\n", False),
        ("apt/sources.list.d/local.list", "deb file:///var/cuda-repo-debian12-12-8-local /", True),
        ("apt/sources.list.d/lab.list", "deb http://lab/compute/cuda/repos/debian12/sbsa/ /", True),
        ("apt/sources.list.d/cuda.sources", DEB822, True),
        ("apt/sources.list.d/cuda.sources", f"Enabled: no\n{DEB822}", False),
        ("apt/sources.list.d/cuda.sources", f"Enabled: yes\n{DEB822}", True),
        # Which of two is switched off is not told: apt may refuse a second source of one place.
        ("apt/sources.list.d/cuda.sources", f"Enabled: no\n{OTHER}\n{DEB822}", True),
        ("apt/sources.list.d/llamafleet-cuda.sources", DEB822, False),
        ("apt/sources.list.d/debian.sources", OTHER, False),
        ("yum.repos.d/cuda-rhel9.repo", f"{REPO}enabled=1\n", True),
        ("yum.repos.d/cuda-rhel9.repo", f"{REPO}enabled = 0\n", False),
        ("yum.repos.d/cuda-rhel9.repo", f"{REPO}enabled=False\n", False),
        ("yum.repos.d/llamafleet-cuda.repo", REPO, False),
    ],
)
def test_the_sources_that_have_it(
    fake: FakeHost, shell: str, name: str, text: str, there: bool
) -> None:
    fake.shell = shell
    file = fake.write(fake.root / "etc" / name, text)
    assert fake.snapshot().cuda_repository == (str(file) if there else None)
