"""State on disk: one safetensors file with a JSON header, versioned, with a checksum, written atomically, no pickle.

A state is a nested dict with string keys. Leaves are numpy arrays (stored as tensors) or JSON scalars (stored in the
header). Floats survive bit for bit: arrays as they are, scalars through Python's shortest exact ``repr``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from allotment import packing
from allotment.disk import regular, replaced
from allotment.errors import AllotmentError, StateError, StateVersionError

log = logging.getLogger("allotment")
State = dict[str, Any]
Result = TypeVar("Result")


class Stateful(Protocol):
    """Can be saved and restored."""

    def state_dict(self) -> State:
        """Everything needed to go on bit for bit."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Take over everything :meth:`state_dict` gave, settings included; all or nothing.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        ...


class StateGroup:
    """Several parts saved and restored as one: all or nothing. A part that is None is left out."""

    KIND = "Together"

    def __init__(self, parts: Mapping[str, Stateful | None]) -> None:
        self._parts = {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> State:
        """Everything of all parts, each under its name."""
        return {"kind": self.KIND, **{name: part.state_dict() for name, part in self._parts.items()}}

    def load_state_dict(self, state: State) -> None:
        """Where a part refuses, those before it get back what they had."""
        check_state(state, self.KIND, self._parts)
        before = {name: part.state_dict() for name, part in self._parts.items()}
        loaded = []
        try:
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
                loaded.append(name)
        except StateError:
            for name in loaded:
                self._parts[name].load_state_dict(before[name])
            raise


FORMAT_VERSION = 1
_SEPARATOR = "/"
_PARTS = {"version", "kind", "scalars"}
_UNREADABLE = (OSError, KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError, MemoryError,
               RecursionError)  # fmt: skip


def encode_json(value: list[Any] | dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A list or dict as UTF-8 JSON bytes in an array, for long ones such as prompt ids; [bytes]."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def decode_json(data: np.ndarray[Any, np.dtype[np.uint8]], kind: type = list) -> Any:
    """Inverse of :func:`encode_json`, of a list or a dict. Raises :class:`StateError` where the bytes are none."""
    try:
        found = json.loads(np.asarray(data, dtype=np.uint8).tobytes().decode())
        if type(found) is not kind:
            raise TypeError(f"a {type(found).__name__}")
        return found
    except _UNREADABLE as error:
        raise StateError(
            "a list in a state cannot be read",
            got=f"{type(error).__name__}: {error}",
            allowed=f"JSON in UTF-8 as an array of bytes, a {kind.__name__}",
            fix="load a whole state_dict(), or start anew",
        ) from error


def save_state(path: str | Path, state: State, *, kind: str) -> None:
    """Write ``state`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: file to write; its folder must exist.
        state: nested dict of arrays and JSON scalars; keys must not contain ``/``.
        kind: what the state is of, checked on loading (``"VIP"``, ``"lab-checkpoint"``).

    Raises:
        StateError: a key or a leaf cannot be stored, or the file cannot be written.
    """
    path = Path(path)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    scalars: dict[str, Any] = {}
    _flatten(state, "", tensors, scalars)
    header = {"version": FORMAT_VERSION, "kind": kind, "scalars": scalars}
    try:
        with replaced(path) as file:
            packing.write(file, tensors, header)
    except (OSError, ValueError) as error:
        raise StateError(
            f"cannot write the state file {path}",
            got=f"{type(error).__name__}: {error}",
            allowed="a file in an existing folder with room and write permission",
            fix="make the folder first; what was at this path before is still there",
        ) from error


def load_state(path: str | Path, *, kind: str, keys: Iterable[str] = ()) -> State:
    """Read what :func:`save_state` wrote; a file of before there were checksums is warned of.

    ``keys``: what the state must have.

    Raises:
        StateError: the file is missing, damaged, not a state file, of another kind, or lacks one of ``keys``.
        StateVersionError: the file has another format version.
    """
    path = Path(path)
    try:
        version, saved_kind, state, has_checksum = _read(path)
    except _UNREADABLE as error:
        raise StateError(
            f"cannot read the state file {path}",
            got=f"{type(error).__name__}: {error}",
            allowed=f"a complete state file of kind {kind!r}",
            fix="check the path, or use an older checkpoint: save_state leaves whole files only",
        ) from error
    if version != FORMAT_VERSION:
        raise StateVersionError(
            f"the state file {path} has another format version",
            got=version,
            allowed=FORMAT_VERSION,
            fix="load it with the version of allotment that wrote it",
        )
    check_kind(saved_kind, kind, f"the state file {path}")
    _check_keys(state, keys, f"the state file {path}")
    if not has_checksum:
        log.warning("%s was saved before there were checksums: damage to it would not be seen", path)
    return state


def check_kind(got: object, expected: str, what: str = "the state") -> None:
    """Raise :class:`StateError` unless ``got == expected``."""
    if got != expected:
        raise StateError(
            f"{what} is of another kind", got=got, allowed=expected, fix="load it into the object it came from"
        )


def check_state(state: object, kind: str, keys: Iterable[str]) -> None:
    """Raise :class:`StateError` unless ``state`` is a dict of this ``kind`` (its key ``"kind"``) with all ``keys``."""
    if not isinstance(state, Mapping):
        raise StateError("a state is not a dict", got=type(state).__name__, allowed="a dict", fix="pass state_dict()")
    check_kind(state.get("kind"), kind)
    _check_keys(state, keys, f"a {kind} state")


def _check_keys(state: Mapping[str, Any], keys: Iterable[str], what: str) -> None:
    missing = [key for key in keys if key not in state]
    if missing:
        raise StateError(
            f"{what} lacks keys",
            got=f"no {', '.join(map(repr, missing))}",
            allowed="every key that state_dict() gave",
            fix="save the whole state_dict(), or start anew",
        )


def _read(path: Path) -> tuple[object, object, State, bool]:
    """Version, kind and state of a file, and whether it has a checksum; an empty state if the version is another."""
    with regular(path) as file:
        header, tensors, has_checksum = packing.read(file)
    version, kind = header["version"], header["kind"]
    state: State = {}
    if version == FORMAT_VERSION:
        scalars = header["scalars"]
        if header.keys() != _PARTS or not tensors.keys().isdisjoint(scalars):
            raise ValueError(f"entries {sorted(header)}, or one name twice")
        for name, value in {**scalars, **tensors}.items():
            if isinstance(value, list | dict):
                raise ValueError(f"{name!r} is neither a tensor nor a single value")
            *folders, leaf = name.split(_SEPARATOR)
            node = state
            for folder in folders:
                node = node.setdefault(folder, {})
            if leaf:  # an empty leaf only marks an empty dict
                node[leaf] = value
    return version, kind, state, has_checksum


def _flatten(state: Mapping[str, Any], prefix: str, tensors: dict[str, Any], scalars: dict[str, Any]) -> None:
    if not state:
        scalars[prefix] = None
    for key, value in state.items():
        is_text = isinstance(key, str) and key.isprintable()
        if not is_text or _SEPARATOR in key or key in ("", packing.METADATA):
            raise StateError(
                "bad key in a state",
                got=repr(key),
                allowed=f"a non-empty printable str without '/', other than {packing.METADATA!r}",
                fix="rename it",
            )
        name = prefix + key
        if isinstance(value, Mapping):
            _flatten(value, name + _SEPARATOR, tensors, scalars)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            tensors[name] = np.asarray(value, order="C")  # ascontiguousarray would make 0-d arrays 1-d
        elif value is None or isinstance(value, bool | int | float | str):
            scalars[name] = value
        else:
            raise StateError(
                f"{name!r} cannot be stored",
                got=f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__,
                allowed="numpy array of numbers or bools, int, float, bool, str, None or dict of these",
                fix="convert it first",
            )


def array_from_state(state: State, key: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """A copy of the array under ``key``. Raises :class:`StateError` unless it is finite and of this shape."""
    array = np.array(state[key])
    is_fit = array.shape == shape and array.dtype == np.float64 and np.isfinite(array).all()
    return _fitting(key, array, bool(is_fit), f"finite float64 {shape}")


def rows_from_state(state: State, key: str, limit: int) -> npt.NDArray[np.int64]:
    """A copy of the row numbers under ``key``. Raises :class:`StateError` unless they lie in ``[0, limit)``."""
    rows = np.array(state[key])
    is_fit = rows.ndim == 1 and rows.dtype == np.int64 and ((rows >= 0) & (rows < limit)).all()
    return _fitting(key, rows, bool(is_fit), f"1-d int64 in [0, {limit})")


def _fitting(key: str, array: npt.NDArray[Any], is_fit: bool, allowed: str) -> npt.NDArray[Any]:
    if not is_fit:
        raise StateError(
            f"{key!r} of a state does not fit",
            got=f"{array.dtype} {array.shape}",
            allowed=allowed,
            fix="load the state_dict() of one and the same predictor",
        )
    return array


def from_state(make: Callable[[], Result]) -> Result:
    """``make()``, with what it complains about turned into a :class:`StateError`."""
    try:
        return make()
    except (AllotmentError, TypeError, ValueError, ArithmeticError) as error:
        raise StateError(
            "a state holds values that cannot be used", got=error, allowed="a state_dict()", fix="start anew"
        ) from error
