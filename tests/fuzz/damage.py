"""Good input, damaged: bytes of any file, or the parts of the tree that it is."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.forms import form

TOKENS = (
    *(b"\0", b"\n", b"\r\n", b"\r", b"\t", b",", b"::", b"|", b'"', b'""', b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80"),
    *(b"nan", b"inf", b"-1", b"1e999", b"1e308", b"9" * 30, b"0x1", b"2020-13-45", b"\x1f\x8b", b"PAR1", b"-"),
    *(b": ", b"- ", b"[", b"]", b"{", b"}", b"&a ", b"*a", b"!!float ", b"<<: ", b"? ", b"---\n", b"...", b"\\ud800"),
    *(b"null", b"true", b"~", b"../", b"0b_", b"1_0", b"1:60", b"2001-01-01T", b"-" * 40, b"[" * 70, b"'"),
    # Numbers as they lie in a file: NaN and infinity in four bytes and eight, -1, the smallest of 32 bits, 2**62.
    *(b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\0\0\0\0\0\0\xf8\x7f", b"\0\0\0\0\0\0\xf0\xff", b"\xff" * 4, b"\xff" * 8),
    *(b"\0\0\0\x80", b"\0\0\0\0\0\0\0\x40"),
)
"""Pieces that have a meaning to some reader."""
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31 - 1, 2**31, 2**53, 2**63, 10**30, -(10**30), 0.5, -1e-300, 1e308),
    *(float("nan"), float("inf"), "", "a", "0", "nan", "../../a", "/dev/zero", "a\0b", "\ud800", "x" * 3000, "<b>"),
    *([], {}, [[]], [None], [1, 2], {"": None}, {"name": "a"}, {"$tensor": "a"}, {"$float": "nan"}, {"$tuple": []}),
    *({"$items": [[1, 2]]}, {"$items": [[[], 2]]}, {"$items": [1]}),
)
"""What is put in the place of a part of a tree; those with ``$`` mean something in a checkpoint."""
LARGEST = 1 << 20
"""Bytes of a damaged input at most."""


@st.composite
def damaged(draw: st.DrawFn, good: Sequence[bytes]) -> bytes:
    """A good input with a few of its bytes or, every other time, of the parts of its tree damaged."""
    data = draw(st.sampled_from(good))
    found = form(data)
    if found is not None and draw(st.booleans()):
        tree, back = found
        return back(_damaged_tree(draw, tree))[:LARGEST]
    return _damaged_bytes(draw, data)


def _damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes changed, cut out, doubled or put in, or bytes of no order at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                data = data[:at] + draw(st.sampled_from(TOKENS)) + data[at:]
            case 1:
                data = data[:at] + data[at + draw(st.integers(1, 40)) :]
            case 2:
                data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
            case 3:
                other = draw(st.integers(0, len(data)))
                data = data[:at] + data[min(at, other) : max(at, other)] + data[at:]
            case _:
                token = draw(st.sampled_from(TOKENS))
                data = data[:at] + token + data[at + len(token) :]
    return data[:LARGEST]


def _damaged_tree(draw: st.DrawFn, good: Any) -> Any:
    """Parts taken out, exchanged for others of the tree or for something odd, or under another name."""
    tree = deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = _place(draw, tree)
        if parent is None:
            break
        match draw(st.integers(0, 4)):
            case 0:
                del parent[key]
            case 1:
                other, there = _place(draw, tree)
                if other is not None:
                    parent[key] = deepcopy(other[there])
            case 2 if isinstance(parent, dict):
                other, there = _place(draw, tree)
                parent[str(there)] = parent.pop(key)
            case 2:
                parent.insert(key, deepcopy(parent[key]))
            case _:
                parent[key] = deepcopy(draw(st.sampled_from(ODD)))
    return tree


def _place(draw: st.DrawFn, tree: Any) -> tuple[Any, Any]:
    """A part of the tree, as what holds it and its key or index, those near the root more often; (None, None): none."""
    parent: Any = None
    key: Any = None
    here: Any = tree
    while isinstance(here, dict | list) and here and (parent is None or draw(st.integers(0, 3))):
        parent = here
        key = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        here = parent[key]
    return parent, key
