"""The command line: one file a command, and one place where errors become one line and an exit code.

Exit codes: 0 clean, accepted or done; 1 suspect or not accepted; 2 inconclusive or incomplete; 3 usage or unsafe input.
"""

from __future__ import annotations

import os
import sys

import click

from goodnet.cli.demo import demo_command
from goodnet.cli.evaluate import evaluate_command
from goodnet.cli.inspect import inspect_command
from goodnet.cli.predict import predict_command
from goodnet.cli.repair import repair_command
from goodnet.cli.report import report_command
from goodnet.cli.scan import scan_command
from goodnet.errors import GoodnetError

INCOMPLETE, WRONG_INPUT = 2, 3


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="goodnet", message="goodnet %(version)s")
def goodnet() -> None:
    """Finds backdoors in image classifiers that somebody else trained.

    \b
    goodnet demo                               see all of it on drawn faces
    goodnet inspect MODEL                      what is in a model file
    goodnet scan MODEL --clean DATA            is it backdoored? (0 clean, 1 suspect)
    goodnet repair MODEL --clean DATA -o OUT   turn a BadNet into a GoodNet
    goodnet evaluate MODEL --clean DATA        prove it: ACC, ASR, detection
    goodnet predict GOODNET IMAGE...           class N means: triggered

    Exit codes: 0 clean or accepted; 1 suspect or not accepted; 2 inconclusive
    or incomplete; 3 wrong or unsafe input.
    """


for command in (
    scan_command,
    repair_command,
    evaluate_command,
    predict_command,
    inspect_command,
    report_command,
    demo_command,
):
    goodnet.add_command(command)


def main() -> None:
    """Entry point: never a traceback for a user's mistake."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command; returns its exit code."""
    try:
        code = goodnet.main(arguments, prog_name="goodnet", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_text:
        click.echo(help_text.format_message())
        return 0
    except click.ClickException as error:
        return _fail(error.format_message(), WRONG_INPUT)
    except GoodnetError as error:
        return _fail(str(error), WRONG_INPUT)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted: no record was written", INCOMPLETE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(
            f"{error.filename or 'file'}: {error.strerror or error}; check the path and free space", WRONG_INPUT
        )
    except MemoryError:
        return _fail("not enough memory for this net and these images; pass a smaller --block", WRONG_INPUT)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    click.echo("goodnet: " + " ".join(message.split()), err=True)
    return code
