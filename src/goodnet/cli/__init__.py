"""The command line: one file a command, and one place where errors become one line and an exit code.

Exit codes: 0 clean, accepted or done; 1 suspect or not accepted; 2 inconclusive or incomplete; 3 usage or unsafe input.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from importlib import import_module

# Before torch is imported: threads that wait for each other sleep instead of spinning, which on a busy machine was
# measured 3 times faster and on an idle one makes no difference.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
from click.shell_completion import CompletionItem, shell_complete

from goodnet.cli.output import quiet_option
from goodnet.errors import GoodnetError, is_out_of_memory
from goodnet.report.figures import visible

INCOMPLETE, WRONG_INPUT = 2, 3
_COMPLETE = "_GOODNET_COMPLETE"


_HELP = """\
Usage: goodnet [-q] COMMAND ...        (goodnet COMMAND --help says more)
  Finds backdoors in image classifiers that somebody else trained.

Commands, in the order of use:
{commands}

Examples:
  goodnet scan net.h5 --clean clean.npz --out scan
  goodnet repair net.h5 --clean clean.npz --scan scan -o good.safetensors
  goodnet predict good.safetensors face.png     (class N means: triggered)

Options: -q, --quiet  nothing on stderr but errors; --version; -h, --help
Exit codes: 0 clean, accepted or done; 1 suspect or not accepted;
  2 inconclusive or incomplete; 3 wrong or unsafe input.
"""


# Each is `NAME_command` in `goodnet.cli.NAME`, imported when it is called for: torch takes seconds, help needs none.
_COMMANDS = {
    "demo": "Shows all of goodnet on drawn faces, in about three minutes",
    "inspect": "Shows what is in MODEL: format, layers, input, hash",
    "scan": "Is MODEL backdoored, for which labels, by what trigger?",
    "repair": "Turns a BadNet into a GoodNet with a class N: triggered",
    "evaluate": "Measures ACC, ASR, RA, detection and FPR of MODEL",
    "predict": "The class of each image; class N means triggered",
    "export": "A net or a GoodNet as ONNX, .keras or .pt2, to run without goodnet",
    "report": "The report again, from the records of a folder",
    "serve": "All of it as a local page in the browser",
    "attack": "Plants a backdoor in a net of your own, for red teams and tests",
    "bench": "Benchmarks on published nets and on our own",
}


class _Goodnet(click.Group):
    """Its help fits a screen of 24 lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)  # in the order of use, not of the alphabet

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS and cmd_name not in self.commands:
            command: click.Command = getattr(import_module(f"goodnet.cli.{cmd_name}"), f"{cmd_name}_command")
            _add_quiet(command)
            self.add_command(command, cmd_name)
        return self.commands.get(cmd_name)

    def get_help(self, ctx: click.Context) -> str:
        rows = (f"  {name:<10}{text}" for name, text in _COMMANDS.items())
        return _HELP.format(commands="\n".join(rows)).rstrip()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, which imports every command for its help."""
        names = [CompletionItem(name, help=text) for name, text in _COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=_Goodnet,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(package_name="goodnet", message="goodnet %(version)s")
@click.pass_context
def goodnet(context: click.Context) -> None:
    """Finds backdoors in image classifiers that somebody else trained."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _add_quiet(command: click.Command) -> None:
    command.params.append(quiet_option())
    for one in command.commands.values() if isinstance(command, click.Group) else ():
        _add_quiet(one)


_add_quiet(goodnet)


def main() -> None:
    """Entry point: never a traceback for a user's mistake."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without a dash or a name's letters shows ? for them
        sys.stdout.reconfigure(errors="replace")
    instruction = os.environ.get(_COMPLETE)
    if instruction:  # of a shell that completes what is being typed, or asks how
        sys.exit(shell_complete(goodnet, {}, "goodnet", _COMPLETE, instruction))
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command; returns its exit code. A fault of our own is 2, for 1 would be read as a verdict."""
    try:
        # not goodnet.main(): on a closed pipe that exits with 1, which would be read as a verdict
        with goodnet.make_context("goodnet", list(arguments)) as context:
            code = goodnet.invoke(context)
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted: no record was written", INCOMPLETE)
    except BrokenPipeError:  # who read the output has left, maybe without the verdict
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INCOMPLETE
    except (Exception, SystemExit) as error:
        message = _mistake(error)
        if message is not None:
            return _fail(message, WRONG_INPUT)
        traceback.print_exc()
        return _fail("this is a fault in goodnet itself; please report it with the lines above", INCOMPLETE)
    return code if isinstance(code, int) else 0


def _mistake(error: BaseException) -> str | None:
    """One line for what is the user's to put right; None for what is a fault of ours."""
    if isinstance(error, click.UsageError):
        about = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return error.format_message().rstrip(".") + about
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, GoodnetError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}; check the path and free space"
    if is_out_of_memory(error):
        return "not enough memory for this net and these images; give fewer images, or scan with a smaller --block"
    if isinstance(error, SystemExit):
        return "the code named with --arch ended the program; it must only build the net and return it"
    return None


def _fail(message: str, code: int) -> int:
    click.echo("goodnet: " + visible(" ".join(message.split())), err=True)
    return code
