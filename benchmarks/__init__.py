"""Speed and accuracy against Optax doing the same work, as ratios.

* `measure`: how two callables are compared fairly on a busy machine.
* `cases`: what is compared, and the bar each case is held to.

`python -m benchmarks` runs all cases and writes docs/benchmarks.md.
"""
