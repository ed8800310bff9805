"""The search over a method's dials at a fixed budget. Everything that decides is here and needs no Ray.

    space      dials, families of methods, the run of a point
    points     the points of a search by number, each with its size
    asha       which trials continue
    trials     one trial, and the table of all
    outcome    the front, the importance of each dial, the winners
    winner     a winner as a method's YAML, its fresh runs, its test
    page       a search as a page

rayd.fleet.search runs the same trials under Ray Tune.
"""
