"""The command line of fastrl: four commands. Each is also a module that runs by itself.

fastrl train breakout                     DQN on any Atari game; Ctrl-C saves
fastrl train cartpole                     linear SARSA on many CartPoles
fastrl evaluate breakout --episodes 100   the weights that ship, whole games
fastrl watch runs/NAME                    a window; without a display a film
fastrl plot runs/NAME --x minutes         the learning curve
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastrl.base.commands import program
from fastrl.base.errors import ConfigError
from fastrl.base.launch import first_rank
from fastrl.base.stop import Start
from fastrl.cli import run_command

COMMANDS = {
    "train": "train an agent",
    "evaluate": "play whole games with a trained agent and print its scores",
    "watch": "watch a trained agent play, in a window or as a film",
    "plot": "draw learning curves",
}


def main() -> NoReturn:
    """Run the command that the first word names; without one, import nothing heavy."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        if os.getcwd() not in sys.path:  # `python -m fastrl.train` finds my_module:make_env there too
            sys.path.insert(0, os.getcwd())
        run_named(arguments[0], arguments[1:])
    run_command(_help, "fastrl")


def run_named(command: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Import a command and run it as `run_command` does; a signal before its work begins ends it with one line."""
    called = program(command)
    told = f"{called}: stopped before anything was begun; nothing was written" if first_rank() else ""

    def run(words: list[str]) -> int:
        with Start(told):
            status: int = importlib.import_module(f"fastrl.{command}").main(words)
            return status

    run_command(run, called, arguments)


def _help(arguments: list[str]) -> int:
    if arguments and arguments[0] not in ("-h", "--help"):
        raise ConfigError(f"command is {arguments[0]!r}; give {', '.join(COMMANDS)}, or --help")
    print("usage: fastrl COMMAND ...\n")
    for name, purpose in COMMANDS.items():
        print(f"  {name:<10} {purpose}")
    print("\nexamples:")
    for line in (__doc__ or "").partition("\n\n")[2].splitlines():
        print(f"  {line}")
    print("\nfastrl COMMAND --help lists a command's flags.")
    return 0 if arguments else 2


if __name__ == "__main__":
    main()
