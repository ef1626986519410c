"""What a host printed: snapshots, and the plan and the words that follow from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llamafleet.facts.environment import NoAnswer, Said, describe, look
from llamafleet.facts.environment_probe import ANSWER
from llamafleet.facts.reader import SnapshotError, parse
from llamafleet.facts.scrub import scrub
from llamafleet.facts.summary import summarize
from llamafleet.plans.make import explain, layout_for, make_plan
from llamafleet.protocol.environment import Copy, Distribution, Environment, Look
from llamafleet.protocol.pythons import PYTHONS
from llamafleet.protocol.serve import Placement, Status
from llamafleet.settings import Settings
from llamafleet.terminal import printable
from tests.facts.test_reader import GOOD
from tests.fuzz import Target
from tests.fuzz.material import texts
from tests.hosts.recorded import load

HOSTS = (
    *("h100-ubuntu24", "rtx4090-580-ubuntu24-hold", "laptop-rtx3080-610-fedora42"),
    *("cpu-debian12", "rtx4090-garbage-smi", "mixed-4090-3090-580-ubuntu24"),
)

PLACED = {
    **{"version": 1, "kind": "model", "key": "0123456789abcdef", "ok": True},
    **{"inputs": {"parts": ["0" * 64]}, "fetched_bytes": 400, "shape": None},
    "files": [
        {"name": "model.gguf", "sha256": "0" * 64, "size": 400, "changed_ns": 17955 * 10**14}
    ],
}
SERVED = Status(1, "chat", "ready", 1.5, 4242, placement=Placement(-1, 4096), load_s=2.5)

LOCKS = """\
@begin versionlock
 # dnf's plugin
 cuda-toolkit-13-0-0:13.0.2-1.*
 !nvidia-driver-3:580.95.05-1.fc42.*
 [[packages]]
 name = "nvidia-driver"
 comparator = "="
 key = "evr"

@end
"""

STATE = f"""\
current=0123456789abcdef
built=0123456789abcdef
cuda_repository=debian12
dnf_locks=1
linger=1
cgroup_memory=1073741824\t1000000\t1000
toolkit=/usr/local/cuda\t/usr/local/cuda-13.0\t13.0\t1\t1\t1\t1\t/usr/local/cuda-13.0/lib64
python=/usr/bin/python3.12\t3.12.3\t1
compiler=/usr/bin/g++-13\tgcc\t13.2.0
cmake=/usr/bin/cmake\tcmake version 3.28.3
systemctl=0
kernel_module=6.1.0-41-amd64\t1\t1\t580.95.05
library=/usr/lib/libnvidia-ml.so.1\t/usr/lib/libnvidia-ml.so.580.95.05\tlibnvidia-compute-580
library=/usr/local/cuda/compat/libcuda.so.1\t/usr/local/cuda/compat/libcuda.so.590.44.01\t-
module_file=/usr/lib/modules/6.1.0-41-amd64/updates/dkms/nvidia.ko.xz\t-\t1795500000
runfile=/usr/bin/nvidia-uninstall
vgpu_host=1
driver_capabilities=utility
board=NVIDIA Jetson Orin Nano
tegra=# R36 (release), REVISION: 4.3
ostree=1
no_sudo=1
pci=0000:41:00.0\t0x2b85\tnvidia\t1
switches=2
module_kind=proprietary
gpu_nodes= 0 1
@begin driver_gpus
 /proc/driver/nvidia/gpus/0000:01:00.0/information:Device Minor: 0
 /proc/driver/nvidia/gpus/0000:41:00.0/information:GPU Excluded: Yes

@end
@begin fabric_manager
 LoadState=loaded
 ActiveState=failed

@end
smi_details=0
@begin smi_details
 GPU 00000000:01:00.0
     MIG Mode
         Current : Enabled
     Compute Mode : Prohibited
     GPU Recovery Action : Reset
     Fabric
         State : In Progress

@end
smi_list=0
@begin smi_list
 GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-00000000-0000-0000-0000-000000000001)
   MIG 1g.5gb     Device  0: (UUID: MIG-00000000-0000-0000-0000-000000000001)

@end
@begin kernel_log
 [    1.0] nvidia-nvlink: Nvlink Core is being initialized, major device number 1
 [    2.0] NVRM: The NVIDIA GPU 0000:41:00.0 (PCI ID: 10de:2b85)
                NVRM: installed in this system requires use of the NVIDIA open kernel modules.
 [    3.0] NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 to 0x1
 [    4.0] NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.
 [    5.0] nvidia 0000:01:00.0: reset done

@end
smi_banner=0
@begin smi_banner
 | NVIDIA-SMI 580.95.05    Driver Version: 580.95.05   CUDA Version: 13.0   |
 |   0  NVIDIA GeForce RTX 4090    Off |   Enabled* |

@end
@begin units
 Id=llamafleet-verify.timer
 LoadState=loaded
 ActiveState=active
 UnitFileState=enabled

@end
@begin packages
 nvidia-driver-580 580.95.05-0ubuntu1 half-configured
 libnvidia-compute-580:i386 580.95.05-0ubuntu1

@end
@begin parts
 hold installed nvidia-driver-580

@end
@begin files
 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  /etc/llamafleet/llamafleet.env

@end
account_ids=995\t994
quadlet=1
podman=/usr/bin/podman\tpodman version 5.4.2
nvidia_ctk=/usr/bin/nvidia-ctk\tNVIDIA Container Toolkit CLI version 1.18.0
servers=0123456789abcdef\t1
changed=/etc/llamafleet/serve-chat.json\t1795500000
listening=8000\t0100007F\t995\t4242\tpython3\tllamafleet-serve@chat.service
listening=8001\t00000000000000000000000001000000\t0\t\t\t
model=0123456789abcdef
model_file=0123456789abcdef\tmodel.gguf\t400\t1795500000
@begin model\t0123456789abcdef\t/var/lib/llamafleet/gguf/0123456789abcdef/model.json
 {json.dumps(PLACED)}

@end
@begin served\tchat\t/var/lib/llamafleet/serve/chat/status.json
 {json.dumps(asdict(SERVED))}

@end
"""


def _known_hosts() -> list[str]:
    whole = "\n".join(GOOD)
    return [
        whole,
        whole.replace("complete=1", LOCKS + STATE + "complete=1"),
        *(load(name).text for name in HOSTS),
    ]


BASES = _known_hosts()
LONG = "9" * 40_000


def _with(line: str) -> str:
    return BASES[0].replace("complete=1", f"{line}\ncomplete=1")


KNOWN = (
    _with("compiler=/usr/bin/g++\tgcc\t13-custom"),
    _with(f"compiler=/usr/bin/g++\tgcc\t{LONG}"),
    _with(f"cmake=/usr/bin/cmake\tcmake version {LONG}"),
    _with(f"glibc=glibc {LONG}"),
    _with(f"module={LONG}"),
    _with(f"library=/usr/lib/libnvidia-ml.so.{LONG}\t"),
    _with(f"toolkit=/t\t/t\t{LONG}\t1\t1\t1\t1\t/t"),
    _with(f"python=/usr/bin/python3\t{LONG}\t1"),
    _with(f"kernel_module={LONG}\t1\t1\t580"),
    _with("cores=0"),
    _with("cores=²"),
    _with("smi_banner=0\n@begin smi_banner\n CUDA Version: " + " " * 40_000 + "\n\n@end"),
    _with("listening=8000\t0100007G\t995\t4242\tpython3\tx.service"),
    _with(f"listening={LONG}\t0100007F\t-1\t²\t\x1b[2J\t{LONG}"),
    _with(f"account_ids={LONG}\t0"),
    _with("@begin served\tchat\t/s/status.json\n {}\n\n@end"),
    _with("@begin served\t../x\t/s/status.json\n {}\n\n@end"),
    _with("model=a\nmodel_file=a\t../b.gguf\t-1\t²\n@begin model\ta\t/m.json\n []\n\n@end"),
    _with("@begin parts\n" + " install ok nvidia" * 20_000 + "\n\n@end"),
    BASES[0].replace("RTX 4090", "RTX\x1b[2J 4090").replace("gpu-a", "gpu-a\x1b]0;x\x07"),
    BASES[0].replace("hostname=gpu-a", "hostname=\ud800"),
    "echo hi\n" * 1000 + BASES[0],
)


SITE = "/v/lib/python3.12/site-packages"
ENVIRONMENT = Environment(
    executable="/v/bin/python",
    version="3.12.3",
    prefix="/v",
    base_prefix="/usr",
    base_executable="/usr/bin/python3.12",
    site=SITE,
    user_site="",
    owner=1000,
    externally_managed="",
    conda=False,
    conda_package="",
    editable="",
    uv="0.9.0",
    pip="",
    distributions=(Distribution("numpy", "2.3.0", SITE, "ab" * 32),),
)
COPY = Copy(
    "/v/lib/python3.12/site-packages/llama_cpp", "environment", "0.3.36", {"libllama.so": 1}
)
FOUND = Look((COPY,), COPY.folder, "/home/u")


def _environment(text: str, _: Path) -> object:
    def run(argv: Sequence[str], *_: object) -> Said:
        return Said(0, ANSWER + text if argv[-1] == "describe" else PYTHONS[0], "")

    return describe("/v/bin/python", run)


def _copies(text: str, _: Path) -> object:
    return look("/v/bin/python", lambda *_: Said(0, ANSWER + text, ""))


def _read(text: str, _: Path) -> object:
    return parse(text.split("\n"))


def _scrub(text: str, _: Path) -> object:
    """A snapshot stays one, with the same faults."""
    scrubbed = scrub(text).text
    try:
        parse(text.split("\n"))
    except SnapshotError:
        return scrubbed
    return parse(scrubbed.split("\n"))


SERVING = Settings.model_validate(
    {"serve": {"chat": {"model": "/srv/a.gguf"}, "code": {"model": "/srv/b.gguf", "port": 8001}}}
)


def _plan(text: str, _: Path) -> object:
    """Nothing of it may end a run: the snapshot's own error alone is that host's."""
    host = parse(text.split("\n"))
    said = []
    for settings in (Settings(), Settings(accelerator="cpu", scope="user"), SERVING):
        layout = layout_for(settings, host)
        plan = make_plan(host.hostname, settings, host, layout)
        said += [printable(line) for line in (*summarize(host), *explain(plan))]
    return said


TARGETS = (
    Target(
        "an interpreter's environment",
        ("facts.environment:describe",),
        texts([json.dumps(asdict(ENVIRONMENT))]),
        _environment,
        (NoAnswer,),
        printable=False,
        share=0.5,
    ),
    Target(
        "an interpreter's copies of llama_cpp",
        ("facts.environment:look",),
        texts([json.dumps(asdict(FOUND))]),
        _copies,
        (NoAnswer,),
        printable=False,
        share=0.5,
    ),
    Target(
        "a snapshot",
        ("facts.reader:parse",),
        texts(BASES),
        _read,
        (SnapshotError,),
        KNOWN,
    ),
    Target(
        "a snapshot without names",
        ("facts.scrub:scrub",),
        texts(BASES),
        _scrub,
        known=KNOWN,
        printable=False,
    ),
    Target(
        "the plan of a snapshot",
        ("plans.make:make_plan", "facts.summary:summarize", "terminal:printable"),
        texts(BASES),
        _plan,
        (SnapshotError,),
        KNOWN,
        share=0.6,
    ),
)
