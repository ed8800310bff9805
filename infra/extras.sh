#!/bin/bash
# Installs each extra into an empty environment and does what it promises; prints seconds and bytes.
#
#   bash infra/extras.sh [PYTHON [EXTRA ...]]       an extra is: none jobs fleet report vision
#
# PIP holds further words for pip, such as an index of CPU builds. An environment is removed before the next is made.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
extras=${*:2}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/pip" install --quiet build twine
"$work/build/bin/python" -m build --wheel --outdir "$work/dist" . > "$work/build.log"
"$work/build/bin/twine" check --strict "$work"/dist/*
wheel=$(echo "$work"/dist/*.whl)
run="data=generated data.size=8 data.channels=1 data.classes=3 data.count=90 method=dm method.steps=2 method.compiled=false
  method.objective.batch_real=8 net=convnet_digits net.width=4 recipe.steps=4 recipe.seeds=2"

none() {   # an artifact of the golden files: loaded, decoded, saved
  python - "$OLDPWD/tests/golden/1/artifact" <<'END'
import json
import sys
from pathlib import Path

import rayd
from rayd.artifact import zoo
from rayd.artifact.png import png

artifact = rayd.load(next(path.parent for path in sorted(Path(sys.argv[1]).parent.rglob("card.json"))))
for i, image in enumerate(artifact.images("uint8")):
    Path(f"{i:05d}.png").write_bytes(png(image))
    break
rayd.export(artifact, "tensors", "tensors")
print(artifact)
for entry in json.loads((zoo.OURS / zoo.INDEX).read_text()):
    assert len(rayd.load(f"zoo:{entry['name']}").images())
try:
    rayd.run("smoke", out="run")
except rayd.Refused as refusal:
    assert "pip install 'rayd[jobs]'" in str(refusal), refusal
END
  rayd distill && return 1 || [ $? = 2 ]
}
jobs() { rayd pipeline $run "stages=[experts,distill,evaluate]" out=run; rayd evaluate verify=run/artifact; rayd export out=run; rayd new method mine; }
fleet() { rayd pipeline $run scale=laptop "stages=[experts,distill,evaluate]" out=run; }
report() { python -c "from rayd.report.draw import Figure; from rayd.report import report"; }
vision() { python -c "import rayd.data.sources.bundled as b, torchvision; print(torchvision.__version__)"; }

printf '%-8s %8s %8s %8s\n' extra seconds MB promise
for extra in ${extras:-none jobs fleet report vision}; do
  "$python" -m venv "$work/venv"
  began=$(date +%s)
  "$work/venv/bin/pip" install --quiet ${PIP:-} "$wheel$([ "$extra" = none ] || echo "[$extra]")"
  seconds=$(($(date +%s) - began))
  megabytes=$(du -sm "$work/venv" | cut -f1)
  mkdir "$work/cwd" && cd "$work/cwd"
  began=$(date +%s)
  (export PATH="$work/venv/bin:$PATH" RAYD_CACHE="$work/cwd/cache"; set -e; $extra) > "$work/$extra.log" 2>&1 ||
    { tail -20 "$work/$extra.log"; echo "$extra: what it promises failed" >&2; exit 1; }
  cd "$OLDPWD"
  printf '%-8s %8s %8s %7ss\n' "$extra" "$seconds" "$megabytes" "$(($(date +%s) - began))"
  rm -rf "$work/cwd" "$work/venv"
done
