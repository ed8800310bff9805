#!/bin/bash
# ImageNette at 128 px, CPU scale: the whole table of RESULTS.md as one job, two cores or more.
#
#   ray job submit --working-dir . -- bash examples/imagenette.sh /shared/nette
#
# Images are decoded once, the experts serve all five methods, and each method leaves its own folder with a page.
# What is done already is skipped: after any crash, submit the same line again.
set -eu
out=$1
words="preset=imagenette_cpu scale=cluster scale.gpus=0 scale.cpus=1 scale.threads=1 budget.ipc=1"

python -m jobs.prepare $words out=$out
words="$words data=prepared data.path=$out/data buffer=$out/experts"
python -m jobs.experts $words out=$out

one() {   # name, controls, words
  python -m jobs.distill  $words out=$out/$1 "${@:3}"
  python -m jobs.evaluate $words out=$out/$1 "${@:3}" "controls=$2"
  python -m jobs.report   $words out=$out/$1 "${@:3}"
}

{ one nsd [start] method=nsd; one haba [start] method=haba; one lodc [start] method=lodc; } &
half=$!
one lss [start] method=lss
one pixel true method=mtt method.steps=100 method.optimiser.lr=0.1 method.objective.batch=null method.objective.step_size=0.05 method.objective.lr_step=1e-4
wait $half
