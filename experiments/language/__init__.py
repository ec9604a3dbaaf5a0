"""Figures 7 and 8: GPT-2 on WikiText, its tickets, and the scale of their query and key weights.

`comparison` (figure 7) and `weight_scale` (figure 8) are the experiments. Both use the options in
`settings`, from which they make a `job` per model. `training` trains the runs of a job in groups on
`text`; it calls `edge_popup.train`. `outcome` converts the results of a group to rows and tickets.
`stored` computes the bytes of stored models, `plots` draws figures and `cost` estimates costs.
"""
