"""Huge pages: a hint, that changes no value and nobody waits for."""

from __future__ import annotations

import threading

import torch
from torch import nn

import slipstream as sl
from slipstream.embedding.memory import HUGE_FROM, advise_huge_pages, collapse_pages

ROWS = HUGE_FROM // 4 // 16 + 1000


def test_pages_become_huge_while_their_values_change() -> None:
    table = torch.arange(ROWS * 16, dtype=torch.float32)
    thread = collapse_pages([advise_huge_pages(table)])
    for _ in range(20):
        table += 1.0
    if thread is not None:  # elsewhere than on Linux there is nothing to do
        thread.join(60)
        assert not thread.is_alive()
    assert torch.equal(table, torch.arange(ROWS * 16, dtype=torch.float32) + 20)


def test_what_is_small_or_in_pieces_is_left_alone() -> None:
    assert (
        collapse_pages([torch.zeros(100), torch.zeros(ROWS, 32)[:, ::2], torch.zeros(ROWS, 16, device="meta")]) is None
    )


def test_a_converted_model_is_the_same_one_and_the_thread_ends() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(ROWS, 16), nn.Embedding(10, 4)])
    before = [table.weight.detach().clone() for table in model]
    sl.convert(model)
    for thread in threading.enumerate():
        if thread.name == "slipstream-huge-pages":
            thread.join(60)
            assert not thread.is_alive()
    assert all(torch.equal(table.weight, weight) for table, weight in zip(model, before, strict=True))
