"""The child process of `isolated`: runs one case and writes one JSON line."""

import importlib
import json
import sys

from rayd.studies.bench import resident

spec = json.loads(sys.argv[1])
module = importlib.import_module(f"rayd.studies.bench.{spec['module']}")
before = resident()
result = getattr(module, spec["function"])(**spec["kwargs"])
result["peak"] = resident() - before
sys.stdout.write(json.dumps(result) + "\n")
