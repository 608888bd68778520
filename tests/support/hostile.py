"""Makes messages that somebody has tampered with."""

import os

import hypothesis
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

TIMES = int(os.environ.get("TESSERA_FUZZ", "1"))
"""How many times as many examples as usual; `make test-security` tries more."""
SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.text(max_size=20), st.binary(max_size=20)
)
LISTS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    st.lists(st.floats(), max_size=4),
    st.lists(st.text(max_size=8), max_size=4),
    st.lists(st.binary(max_size=8), max_size=4),
)
TYPES = ("<f4", "<f2", "|i1", "|u1", "<i4", "<i8", "<f8", "|b1", "<c8")


def fuzz(examples: int) -> hypothesis.settings:
    """How many examples hostile bytes are tried on."""
    return hypothesis.settings(max_examples=examples * TIMES, deadline=None)


@st.composite
def damaged_arrays(draw: st.DrawFn, array: Array) -> Array:
    """An array of another type or shape, with other bytes, cut off, or with a header that lies."""
    kind = draw(st.sampled_from(["other", "bytes", "cut", "header"]))
    if kind == "other" or not array.data:
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        return Array(np.zeros(shape, dtype=draw(st.sampled_from(TYPES))))
    data = bytearray(array.data)
    if kind == "cut":
        del data[draw(st.integers(0, len(data))) :]
    elif kind == "bytes":
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    else:
        large = draw(st.sampled_from([b"(9999999999, 9999999999)", b"(-1,)", b"(2**40,)", b"('a',)", b"()"]))
        data = bytearray(bytes(data).replace(b"(", large, 1))
    return Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=bytes(data))


@st.composite
def tampered(draw: st.DrawFn, content: RecordDict) -> RecordDict:
    """The same content but for a few changes: records and entries left out, added, or of other values and types."""
    records = dict(content)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(records))) if records else "nothing"
        what, record = draw(st.sampled_from(["drop", "strange", "rename", *["entry"] * 5])), records.get(name)
        if what == "drop":
            records.pop(name, None)
        elif what == "rename" and record is not None:
            records[draw(st.sampled_from(sorted(records)) | st.text(min_size=1, max_size=8))] = record
            records.pop(name, None)
        elif what == "strange" or record is None:
            records[name] = draw(st.sampled_from([ConfigRecord({}), MetricRecord({}), ArrayRecord()]))
        else:
            records[name] = draw(_changed(record))
    return RecordDict(records)


@st.composite
def _changed(
    draw: st.DrawFn, record: ConfigRecord | MetricRecord | ArrayRecord
) -> ConfigRecord | MetricRecord | ArrayRecord:
    entries = dict(record)
    key = draw(st.sampled_from(sorted(entries) or ["key"]))
    if draw(st.integers(0, 4)) == 0:
        entries.pop(key, None)
    elif isinstance(record, ArrayRecord):
        array = entries.get(key, Array(np.zeros(3, dtype="<f4")))
        key = draw(st.sampled_from([key, "views", "views/items", "views/bits", "views/mix", "views/scales", "strange"]))
        entries[key] = draw(damaged_arrays(array))
    elif isinstance(record, MetricRecord):
        entries[key] = draw(st.integers(-(2**63), 2**63 - 1) | st.floats())
    else:
        value = entries.get(key)
        other = (
            st.text(max_size=3).map(lambda text: value[: len(value) // 2] + text) if isinstance(value, str) else SCALARS
        )
        entries[key] = draw(st.one_of(SCALARS, LISTS, other))
    return type(record)(entries)
