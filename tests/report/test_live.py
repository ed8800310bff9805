"""The page and the lines of a run while it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.compose import ask, command
from rayd.artifact.png import png
from rayd.report.live import cost, curve, html, lines, look
from rayd.store import Store
from tests.support.loopback import s3_server

NOW = 1_800_000_000.0
BEAT = {"group": "distill", "note": "step 40/100  loss 0.5", "age": 7.0, "allowed": 600.0, "host": "node-1", "pid": 12}


def leave(store: Store, **work: Any) -> None:
    """What a distillation leaves half way."""
    steps = [{"step": number, "loss": 1 / number, "seconds": 0.5} for number in range(1, 41)]
    store.write("metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps).encode())
    events = [
        {"time": NOW - 60, "event": "start", "group": "distill", "host": "node-1", "pid": 12, "stage": "distill"},
        {"time": NOW - 50, "event": "warning", "group": "distill", "host": "node-1", "pid": 12, "stage": "distill",
         "text": "step 7 skipped: <script>alert(1)</script>\x1b[31m"},
        *({"time": NOW - 9, "event": "start", "group": f"block {i}", "stage": "block"} for i in range(30)),
    ]  # fmt: skip
    store.write("events.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode())
    store.write("preview.png", png(torch.zeros(1, 2, 2)))
    store.write_json("checkpoints/identity.json", {"config": {"method": {"steps": 100}}, "experts": []})
    plain = {"time": NOW - 5, "stage": "distill", "seconds": {"experts": 3600.0, "distill": 1800.0}, "beats": [BEAT]}
    store.write_json("work.json", {**plain, **work})


def test_the_page_of_a_run_that_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    leave(store)
    live = look(store, store.sub("experts"), NOW)
    states = {stage.name: (stage.state, stage.detail) for stage in live.stages}
    assert states["distill"][0] == "at work" and states["distill"][1].startswith("step 40/100, loss 0.025")
    assert states["experts"] == states["evaluate"] == ("not yet", "")
    assert [beat.age for beat in live.beats] == [12.0], "seven seconds when it was written, five ago"
    assert cost(live, 2.0) == "1.50 process hours = 3.00 at 2 an hour (distill 30 min 00 s, experts 1 h 00 min)"
    assert live.counts == {"start": 31, "warning": 1} and len(live.starts) == 4
    text = html(live, 2.0, 5)
    for part in (
        'http-equiv="refresh" content="5"',
        "data:image/png;base64",
        "<polyline",
        "step 40/100",
        "= 3.00 at 2",
    ):
        assert part in text, part
    assert "<script>" not in text and "&lt;script&gt;" in text
    terminal = "\n".join(lines(live))
    assert "\x1b" not in terminal and "step 7 skipped" in terminal and "   12 s  distill" in terminal


def test_a_driver_that_is_gone_is_told_from_one_at_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    leave(store, time=NOW - 300)
    live = look(store, store.sub("experts"), NOW)
    assert "has written nothing for 5 min 00 s" in "\n".join(lines(live)) and "5 min 00 s" in html(live, 0, 5)
    assert {stage.name: stage.state for stage in live.stages}["distill"] == "begun"
    leave(store, time=NOW - 300, beats=[])
    live = look(store, store.sub("experts"), NOW)
    assert "has written nothing" not in "\n".join(lines(live)), "it has ended in order"


def test_an_empty_folder_is_refused_and_a_whole_run_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import jobs.watch

    def watch(*words: str) -> int:
        return command("watch", "", jobs.watch.act, jobs.watch.KEYS, argv=words)

    assert watch(f"out={tmp_path / 'nowhere'}") == 2 and "nothing is there yet" in capsys.readouterr().err
    leave(Store(tmp_path / "run"))
    assert watch(f"out={tmp_path / 'run'}", "looks=1", f"to={tmp_path / 'page'}") == 0
    assert (tmp_path / "page" / "watch.html").exists() and not (tmp_path / "run" / "watch.html").exists()
    assert "distill" in capsys.readouterr().out
    assert ask("watch", ("out=runs/x", "to=page"), jobs.watch.KEYS).own.to == str(Path("page").resolve())


def test_a_run_in_a_bucket() -> None:
    with s3_server() as uri:
        store = Store(uri)
        leave(store)
        live = look(store, store.sub("experts"), NOW)
        store.write("watch.html", html(live, 0, 5).encode())
        assert "?" not in live.out and len(live.steps) == 40 and b"step 40/100" in store.read("watch.html")


def test_the_curve_of_few_and_of_many_steps() -> None:
    assert curve([2.0], 1).count("<polyline") == 1
    many = curve([float(i % 7) for i in range(10_000)], 10_000)
    assert many.count(",") < 400 and "mean of 34 steps" in many and "step 10000" in many
