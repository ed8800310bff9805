"""The child process of `isolated`: runs one case and writes one JSON line."""

import importlib
import json
import sys
from dataclasses import asdict

import torch

from rayd.machine import use_threads
from rayd.studies.bench import THREADS, Timing, resident

spec = json.loads(sys.argv[1])
module = importlib.import_module(f"rayd.studies.bench.{spec['module']}")
use_threads(THREADS)
before = resident()
result = getattr(module, spec["function"])(**spec["kwargs"])
result = {name: asdict(value) if isinstance(value, Timing) else value for name, value in result.items()}
result["peak"] = resident() - before
if torch.cuda.is_available():
    result["gpu_peak"] = torch.cuda.max_memory_allocated()
sys.stdout.write(json.dumps(result) + "\n")
