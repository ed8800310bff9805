"""The stages of a Run, one file a verb, and what they share.

settings     size, network, window and budget that follow from the data
experts      networks trained into the buffer
progress     how far they are, in numbers and as a line
distill      from data and experts to an artifact, with resume
assemble     from a Run to the parts of its distillation; what does not fit is refused here
agreement    what the workers of one distillation tell each other beside gradients
recorder     metrics, checkpoints, validations, the artifact
checkpoints  the state of a distillation on disk
identity     what decides the bytes of an artifact beside its config
evaluate     the score table of an artifact and its controls
rows         how each row of the table is computed
compressed   the strongest control at equal bytes: compressed coresets
contender    the score of a set that no run made
scores       networks scored so far, so that an interrupted evaluation goes on
verify       the claim of an artifact, computed again
cost         time, memory and bytes, against the plan
"""

from rayd.choices.verb import callable_room

callable_room(__name__)
