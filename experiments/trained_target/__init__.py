"""A trained network as the target of the construction.

`pretrained` reads published networks and scores them on their tasks, `modular` trains a small
network that adds modulo 23, and `trained_target` is the experiment.
"""
