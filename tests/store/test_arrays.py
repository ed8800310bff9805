"""Arrays out of files that others wrote: what numpy writes comes back; what lies about its size does not."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from rayd.errors import Refused
from rayd.schema import fields, from_json
from rayd.store.arrays import map_npy, npy, npz, npz_names


def saved(array: np.ndarray, **header: object) -> bytes:
    """As numpy saves it, or with another header."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    if not header:
        return file.getvalue()
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    text = f"{said!r}".replace("}", ", }").encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="<f4").reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
        np.array("some facts"),
        np.zeros((0, 3)),
        np.arange(3, dtype=">i8"),
        np.array([True, False]),
    ],
)
def test_what_numpy_writes_comes_back(array: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(saved(array))
    for back in (npy(saved(array)), map_npy(tmp_path / "a.npy")):
        assert back.dtype == array.dtype and np.array_equal(back, array)


@pytest.mark.parametrize(
    "data",
    [
        saved(np.zeros(4, np.uint8), shape=(10**12,)),
        saved(np.zeros(4, np.uint8), shape=(2**31, 2**31)),
        saved(np.zeros(4, np.uint8), shape=(-1,)),
        saved(np.zeros(4, np.uint8), descr="|O"),
        saved(np.zeros(4, np.uint8), descr="<U0"),
        saved(np.array([{}, []], dtype=object)),
        saved(np.zeros(4, np.uint8))[:-1],
        b"\x93NUMPY\x01\x00\x76\x00__import__('os').system('true')",
        b"",
    ],
)
def test_what_lies_about_its_size_or_holds_objects_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError):
        npy(data)
    with pytest.raises(ValueError):
        map_npy(tmp_path / "a.npy")


def test_an_archive_of_arrays_does_not_swell() -> None:
    file, bomb = io.BytesIO(), io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, 1000, dtype=np.uint8)
    np.savez_compressed(file, noise=noise)
    assert npz_names(file) == ["noise"] and np.array_equal(npz(file, "noise"), noise)
    np.savez_compressed(bomb, zeros=np.zeros(10_000_000, np.uint8))
    with pytest.raises(ValueError, match="swells to 10,000,128 bytes"):
        npz(bomb, "zeros")
    with pytest.raises(ValueError, match="holds no other"):
        npz(file, "other")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "finite"),
        ('{"a": 1e999}', "finite"),
        (f'{{"a": {10**30}}}', "64 bits"),
        ("[" * 60 + "]" * 60, "deep"),
        ("[" * 100_000, "deep"),
        ('"\\ud800"', "surrogates"),
        ("{", "double quotes"),
    ],
)
def test_json_of_a_stranger_holds_what_can_be_written_again(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_json(text)


def test_fields_of_a_mapping_are_named_where_they_are_wrong() -> None:
    kinds = {"name": str, "size": int}
    assert fields({"name": "x", "size": 3, "more": None}, kinds)["more"] is None
    with pytest.raises(Refused, match=r"card\.size=\(missing\): allowed is a whole number"):
        fields({"name": "x"}, kinds, "card")
    with pytest.raises(Refused, match=r"card\.name=3: allowed is a text"):
        fields({"name": 3, "size": 3}, kinds, "card")
    with pytest.raises(Refused) as long:
        fields({"name": ["a" * 10_000], "size": 3}, kinds, "card")
    assert len(str(long.value)) < 1000
