"""Networks trained on the real images, and the sharded buffer that keeps their parameters at the end of each epoch.

config      how experts are trained, and the plan of their units
train       several experts at once, epoch by epoch
memory      what a unit takes, and the micro-batch that fits
trajectory  snapshots of parameters, and the segments between them
unfinished  the finished epochs of a unit whose shard is not written yet
shards      the files of the buffer, written whole
index       the manifest: a row for every snapshot
buffer      the buffer, written shard by shard, read by row
"""

from rayd.choices.verb import callable_room

callable_room(__name__)
