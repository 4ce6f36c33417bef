"""A router: scores, the best groups, the best experts in them, their weights; a row a block.

score = sigmoid(x) or softmax(x);  choice = score + bias;  ids = top-k of choice in the best groups
weights = score[ids] / (sum + floor) * scale

The row lies as [groups, experts of a group].  The best is taken k times: of equals the lower one.
"""

import triton
import triton.language as tl

FLOOR = tl.constexpr(1e-20)  # as the reference's NORMALIZE_FLOOR


@triton.jit
def _best(values, names, count):
    """The lowest name among the largest values, and a mask of it; names reach to count - 1."""
    largest = tl.max(values)
    name = tl.min(tl.where(values == largest, names, count))
    return name, names == name


@triton.jit
def route_kernel(
    weight_ptr, id_ptr, x_ptr, bias_ptr, size, stride_x, scale,
    TOPK: tl.constexpr, GROUPS: tl.constexpr, TOPK_GROUP: tl.constexpr, NORMALIZE: tl.constexpr,
    SIGMOID: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_G)
    inside = tl.arange(0, BLOCK_S)[None, :]
    mask = (group < GROUPS)[:, None] & (inside < size)  # [BLOCK_G, BLOCK_S]
    expert = group[:, None] * size + inside
    k = tl.arange(0, BLOCK_K)

    x = tl.load(x_ptr + row * stride_x + expert, mask=mask, other=float("-inf"))
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-x))
        choice = score + tl.load(bias_ptr + expert, mask=mask, other=0.0).to(tl.float32)
    else:
        score = tl.exp(x - tl.max(x))
        score = score / tl.sum(score)
        choice = score
    choice = tl.where(choice != choice, float("inf"), choice)  # NaN is chosen, and shows
    if TOPK_GROUP < GROUPS:
        ranked = tl.where(mask, choice, float("-inf"))
        best = tl.max(ranked, 1)  # [BLOCK_G]
        if SIGMOID:
            first = tl.min(tl.where(ranked == best[:, None], inside, BLOCK_S), 1)
            ranked = tl.where(inside == first[:, None], float("-inf"), ranked)
            best += tl.where(size > 1, tl.max(ranked, 1), 0.0)
        taken = group >= GROUPS
        for _ in tl.static_range(TOPK_GROUP):
            # Below every group's score, -inf itself included: a group is not taken twice.
            _, found = _best(
                tl.where(taken, float("-inf"), best), tl.where(taken, GROUPS, group), GROUPS
            )
            taken = taken | found
        kept = (taken & (group < GROUPS))[:, None]
        choice = tl.where(kept, choice, float("-inf") if SIGMOID else 0.0)

    names = tl.where(mask, expert, GROUPS * size)
    weights = tl.zeros((BLOCK_K,), tl.float32)
    ids = tl.zeros((BLOCK_K,), tl.int32)
    for j in tl.static_range(TOPK):
        left = tl.where(names < GROUPS * size, choice, float("-inf"))
        name, found = _best(left, names, GROUPS * size)
        weights = tl.where(k == j, tl.sum(tl.where(found, score, 0.0)), weights)
        ids = tl.where(k == j, name, ids)
        names = tl.where(found, GROUPS * size, names)
    if NORMALIZE:
        weights = weights / (tl.sum(weights) + (FLOOR if SIGMOID else 0.0))
    tl.store(weight_ptr + row * TOPK + k, weights * scale, mask=k < TOPK)
    tl.store(id_ptr + row * TOPK + k, ids.to(tl.int64), mask=k < TOPK)
