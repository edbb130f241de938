"""What `wdm-run bench` measures: opening, steps, memory and energy of every engine here.

Importing the package imports none of its modules: `child` starts in fresh processes, whose start is
timed.
"""
