"""The stages of a Run on Ray, one file a verb, and what they share. No other room imports Ray.

prepare         shards of a dataset, by a pool of actors
experts         units of experts, by actors
distill         one distillation, its items shared out among workers of Ray Train
distill_blocks  independent blocks, a task each
controller      beats of Ray Train's controller
doctor          what every node can do, and the workers between them
plan            the probe of a plan, where the work will run
search          trials under Ray Tune
tasks           independent units of a run as Ray tasks: blocks, scores
cluster         joining Ray; what cannot be placed is refused
policy          placement and lost work: pure functions
submit          a job's way to a cluster: upload, log, exit code
submission      the keys of jobs.submit, and the runtime environment
monitor         the actor that hears the beats of all work
watch           the watchdog: what has not moved is warned of, then ended
"""
