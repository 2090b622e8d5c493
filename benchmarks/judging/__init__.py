"""The two races of `benchmarks/evaluate.py`: labels of a task, and choices that rows bring."""
