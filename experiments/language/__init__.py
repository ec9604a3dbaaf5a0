"""Figures 7 and 8: GPT-2 on WikiText, its tickets, and the scale of their query and key weights.

`comparison` (figure 7) and `weight_scale` (figure 8) are the experiments. Both experiments use the
options in `settings`, which determine a `job` (the settings that all runs of one program share) for
each model. `training` trains the runs of a job in groups, on batches from `text`, with
`edge_popup.train`. `outcome` converts the results of a group to measurements and ticket files.
`stored` computes the bytes that models need in storage, `plots` plots figures and `cost` estimates
costs.
"""
