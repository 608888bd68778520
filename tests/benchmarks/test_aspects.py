"""Sides that people go by are found from sums over devices, in a world where they are known."""

from tessera.benchmarks.aspects import draw_world, rows


def test_kinds_are_found_and_the_gate_ranks_as_their_own_side_does() -> None:
    found = rows(draw_world(0), 0)
    assert found["largest cohesion"]["purity"] >= 0.95
    assert found["k-means on tastes"]["purity"] < 0.5
    gate, alike = found["gate, softmax .5"], found["all dimensions alike"]
    assert gate["hr@50"] > alike["hr@50"] + 10
    assert gate["hr@50"] > found["oracle groups, found blocks"]["hr@50"] - 1.5
