"""Plain NumPy transcriptions of the published algorithms, in float64.

Each function below is one step as the paper prints it: parameters and gradient
in, parameters out.  `@path` makes it a run: the parameters after every gradient
of a sequence.

They share nothing with the library.  Accumulators (attributes of `past`) begin
at zero and t = 1, 2, ... numbers the updates.
"""

import functools

import numpy as np


class Past:
    """What a step left behind for the next; zero where nothing was."""

    def __getattr__(self, name):
        return 0.0


def path(step):
    """Turns `step(theta, g, t, past, lr, **hyperparameters)` into a run over gradients.

    `learning_rate` is a number, or an array of one for every step, whose largest
    entry is the schedule's peak."""

    @functools.wraps(step)
    def run(theta, grads, *, learning_rate, **hyperparameters):
        past, thetas = Past(), []
        past.rates = np.broadcast_to(np.asarray(learning_rate, np.float64), len(grads))
        past.scheduled = np.ndim(learning_rate) > 0
        for t, (g, lr) in enumerate(zip(grads, past.rates, strict=True), start=1):
            theta = step(theta, g, t, past, lr, **hyperparameters)
            thetas.append(theta)
        return thetas

    return run


def ema(old, new, decay):
    return decay * old + (1 - decay) * new


def hat(average, decay, t):
    """The bias-corrected average."""
    return average / (1 - decay**t)


def abs2(g):
    """g squared; for complex g, |g| squared."""
    return (g * np.conj(g)).real


@path
def sgd(theta, g, t, past, lr):
    return theta - lr * g


@path
def momentum(theta, g, t, past, lr, decay=0.9):
    past.m = ema(past.m, g, decay)
    return theta - lr * past.m


@path
def heavy_ball(theta, g, t, past, lr, momentum=0.9):
    """With a velocity buffer, which at a constant rate is Polyak's difference."""
    past.b = momentum * past.b + g
    return theta - lr * past.b


@path
def nesterov(theta, g, t, past, lr, momentum=0.9):
    """The rearranged form: theta is the look-ahead point."""
    past.b = momentum * past.b + g
    return theta - lr * (g + momentum * past.b)


@path
def adagrad(theta, g, t, past, lr, eps=1e-8, initial_accumulator=0.0):
    past.s = (past.s if t > 1 else initial_accumulator) + abs2(g)
    return theta - lr * g / np.sqrt(past.s + eps)


@path
def rmsprop(theta, g, t, past, lr, decay=0.9, eps=1e-8):
    past.s = ema(past.s, abs2(g), decay)
    return theta - lr * g / np.sqrt(past.s + eps)


def adam_direction(g, t, past, b1, b2, eps):
    past.m = ema(past.m, g, b1)
    past.v = ema(past.v, abs2(g), b2)
    return hat(past.m, b1, t) / (np.sqrt(hat(past.v, b2, t)) + eps)


@path
def adam(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8):
    return theta - lr * adam_direction(g, t, past, b1, b2, eps)


@path
def adam_l2(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2):
    return theta - lr * adam_direction(g + weight_decay * theta, t, past, b1, b2, eps)


@path
def adamw(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4, coupling="lr"):
    decay = {"lr": lr, "independent": lr / past.rates.max()}[coupling]
    u = adam_direction(g, t, past, b1, b2, eps)
    return theta - lr * u - decay * weight_decay * theta


# Other forms of the same algorithms, for the identities between them.


def polyak(theta, grads, alphas, betas):
    """Heavy ball as Polyak wrote it, from the last two parameter vectors."""
    previous, thetas = theta, []
    for g, alpha, beta in zip(grads, alphas, betas, strict=True):
        theta, previous = theta - alpha * g + beta * (theta - previous), theta
        thetas.append(theta)
    return thetas


def nesterov_lookahead(theta, gradient, steps, *, learning_rate, momentum):
    """Nesterov's method as published: the gradient is taken at the look-ahead point.

    Returns the iterates and the points at which the next gradient is taken."""
    velocity, iterates, points = 0.0, [], []
    for _ in range(steps):
        y = theta - momentum * velocity
        velocity = momentum * velocity + learning_rate * gradient(y)
        theta = theta - velocity
        iterates.append(theta)
        points.append(theta - momentum * velocity)
    return iterates, points
