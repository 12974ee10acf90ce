"""Damaged files of every kind: a named error, or exactly what the file holds (tests/fuzzing/reader.py).

`python -m tests.fuzzing` damages thousands; here hypothesis looks for small damages that are read wrongly.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing.damage import damage, damage_json
from tests.fuzzing.readers import READERS

pytestmark = pytest.mark.slow

steps = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        # Headers are a small part of a file and decide the most.
        st.tuples(st.just("set"), st.floats(0, 0.3), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.sampled_from(["insert", "drop"]), st.floats(0, 1), st.integers(1, 40)),
    ),
    min_size=1,
    max_size=4,
)
few = settings(
    max_examples=15,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read(name, tmp_path):
    reader = READERS[name]
    assert reader.judge(reader.sound(), tmp_path / reader.file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_by_name_or_read_as_they_are(name, tmp_path):
    reader = READERS[name]

    @few
    @given(steps)
    def read(how):
        reader.judge(damage(reader.sound(), how), tmp_path / reader.file)

    read()


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.text])
def test_json_that_says_something_else_is_refused_by_name_or_read(name, tmp_path):
    reader = READERS[name]
    outcomes = {
        reader.judge(damage_json(reader.sound(), random.Random(number)), tmp_path / reader.file) for number in range(40)
    }
    assert outcomes == {True, False}


def test_a_manifest_whose_bytes_changed_within_its_zip_is_refused_by_name(tmp_path):
    reader = READERS["model zip"]
    content = bytearray(reader.sound())
    # Within the compressed manifest, which follows its name.
    content[content.index(b"swinfuse_manifest.json") + 60] ^= 1
    assert not reader.judge(bytes(content), tmp_path / reader.file)


def test_a_flipped_bit_in_the_columns_of_an_index_is_refused(tmp_path):
    reader = READERS["index.npz"]
    content = bytearray(reader.sound())
    # The text of all patients' names, which numpy reads without comparing the checksum.
    content[content.index(b"abc")] ^= 1
    assert not reader.judge(bytes(content), tmp_path / reader.file)
