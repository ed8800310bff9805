"""How a set of images is scored.

row: the name of a row of the score table
recipe: how a network is trained for a score
batches: images by index, and the batches a network sees of them
score: accuracies of fresh networks
coreset: real images chosen without learning any
table: a score table as text and HTML
verdict: what a score table says: the coresets beaten or not, and DD-Ranking's scores
"""

from rayd.choices.verb import callable_room

callable_room(__name__)
