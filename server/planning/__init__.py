"""How many replicas, slots, trainers and how much memory a workload takes: the code that serves, simulated.

`simulation.simulate` plays a workload to replicas whose service times are measured; `plan.planned` looks for
the fewest that answer it in time; `command` is `km plan`.
"""
