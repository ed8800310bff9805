"""Finished sets: listed as they are, loaded from a folder or the web, refused where a byte differs or there is too much."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import rayd
from jobs.zoo import START, table
from rayd.artifact import zoo
from rayd.config import run_of_card
from rayd.errors import Failed, Refused
from rayd.schema import to_dict

NAME = "nsd-cifar10-ipc1-cpu"
NAMES = sorted(zoo.entries(str(zoo.OURS)))


@pytest.fixture
def base(tmp_path: Path, cache: Path) -> Path:
    return Path(shutil.copytree(zoo.OURS, tmp_path / "base"))


@pytest.fixture
def web(base: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(base)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("name", NAMES)
def test_the_index_is_what_lies_there(name: str) -> None:
    listed = zoo.entries(str(zoo.OURS))[name]
    assert zoo.entry_of(zoo.OURS / name, listed.command) == listed
    artifact = rayd.load(f"zoo:{name}")
    assert listed.stored == len(artifact.contents["codec.safetensors"]) and listed.score["n"] >= 3
    (row,) = [row for row in artifact.table["rows"] if row["set"] == "distilled" and row["net"] == listed.score["net"]]
    assert listed.score["mean"] == row["mean"], "under augmentation and learned labels, not `bare` or `hard`"
    images = artifact.images("network")  # pixels of a whitened set need its dataset
    assert images.shape == (len(artifact), *artifact.spec.shape) and bool(torch.isfinite(images).all())
    assert run_of_card(artifact.card["config"]).data.path is None, "no path of a machine"
    there = {path.name for path in (zoo.OURS / name).iterdir()}
    assert there == {"card.json", *artifact.card["files"]}
    assert table([listed]).splitlines()[3] in (zoo.OURS / "README.md").read_text().split(START)[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_makes_this_run(name: str) -> None:
    from jobs.compose import ask

    listed = zoo.entries(str(zoo.OURS))[name].command.split()
    words = [word for word in listed if "=" in word and not word.startswith(("out=", "controls="))]
    assert ask("pipeline", tuple(words)).run.fingerprint() == rayd.load(f"zoo:{name}").card["fingerprint"]


def test_every_folder_is_listed() -> None:
    assert sorted(path.name for path in zoo.OURS.iterdir() if path.is_dir()) == NAMES


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(Refused, match=rf"zoo=nsd-cifar10-ipc1-cp: allowed is .*{NAME}.*; did you mean {NAME}"):
        rayd.load("zoo:nsd-cifar10-ipc1-cp")


def test_from_the_web_once(web: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_ZOO", web)
    fetched = rayd.load(f"zoo:{NAME}")
    assert fetched.contents == rayd.load(str(zoo.OURS / NAME)).contents
    (base / NAME / "codec.safetensors").unlink()
    assert rayd.load(f"zoo:{NAME}").contents == fetched.contents, "out of the cache"
    monkeypatch.setenv("RAYD_ZOO", "http://127.0.0.1:9")
    with pytest.raises(Failed, match="set RAYD_ZOO"):
        rayd.load(f"zoo:{NAME}")


def listed(base: Path, **changes: object) -> None:
    entry = to_dict(zoo.entries(str(base))[NAME])
    (base / "index.json").write_text(json.dumps([entry | changes]))


@pytest.mark.parametrize("place", ["folder", "web"])
def test_a_changed_byte_is_refused(place: str, web: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_ZOO", web if place == "web" else str(base))
    for name in ("codec.safetensors", "card.json"):
        good = (base / NAME / name).read_bytes()
        (base / NAME / name).write_bytes(good[:-2] + b"x" + good[-1:])
        with pytest.raises(Refused, match="sha256 differs"):
            rayd.load(f"zoo:{NAME}")
        (base / NAME / name).write_bytes(good)
    rayd.load(f"zoo:{NAME}")


def test_more_than_was_listed_is_not_read(web: str, base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_ZOO", web)
    listed(base, bytes=100_000)
    with pytest.raises(Refused, match="as the index states"):
        rayd.load(f"zoo:{NAME}")
    assert not [path for path in cache.glob("zoo-*")], "nothing half done is left"
    listed(base, bytes=2**40)
    with pytest.raises(Refused, match="up to 1,073,741,824 bytes"):
        rayd.load(f"zoo:{NAME}")


@pytest.mark.parametrize("name", ["../outside", ".hidden", "a/b"])
def test_a_set_stays_in_its_folder(name: str, web: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_ZOO", web)
    listed(base, name=name)
    with pytest.raises(Refused, match="in a folder of its name"):
        rayd.load(f"zoo:{name}")


def test_another_set_under_a_name_of_ours_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_ZOO", str(base))
    known = zoo.entries(str(base))[NAME].sha256
    listed(base, sha256="0" * 64)
    with pytest.raises(Refused, match="another set of that name"):
        rayd.load(f"zoo:{NAME}")
    listed(base, name="mine", sha256=known)
    shutil.move(base / NAME, base / "mine")
    assert len(rayd.load("zoo:mine")) == 1760


@pytest.mark.parametrize(
    "index",
    ["{", "{}", "[1]", '[{"name": "x"}]', "[" * 5000, '[{"name": "x", "bytes": 1, "sha256": 2, "command": ""}]'],
)
def test_an_index_that_is_none_is_refused(index: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_ZOO", str(base))
    (base / "index.json").write_text(index)
    with pytest.raises(Refused, match=r"index\.json"):
        rayd.load("zoo:x")


def test_a_card_that_is_none_is_refused(web: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an index that lists it, hash and all."""
    monkeypatch.setenv("RAYD_ZOO", web)
    for card in ("{}", '{"files": {"../x": ""}}', "[]"):
        (base / "mine").mkdir(exist_ok=True)
        (base / "mine" / "card.json").write_text(card)
        listed(base, name="mine", sha256=hashlib.sha256(card.encode()).hexdigest())
        with pytest.raises(Refused, match=r"card\.json"):
            rayd.load("zoo:mine")
        shutil.copy(zoo.OURS / "index.json", base / "index.json")
