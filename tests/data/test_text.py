import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.data.blocks import drop_unreadable, read_blocks
from slipstream.data.text import (
    MISSING,
    NOT_A_NUMBER,
    NOT_FINITE,
    OK,
    Text,
    hash_text,
    parse_numbers,
    split_lines,
    split_values,
)
from slipstream.data.vocabulary import Lookup, ValueCounter
from slipstream.errors import DataError

HASHES = [16294208416658607535, 4490210150949542640, 10153969532132536895, 4130988613835567412]
FIELD = st.text(st.characters(blacklist_characters="\t\r\n", blacklist_categories=("Cs",)), max_size=12)


def text(values) -> Text:
    return Text.from_arrow(pa.array(values, type=pa.string()))


def fields(column: Text) -> list[str]:
    return [column.field(i) for i in range(len(column.starts))]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(FIELD, min_size=3, max_size=3), max_size=20), st.booleans())
def test_lines_are_split_where_they_were_joined(rows, carriage_return):
    end = "\r\n" if carriage_return else "\n"
    block = "".join("\t".join(row) + end for row in rows).encode()
    found = split_lines(block, "\t", 3, len(rows))
    assert [list(row) for row in zip(*(fields(column) for column in found.columns), strict=True)] == rows
    assert found.lines.tolist() == list(range(len(rows))) and found.wrong == []


def test_lines_with_another_number_of_fields_are_reported():
    found = split_lines(b"a,b\nc\n\nd,e,f\ng,h\n", ",", 2, 5)
    assert [fields(column) for column in found.columns] == [["a", "g"], ["b", "h"]]
    assert found.lines.tolist() == [0, 4] and found.wrong == [(1, 1), (2, 1), (3, 3)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False)), max_size=30)
)
def test_numbers_are_read_as_python_reads_them(numbers):
    values, status = parse_numbers(text([str(number) for number in numbers]))
    assert values.tolist() == [float(number) for number in numbers] and (status == OK).all()


@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"[-+]?[0-9]{0,20}\.?[0-9]{0,20}", fullmatch=True))
def test_decimals_are_rounded_as_python_rounds_them(decimal):
    values, status = parse_numbers(text([decimal]))
    try:
        expected = float(decimal)
    except ValueError:
        assert status[0] == (NOT_A_NUMBER if decimal else MISSING)
    else:
        assert status[0] == OK and values[0] == expected and math.copysign(1, values[0]) == math.copysign(1, expected)


def test_what_is_no_number():
    values, status = parse_numbers(text(["", " ", "nan", "-inf", "abc", "1_0", "1 2", "-", ".", None, " 7 ", "1e3"]))
    expected = [MISSING] * 2 + [NOT_FINITE] * 2 + [NOT_A_NUMBER] * 5 + [MISSING, OK, OK]
    assert status.tolist() == expected and np.isnan(values[:10]).all() and values[10:].tolist() == [7, 1000]


def test_hashes_never_change():
    # Stored encoders that hash rely on these values.
    out = np.empty(4, dtype=np.uint64)
    hash_text(*text(["", "a", "68fd1e64", "a longer text, of three words"]), out)
    assert out.tolist() == HASHES


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=20), max_size=50, unique=True))
def test_different_values_have_different_hashes(values):
    out = np.empty(len(values), dtype=np.uint64)
    hash_text(*text(values), out)
    assert len(set(out.tolist())) == len(values)


def test_multi_valued_fields_are_split():
    values, offsets = split_values(text(["Comedy|Drama", "", "|Horror||", "War"]), "|")
    assert fields(values) == ["Comedy", "Drama", "Horror", "War"] and offsets.tolist() == [0, 2, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.lists(FIELD, max_size=30), st.integers(1, 40), st.booleans())
def test_blocks_hold_all_lines_in_order(tmp_path_factory, lines, size, last):
    path = tmp_path_factory.mktemp("blocks") / "f"
    whole = "\n".join([*lines, ""] if last and lines else lines).encode()
    path.write_bytes(b"\xef\xbb\xbf" + whole)
    size = max(size, 3)
    blocks = list(read_blocks(path, size)) if max(map(len, whole.split(b"\n"))) <= 8 * size else []
    if blocks:
        joined = b"".join(block.data for block in blocks)
        assert joined == (whole if whole.endswith(b"\n") else whole + b"\n")
        counted = 1
        for block in blocks:
            assert block.line == counted and block.lines == block.data.count(b"\n") and block.data.endswith(b"\n")
            counted += block.data.count(b"\n")


def test_a_line_without_end_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match="too long"):
        list(read_blocks(tmp_path / "f", 100))


def test_invalid_utf8_is_taken_out_and_lines_keep_their_numbers():
    block = b"a\n\xff\xfe\n\xc3\xa9\nb\xff\n"
    assert drop_unreadable(block) == (b"a\n\n\xc3\xa9\n\n", [(1, "invalid UTF-8"), (3, "invalid UTF-8")])
    text, ((line, reason),) = drop_unreadable(b"a\n\0b\nc\n")
    assert text == b"a\n\nc\n" and line == 1 and "NUL" in reason


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["", "a", "b", "ccc", "Ω", *map(str, range(40))]), max_size=60), max_size=5),
    st.integers(1, 4),
)
def test_vocabulary_is_ordered_by_frequency_and_looked_up(tmp_path_factory, pieces, min_frequency):
    import collections

    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("vocabulary")
    counter = ValueCounter(folder)
    seen: collections.Counter[str] = collections.Counter()
    for piece in pieces:
        hashes = np.empty(len(piece), dtype=np.uint64)
        hash_text(*text(piece), hashes)
        counter.add(hashes, text(piece))
        seen.update(piece)
    lookup = counter.finish(folder / "v.parquet", min_frequency)
    table = pq.read_table(folder / "v.parquet").to_pydict()
    expected = [(value, count) for value, count in seen.most_common() if count >= min_frequency]
    assert list(zip(table["value"], table["count"], strict=True)) == expected
    values = [*seen, "unseen"]
    hashes, ids = np.empty(len(values), dtype=np.uint64), np.empty(len(values), dtype=np.int32)
    hash_text(*text(values), hashes)
    lookup.find(hashes, ids)
    position = {value: i + 1 for i, (value, _) in enumerate(expected)}
    assert ids.tolist() == [position.get(value, 0) for value in values]


def test_many_values_make_the_table_grow(tmp_path):
    values = [str(i) for i in range(20_000)]
    hashes = np.empty(len(values), dtype=np.uint64)
    hash_text(*text(values), hashes)
    counter = ValueCounter(tmp_path)
    for _ in range(2):
        counter.add(hashes, text(values))
    assert counter.distinct == 20_000
    ids = np.empty(20_000, dtype=np.int32)
    counter.finish(tmp_path / "v.parquet", 2).find(hashes, ids)
    assert ids.tolist() == list(range(1, 20_001))


def test_a_value_that_stands_twice_is_refused():
    with pytest.raises(DataError, match="stands twice"):
        Lookup(np.array([4, 5, 4], dtype=np.uint64))
