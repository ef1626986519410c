"""What starts in a container of the image: proves its GPUs, then serves.

`container --config FILE [options]`: refuses to start without a GPU, as it would only seem to work
on the CPU; brings key and model; has this very build verified on the GPUs that the container was
given, unless a verification that it made before still counts; then becomes the server.

Exit 69 where a GPU or its proof is missing, 2 for bad arguments or a bad place, 1 where the
verification is red; then what the server ends with. `--health`: 0 where it is ready.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from llamafleet.onhost.driver import root
from llamafleet.onhost.serve import gate
from llamafleet.onhost.serve.check import read_status
from llamafleet.onhost.serve.settings import CREDENTIALS
from llamafleet.onhost.verify import gpu
from llamafleet.onhost.verify.evidence import Faults
from llamafleet.onhost.verify.run import verify
from llamafleet.protocol.container import ContainerConfig, verify_file
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import PATH, read_json, write_json
from llamafleet.protocol.serve import CREDENTIAL, SHORTEST_KEY, ServeConfig, status_file
from llamafleet.protocol.verify import VerifyConfig

EXIT_UNHEALTHY, EXIT_USAGE, EXIT_NO_GPU = 1, 2, gate.EXIT_HELD
LONGEST_KEY = 4096
SECRET = Path("/run/secrets") / CREDENTIAL
"""Where docker and podman mount a secret of that name."""
READY = "/ready"
"""As onhost/serve/door.py has it, which needs the server's own packages."""
READY_S = 8.0
"""For the answer of the server to the health check, whose own limit is 10 s."""
ANSWER_S = 20.0
"""For NVML."""
RUN = "docker run --gpus all -p 8000:8000 llama-rtx4090"
PODMAN = "podman run --device nvidia.com/gpu=all -p 8000:8000 llama-rtx4090"
NO_TOOLKIT = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit"
PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")


class Refused(Exception):
    """Why the container does not start: what was found, what was expected, what to type."""

    def __init__(self, text: str, status: int = EXIT_USAGE) -> None:
        super().__init__(text)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    """Start, or tell the health; the exit status is in the module's docstring."""
    options = _options(argv)
    try:
        config = decode(ContainerConfig, read_json(options.config))
    except DecodeError as error:
        print(f"{options.config}: {error}; next: build the image again", file=sys.stderr)
        return EXIT_USAGE
    if options.health:
        return health(config.serve)
    # The first process of a container gets no signal that it has no handler for.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        Start(config, options).run()
    except Refused as refused:
        print(f"llamafleet: {refused}", file=sys.stderr, flush=True)
        return refused.status
    except OSError as error:
        print(
            f"llamafleet: found no place to write to ({error}); expected the folder of the state "
            "to be this user's; next: leave --user out, or mount a volume there that it can write",
            file=sys.stderr,
            flush=True,
        )
        return EXIT_USAGE


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="docker run ... llama-rtx4090", description="Prove the GPUs, then serve a model."
    )
    parser.add_argument("--config", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--health", action="store_true", help="ask the server whether it is ready")
    parser.add_argument("--model", metavar="FILE", help="GGUF file below a mounted volume")
    parser.add_argument("--alias", metavar="NAME", help="what clients call the model")
    parser.add_argument("--n-gpu-layers", type=_layers, metavar="N", help="-1: all")
    parser.add_argument("--n-ctx", type=_tokens, metavar="TOKENS", help="of context")
    parser.add_argument("--kv-type", choices=("f16", "q8_0", "q4_0"))
    parser.add_argument("--api-key-file", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def _layers(text: str) -> int:
    if not re.fullmatch(r"-1|\d{1,5}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number, or -1 for all")
    return int(text)


def _tokens(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,7}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number of tokens")
    return int(text)


def say(text: str) -> None:
    print(f"llamafleet: {text}", flush=True)


@dataclass(frozen=True)
class Start:
    """One start of a container."""

    config: ContainerConfig
    options: argparse.Namespace

    def run(self) -> NoReturn:
        """Become the server. Raises Refused, OSError."""
        if os.geteuid() == 0:
            raise Refused(
                "found uid 0; expected the image's own user, as nothing that serves needs root; "
                "next: leave --user out"
            )
        checked = self._verification()
        serve = self._service()
        folder = Path(serve.folder)
        folder.mkdir(parents=True, exist_ok=True)
        # What a server said that has ended is no word of this one.
        status_file(serve).unlink(missing_ok=True)
        credentials = self._credentials(serve)
        write_json(Path(serve.verify), asdict(checked))
        told = folder / "serve.json"
        write_json(told, asdict(serve))
        self._prove(checked, serve)
        self._become_the_server(told, credentials)

    # -- GPUs ------------------------------------------------------------------------------------

    def _verification(self) -> VerifyConfig:
        """The settings of the verification, for the GPUs that are given. Raises Refused."""
        template = self.config.verify
        if template.backend == "cpu":
            say("this image has the CPU backend: no GPU is used")
            return template
        driver, gpus = _given()
        say(f"driver {driver}, {'; '.join(str(one) for one in gpus)}")
        identities = tuple(one.identity for one in gpus)
        inputs = replace(template.inputs, driver=driver, gpus=identities)
        return replace(template, inputs=inputs)

    def _prove(self, checked: VerifyConfig, serve: ServeConfig) -> None:
        """Verify, unless what was verified here before still counts. Raises Refused."""
        prefix = Path(checked.prefix)
        verdict = gate.judge(serve, prefix)
        if verdict.allowed:
            say("verified before, on this driver and these GPUs")
            return
        why = verdict.reason.partition("; expected")[0]
        say(f"verifies the build on what this container was given ({why})")
        status = verify(checked, Faults())
        if status:
            raise Refused(
                "found that the verification is red; expected each GPU proven before anything is "
                "served; next: read its lines above",
                EXIT_UNHEALTHY,
            )
        verdict = gate.judge(serve, prefix)
        if not verdict.allowed:
            raise Refused(verdict.reason, EXIT_NO_GPU)

    # -- what is served --------------------------------------------------------------------------

    def _service(self) -> ServeConfig:
        """The settings of the server, by the arguments. Raises Refused."""
        template, options = self.config.serve, self.options
        if options.serve:
            return self._told(options.serve)
        model = self._model()
        changes = {
            name: value
            for name in ("n_gpu_layers", "n_ctx", "kv_type")
            if (value := getattr(options, name)) is not None
        }
        return replace(
            template,
            model=str(model),
            alias=options.alias or PART.sub(".gguf", model.name).removesuffix(".gguf"),
            placement=replace(template.placement, **changes),
        )

    def _told(self, file: Path) -> ServeConfig:
        """Those of a profile, as deploy writes them; what lies in the image is the image's own.

        Raises Refused.
        """
        try:
            told = decode(ServeConfig, read_json(file))
        except DecodeError as error:
            raise Refused(f"{file}: {error}; next: deploy again") from error
        _readable(Path(told.model))
        return replace(told, verify=verify_file(told.folder), libraries=self.config.serve.libraries)

    def _model(self) -> Path:
        """The file to serve: the one that is named, or the one that was mounted. Raises Refused."""
        if self.options.model:
            return _readable(Path(self.options.model))
        folder = Path(self.config.models)
        found = [file for file in sorted(folder.rglob("*.gguf")) if _is_first(file)]
        if len(found) == 1:
            return _readable(found[0])
        if found:
            raise Refused(
                f"found {len(found)} models below {folder}; expected one, or --model; "
                f"next: {RUN} --model {found[0]}"
            )
        say(
            f"found no model below {folder}: serves the small one of the verification, whose text "
            f"means nothing; next: docker run --gpus all -p 8000:8000 -v DIRECTORY:{folder}:ro "
            "llama-rtx4090"
        )
        return Path(self.config.serve.model)

    def _credentials(self, serve: ServeConfig) -> Path:
        """Folder of the API key, for the server alone. Raises Refused."""
        folder = Path(serve.folder, "credentials")
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / CREDENTIAL
        if not serve.key:
            return folder
        given = self.options.api_key_file or (SECRET if SECRET.exists() else None)
        if given:
            _write_key(file, _key_of(given))
            say(f"API key: that of {given}")
        elif file.exists():
            say(f"API key: the one of the first start; {_how_to_read(file)}")
        else:
            # Whoever reaches the published port would compute here for nothing else.
            _write_key(file, secrets.token_urlsafe(32))
            say(f"API key: made now, as none was given; {_how_to_read(file)}")
        return folder

    def _become_the_server(self, told: Path, credentials: Path) -> NoReturn:
        env = {
            "PATH": PATH,
            "LC_ALL": "C.UTF-8",
            "HOME": str(told.parent),
            CREDENTIALS: str(credentials),
        }
        python = f"{self.config.verify.prefix}/bin/python"
        sys.stdout.flush()
        os.execve(python, [python, "-I", sys.argv[0], "serve", "--config", str(told)], env)


def _given() -> tuple[str, list[gpu.Gpu]]:
    """Driver and GPUs of this container. Raises Refused."""
    asked = f"expected a GPU, given by --gpus; next: {RUN}, or {PODMAN}"
    nodes = [name for name in ("nvidiactl", "dxg") if (root() / "dev" / name).exists()]
    if not nodes:
        raise Refused(
            f"found no GPU in this container (no /dev/nvidiactl): nothing is served from the CPU; "
            f"{asked}; the host needs NVIDIA's driver and container toolkit: {NO_TOOLKIT}",
            EXIT_NO_GPU,
        )
    try:
        nvml = gpu.Nvml(answer_s=ANSWER_S)
    except gpu.NvmlUnavailable as error:
        raise Refused(
            f"found a GPU's device file and no driver's library that answers ({error}); {asked}, "
            "and NVIDIA_DRIVER_CAPABILITIES as the image has it: compute,utility",
            EXIT_NO_GPU,
        ) from error
    driver, gpus = nvml.driver(), nvml.gpus()
    nvml.close()
    if not gpus:
        raise Refused(f"found driver {driver} and none of its GPUs; {asked}", EXIT_NO_GPU)
    return driver, gpus


def _is_first(file: Path) -> bool:
    """A model that is one file, or the first part of one that is split."""
    part = PART.search(file.name)
    return part is None or int(part[1]) == 1


def _readable(file: Path) -> Path:
    """The file, as an absolute path. Raises Refused."""
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Refused(
            f"model: found {str(file)!r}: {reason}; expected a GGUF file that uid {os.geteuid()} "
            "can read; next: mount its folder, as -v DIRECTORY:/models:ro, and chmod o+r the file"
        ) from error
    if magic != b"GGUF":
        raise Refused(
            f"model: found {magic!r} at the beginning of {file}; expected GGUF; "
            "next: bring the model again"
        )
    return file.absolute()


def _key_of(file: Path) -> str:
    """The key in a mounted file; never told. Raises Refused."""
    try:
        with file.open("rb") as opened:
            text = opened.read(LONGEST_KEY + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no ASCII text"
        raise Refused(
            f"API key: found {file}: {reason}; expected a file that uid {os.geteuid()} can read; "
            "next: chmod it, or leave it out, and one is made"
        ) from error
    if not SHORTEST_KEY <= len(text) <= LONGEST_KEY or not text.isprintable() or " " in text:
        raise Refused(
            f"API key: found {len(text)} characters in {file}; expected one word of {SHORTEST_KEY} "
            f"to {LONGEST_KEY}; next: openssl rand -hex 32 > FILE"
        )
    return text


def _write_key(file: Path, key: str) -> None:
    """For this user alone from the first moment."""
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(file, flags, 0o600), "w", encoding="ascii") as opened:
        opened.write(key)


def _how_to_read(file: Path) -> str:
    """A log is kept and read by many: the key is not in it."""
    return f"read it with: docker exec {socket.gethostname()} cat {file}"


def health(serve: ServeConfig) -> int:
    """Whether the server has answered a token; what it says of that is printed.

    Its own word comes first: with the host's network another's server may be at that port.
    """
    told = read_status(serve)
    if told is None or told.state != "ready":
        print(f"not ready: {told.state if told else 'no server runs'}")
        return EXIT_UNHEALTHY
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=READY_S)
    try:
        connection.request("GET", READY)
        answer = connection.getresponse()
        said = answer.read(2000).decode("utf-8", errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        print(f"not ready: {type(error).__name__}: {error}")
        return EXIT_UNHEALTHY
    finally:
        connection.close()
    print(f"{answer.status} {said}")
    return 0 if answer.status == 200 else EXIT_UNHEALTHY
