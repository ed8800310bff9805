"""The child process of a probe: measures one stage of a run and writes one JSON line."""

import json
import sys

from rayd.studies.plan.probe import run_stage

sys.stdout.write(json.dumps(run_stage(json.load(sys.stdin))) + "\n")
