"""Baselines that are trained embed and score as the equations of their papers say."""

import numpy as np
import pytest
import torch

from tessera.benchmarks.baselines.bm3 import Bm3, Bm3Model
from tessera.benchmarks.baselines.graphs import (
    histories_graph,
    item_graph,
    user_item_graph,
)
from tessera.benchmarks.baselines.lattice import Lattice, LatticeModel
from tessera.benchmarks.baselines.lightgcn import LightGCN, LightGCNModel
from tessera.benchmarks.baselines.mgcn import Mgcn, MgcnModel
from tessera.benchmarks.baselines.pgl import Pgl, PglModel, modality_weights
from tessera.benchmarks.baselines.sequences import GRU4Rec, SASRec, SequenceBaseline, SequenceModel
from tessera.benchmarks.baselines.training import info_nce
from tessera.benchmarks.baselines.vbpr import Vbpr, VbprModel
from tessera.client.histories import histories, single
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split
from tests.support.grouped import N_ITEMS, N_USERS


def test_vbpr_scores_as_its_equation(split: Split, catalogue: Catalogue) -> None:
    model = Vbpr(dim=3).build(histories(split), catalogue)
    assert isinstance(model, VbprModel)
    torch.nn.init.normal_(model.bias)
    torch.nn.init.normal_(model.content_bias)
    users, items = model()
    gamma, theta = model.users[5].split(3)
    content = model.features[9]
    expected = (
        model.bias[9] + gamma @ model.items[9] + theta @ (model.projection.T @ content) + model.content_bias @ content
    )
    torch.testing.assert_close(users[5] @ items[9], expected)


def test_bm3_loss_as_its_equation(split: Split, catalogue: Catalogue) -> None:
    model = Bm3(dim=3, dropout=0.0, layers=1, penalty=0.5).build(histories(split), catalogue)
    assert isinstance(model, Bm3Model)
    users, positives = torch.tensor([4, 9]), torch.tensor([7, 2])
    all_users, all_items = model.embed()
    expected = []
    for user, item in zip(all_users[users], all_items[positives], strict=True):
        pairs = [(user, item), (item, user)]
        number = positives[len(expected)]
        for projection, features in zip(model.projections, model.features, strict=True):
            modality = projection(features[number])
            pairs += [(modality, item), (modality, modality)]
        distances = [1 - torch.cosine_similarity(model.predictor(online), target, dim=0) for online, target in pairs]
        expected.append(sum(distances) + 0.5 * (user @ user + item @ item) / 2)
    torch.testing.assert_close(model.loss(users, positives, positives), (expected[0] + expected[1]) / 2)


def test_mgcn_embeds_each_node_as_its_equations(split: Split, catalogue: Catalogue) -> None:
    people = histories(split)
    model = Mgcn(dim=3, layers=1).build(people, catalogue)
    assert isinstance(model, MgcnModel)
    own = torch.cat([model.users, model.items])
    behaviour = (own + model.interactions @ own) / 2
    purified = [
        model.items * torch.sigmoid(gate(projection(features)))
        for gate, projection, features in zip(model.purifiers, model.projections, model.features, strict=True)
    ]
    of_items = [graph @ items for graph, items in zip(model.graphs, purified, strict=True)]
    views = [torch.cat([model.user_item @ items, items]) for items in of_items]
    users, items = model()
    for node in (3, N_USERS + 5):
        here = [view[node] for view in views]
        attention = torch.softmax(torch.cat([model.attention(view) for view in here]), 0)
        shared = attention[0] * here[0] + attention[1] * here[1]
        gates = [torch.sigmoid(preference(behaviour[node])) for preference in model.preferences]
        private = [gate * (view - shared) for gate, view in zip(gates, here, strict=True)]
        expected = behaviour[node] + shared + (private[0] + private[1]) / 2
        torch.testing.assert_close(torch.cat([users, items])[node], expected)


def test_infonce_is_the_mean_of_minus_log_shares() -> None:
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    shares = (torch.cosine_similarity(first[:, None], second[None], dim=2) / 0.2).exp()
    torch.testing.assert_close(info_nce(first, second, 0.2), -(shares.diagonal() / shares.sum(1)).log().mean())


def test_pgl_trains_on_a_part_of_the_edges_and_infers_on_all(split: Split, catalogue: Catalogue) -> None:
    model = Pgl(dim=4, kept=0.3).build(histories(split), catalogue)
    assert isinstance(model, PglModel)
    model.begin_epoch()
    first = model.principal.forward.values()
    assert len(first) == 2 * int(0.3 * len(split.train_items))
    inferred = model.eval()()
    model.begin_epoch()
    assert torch.equal(inferred[0], model()[0])
    assert not torch.equal(inferred[0], model.train()()[0])


def test_pgl_embeds_each_item_as_its_equations(split: Split, catalogue: Catalogue) -> None:
    people = histories(split)
    model = Pgl(dim=3, layers=1, image_weight=0.25, neighbours=4).build(people, catalogue)
    assert isinstance(model, PglModel)
    graphs = {
        name: item_graph(values, 4, weighted=False) @ torch.eye(N_ITEMS) for name, values in catalogue.features.items()
    }
    parts = {name: model.projections[name](values) for name, values in model.features.items()}
    raw = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts.values()], dim=1)
    hop = histories_graph(people) @ torch.cat([model.users, raw])
    latent = (0.25 * graphs["image"] + 0.75 * graphs["text"]) @ raw
    users, items = model.eval()()
    torch.testing.assert_close(items, (raw + hop[N_USERS:]) / 2 + latent)
    torch.testing.assert_close(users, (model.users + hop[:N_USERS]) / 2)


def test_lightgcn_is_the_mean_over_hops(split: Split, catalogue: Catalogue) -> None:
    people = histories(split)
    model = LightGCN(dim=3, layers=2).build(people, catalogue)
    assert isinstance(model, LightGCNModel)
    hop, own = histories_graph(people) @ torch.eye(N_USERS + N_ITEMS), torch.cat([model.users, model.items])
    torch.testing.assert_close(torch.cat(model()), (own + hop @ own + hop @ hop @ own) / 3)


def test_lightgcn_without_users_of_its_own_is_history(split: Split, catalogue: Catalogue) -> None:
    """docs/architecture.md: a sum over a person's items in one table, against another table."""
    people, layers = histories(split), 3
    model = LightGCN(dim=3, layers=layers).build(people, catalogue)
    assert isinstance(model, LightGCNModel)
    torch.nn.init.zeros_(model.users)
    users, items = model()
    hop = user_item_graph(people.owners, people.items, N_USERS, N_ITEMS)
    both = (hop @ torch.eye(N_ITEMS)).T @ (hop @ torch.eye(N_ITEMS))
    odd = even = (model.items + both @ model.items) / (layers + 1)
    degrees = people.items.bincount(minlength=N_ITEMS).clamp(min=1)[:, None]
    query = people.total(odd / degrees.sqrt()) / people.norms()[:, None]
    torch.testing.assert_close(users @ items.T, query @ even.T)


def test_lattice_embeds_each_item_as_its_equations(split: Split, catalogue: Catalogue) -> None:
    people = histories(split)
    model = Lattice(dim=3, layers=1, neighbours=4, kept=0.75).build(people, catalogue)
    assert isinstance(model, LatticeModel)
    torch.nn.init.normal_(model.weights)
    users, items = model.eval()()
    hop = torch.zeros_like(model.items)
    shares = torch.softmax(model.weights, 0)
    for number, features in enumerate(catalogue.features.values()):
        mapped = torch.nn.functional.normalize(model.maps[number](model.features[number]), dim=1)
        cosines = mapped @ mapped.T
        cosines[:, ~torch.from_numpy(features.present)] = -2
        learnt = torch.zeros_like(cosines)
        for item in np.flatnonzero(features.present):
            best = cosines[item].topk(4).indices
            learnt[item, best] = cosines[item, best].clamp(min=0)
        scale = learnt.sum(1).clamp(min=1e-7) ** -0.5
        fixed = item_graph(features, 4, weighted=True) @ torch.eye(N_ITEMS)
        hop = hop + shares[number] * (0.75 * fixed + 0.25 * scale[:, None] * learnt * scale) @ model.items
    own = torch.cat([model.users, model.items])
    near = (own + histories_graph(people) @ own) / 2
    torch.testing.assert_close(users, near[:N_USERS])
    torch.testing.assert_close(items, near[N_USERS:] + hop / hop.norm(dim=1, keepdim=True).clamp(min=1e-12))


@pytest.mark.parametrize("kind", [SASRec, GRU4Rec])
def test_a_sequence_model_asks_for_each_event_after_those_before(kind: type[SequenceBaseline], split: Split) -> None:
    people, items = histories(split), Catalogue((), (), (), (), {})
    model = kind(dim=4, length=3).build(people, items)
    assert isinstance(model, SequenceModel)
    users = torch.tensor([3, 40])
    terms = []
    for user in users.tolist():
        read = people.items[people.offsets[user] : people.offsets[user + 1]].tolist()[-4:]
        for at in range(1, 4):
            state = model.eval().known(single(read[:at], N_ITEMS, "somebody"))
            terms.append(-torch.log_softmax(state @ model.items.T, 1)[0, read[at]])
    torch.testing.assert_close(model.loss(users, users, users), torch.stack(terms).mean())


def test_weights_of_modalities_add_up() -> None:
    assert modality_weights(["image", "text"], 0.1) == {"image": 0.1, "text": 0.9}
    assert modality_weights(["audio", "image", "text"], 0.2) == {"image": 0.2, "audio": 0.4, "text": 0.4}
    assert modality_weights(["image"], 0.1) == {"image": 1.0}
    assert modality_weights(["audio", "text"], 0.1) == {"audio": 0.5, "text": 0.5}
