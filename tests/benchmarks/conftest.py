"""What tests of baselines share."""

import pytest

from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split
from tests.support.grouped import grouped_catalogue, grouped_split


@pytest.fixture(scope="module")
def split() -> Split:
    return grouped_split()


@pytest.fixture(scope="module")
def catalogue(split: Split) -> Catalogue:
    return grouped_catalogue(split)
