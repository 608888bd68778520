"""Lists the tasks of the many-task benchmark: ten clients in three families, as in DRAKE (FedMosaic, A.24), and seven unseen.

The clients of a family ask alike about different movies, so that they can learn from each other; no two have the same
task.
"""

from functools import partial

from tessera.common.data.questions import PICTURE, TEXT
from tessera.common.datasets.qa.sampling import Domain, Task

SEEN, READ, BOTH = (PICTURE,), (TEXT,), (PICTURE, TEXT)

TALES = Domain("tales", ("Animation", "Romance", "Crime", "Sci-Fi"))
JOURNEYS = Domain("journeys", ("Adventure", "Comedy", "Crime", "Horror"))
NIGHTS = Domain("nights", ("Children", "Crime", "Fantasy", "Horror"))
MOODS = Domain("moods", ("Action", "Comedy", "Drama", "Horror"))
RIDDLES = Domain("riddles", ("Mystery", "Fantasy", "Romance", "Action"))
POWERS = Domain("powers", ("Action", "Fantasy", "Sci-Fi", "Horror"))
LIVES = Domain("lives", ("Children", "Drama", "Sci-Fi", "Thriller"))
DANGERS = Domain("dangers", ("Adventure", "Crime", "Romance", "Horror"))
HEARTS = Domain("hearts", ("Comedy", "Thriller", "Romance", "War"))

COMEDY, DRAMA, THRILL, ACTION = (
    Domain("comedy", ("Comedy",)),
    Domain("drama", ("Drama",)),
    Domain("thrill", ("Thriller", "Horror", "Crime")),
    Domain("action", ("Action", "Adventure")),
)
PAST, RECENT = Domain("past", until=1989), Domain("recent", since=2000)


def _decades(domain: Domain) -> Domain:
    """The four decades in which there are enough movies; asked of posters only, since MovieLens' titles say the year."""
    return Domain(domain.name, domain.genres, 1980, 2019)


def _between(one: str, other: str) -> Domain:
    return Domain(f"{one}-{other}".lower(), (one, other))


_relation = partial(Task, "relation")
_reasoning = partial(Task, "reasoning")
_attribute = partial(Task, "attribute", "attribute")

CLIENTS: tuple[tuple[Task, ...], ...] = (
    (
        _relation("contrast", "age", COMEDY),
        _relation("kin", "genre", TALES),
        _relation("odd", "genre", _between("Comedy", "Horror")),
        _relation("same", "genre", _between("Children", "Thriller")),
    ),
    (
        _relation("contrast", "age", THRILL),
        _relation("contrast", "reception", DRAMA),
        _relation("odd", "genre", TALES),
        _relation("kin", "genre", _between("Sci-Fi", "Romance")),
    ),
    (
        _relation("contrast", "age", ACTION),
        _relation("contrast", "reception", THRILL),
        _relation("kin", "genre", JOURNEYS),
        _relation("same", "genre", _between("Animation", "Horror")),
    ),
    (
        _reasoning("text", "genre", TALES),
        _reasoning("picture-hard", "genre", MOODS, READ),
        _reasoning("belongs", "genre", TALES, BOTH),
        _reasoning("kin", "genre", _between("Comedy", "Horror"), (TEXT, TEXT, PICTURE)),
    ),
    (
        _reasoning("text-hard", "genre", JOURNEYS),
        _reasoning("picture", "genre", JOURNEYS, READ),
        _reasoning("fits", "genre", JOURNEYS, BOTH),
        _reasoning("kin", "genre", _between("Sci-Fi", "Romance"), (PICTURE, PICTURE, TEXT)),
    ),
    (
        _reasoning("text", "genre", NIGHTS),
        _reasoning("fits-hard", "genre", NIGHTS, BOTH),
        _reasoning("same", "genre", _between("Children", "Thriller"), BOTH),
        _reasoning("kin", "genre", _between("Action", "Comedy"), (TEXT, TEXT, PICTURE)),
    ),
    (
        _attribute("genre", MOODS, SEEN),
        _attribute("genre", NIGHTS, SEEN),
        _attribute("decade", _decades(COMEDY), SEEN),
        _attribute("reception", DRAMA, SEEN),
    ),
    (
        _attribute("genre", TALES, READ),
        _attribute("genre", RIDDLES, READ),
        _attribute("reception", DRAMA, READ),
        _attribute("reception", PAST, READ),
    ),
    (
        _attribute("genre", JOURNEYS, BOTH),
        _attribute("genre", POWERS, BOTH),
        _attribute("decade", _decades(ACTION), SEEN),
        _attribute("reception", THRILL, BOTH),
    ),
    (
        _attribute("genre", LIVES, READ),
        _attribute("genre", DANGERS, SEEN),
        _attribute("decade", _decades(DRAMA), SEEN),
        _attribute("reception", RECENT, BOTH),
    ),
)
UNSEEN: tuple[Task, ...] = (
    _relation("newest", "age", DRAMA),
    _reasoning("picture", "genre", HEARTS, READ),
    _attribute("decade", _decades(Domain("wonder", ("Sci-Fi", "Fantasy"))), SEEN),
    _relation("odd", "genre", _between("Crime", "Fantasy")),
    _relation("kin", "genre", NIGHTS),
    _reasoning("fits", "genre", MOODS, BOTH),
    _attribute("genre", HEARTS, READ),
)
