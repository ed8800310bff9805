"""The page of a run: its sections, its tables, and that no text of a run becomes an element."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import rayd
from rayd.distill.budget import to_bytes
from rayd.errors import Refused
from rayd.evaluate.score import Score
from rayd.report import draw, gather, page, report, storage
from rayd.report.pieces import picture
from rayd.report.shell import table, tag
from rayd.run import evaluate
from rayd.run.distill import distill
from rayd.run.rows import CONTROLS, row_tasks
from rayd.store import Store
from tests.support.runs import an_artifact, small_run

pytest.importorskip("matplotlib")
SECTIONS = [
    "images", "scores", "cross", "factors", "distillation", "experts", "ledger", "storage", "time", "plan",
    "provenance",
]  # fmt: skip
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


class Page(HTMLParser):
    """Ids, texts and everything that could lead outside."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.elements = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag == "section":
            self.ids.append(dict(attrs)["id"])
        self.links += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "srcset") and value
        ]


@pytest.fixture
def run_folder(tmp_path):
    """A run with everything a report can show."""
    nets = [{"name": "convnet", "width": 8, "depth": 1}, {"name": "convnet", "width": 4, "depth": 1}]
    method = {"codec": {"name": "lss"}, "objective": {"name": "mtt", "first": 0, "last": 3, "expert_epochs": 2}}
    run = small_run(method=method, recipe={"nets": nets}, budget={"ipc": 3})
    out = Store(tmp_path / "out")
    folder = an_artifact(tmp_path / "out" / "artifact", run)

    def run_tasks(run, stage, work, parts, uri):
        for number, part in enumerate(parts):
            i, k = divmod(number, run.recipe.seeds)
            yield part, [Score(0.3 + 0.01 * k + 0.02 * i, part.seeds[0], "convnet")]

    evaluate.score(run, str(folder), CONTROLS, run_tasks)
    steps = [{"step": i, "loss": 1 / i, "step_size": 0.02, "grad_norm": 3.0, "val": i / 99} for i in range(1, 99)]
    out.write("metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps).encode())
    shard = {"dtype": "<f4", "row_bytes": 4, "offset": 0, "sha256": ["0" * 64] * 4, "epochs": [0, 1, 2, 3]}
    rows = [{**shard, "key": f"{k}", "expert": k, "val_accuracy": [0.1, 0.3, 0.4, 0.4 + k / 100]} for k in range(2)]
    out.write_json("experts/experts-00000.json", {"experts": rows, "bytes": 16, "sha256": "", "fingerprint": {}})
    return tmp_path / "out"


def test_every_section_is_there_and_nothing_leads_outside(run_folder):
    figures = ("12.3 ± 0.4 (a paper, table 1; soft labels)",)
    where = report(str(run_folder), published=figures)
    text = (run_folder / "report" / "index.html").read_text()
    seen = Page(text)
    assert seen.ids == SECTIONS and where.endswith("index.html")
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in seen.links), seen.links
    assert not re.search(r"https?://|@import|<script|url\((?!#)", text)
    assert "Beats the coreset" in text
    assert text.count("<svg") >= 7 and text.count('class="empty"') == 1, "only the plan is missing"
    assert "python -m jobs.plan" in text and "LRS" in text and "ARS" in text
    assert "published: 12.3 ± 0.4 (a paper, table 1; soft labels)" in text
    report(str(run_folder), to=str(run_folder / "again"), published=figures)
    assert (run_folder / "again" / "index.html").read_text() == text, "the same run gives the same page"


def test_tables_as_csv_and_latex(run_folder):
    report(str(run_folder))
    folder = run_folder / "report" / "tables"
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert {row["set"] for row in rows} >= {"distilled", "random@floats", "full"} and rows[0]["n"] == "3"
    cross = list(csv.reader((folder / "cross.csv").open()))
    assert cross[0] == ["network", "distilled", "random@floats"] and len(cross) == 3
    latex = (folder / "ledger.tex").read_text()
    assert latex.startswith(r"\begin{tabular}") and "step\\_size" in latex


def test_an_artifact_alone_says_which_commands_fill_the_rest(tmp_path):
    folder = an_artifact(tmp_path / "a", small_run())
    report(str(folder), to=str(tmp_path / "r"))
    text = (tmp_path / "r" / "index.html").read_text()
    assert Page(text).ids == SECTIONS and "not scored yet" in text
    for verb in ("evaluate", "distill", "experts", "plan"):
        assert f"python -m jobs.{verb}" in text
    with pytest.raises(Refused, match="holds no artifact; run jobs"):
        report(str(tmp_path / "nowhere"))


HOSTILE = "\"><script>alert(1)</script><i x='$\\&"


def spoiled(value):
    """The same with markup behind every text."""
    if isinstance(value, dict):
        return {key: spoiled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [spoiled(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_markup_in_a_text_stays_text(run_folder):
    """Class names, the verdict, names of sets, networks and recipes, reasons, stages and the card's own words."""
    facts = gather(Store(run_folder))
    elements = set(Page(page.html(facts)).elements)
    scores = spoiled({**facts.table, "skipped": {HOSTILE: "no room"}})
    for row, plain in zip(scores["rows"], facts.table["rows"], strict=True):
        row["set"] = plain["set"] + (HOSTILE if plain["set"] not in ("distilled", "full") else "")
    card = facts.artifact.card
    words = {"sentence": HOSTILE, "fingerprint": HOSTILE, "reads": HOSTILE, "claim": {"select": HOSTILE}}
    card = {**card, **words, "data": spoiled(card["data"]), "classes": spoiled(card["classes"])}
    planned = [(HOSTILE, 1.0, 2.0)]
    hostile = replace(facts, artifact=replace(facts.artifact, card=card), table=scores, plan=planned, published=(HOSTILE,),
                      timing={**facts.timing, f"{HOSTILE}_s": 5.0})  # fmt: skip
    text = page.html(hostile)
    seen = Page(text).elements
    assert "script" not in seen and set(seen) == elements
    assert text.count("&lt;script&gt;") > 40


STORED = {
    "fp32": {"name": "lss"}, "int4": {"name": "lss", "storage": "int4"}, "int8": {"name": "haba", "storage": "int8"},
    "jpeg": {"name": "jpeg"},
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_the_bytes_by_purpose_sum_to_the_file(tmp_path, name):
    budget = {"bytes": 6000} if name == "jpeg" else {"ipc": 6}
    folder = tmp_path / "a"
    run = small_run(method={"codec": STORED[name]}, budget=budget)
    artifact = distilled(run, tmp_path) if name == "jpeg" else rayd.load(an_artifact(folder, run))
    folder = tmp_path / "artifact" if name == "jpeg" else folder
    parts = storage.parts_of(artifact)
    assert sum(parts.values()) == (folder / "codec.safetensors").stat().st_size and min(parts.values()) > 0
    purposes = {"int4": {"scales", "layouts"}, "int8": {"scales"}, "jpeg": {"tables", "lengths", "images"}}
    assert {"header"} | purposes.get(name, set()) <= set(parts)
    assert ("scales" in parts) == name.startswith("int")


def distilled(run, out):
    list(distill(replace(run, out=str(out), method=replace(run.method, steps=2))))
    return rayd.load(out / "artifact")


def test_a_sample_before_rounding_stands_beside_the_stored_one(tmp_path):
    """Left by the distillation where storing rounds, and only there; an artifact alone says that it has none."""
    rounded = small_run(method={"codec": STORED["int4"], "through": 0}, budget={"ipc": 3})
    artifact = distilled(rounded, tmp_path / "int4")
    facts = gather(Store(tmp_path / "int4"))
    index, before = facts.unrounded["index"], facts.unrounded["pixels"]
    assert index.tolist() == [int(torch.where(artifact.labels == c)[0][0]) for c in range(3)]
    gap = (artifact.images(index=index) - before).abs().max()
    assert 0.001 < float(gap) < 0.5
    text = storage.rounding(facts)
    assert text.count("<img") == 3 and f"{255 * float(gap):.1f} at most" in text
    assert "not at hand" in storage.rounding(gather(Store(tmp_path / "int4" / "artifact")))
    plain = small_run(method={"codec": STORED["fp32"]}, budget={"ipc": 3})
    distilled(plain, tmp_path / "fp32")
    assert not (tmp_path / "fp32" / "unrounded.safetensors").exists()
    assert "as it was learned" in storage.rounding(gather(Store(tmp_path / "fp32")))
    other = {"index": torch.tensor([10**6]), "pixels": before[:1]}
    Store(tmp_path / "int4").write("unrounded.safetensors", to_bytes(other))
    with pytest.raises(Refused, match=r"unrounded.safetensors"):
        gather(Store(tmp_path / "int4"))


def test_other_sets_share_the_figure_if_they_were_scored_alike(run_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run_folder / "artifact", other)
    facts = gather(Store(run_folder))
    both = replace(facts, beside=storage.comparable(facts, [("other", gather(Store(other)))]))
    assert 'id="legend' in storage.size(both) and 'id="legend' not in storage.size(facts)
    report(str(run_folder), to=str(tmp_path / "page"), beside=(str(other),))
    with pytest.raises(Refused, match=r"beside=.*not scored.*same data, networks and recipe short"):
        alone = an_artifact(tmp_path / "unscored", small_run())
        report(str(run_folder), to=str(tmp_path / "page"), beside=(str(alone),))


def test_of_several_sets_each_kind_of_control_is_one_series():
    def point(label, size, group):
        return {"label": label, "bytes": size, "mean": 0.5 + size / 1e6, "ci95": 0.01, "group": group}

    points = [point("herding", size, "control") for size in (1000, 9000)]
    points += [point("nsd int4", 1000, "own"), point("jpeg", 9000, "own")]
    several, alone = draw.against_bytes(points, several=True), draw.against_bytes(points)
    assert several != alone and several.count('id="legend') == 1 and "legend" not in alone


def test_an_element_escapes_its_text_and_its_attributes():
    assert tag("p", "<b>", tag("b", 1), class_='"', title=None) == '<p class="&quot;">&lt;b&gt;<b>1</b></p>'
    assert "<script>" not in picture(torch.zeros(1, 2, 2), '"><script>')
    assert "&lt;b&gt;" in table(["<b>"], [["<b>"]])


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it_without_scrolling_sideways(run_folder, tmp_path, width):
    """500 px is the narrowest window headless Chromium opens."""
    report(str(run_folder))
    probe = (
        "<script>document.title = [document.documentElement.scrollWidth, innerWidth, document.images.length]</script>"
    )
    file = tmp_path / "probe.html"
    file.write_text((run_folder / "report" / "index.html").read_text() + probe)
    place = (f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400")
    words = [CHROMIUM, *FLAGS, *place, "--dump-dom", file.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\d+),(\d+),(\d+)</title>", done.stdout)
    assert title, done.stdout[:300]
    content, window, pictures = map(int, title.groups())
    assert content <= window and pictures > 3


def test_asks_cover_every_network(run_folder):
    artifact = rayd.load(run_folder / "artifact")
    run = small_run(recipe={"nets": [{"name": "convnet"}, {"name": "vit"}]})
    asks = row_tasks(run, artifact, CONTROLS)
    assert [str(ask.row) for ask in asks if ask.net == 1] == ["distilled", "random@floats"]


def test_the_job_shows_the_published_rows_of_what_the_preset_names(run_folder, monkeypatch):
    from jobs import published
    from jobs.compose import ask
    from jobs.report import reported

    data = json.loads((run_folder / "artifact" / "card.json").read_text())["data"]["name"]
    figures = [published.Row(m, data, 1.0, "12.3", "0.4", "a paper", "soft labels") for m in ("lss", "mtt")]
    monkeypatch.setattr(published, "table", lambda: figures)
    asked = ask("report", (f"out={run_folder}", "published={method: lss, ipc: 1}"))
    page = run_folder / "report" / "index.html"
    assert reported(asked) and page.read_text().count("published: 12.3 ± 0.4 (a paper; soft labels)") == 1
    assert not reported(asked), "nothing new to draw"
    assert reported(ask("report", (f"out={run_folder}",))) and "published:" not in page.read_text()
