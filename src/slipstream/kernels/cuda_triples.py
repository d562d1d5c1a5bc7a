"""The hardest of each user's candidates on a GPU: scores are compared as they are made, so none is kept.

Torch's operators would write the rows of all candidates, [P, K, D], and read them again.
"""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels.cuda_note import note_outside
from slipstream.kernels.cuda_pool import row_pointers


@triton.jit(do_not_specialize=["size", "candidates", "num_users", "num_items", "pair_stride", "candidate_stride"])
def hardest(
    user_weight,
    item_weight,
    users,
    items,
    out,
    flag,
    size,
    candidates,
    num_users,
    num_items,
    pair_stride,
    candidate_stride,
    D: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``out[p]`` = the first of ``items[p]`` of the highest score; ids outside their table are noted.

    A score that is no number counts as infinite, an item outside its table as minus infinite. Weights are addresses.
    Grid: (tiles of BLOCK pairs).
    """
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = pair < size
    column = tl.arange(0, BLOCK_D)
    zero = tl.zeros([BLOCK], tl.int64)
    user = tl.load(users + pair, mask=mask, other=0).to(tl.int64)
    bad = mask & ((user < 0) | (user >= num_users))
    note_outside(flag, bad, zero, pair, user, zero + num_users, 0)
    user_row = row_pointers(zero + user_weight, tl.where(bad, 0, user), D, TYPE, SIZE, ALIGNED)
    known = mask & (bad == 0)
    chosen = zero
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for k in range(0, candidates):
        item = tl.load(items + pair * pair_stride + k * candidate_stride, mask=mask, other=0).to(tl.int64)
        bad = mask & ((item < 0) | (item >= num_items))
        note_outside(flag, bad, zero + 1, pair * candidates + k, item, zero + num_items, 0)
        alive = known & (bad == 0)
        item_row = row_pointers(zero + item_weight, tl.where(bad, 0, item), D, TYPE, SIZE, ALIGNED)
        total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        for begin in tl.static_range(0, D, BLOCK_D):
            at = begin + column
            inside = alive[:, None] & (at < D)[None, :]
            # The last element is the item's bias.
            mine = tl.load(user_row[:, None] + at[None, :], mask=inside & (at < D - 1)[None, :], other=1.0)
            value = tl.load(item_row[:, None] + at[None, :], mask=inside, other=0.0)
            total += mine.to(tl.float32) * value.to(tl.float32)
        score = tl.sum(total, 1)
        score = tl.where(score != score, float("inf"), score)
        score = tl.where(bad, float("-inf"), score)
        better = (score > highest) | (k == 0)
        chosen = tl.where(better, item, chosen)
        highest = tl.where(better, score, highest)
    tl.store(out + pair, chosen, mask=mask)
