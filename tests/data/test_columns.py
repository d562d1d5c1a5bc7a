"""Batches of other libraries' loaders: what the Skipper decides on, and what travels along."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slipstream as sl
from slipstream.data import Batch, Columns, Inputs
from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.policies import NoSkipping, Random


def loader(count: int = 5, size: int = 20) -> list[dict[str, Tensor]]:
    samples = torch.arange(count * size)
    return [
        {
            "user": part.double(),  # FuxiCTR keeps ids among floats
            "pair": torch.stack([part, part + 1], 1),
            "label": (part % 2).unsqueeze(1),
            "history": part.unsqueeze(1).expand(-1, 7),
            "year": part / 10,
        }
        for part in samples.split(size)
    ]


def test_columns_become_inputs_and_travel_along() -> None:
    batch = Columns(["user", "pair"], "label", dense=["year"], time="user")(loader()[0])
    assert batch.inputs.ids.dtype == torch.int32 and batch.inputs.ids.shape == (20, 3)
    assert torch.equal(batch.inputs.ids[:, 2], batch.inputs.ids[:, 0] + 1)
    assert batch.labels.dtype == torch.float32 and batch.labels.shape == (20,) and batch.inputs.dense.shape == (20, 1)
    assert batch.carried is not None and batch.carried["history"].shape == (20, 7)
    assert batch.time is not None and batch.time[3] == 3


def test_samples_are_numbered_as_they_pass_or_by_a_column() -> None:
    columns = Columns(["user"])
    assert [int(columns(part).index[0]) for part in loader(3)] == [0, 20, 40]
    assert torch.equal(Columns(["user"], index="user")(loader()[1]).index, torch.arange(20, 40))
    assert bool((columns(loader()[0]).labels == 1).all()), "logs of positives need no label"


def test_a_training_resumed_within_an_epoch_decides_as_it_would_have() -> None:
    columns = Columns(["user"])  # of several Skippers

    def skipper() -> sl.Skipper:
        return sl.Skipper(nn.Linear(1, 1), Random(0.5), batch_size=20, to_batch=columns)

    def kept(skipper: sl.Skipper, parts: list[dict[str, Tensor]]) -> list[Tensor]:
        return [batch.index for part in parts for batch in skipper.push(part)]

    first, second = skipper(), skipper()
    kept(first, loader()[:2])
    state = first.state_dict()
    rest = kept(first, loader()[2:])
    second.load_state_dict(state)
    assert torch.equal(torch.cat(kept(second, loader()[2:])), torch.cat(rest))


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_training_resumed_between_epochs_decides_as_it_would_have(by_hand: bool) -> None:
    def skipper() -> sl.Skipper:
        return sl.Skipper(nn.Linear(1, 1), Random(0.5), batch_size=20, to_batch=Columns(["user"]))

    def epoch(skipper: sl.Skipper) -> list[Tensor]:
        if not by_hand:
            return [batch.inputs.ids for batch in skipper(loader())]
        kept = [batch.inputs.ids for part in loader() for batch in skipper.push(part)]
        return kept + [batch.inputs.ids for batch in skipper.flush()]

    first, second = skipper(), skipper()
    one = epoch(first)
    state = first.state_dict()
    first.to_batch(loader()[0])  # type: ignore[misc] # what is validated meanwhile
    two = epoch(first)
    list(second.push(loader()[0]))
    second.load_state_dict(state)
    assert torch.equal(torch.cat(epoch(second)), torch.cat(two))
    assert not torch.equal(torch.cat(one), torch.cat(two)), "each epoch draws anew"


@pytest.mark.parametrize("kind", ["tuple", "tensor", "interaction"])
def test_tuples_tensors_and_recboles_interactions(kind: str) -> None:
    ids = torch.arange(4)
    given: Any = {"tuple": (ids, ids), "tensor": ids, "interaction": SimpleNamespace(interaction={"0": ids})}[kind]
    batch = Columns(["0"])(given)
    assert torch.equal(batch.inputs.ids[:, 0].long(), ids) and batch.carried is not None
    assert torch.equal(batch.carried["0"], ids)


def test_carried_tensors_are_repacked_with_their_samples() -> None:
    model = sl.convert(nn.Sequential(nn.Embedding(100, 2)))
    for policy in (Random(0.5), NoSkipping()):
        skipper = sl.Skipper(model, policy, batch_size=16, to_batch=Columns(["user"], "label"))
        state: dict[str, Any] = {}
        seen = []
        for number, batch in enumerate(skipper(loader())):
            assert batch.carried is not None and set(batch.carried) == set(loader()[0])
            assert torch.equal(batch.carried["user"].int(), batch.inputs.ids[:, 0])
            assert torch.equal(batch.carried["history"][:, 6], batch.index)
            assert skipper.weights is batch.weights
            seen.append(batch.index)
            if number == 1:
                state = skipper.state_dict()
        assert torch.cat(seen).unique().numel() == skipper.inputs_kept
        waiting = state["waiting"]
        assert not waiting or set(waiting["carried"]) == set(loader()[0])
        other = sl.Skipper(model, type(policy)(), batch_size=16, to_batch=Columns(["user"], "label"))
        other.load_state_dict(state)
        if waiting:
            (rest,) = other.flush()
            assert torch.equal(rest.carried["history"], waiting["carried"]["history"])  # type: ignore[index]


def test_wrong_columns_are_named() -> None:
    with pytest.raises(ConfigError, match="list of names"):
        Columns("user")
    with pytest.raises(ConfigError, match=r"no column 'item'.*'user'"):
        Columns(["item"])(loader()[0])
    with pytest.raises(ConfigError, match="'b' has 3 samples, the others 4"):
        Columns(["a"])({"a": torch.arange(4), "b": torch.arange(3)})
    with pytest.raises(ConfigError, match="'a' of the batch is a list"):
        Columns(["a"])({"a": [1, 2]})


def test_batches_that_carry_different_things_are_not_joined() -> None:
    with pytest.raises(ConfigError, match="carry different things"):
        Batch.concat([Columns(["a"])({"a": torch.arange(2)}), Columns(["b"])({"b": torch.arange(2)})])
    plain = Batch(Inputs(torch.empty(1, 0), torch.zeros(1, 1)), torch.zeros(1), torch.zeros(1), torch.ones(1))
    assert Batch.concat([plain, plain]).carried is None


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([7, 2**32 + 5]),
        torch.tensor([7, -(2**31) - 1]),
        torch.tensor([7.0, float("nan")]),
        torch.tensor([[7, 8], [9, 2**31]]),
        torch.tensor([7, 2**32 - 1]).to(torch.uint32),
        torch.tensor([7, -1]).view(torch.uint64),
    ],
)
def test_ids_that_int32_would_wrap_around_are_refused(ids: Tensor) -> None:
    columns = Columns(ids=["u"], label="y")
    columns({"u": torch.arange(3), "y": torch.ones(3)})
    with pytest.raises(IndexOutOfRange, match=r"column 'u', sample 4 .* is no row of a table; .*hash % rows"):
        columns({"u": ids, "y": torch.ones(2)})


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64, torch.float32])
def test_ids_of_any_dtype(dtype: torch.dtype) -> None:
    batch = Columns(ids=["u"])({"u": torch.tensor([0, 5, 100], dtype=dtype)})
    assert batch.inputs.ids.tolist() == [[0], [5], [100]]
    assert Columns(ids=["u"])({"u": torch.empty(0, dtype=dtype)}).inputs.ids.shape == (0, 1)
