"""The settings of a run and what each of them means: typed, checked once when they are read, and never changed afterwards.

What depends on several settings is checked here too, where it cannot work; what would merely do nothing is refused by
`tessera.common.config.effects`, and only where somebody set it.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tessera.common.config.components import Backbone, ContentEncoder, Loss, Strategy
from tessera.common.config.effects import backbone_lacks, no_secure_sums, prune, without_effect
from tessera.common.config.federation import Codec as Codec
from tessera.common.config.federation import (
    FederationSettings,
    GroupSettings,
    ServerSettings,
    SimulationSettings,
)
from tessera.common.config.federation import WireSettings as WireSettings
from tessera.common.config.moments import Moment, moment
from tessera.common.config.mosaic.settings import ModelledMosaicSettings
from tessera.common.config.mosaic.settings import MosaicSettings as MosaicSettings
from tessera.common.config.privacy import PrivacySettings
from tessera.common.registry.component import (
    Amount,
    ComponentSettings,
    Fraction,
    FrozenSettings,
    Natural,
    OnceEach,
    Positive,
    QuerySettings,
    Rate,
    Seed,
    Share,
    Step,
)
from tessera.common.registry.converters import CONVERTED, CONVERTERS, QUESTIONS, TEXT_QUESTIONS
from tessera.common.registry.encoders import ENCODERS
from tessera.common.registry.methods import METHODS
from tessera.common.registry.strategies import STRATEGIES, StrategySpec
from tessera.common.utils.computing import Precision

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Names of runs, and of folders made for them."""
EXECUTORS = ("inline", "ray", "grpc")
TOWER_DIM = 64
"""Size of the vectors that all towers give, and of the shared space in which they lie."""
Operator = Literal["sum", "mlp", "gate", "attention", "concat"]
SplitName = Literal["leave-one-out", "given", "time", "random", "everything"]
Gate = Literal["none", "softmax", "james-stein"]


def _known_kind(name: str) -> str:
    if name != CONVERTED and name not in CONVERTERS:
        raise ValueError(f"there is no kind of data {name!r}; known are {', '.join((CONVERTED, *CONVERTERS))}")
    return name


def _ready_encoder(name: str) -> str:
    if name not in ENCODERS or not set(ENCODERS[name].options) <= {"device"}:
        raise ValueError(
            f"{name!r} is no encoder that needs nothing else, such as builtin: run `tessera data encode` instead"
        )
    return name


class DataSettings(FrozenSettings):
    """Which dataset, and what a raw one goes through when it is converted."""

    folder: str
    """Below `--data` or TESSERA_DATA: a converted dataset, or a raw one of `kind`."""
    kind: Annotated[str, AfterValidator(_known_kind)] = CONVERTED
    """What the raw data are, one of `tessera.common.registry.converters`; a converted dataset needs no more."""
    min_user_events: Natural = 5
    """Of a raw dataset, users with fewer events are left out, and items with fewer than the next; again until none is left."""
    min_item_events: Natural = 5
    """See `min_user_events`."""
    min_rating: Amount = 0.0
    """Events rated lower are left out."""
    user_share: Fraction = 1.0
    """Share of the users who are kept, drawn by a hash of their id, before anything is left out."""
    split: SplitName = "leave-one-out"
    """Which events are held out. leave-one-out: of each user the last for the test and the last but one for validation. given:
    as the data say; where they say a split, it must be said here whether to go by it. time: those from `test_from` on for the
    test, those from `validation_from` until then. random: shares of each user's events. everything: none for the test, for a
    run whose model is to be used."""
    validation_from: Moment | None = None
    """With split time: when validation begins, an ISO 8601 date or time, or a number in the unit of the data's timestamps."""
    test_from: Moment | None = None
    """The same of the test."""
    validation_share: Share | None = None
    """With split random: the share of each user's events, 0.1 by default. With split everything: the share of the users whose
    last event is for validation, by which the round is selected; 0 by default, and then the last round is."""
    test_share: Share | None = None
    """With split random: the share of each user's events, 0.1 by default."""
    split_seed: Seed = 0
    """What is drawn by it: the events of split random, the users of split everything. The same for runs of all seeds."""
    cold_items: Annotated[float, Field(ge=0, le=0.25)] = 0.0
    """Share of the items that nobody's training knows, drawn by seed, on which people are tested; validation has another such
    share, so that no round is chosen on the items of the test. It replaces `split`."""
    cold_users: Rate = 0.0
    """Share of the users, drawn by seed, who take no part in training and are evaluated as "new-users"."""
    shop_seed: Seed = 0
    """What the generated shop is drawn by."""
    encode: Annotated[str, AfterValidator(_ready_encoder)] | None = None
    """Compute the features of a raw dataset from its titles, texts and pictures; those it comes with are used otherwise."""

    @model_validator(mode="after")
    def _one_split(self) -> "DataSettings":
        if self.cold_items and self.split != "leave-one-out":
            raise ValueError("cold_items replaces the split: leave split out")
        begins = [moment(one) for one in (self.validation_from, self.test_from) if one is not None]
        if self.split == "time" and (
            len(begins) < 2 or begins[0].unit != begins[1].unit or begins[0].value >= begins[1].value
        ):
            raise ValueError("split time needs validation_from and, later, test_from: two dates, or two numbers")
        if self.split == "random" and (self.validation_share or 0.0) + (self.test_share or 0.0) >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on: lower them")
        return self


class ViewSettings(FrozenSettings):
    """What the server makes of the catalogue."""

    dim: Positive = 64
    """Numbers by which a view describes an item."""
    id_dim: Positive = 64
    """Numbers in the learnt embedding of an item, before it is projected to `dim`."""
    operators: Annotated[tuple[Operator, ...], OnceEach] = ("sum", "mlp", "gate", "attention")
    """How modalities are fused; each operator is a view."""
    single: bool = True
    """Each modality's own projection is a view too, so that its router weight reads as reliance on it."""
    modalities: Annotated[tuple[str, ...], OnceEach] | None = None
    """Which of the catalogue's modalities to use; all of them by default, none with []."""
    encoder: ContentEncoder = ComponentSettings(name="frozen")
    """What the server makes of a modality's features before it projects them; it may learn, by the devices' sums."""
    item_ids: bool = True
    """Whether a learnt embedding of each item stands beside the modalities."""
    noise: Annotated[tuple[str, ...], OnceEach] = ()
    """Modalities whose features are replaced by standard normal noise (an ablation); `id` freezes the embedding's start."""
    id_scale: Amount = 0.1
    """Standard deviation of the ID and history embeddings at the start."""
    content_scale: Step = 1.0
    """Size of the modalities' projections at the start, as a multiple of torch's, or with `facets` of covariance I."""
    spectral_rounds: Natural = 0
    """Power iterations before round 1 that start both embeddings from singular vectors of the interactions; 0: none."""
    spectral_min_people: Positive = 3
    """Items of fewer people are left out of a spectral start, and start from what their contents predict, as new ones do."""
    spectral_scale: Step = 10.0
    """Size of the spectral start, or of `start_from`: how sharply the first scores tell items apart."""
    start_from: Annotated[tuple[str, ...], OnceEach] = ()
    """Modalities, shown as views or not, from which item embeddings start in the place of a spectral start; nobody is asked."""
    fold_in: bool = False
    """Whether a run that continues another one over more items asks for one sum over people, which places new items by what
    else people have who have them; otherwise, and those of fewer than `spectral_min_people`, contents alone do."""
    unseen_scale: Amount = 1.0
    """With a spectral start, the size of items that nobody has yet, as their contents predict them, beside the others': more
    puts new items in front; 0 starts them at zero."""

    facets: Natural = 0
    """Blocks of the views' dimensions, which sums over people find, each a side that some go by; the view and the history view
    start from the features themselves, with covariance I. 1 is that start alone; 0: none. For one modality alone."""
    facet_steps: Positive = 30
    """Sums in which independent directions are looked for, at most; some twenty more put them together."""

    @model_validator(mode="after")
    def _facets_of_one_modality(self) -> "ViewSettings":
        if not self.facets:
            return self
        if self.item_ids or self.operators or not self.single or self.noise or self.spectral_rounds:
            raise ValueError(
                "facets are sides of one modality's features: set item_ids to false, operators to [], spectral_rounds to 0"
            )
        if self.modalities is not None and len(self.modalities) != 1:
            raise ValueError("facets are sides of one modality: name one in modalities")
        if self.dim % self.facets:
            raise ValueError(f"dim is {self.dim}, which cannot be divided into {self.facets} blocks of one size")
        return self

    @model_validator(mode="after")
    def _some_view(self) -> "ViewSettings":
        if not self.operators and not self.single:
            raise ValueError("operators and single leave no view at all")
        if self.start_from and (self.spectral_rounds or self.facets):
            raise ValueError(
                "views start once: from start_from, from spectral_rounds or from facets, leave the others out"
            )
        return self


class LocalSettings(FrozenSettings):
    """What a device does with what it was sent. Travels with every broadcast."""

    backbone: Backbone = QuerySettings(name="history")
    """The prediction model."""
    loss: Loss = ComponentSettings(name="softmax")
    """softmax asks for all of the history from what is shown of it, `next` for one event from those before it."""
    recency: Amount = 0.0
    """An event counts (1 + number of later events)^-recency in the router's input and the history view; 0: all alike."""
    local_epochs: Positive = 1
    """Steps of each user's private parameters in a round, each on all of their events."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """What steps the private parameters."""
    learning_rate: Step = 0.01
    """Its rate."""
    weight_decay: Amount = 0.0
    """How fast private parameters shrink, in units of the rate."""
    history_mask: Rate = 0.5
    """Share of the history hidden from router and backbone in each local step; the loss still asks for all of it."""
    route: Literal["history", "uniform"] = "history"
    """How views are weighed: by the router, from the user's history, or all alike (an ablation)."""
    prior: Amount = 0.0
    """How much it counts for a view, before anything is learnt, that the items of a user's history are more alike in it than
    they are for others: see docs/cohesion.md; 0: nothing."""
    gate: Gate = "none"
    """How people's own cohesion weighs the blocks of `views.facets`: by a softmax, or by James-Stein, which has no constant and
    is for when nobody knows how many sides there are: see docs/cohesion.md."""
    gate_sharpness: Step = 0.5
    """How sharply the softmax gate tells blocks apart: 0.5 where people go by one side, 0.1 where they go by several."""
    groups: GroupSettings = GroupSettings()
    weighting: Literal["users", "examples"] = "users"
    """Whether a user's gradient counts once or once for each training event."""
    precision: Precision = "float32"
    """Of training's matrix products: bfloat16 rounds their factors, which is faster where the processor can (TF32 on CUDA);
    `auto` does so where each device measures that it is. All else is float32, evaluation too."""
    batch_users: Positive = 512
    """Users trained at once. Bounds the memory of a node; changes no result."""

    @model_validator(mode="after")
    def _loss_of_backbone(self) -> "LocalSettings":
        if why := backbone_lacks(self.backbone, self.loss):
            raise ValueError(f"loss {self.loss.name} {why}")
        return self


def has_prior(local: LocalSettings, privacy: PrivacySettings, n_views: int) -> bool:
    """Whether routers are told what the likeness of a history's items says: where there are views to weigh, and devices may
    say a sum that no noise is on."""
    return local.prior > 0 and local.route == "history" and n_views > 1 and not privacy.noise_multiplier


class EvaluationSettings(FrozenSettings):
    """When devices evaluate and what is reported."""

    every: Positive = 5
    """Rounds from one evaluation to the next; the last round is always evaluated."""
    ks: Annotated[tuple[Positive, ...], Field(min_length=1), OnceEach] = (10, 20, 50)
    """Lengths of the lists for which hits and gains are reported; the longest selects the round."""
    metrics: Annotated[tuple[Literal["hr", "ndcg", "recall", "mrr", "map"], ...], OnceEach] = ("hr", "ndcg")
    """What is reported at each of `ks`. With one target a person recall is hr, and map is mrr; with several, hr asks whether
    any is found, recall which share, and ndcg and map are of all of them."""
    patience: Natural = 0
    """Evaluations without a better validation NDCG before the run stops early; 0 never stops it."""
    history_at_test: Literal["train", "train+validation"] = "train"
    """What is known of a person at the test; with the validation event, as it is in life."""
    collapse: bool = False
    """Whether each view is evaluated by itself too: how well histories seen through it alone rank, and the alignment,
    uniformity and separability of what it shows (VLM2Rec), for backbones that compare by each view alone."""
    sampled_candidates: Natural = 0
    """Beside the whole catalogue, rank each target among so many items too, drawn for each person once and for all, as many
    papers do with 100: reported as the group "sampled", by which nothing is chosen; 0: not."""
    baselines: bool = True
    """Whether trivial methods are scored on the same people: random, popularity, content."""

    @model_validator(mode="after")
    def _what_rounds_are_chosen_by(self) -> "EvaluationSettings":
        if missing := {"hr", "ndcg"} - set(self.metrics):
            raise ValueError(f"metrics lacks {min(missing)}: rounds are chosen by ndcg, and tables show hr beside it")
        if 0 < self.sampled_candidates < max(self.ks):
            raise ValueError(f"sampled_candidates {self.sampled_candidates}: of ks, {max(self.ks)} holds them all")
        return self


class Settings(FrozenSettings):
    """Everything that defines a run."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    """The run's name, and that of its folder."""
    data: DataSettings
    seed: Seed = 0
    """What draws derive from, but for those that must not be repeatable."""
    rounds: Positive = 100
    """How many rounds are trained, at most."""
    strategy: Strategy = ComponentSettings(name="fedvlr")
    """Whether devices send gradients of the server's views, adapters of their own towers, or both."""
    fraction: Fraction = 1.0
    """Chance of each user to take part in a round, drawn on the device."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors are computed: with auto on a GPU, if there is one."""
    views: ViewSettings = ViewSettings()
    local: LocalSettings = LocalSettings()
    server: ServerSettings = ServerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    wire: WireSettings = WireSettings()
    privacy: PrivacySettings = PrivacySettings()
    mosaic: ModelledMosaicSettings = ModelledMosaicSettings()
    federation: FederationSettings = FederationSettings()
    simulation: SimulationSettings = SimulationSettings()
    tracking: tuple[Literal["tensorboard", "mlflow", "prometheus"], ...] = ()
    """Trackers that are told how the run goes, with the extra `tracking`: event files in the run's folder, a run at
    MLFLOW_TRACKING_URI or in mlruns/ beside it, an endpoint on the loopback address."""

    @property
    def asks_questions(self) -> bool:
        """Whether devices answer questions about items; otherwise they recommend items to people."""
        return self.data.kind in (QUESTIONS, TEXT_QUESTIONS)

    @property
    def in_words(self) -> bool:
        """Whether the questions are in words, which people's models answer."""
        return self.data.kind == TEXT_QUESTIONS

    @property
    def strategy_spec(self) -> StrategySpec:
        """What both sides know of the strategy."""
        return STRATEGIES[self.strategy.name]

    @model_serializer(mode="wrap")
    def _with_effect(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what has no effect, which could not be read again as if somebody had set it."""
        content: dict[str, Any] = write(self)
        prune(content, without_effect(self))
        return content

    @model_validator(mode="after")
    def _questions_for_towers(self) -> "Settings":
        spec = self.strategy_spec
        if self.asks_questions and (spec.has_views or not spec.has_towers):
            raise ValueError("questions are answered by adapted towers: set strategy to fedmosaic")
        return self

    @model_validator(mode="after")
    def _classes_that_there_are(self) -> "Settings":
        if not self.strategy_spec.has_towers:
            return self
        self.mosaic.require_classes(self.in_words)
        return self

    @model_validator(mode="after")
    def _towers_beside_views(self) -> "Settings":
        if not self.strategy_spec.has_towers or self.asks_questions:
            return self
        if not self.strategy_spec.has_views:
            raise ValueError(
                f"{self.strategy.name} alone leaves people without the server's views: set strategy to combined"
            )
        if self.local.groups.count:
            raise ValueError("a device's tower is no group's: set local.groups.count to 0")
        if self.views.facets:
            raise ValueError("a device's tower has no facets: set views.facets to 0")
        if self.views.dim != TOWER_DIM:
            raise ValueError(f"a device's tower is a view of {TOWER_DIM} dimensions: set views.dim to {TOWER_DIM}")
        if not self.mosaic.method_spec.one_branch:
            able = ", ".join(name for name, spec in METHODS.known().items() if spec.one_branch)
            raise ValueError(f"{self.strategy.name} adapts towers by {able}: set mosaic.method to one of them")
        return self

    @model_validator(mode="after")
    def _groups_that_can_be(self) -> "Settings":
        groups = self.local.groups
        if groups.count and groups.by == "cohesion" and groups.count != self.views.facets:
            raise ValueError(
                f"groups by cohesion are as many as there are facets: set local.groups.count to {self.views.facets}"
            )
        if groups.rank and (groups.rank > self.views.dim or self.views.facets > 1):
            why = "facets are in all" if self.views.facets > 1 else "there are not more"
            raise ValueError(f"local.groups.rank reads the first of {self.views.dim} numbers, and {why}: leave it out")
        return self

    @model_validator(mode="after")
    def _sums_that_can_be(self) -> "Settings":
        if self.evaluation.collapse and (why := backbone_lacks(self.local.backbone)):
            raise ValueError(f"evaluation.collapse {why}")
        if self.privacy.secure is True and (why := no_secure_sums(self)):
            raise ValueError(f"privacy.secure: {why}")
        return self

    @model_validator(mode="after")
    def _private_as_said(self) -> "Settings":
        if self.privacy.clip and self.local.weighting != "users":
            raise ValueError("privacy.clip bounds everybody alike: set local.weighting to users")
        if self.privacy.noise_multiplier and self.views.spectral_rounds:
            raise ValueError("privacy.noise_multiplier does not noise a spectral start: set views.spectral_rounds to 0")
        if self.privacy.noise_multiplier and self.views.fold_in:
            raise ValueError(
                "privacy.noise_multiplier does not noise the sum that places items: set views.fold_in to false"
            )
        if self.privacy.noise_multiplier and self.local.groups.count:
            raise ValueError("privacy.noise_multiplier does not noise what divides people: set local.groups.count to 0")
        if self.privacy.noise_multiplier and self.views.facets > 1:
            raise ValueError("privacy.noise_multiplier does not noise the sums that find facets: set views.facets to 0")
        if self.privacy.distributed and self.wire.gradients != "float32":
            raise ValueError("distributed noise is counted in words of 32 bits: set wire.gradients to float32")
        if self.privacy.distributed and self.strategy_spec.has_towers:
            raise ValueError(
                f"distributed noise is not on the adapters that {self.strategy.name} sends: set it to local"
            )
        return self
