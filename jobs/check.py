"""Read every image of a dataset and say what is wrong before anything runs; propose the settings of a run on it.

Unreadable files, classes with hardly an image, imbalance, sizes, and images that are there twice, by the hash of their
pixels. OUT/check.json has all of it. Exit code 2 where a run would be refused.
"""

from __future__ import annotations

import sys

from jobs.compose import Asked, command


def act(asked: Asked) -> int:
    from rayd.data.remarks import remarks
    from rayd.data.survey import full_survey
    from rayd.store import Store

    survey = full_survey(asked.run.data)
    print(f"{survey.where}: {survey.layout}")
    for part, one in survey.parts.items():
        each = (
            f"{min(one.counts):,}"
            if min(one.counts) == max(one.counts)
            else f"{min(one.counts):,} to {max(one.counts):,}"
        )
        print(f"{part:<9}{one.listed:,} images of {len(one.counts)} classes, {each} each")
    found = remarks(survey, asked.run.data)
    print("\n".join(map(str, found)) or "nothing is wrong")
    refused = any(remark.state == "refused" for remark in found)
    for setting in () if refused else asked.settings:
        print(f"{'setting':<9}{setting.word}   ({setting.why})")
    Store(asked.run.out).write_json(
        "check.json",
        {
            "where": survey.where,
            "classes": list(survey.classes),
            "counts": {part: list(one.counts) for part, one in survey.parts.items()},
            "bad": {part: [list(pair) for pair in one.bad] for part, one in survey.parts.items()},
            "duplicates": [[duplicate.first, duplicate.again] for duplicate in survey.duplicates],
            "remarks": [[remark.state, remark.what, remark.do] for remark in found],
            "settings": [setting.word for setting in asked.settings],
        },
    )
    if refused:
        return 2
    print(f"next: {asked.line('plan')}")
    return 0


if __name__ == "__main__":
    sys.exit(command("check", __doc__, act))
