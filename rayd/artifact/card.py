"""The card, sealed over the files, and the README made from it: the claim, how it was measured, and its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rayd.artifact.load import digest, self_hash

USE = """```python
import rayd

artifact = rayd.load("path/to/this/folder")      # checked, nothing executed
images = artifact.images()                       # [N, C, H, W], pixels 0 to 1, out-of-range values kept
labels = artifact.labels                         # class numbers; artifact.targets are label probabilities
```"""

LIMITS = """- The licence and terms of the source dataset bind this one too.
- Scores hold for the recipe and networks named; other networks usually do worse.
- Synthetic pixels may lie outside 0..1; an 8-bit rendering clips them and has its own score.
"""

MARKUP = {ord(sign): f"&#{ord(sign)};" for sign in "&<>|`[]\\"}


def escaped(value: Any) -> Any:
    """The same with every text in it on one line and without markup: a card may come from a stranger."""
    if isinstance(value, str):
        return " ".join(value.split()).translate(MARKUP)
    if isinstance(value, Mapping):
        return {escaped(key): escaped(inner) for key, inner in value.items()}
    return [escaped(inner) for inner in value] if isinstance(value, list | tuple) else value


def title(name: str) -> str:
    """A name as YAML takes it unquoted."""
    return re.sub(r"[^\w .+-]", "_", name)


def size_category(images: int) -> str:
    """As Hugging Face counts."""
    return (
        "n<1K"
        if images < 1000
        else "1K<n<10K"
        if images < 10_000
        else "10K<n<100K"
        if images < 100_000
        else "100K<n<1M"
    )


def percent(score: Mapping[str, Any]) -> str:
    """mean ± std (n), with the 95 % interval of the mean."""
    if score.get("n", 0) < 2:
        return f"{100 * score['mean']:.1f} % (n=1)"
    return f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f} % (n={score['n']}, 95 % ± {100 * score['ci95']:.1f})"


def sealed(card: dict[str, Any], contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """README and card, with the hash of every file."""
    page = readme(card, json.loads(contents["ledger.json"])).encode()
    listed = {name: digest(data) for name, data in sorted({**contents, "README.md": page}.items())}
    card = {**card, "files": listed}
    return {"README.md": page, "card.json": as_json({**card, "sha256": self_hash(card)})}


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def readme(card: Mapping[str, Any], ledger: Mapping[str, Any]) -> str:
    name, card = title(str(card["data"].get("name", "the source dataset"))), escaped(card)
    source = card["data"].get("name", "the source dataset")
    shape = "x".join(map(str, card["shape"]))
    parts = [
        "---\nlicense: other\ntask_categories:\n- image-classification\ntags:\n- dataset-distillation\n"
        f"pretty_name: {name} distilled, {card['images']} images\n"
        f"size_categories:\n- {size_category(card['images'])}\n---\n",
        f"# {source}, distilled\n",
        f"{card['images']} synthetic images ({shape}, {len(card['classes'])} classes) that train a network in place of "
        f"{source}: `{card['sentence'] or card['codec'].get('name')}`.\n",
        "![preview](preview.png)\n",
        "## Claim\n",
        _claim(card),
        "## Use\n",
        USE + "\n",
        "## Storage\n",
        _storage(card, ledger),
        "## Limits\n",
        LIMITS,
        "## Provenance\n",
        _provenance(card),
    ]
    return "\n".join(parts)


def _claim(card: Mapping[str, Any]) -> str:
    scores = card["scores"]
    if not scores:
        return "Not scored yet: `python -m jobs.evaluate out=RUN`.\n"
    lines = ["| set | view | recipe | network | test accuracy |", "|---|---|---|---|---|"]
    for name, row in sorted(scores.items()):
        cells = [row.get("set", name), *(row.get(key, "") for key in ("view", "recipe", "net")), percent(row)]
        lines.append(f"| {' | '.join(cells)} |")
    best = card["claim"].get("select") == "best_val"
    chosen = "the validation split" if best else "nothing: the last step"
    lines.append(f"\nTest set read {card['reads']} time(s); chosen on: {chosen}.")
    if card["claim"].get("verdict"):
        lines.append(f"Beats the coreset: **{card['claim']['verdict']}**.")
    if card["claim"].get("stopping"):
        lines.append(card["claim"]["stopping"])
    if card["claim"].get("chosen"):
        lines.append(card["claim"]["chosen"])
    return "\n".join(lines) + "\n"


def _storage(card: Mapping[str, Any], ledger: Mapping[str, Any]) -> str:
    total = card["ledger"]
    beside = total["beside_floats"]
    roles = ", ".join(f"{role} {count:,}" for role, count in escaped(ledger["by_role"]).items())
    return (
        f"{total['floats']:,} numbers ({total['ipc']:.2f} images per class in floats), {total['bytes']:,} bytes on disk. "
        f"By role: {roles}. Renderings as images are larger than what is stored.\n"
        + (f"Needed beside it: {beside:,} numbers (transform, teacher).\n" if beside else "")
    )


def _provenance(card: Mapping[str, Any]) -> str:
    rows = {
        "run fingerprint": card["fingerprint"],
        "data content": card["data"].get("content", ""),
        "seeds": card["seeds"],
        "torch": card["versions"].get("torch", ""),
    }
    return "\n".join(f"- {name}: `{value}`" for name, value in rows.items() if value) + "\n"
