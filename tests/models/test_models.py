import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.errors import ConfigError
from slipstream.models import MODELS, DLRMConfig, MatrixFactorizationConfig, ModelConfig, build_model
from slipstream.models.layers import CrossNetwork, DotInteraction

FEATURES = (
    FeatureInfo(name="user", num_rows=11),
    FeatureInfo(name="item", num_rows=7),
    FeatureInfo(name="hour", num_rows=5),
    FeatureInfo(name="tags", num_rows=4, multi_hot=True),
)
SMALL = {
    "dlrm": {"bottom": [8], "top": [8]},
    "dcnv2": {"deep": [8], "cross_layers": 2},
    "deepfm": {"deep": [8]},
    "mf": {"embedding_dim": 8},
    "two_tower": {"layers": [8, 4]},
}


def config(name: str, **settings):
    return TypeAdapter(ModelConfig).validate_python({"name": name, "embedding_dim": 8, **SMALL[name], **settings})


def some_batch(size: int = 9, num_dense: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randint(0, f.num_rows, (size,), generator=generator) for f in FEATURES[:3]], 1).int()
    bag = Bag(
        torch.randint(0, 4, (size,), generator=generator).int(), torch.tensor([0, 0, *range(2, size), size]).long()
    )
    labels = (torch.rand(size, generator=generator) > 0.5).float()
    dense = torch.randn(size, num_dense, generator=generator)
    return Batch(Inputs(dense, ids, (bag,)), labels, torch.arange(size), torch.ones(size))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_dense", [0, 2])
def test_both_engines_agree_in_logits_and_dense_gradients(name, num_dense):
    batch = some_batch(num_dense=num_dense)
    ours = build_model(config(name), FEATURES, num_dense)
    plain = build_model(config(name), FEATURES, num_dense, engine="torch")
    plain.load_state_dict(ours.state_dict())
    logits = ours(batch.inputs)
    assert logits.shape == (9,)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, plain(batch.inputs))
    ours.loss(batch).backward()
    plain.loss(batch).backward()
    tables = {name for name, _ in ours.embeddings.named_parameters(prefix="embeddings")}
    for parameter, value in ours.named_parameters():
        if parameter not in tables:
            torch.testing.assert_close(value.grad, plain.get_parameter(parameter).grad)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast_stays_close(name):
    batch = some_batch()
    model = build_model(config(name), FEATURES, 2)
    exact = model(batch.inputs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(batch)
        rough = model(batch.inputs)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_weights_scale_the_loss(name):
    batch = some_batch()
    model = build_model(config(name), FEATURES, 2)
    once = model.loss(batch)
    batch.weights = batch.weights * 3
    torch.testing.assert_close(model.loss(batch), 3 * once)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 6),
    batch=st.integers(1, 4),
    dim=st.integers(1, 5),
    ahead=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_dot_interaction_equals_its_definition(count, batch, dim, ahead, dtype):
    vectors = torch.randn(batch, count, dim, dtype=dtype, requires_grad=True)
    layer = DotInteraction(count, ahead=ahead)
    rows, columns = torch.tril_indices(count, count, -1)
    expected = (vectors[:, rows] * vectors[:, columns]).sum(2)
    expected = torch.cat([vectors[:, 0], expected], dim=1) if ahead else expected
    torch.testing.assert_close(layer(vectors), expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weights).sum(), vectors)[0] for x in (layer(vectors), expected)]
    torch.testing.assert_close(*gradients)


def test_low_rank_cross_layer_is_the_product_of_its_factors():
    low, full = CrossNetwork(6, 1, rank=2), CrossNetwork(6, 1)
    with torch.no_grad():
        full.layers[0].weight.copy_(low.layers[0][1].weight @ low.layers[0][0].weight)
        full.layers[0].bias.copy_(low.layers[0][1].bias)
    x = torch.randn(3, 6)
    torch.testing.assert_close(low(x), full(x))


def test_dlrm_has_the_published_kaggle_shape():
    features = [FeatureInfo(name=f"C{i}", num_rows=3) for i in range(26)]
    model = build_model(DLRMConfig(), features, 13)
    widths = lambda net: [layer.out_features for layer in net if isinstance(layer, nn.Linear)]  # noqa: E731
    assert widths(model.bottom) == [512, 256, 64, 16]
    assert widths(model.top) == [512, 256, 1]
    assert model.top[0].in_features == 16 + 27 * 26 // 2


def test_bpr_ranks_positives_above_drawn_items_and_draws_anew_each_step():
    torch.manual_seed(0)
    model = build_model(MatrixFactorizationConfig(objective="bpr", embedding_dim=8), FEATURES, 2)
    batch = some_batch(64)
    batch.labels = torch.ones(64)
    assert model.loss(batch) != model.loss(batch)
    assert int(model.state_dict()["steps"]) == 2
    batch.labels = torch.zeros(64)
    assert model.loss(batch) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user": "nobody"}, "no feature 'nobody'"),
        ({"item": "tags"}, "two different one-hot features"),
        ({"item": "user"}, "two different one-hot features"),
    ],
)
def test_matrix_factorization_names_what_does_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_model(config("mf", **settings), FEATURES, 0)


def test_features_may_have_dots_and_names_of_module_attributes():
    names = ["a.b", "a_b", "a_b_", "a.b_", "type"]
    features = [FeatureInfo(name=name, num_rows=3) for name in names]
    model = build_model(config("dlrm"), features, 0)
    keys = [key for key in model.state_dict() if ".tables." in key]
    assert len(set(keys)) == len(names)
    assert keys[1:3] == ["embeddings.tables.a_b.weight", "embeddings.tables.a_b_.weight"]
    inputs = Inputs(torch.empty(2, 0), torch.ones(2, len(names), dtype=torch.int32), ())
    assert model(inputs).shape == (2,)


def test_two_tower_wants_features_on_both_sides():
    with pytest.raises(ConfigError, match="item's tower"):
        build_model(config("two_tower", item_features=[f.name for f in FEATURES]), FEATURES, 0)


@pytest.mark.parametrize("name", ["dlrm", "dcnv2"])
def test_compiles_without_a_graph_break(name):
    model = build_model(config(name), FEATURES, 2)
    inputs = some_batch().inputs
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(model)(inputs)
    assert explanation.graph_break_count == 0


def test_feature_norm_divides_each_vector_by_its_root_mean_square():
    torch.manual_seed(0)
    model = build_model(config("dlrm", feature_norm=True), FEATURES, 2)
    plain = build_model(config("dlrm"), FEATURES, 2)
    plain.load_state_dict(model.state_dict())
    assert not DLRMConfig().feature_norm
    batch = some_batch()
    rows = model.look_up(batch.inputs)
    normed = rows / (rows.square().mean(2, keepdim=True) + 1e-6).sqrt()
    plain.look_up = lambda inputs: normed
    torch.testing.assert_close(model(batch.inputs), plain(batch.inputs))
    # An empty bag is a vector of zeros, and stays one without harm to the gradients.
    assert bool((rows[0, 3] == 0).all())
    model.loss(batch).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.top.parameters())


def test_the_softmax_of_two_towers_keeps_the_shares_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    cross_entropy = nn.functional.cross_entropy
    monkeypatch.setattr(
        nn.functional,
        "cross_entropy",
        lambda logits, *a, **k: cross_entropy(seen.append(logits.dtype) or logits, *a, **k),
    )
    features = [FeatureInfo(name="user", num_rows=5), FeatureInfo(name="item", num_rows=6)]
    model = build_model(config("two_tower", objective="softmax"), features, 0)
    inputs = Inputs(torch.empty(3, 0), torch.tensor([[1, 2], [2, 3], [3, 4]]))
    batch = Batch(inputs=inputs, labels=torch.ones(3), index=torch.arange(3), weights=torch.ones(3))
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(batch)
    assert seen == [torch.float32]
