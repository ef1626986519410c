"""All targets, and what reads and needs none."""

from __future__ import annotations

from tests.fuzz import Target
from tests.fuzz.targets import controller, facts, jobs, serve, verify

TARGETS: tuple[Target, ...] = (
    *facts.TARGETS,
    *controller.TARGETS,
    *jobs.TARGETS,
    *verify.TARGETS,
    *serve.TARGETS,
)

OPEN: dict[str, str] = {}
"""What a target is still red for, by its name; to be empty."""

READ = r"json\.loads?\(|\.read_text\(|\.read_bytes\(|\.read\(|yaml\.\w*load\("
"""How a module shows that it reads something."""

ELSEWHERE = {
    "bootstrap": "what setup.sh downloads, each file by its pinned hash",
    "cli.diagnose": "a log, by protocol.diagnose",
    "cli.fit": "a model, by onhost.verify.modelfile",
    "facts.environment_probe": "its own environment, in the interpreter that is asked",
    "facts.snapshot": "the script that is part of this package",
    "facts.watch": "the scripts that are part of this package",
    "history.database_import": "results and runs, by history.store and history.runs",
    "history.database_read": "columns of JSON, as history.database wrote them",
    "image.make": "libraries that were built just now, by onhost.elf",
    "mend.change": "which files RECORD names, to move them; an odd one is refused by onhost.pack",
    "mend.look": "by onhost.verify.fatbin",
    "mend.machine": "whether a file is what this code would write",
    "mend.rights": "which folders a .pth names, to refuse what another account may write",
    "mend.work": "files by their hash",
    "modelstore": "models by their hash, and the first bytes of files that are sent",
    "onhost.build": "by onhost.buildlog and onhost.ninja",
    "onhost.cards": "the kernel's /sys and /proc",
    "onhost.container": "settings of the image and of deploy, by protocol.decode; a key in bounds",
    "onhost.compilerkey": "programs by their hash",
    "onhost.detach": "its own child's words",
    "onhost.diagnose": "the table that is part of the zipapp",
    "onhost.discard": "the kernel's /proc",
    "onhost.fit": "its own child's words, and a model by onhost.verify.modelfile",
    "onhost.oom": "a model, by onhost.verify.modelfile, and a log by protocol.oom",
    "onhost.job": "the kernel's /proc, and its own log by protocol.diagnose",
    "onhost.nvcc": "the table that is part of the zipapp",
    "onhost.pack": "files by their hash, and the RECORD of a build that was made here",
    "onhost.place": "models by their hash, and by onhost.verify.gguffile and modelfile",
    "onhost.product": "its own child's words, and libraries by their hash or onhost.elf",
    "onhost.serve.check": "its own service's answers, in bounds of its own: test_check.py",
    "onhost.serve.memory": "the kernel's /proc and /sys",
    "onhost.textfile": "a verdict by protocol.decode, and root's own record",
    "onhost.toolkit.account": "what a program of the account prints, in bounds of its own",
    "onhost.toolkit.repository": "a key, by onhost.toolkit.openpgp",
    "onhost.verify.bench": "the kernel's /sys",
    "onhost.verify.beside": "the kernel's /sys and /proc",
    "onhost.verify.imported": "which .pth file of the build's venv names a folder, in the worker",
    "onhost.verify.checks.machine_code": "by onhost.verify.fatbin",
    "onhost.verify.owners": "the kernel's /proc",
    "onhost.verify.synth": "models that this code wrote, by their hash",
    "onhost.verify.worker": "its parent's requests",
    "onhost.wheel": "a wheel by its hash; macros that a compiler of the host prints, by a pattern",
    "upstream.archive": "the archive of a release, by its hash",
    "upstream.source": "the same",
    "upstream.used": "files of this package",
    "zipapps": "files of this package",
}
"""Modules that read what needs no target, and why."""
