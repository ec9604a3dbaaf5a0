"""The theory's experiments: figures 4, 5 and 6, and a network that was really trained.

A target (`targets`, `modular`, `pretrained`) on data of the paper (`data`), random sources for it
(`sources`), and an experiment a file: `hidden_dim`, `input_length`, `blocks`, `trained_target`.
Two have a folder: `law` (how wide) and `guarantees` (bound against error).
"""
