"""Check that damaged or crafted input is read correctly or refused with a one-line message.

    python -m experiments.fuzz [--cases 1000] [--seed 0] [--only ticket,model] [--out FILE.json]

The inputs are files, folders, and arguments of functions. `mutations` changes bytes, JSON and
arrays. `tickets`, `trained_models`, `tokenizers` and `run_folders` define the subjects: files and
folders, each with the call that reads it. `arguments` calls public functions with unexpected
values. `run` judges every case.
"""
