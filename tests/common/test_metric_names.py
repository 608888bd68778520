"""Names of metrics: read as they were written, and refused with a word on how they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.errors import DataError
from tessera.common.metrics.names import MetricName
from tessera.common.metrics.ranking import MetricSums
from tests.support.splits import tries

words = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
names = st.builds(MetricName, words, words, words, st.none() | st.integers(1, 10**6), st.just("") | words)


@tries(200)
@given(names)
def test_a_name_is_read_as_it_was_written(name: MetricName) -> None:
    assert MetricName.parse(str(name)) == name
    assert name.of("popularity").of(name.baseline) == name
    assert name.users.counts == (name.users.metric == "users")


@tries(100)
@given(st.dictionaries(names, st.integers(0, 10**6).map(float), max_size=5))
def test_sums_of_metrics_keep_their_names(metrics: dict[MetricName, float]) -> None:
    sums = MetricSums.of_metrics(metrics) + MetricSums({"evaluated": 3.0})
    assert sums.metrics() == metrics, "plain sums are no metrics"
    assert (sums + sums).metrics() == {name: 2 * value for name, value in metrics.items()}


@pytest.mark.parametrize(
    "text",
    ["", "ndcg@50", "test/ndcg@50", "a/test/all/hr@50/x", "test/all/hr@0", "test/all/hr@", "/all/hr", "test/all/hr@5 "],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"write \[BASELINE/\]PART/GROUP/METRIC\[@K\], such as test/all/hr@50"):
        MetricName.parse(text)


@pytest.mark.parametrize("wrong", [{"part": "a/b"}, {"group": ""}, {"metric": "hr@5"}, {"k": 0}, {"baseline": "ä"}])
def test_no_name_is_made_that_could_not_be_read(wrong: dict) -> None:
    with pytest.raises(DataError):
        MetricName(**{"part": "test", "group": "all", "metric": "hr"} | wrong)
