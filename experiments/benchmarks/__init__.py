"""Benchmarks of speed, accuracy and robustness. Most modules can be run as commands."""
