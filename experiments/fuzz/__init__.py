"""Damaged and crafted files, folders and arguments: each is read correctly or refused in one line.

    python -m experiments.fuzz [--cases 1000] [--seed 0] [--only ticket,model] [--out FILE.json]

`mutations` changes bytes, JSON and arrays. `tickets`, `trained_models`, `tokenizers` and
`run_folders` define the subjects, which are files and folders with the calls that read them.
`arguments` calls public functions with unexpected values. `run` judges every case.
"""
