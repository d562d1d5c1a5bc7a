"""Device function: note an id outside its table; see :mod:`slipstream.kernels.cuda_errors`."""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels import cuda_errors

POSITION_BITS = tl.constexpr(cuda_errors.POSITION_BITS)


@triton.jit
def note_outside(flag, bad, places, positions, ids, rows, CALL: tl.constexpr):
    """Notes one of the lookups marked ``bad``, if none was noted before.

    Args:
        flag: int64 [5].
        bad: bool [N].
        places: int64 [N], feature or table.
        positions: int64 [N], the lookup's position within it.
        ids: int64 [N].
        rows: int64 [N], rows of the table.
        CALL: Position in ``cuda_errors.CALLS``.
    """
    none: tl.constexpr = 9223372036854775807
    codes = tl.where(bad, ((places << POSITION_BITS) | positions) + 1, none)
    first = tl.min(codes, 0)
    if first != none:
        if tl.atomic_cas(flag, tl.full([], 0, tl.int64), first) == 0:
            # Lanes may look at one lookup twice: they hold the same numbers.
            chosen = codes == first
            least: tl.constexpr = -9223372036854775807
            tl.store(flag + 1, tl.max(tl.where(chosen, ids, least), 0))
            tl.store(flag + 2, tl.max(tl.where(chosen, rows, least), 0))
            tl.store(flag + 3, tl.full([], CALL, tl.int64))
