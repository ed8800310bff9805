#!/bin/bash
# A search over rank and rate at one budget: trials share the experts, bad ones stop early, the best is distilled again.
#
#   bash examples/sweep.sh runs/sweep                   # Ray on this machine
#   bash examples/sweep.sh /shared/sweep scale=cluster  # in a job on a cluster
#
# What is done already is skipped: after any crash, type the same line again.
set -eu
out=$1
words="preset=demo budget.ipc=1 ${2:-scale=laptop} out=$out"

python -m jobs.experts $words
python -m jobs.search $words search.trials=6 search.steps=60 search.every=20 search.grace=20 search.winner=1 \
  'search.space={rank: [1, 2, 4], method.optimiser.lr: {low: 0.005, high: 0.1, log: true}}'
