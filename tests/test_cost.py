"""What a step costs: the reading of compiled programs, the bars on TPUs, the export."""

import contextlib
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from support import assert_equal, nothing
from zoo import ROWS, rows

import adamw_jax as aj
from adamw_jax.inspect.cost import hlo, machines
from adamw_jax.inspect.periodic import state_bytes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cost.md"
WIDTH = 4096
PARAMS = {"kernel": jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)}
CHIPS = ("v5e:2x2x1", "v5p:2x2x1")
each_chip = pytest.mark.parametrize("topology", CHIPS)
on_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu: pip install 'adamw-jax[tpu-aot]'",
)
CLIPPED = aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(1e-3))


# --- programs, read by hand ---------------------------------------------------


def program(entry, *others):
    """A program of an entry computation, given its lines, and of other computations."""
    lines = "\n".join(f"  {line}" for line in entry)
    return hlo.parse("\n".join([*others, "ENTRY %main () -> f32[] {", lines, "}"]))


def moved(entry, *others):
    return hlo.traffic(program(entry, *others)).bytes


X = "%x = f32[16,128]{1,0} parameter(0)"  # 8192 bytes
SIZE = 16 * 128 * 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[16,128]{1,0}", SIZE),
        ("f32[]", 4),
        ("pred[3]{0}", 3),
        ("bf16[4,2]{0,1}", 16),
        ("s4[8]{0}", 4),
        ("c64[2]{0}", 16),
        ("token[]", 0),
        ("f32[0,128]{1,0:T(8,128)}", 0),
        ("f32[3]{0:T(128)}", 512),  # whole tiles
        ("f32[]{:T(128)}", 512),
        ("f32[9,130]{1,0:T(8,128)}", 16 * 256 * 4),
        ("f32[9,130]{0,1:T(8,128)}", 136 * 128 * 4),  # the first dimension is the minor one
        ("bf16[2,9,130]{2,1,0:T(8,128)(2,1)}", 2 * 16 * 256 * 2),
    ],
)
def test_the_bytes_of_a_shape(text, size):
    (shape,) = hlo._shapes(text)
    assert shape.bytes == size


def test_an_instruction_reads_its_operands_and_writes_its_results():
    body = ["%y = f32[16,128]{1,0} add(%x, %x)", "ROOT %z = f32[16,128]{1,0} negate(%y)"]
    assert moved([X, *body]) == (2 + 1 + 1 + 1) * SIZE
    assert hlo.floor(program([X, *body])) == 2 * SIZE
    names = ["%t = (f32[16,128]{1,0}) tuple(%x)", "ROOT %b = f32[2048]{0} bitcast(%x)"]
    assert moved([X, *names]) == 0


def test_on_chip_memory_is_free():
    prefetch = [
        "%s = (f32[16,128]{1,0:S(1)}, f32[16,128]{1,0}, u32[]{:S(2)}) copy-start(%x)",
        "%d = f32[16,128]{1,0:S(1)} copy-done(%s)",
    ]
    assert moved([X, *prefetch, "ROOT %y = f32[16,128]{1,0} negate(%d)"]) == 2 * SIZE
    back = ["%e = f32[16,128]{1,0:S(1)} negate(%d)"]
    back += ["%t = (f32[16,128]{1,0}, f32[16,128]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%e)"]
    assert moved([X, *prefetch, *back, "ROOT %y = f32[16,128]{1,0} copy-done(%t)"]) == 2 * SIZE


def test_a_prefetch_of_a_slice_reads_the_slice():
    start = "%s = ((f32[16,128]{1,0}), f32[4,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x)"
    assert moved([X, start, "ROOT %d = f32[4,128]{1,0:S(1)} slice-done(%s)"]) == SIZE / 4


SLICING = """%sliced (p: f32[16,128]) -> f32[4,128] {
  %p = f32[16,128]{1,0} parameter(0)
  %s = f32[4,128]{1,0} slice(%p), slice={[0:4], [0:128]}
  ROOT %n = f32[4,128]{1,0} negate(%s)
}"""
UPDATING = """%updated (p: f32[16,128], u: f32[4,128], i: s32[]) -> f32[16,128] {
  %p = f32[16,128]{1,0} parameter(0)
  %u = f32[4,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[16,128]{1,0} dynamic-update-slice(%p, %u, %i, %i)
}"""


def test_a_fusion_reads_slices_and_updates_in_place():
    fusion = "ROOT %f = f32[4,128]{1,0} fusion(%x), kind=kLoop, calls=%sliced"
    assert moved([X, fusion], SLICING) == SIZE / 4 + SIZE / 4
    given = [X, "%u = f32[4,128]{1,0} parameter(1)", "%i = s32[] parameter(2)"]
    update = "ROOT %f = f32[16,128]{1,0} {}(%x, %u, %i{}"
    fused = update.replace("{}", "fusion", 1).replace("{}", "), kind=kLoop, calls=%updated")
    assert moved([*given, fused], UPDATING) == SIZE / 4 + 4 + SIZE / 4
    plain = update.replace("{}", "dynamic-update-slice", 1).replace("{}", ", %i)")
    assert moved([*given, plain]) == SIZE / 4 + 4 + 4 + SIZE / 4


BODY = """%body (t: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %t = (s32[], f32[16,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %v = f32[16,128]{1,0} get-tuple-element(%t), index=1
  %w = f32[16,128]{1,0} negate(%v)
  ROOT %r = (s32[], f32[16,128]{1,0}) tuple(%i, %w)
}"""
LIMIT = """%limit (t: (s32[], f32[16,128])) -> pred[] {
  %t = (s32[], f32[16,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(5)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}"""


def test_a_loop_counts_as_often_as_it_runs():
    loop = "ROOT %l = (s32[], f32[16,128]{1,0}) while(%t), condition=%limit, body=%body"
    entry = [X, "%i = s32[] constant(0)", "%t = (s32[], f32[16,128]{1,0}) tuple(%i, %x)"]
    found = hlo.traffic(program([*entry, loop], BODY, LIMIT))
    assert (found.bytes, found.unbounded, found.kernels) == (10 * SIZE, 0, 0)
    said = loop + ', backend_config={"known_trip_count":{"n":"7"}}'
    assert moved([*entry, said], BODY, LIMIT.replace("LT", "NE")) == 14 * SIZE
    unknown = hlo.traffic(program([*entry, loop], BODY, LIMIT.replace("LT", "NE")))
    assert (unknown.bytes, unknown.unbounded) == (2 * SIZE, 1)


def test_a_condition_counts_its_dearest_and_its_cheapest_branch():
    branch = (
        "%{} (p: f32[16,128]) -> f32[16,128] {{\n  %p = f32[16,128]{{1,0}} parameter(0)\n{}\n}}"
    )
    idle = branch.format("idle", "  ROOT %q = f32[16,128]{1,0} bitcast(%p)")
    busy = branch.format("busy", "  ROOT %q = f32[16,128]{1,0} negate(%p)")
    choice = "ROOT %c = f32[16,128]{1,0} conditional(%i, %x, %x), "
    for form in (
        "branch_computations={%idle, %busy}",
        "true_computation=%busy, false_computation=%idle",
    ):
        found = hlo.traffic(program([X, "%i = s32[] parameter(1)", choice + form], idle, busy))
        assert (found.bytes, found.least) == (2 * SIZE, 0)


def test_collectives_are_counted_in_numbers_not_tiles():
    line = "ROOT %r = f32[]{:T(128)} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add"
    found = hlo.traffic(program(["%x = f32[]{:T(128)} parameter(0)", line]))
    assert found.collectives == (hlo.Collective("all-reduce", 4, 1),)
    assert found.bytes == 2 * 512


# --- the machine at hand -------------------------------------------------------


def test_the_machine_at_hand():
    params = {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32), "bias": jnp.zeros(512)}
    found = aj.cost(aj.sgd(0.1), params, platform="cpu")
    count = 257 * 512
    assert found.parameters == count
    assert found.floor == pytest.approx(12 * count, abs=64)  # and a count of steps
    assert found.bytes == pytest.approx(12 * count, abs=64)
    assert found.compiler_bytes == pytest.approx(12 * count, abs=64)
    assert found.ratio == pytest.approx(1, abs=1e-3)
    assert found.bytes_per_parameter == pytest.approx(12, abs=1e-3)
    assert found.kernels == 2  # one a leaf
    assert (found.temporaries, found.collectives, found.unbounded) == (0, (), 0)
    assert found.devices == 1
    assert found.bandwidth is found.seconds is None
    assert found.expression == aj.sgd(0.1)
    assert aj.cost(aj.sgd(0.1), params, platform=None).bytes == found.bytes


def test_optax_has_a_cost_too():
    with jax.numpy_dtype_promotion("standard"):
        found = aj.cost(optax.adam(1e-3), {"w": jnp.zeros((64, 64))}, platform="cpu")
    assert found.floor == pytest.approx(28 * 64 * 64, abs=8)


def test_the_report_fits_eighty_columns():
    tx = aj.chain(*[aj.clip(1.0 + i) for i in range(20)], aj.adamw(1e-3))
    text = str(aj.cost(tx, {"w": jnp.zeros((64, 64))}, platform="cpu"))
    assert max(map(len, text.splitlines())) == 80
    assert re.search(r"^floor +28\.\d+ a parameter", text, re.MULTILINE)
    fields = {
        "collectives": (
            hlo.Collective("all-reduce", 4, 3),
            hlo.Collective("all-gather", 987654321, 10),
            hlo.Collective("all-reduce", 8, 1),
        ),
        "bandwidth": 1e9,
    }
    whole = {"bytes": 2e6, "least": 1e6, "unbounded": 2, "devices": 4, **fields}
    plain = dict.fromkeys(("floor", "temporaries", "flops", "kernels", "compiler_bytes"), 1)
    full = aj.Cost(expression=aj.sgd(0.1), device="x", parameters=10**6, **plain, **whole)
    assert "over 4 devices" in str(full)
    assert "4 all-reduce of 20 bytes\n" in str(full)
    assert "10 all-gather of 9,876,543,210 bytes\n" in str(full)
    assert "2.000 ms at 1 GB/s" in str(full)
    assert "1.000 a parameter, by the cheapest branch" in str(full)
    assert "2 loops of unknown length" in str(full)


def test_errors(monkeypatch):
    ask = lambda params=PARAMS, **options: aj.cost(aj.sgd(0.1), params, **options)
    with pytest.raises(
        ValueError, match=r"^cost: there is no platform 'abacus' here\. Choose 'cpu'"
    ):
        ask(platform="abacus")
    with pytest.raises(ValueError, match=r"^cost: params is \{\}\. Pass"):
        ask({}, platform="cpu")
    with pytest.raises(TypeError, match=r"^cost: sharding holds .*NamedSharding"):
        ask(platform="cpu", sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    many = NamedSharding(AbstractMesh((512,), ("x",)), PartitionSpec("x"))
    with pytest.raises(ValueError, match=r"^cost: the mesh \{'x': 512\} has 512 devices"):
        ask(platform="cpu", sharding=many)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    machines.topology.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'adamw-jax\[tpu-aot\]'"):
        ask()


def test_the_shell(monkeypatch, capsys):
    from absl import flags

    from adamw_jax import __main__ as shell

    def run(*arguments):
        flags.FLAGS.unparse_flags()
        rest = flags.FLAGS(["adamw-jax", *arguments])
        return shell.run(rest), capsys.readouterr()

    code, said = run("cost", "lion(1e-4)", "--platform=cpu", "--params=w:64x64")
    assert code == 0
    assert "floor               20.0" in said.out
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    machines.topology.cache_clear()
    code, said = run("cost", "lion(1e-4)", "--platform=tpu")
    assert code == 2
    assert "adamw-jax[tpu-aot]" in said.err


# --- TPUs that are not there ---------------------------------------------------


@on_tpu
@each_chip
@rows("elementwise")
def test_an_elementwise_optimizer_moves_no_more_than_it_must(row, topology):
    """Every buffer once, in one kernel, with nothing beside; Sophia's on the steps that
    do not refresh the curvature, which here is the square of the gradient."""
    tx = row.tx() if row.extra is nothing else row.tx(estimator=aj.square())
    found = aj.cost(tx, PARAMS, topology=topology)
    floor = WIDTH**2 * (12 + 2 * state_bytes(tx, (WIDTH, WIDTH)))
    assert found.floor == pytest.approx(floor, rel=1e-3)
    assert found.least <= 1.01 * floor
    assert found.temporaries == 0
    if row.extra is nothing:
        assert found.bytes == found.least >= floor
        assert found.kernels == 1
    if "v5p" in topology:  # whose on-chip memory is too small to prefetch so much
        assert found.bytes == pytest.approx(found.compiler_bytes, rel=1e-3)


@on_tpu
@each_chip
@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (aj.sgd(0.1), 12.0),
        (aj.lion(1e-4), 20.0),
        (aj.adamw(1e-3), 28.0),
        (CLIPPED, 32.0),  # the norm needs one more read
    ],
    ids=lambda x: x.factory.__name__ if hasattr(x, "factory") else str(x),
)
def test_bytes_a_parameter(tx, expected, topology):
    found = aj.cost(tx, PARAMS, topology=topology)
    assert found.bytes_per_parameter == pytest.approx(expected, rel=1e-3)
    # newer libtpus keep some of the norm's partial sums
    assert found.temporaries <= (0.01 * found.parameters if tx is CLIPPED else 0)
    assert found.collectives == ()
    rate = {"v5e:2x2x1": 819e9, "v5p:2x2x1": 2765e9}[topology]
    assert found.seconds == pytest.approx(expected * WIDTH**2 / rate, rel=1e-3)


@on_tpu
def test_prefetches_are_not_counted_twice():
    params = {f"w{i}": jax.ShapeDtypeStruct((512, 512), jnp.float32) for i in range(4)}
    found = aj.cost(aj.adamw(1e-3), params)
    assert found.compiler_bytes > 40 * found.parameters  # it does prefetch
    assert found.bytes_per_parameter == pytest.approx(28, rel=5e-3)


@on_tpu
@pytest.mark.parametrize("prefix", [False, True])
def test_shards(prefix):
    """Four devices do a quarter each; a global norm is one sum of one number."""
    mesh = AbstractMesh((2, 2), ("data", "model"))
    whole = NamedSharding(mesh, PartitionSpec("data", "model"))
    sharding = whole if prefix else {"kernel": whole}
    found = aj.cost(aj.adamw(1e-3), PARAMS, sharding=sharding)
    assert (found.devices, found.collectives, found.temporaries) == (4, (), 0)
    assert found.bytes_per_parameter == pytest.approx(7.0, rel=1e-3)
    clipped = aj.cost(CLIPPED, PARAMS, sharding=sharding)
    assert clipped.collectives == (hlo.Collective("all-reduce", 4, 1),)
    assert clipped.bytes_per_parameter == pytest.approx(8.0, rel=1e-3)


@on_tpu
def test_a_state_without_a_shard_is_everywhere():
    half = NamedSharding(AbstractMesh((4,), ("x",)), PartitionSpec("x"))
    found = aj.cost(aj.adafactor(1e-2), PARAMS, sharding=half)
    assert found.devices == 4
    assert found.floor == pytest.approx(12 * WIDTH**2 / 4, rel=0.02)


@on_tpu
def test_a_core_has_half_the_bandwidth_of_its_chip():
    assert machines.bandwidth(machines.topology("v4:2x2x1")) == 600e9
    assert machines.bandwidth(machines.topology("v6e:2x2x1")) == 1638e9
    assert machines.bandwidth(machines.topology("v5p:2x2x2")) == 2765e9


@on_tpu
def test_a_topology_that_does_not_exist():
    with pytest.raises(ValueError, match=r"^cost: libtpu knows no topology 'v5e:3x3'"):
        aj.cost(aj.sgd(0.1), PARAMS, topology="v5e:3x3")


@on_tpu
def test_the_environment_is_left_alone():
    machines.topology.cache_clear()
    machines.topology("v5e:2x2x1")
    assert not set(machines.COMPILE_ONLY) - {"TPU_SKIP_MDS_QUERY"} & set(os.environ)


@on_tpu
def test_two_processes_at_once():
    """libtpu alone lets one process in at a time."""
    code = (
        "import sys, jax, jax.numpy as jnp, adamw_jax as aj;"
        "print(aj.cost(aj.sgd(0.1), {'w': jnp.zeros((512, 512))}).kernels, flush=True);"
        "sys.stdin.read()"
    )
    start = lambda: subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(start()) for _ in range(2)]
        assert [run.stdout.readline() for run in both] == ["1\n", "1\n"]  # and both still live
        for run in both:
            run.stdin.close()
            assert run.wait() == 0


# --- export --------------------------------------------------------------------


@rows()
def test_export_for_tpu_and_gpu(row):
    """The update lowers for both, survives as bytes, and is the same program here."""
    tx, params = row.tx(), {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)}
    state = tx.init(params)
    leaves, treedef = jax.tree.flatten((params, state, params))

    def update(*leaves):
        params, state, grads = treedef.unflatten(leaves)
        updates, state = tx.update(grads, state, params, **row.extra(params))
        return jax.tree.leaves((optax.apply_updates(params, updates), state))

    step = jax.jit(update)
    exported = jax.export.export(step, platforms=["tpu", "cuda", "cpu"])(*leaves)
    restored = jax.export.deserialize(exported.serialize())
    assert restored.platforms == ("tpu", "cuda", "cpu")
    assert_equal(restored.call(*leaves), step(*leaves))


# --- the page ------------------------------------------------------------------


def test_the_page_has_every_optimizer():
    text = PAGE.read_text(encoding="utf-8")
    table = {cells[0]: cells for cells in map(_cells, text.splitlines()) if len(cells) > 6}
    names = {row.make.__name__ for row in ROWS}
    around = runpy.run_path(str(ROOT / "benchmarks" / "cost.py"))["AROUND"]
    assert names | set(around) <= set(table)
    header = table["optimizer"]
    for row in ROWS:
        found = dict(zip(header, table[row.make.__name__], strict=True))
        assert found["tpu, cuda"] == "yes"
        if "elementwise" not in row.skips:
            ordinary = [float(found[chip].split(" ")[0]) for chip in ("v5e", "v5p")]
            assert max(ordinary) <= 1.01 * float(found["floor"])


def _cells(line):
    return [cell.strip(" `") for cell in line.strip("|").split("|")]
