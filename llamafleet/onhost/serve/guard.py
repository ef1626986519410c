"""A grammar that can't end the process.

llama.cpp's own chain has the grammar inside, takes whatever token is left where the grammar allows
none, and throws when that is accepted: a C++ exception, which ends the process. Here the grammar is
asked apart from the chain, and what it does not allow is never accepted.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np


class Guard:
    """The grammar of one request."""

    def __init__(self, model: Any, grammar: Any) -> None:
        """Raises ValueError where llama.cpp can't read it: llama_cpp would use nothing for it."""
        text, root = grammar._grammar, grammar._root
        # C ends a text at its first zero byte.
        made = "\0" not in text and llama_cpp.llama_sampler_init_grammar(
            model.vocab, text.encode(), root.encode()
        )
        if not made:
            raise ValueError("llama.cpp can't make a grammar of the schema")
        self._grammar = made

    def sample(self, llama: Any, index: int) -> int:
        """The next token, which both have accepted. Raises ValueError in a dead end."""
        tokens, chain = llama._candidates, llama._sampler.sampler
        logits = llama_cpp.llama_get_logits_ith(llama._ctx.ctx, index)
        tokens.copy_logits(np.ctypeslib.as_array(logits, shape=(tokens.n_vocab,)))
        array = tokens.candidates
        array.selected = -1
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if not np.isfinite(tokens.candidates_data.logit[: array.size]).any():
            raise _dead_end()
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise _dead_end()
        # The chain may have put the array elsewhere.
        chosen = array.data[array.selected]
        if not np.isfinite(chosen.logit):
            raise _dead_end()
        llama_cpp.llama_sampler_accept(self._grammar, chosen.id)
        llama_cpp.llama_sampler_accept(chain, chosen.id)
        return int(chosen.id)

    def close(self) -> None:
        if self._grammar:
            llama_cpp.llama_sampler_free(self._grammar)
            self._grammar = None


def _dead_end() -> ValueError:
    return ValueError("the schema leads to where no token of the model can follow")
