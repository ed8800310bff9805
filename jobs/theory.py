"""The theory's experiment: how small a memory encodes an r-dimensional task in d inputs, held against r^2 d + L.

Gradient matching on multi-index models, swept over d, r and the student's width; leaves OUT/theory. Points that are done
are kept: the same command goes on.
"""

from __future__ import annotations

import sys

from jobs.compose import Asked, command

KEYS = "rayd.studies.theory.sweep:TheoryKeys"


def act(asked: Asked) -> int:
    from rayd.studies.theory.page import html, text
    from rayd.studies.theory.sweep import Points, sweep, verdict

    config = asked.own.theory
    points = Points(asked.run.out, config, asked.run.seed)
    total = len(config.points()) * config.seeds
    for point in sweep(config, asked.run.seed, points.rows):
        points.add(point)
        size = "none tried is enough" if point.pairs is None else f"{point.pairs} pairs, {point.floats} floats"
        print(
            f"rayd: {len(points.rows)}/{total} d={point.d} r={point.r} L={point.width} seed {point.seed}: {size}, "
            f"energy {point.energy:.3f}, angle {point.angle:.3f}, error {point.error:.4f} (all data {point.error_full:.4f})",
            file=sys.stderr,
            flush=True,
        )
    conclusion = verdict(config, points.rows)
    points.store.write_json("verdict.json", conclusion)
    points.store.write("index.html", html(conclusion).encode())
    print(text(conclusion))
    print(f"rayd: {points.store.where('index.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(command("theory", __doc__, act, KEYS))
