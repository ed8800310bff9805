"""Arrays out of files that others wrote: numbers only, and never more of them than the file holds."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, Any]
LONGEST = 4096
"""Bytes of a header."""
SWELLS = 200
"""An array that takes more than so many times the bytes of its file is a bomb, not pictures."""
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


def npz_names(file: BinaryIO) -> list[str]:
    """The arrays of a .npz file; a ValueError where it is none."""
    with _archive(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def npz(file: BinaryIO, name: str) -> Array:
    """One array of a .npz file; a ValueError where there is none."""
    with _archive(file) as archive:
        try:
            member = archive.getinfo(f"{name}.npy")
        except KeyError as error:
            raise ValueError(f"holds no {name}") from error
        if member.file_size > SWELLS * max(member.compress_size, 1):
            raise ValueError(f"{name} swells to {member.file_size:,} bytes")
        return npy(archive.read(member))


@contextlib.contextmanager
def _archive(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("its index points before its beginning") from error
