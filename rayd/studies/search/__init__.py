"""The search over a method's dials at a fixed budget: the space, the trials, who dies early, and what came of it.

Everything that decides is here and needs no Ray; rayd.fleet.search runs the same trials under Ray Tune.
"""
