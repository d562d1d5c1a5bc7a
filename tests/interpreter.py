"""Runs the GPU kernels on the CPU, by Triton's interpreter. To be imported before anything imports triton."""

from __future__ import annotations

import inspect
import os
from importlib.util import find_spec

import torch

ON_GPU = os.environ.get("SLIPSTREAM_TEST_GPU") == "1"
"""Set by ``make test-gpu``: the kernels are compiled, and tests marked ``gpu`` run."""
DEVICE = "cuda" if ON_GPU else "cpu"
HAS_TRITON = find_spec("triton") is not None
MISSING = "Triton is not installed: pip install triton"

if HAS_TRITON and not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

    import triton.runtime.interpreter as interpreter

    _patch = interpreter._patch_lang_tensor

    def _patch_lang_tensor(tensor, scope) -> None:
        """Triton 3.6 takes int() of an array of one element, which numpy 2.4 no longer does."""
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    if "scope" in inspect.signature(_patch).parameters:
        interpreter._patch_lang_tensor = _patch_lang_tensor
    else:  # Triton 3.2, which comes with torch 2.6: its interpreter crashes on our kernels
        HAS_TRITON, MISSING = False, "this Triton's interpreter is too old: pip install 'triton>=3.6'"

if ON_GPU and not torch.cuda.is_available():
    raise RuntimeError("SLIPSTREAM_TEST_GPU=1, and torch sees no GPU")
