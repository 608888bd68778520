"""Lists the kinds of raw data that can be converted, and which options each of them uses.

A new converter is one file in `common/datasets/` and one line below. Another package offers one as a `ConverterSpec` in the
entry-point group `tessera.converters`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tessera.common.registry.registry import Registry

CONVERTED = "converted"
"""The kind, in a run's settings, of a dataset that needs no conversion."""
QUESTIONS, TEXT_QUESTIONS = "questions", "text-questions"
"""Kinds of data that devices are asked about, rather than people's events: by features of items, and in words."""
LEAST = ("min_user_events", "min_item_events")
CONTENT = ("images", "encode", "skip_unreadable")
COLUMNS = tuple(f"{name}_column" for name in ("user", "item", "timestamp", "rating", "title", "text", "image"))


@dataclass(frozen=True)
class ConverterSpec:
    """One kind of raw data.

    Args:
        help: What the raw data are, in one line: files, fields, format.
        implementation: A function, "package.module:name". It is called with the path of the raw data and
            `tessera.common.datasets.raw.Options`, and returns a `RawDataset`, which is then filtered, indexed and written.
        options: The fields of `Options` that have an effect. Others are refused where they are given, and a least number of
            events that is not among them is 0.
        writes: The function is called with the path, the options and the folder of the new dataset, writes all of it but
            dataset.json, and returns what dataset.json says about it: {"source": ..., "filters": ..., "rules": [...]}.
        needs_source: Whether there are raw data at all; generated data have none.
        has_users: Whether the dataset holds users and their interactions.
    """

    help: str
    implementation: str
    options: tuple[str, ...] = ()
    writes: bool = False
    needs_source: bool = True
    has_users: bool = True


_HERE = "tessera.common.datasets"
CONVERTERS: Registry[ConverterSpec] = Registry(
    "kind of data",
    "tessera.converters",
    ConverterSpec,
    {
        "movielens": ConverterSpec(
            "a folder of any release, 100K to 32M: u.data, ratings.dat or ratings.csv, optionally movies and posters/",
            f"{_HERE}.movielens:read_movielens",
            (*LEAST, "min_rating", "user_share", "genres", *CONTENT),
        ),
        "amazon": ConverterSpec(
            "a folder with reviews and metadata of the 2014, 2018 or 2023 release, .json or .jsonl, gzipped or not, and "
            "optionally images/ASIN.jpg",
            f"{_HERE}.amazon:read_amazon",
            (*LEAST, "min_rating", "user_share", *CONTENT),
        ),
        "ninerec": ConverterSpec(
            "a folder with NAME_pair.csv, NAME_item.csv and NAME_cover/",
            f"{_HERE}.ninerec:read_ninerec",
            (*LEAST, "user_share", "in_order", *CONTENT),
        ),
        "fedvlr": ConverterSpec(
            "a folder with inter.csv of the FedVLR authors, whose split is kept, and features",
            f"{_HERE}.fedvlr_release:read_fedvlr",
        ),
        "recbole": ConverterSpec(
            "a folder with RecBole's atomic files: NAME.inter, or NAME.train, .valid and .test.inter, optionally NAME.item",
            f"{_HERE}.recbole:read_recbole",
            (*LEAST, "min_rating", "user_share", "in_order", "encode"),
        ),
        "sequences": ConverterSpec(
            "a text file, or a folder with one, of lines 'user item item ...', oldest item first",
            f"{_HERE}.sequences:read_sequences",
            (*LEAST, "user_share"),
        ),
        "table": ConverterSpec(
            "events.csv or .parquet of your own, optionally items.csv and MODALITY_features.npy with MODALITY_ids.npy",
            f"{_HERE}.user_table:read_tables",
            (*LEAST, "min_rating", "user_share", "in_order", *CONTENT, *COLUMNS),
        ),
        "shop": ConverterSpec(
            "nothing: the demo shop is generated, and SOURCE is -",
            f"{_HERE}.demo_shop:write_demo_shop",
            ("encode", "shop_seed"),
            writes=True,
            needs_source=False,
        ),
        "aspects-shop": ConverterSpec(
            "nothing: people who go by known sides of items are generated, and SOURCE is -",
            f"{_HERE}.aspects_shop:write_aspects_shop",
            ("shop_seed",),
            writes=True,
            needs_source=False,
        ),
        QUESTIONS: ConverterSpec(
            "a MovieLens folder with overviews and posters, of which a benchmark of many tasks is made",
            f"{_HERE}.qa.build:write_questions",
            CONTENT,
            writes=True,
            has_users=False,
        ),
        TEXT_QUESTIONS: ConverterSpec(
            "a MovieLens folder with overviews, of which a benchmark of tasks in words is made",
            f"{_HERE}.text_qa.build:write_text_questions",
            writes=True,
            has_users=False,
        ),
    },
)


def holds_users(kind: str) -> bool:
    """Whether a dataset of this kind holds users and interactions; so does one whose converter is no longer installed."""
    return kind not in CONVERTERS or CONVERTERS[kind].has_users


def unused_option(kind: str, given: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Say which of the options `given` has no effect on data of a kind, and on which it has; "" where all have.

    `spell` writes an option's name as people know it. Raises `ConfigError` for a kind that nobody offers.
    """
    used = () if kind == CONVERTED else CONVERTERS[kind].options
    name = next((name for name in given if name not in used), None)
    if name is None:
        return ""
    others = ", ".join(kind for kind, spec in CONVERTERS.items() if name in spec.options)
    return f"{spell(name)} has no effect on data of the kind {kind}: leave it out; it is for {others or 'no kind'}"
