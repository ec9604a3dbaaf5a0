"""Damaged and crafted files, folders and arguments: each is refused in one line, or read right.

    python -m experiments.fuzz [--cases 1000] [--seed 0] [--only ticket,model] [--out FILE.json]

`mutations` changes bytes, JSON and arrays. `tickets`, `trained_models`, `tokenizers` and
`run_folders` have the subjects: files and folders, and the calls that read them. `arguments` calls
public functions with values that they do not expect. `run` judges every case.
"""
