"""Speed and accuracy against Optax doing the same work, as ratios.

* `measure`: how two callables are compared fairly on a busy machine.
* `cases`: what is compared, and the bar each case is held to.

`python -m benchmarks` measures all rows and writes docs/benchmarks.md;
`python -m benchmarks trace_80_shapes` measures one.
"""
