"""Check that networks and layers of other libraries are read correctly or refused.

    python -m experiments.networks [--draws 40] [--seed 0] [--only llama,gguf] [--out FILE.json]

A case consists of a file or a layer, this library's outputs, and the outputs of the library from
which the network comes. `judge` compares the outputs. The verdict on a case is "read", with the
largest difference; "refused", with the message; or a fault. `hugging_face`, `archives`,
`single_files` and `layers` define named cases, and draw random cases.
"""
