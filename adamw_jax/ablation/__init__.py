"""What is each piece of an optimizer worth?  A small laboratory that answers with statistics.

* `tasks`: data from an installed package, a small Flax network, a loss.
* `arms`: AdamW, and AdamW with one thing changed at a time.
* `sweep`: trains every arm at every learning rate with every seed, one compiled
  program for all arms of equal structure.
* `statistics`: tunes on some seeds, reports on others, and says "not separable"
  where that is the answer.
* `report`, `figure`: the tables and the picture.

Run it with `python -m adamw_jax.ablation`.  Nothing here is imported by
`import adamw_jax`; it needs the extra `examples` (flax, scikit-learn, scipy,
matplotlib, rich).
"""
