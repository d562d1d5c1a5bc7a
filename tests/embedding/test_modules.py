"""Embedding and EmbeddingBag against torch's, value by value and gradient by gradient."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from slipstream.embedding import Embedding, EmbeddingBag, RowGradient
from slipstream.errors import ConfigError, IndexOutOfRange, UnsupportedOption


def pair(kind: type[nn.Module], ours: type[nn.Module], *args: object, **kwargs: object) -> tuple[nn.Module, nn.Module]:
    """A module of torch and ours with the same weights."""
    torch.manual_seed(0)
    plain, mine = kind(*args, **kwargs), ours(*args, **kwargs)
    nn.init.normal_(plain.weight)  # the padding row too: training may begin from any weights
    mine.load_state_dict(plain.state_dict())
    return plain, mine


def same(plain: nn.Module, mine: nn.Module, *args: Tensor | None) -> None:
    """Equal outputs, and equal gradients of the table for a gradient that differs in every element."""
    expected, found = plain(*args), mine(*args)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for module, out in ((plain, expected), (mine, found)):
        module.zero_grad()
        (out * grad).sum().backward()
    assert isinstance(mine.weight.grad, RowGradient)
    torch.testing.assert_close(mine.weight.grad.to_dense(), plain.weight.grad, rtol=1e-6, atol=1e-6)


IDS = {
    "vector": torch.tensor([1, 9, 1, 0]),
    "matrix": torch.tensor([[1, 9, 1], [0, 2, 2]], dtype=torch.int32),
    "cube": torch.arange(8).view(2, 2, 2),
    "scalar": torch.tensor(4),
    "strided": torch.arange(10).view(2, 5).t(),
    "empty": torch.zeros(0, 3, dtype=torch.long),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding_equals_torch(ids: Tensor, padding: int | None) -> None:
    plain, mine = pair(nn.Embedding, Embedding, 10, 5, padding_idx=padding)
    assert mine.padding_idx == plain.padding_idx
    same(plain, mine, ids)


@pytest.mark.parametrize("padding", [2, -1])
def test_padding_set_after_construction_equals_torch(padding: int) -> None:
    for kind, ours in ((nn.Embedding, Embedding), (nn.EmbeddingBag, EmbeddingBag)):
        plain, mine = pair(kind, ours, 10, 5)
        plain.padding_idx = mine.padding_idx = padding
        same(plain, mine, torch.tensor([[1, 9, 2], [9, 9, 0]]))


OFFSETS = {
    "plain": [0, 2, 4],
    "empty-bags": [0, 0, 3, 3],
    "all-in-one": [0],
    "last-empty": [0, 6],
}


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
def test_bag_equals_torch(offsets: list[int], padding: int | None, mode: str) -> None:
    ids = torch.tensor([1, 9, 2, 0, 2, 1])
    plain, mine = pair(nn.EmbeddingBag, EmbeddingBag, 10, 5, mode=mode, padding_idx=padding)
    same(plain, mine, ids, torch.tensor(offsets))
    plain, mine = pair(nn.EmbeddingBag, EmbeddingBag, 10, 5, mode=mode, padding_idx=padding, include_last_offset=True)
    same(plain, mine, ids, torch.tensor([*offsets, 6]))
    same(plain, mine, ids.int(), torch.tensor([*offsets, 6], dtype=torch.int32))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("ids", [torch.tensor([[1, 9, 2], [2, 2, 2]]), torch.tensor([[3]])])
def test_bags_of_equal_length_equal_torch(ids: Tensor, mode: str) -> None:
    same(*pair(nn.EmbeddingBag, EmbeddingBag, 10, 5, mode=mode, padding_idx=2), ids)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_no_ids_and_no_bags(mode: str) -> None:
    mine = EmbeddingBag(10, 5, mode=mode, include_last_offset=True)
    none = torch.zeros(0, dtype=torch.long)
    assert torch.equal(mine(none, torch.zeros(4, dtype=torch.long)), torch.zeros(3, 5))
    assert mine(none, torch.zeros(1, dtype=torch.long)).shape == (0, 5)
    assert mine(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 5)
    assert torch.equal(mine(torch.zeros(2, 0, dtype=torch.long)), torch.zeros(2, 5))
    mine(none, torch.zeros(4, dtype=torch.long)).sum().backward()
    assert (mine.weight.grad.to_dense() == 0).all()


@pytest.mark.parametrize("shape", ["bags", "matrix"])
@pytest.mark.parametrize("padding", [None, 2])
def test_per_sample_weights_and_their_gradient_equal_torch(shape: str, padding: int | None) -> None:
    plain, mine = pair(nn.EmbeddingBag, EmbeddingBag, 10, 5, mode="sum", padding_idx=padding)
    ids, offsets = torch.tensor([1, 9, 2, 0, 2, 1]), torch.tensor([0, 3, 3])
    if shape == "matrix":
        ids, offsets = ids.view(2, 3), None
    factors = torch.randn(ids.shape, generator=torch.Generator().manual_seed(3))
    theirs, ours = factors.clone().requires_grad_(), factors.clone().requires_grad_()
    grad = torch.randn(2 if offsets is None else 3, 5)
    (plain(ids, offsets, theirs) * grad).sum().backward()
    (mine(ids, offsets, ours) * grad).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.weight.grad.to_dense(), plain.weight.grad, rtol=1e-5, atol=1e-6)
    same(plain, mine, ids, offsets, factors)


def test_state_dict_is_torchs_both_ways() -> None:
    for kind, ours in ((nn.Embedding, Embedding), (nn.EmbeddingBag, EmbeddingBag)):
        plain, mine = kind(10, 5, padding_idx=1), ours(10, 5, padding_idx=1)
        assert list(plain.state_dict()) == list(mine.state_dict()) == ["weight"]
        mine.load_state_dict(plain.state_dict())
        assert torch.equal(mine.weight, plain.weight)
        with torch.no_grad():
            mine.weight += 1
        plain.load_state_dict(mine.state_dict())
        assert torch.equal(mine.weight, plain.weight)


def test_initialisation_is_torchs() -> None:
    for kind, ours in ((nn.Embedding, Embedding), (nn.EmbeddingBag, EmbeddingBag)):
        torch.manual_seed(0)
        plain = kind(10, 5, padding_idx=1)
        torch.manual_seed(0)
        assert torch.equal(plain.weight, ours(10, 5, padding_idx=1).weight)


def test_from_pretrained() -> None:
    rows = torch.randn(10, 5)
    mine = Embedding.from_pretrained(rows, freeze=True)
    assert type(mine) is Embedding and not mine.weight.requires_grad
    assert torch.equal(mine(torch.tensor([3])), rows[3:4])
    assert not mine(torch.tensor([3])).requires_grad
    assert EmbeddingBag.from_pretrained(rows, freeze=False).weight.requires_grad


@pytest.mark.parametrize(
    "make",
    [
        lambda: Embedding(5, 3, max_norm=1.0),
        lambda: Embedding(5, 3, scale_grad_by_freq=True),
        lambda: EmbeddingBag(5, 3, max_norm=1.0),
        lambda: EmbeddingBag(5, 3, scale_grad_by_freq=True),
        lambda: EmbeddingBag(5, 3, mode="max"),
    ],
)
def test_what_row_gradients_cannot_do_is_refused_at_construction(make) -> None:
    with pytest.raises(UnsupportedOption):
        make()


@pytest.mark.parametrize(("name", "value"), [("max_norm", 1.0), ("scale_grad_by_freq", True), ("mode", "max")])
def test_what_row_gradients_cannot_do_is_refused_later_too(name: str, value: object) -> None:
    module = EmbeddingBag(5, 3, mode="sum")
    before = getattr(module, name)
    with pytest.raises(UnsupportedOption):
        setattr(module, name, value)
    assert getattr(module, name) == before
    module.mode = "mean"
    assert torch.equal(module(torch.tensor([[1, 2]]))[0], module.weight[1:3].mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_ids_and_offsets_must_be_integers(dtype: torch.dtype) -> None:
    for call in (
        lambda: Embedding(5, 3)(torch.ones(2, dtype=dtype)),
        lambda: EmbeddingBag(5, 3)(torch.arange(2), torch.zeros(1, dtype=dtype)),
    ):
        with pytest.raises(ConfigError, match=str(dtype)):
            call()


@pytest.mark.filterwarnings("ignore::slipstream.kernels.parallel.SlowPathWarning")
def test_sample_weights_of_float64_keep_their_digits() -> None:
    plain, mine = pair(nn.EmbeddingBag, EmbeddingBag, 10, 5, mode="sum")
    ids, factors = torch.arange(6).view(2, 3), torch.rand(2, 3, dtype=torch.float64)
    found = []
    for module in (plain.double(), mine.double()):
        own = factors.clone().requires_grad_()
        out = module(ids, None, own)
        out.square().sum().backward()
        found.append((out.detach(), own.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda bag, ids: bag(ids),
        lambda bag, ids: bag(ids, torch.tensor([[0, 2]])),
        lambda bag, ids: bag(ids, torch.tensor([2, 6])),  # where bags end
        lambda bag, ids: bag(ids.view(2, 3), torch.tensor([0])),
        lambda bag, ids: bag(ids.view(1, 2, 3)),
        lambda bag, ids: bag(ids, torch.tensor([0]), torch.ones(5)),
    ],
)
def test_malformed_bags_raise(call) -> None:
    with pytest.raises(ConfigError):
        call(EmbeddingBag(10, 5, mode="sum"), torch.arange(6))


def test_include_last_offset_needs_an_offset() -> None:
    with pytest.raises(ConfigError, match="include_last_offset"):
        EmbeddingBag(10, 5, include_last_offset=True)(torch.arange(6), torch.arange(0))


def test_per_sample_weights_need_sum() -> None:
    with pytest.raises(UnsupportedOption, match="sum"):
        EmbeddingBag(10, 5, mode="mean")(torch.arange(6).view(2, 3), None, torch.ones(2, 3))


@pytest.mark.parametrize("bad", [-1, 10, 2**40])
def test_ids_outside_the_table_raise(bad: int) -> None:
    with pytest.raises(IndexOutOfRange, match=str(bad)):
        Embedding(10, 5)(torch.tensor([0, bad]))
    for mode in ("sum", "mean"):
        with pytest.raises(IndexOutOfRange, match=str(bad)):
            EmbeddingBag(10, 5, mode=mode)(torch.tensor([0, bad, 1]), torch.tensor([0, 1]))


def test_no_grad_eval_and_frozen_weights_leave_no_gradient() -> None:
    mine = Embedding(10, 5)
    with torch.no_grad():
        assert not mine(torch.tensor([1])).requires_grad
    mine.eval()
    assert mine(torch.tensor([1])).requires_grad  # as torch's: eval() is not no_grad()
    mine.weight.requires_grad_(False)
    assert not mine(torch.tensor([1])).requires_grad
    head = nn.Linear(5, 1)
    head(mine(torch.tensor([1]))).sum().backward()
    assert mine.weight.grad is None and head.weight.grad is not None


def test_weight_frozen_between_forward_and_backward_gets_nothing() -> None:
    mine = Embedding(10, 5)
    out = mine(torch.tensor([1])).sum()
    mine.weight.requires_grad_(False)
    out.backward()
    assert mine.weight.grad is None


def test_deepcopy_is_independent() -> None:
    mine = Embedding(10, 5)
    mine.table.open_gate()[3] = 0
    mine(torch.tensor([1])).sum().backward()
    other = copy.deepcopy(mine)
    assert other.table.weight is other.weight is not mine.weight
    assert other.table.gate is not mine.table.gate and other.table.gate.tolist() == mine.table.gate.tolist()
    other(torch.tensor([2])).sum().backward()
    assert mine.weight.grad.to_dense()[2].sum() == 0 and other.weight.grad.to_dense()[2].sum() == 5


def test_a_whole_module_through_torch_save() -> None:
    model = nn.Sequential(Embedding(10, 5), nn.Linear(5, 1))
    model[0].table.open_gate()[3] = 7
    model[0].table.listeners.append(lambda table, ids: None)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    ids = torch.tensor([3, 4])
    assert torch.equal(other(ids), model(ids))
    assert other[0].table.gate[3] == 7 and other[0].table.listeners == []
    other(ids).sum().backward()
    assert isinstance(other[0].weight.grad, RowGradient) and model[0].weight.grad is None


def test_load_state_dict_with_assign_keeps_training() -> None:
    mine = Embedding(10, 5)
    mine.load_state_dict({"weight": torch.ones(10, 5)}, assign=True)
    assert mine.table.weight is mine.weight
    mine(torch.tensor([1])).sum().backward()
    assert mine.weight.grad.to_dense().sum() == 5


def test_a_weight_tied_after_construction_gets_its_gradient() -> None:
    mine, head = Embedding(10, 5), nn.Linear(5, 10, bias=False)
    mine.weight = head.weight
    mine(torch.tensor([1])).sum().backward()
    assert head.weight.grad.to_dense()[1].sum() == 5


@pytest.mark.filterwarnings("ignore::slipstream.kernels.parallel.SlowPathWarning")
def test_moved_to_float64_and_back() -> None:
    mine = Embedding(10, 5).double()
    assert mine(torch.tensor([1])).dtype == torch.float64 and mine.table.weight is mine.weight
    same(nn.Embedding.from_pretrained(mine.weight.detach().float(), freeze=False), mine.float(), torch.tensor([1, 1]))


def test_lookup_and_dense_use_of_one_weight_equal_torch() -> None:
    """A tied output layer."""
    ids = torch.tensor([1, 4, 1])
    plain, mine = pair(nn.Embedding, Embedding, 10, 5)
    for order in (1, -1):
        for module in (plain, mine):
            module.zero_grad()
            parts = [module(ids).square().sum(), (module(ids).detach() @ module.weight.t()).logsumexp(1).sum()]
            for part in parts[::order]:
                part.backward()
        torch.testing.assert_close(mine.weight.grad.to_dense(), plain.weight.grad)
        for module in (plain, mine):
            module.zero_grad()
            (module(ids) @ module.weight.t()).logsumexp(1).sum().backward()
        torch.testing.assert_close(mine.weight.grad.to_dense(), plain.weight.grad)


def test_listeners_hear_all_lookups_gated_ones_too() -> None:
    mine = Embedding(10, 5)
    heard = []
    mine.table.listeners.append(lambda table, ids: heard.append((table, ids.reshape(-1).tolist())))
    mine.table.open_gate().fill_(0)
    out = mine(torch.tensor([[1, 2], [3, 1]]))
    assert heard == []
    out.sum().backward()
    assert heard == [(mine.table, [1, 2, 3, 1])]


def test_gates_must_be_bytes_by_row() -> None:
    table = Embedding(10, 5).table
    for wrong in (torch.zeros(10), torch.zeros(9, dtype=torch.uint8), torch.zeros(10, 1, dtype=torch.uint8)):
        with pytest.raises(ConfigError, match="gate"):
            table.set_gate(wrong)
    table.set_gate(torch.zeros(20, dtype=torch.uint8)[::2])
    assert table.gate is not None and table.gate.is_contiguous()


def test_bf16_output() -> None:
    mine = Embedding(10, 5)
    mine.out_dtype = torch.bfloat16
    out = mine(torch.tensor([1, 1]))
    assert out.dtype == torch.bfloat16 and torch.equal(out[0], mine.weight[1].bfloat16())
    out.sum().backward()
    assert mine.weight.grad.to_dense()[1].tolist() == [2.0] * 5
