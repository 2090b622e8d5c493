"""The engines that `benchmarks/train.py` compares: each file trains one Job with one library, `train(job, clock)`.

A file is run by the interpreter that has its library: it and job.py import nothing of Burnish (ours.py does), and its
own library only inside `train`.
"""
