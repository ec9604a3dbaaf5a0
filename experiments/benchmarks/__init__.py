"""Benchmarks of speed, accuracy and robustness; most modules are separate commands."""
