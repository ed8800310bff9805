"""The script for a machine with one GPU: parts are kept whole or not at all, and the same command goes on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("measure", ROOT / "infra" / "gpu" / "measure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_part_that_fails_is_left_and_done_the_next_time(
    tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def part(name: str, error: BaseException | None = None) -> Callable[[Path, dict[str, Any]], Any]:
        def work(out: Path, size: dict[str, Any]) -> Any:
            asked.append(name)
            if error is not None:
                raise error
            return [{"name": name}]

        return work

    late = subprocess.TimeoutExpired("python", 600)
    monkeypatch.setattr(script, "PARTS", {"one": part("one"), "two": part("two", late), "three": part("three")})
    assert script.main([str(tmp_path), "cpu"]) == 1
    assert asked == ["one", "two", "three"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "three.json"]
    monkeypatch.setattr(script, "PARTS", {"one": part("one"), "two": part("two"), "three": part("three")})
    assert script.main([str(tmp_path), "cpu"]) == 0
    assert asked[3:] == ["two"]
    assert json.loads((tmp_path / "two.json").read_text())["rows"] == [{"name": "two"}]


def test_every_check_holds_on_a_cpu(tmp_path: Path, script: Any) -> None:
    rows = script.correctness(tmp_path, script.SIZES["cpu"])
    assert len(rows) == 5
    assert all(row["holds"] for row in rows), rows


def test_help_is_its_docstring(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 2
    assert "at most ten minutes" in capsys.readouterr().out
