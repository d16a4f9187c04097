"""The optimizers beyond AdamW, transcribed in float64 NumPy as in references.py.

From the equations of the specification, sections 4.10 to 4.12 and 5; where an
algorithm has dialects, the authors' is the default.
"""

import numpy as np
from references import abs2, ema, hat, path


@path
def signum(theta, g, t, past, lr, b1=0.9, weight_decay=0.0):
    past.m = ema(past.m, g, b1)
    return theta - lr * (np.sign(past.m) + weight_decay * theta)


@path
def lion(theta, g, t, past, lr, b1=0.9, b2=0.99, weight_decay=1e-3):
    u = np.sign(ema(past.m, g, b1))  # of the old average
    past.m = ema(past.m, g, b2)
    return theta - lr * (u + weight_decay * theta)


@path
def sophia(
    theta,
    g,
    t,
    past,
    lr,
    b1=0.96,
    b2=0.99,
    eps=1e-12,
    weight_decay=0.1,
    gamma=0.01,
    every=10,
    *,
    curvature,
):
    """`curvature(theta, t)` is the estimate at the parameters before update t."""
    past.m = ema(past.m, g, b1)
    if (t - 1) % every == 0:
        past.h = ema(past.h, curvature(theta, t), b2)
    u = np.clip(past.m / np.maximum(gamma * past.h, eps), -1, 1)
    return theta - lr * (u + weight_decay * theta)


def sophia_at(curvature, **defaults):
    """The same at an exactly known curvature, whatever estimator it is told of."""

    def reference(theta, grads, estimator=None, **rest):
        return sophia(theta, grads, curvature=curvature, **defaults | rest)

    return reference


def newton_schulz(q, rows, norm_factor=1.0, eps=1e-7):
    x = q / (norm_factor * np.linalg.norm(q) + eps)
    x = x.T if q.shape[0] > q.shape[1] else x
    for a, b, c in rows:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if q.shape[0] > q.shape[1] else x


KELLER = ((3.4445, -4.7750, 2.0315),) * 5


@path
def muon(theta, g, t, past, lr, momentum=0.95, weight_decay=0.0, nesterov=True):
    """One matrix [in, out]."""
    past.b = momentum * past.b + g
    q = g + momentum * past.b if nesterov else past.b
    fan_in, fan_out = theta.shape
    u = max(1, fan_out / fan_in) ** 0.5 * newton_schulz(q, KELLER)
    return theta - lr * (u + weight_decay * theta)


@path
def laprop(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-15, weight_decay=0.0):
    past.v = ema(past.v, abs2(g), b2)
    past.m = ema(past.m, g / (np.sqrt(hat(past.v, b2, t)) + eps), b1)
    return theta - lr * (hat(past.m, b1, t) + weight_decay * theta)


@path
def amsgrad(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    past.m, past.v = ema(past.m, g, b1), ema(past.v, abs2(g), b2)
    past.top = np.maximum(past.top, past.v)
    u = hat(past.m, b1, t) / (np.sqrt(hat(past.top, b2, t)) + eps)
    return theta - lr * (u + weight_decay * theta)


@path
def amsgrad_paper(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8):
    """No correction anywhere."""
    past.m, past.v = ema(past.m, g, b1), ema(past.v, abs2(g), b2)
    past.top = np.maximum(past.top, past.v)
    return theta - lr * past.m / (np.sqrt(past.top) + eps)


@path
def nadamw(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    past.m, past.v = ema(past.m, g, b1), ema(past.v, abs2(g), b2)
    n = b1 * past.m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    return theta - lr * (n / (np.sqrt(hat(past.v, b2, t)) + eps) + weight_decay * theta)


@path
def nadam_warming(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, psi=0.004):
    """With the paper's schedule of momentum."""
    mu = lambda t: b1 * (1 - 0.5 * 0.96 ** (t * psi))
    past.m, past.v = ema(past.m, g, b1), ema(past.v, abs2(g), b2)
    past.product = mu(t) * (past.product if t > 1 else 1.0)
    n = (1 - mu(t)) * g / (1 - past.product)
    n += mu(t + 1) * past.m / (1 - past.product * mu(t + 1))
    return theta - lr * n / (np.sqrt(hat(past.v, b2, t)) + eps)


@path
def radam(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    past.m, past.v = ema(past.m, g, b1), ema(past.v, abs2(g), b2)
    last = 2 / (1 - b2) - 1
    r = last - 2 * t * b2**t / (1 - b2**t)
    u = hat(past.m, b1, t)
    if r >= 5:
        factor = np.sqrt((r - 4) * (r - 2) * last / ((last - 4) * (last - 2) * r))
        u = factor * u / (np.sqrt(hat(past.v, b2, t)) + eps)
    return theta - lr * (u + weight_decay * theta)


@path
def adabelief(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-16, weight_decay=0.0, eps_root=1e-16):
    past.m = ema(past.m, g, b1)
    past.s = ema(past.s, abs2(g - past.m), b2) + eps_root
    u = hat(past.m, b1, t) / (np.sqrt(hat(past.s, b2, t)) + eps)
    return theta - lr * (u + weight_decay * theta)


def adan_direction(g, t, past, b1, b2, b3, eps):
    d = g - past.g if t > 1 else 0 * g
    past.g = g
    past.m, past.w = ema(past.m, g, b1), ema(past.w, d, b2)
    past.n = ema(past.n, abs2(g + b2 * d), b3)
    return (hat(past.m, b1, t) + b2 * hat(past.w, b2, t)) / (np.sqrt(hat(past.n, b3, t)) + eps)


@path
def adan(theta, g, t, past, lr, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, weight_decay=0.0):
    """With the proximal decay."""
    u = adan_direction(g, t, past, b1, b2, b3, eps)
    return (theta - lr * u) / (1 + lr * weight_decay)


@path
def adan_decoupled(theta, g, t, past, lr, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, weight_decay=0.0):
    return theta - lr * (adan_direction(g, t, past, b1, b2, b3, eps) + weight_decay * theta)


@path
def adopt(theta, g, t, past, lr, b1=0.9, b2=0.9999, eps=1e-6, weight_decay=0.0):
    if t == 1:
        past.v = abs2(g)
        return theta
    n, bound = g / np.maximum(np.sqrt(past.v), eps), (t - 1) ** 0.25
    n = n * bound / np.maximum(np.abs(n), bound)  # clipped; of a complex n, the length
    past.m = ema(past.m, n, b1)
    past.v = ema(past.v, abs2(g), b2)
    return theta - lr * (past.m + weight_decay * theta)


@path
def ademamix(
    theta,
    g,
    t,
    past,
    lr,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    alpha=5.0,
    eps=1e-8,
    weight_decay=0.0,
    warmup=0,
):
    """alpha and b3 rise over the first `warmup` updates."""
    if t < warmup:
        x = t / warmup
        log1, log3 = np.log(b1), np.log(b3)
        alpha, b3 = alpha * x, np.exp(log1 * log3 / ((1 - x) * log3 + x * log1))
    past.m1, past.m2 = ema(past.m1, g, b1), ema(past.m2, g, b3)
    past.v = ema(past.v, abs2(g), b2)
    u = (hat(past.m1, b1, t) + alpha * past.m2) / (np.sqrt(hat(past.v, b2, t)) + eps)
    return theta - lr * (u + weight_decay * theta)


@path
def cautious_adamw(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    past.m, past.v = ema(past.m, g, b1), ema(past.v, abs2(g), b2)
    u = hat(past.m, b1, t) / (np.sqrt(hat(past.v, b2, t)) + eps)
    agree = (u * np.conj(g)).real > 0
    return theta - lr * (u * agree / max(agree.mean(), 1e-3) + weight_decay * theta)


@path
def stable_adamw(theta, g, t, past, lr, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0):
    past.m, past.v = ema(past.m, g, b1), ema(past.v, abs2(g), b2)
    v = hat(past.v, b2, t)
    rms = np.sqrt(np.mean(abs2(g) / np.maximum(v, eps**2)))
    u = hat(past.m, b1, t) / (np.sqrt(v) + eps)
    return theta - lr / max(1, rms) * (u + weight_decay * theta)


def rms(x):
    return np.sqrt(np.mean(abs2(x)))


@path
def adafactor(
    theta,
    g,
    t,
    past,
    lr,
    weight_decay=0.0,
    power=0.8,
    eps_root=1e-30,
    minimum_scale=1e-3,
    threshold=1.0,
):
    """One matrix.  A constant learning rate caps rho = 1 / sqrt(t), a schedule is rho."""
    rho = lr if past.scheduled else min(lr, 1 / t**0.5)
    b = 1 - t**-power
    past.row = ema(past.row, (abs2(g) + eps_root).mean(1), b)
    past.column = ema(past.column, (abs2(g) + eps_root).mean(0), b)
    u = g / np.sqrt(np.outer(past.row, past.column) / past.row.mean())
    u = max(minimum_scale, rms(theta)) * u / max(1, rms(u) / threshold)
    return theta - rho * (u + weight_decay * theta)


@path
def schedule_free_adamw(
    theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, power=0.0, point="y"
):
    """y, at which gradients are taken, or x, the average to be evaluated."""
    if t == 1:
        past.x = past.y = past.z = theta
    past.top = max(past.top, lr)
    w = t**power * past.top**2
    past.total = past.total + w
    c = w / past.total if past.total else 0.0
    past.v = ema(past.v, abs2(g), b2)
    step = g / (np.sqrt(hat(past.v, b2, t)) + eps) + weight_decay * past.y
    past.z = past.z - lr * step
    past.x = (1 - c) * past.x + c * past.z
    past.y = b1 * past.x + (1 - b1) * past.z
    return {"x": past.x, "y": past.y}[point]


@path
def prodigy(
    theta,
    g,
    t,
    past,
    lr,
    b1=0.9,
    b2=0.999,
    b3=None,
    eps=1e-8,
    weight_decay=0.0,
    d0=1e-6,
    growth=1.0,
):
    if t == 1:
        past.start, past.d = theta, d0
    d, b3 = past.d, b2**0.5 if b3 is None else b3
    e = d * lr
    past.m, past.v = ema(past.m, d * g, b1), ema(past.v, d**2 * abs2(g), b2)
    past.r = b3 * past.r + d / d0 * e * np.sum((np.conj(g) * (past.start - theta)).real)
    past.s = b3 * past.s + d / d0 * e * g
    norm = np.sum(np.abs(past.s))
    past.d = max(d, growth * past.r / norm) if norm else d
    with np.errstate(invalid="ignore"):
        u = past.m / (np.sqrt(past.v) + past.d * eps)
    return theta - e * weight_decay * theta - e * np.where(past.m == 0, 0, u)


@path
def soap(
    theta,
    g,
    t,
    past,
    lr,
    b1=0.95,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    b3=None,
    every=10,
):
    """One matrix.  v's rows and columns are permuted with the eigenvectors, as authors do."""
    b3, dagger = b2 if b3 is None else b3, lambda x: np.conj(x).T
    left, right = g @ dagger(g), dagger(g) @ g
    past.left, past.right = ema(past.left, left, b3), ema(past.right, right, b3)
    if t == 1:
        past.ql, past.qr = (np.linalg.eigh(x)[1][:, ::-1] for x in (past.left, past.right))
        return theta
    k, ql, qr = t - 1, past.ql, past.qr
    past.m = ema(past.m, g, b1)
    past.v = ema(past.v, abs2(dagger(ql) @ g @ qr), b2)
    turned = dagger(ql) @ past.m @ qr / (np.sqrt(past.v) + eps)
    u = ql @ turned @ dagger(qr) * np.sqrt(1 - b2**k) / (1 - b1**k)
    if k % every == 0:
        past.ql, rows = _renewed(past.left, ql)
        past.qr, columns = _renewed(past.right, qr)
        past.v = past.v[rows][:, columns]
    return (theta - lr * u) * (1 - lr * weight_decay)


def _renewed(gram, q):
    order = np.argsort(-np.sum(np.conj(q) * (gram @ q), axis=0).real)
    return np.linalg.qr(gram @ q[:, order])[0], order


@path
def mars(theta, g, t, past, lr, b1=0.95, b2=0.99, eps=1e-8, weight_decay=0.0, gamma=0.025):
    c = g + gamma * b1 / (1 - b1) * (g - past.g)
    past.g = g
    c = c / max(1, np.sqrt(np.sum(abs2(c))))
    past.m, past.v = ema(past.m, c, b1), ema(past.v, abs2(c), b2)
    u = hat(past.m, b1, t) / (np.sqrt(hat(past.v, b2, t)) + eps)
    return theta - lr * (u + weight_decay * theta)


@path
def adam_mini(theta, g, t, past, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    """One kernel [in, out]: a v for every output."""
    past.m = ema(past.m, g, b1)
    past.v = ema(past.v, abs2(g).mean(0), b2)
    u = hat(past.m, b1, t) / (np.sqrt(hat(past.v, b2, t)) + eps)
    return theta - lr * (u + weight_decay * theta)
