"""pyinfra inventory deploy.py: from a bare driver to a proven llama-cpp-python on each host.

Each stage reads the host's plan and does what it still lacks; a stage with nothing to do costs
no command. `operations/uninstall.py`, by way of uninstall.py, removes all of it.
"""

from pyinfra import config

from operations.account import account
from operations.build import activate, build, discard_builds, take
from operations.container import proof
from operations.files import settings, tools
from operations.hold import hold
from operations.lock import lock, release
from operations.models import discard_models, models
from operations.packages import packages
from operations.preflight import preflight, refuse
from operations.reboot import reboot
from operations.run import begin
from operations.serve import libraries, serve
from operations.share import agree
from operations.textfile import textfile
from operations.toolkit import toolkit
from operations.verify import result, verify
from operations.wheelhouse import wheelhouse

config.REQUIRE_PYINFRA_VERSION = ">=3.10,<4"

begin()  # Refuses a bad inventory for all hosts at once.

preflight(name="Read the host, plan, and say why")
hold(name="Hold the driver's packages")  # A host that is stopped is protected all the same.
refuse(name="Stop where something stands in the way")
lock(name="Take the host for this run")
reboot(name="Reboot for the updated driver", _serial=True)
account(name="Create the account and its folders")
tools(name="Bring the job runner")
packages(name="Install what the build needs")
wheelhouse(name="Bring the wheelhouse")
toolkit(name="Provide a CUDA Toolkit with cuBLAS")
agree(name="Agree on who builds for whom")
build(name="Build llama-cpp-python from source")
take(name="Install what another host built")
settings(name="Render environment and units")
textfile(name="Show the verdict to node_exporter")
verify(name="Verify offload and benchmark")
result(name="Fetch and judge the result")
models(name="Bring the models")
libraries(name="Bring the server's packages")
# Nothing that takes long, or may fail, comes between the switch and the first answer.
activate(name="Switch to the proven build")
serve(name="Serve")
proof(name="Judge the proof of a container")
discard_builds(name="Remove builds that the proven one stands for")
discard_models(name="Remove models that no profile names")
release(name="Give the host back to other runs")
