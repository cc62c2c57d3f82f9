"""The state format: exact, versioned, atomic, without pickle; anything else is refused with a reason."""

import json
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from safetensors import safe_open
from safetensors.numpy import save_file

import allotment.state
from allotment import packing
from allotment.disk import regular
from allotment.errors import StateError, StateVersionError
from allotment.state import check_kind, check_state, decode_json, encode_json, load_state, save_state

STATE = {
    "kind": "thing",
    "weights": np.arange(6.0).reshape(2, 3),
    "deep": {"er": {"count": 3, "nothing": None, "empty": {}}, "flag": True},
    "rows": np.array([5, -1]),
}

keys = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1, max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
dtypes = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
arrays = st_np.arrays(dtypes, st_np.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
states = st.recursive(
    st.dictionaries(keys, scalars | arrays, max_size=4),
    lambda inner: st.dictionaries(keys, inner | scalars | arrays, max_size=3),
    max_leaves=6,
)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()
    elif isinstance(one, float):
        assert one.hex() == other.hex()
    else:
        assert one == other


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


def through_the_disk(path, state):
    save_state(path, state, kind="test")
    return load_state(path, kind="test")


@settings(deadline=None, max_examples=80)
@given(state=states)
def test_a_state_survives_bit_for_bit(state, tmp_path_factory):
    assert_same(through_the_disk(tmp_path_factory.getbasetemp() / "roundtrip", state), state)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"a": {}},
        {"a": {"b": {}, "c": {"d": {}}}},
        {"a": np.zeros(()), "b": np.zeros(0), "c": np.zeros((0, 3))},
        {"a": 5e-324, "b": -0.0, "c": 0.1 + 0.2, "d": 1.7976931348623157e308, "e": float("inf"), "f": -float("inf")},
        {"a": np.array([np.nan, -0.0, 5e-324, np.inf])},
        {"a": True, "b": 1, "c": 1.0, "d": "1", "e": None, "f": 2**100, "g": -(2**63), "h": ""},
        {"a": "\ud800 \0 \n / é 🙂"},
        {"allotment": np.ones(1), "version": 7, "kind": "other", "scalars": {"a": 1}},
        {"1": {"0": 1}, "1.0": np.ones(1), "a.b c": 1, "ключ": np.ones(2)},
    ],
)
def test_odd_states_survive(path, state):
    assert_same(through_the_disk(path, state), state)


def test_nan_scalars_survive(path):
    assert np.isnan(through_the_disk(path, {"a": float("nan")})["a"])


@pytest.mark.parametrize("dtype", [">f8", ">i4", "<u2"])
def test_foreign_byte_order_keeps_the_values(path, dtype):
    values = np.array([1, 2, 300], dtype=dtype)
    np.testing.assert_array_equal(through_the_disk(path, {"a": values})["a"], values)


@pytest.mark.parametrize(
    "view", [np.arange(24.0).reshape(4, 6)[::2, ::-1], np.arange(24.0).reshape(4, 6).T, np.broadcast_to(1.5, (3, 2))]
)
def test_views_keep_their_values(path, view):
    np.testing.assert_array_equal(through_the_disk(path, {"a": view})["a"], view)


def test_numpy_floats_become_floats(path):
    assert_same(through_the_disk(path, {"a": np.float64(0.1)}), {"a": 0.1})


def test_loaded_arrays_are_the_readers_own(path):
    save_state(path, STATE, kind="test")
    one, other = load_state(path, kind="test"), load_state(path, kind="test")
    one["weights"][:] = -1
    assert_same(other["weights"], STATE["weights"])
    assert_same(load_state(path, kind="test"), STATE)


@pytest.mark.parametrize(
    "leaf",
    [
        np.int64(3),
        np.bool_(True),
        np.float32(0.5),
        [1, 2],
        (1,),
        {1, 2},
        b"bytes",
        1j,
        object(),
        np.array([None, 1]),
        np.array(["text"]),
        np.array([1j]),
        np.array([1j], dtype=np.complex64),
        np.array(["2020"], dtype="M8[D]"),
        np.zeros(2, dtype=[("a", int)]),
        np.zeros(2, dtype=np.longdouble),
    ],
    ids=lambda leaf: repr(leaf) if type(leaf) is not object else "object",
)
def test_leaves_that_would_not_survive_are_named(path, leaf):
    with pytest.raises(StateError, match="'deep/leaf' cannot be stored"):
        save_state(path, {"deep": {"leaf": leaf}}, kind="test")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a/b", "/", 3, None, ("a",), "\ud800", "a\nb", "\0", "__metadata__"], ids=repr)
@pytest.mark.parametrize("value", [1, np.ones(2), {}])
def test_keys_that_would_not_survive_are_refused(path, key, value):
    """safetensors would write a tensor named __metadata__, and then not read the file."""
    with pytest.raises(StateError, match="bad key"):
        save_state(path, {"deep": {key: value}}, kind="test")
    assert list(path.parent.iterdir()) == []


def test_the_file_is_safetensors_and_json_no_pickle(path):
    save_state(path, STATE, kind="thing-file")
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    inner = json.loads(header.pop("__metadata__")["allotment"])
    assert header.keys() == {"weights", "rows"}
    assert header["weights"]["dtype"] == "F64"
    assert (inner["version"], inner["kind"]) == (allotment.state.FORMAT_VERSION, "thing-file")
    assert inner["scalars"]["deep/er/count"] == 3
    assert len(data) == 8 + size + STATE["weights"].nbytes + STATE["rows"].nbytes


def test_a_truncated_file_is_refused_wherever_it_was_cut(path):
    save_state(path, STATE, kind="test")
    data = path.read_bytes()
    for length in [*range(0, 24), *range(24, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(StateError, match="cannot read"):
            load_state(path, kind="test")
    path.write_bytes(data + b"\0")
    with pytest.raises(StateError, match="cannot read"):
        load_state(path, kind="test")
    path.write_bytes(data)
    assert_same(load_state(path, kind="test"), STATE)


@pytest.mark.parametrize("data", [b"", b"\x80\x04.", b"{}", bytes(range(200)), b"\xff" * 64, b"\0" * 64])
def test_other_files_are_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(StateError, match="cannot read"):
        load_state(path, kind="test")


def test_every_single_flipped_bit_is_refused(path):
    """Of the length, the header, the checksum itself, the padding and the tensors."""
    state = {"a": np.array([-2.5]), "b": {"n": 1e5}, "c": np.array([3], np.uint8)}
    save_state(path, state, kind="test")
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(StateError, match="cannot read"):
            load_state(path, kind="test")
    path.write_bytes(data)
    assert_same(load_state(path, kind="test"), state)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_changed_bytes_are_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "changed"
    save_state(path, STATE, kind="test")
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.binary(min_size=1, max_size=40))
    changed = whole[:start] + other + whole[start + len(other) :]
    path.write_bytes(changed)
    if changed != whole:
        with pytest.raises(StateError, match="cannot read"):
            load_state(path, kind="test")


def without_checksum(path, state, kind):
    """The file as versions before there were checksums wrote it."""
    save_state(path, state, kind=kind)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["allotment"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    del header["checksum"]
    save_file(tensors, path, metadata={"allotment": json.dumps(header)})


def test_a_file_of_before_there_were_checksums_is_read_with_a_warning(path, caplog):
    without_checksum(path, STATE, "test")
    with caplog.at_level(logging.WARNING, logger="allotment"):
        assert_same(load_state(path, kind="test"), STATE)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was saved before there were checksums: damage to it would not be seen"
    ]
    caplog.clear()
    save_state(path, STATE, kind="test")
    load_state(path, kind="test")
    assert not caplog.records


def test_the_files_of_the_package_have_checksums():
    files = list(Path(allotment.__file__).parent.rglob("*.safetensors"))
    with_header = 0
    for file in files:
        with regular(file) as opened, safe_open(file, framework="numpy") as named:
            if "allotment" in (named.metadata() or {}):
                assert packing.read(opened)[2], file
                with_header += 1
    assert with_header >= 6


def test_safetensors_reads_the_file(path):
    state = {
        "z": np.arange(3, dtype=np.uint8),
        "a": np.float16([[1], [2]]),
        "é": np.array(True),
        "none": np.zeros((0, 2)),
    }
    save_state(path, {**state, "kind": "x"}, kind="test")
    with safe_open(path, framework="numpy") as file:
        assert_same({name: file.get_tensor(name) for name in state}, state)


def packed(path, outer, data=b"", size=None):
    """A file with this header, as text, bytes or JSON, and as many bytes behind it as ``size`` says."""
    text = outer if isinstance(outer, bytes) else json.dumps(outer).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        if size is not None:
            file.truncate(8 + len(text) + size)


def outer(scalars=None, **tensors):
    header = {"version": 1, "kind": "test", "scalars": {} if scalars is None else scalars}
    return {"__metadata__": {"allotment": json.dumps(header)}, **tensors}


def tensor(dtype="F64", shape=(1,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


TERABYTE = 10**12
SIZES = {
    "more declared than there": (outer(a=tensor(shape=(2,), offsets=(0, 16))), 8),
    "less declared than there": (outer(a=tensor()), 16),
    "a sparse terabyte": (outer(a=tensor()), TERABYTE),
    "a terabyte declared": (outer(a=tensor(shape=(TERABYTE // 8,), offsets=(0, TERABYTE))), TERABYTE),
    "a terabyte declared, not there": (outer(a=tensor(shape=(TERABYTE // 8,), offsets=(0, TERABYTE))), 8),
    "shape of another size": (outer(a=tensor(shape=(1000, 1000, 1000))), 8),
    "shape that overflows": (outer(a=tensor(shape=(2**62, 4), offsets=(0, 0))), 0),
    "empty and huge": (outer(a=tensor(shape=(0, 2**70), offsets=(0, 0))), 0),
    "negative": (outer(a=tensor(shape=(-1,), offsets=(8, 0))), 8),
    "not whole": (outer(a=tensor(shape=(1.0,))), 8),
    "true": (outer(a=tensor(shape=(True,))), 8),
    "a gap": (outer(a=tensor(), b=tensor(offsets=(16, 24))), 24),
    "an overlap": (outer(a=tensor(shape=(2,), offsets=(0, 16)), b=tensor(offsets=(8, 16))), 16),
    "unknown type": (outer(a=tensor("C64")), 8),
    "no type": (outer(a={"shape": [1], "data_offsets": [0, 8]}), 8),
    "no tensor": (outer(a=3), 0),
    "one name twice": (outer({"a": 1}, a=tensor()), 8),
    "a list": (outer({"a": [1]}), 0),
    "deep header": (b"[" * 200_000, 0),
    "deep scalars": ({"__metadata__": {"allotment": "[" * 200_000}}, 0),
    "a number too long": ({"__metadata__": {"allotment": "1" * 10_000}}, 0),
    "not UTF-8": (b"\xff" * 30, 0),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_do_not_fit_are_refused_before_memory_is_taken(path, case):
    header, size = SIZES[case]
    packed(path, header, size=size)
    with pytest.raises(StateError, match="cannot read"):
        load_state(path, kind="test")


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, packing.LARGEST_HEADER + 1, TERABYTE - 8])
def test_a_header_of_absurd_length_is_refused(path, length):
    with open(path, "wb") as file:
        file.write(length.to_bytes(8, "little") + b"{}")
        file.truncate(TERABYTE)
    with pytest.raises(StateError, match="cannot read"):
        load_state(path, kind="test")


def test_what_is_larger_than_memory_is_refused(path, monkeypatch):
    save_state(path, STATE, kind="test")
    monkeypatch.setattr("allotment.packing._memory", lambda: 63)
    with pytest.raises(StateError, match="64 bytes, and this machine's memory has 63"):
        load_state(path, kind="test")


def test_a_pipe_and_a_device_are_refused_without_waiting(path):
    os.mkfifo(path)
    for file in (path, "/dev/null", "/dev/zero", path.parent):
        with pytest.raises(StateError, match="cannot read"):
            load_state(file, kind="test")


def test_a_missing_file_and_a_folder_are_refused(path):
    with pytest.raises(StateError, match="cannot read") as caught:
        load_state(path, kind="test")
    assert str(path) in str(caught.value)
    with pytest.raises(StateError, match="cannot read"):
        load_state(path.parent, kind="test")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "{",
        "[]",
        "1",
        "null",
        "{}",
        '{"version": 1}',
        '{"version": 1, "kind": "test"}',
        '{"version": 1, "kind": "test", "scalars": [1]}',
        '{"version": 1, "kind": "test", "scalars": {"a": 1, "a/b": 2}}',
        '{"version": 1, "kind": "test", "scalars": {}, "more": 1}',
        '{"version": 1, "kind": "test", "scalars": {}, "checksum": "00000000"}',
        '{"version": 1, "kind": "test", "scalars": {}, "checksum": 0}',
        '{"version": 1, "kind": "test", "scalars": {"checksum": "00000000"}, "checksum": null}',
    ],
)
def test_safetensors_of_another_make_are_refused(path, header):
    save_file({"w": np.ones(2)}, path, metadata=None if header is None else {"allotment": header})
    with pytest.raises(StateError, match="cannot read"):
        load_state(path, kind="test")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_named(path, version, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(allotment.state, "FORMAT_VERSION", version)
        save_state(path, STATE, kind="test")
    with pytest.raises(StateVersionError, match=f"{version}"):
        load_state(path, kind="test")


def test_a_later_version_may_look_different_inside(path):
    save_file({}, path, metadata={"allotment": '{"version": 2, "kind": "test", "tree": []}'})
    with pytest.raises(StateVersionError):
        load_state(path, kind="test")


def test_another_kind_is_named(path):
    save_state(path, STATE, kind="planner")
    with pytest.raises(StateError, match=r"got: +planner\n.*allowed: lab"):
        load_state(path, kind="lab")


class Crash(BaseException):
    """Stands for a signal in the middle of writing."""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Crash()], ids=["disk full", "signal"])
@pytest.mark.parametrize("place", ["packing.write", "os.fsync", "os.replace"])
def test_a_crash_while_saving_leaves_the_old_file_and_nothing_else(path, place, error, monkeypatch):
    save_state(path, STATE, kind="test")
    before = path.read_bytes()

    def crash(*args, **kwargs):
        if place == "packing.write":
            args[0].write(b"half a fi")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"allotment.{place if place == 'packing.write' else f'disk.{place}'}", crash)
        with pytest.raises(StateError if isinstance(error, OSError) else Crash) as caught:
            save_state(path, {"new": 1}, kind="test")
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert_same(through_the_disk(path, {"new": 1}), {"new": 1})


def test_the_new_file_appears_whole_under_its_name(path, monkeypatch):
    """Everything is written and synced before the name changes hands."""
    save_state(path, {"old": 1}, kind="test")
    replace = os.replace

    def look(source, target):
        assert_same(load_state(target, kind="test"), {"old": 1})
        assert_same(load_state(source, kind="test"), STATE)
        assert source.parent == target.parent
        replace(source, target)

    monkeypatch.setattr("allotment.disk.os.replace", look)
    assert_same(through_the_disk(path, STATE), STATE)
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_named(path):
    with pytest.raises(StateError, match="cannot write") as caught:
        save_state(path / "deeper" / "state", STATE, kind="test")
    assert "folder" in str(caught.value)
    path.mkdir()
    with pytest.raises(StateError, match="cannot write"):
        save_state(path, STATE, kind="test")
    assert list(path.parent.iterdir()) == [path]


def test_paths_may_be_strings(path):
    save_state(str(path), STATE, kind="test")
    assert_same(load_state(str(path), kind="test"), STATE)


@settings(deadline=None)
@given(st.lists(st.integers() | st.text() | st.characters(categories=["Cs"])))
def test_json_in_arrays(values):
    data = encode_json(values)
    assert data.dtype == np.uint8
    assert decode_json(data) == values
    assert list(map(type, decode_json(data))) == list(map(type, values))


DEEP = b"[" * 100_000


@pytest.mark.parametrize("data", [DEEP, DEEP + b"]" * 100_000, b"\xff", b"1" * 10_000, b"[1, 2", b"{}", b"3"])
def test_what_is_no_json_in_an_array_is_refused(data):
    with pytest.raises(StateError, match="cannot be read"):
        decode_json(np.frombuffer(data, dtype=np.uint8))


def test_a_number_too_long_for_json_is_refused(path):
    with pytest.raises(StateError, match="cannot write"):
        save_state(path, {"a": 10**5000}, kind="test")
    assert list(path.parent.iterdir()) == []


def test_keys_that_are_missing_are_named(path):
    save_state(path, {"a": 1}, kind="test")
    assert load_state(path, kind="test", keys=("a",)) == {"a": 1}
    with pytest.raises(StateError, match=r"no 'b'"):
        load_state(path, kind="test", keys=("a", "b"))


def test_check_state():
    check_kind("a", "a")
    with pytest.raises(StateError, match=r"another kind(.|\n)*got: +b"):
        check_kind("b", "a")
    check_state({"kind": "a", "x": None, "more": 1}, "a", ["x"])
    with pytest.raises(StateError, match="'y', 'z'"):
        check_state({"kind": "a", "x": 1}, "a", ["x", "y", "z"])
    with pytest.raises(StateError, match="another kind"):
        check_state({"x": 1}, "a", ["x"])
    for nothing in (None, [("kind", "a")], "a"):
        with pytest.raises(StateError, match="not a dict"):
            check_state(nothing, "a", [])
