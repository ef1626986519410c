"""Operations carry a plan out: pyinfra operations, one module per component."""
