"""Networks and layers of other libraries: this library reads each correctly, or refuses it.

    python -m experiments.networks [--draws 40] [--seed 0] [--only llama,gguf] [--out FILE.json]

A case consists of a file or a layer, this library's outputs, and the outputs of the library that
the network comes from (its maker). `judge` compares the outputs: a case is read (the verdict
contains the largest difference), refused (the verdict contains the message), or a fault.
`hugging_face`, `archives`, `single_files` and `layers` define named cases, and draw random ones.
"""
