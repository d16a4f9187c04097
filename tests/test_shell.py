"""`adamw-jax`: what each command prints, and what it says when it is called wrongly."""

import configparser
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

import adamw_jax as aj
from adamw_jax import __main__ as program
from adamw_jax.inspect import periodic

ROOT = Path(__file__).parent.parent
ROWS = {row.optimizer: row for row in periodic.table()}


MODULE = ["-m", "adamw_jax"]
# What pip writes into the installed script.
SCRIPT = ["-c", "import sys; from adamw_jax.__main__ import main; sys.exit(main())"]


def shell(*arguments, columns="80", encoding="utf-8", program=MODULE):
    """The command in a process of its own."""
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "COLUMNS": columns}
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        encoding=encoding,
        cwd=ROOT,
        env=environment | {"PYTHONIOENCODING": encoding},
    )


@pytest.fixture
def command(capsys):
    """The command in this process: exit code, output, errors."""

    def call(*arguments):
        with flagsaver.flagsaver():
            code = program.run(flags.FLAGS(["adamw-jax", *arguments]))
        return code, *capsys.readouterr()

    return call


def test_list():
    """In 80 columns every name and every number is whole."""
    run = shell("list")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for name, row in ROWS.items():
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.split()[-1] == f"{row.bytes:.1f}"
        assert row.decay in line


def test_list_markdown(command):
    assert command("list", "--markdown") == (0, periodic.markdown(), "")


def test_describe(command):
    code, text, _ = command("describe", "muon(0.02)", "--params=up/kernel:64x256,up/bias:256,gain:")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert "up/kernel  64x256  f32    muon" in text
    assert "256 parameters" not in text  # 257: the last shape is that of a number
    assert "257 parameters" in text


def test_describe_has_parameters_of_its_own(command):
    code, text, _ = command("describe", "adamw(1e-3)")
    assert code == 0
    assert "8.0 bytes of state each" in text


def test_equations(command):
    tx = aj.swap(aj.adamw(3e-3), "weight_decay", aj.identity())
    expression = 'swap(adamw(3e-3), "weight_decay", identity())'
    assert command("equations", expression) == (0, aj.equations(tx, format="text") + "\n", "")
    latex = aj.equations(tx, format="latex", symbols=True)
    assert command("equations", expression, "--format=latex", "--symbols") == (0, latex + "\n", "")


def test_lint(command):
    """The exit code is what a script asks for."""
    assert command("lint", "adamw(1e-3)") == (0, "Nothing found.\n", "")
    code, text, _ = command("lint", "chain(adamw(1e-3), clip(1.0))")
    assert code == 1
    assert text.startswith("warning: clip_after_learning_rate at '1': ")


def test_diff(command):
    code, text, _ = command("diff", "adamw(1e-3)", "adamw(3e-4, b2=0.95)")
    assert code == 0
    assert len(text.splitlines()) == len(aj.diff(aj.adamw(1e-3), aj.adamw(3e-4, b2=0.95)))
    assert "0.999 -> 0.95" in text
    assert command("diff", "adam(0.1)", "adam(0.1)") == (0, "No difference.\n", "")


WRONG = {
    "unknown": (["lits"], "there is no command 'lits'"),
    "too many": (["list", "all"], "list takes no expression, not 1"),
    "too few": (["diff", "adam(0.1)"], "diff takes 2 expressions, not 1"),
    "none": (["lint"], "lint takes 1 expression, not 0"),
    "open": (["lint", "adamw(1e-3"], "'(' was never closed"),
    "python": (["lint", '__import__("os")'], "'__import__' is not a public name"),
    "no optimizer": (["describe", "adamw"], "'adamw' is function, not a transformation"),
    "superscript": (["describe", "sgd(0.1)", "--params=a:³"], "'a:³' is not path:shape"),
    "value": (["lint", "adamw(-1.0)"], "learning_rate is -1.0"),
    "slot": (["lint", 'part(adamw(1.0), "x")'], "there is no 'x' in adamw(1.0)"),
    "no shape": (["describe", "sgd(1.0)", "--params=up"], "'up' is not path:shape"),
    "bad shape": (["describe", "sgd(1.0)", "--params=up:3xx"], "'up:3xx' is not path:shape"),
    "below": (["describe", "sgd(1.0)", "--params=a:1,a/b:2"], "'a/b:2' lies below another"),
    "above": (["describe", "sgd(1.0)", "--params=a/b:2,a:1"], "'a:1' is there already"),
    "platform": (["cost", "sgd(1.0)", "--platform=x"], "Choose 'cpu', which is, or 'tpu', which"),
    "loss": (["cost", "sophia_h(1.0)", "--platform=cpu"], "cost: sophia_h(1.0) reads the loss"),
    "estimator": (["cost", "hutchinson()", "--platform=cpu"], "hutchinson() reads the loss"),
    "twice": (["describe", "sgd(1.0)", "--params=a:2,a:1"], "'a:1' is there already"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_told_so(command, arguments, said):
    code, printed, error = command(*arguments)
    assert (code, printed) == (2, "")
    assert said in error


def test_a_wrong_call_ends_without_a_traceback():
    run = shell("lint", "adamw(1e-3")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == "parse: '(' was never closed.\n  adamw(1e-3\n       ^\n"


def test_without_a_command_it_teaches(command):
    code, printed, error = command()
    assert (code, printed) == (2, "")
    assert "there is no" not in error
    taught = {line.split()[1] for line in error.splitlines() if line.startswith("adamw-jax ")}
    assert taught == set(program.COMMANDS)


@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["module", "script"])
def test_help(program):
    """It is no mistake to ask, and the answer is a lesson."""
    run = shell("--help", program=program)
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert "adamw-jax lint 'chain(adamw(1e-3), clip(1.0))'" in lines
    assert {"--markdown", "--format", "--symbols", "--params", "--platform", "--topology"} <= set(
        lines
    )


def test_help_for_one_command_and_a_wrong_flag():
    assert shell("describe", "--help").stdout == shell("--help").stdout
    run = shell("list", "--colour")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("adamw-jax: Unknown command line flag 'colour'")
    assert "Traceback" not in run.stderr


COMMANDS = {
    "help": ["--help"],
    "list": ["list"],
    "list markdown": ["list", "--markdown"],
    "describe": ["describe", "muon(0.02)"],
    "latex": ["equations", "adamw(cosine(1e-3, 100))", "--format=latex"],
    "lint": ["lint", "chain(adamw(1e-3), clip(1.0))"],
    "a wrong call": ["describe", "sgd(0.1)", "--params=Θ:³"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_terminal_that_knows_ascii_only(arguments):
    plain, full = shell(*arguments, encoding="ascii"), shell(*arguments)
    assert plain.returncode == full.returncode
    assert "Traceback" not in plain.stderr
    words = lambda text: re.findall(r"[a-z_]+", text.lower())
    assert set(words(full.stdout + full.stderr)) <= set(words(plain.stdout + plain.stderr))


def test_signs_are_spelled():
    run = shell("describe", "muon(0.02)", encoding="ascii")
    assert "x66.7" in run.stdout
    assert "2*f32" in run.stdout
    assert "momentum -> corrected" in shell("list", columns="200", encoding="ascii").stdout


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_of_40_columns(encoding):
    lines = shell("list", columns="40", encoding=encoding).stdout.splitlines()
    assert max(map(len, lines)) <= 40
    assert "…" not in "".join(lines)
    assert [line for line in lines if not line.startswith(" ")] == list(ROWS)
    assert lines.count("  8.0 bytes") == sum(f"{row.bytes:.1f}" == "8.0" for row in ROWS.values())
    lines = shell("--help", columns="40", encoding=encoding).stdout.splitlines()
    calls = {line for line in lines if line.startswith("adamw-jax ")}
    assert calls <= set(program.__doc__.splitlines())  # whole, to be copied
    assert max(len(line) for line in lines if line not in calls) <= 40


def test_the_examples_of_the_help_run(command):
    for line in program.__doc__.splitlines():
        if line.startswith("adamw-jax "):
            quoted = line.split("'")
            options = re.findall(r"--\w+=\S+(?= |$)", line)
            code, printed, error = command(quoted[0].split()[1], *quoted[1::2], *options)
            if "--topology" in line and importlib.util.find_spec("libtpu") is None:
                assert (code, printed) == (2, "")
                assert "adamw-jax[tpu-aot]" in error
                continue
            assert code == ("lint" in line), error
            assert printed


def test_the_console_script():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")
    (script,) = filter(None, scripts)
    name, _, target = script.partition(" = ")
    module, _, function = target.partition(":")
    assert name == "adamw-jax"
    assert callable(getattr(importlib.import_module(module), function))
