"""Figures 7 and 8: GPT-2 on WikiText, its tickets, and the scale of their query and key weights.

`comparison` (figure 7) and `weight_scale` (figure 8) are the experiments. Both take the options in
`settings`, make a `job` of them for each model, and train its runs on `text` in groups (`training`,
a front over `edge_popup.train`); an `outcome` has their rows and tickets. `plots` draws and `cost`
estimates.
"""
