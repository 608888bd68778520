"""Generates the demo shop: items with pictures and titles, and users whose reliance on picture, text and crowd is known.

An item has an appearance (colour, shape, pattern, layout: only in its picture), a description (kind, material, style,
occasion, brand: only in its title and text) and a circle (which crowd of people buys it: in neither). All are drawn
independently. A user has a taste for each, and a reliance [image, text, crowd], drawn from a Dirichlet, that says how
much each taste weighs in what they buy. User u buys without replacement from

    softmax_i( SHARPNESS * sum_m reliance_um * utility_umi ),   utility_um standardised over items.

So the learnt weights of the views can be compared with the truth in users.parquet. Training never reads that file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import from_frame
from tessera.common.datasets.demo_shop_images import COLOURS, LAYOUTS, PATTERNS, SHAPES, Appearance, render
from tessera.common.datasets.raw import Options
from tessera.common.encoders.base import Encoder, encode_images, encode_texts
from tessera.common.encoders.builtin import BuiltinEncoder
from tessera.common.errors import DataError
from tessera.common.utils.tables import write_table

N_ITEMS, N_USERS = 1600, 500
EVENTS = (20, 40)
"""Fewest and most purchases of a user."""
RELIANCES = ("image", "text", "crowd")
CONCENTRATION = 0.5
SHARPNESS = 5.0
POPULARITY = 0.3
"""Weight of an item's general popularity in the crowd's taste; the circles weigh 1."""
CIRCLES = 16
USERS = "users.parquet"
_START = 1_700_000_000

WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "kind": (
        ("mug", "cup"), ("cushion", "pillow"), ("poster", "print"), ("notebook", "journal"), ("tote", "bag"),
        ("lamp", "lantern"), ("tray", "platter"), ("blanket", "throw"), ("vase", "urn"), ("smock", "tunic"),
        ("puzzle", "game"), ("clock", "timer"),
    ),
    "material": (
        ("linen", "flax"), ("hardwood", "beech"), ("wool", "felt"), ("glass", "crystal"), ("clay", "stoneware"),
        ("steel", "metal"), ("bamboo", "cane"), ("paper", "card"), ("leather", "hide"), ("cotton", "canvas"),
    ),
    "style": (
        ("rustic", "farmhouse"), ("modern", "minimal"), ("vintage", "retro"), ("nautical", "coastal"),
        ("baroque", "lavish"), ("workshop", "loft"), ("bohemian", "folk"), ("nordic", "polar"),
        ("playful", "cartoon"), ("gothic", "medieval"),
    ),
    "occasion": (
        ("picnics", "barbecues"), ("weddings", "anniversaries"), ("birthdays", "parties"), ("commuting", "the office"),
        ("reading", "studying"), ("camping", "hiking"), ("breakfast", "brunch"), ("the nursery", "toddlers"),
    ),
    "brand": tuple(
        (name,)
        for name in (
            "Halden", "Mirabel", "Osterby", "Quillon", "Tamsin", "Verano", "Brindle", "Calloway", "Dunmore", "Fenwick",
        )
    ),
}  # fmt: skip
APPEARANCES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS, "shape": tuple(SHAPES), "pattern": PATTERNS, "layout": tuple(LAYOUTS),
}  # fmt: skip
APPEARANCE_WEIGHTS = {"colour": 1.0, "shape": 0.8, "pattern": 0.6, "layout": 0.2}
WORD_WEIGHTS = {"kind": 1.0, "material": 0.8, "style": 0.7, "occasion": 0.5, "brand": 0.3}

Facets = Mapping[str, NDArray[np.int64]]
"""Which value each item has, [n_items] by facet."""


@dataclass(frozen=True)
class UserTruth:
    """The users' truth, by image, text and crowd.

    `reliance` is [n_users, 3], rows sum to 1; `utility` is [n_users, 3, n_items], standardised over items.
    """

    reliance: NDArray[np.float64]
    utility: NDArray[np.float64]


def write_demo_shop(_: Path, options: Options, folder: Path) -> dict[str, Any]:
    """Generate the shop as it is by default, drawn by the options' seed; return what dataset.json says about it."""
    write_shop(folder, seed=options.shop_seed, encoder=options.encode)
    return about_shop(options.shop_seed)


def about_shop(seed: int) -> dict[str, Any]:
    """What dataset.json says about a shop that was drawn by a seed."""
    return {"source": "generated", "seed": seed, "filters": {}, "rules": ["generated: no filter applies"]}


def write_shop(
    folder: Path, n_items: int = N_ITEMS, n_users: int = N_USERS, seed: int = 0, encoder: Encoder | None = None
) -> None:
    """Generate a shop below `folder`: pictures, items, features by `encoder`, interactions and the users' truth.

    Raises `DataError` when there are too few items to choose from.
    """
    if n_items < 2 * EVENTS[1] or n_users < 1:
        raise DataError(f"a shop needs at least {2 * EVENTS[1]} items and 1 user, not {n_items} and {n_users}")
    rng = {name: np.random.default_rng([seed, stream]) for stream, name in enumerate(("items", "draw", "users", "buy"))}
    appearances = _draw_facets({name: len(values) for name, values in APPEARANCES.items()}, n_items, rng["items"])
    words = _draw_facets({name: len(values) for name, values in WORDS.items()}, n_items, rng["items"])
    circle = rng["items"].integers(CIRCLES, size=n_items)
    popularity = rng["items"].standard_normal(n_items)
    _catalogue(folder, appearances, words, rng["items"], rng["draw"], encoder or BuiltinEncoder()).save(folder)
    truth = draw_users(n_users, appearances, words, circle, popularity, rng["users"])
    from_frame(_purchases(truth, rng["buy"]), n_items).save(folder)
    reliance = {f"reliance_{name}": truth.reliance[:, column] for column, name in enumerate(RELIANCES)}
    write_table(folder / USERS, pl.DataFrame({"user": ordered_names("user", n_users), **reliance}))


def draw_users(
    n_users: int,
    appearances: Facets,
    words: Facets,
    circle: NDArray[np.int64],
    popularity: NDArray[np.float64],
    rng: np.random.Generator,
) -> UserTruth:
    """Draw reliances and tastes, and work out what each user thinks of each item by picture, by text and by crowd."""
    reliance = rng.dirichlet(np.full(len(RELIANCES), CONCENTRATION), n_users)
    image = sum(APPEARANCE_WEIGHTS[name] * _taste(n_users, values, rng) for name, values in appearances.items())
    text = sum(WORD_WEIGHTS[name] * _taste(n_users, values, rng) for name, values in words.items())
    crowd = _taste(n_users, circle, rng) + POPULARITY * popularity
    utility = np.stack([np.asarray(image), np.asarray(text), crowd], axis=1)
    utility -= utility.mean(axis=2, keepdims=True)
    return UserTruth(reliance, utility / utility.std(axis=2, keepdims=True))


def _draw_facets(sizes: Mapping[str, int], n_items: int, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    return {name: rng.integers(size, size=n_items) for name, size in sizes.items()}


def _taste(n_users: int, values: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """What users think of items that have `values` [n_items] of one facet, [n_users, n_items]."""
    taste: NDArray[np.float64] = rng.standard_normal((n_users, int(values.max()) + 1))[:, values]
    return taste


def _purchases(truth: UserTruth, rng: np.random.Generator) -> pl.DataFrame:
    """Draw each user's purchases without replacement (the top of the perturbed utilities), bought in random order."""
    scores = SHARPNESS * np.einsum("um,umi->ui", truth.reliance, truth.utility)
    ranked = np.argsort(-(scores + rng.gumbel(size=scores.shape)), axis=1)
    lengths = rng.integers(EVENTS[0], EVENTS[1] + 1, size=len(ranked)).tolist()
    items = np.concatenate([rng.permutation(row[:length]) for row, length in zip(ranked, lengths, strict=True)])
    gaps = [_START + np.cumsum(rng.integers(3600, 7 * 86400, size=length)) for length in lengths]
    users = np.repeat(ordered_names("user", len(ranked)), lengths)
    return pl.DataFrame({"user": users.tolist(), "item": items, "timestamp": np.concatenate(gaps)})


def _catalogue(
    folder: Path,
    appearances: Facets,
    words: Facets,
    rng: np.random.Generator,
    drawing: np.random.Generator,
    encoder: Encoder,
) -> Catalogue:
    """Write the pictures below `folder`, word the titles, and encode both."""
    items = ordered_names("item", len(appearances["colour"]))
    images = [f"images/{item}.png" for item in items]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(images):
        appearance = Appearance(**{name: APPEARANCES[name][rows[row]] for name, rows in appearances.items()})
        render(appearance, drawing).save(folder / image, compress_level=1)
    wordings = [_wording({name: int(values[row]) for name, values in words.items()}, rng) for row in range(len(items))]
    titles, texts = ([wording[part] for wording in wordings] for part in range(2))
    features = {
        "image": encode_images(encoder, items, [folder / image for image in images]),
        "text": encode_texts(encoder, titles, texts),
    }
    return Catalogue(tuple(items), tuple(titles), tuple(texts), tuple(images), features)


def _wording(values: Mapping[str, int], rng: np.random.Generator) -> tuple[str, str]:
    """A title and a text for one item; each facet is worded twice, with a synonym drawn each time."""
    first, second = ({name: str(rng.choice(WORDS[name][value])) for name, value in values.items()} for _ in range(2))
    title = f"{first['brand']} {first['style']} {first['material']} {first['kind']}"
    text = (
        f"A {second['style']} {second['kind']} in {second['material']} for {first['occasion']}, "
        f"by {second['brand']}. {rng.choice(_CLOSINGS)}"
    )
    return title, text


_CLOSINGS = (
    "Made in small batches.", "Wipe clean with a damp cloth.", "Comes in a gift box.", "Ships within two days.",
    "Designed to last.", "A favourite of our team.",
)  # fmt: skip


def ordered_names(prefix: str, n: int) -> list[str]:
    """Ids that sort as text in the order of their index."""
    return [f"{prefix}-{index:0{len(str(n - 1))}d}" for index in range(n)]
