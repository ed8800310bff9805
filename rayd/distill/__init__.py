"""What every method stands on.

contract   Codec, Objective, Term: what a method and the engine ask of each other
loop       the steps of a distillation, resumable
items      the items that a worker takes, their data fetched ahead
guard      which steps are skipped, and when a run goes back or ends
unroll     the exact gradient through the inner steps
inputs     what a method may see: network, images, experts
budget     what is stored, counted: Budget, Ledger
storage    how numbers become bytes: types, scales, a coder
libjpeg    what JPEG files decode to, with a gradient
fit        a codec's options, fitted to a budget
codec      what codec families share: units, labels, a start
classwise  what DC, DM and NCFM share: one class at a time
"""

from rayd.choices.verb import callable_room

callable_room(__name__)
