"""What a stranger may send: one file of a folder changed by what it is, and its checksums made right again, from a seed.

A JSON file changes in a field, its type or its size; a tensor file in its header, shapes, types and numbers; a tar, an
array or a table in its headers; and any file in its bytes. Texts become markup, paths and addresses.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayd.artifact.load import digest, self_hash
from rayd.distill.budget import from_bytes, to_bytes

MARK = "stranger"
"""In every text that must not become markup."""
TEXTS = (
    "", "x", "0", " ", "nan", "../../../etc/passwd", "/etc/passwd", "/proc/self/environ", "file:///etc/passwd",
    "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=r&patience=0", f"<script>{MARK}</script>",
    f'"><img src={MARK} onerror={MARK}>', f"'><svg/onload={MARK}>", f"--><b onclick={MARK}>", f"]({MARK}:x)",
    f"\n# {MARK}\n",
    f"]]></style><script>{MARK}</script>", "\u0000", "\ud800", "a" * 100_000, "distilled", "pixel", "fp32", "convnet",
    "random@floats/bare", "__import__('os').system('true')", "${oc.env:HOME}", "{0.__class__}", "%s%n", "digits", "cifar10",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 64, 255, 10_000, 2**31, 2**40, 2**63, 10**30, -(2**40), 0.5, -0.5, 1e-300, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip


def some_value(rng: random.Random) -> Any:
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 7:
        return rng.choice(NUMBERS)
    nested: Any = rng.choice((0, "x"))
    for _ in range(rng.choice((1, 3, 90, 400))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return rng.choice((None, True, False, [], {}, [[]], [0] * 10_000, {"": None}, nested))


# ---- JSON ----------------------------------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, below in inner for place in places(below, (*at, key)))]


def mutate_json(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A changed copy, and what was changed."""
    value = copy.deepcopy(value)
    for _ in range(50):
        *where, key = rng.choice(places(value)[1:] or [("",)])
        holder = value
        for step in where:
            holder = holder[step]
        if isinstance(holder, dict | list) and (key in holder if isinstance(holder, dict) else True):
            break
    else:
        return some_value(rng), "all of it"
    old, name = holder[key], ".".join(map(str, [*where, key]))
    what = rng.randrange(8)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS[:-4])] = holder.pop(key)
    elif what == 2 and isinstance(old, int | float):
        holder[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, str(old), float(old), [old]))
    elif what == 2 and isinstance(old, str):
        holder[key] = rng.choice((old + "x", old[:-1], old.upper(), old + f"<b>{MARK}", [old], old * 1000))
    elif what == 2 and isinstance(old, list):
        holder[key] = rng.choice(
            (old[:-1], old + old[-1:], old * 500, old[::-1], [old], [some_value(rng) for _ in old])
        )
    elif what == 2 and isinstance(old, dict):
        holder[key] = rng.choice((list(old.items()), list(old), {**old, "more": some_value(rng)}, {}))
    elif what == 3:
        *other, last = rng.choice(places(value)[1:])
        there = value
        for step in other:
            there = there[step]
        holder[key] = copy.deepcopy(there[last])
    else:
        holder[key] = some_value(rng)
    return value, f"{name}: {str(old)[:40]!r} -> {str(holder.get(key) if isinstance(holder, dict) else holder)[:60]!r}"


def json_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.05:
        return rng.choice(
            (b"", b"{", b"[" * 100_000, b"null", b"1" * 6000, b'{"a":1}' * 2, b"\xff\xfe", b'"' + b"x" * 10)
        ), "text"
    lines = data.splitlines() if data.count(b"\n{") > 1 else [data]
    at = rng.randrange(len(lines))
    value, told = mutate_json(json.loads(lines[at]), rng)
    lines[at] = json.dumps(value).encode()
    return b"\n".join(lines), told


# ---- binary files --------------------------------------------------------------------------------------------------


def any_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    out, at = bytearray(data), rng.randrange(max(len(data), 1))
    what = rng.randrange(6)
    if what == 0:
        return bytes(out[:at]), f"cut at {at}"
    if what == 1:
        return bytes(out) + bytes(rng.choice((1, 512, 10_000))), "longer"
    if what == 2:
        return bytes(out[:at] + out[at + rng.choice((1, 8, 512)) :]), f"less at {at}"
    for _ in range(rng.choice((1, 1, 4, 64))):
        if out:
            out[rng.randrange(len(out)) if what > 3 else min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
    return bytes(out), f"bits at {at}"


def safetensors_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    length = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.15:
        size = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", size) + data[8:], f"header of {size} bytes"
    if rng.random() < 0.5:
        header, told = mutate_json(json.loads(data[8 : 8 + length]), rng)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :], told
    tensors = from_bytes(data)
    name = rng.choice(list(tensors))
    old = tensors[name]
    flat = old.flatten()
    changed: Callable[[], torch.Tensor] = rng.choice((
        lambda: old.double(), lambda: old.to(torch.int64), lambda: old.bool(), lambda: old.half(), lambda: flat,
        lambda: old[None],
        lambda: flat[:0], lambda: flat[:1], lambda: flat.repeat(2), lambda: torch.full_like(old.float(), float("nan")),
        lambda: torch.full_like(old.float(), float("inf")), lambda: torch.full_like(old.float(), 1e38), lambda: -old.float(),
        lambda: torch.zeros(1000, 1000), lambda: torch.zeros(0, 3), lambda: torch.tensor(1.0),
    ))  # fmt: skip
    if rng.random() < 0.2:
        tensors[rng.choice(("other", f"{name}.scale", "../x", f"<b>{MARK}"))] = tensors.pop(name)
        return to_bytes(tensors), f"{name} renamed"
    tensors[name] = changed()
    return to_bytes(
        tensors
    ), f"{name}: {tuple(old.shape)} {old.dtype} -> {tuple(tensors[name].shape)} {tensors[name].dtype}"


def npy_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return any_bytes(data, rng)
    array = np.load(io.BytesIO(data), allow_pickle=False)
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    key = rng.choice(list(header))
    shapes: list[Any] = [
        (),
        (0,),
        (10**12,),
        (-1,),
        (2**31, 2**31),
        array.shape[::-1],
        (*array.shape, 1),
        array.size,
        "x",
        (1.5,),
    ]
    types = ["|O", "<f8", "|V0", "<U0", "|S1000000", ">f4", [("a", "<f4")], "<i1", "x", 3, None, "<m8", "|b1"]
    header[key] = rng.choice({"descr": types, "fortran_order": [True, None, 3, "x"], "shape": shapes}[key])
    text = (repr(header) if rng.random() < 0.9 else rng.choice(("{", "()", "__import__('os')", "{" * 9000))).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack(
        "<H", len(text) % 65536
    ) + text + array.tobytes(), f"{key}: {header[key]!s:.40}"


def tar_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A field of one header, its checksum right again; or a member's contents, by what they are."""
    headers, at = [], 0
    while at + 512 <= len(data) and data[at : at + 512].strip(b"\0"):
        headers.append(at)
        at += 512 + -(-int(data[at + 124 : at + 135].strip(b"\0 ") or b"0", 8) // 512) * 512
    at = rng.choice(headers)
    size = int(data[at + 124 : at + 135].strip(b"\0 ") or b"0", 8)
    out, name = bytearray(data), data[at : at + 100].strip(b"\0").decode(errors="replace")
    if rng.random() < 0.5 and size:
        inside, told = changed_file(name, data[at + 512 : at + 512 + size], rng)
        out[at + 124 : at + 136] = b"%011o\0" % len(inside)
        out[at + 512 : at + 512 + -(-size // 512) * 512] = inside + bytes(-len(inside) % 512)
        told = f"{name}: {told}"
    else:
        field, new = rng.choice((
            (124, b"%011o\0" % rng.choice((0, 1, size + 1, size * 10, 2**33 - 1))), (124, b"-0000000001\0"),
            (124, b"\x80" + bytes(2) + b"\x7f" + bytes(8)), (124, b"\xff" * 12),
            (156, rng.choice((b"x", b"g", b"L", b"K", b"S", b"5", b"1", b"2", b"9"))),
            (0, b"../../../etc/passwd\0"), (0, f"<b>{MARK}.png\0".encode()), (0, b"\0" * 100), (0, b"x" * 100),
            (100, b"zzzzzzz\0"),
            (257, b"gnutar\0"), (345, b"/" * 100),
        ))  # fmt: skip
        out[at + field : at + field + len(new)] = new
        told = f"{name}: byte {field} of its header is {new[:12]!r}"
    if rng.random() < 0.95:
        out[at + 148 : at + 156] = b" " * 8
        out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out), told


def parquet_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rng.random() < 0.4:
        if rng.random() < 0.5:
            return any_bytes(data, rng)
        tail, told = any_bytes(data[-400:], rng)  # the footer, where the types and places are
        return data[:-400] + tail, f"footer, {told}"
    table = pq.read_table(io.BytesIO(data))
    column = rng.choice(table.column_names)
    rows, place = table.num_rows, table.column_names.index(column)
    what = rng.randrange(7)
    if what == 0:
        table = table.drop_columns([column])
    elif what == 1:
        table = table.rename_columns([f"<b>{MARK}" if name == column else name for name in table.column_names])
    elif what == 2:
        table = table.slice(0, rng.choice((0, 1)))
    elif what == 3 and table.schema.metadata:
        key = rng.choice(list(table.schema.metadata))
        text, told = json_file(table.schema.metadata[key], rng)
        table = table.replace_schema_metadata({**table.schema.metadata, key: text})
    else:
        kind = rng.choice(
            (pa.null(), pa.int64(), pa.float64(), pa.string(), pa.binary(), pa.bool_(), pa.list_(pa.int64()))
        )
        good = {
            pa.int64(): (0, -1, 2**62, 7), pa.float64(): (0.0, 1e308, float("nan")), pa.string(): TEXTS[:12],
            pa.binary(): (b"", b"x" * 32, b"\xff"), pa.bool_(): (True, False), pa.list_(pa.int64()): ([], [1, 2]),
        }.get(kind, (None,))  # fmt: skip
        values = [rng.choice((*good, None)) if rng.random() < 0.9 else None for _ in range(rows)]
        table = table.set_column(place, column, pa.array(values, kind))
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue(), f"{column}, {what}"


def arrow_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Its bytes, most often of the head, where the types are."""
    head, told = any_bytes(data[:600], rng)
    return (head + data[600:], f"head, {told}") if rng.random() < 0.7 else any_bytes(data, rng)


def npz_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.4:
        return any_bytes(data, rng)
    out, told = io.BytesIO(), ""
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            inside = old.read(name)
            if name == chosen:
                inside, told = npy_file(inside, rng)
            new.writestr(name, inside)
    return out.getvalue(), f"{chosen}: {told}"


def png_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Other sides, and a bomb of zeros behind them; checksums right."""
    if rng.random() < 0.4:
        return any_bytes(data, rng)
    width, height = rng.choice(((0, 0), (1, 1), (2**31 - 1, 2**31 - 1), (30_000, 30_000), (10_000, 10), (8, 8)))
    head = struct.pack(">IIBBBBB", width, height, rng.choice((8, 1, 16)), rng.choice((0, 2, 3, 6)), 0, 0, 0)
    body = zlib.compress(bytes(rng.choice((10, 10_000_000))), 1)

    def chunk(kind: bytes, text: bytes) -> bytes:
        return struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))

    return data[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""), f"{width}x{height}"


BY_ENDING: dict[str, Callable[[bytes, random.Random], tuple[bytes, str]]] = {
    "json": json_file, "jsonl": json_file, "safetensors": safetensors_file, "npy": npy_file, "tar": tar_file,
    "parquet": parquet_file, "npz": npz_file, "arrow": arrow_file, "png": png_file,
}  # fmt: skip


def changed_file(name: str, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    by_kind = BY_ENDING.get(name.rpartition(".")[2], any_bytes)
    return any_bytes(data, rng) if rng.random() < 0.1 else by_kind(data, rng)


BROKEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the readers here raise at a file that is damaged already; a ValueError is Refused, JSON's and Unicode's too."""


# ---- folders -------------------------------------------------------------------------------------------------------


def mutate(folder: Path, seed: int) -> str:
    """Change one file, sometimes two; what was done."""
    rng, told = random.Random(seed), []
    for _ in range(rng.choice((1, 1, 1, 2))):
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        left = [name for name in names if not name.endswith("README.md")]
        if not left:
            break
        name = rng.choice(left)
        path = folder / name
        if rng.random() < 0.03:
            path.unlink()
            told.append(f"{name}: removed")
        else:
            data = path.read_bytes()
            try:
                data, what = changed_file(name, data, rng)
            except BROKEN:  # by the mutation before
                data, what = any_bytes(data, rng)
            path.write_bytes(data)
            told.append(f"{name}: {what}")
        if rng.random() < 0.9:
            _make_right(path)
    return "; ".join(told)


def _make_right(path: Path) -> None:
    """The checksums that name a file's contents, as a careful forger would have them."""
    card, marker = path.parent / "card.json", path.with_suffix(".json")
    for owner in {card, marker}:
        try:
            value = json.loads(owner.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(value, dict):
            continue
        if owner == card:
            files = value.get("files")
            if path != card and isinstance(files, dict) and path.exists():
                files[path.name] = digest(path.read_bytes())
            value.pop("sha256", None)
            try:
                value["sha256"] = self_hash(value)
            except RecursionError:
                continue
        elif path != owner and path.exists():
            value |= {"sha256": digest(path.read_bytes()), "bytes": path.stat().st_size}
        else:
            continue
        owner.write_text(json.dumps(value))
