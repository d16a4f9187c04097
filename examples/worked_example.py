"""Four steps of AdamW on one number, every intermediate value from the piece that makes it.

The gradients are given, so that a pencil can follow.  "Printed" is a hand
calculation that rounds as it goes and carries the rounded numbers on.

    python examples/worked_example.py
"""

import jax

from adamw_jax import adamw, identity, part, scale, swap

START = 0.5
GRADIENTS = (0.2, 0.15, 0.25, 0.05)
COLUMNS = ("m", "v", "m_hat", "v_hat", "root+eps", "step", "decayed", "theta")
PRINTED = (
    "0.02 0.00004 0.2 0.04 0.2 0.1 0.495 0.395",
    "0.033 0.00006246 0.174 0.0312 0.177 0.098 0.39105 0.293",
    "0.0547 0.0001249 0.202 0.0416 0.204 0.099 0.29007 0.191",
    "0.05423 0.0001272 0.158 0.0318 0.178 0.089 0.18909 0.100",
)


def runner(tx):
    """The piece as a function of what it receives, its state kept inside."""
    state = tx.init(START)

    def run(u, theta):
        nonlocal state
        u, state = tx.update(u, state, theta)
        return u

    return run


def trace(tx):
    """One row of COLUMNS a step; each piece gets what the piece before it returned."""
    average = runner(part(tx, "direction.numerator.0"))
    correct = runner(part(tx, "direction.numerator.1"))
    moment = runner(part(tx, "direction.denominator.moment"))
    correct_moment = runner(part(tx, "direction.denominator.correction"))
    root = runner(part(tx, "direction.denominator.root"))
    step = runner(swap(tx, "weight_decay", identity()))  # no decay: the step alone
    decay = runner(swap(tx, "direction", scale(0.0)))  # no direction: the decay alone
    whole = runner(tx)

    theta = START
    for g in GRADIENTS:
        m, v = average(g, theta), moment(g, theta)
        m_hat, v_hat = correct(m, theta), correct_moment(v, theta)
        row = m, v, m_hat, v_hat, root(v_hat, theta), -step(g, theta), theta + decay(g, theta)
        theta += whole(g, theta)
        yield *row, theta


def show(tx, printed):
    """The trace as a table, beside a printed one if there is one."""
    print(f"{tx}\n" + f"{'':9}" + "".join(f"{name:>13}" for name in COLUMNS))
    for t, row in enumerate(trace(tx), 1):
        print(f"exact {t}  " + "".join(f"{x:13.9f}" for x in row))
        if printed:
            digits = printed[t - 1].split()
            off = [f"{x:.{len(d) - 2}f}" != d for x, d in zip(row, digits, strict=True)]
            marked = (f"{d}{'*' * o}" for d, o in zip(digits, off, strict=True))
            print("printed  " + "".join(f"{d:>13}" for d in marked))
    print()


def main():
    jax.config.update("jax_enable_x64", True)
    print("Decay takes off lambda theta, as in the AdamW paper and in the hand calculation:\n")
    show(adamw(0.1, weight_decay=0.01, coupling="independent"), PRINTED)
    print(
        "* not the rounding of the exact value: from step 2 on the printed parameter carries\n"
        "  the digits dropped before, and 1 - b2^t is taken as 0.003 and 0.004. The last\n"
        "  parameter is 0.101 to three digits, not 0.100.\n"
    )
    print("Decay takes off lr lambda theta, as in most libraries:\n")
    show(adamw(0.1, weight_decay=0.01), None)


if __name__ == "__main__":
    main()
