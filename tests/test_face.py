"""The public face: the names and signatures of `import rayd`, its examples, and what it needs to be installed."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rayd
from rayd.errors import EXTRAS, Refused

ROOT = Path(__file__).resolve().parents[1]
COMPOSED = "words='', *, out, data=None, methods=None, progress=None, **changes"
SCORED = "data=None, recipe=None, net=None, seeds=None, space='pixels', methods=None, gpus=0.0"
FACE = {
    "Artifact": None,
    "Failed": None,
    "Images": None,
    "Refused": None,
    "Work": None,
    "controls": f"images, labels=None, *, names=None, {SCORED}",
    "distill": COMPOSED,
    "evaluate": f"images, labels=None, *, {SCORED}",
    "experts": COMPOSED,
    "export": "artifact, to, format='parquet', view='png', methods=None",
    "load": "source, methods=None",
    "plan": "words='', *, out='runs/run', data=None, methods=None, probe=0.0, **changes",
    "run": COMPOSED,
    "verify": "artifact, data=None, methods=None, scores=True, gpus=0.0",
}
"""Frozen: a change of it is a change for everybody who imports rayd."""
IMAGES = {
    "from_dataset": "dataset, image='image', label='label', size=None, channels=None",
    "from_folder": "path, part='train', size=None, channels=None, **options",
    "from_tensors": "images, labels, classes=None, name='tensors'",
    "from_torch": "dataset, classes=None, size=None, channels=None",
}


def signature(function: Any) -> str:
    """Without annotations."""
    plain = inspect.signature(function)
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in plain.parameters.values()]
    return str(inspect.Signature(bare))[1:-1]


def test_the_face_is_this() -> None:
    assert sorted(rayd.__all__) == sorted(FACE)
    assert set(FACE) <= set(dir(rayd))
    for name, expected in FACE.items():
        assert callable(getattr(rayd, name)), name
        assert expected is None or signature(getattr(rayd, name)) == expected, name
    assert {name: signature(getattr(rayd.Images, name)) for name in IMAGES} == IMAGES


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'train'; it has Artifact, .*verify"):
        rayd.train  # noqa: B018


def test_rooms_can_be_called_and_keep_their_files() -> None:
    import rayd.run.rows
    from rayd.run.distill import distill

    assert rayd.run.rows.CONTROLS and callable(rayd.run) and callable(distill)
    assert inspect.signature(rayd.run).parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_import_is_light() -> None:
    code = "import sys, rayd\nprint(sorted({'torch', 'numpy', 'yaml', 'ray', 'hydra', 'tqdm'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


# ---- examples ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the artifact that the examples load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("face"))
        rayd.run("smoke", out="runs/smoke", method={"steps": 2}).result()
        yield Path.cwd()


EXAMPLES = [name for name, expected in FACE.items() if expected or name == "Work"] + [
    f"Images.{name}" for name in IMAGES
]


def function(name: str) -> Any:
    found: Any = rayd
    for part in name.split("."):
        found = getattr(found, part)
    return getattr(found, "__wrapped__", found)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_function_has_an_example_that_runs(name: str, folder: Path) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    tests = [
        test for test in doctest.DocTestFinder(recurse=False).find(function(name), name, globs={}) if test.examples
    ]
    assert tests, f"{name} has no example"
    report: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
    assert not report, "".join(report)


# ---- without Ray and Hydra -----------------------------------------------------------------------------------------

SCRIPT = """
import sys
for name in ("ray", "hydra", "omegaconf"):
    sys.modules[name] = None
import torch
from sklearn.datasets import load_digits
import rayd

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)
train = rayd.Images.from_tensors(images[:1437], digits.target[:1437], name="my digits")
test = rayd.Images.from_tensors(images[1437:], digits.target[1437:])
work = rayd.run(
    "demo method=nsd",
    out="runs/mine",
    data=(train, test),
    expert={"experts": 3, "epochs": 8},
    method={"steps": STEPS, "terms": [], "objective": {"last": 6}},
    progress=True,
)
for step in work:
    assert step.value == step.value
artifact = work.result()
table = rayd.controls(artifact, recipe={"steps": LENGTH, "name": "short"}, seeds=SEEDS)
print(artifact)
assert table.verdict in ("yes", "no", "undecided")
assert {"distilled", "random@raw", "herding@floats", "start", "full"} <= {row["set"] for row in table.rows}
assert all(finding.holds for finding in rayd.verify(artifact, scores=False))
"""


def test_thirty_lines_without_ray_or_hydra(tmp_path: Path) -> None:
    """On tensors of one's own; the command line goes on where Python stopped."""
    text = SCRIPT.replace("STEPS", "3").replace("LENGTH", "10").replace("SEEDS", "2")
    assert len([line for line in text.splitlines() if line.strip()]) <= 30
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "method        nsd + mtt" in done.stdout and "beats the coreset" in done.stdout
    assert "experts" in done.stderr and "distill" in done.stderr and "100%" in done.stderr, "two bars"
    again = rayd.run(
        "demo method=nsd", out=tmp_path / "runs/mine", data={"name": "prepared", "path": str(tmp_path / "runs/mine/data")},
        expert={"experts": 3, "epochs": 8}, method={"steps": 3, "terms": [], "objective": {"last": 6}},
    )  # fmt: skip
    assert list(again) == [] and again.result().card["reads"] == 1


# ---- pieces --------------------------------------------------------------------------------------------------------


def test_a_run_stops_goes_on_and_returns_in_a_generator(tmp_path: Path) -> None:
    words = {"out": tmp_path / "a", "method": {"steps": 3, "checkpoint": 1}}
    steps = iter(rayd.distill("smoke method=dm", **words))
    assert next(steps).number == 1
    steps.close()

    def wrapped() -> Any:
        return (yield from rayd.distill("smoke method=dm", **words))

    numbers, generator = [], wrapped()
    try:
        while True:
            numbers.append(next(generator).number)
    except StopIteration as end:
        assert isinstance(end.value, rayd.Artifact)
    assert numbers[-1] == 3


def test_what_a_notebook_shows_is_escaped(folder: Path) -> None:
    artifact = rayd.load(folder / "runs/smoke/artifact")
    artifact.card["data"]["name"] = "<script>alert(1)</script>"
    html = artifact._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert html.count('<img src="data:image/png;base64,') == 1 and "<table>" in html


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (torch.rand(4, 8, 8, 3), [0, 1, 0, 1], "permute"),
        (torch.rand(4, 3, 8, 9), [0, 1, 0, 1], "equal sides"),
        (torch.rand(4, 3, 8, 8) * 255, [0, 1, 0, 1], "floats from 0 to 1"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), [0, 1, 0, 1], "torch.uint8"),
        (torch.rand(4, 3, 8, 8), [0, 1, 0], "one for each of the 4"),
        (torch.rand(4, 3, 8, 8), [0, -1, 0, 1], "class numbers from 0"),
        (torch.rand(4, 3, 8, 8), [0, 0, 0, 0], "at least two names"),
        (torch.rand(4, 3, 8, 8), [0.5, 1, 0, 1], "class numbers from 0, or class names"),
    ],
)
def test_tensors_that_are_no_dataset_are_refused(images: torch.Tensor, labels: list[Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        rayd.Images.from_tensors(images, labels)


def test_images_of_ones_own_are_the_same_by_every_way(tmp_path: Path) -> None:
    """The content is that of the tensors, whoever handed them over."""
    datasets = pytest.importorskip("datasets")
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names, labels = ("cat", "dog"), [0, 1, 0, 1, 0, 1]
    pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(names)))
    table = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    pairs = list(zip(pictures, labels, strict=True))
    for i, (picture, label) in enumerate(pairs):
        (tmp_path / "train" / names[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / names[label]).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "train" / names[label] / f"{i}.png")
        picture.save(tmp_path / "test" / names[label] / f"{i}.png")
    whole = rayd.Images.from_tensors(pixels, labels, names)
    for other in (rayd.Images.from_dataset(table), rayd.Images.from_torch(pairs, names)):
        assert other.manifest["content"] == whole.manifest["content"] and other.classes == names
    folder = rayd.Images.from_folder(str(tmp_path))
    order = torch.tensor(labels).argsort(stable=True)
    assert torch.equal(folder.pixels_NCHW[torch.arange(6)], pixels[order]) and folder.classes == names


def test_a_mapping_changes_keys_and_leaves_the_rest_to_the_data(tmp_path: Path) -> None:
    """As words do: expert={"experts": 2} is expert.experts=2, and the other settings follow from the data."""
    from rayd.api.arguments import configured

    (tmp_path / "set").mkdir()
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir()
        for i in range(20):
            array = np.full((16, 16, 3), 40 * c + i, np.uint8)
            Image.fromarray(array).save(tmp_path / "set" / name / f"{i}.png")
    runs = [
        configured(words, tmp_path / "out", str(tmp_path / "set"), None, changes)
        for words, changes in (("", {"expert": {"experts": 2}}), ("expert.experts=2", {}))
    ]
    assert runs[0] == runs[1] and runs[0].expert.experts == 2 and runs[0].data.size == 16


def test_other_images_at_the_same_place_are_refused(tmp_path: Path) -> None:
    first, second = (rayd.Images.from_tensors(torch.full((20, 1, 8, 8), v), [0, 1] * 10) for v in (0.1, 0.2))
    rayd.plan("smoke method=dm", out=tmp_path, data=first)
    rayd.plan("smoke method=dm", out=tmp_path, data=first)
    with pytest.raises(Refused, match="prepare into another folder"):
        rayd.plan("smoke method=dm", out=tmp_path, data=second)


def test_a_set_of_any_origin_is_scored_beside_real_images() -> None:
    """Images that show their class are learned; labels may be probabilities."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    images = (torch.rand(200, 1, 8, 8, generator=rng) * 0.2 + labels[:, None, None, None] * 0.7).clamp(0, 1)
    real = rayd.Images.from_tensors(images, labels.tolist())
    how: dict[str, Any] = {
        "data": real,
        "recipe": {"steps": 20, "lr": 0.05},
        "net": {"width": 4, "depth": 1},
        "seeds": 2,
    }
    assert rayd.evaluate(images[:2], torch.eye(2), **how)["mean"] > 0.9
    assert rayd.evaluate(images[:2], torch.tensor([1, 0]), **how)["mean"] < 0.1
    table = rayd.controls(images[:2], torch.tensor([1, 0]), **how)
    assert table.verdict == "no" and table["full"]["mean"] > 0.9
    with pytest.raises(Refused, match=r"labels=0 to 2: allowed is class numbers from 0 to 1"):
        rayd.evaluate(images[:2], torch.tensor([0, 2]), **how)


@pytest.mark.parametrize(
    ("words", "changes", "says"),
    [
        ("smokey", {}, "did you mean smoke"),
        ("smoke", {"method": "nsdd"}, "did you mean nsd"),
        ("smoke", {"method": {"stepz": 3}}, "did you mean method.steps"),
        ("smoke method.steps", {}, "a preset first, then KEY=VALUE"),
        ("smoke", {"data": "nowhere/at/all"}, "a folder that is there, or"),
        ("smoke", {"data": 3}, r"Images, or \(train, test\)"),
        ("mtt/cifar10_ipc1", {"method": "nsd"}, "drop one of the two words"),
        ("smoke seed=[", {}, "quotes"),
    ],
)
def test_bad_arguments_are_answered(words: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=says):
        rayd.run(words, out=tmp_path, **changes)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_choices_are_joined_as_hydra_joins_them(every: int) -> None:
    """Every preset, every choice, and every method under a preset of a scale; and words with every kind of value."""
    from jobs.compose import compose as by_hydra
    from rayd.choices import GROUPS, changes_of, compose, options
    from rayd.run.settings import follow

    lines = [(f"{group}={name}", "out=/x") for group in GROUPS for name in options(group)]
    lines.remove(("data=folder", "out=/x"))  # settings follow from what lies there: the test of mappings has a folder
    lines += [("preset=cpu", f"method={name}", "out=/x") for name in options("method")]
    assert len(lines) > 150
    lines = [
        *lines[::every],
        ("preset=demo", "method={codec: {name: pixel}, objective: {name: mtt}}", "method.steps=7"),
        ("method.terms=[{name: guidance, weight: 0.01}]", "method.optimiser.lr=1e-7", "data.limit=null"),
        ("method.compiled=False", "recipe.name='a b'", "budget={floats: 10}"),
    ]
    for words in lines:
        assert compose(changes_of(words), follow=follow) == by_hydra("distill", words)[0], words


# ---- installed -----------------------------------------------------------------------------------------------------


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[]", one)[0] for one in requirements}


def test_the_extras_are_those_that_are_asked_for() -> None:
    """Alone it needs four packages; what a refusal names is in the extra that it names."""
    about = project()["project"]
    assert names(about["dependencies"]) == {"torch", "safetensors", "numpy", "pillow"}
    called = {"hydra": "hydra-core", "yaml": "pyyaml"}
    for extra, packages in EXTRAS.items():
        wanted = {called.get(name, name) for name in packages}
        assert wanted <= names(about["optional-dependencies"][extra]), extra
    assert {"jobs", "fleet", "report", "vision"} <= set(about["optional-dependencies"])


def test_the_wheel_holds_jobs_and_configs_below_rayd() -> None:
    wheel = project()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["rayd"]
    assert {"jobs": "rayd/jobs", "configs": "rayd/configs"}.items() <= wheel["force-include"].items()
    assert all((ROOT / source).is_dir() for source in wheel["force-include"])


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from jobs import distill, pipeline
    from jobs.compose import command

    monkeypatch.setattr("rayd.errors.find_spec", lambda name: None if name in ("yaml", "matplotlib") else name)
    with pytest.raises(Refused, match=r"rayd\.run: needs yaml, not installed; pip install 'rayd\[jobs\]'"):
        rayd.run("smoke", out=tmp_path)
    assert command("distill", "", distill.act, argv=["preset=smoke"]) == 2
    assert "pip install 'rayd[jobs]'" in capsys.readouterr().err
    monkeypatch.setattr("rayd.errors.find_spec", lambda name: None if name == "matplotlib" else name)
    assert command("pipeline", "", pipeline.act, pipeline.KEYS, argv=["preset=smoke", f"out={tmp_path}"]) == 2
    assert "pip install 'rayd[report]'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rayd", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )


def test_the_command_is_the_verb() -> None:
    """`rayd VERB` is `python -m jobs.VERB`."""
    import jobs

    others = {"__init__", "compose", "console", "help", "presets", "published", "zoo"}
    assert set(jobs.VERBS) == {path.stem for path in (ROOT / "jobs").glob("*.py")} - others
    assert "pipeline" in ran().stdout and ran("--version").stdout == f"rayd {rayd.__version__}\n"
    assert ran("distil").returncode == 2
    assert ran("distill", "--help").stdout.startswith("usage: python -m jobs.distill")
    wrong = ran("distill", "method.steps=none")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_a_wheel_runs_without_the_checkout(tmp_path: Path) -> None:
    """Built, unpacked, and run from elsewhere: help, a refusal and a distillation."""
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        assert {name.split("/")[0] for name in file.namelist()} == {"rayd", f"rayd-{rayd.__version__}.dist-info"}
        file.extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    line = (
        "distill method=dm method.steps=2 method.compiled=false data=generated data.size=8 data.classes=3 data.count=60"
    )
    line += " data.channels=1 net=convnet_digits net.width=4 out=run"
    for words, says in (("distill --help", "usage: rayd distill"), (line, "next: rayd evaluate")):
        command = [sys.executable, "-m", "rayd", *words.split()]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0 and says in done.stdout, done.stderr[-2000:]
