"""Questions asked with whole runs.

doctor     whether a machine can do what a run asks
plan       what a run will cost
search     which dials are best
auto       the best set within a time and a budget
continual  which memory of past classes serves best
theory     how small a memory encodes a task
bench      what is how fast
"""
