"""The model of a service: llama_cpp.server's application around a Llama that counts and can stop.

The only module of this room that imports llama_cpp, but for guard.py.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import io
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp
import llama_cpp.llama_chat_format
from llama_cpp.server import app as server
from llama_cpp.server import errors
from llama_cpp.server.settings import ModelSettings, ServerSettings
from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest

from llamafleet.onhost.serve.ask import ASKED, Ask
from llamafleet.onhost.serve.child import MUTE, QUIET, UNMUTE
from llamafleet.onhost.serve.errors import App, Refusal, too_long, wrong
from llamafleet.onhost.serve.fields import Body, Route, texts
from llamafleet.onhost.serve.guard import Guard
from llamafleet.onhost.verify.bench import physical_cores
from llamafleet.protocol.serve import KvType, Placement, ServeConfig

VERSION: str = llama_cpp.__version__
KV_TYPES: dict[KvType, int] = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}
_INFO, _WARN, _ERROR, _CONT = 2, 3, 4, 5
"""enum ggml_log_level of ggml.h; llama_cpp's own _logger.py has it in an older order."""
_MOST_LOG = 4 << 20
"""Characters of llama.cpp's log that are kept while a model is loaded: all of it says where the
layers went. The lines of a model of 100 layers are some 50 KiB."""
PIECE, SEAM = 2000, 32
"""Characters of a text that are counted at once; tokens by which a cut may have made it longer."""
_REQUESTS: dict[Route, Any] = {
    "completions": CreateCompletionRequest,
    "chat": CreateChatCompletionRequest,
}


class Log:
    """llama.cpp's log. While a model is loaded all of it is kept, and what is no debug line goes to
    the parent; later on only warnings and errors."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._keep = True
        self._level = _INFO
        self._within: bytes | None = None
        """The mark of the line that has no end yet; None: there is none."""

        # Kept, as the library holds no reference of its own.
        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
        def log(level: int, text: bytes, data: object) -> None:
            self._take(level, text)

        self._log = log
        llama_cpp.llama_log_set(log, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes) -> None:
        self._level = self._level if level == _CONT else level
        if self._keep and self._size < _MOST_LOG:
            self._parts.append(text.decode("utf-8", errors="replace"))
            self._size += len(text)
        if self._level in (_WARN, _ERROR):
            self._pass_on(text, b"")
        elif self._keep and self._level == _INFO:
            self._pass_on(text, QUIET)

    def _pass_on(self, text: bytes, mark: bytes) -> None:
        """With the mark before each line. A line is of one kind: progress is told by dots, and an
        error may come amid them."""
        if not text:
            return
        begun = self._within
        if begun is not None and begun != mark:
            _write(b"\n")
            begun = None
        marked = text[:-1].replace(b"\n", b"\n" + mark) + text[-1:]
        _write(marked if begun is not None else mark + marked)
        self._within = None if text.endswith(b"\n") else mark

    def loaded(self) -> str:
        """All of it so far."""
        self._keep = False
        text, self._parts = "".join(self._parts), []
        return text


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """What is wrong within is a client's, who is told it: llama.cpp quotes what that one sent, and
    not only through its log."""
    _write(MUTE)
    try:
        yield
    finally:
        _write(UNMUTE)


def _write(text: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text)


class _Quietly(io.TextIOBase):
    """Standard error of llama_cpp's Python while it loads: a model's whole metadata, for one."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            _write(QUIET + line.encode(errors="replace") + b"\n")
        return len(text)


class Text(bytes):
    """Of an answer, without bytes that no more of them can mend.

    llama_cpp holds a stream back as long as its bytes are no UTF-8, and tries all of them anew at
    each token; and whatever looks like the first byte of several hides the end of an answer.
    """

    whole = True
    """Nothing was left out."""

    @classmethod
    def of(cls, raw: bytes) -> Text:
        text, read = codecs.utf_8_decode(raw, "ignore", False)
        made = cls(text.encode() + raw[read:])
        made.whole = len(made) == len(raw)
        return made

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Strictly only where more bytes may yet make it whole."""
        return super().decode(encoding, errors if self.whole else "ignore")


class Served(llama_cpp.Llama):  # type: ignore[misc]
    """Counts for the request that it computes for, and stops when that one's client has left."""

    moved = 0.0
    """time.monotonic() of the last step that ended."""
    computing = False
    _guard: Guard | None = None
    _most = 0
    """Tokens that the request may have; 0: what the context has room for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pieces: dict[tuple[int, bool], bytes] = {}
        super().__init__(*args, **kwargs)

    def detokenize(
        self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False
    ) -> bytes:
        """As llama_cpp's, which asks llama.cpp for each token of an answer at each new one, and
        loses those of more than 32 bytes."""
        text = b"".join([self._piece(token, special) for token in tokens])
        begins = bool(tokens) and tokens[0] == self.token_bos() and text.startswith(b" ")
        return Text.of(text[1:] if begins else text)

    def _piece(self, token: int, special: bool) -> bytes:
        if (known := self._pieces.get((token, special))) is None:
            known = self._pieces[token, special] = self._asked_piece(token, special)
        return known

    def _asked_piece(self, token: int, special: bool, size: int = 64) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        length = llama_cpp.llama_token_to_piece(self._model.vocab, token, buffer, size, 0, special)
        # Below 0: what it needs.
        return buffer.raw[:length] if length >= 0 else self._asked_piece(token, special, -length)

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Iterator[int]:
        ask = ASKED.get(None) or Ask()
        ask.begin(len(tokens))
        self.moved, self.computing = time.monotonic(), True
        room = self.n_ctx() - len(tokens)
        most = min(self._most, room) if self._most > 0 else room
        try:
            for made, token in enumerate(super().generate(tokens, *args, **kwargs)):
                # llama_cpp asks on while the last bytes look like the first ones of a character.
                ends = made >= most
                chosen = self.token_eos() if ends else token
                vocabulary = self._model.vocab
                ask.token(ends=bool(llama_cpp.llama_vocab_is_eog(vocabulary, chosen)))
                yield chosen
                if ends:
                    return
        finally:
            self.computing = False

    def eval(self, tokens: Sequence[int]) -> None:
        """In steps of a batch, as it is done anyway: between two it may stop."""
        ask = ASKED.get(None)
        for start in range(0, max(1, len(tokens)), self.n_batch):
            if ask:
                ask.check()
            super().eval(tokens[start : start + self.n_batch])
            self.moved = time.monotonic()

    def _init_sampler(self, *args: Any, grammar: Any = None, **kwargs: Any) -> Any:
        if self._guard:
            self._guard.close()
        self._guard = None
        if grammar is not None:
            with _muted():
                self._guard = Guard(self._model, grammar)
        return super()._init_sampler(*args, **kwargs)

    def sample(self, *args: Any, idx: int | None = None, **kwargs: Any) -> int:
        if self._guard is None:
            return int(super().sample(*args, idx=idx, **kwargs))
        return self._guard.sample(self, -1 if idx is None else idx - self.n_tokens)

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        self._most = kwargs.get("max_tokens") or 0
        with _noted(self):
            made = super().create_completion(*args, **kwargs)
        return _followed(self, made) if kwargs.get("stream") else made


@contextlib.contextmanager
def _noted(model: Served | None = None) -> Iterator[None]:
    """What is raised within is what the request failed by; the next one begins anew."""
    try:
        yield
    except Exception as failure:
        if (ask := ASKED.get(None)) and ask.failure is None:
            ask.failure = failure
        if model is not None and not isinstance(failure, ValueError):
            model.reset()
            model._ctx.kv_cache_clear()
        raise


def _followed(model: Served, pieces: Iterator[Any]) -> Iterator[Any]:
    with _noted(model):
        yield from pieces


def _handler(model: Served) -> Any:
    """The chat handler of the model, as Llama.create_chat_completion finds it; what it raises is
    noted: a template that refuses the messages."""
    handler = (
        model.chat_handler
        or model._chat_handlers.get(model.chat_format)
        or llama_cpp.llama_chat_format.get_chat_completion_handler(model.chat_format)
    )

    def asked(*args: Any, **kwargs: Any) -> Any:
        with _noted():
            try:
                return handler(*args, **kwargs)
            except Exception as failure:
                # By name: the sandbox of the templates has exceptions of a library of theirs.
                if type(failure).__module__.startswith("jinja2"):
                    raise ValueError(f"its chat template says: {failure}") from failure
                raise

    return asked


def settings(config: ServeConfig, placement: Placement) -> Any:
    """Every one of llama_cpp.server's settings by value: what is not given it reads from the
    environment."""
    fixed = {name: field.get_default() for name, field in ModelSettings.model_fields.items()}
    kv_type = KV_TYPES[placement.kv_type]
    threads = physical_cores()
    own = {
        "model": config.model,
        "model_alias": config.alias,
        "n_gpu_layers": placement.n_gpu_layers,
        "n_ctx": placement.n_ctx,
        "n_batch": placement.n_batch,
        "n_ubatch": min(placement.n_batch, fixed["n_ubatch"]),
        "n_threads": threads,
        "n_threads_batch": threads,
        "type_k": kv_type,
        "type_v": kv_type,
        "flash_attn": config.flash_attention,
        "use_mmap": config.mmap,
        "use_mlock": config.mlock,
        "logits_all": False,
        # The chat template of the GGUF.
        "chat_format": None,
        # All that tells where the layers went is said at this level.
        "verbose": True,
    }
    return ModelSettings(**(fixed | own))


def _unworded(route: Any, error: Exception, body: Any = None) -> tuple[int, dict[str, str]]:
    return 500, {"message": "see Ask.failure"}


class Loaded:
    """A model in memory, with the application that serves it."""

    def __init__(self, config: ServeConfig, placement: Placement) -> None:
        """Load it: minutes. Raises what llama_cpp raises."""
        self._log = Log()
        llama_cpp.Llama = Served
        # What fails is told by the door; these write a traceback for every wrong request.
        errors.RouteErrorHandler.error_message_wrapper = _unworded
        server.print = lambda *words: None
        fixed = {name: one.get_default() for name, one in ServerSettings.model_fields.items()}
        own = {"interrupt_requests": False, "disable_ping_events": True}
        with contextlib.redirect_stderr(_Quietly()):
            self.app: App = server.create_app(
                server_settings=ServerSettings(**(fixed | own)),
                model_settings=[settings(config, placement)],
            )
        # The one that it loaded; there is no way to it by a name without an underscore.
        self.llama: Served = server._llama_proxy()
        self.llama.verbose = False
        self.llama.chat_handler = _handler(self.llama)
        self.log = self._log.loaded()

    def validate(self, route: Route, body: Body) -> None:
        """Raises Refusal where llama_cpp.server would answer 500."""
        tokens = [int(token) for token in body.get("logit_bias", ())]
        if odd := [token for token in tokens if token >= self.llama.n_vocab()]:
            expected = f"numbers of tokens below {self.llama.n_vocab()}"
            raise wrong("logit_bias", str(odd[0])[:80], expected)
        self._see_length(body)
        try:
            _REQUESTS[route](**body)
        except ValueError as error:  # pydantic's own, which tells more
            told: Any = error
            first = told.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))[:80]
            raise Refusal(400, f"{where}: {first['msg']}", param=where) from None

    def _see_length(self, body: Body) -> None:
        """Piece by piece, up to the context's length alone: a text of megabytes takes llama.cpp
        seconds, and with many special tokens minutes. Raises Refusal."""
        context, seen = self.llama.n_ctx(), 0
        for text in texts(body):
            for start in range(0, len(text), PIECE):
                part = text[start : start + PIECE].encode(errors="replace")
                tokens = len(self.llama.tokenize(part, add_bos=False, special=True))
                # Cut in two, one token may have become several.
                seen += tokens if len(text) <= PIECE else max(0, tokens - SEAM)
                if seen > context:
                    raise too_long(context, f"{seen} and more")

    def answer_one(self) -> int:
        """Have it make one token, now, from a prompt that is evaluated anew; the token."""
        self.llama.reset()
        self.llama._ctx.kv_cache_clear()
        start = self.llama.token_bos()
        for token in self.llama.generate([max(start, 0)], temp=0.0):
            return int(token)
        raise RuntimeError("the model made no token")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.llama.close()
