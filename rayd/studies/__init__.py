"""Questions asked with whole runs.

plan       what a run will cost
search     which dials are best
continual  which memory of past classes serves best
theory     how small a memory encodes a task
bench      what is how fast
"""
