"""Makes the views of the items that devices receive, from the catalogue's features and learnt embeddings."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tessera.common.config.federation import GroupSettings
from tessera.common.config.settings import ViewSettings
from tessera.common.data.catalogue import IMAGE, TEXT, Catalogue, sentences
from tessera.common.errors import DataError
from tessera.common.protocol.messages import GROUP_MAPS, HISTORY, VIEWS
from tessera.common.registry.backbones import BACKBONES
from tessera.common.registry.component import ComponentSettings, Shared
from tessera.server.encoders import ContentEncoder, ContentInputs, make_encoder
from tessera.server.views.content_init import content_vectors
from tessera.server.views.operators import OPERATORS, Operator

ID = "id"
RIDGE = 3.0
"""Ridge of the content's start, an item. On MovieLens held-out items are predicted best by 1 to 10."""


class ViewGenerator(nn.Module):
    """F_j = g_j(V, C, ..., D; gamma_j) for each operator, then each single modality's projection (FedVLR Eq. 1-2).

    Features are standardised and go through an encoder, which may learn; a linear map takes each modality, and the ID embedding
    D [n_items, id_dim], to `dim`. Where the backbone needs them, a history view H [n_items, dim] and a shared head are learnt
    too, or views have rows of length 1. `groups` of people have a map each in the head. `folder` is where the dataset lies, for
    encoders that read more than features.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        settings: ViewSettings,
        backbone: ComponentSettings,
        folder: Path | None = None,
        groups: GroupSettings | None = None,
    ) -> None:
        super().__init__()
        needs = BACKBONES[backbone.name]
        self.contents = _choose(catalogue, settings)
        self.sources = (*self.contents, *((ID,) if settings.item_ids else ()))
        if not self.sources:
            raise DataError("the views have nothing to show: no modality, and item_ids is off")
        widths = []
        for name in self.contents:
            features = torch.from_numpy(catalogue.features[name].standardised())
            if name in settings.noise:
                features = torch.randn_like(features)
            self.register_buffer(f"features_{name}", features, persistent=False)
            widths.append(features.shape[1])
        self.projections = nn.ModuleList([nn.Linear(width, settings.dim) for width in (*widths, settings.id_dim)])
        for projection in list(self.projections)[:-1]:
            cast(nn.Linear, projection).weight.data.mul_(settings.content_scale)
        embedding = settings.id_scale * torch.randn(len(catalogue), settings.id_dim)
        self.embedding = nn.Parameter(embedding, requires_grad=ID not in settings.noise)
        table = settings.id_scale * torch.randn(len(catalogue), settings.dim)
        self.history = nn.Parameter(table) if needs.history else None
        shared = dict(needs.shared(settings.dim, backbone))
        if groups and groups.count:
            shared[GROUP_MAPS] = Shared((groups.count * (groups.rank or settings.dim), settings.dim), "zeros")
        self.head = nn.ParameterDict({name: _started(one) for name, one in shared.items()})
        operators = {str(name): OPERATORS[name](len(self.sources), settings.dim) for name in settings.operators}
        self.operators = nn.ModuleDict(operators)
        self.single, self.unit = settings.single, needs.unit_views
        encoders = {
            name: make_encoder(settings.encoder, self._inputs(catalogue, name, folder)) for name in self.contents
        }
        self.encoders = nn.ModuleDict(encoders)  # made last: its draws change no other part's start
        if settings.start_from:
            rank = min(settings.dim, settings.id_dim, len(catalogue))
            self.initialise(*content_vectors(catalogue, settings.start_from, rank), settings)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the views in their order: operators, then modalities, then the ID embedding."""
        return (*self.operators, *(self.sources if self.single else ()))

    @property
    def by_item(self) -> tuple[str, ...]:
        """Names of the parameters that have a row for each item."""
        return ("embedding", "history") if self.history is not None else ("embedding",)

    @property
    def tables(self) -> dict[str, nn.Parameter]:
        """Those of them that are shown and learn, first the one in which histories are summed up."""
        found = {"history": self.history, "embedding": self.embedding if ID in self.sources else None}
        return {name: table for name, table in found.items() if table is not None and table.requires_grad}

    @torch.no_grad()
    def place_new(self, n_items: int, settings: ViewSettings) -> None:
        """Let the items after the first `n_items` start from what their contents predict by those, `unseen_scale` times as long
        as the others are; one without contents from the mean of the others. Without any modality they stay as drawn, as an ID
        embedding does that is to be noise."""
        seen = torch.arange(len(self.embedding), device=self.embedding.device) < n_items
        if seen.all() or not self.contents:
            return
        blank = torch.stack([~self.get_buffer(f"features_{name}").any(1) for name in self.contents]).all(0)
        for table in (self.embedding, self.history):
            if table is not None and table.requires_grad:
                table[~seen] = settings.unseen_scale * self._guessed(table, seen)
                table[blank & ~seen] = settings.unseen_scale * table[seen].mean(0)

    @torch.no_grad()
    def initialise(self, vectors: Tensor, values: Tensor, settings: ViewSettings) -> None:
        """Let the ID view and the history view be V diag(s / s_1)^(1/4) each, so that their product scores as Spectral does.

        `vectors` V is [n_items, rank], `values` s [rank]; rank is at most id_dim and dim. The ID projection becomes the
        identity on the rank's columns, each modality's projection predicts V by ridge regression, and operators start from
        what they are given rather than from noise. Items that nobody has, where V is zero, start from what all their contents
        predict together, `unseen_scale` times as long as others are. An ID embedding that is to be noise stays noise.
        """
        vectors, values = vectors.to(self.embedding), values.to(self.embedding)
        rank, seen = len(values), vectors.any(1)
        table = vectors.new_zeros(len(vectors), settings.dim)
        table[:, :rank] = settings.spectral_scale * vectors * (values / values[0]) ** 0.25
        for name, projection in zip(self.contents, self.projections, strict=False):
            _regress(cast(nn.Linear, projection), self.get_buffer(f"features_{name}"), table, seen)
        if self.contents:
            table[~seen] = settings.unseen_scale * self._guessed(table, seen)
        if self.embedding.requires_grad:
            self.embedding[:, :rank] = table[:, :rank]
        own = cast(nn.Linear, self.projections[-1])
        own.weight.copy_(torch.eye(*own.weight.shape))
        own.bias.zero_()
        if self.history is not None:
            self.history[:, :rank] = table[:, :rank]
        for operator in self.operators.values():
            cast(Operator, operator).pass_through()

    def only_modality(self) -> Tensor:
        """The standardised features of the modality that the views show, [n_items, n_features]. Raises `DataError` where there
        are several, or fewer features than dimensions."""
        if len(self.contents) != 1:
            raise DataError(f"facets are sides of one modality, and there are {', '.join(self.contents)}: name one")
        features = self.get_buffer(f"features_{self.contents[0]}")
        if features.shape[1] < (dim := cast(nn.Linear, self.projections[0]).out_features):
            raise DataError(
                f"{self.contents[0]} has {features.shape[1]} features, fewer than views.dim {dim}: lower views.dim"
            )
        return features

    @torch.no_grad()
    def turn(self, into: Tensor, offset: Tensor, settings: ViewSettings) -> None:
        """Let the view of the only modality and the history view be features @ into + offset, `content_scale` times as long."""
        projection = cast(nn.Linear, self.projections[0])
        projection.weight.copy_(settings.content_scale * into.T)
        projection.bias.copy_(settings.content_scale * offset)
        if self.history is not None:
            self.history.copy_(projection(self.only_modality()))

    def _guessed(self, table: Tensor, seen: Tensor) -> Tensor:
        """What the contents of items that are not `seen` predict of `table` [n_items, dim], as long as its mean row."""
        features = torch.cat([self.get_buffer(f"features_{name}") for name in self.contents], dim=1)
        joint = nn.Linear(features.shape[1], table.shape[1]).to(features)
        _regress(joint, features, table, seen)
        usual = table[seen].norm(dim=1).mean()
        guessed: Tensor = usual * nn.functional.normalize(joint(features[~seen]), dim=1)
        return guessed

    def _inputs(self, catalogue: Catalogue, modality: str, folder: Path | None) -> ContentInputs:
        features = catalogue.features[modality]
        scale = (features.standard or features.own_standard()).scale
        contents: tuple[str | Path | None, ...] = ()
        if modality == TEXT:
            contents = tuple(text or None for text in sentences(catalogue.titles, catalogue.texts))
        elif modality == IMAGE and folder is not None:
            contents = tuple(folder / image if image else None for image in catalogue.images)
        return ContentInputs(modality, self.get_buffer(f"features_{modality}"), scale, contents, folder)

    def encoded(self, modality: str) -> Tensor:
        """What the encoder makes of a modality's features, [n_items, width]."""
        found: Tensor = self.encoders[modality](self.get_buffer(f"features_{modality}"))
        return found

    def stepped(self) -> None:
        """Tell the encoders that a step was taken."""
        for encoder in self.encoders.values():
            cast(ContentEncoder, encoder).stepped()

    def forward(self) -> dict[str, Tensor]:
        """Build what is broadcast: "views" [n_views, n_items, dim], "history" [n_items, dim] and the shared head by name."""
        tables = [*(self.encoded(name) for name in self.contents), self.embedding]
        shown = zip(self.projections, tables, self.sources, strict=False)  # without item ids, the embedding is left out
        projected = [projection(table) for projection, table, _ in shown]
        items = torch.stack(projected, dim=1)
        fused = [operator(items) for operator in self.operators.values()]
        views = torch.stack(fused + (projected if self.single else []))
        views = nn.functional.normalize(views, dim=-1) if self.unit else views
        return {VIEWS: views, **({} if self.history is None else {HISTORY: self.history}), **self.head}


def _regress(projection: nn.Linear, features: Tensor, wanted: Tensor, seen: Tensor) -> None:
    """Let a projection of standardised `features` [n_items, width] predict `wanted` [n_items, dim] by ridge regression on
    the `seen` items [n_items]."""
    features, mean = features[seen], wanted[seen].mean(0)
    gram = features.T @ features
    gram.diagonal().add_(RIDGE * len(features))
    projection.weight.copy_(torch.linalg.solve(gram, features.T @ (wanted[seen] - mean)).T)
    projection.bias.copy_(mean)


def _started(shared: Shared) -> nn.Parameter:
    """A shared tensor at its start; uniform is within 1 / sqrt(its inputs), as torch's linear layers start."""
    if shared.start != "uniform":
        return nn.Parameter(torch.full(shared.shape, float(shared.start == "ones")))
    bound = shared.shape[-1] ** -0.5
    return nn.Parameter(torch.empty(shared.shape).uniform_(-bound, bound))


def _choose(catalogue: Catalogue, settings: ViewSettings) -> tuple[str, ...]:
    """Name the modalities to use. Raises `DataError` when the catalogue lacks one, or noise would take no view's place."""
    available = tuple(catalogue.features)
    chosen = available if settings.modalities is None else settings.modalities
    for name in (*chosen, *(name for name in settings.noise if name != ID)):
        if name not in available:
            raise DataError(f"the catalogue has no modality {name!r}; it has {', '.join(available) or 'none'}")
    for name in settings.noise:
        if name not in (*chosen, *((ID,) if settings.item_ids else ())):
            raise DataError(f"views.noise names {name!r}, which these views do not show")
    return chosen
