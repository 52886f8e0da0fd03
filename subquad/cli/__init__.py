"""The command line, `subquad SUBCOMMAND`: experiments, ops, and models of transformers.

What a subcommand needs is imported when it runs: --help waits for no plotting library.
"""

import sys

from ._experiments import list_names, recall, report, text
from ._models import linearize, swap
from ._ops import check, profile, throughput, tune
from ._reading import EXTRAS, INTERRUPTED, MISUSE, UsageError, need_packages

__all__ = ["EXTRAS", "INTERRUPTED", "MISUSE", "UsageError", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    try:
        need_packages("the command line", "bench", *EXTRAS)
        import tyro

        commands = {"recall": recall, "text": text, "report": report, "swap": swap, "linearize": linearize}
        commands |= {"throughput": throughput, "profile": profile, "check": check, "tune": tune, "list": list_names}
        code = tyro.extras.subcommand_cli_from_dict(
            commands, prog="subquad", description="Sequence mixers measured beside attention.", args=arguments
        )
        return code or 0
    except UsageError as error:
        print(f"subquad: {error}", file=sys.stderr)
        return MISUSE
