"""The command line: ``freenergy study | train | evaluate | sample | report``."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from freenergy import distributed
from freenergy._version import __version__
from freenergy.cli import evaluate, report, sample, study, train
from freenergy.cli.options import Interrupted
from freenergy.training import DivergenceError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Restricted Boltzmann machines and the free energy: train, measure, report.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (study.study, train.train, evaluate.evaluate, sample.sample, report.report):
    app.command()(_command)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line; errors of the user end in one line and exit code 2."""
    warnings.simplefilter("once", UserWarning)
    warnings.showwarning = _show_warning
    try:
        code = app(standalone_mode=False)
        if code == 130:  # How typer passes Ctrl-C on.
            _fail("interrupted", 130)
    except Interrupted as stop:
        code = _fail(f"interrupted: {stop}", 130)
    except DivergenceError as error:
        code = _fail(str(error), 1)
    except (ValueError, OSError) as error:
        code = _fail(str(error), 2)
    except Exception as error:
        # Usage errors of the option parser, which carry their own message and exit code.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # Empty where the help itself was printed.
        code = _fail(f"{message} (see freenergy --help)", 2) if message else 2
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"freenergy: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if distributed.launched_rank() == 0:
        print(f"freenergy: warning: {message}", file=sys.stderr)
