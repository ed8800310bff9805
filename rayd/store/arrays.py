"""Arrays out of files that others wrote: numbers only, and never more of them than the file holds."""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LONGEST = 4096
"""Bytes of a header."""
HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)\{'descr': '([<>|=]?[fiubU]\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}, ?)*\d{0,18})\), \} *\n",
    re.DOTALL,
)
"""As numpy writes it. Its own reader evaluates the header and makes room for what that says."""


def npy(data: bytes) -> Array:
    """The array in a .npy file; a ValueError where it is none."""
    dtype, fortran, shape, start = _header(data[:LONGEST], len(data))
    flat = np.frombuffer(data, dtype, offset=start).copy()
    return flat.reshape(shape, order="F" if fortran else "C")


def map_npy(path: Path) -> Array:
    """The same, mapped where it lies; what is written to it stays in memory."""
    with path.open("rb") as file:
        dtype, fortran, shape, start = _header(file.read(LONGEST), os.fstat(file.fileno()).st_size)
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "c", start, shape, "F" if fortran else "C")


def _header(data: bytes, size: int) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Type, order, shape and place of the numbers in a file that begins so and has this size."""
    found = HEADER.match(data)
    if found is None:
        raise ValueError("not an array of numbers as numpy writes it")
    try:
        dtype = np.dtype(found[1].decode())
    except TypeError as error:
        raise ValueError(str(error)) from error
    shape = tuple(int(side) for side in found[3].decode().split(",") if side.strip())
    if math.prod(shape) * dtype.itemsize != size - found.end() or not dtype.itemsize:
        raise ValueError(f"{size - found.end()} bytes are not {shape} numbers of {dtype}")
    return dtype, found[2] == b"True", shape, found.end()


def npz(data: bytes) -> dict[str, Array]:
    """The arrays in a .npz file, none of them compressed; a ValueError where it is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if any(one.compress_type != zipfile.ZIP_STORED or one.file_size > len(data) for one in members):
                raise ValueError("a compressed array, which rayd never writes")
            return {one.filename.removesuffix(".npy"): npy(archive.read(one)) for one in members}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from error
