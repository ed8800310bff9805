#!/bin/bash
# Class-incremental learning: digits in five tasks, memories of ten 8-bit images a class: real ones against distilled sets of as many bytes.
#
#   bash examples/continual.sh runs/continual
#
# The page is OUT/continual/index.html; the same line again goes on where it stood.
set -eu
out=$1

python -m jobs.continual data=digits net=convnet_digits recipe=quick continual.tasks=5 continual.orders=1 continual.bytes_per_class=640 out=$out
