"""The ladder: which rungs there are for a task, each made once, all judged on the same locked test set.

In: a Task.  Out: a run folder (burnish_home/runs/NAME) with the data, one folder for each rung, and a Report.
Nothing is imported here: `ladder` is light, so that checking a task loads no model library; `run` is the whole climb.
"""
