"""What of a model decides how much memory it takes: read from a GGUF's header, once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Dimensions of one model. Bytes are those on a GPU, with CUDA's padding."""

    name: str
    """As the header has it; may be empty."""
    architecture: str
    context: int
    """Tokens that it was trained for; 0: not stated."""
    weights: tuple[int, ...]
    """Bytes of each layer."""
    output: int
    """Bytes of what comes behind the layers; of a model that has no such matrix, its own copy of
    the tokens'."""
    on_cpu: int
    """Bytes of what always stays on the CPU."""
    largest: int
    """Bytes of the largest tensor of a layer."""
    keys: tuple[int, ...]
    """Numbers that each layer keeps of a token's keys; 0: it keeps none."""
    values: tuple[int, ...]
    embd: int
    queries: int
    """Numbers of a token's queries: heads times their size."""
    feed: int
    """Numbers between the matrices of the feed-forward part, of all experts that a token has."""
    experts: int
    """Experts that a token has; 0: the model is dense."""
    vocab: int
    heads: int
    head: int
    """Numbers of one head's key."""
    head_value: int
    half: bool
    """Some matrix is not quantized: CUDA multiplies with cuBLAS and keeps copies in f16."""
    window: int = 0
    """Tokens that a layer with a window looks back; 0: none has one."""
    windowed: tuple[bool, ...] = ()
    """Which layers have it, as far as that is known; a layer that is not known has none."""
    unknown: str = ""
    """Why its memory can't be told from the header; empty: it can."""

    @property
    def layers(self) -> int:
        """Without the output, which llama.cpp counts as one more."""
        return len(self.weights)
