"""The best set within a time and a budget: which method, with which dials, for how many steps.

    space     the keys of the verb, the methods that are tried, the dials of each, the points
    clock     the seconds that are used, over all starts of the command
    shares    how the time is divided, from what was measured
    legs      a stretch of a trial: so many seconds further
    rungs     the better half goes on
    scoring   as many networks and controls as the time holds
    outcome   the table, the page, the line that computes the set again

A trial is an ordinary distillation of very many steps that is interrupted; the winner ends where the time does, and what
it leaves is what a run of that many steps leaves.
"""
