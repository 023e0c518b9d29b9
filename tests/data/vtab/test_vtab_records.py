"""DMLab: TFRecord files and the protocol buffers in them, hostile ones too."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitkit.data.checks import DataError
from vitkit.data.vtab import records
from vtab_sets import dmlab, encoded, example, field, record, varint, write


def test_frames_of_all_shards_are_found_with_their_labels(tmp_path):
    dmlab(tmp_path)
    pools = records.dmlab(tmp_path)
    assert pools.train.labels.tolist() == [n % 6 for n in (*range(0, 12, 2), *range(1, 12, 2))]
    assert pools.val is not None and len(pools.val) == 6
    assert pools.test.encoded(1) == encoded(2)
    assert pools.test.image(0).shape == (3, 8, 8)
    assert pools.train.class_names[0] == "close, good"


def test_the_check_sums_are_those_of_tensorflow():
    # CRC-32C of "123456789" is 0xE3069283 (RFC 3720, appendix B.4, and every table of CRCs).
    crc = 0xE3069283
    assert records.masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


GOOD = example(encoded(), 2)
DAMAGED = {
    "cut short": record(GOOD)[:-30],
    "a length that is not the one of its check sum": b"\xff" + record(GOOD)[1:],
    "a length beyond the file": struct.pack("<QI", 2**63, records.masked_crc(
        struct.pack("<Q", 2**63))) + bytes(9),
    "no image": record(field(1, field(1, field(1, b"label") + field(2, field(3, b""))))),
    "a field beyond its record": record(varint(1 << 3 | 2) + varint(2**40)),
    "an integer without end": record(b"\xff" * 30),
    "a group": record(bytes([1 << 3 | 3])),
    "a label of 6": record(example(encoded(), 6)),
    "an empty file": b"",
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_an_error_of_the_data(tmp_path, content):
    dmlab(tmp_path)
    write(tmp_path / "dmlab-test.tfrecord-00001-of-00002", content)
    with pytest.raises(DataError):
        records.dmlab(tmp_path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=80))
def test_any_bytes_in_a_record_are_an_error_or_a_frame(tmp_path: Path, data):
    write(tmp_path / "dmlab-train.tfrecord", record(data))
    with suppress(DataError):
        assert len(records.frames(tmp_path, "train")) == 1


def test_without_a_split_the_message_names_its_files(tmp_path):
    write(tmp_path / "dmlab-train.tfrecord", record(GOOD))
    with pytest.raises(DataError, match=r"dmlab-validation\.tfrecord"):
        records.dmlab(tmp_path)
