"""The stages of a Run, one file a verb, and what they share.

experts: networks trained into the buffer (progress: how far they are)
distill: from data and experts to an artifact (assemble: its parts; recorder, checkpoints: what is kept of it)
evaluate: the score table of an artifact and its controls (rows: how each row is computed)
verify: the claim of an artifact, computed again
cost: time, memory and bytes, against the plan
"""
