"""How `equations` walks the combinators, which take any number of parts."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

from adamw_jax.core.combinators import chain, fork, join, merge, names_branches, pick, precondition
from adamw_jax.core.flow import slots
from adamw_jax.core.numerics import divide
from adamw_jax.core.routing import masked, routed
from adamw_jax.core.slots import replace
from adamw_jax.core.symbols import Symbol
from adamw_jax.core.transformation import Transformation
from adamw_jax.core.wrappers import scheduled
from adamw_jax.inspect.equations.simplify import same, simplify
from adamw_jax.inspect.equations.walk import Scope, Value, Walk

Path = tuple[str, ...]


def _chain(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    for name, part in slots(tx).items():
        u = walk.value(part, u, scope, (*path, name))
    return u


def _fork(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    parts = slots(tx)
    u = walk.once(u, path) if len(parts) > 1 else u
    return {name: walk.value(part, u, scope, (*path, name)) for name, part in parts.items()}


def _join(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    return _operate(walk, tx.arguments["op"], _fork(walk, tx, u, scope, path), path)


def _merge(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    return _operate(walk, tx.arguments["op"], u if isinstance(u, dict) else {"u": u}, path)


def _pick(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    name = tx.arguments["name"]
    if isinstance(u, dict):
        return u[name]
    whole = isinstance(u, ast.Name)  # nothing is before it: the fork is what is received
    return ast.Name(name) if whole else ast.Call(ast.Name(name), [u], [])


def in_order(op: Callable, branches: dict[str, Any]) -> dict[str, Any]:
    """The branches as `op` takes them: by name, if its parameters are named like them."""
    if not names_branches(op, branches):
        return branches
    return {name: branches[name] for name in inspect.signature(op).parameters if name in branches}


def _operate(walk: Walk, op: Any, branches: dict[str, ast.expr], path: Path) -> ast.expr:
    """`op` of the branches, by running it on symbols; a named function if that fails."""
    branches, name = in_order(op, branches), getattr(op, "__name__", "op")
    opaque = ast.Call(ast.Name(name if name.isidentifier() else "op"), [*branches.values()], [])
    if op is divide:
        return ast.BinOp(opaque.args[0], ast.Div(), opaque.args[1])
    holes = {key: Symbol(float("nan"), ast.Name(f".{key}")) for key in branches}
    try:
        by_name = set(branches) <= set(inspect.signature(op).parameters)
        result = op(**holes) if by_name else op(*holes.values())
    except Exception:  # it is not arithmetic
        return opaque
    if not isinstance(result, Symbol):
        return opaque
    found = [n.id for n in ast.walk(result.formula) if isinstance(n, ast.Name)]
    filling = {
        f".{key}": walk.once(value, (*path, key)) if found.count(f".{key}") > 1 else value
        for key, value in branches.items()
    }

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node):
            return filling.get(node.id, node)

    return Fill().visit(result.formula)


def _precondition(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    part = lambda name, u: walk.value(slots(tx)[name], u, scope, (*path, name))
    u = walk.once(u, path)
    if "basis" not in slots(tx):
        return ast.BinOp(part("numerator", u), ast.Div(), part("denominator", u))
    basis = part("basis", u)
    quotient = ast.BinOp(
        _rotate(part("numerator", u), basis),
        ast.Div(),
        part("denominator", _rotate(u, basis)),
    )
    return _rotate(quotient, basis, back=True)


def _rotate(x: ast.expr, basis: Value, back: bool = False) -> ast.expr:
    if not isinstance(basis, dict):
        return ast.Call(ast.Name("rotate_back" if back else "rotate"), [x, basis], [])
    left, right = basis["left"], basis["right"]
    turned = ast.Attribute(right if back else left, "T", ast.Load())
    first, last = (left, turned) if back else (turned, right)
    return ast.BinOp(ast.BinOp(first, ast.MatMult(), x), ast.MatMult(), last)


def _masked(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    out = walk.value(slots(tx)["tx"], u, scope, (*path, "tx"))
    if isinstance(out, dict) or isinstance(u, dict):
        return out
    out, u = simplify(out), simplify(u)
    if same(out, u):
        return u
    mask = ast.Name(walk.share(tx.arguments["mask"], "mask"))
    return ast.IfExp(mask, out, u)


def _routed(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    parts = slots(tx)
    name = walk.decide(tuple(parts))
    return walk.value(parts[name], u, scope, (*path, name))


def _scheduled(walk: Walk, tx: Transformation, u: Value, scope: Scope, path: Path) -> Value:
    given = {k: v for k, v in tx.arguments.items() if k not in ("tx", "path")}
    now = {k: Symbol(float(v(0)), walk.written(v, k, scope)) for k, v in given.items()}
    inner = replace(slots(tx)["tx"], tx.arguments["path"], **now)
    return walk.value(inner, u, scope, (*path, "tx"))


COMBINATORS = {
    chain: _chain,
    fork: _fork,
    join: _join,
    merge: _merge,
    pick: _pick,
    precondition: _precondition,
    masked: _masked,
    routed: _routed,
    scheduled: _scheduled,
}
