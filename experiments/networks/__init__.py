"""Networks and layers of other libraries: read as their maker computes them, or refused by name.

    python -m experiments.networks [--draws 40] [--seed 0] [--only llama,gguf] [--out FILE.json]

A case is a file or a layer, our outputs and the outputs of its maker. `judge` compares them: a case
is read (with the largest difference), refused (with the line), or a fault. `hugging_face`,
`archives`, `single_files` and `layers` have the named cases and draw configurations at random.
"""
