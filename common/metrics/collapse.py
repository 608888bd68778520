"""How views lie on the unit sphere: alignment, uniformity and separability (VLM2Rec, arXiv 2603.17450, Eq. 4-5).

Devices sum, over their people, numbers between 0 and 1: of unit vectors z of a history and e of an item, |z - e|^2 / 4 for the
item that is asked for (alignment) and in the mean of all other candidates (distance), and the mean of exp(-2 |z - e|^2) over
the whole catalogue (uniformity). The means of these over all people give the paper's figures, without a draw.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from tessera.common.metrics.names import MetricName

ALIGNMENT, DISTANCE, UNIFORMITY, SEPARABILITY = "alignment", "distance", "uniformity", "separability"
GEOMETRY = (ALIGNMENT, DISTANCE, UNIFORMITY)
"""What is summed."""
LARGEST = 4.0
"""The largest squared distance of two unit vectors."""
TINY = 1e-12


def geometry(means: Mapping[MetricName, float]) -> dict[MetricName, float]:
    """From means over people the paper's figures: A_pos (alignment) and A_neg (distance), squared distances; U (uniformity), a
    logarithm, the lower the more of the sphere is used; and S = A_neg / A_pos (separability), above 1 where items that are
    asked for are nearer than others."""
    found: dict[MetricName, float] = {}
    for name, value in means.items():
        if name.metric in (ALIGNMENT, DISTANCE):
            found[name] = LARGEST * value
        elif name.metric == UNIFORMITY:
            found[name] = math.log(max(value, TINY))
        if name.metric == DISTANCE:
            found[replace(name, metric=SEPARABILITY)] = value / max(means[replace(name, metric=ALIGNMENT)], TINY)
    return found
