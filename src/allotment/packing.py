"""A safetensors file as a state needs it: read and written in one pass, with a checksum over every byte.

The safetensors library (https://github.com/huggingface/safetensors) reads the file too. The checksum is CRC-32: it sees
every change of one bit and every burst of up to 32, misses one in 2^32 others, and costs a quarter of BLAKE2b's time.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from io import BufferedReader, BufferedWriter
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Header = dict[str, Any]
METADATA = "__metadata__"
"""safetensors' own key beside the tensors."""
LARGEST_HEADER = 100_000_000
"""Bytes, as in safetensors."""
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "U64": "<u8",
    "I32": "<i4",
    "U32": "<u4",
    "I16": "<i2",
    "U16": "<u2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAME = "allotment"
_CHECKSUM = "checksum"
_BEFORE = f'\\"{_CHECKSUM}\\": \\"'.encode()
"""What stands before the digits in the file, where the header is JSON text inside of JSON."""
_DIGITS = 8


def write(file: BufferedWriter, tensors: dict[str, Array], header: Header) -> None:
    """Write tensors of numbers or bools and a JSON header. ValueError: the header has a number too long for JSON."""
    arrays = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in tensors.items()}
    inner = json.dumps({_CHECKSUM: "0" * _DIGITS, **header})
    outer: Header = {METADATA: {_NAME: inner}}
    ordered = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so each is aligned
    end = 0
    for name in ordered:
        array, start = arrays[name], end
        end += array.nbytes
        outer[name] = {"dtype": _CODES[array.dtype.str], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    file.write(head)
    checksum = zlib.crc32(head)
    for name in ordered:
        data = _bytes(arrays[name])
        file.write(data)
        checksum = zlib.crc32(data, checksum)
    file.seek(head.index(_BEFORE) + len(_BEFORE))
    file.write(f"{checksum:0{_DIGITS}x}".encode())


_CODES = {dtype: code for code, dtype in DTYPES.items()}


def read(file: BufferedReader) -> tuple[Header, dict[str, Array], bool]:
    """The header and the tensors of a file, and whether it has a checksum.

    Sizes are held against the file's before anything of that size is made.

    Raises:
        OSError: the file cannot be read.
        KeyError, TypeError, ValueError: it is damaged, or of another make.
        MemoryError, RecursionError: it is of another make, or too large.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(first := file.read(8), "little")
    if not 0 < length <= min(size - 8, LARGEST_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    text = file.read(length)
    outer = json.loads(text)
    header: Header = json.loads(outer.pop(METADATA)[_NAME])
    entries = sorted(outer.items(), key=lambda item: item[1]["data_offsets"])
    _check_sizes(entries, size - 8 - length)
    found, text = _without_checksum(header, text)
    checksum, tensors = zlib.crc32(first + text), {}
    for name, entry in entries:
        array = np.empty(entry["shape"], DTYPES[entry["dtype"]])
        data = _bytes(array)
        if file.readinto(data) != len(data):
            raise ValueError("the file ended while it was read")
        checksum = zlib.crc32(data, checksum)
        tensors[name] = array
    digits = f"{checksum:0{_DIGITS}x}"
    if found is not None and found != digits:
        raise ValueError(f"its checksum is {digits}, not {found}: some bytes are not as they were written")
    return header, tensors, found is not None


def _without_checksum(header: Header, text: bytes) -> tuple[str | None, bytes]:
    """The checksum taken out of the header, None where there is none; the text with zeros in its place."""
    if _CHECKSUM not in header:
        return None, text
    found, at = header.pop(_CHECKSUM), text.index(_BEFORE) + len(_BEFORE)
    if text[at : at + _DIGITS + 2] != f'{found}\\"'.encode():
        raise ValueError(f"checksum {found!r}")
    return str(found), text[:at] + b"0" * _DIGITS + text[at + _DIGITS :]


def _check_sizes(entries: list[tuple[str, Header]], size: int) -> None:
    """Raise ValueError unless the tensors lie one after another and fill the rest of the file."""
    place = 0
    for name, entry in entries:
        (start, end), shape = entry["data_offsets"], entry["shape"]
        if not all(type(n) is int and n >= 0 for n in (start, end, *shape)):
            raise ValueError(f"tensor {name!r} of shape {shape} from {start} to {end}")
        if start != place or end - start != math.prod(shape) * np.dtype(DTYPES[entry["dtype"]]).itemsize:
            raise ValueError(f"tensor {name!r} of {entry['dtype']} {shape} from {start} to {end}, the last to {place}")
        place = end
    if place != size:
        raise ValueError(f"tensors of {place} bytes in all, and {size} bytes after the header")
    if size > (memory := _memory()):
        raise ValueError(f"tensors of {size} bytes, and this machine's memory has {memory}")


def _memory() -> int:
    """Bytes of memory of this machine; a very large number where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 62


def _bytes(array: Array) -> memoryview:
    """The bytes of an array in C order, of any shape; a view."""
    return array.reshape(-1).view(np.uint8).data
