"""Arguments of risk. Only argparse: read whenever the program starts."""

from __future__ import annotations

from casemate.cli.parser import add_command, add_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.parser import Commands

_EPILOG = """\
examples:
  casemate risk                                  this host and every VM that runs on it
  casemate risk web                              one VM
  casemate risk vm.xml --without network         a libvirt domain, as if nothing guarded its network
  casemate audit --json -o monday.json; casemate risk monday.json tuesday.json
  casemate risk init                             write risk.toml: what each loss would cost you, whom you trust
  casemate risk --assume cpu.smt=pass            what if hyper-threading were off
  casemate risk web --html -o web.html           the page for a decision: picture, matrix, plan, evidence
  casemate risk web --ebios --lang fr            a draft of the five EBIOS RM workshops, in French
  casemate risk compare web --services 5         separate machines, one system, one VM, or one VM each
  casemate risk compare web --html -o four.html  the same as one page with four columns

Paths are open, closed by what was observed, closed on paper (only declared), or unknown; paths that need a bug nobody
knows yet are residual, and never counted as closed. Exit code 1 when a path is open.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    risk = add_command(
        commands,
        "risk",
        "risk:risk",
        "open attack paths, the cheapest set of fixes that closes them, and what remains",
        epilog=_EPILOG,
    )
    risk.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="reports of casemate audit --json or --jsonl, or what casemate audit takes; init [FILE] writes a context, "
        "compare [TARGET] compares ways to place services",
    )
    risk.add_argument("--pid", action="append", type=int, default=[], help="a running emulator; repeat it")
    risk.add_argument("--context", metavar="FILE", help="what the owner says (casemate risk init writes one)")
    risk.add_argument("--assume", action="append", default=[], metavar="CONTROL=pass|fail", help="what if; repeat it")
    risk.add_argument(
        "--without", action="append", default=[], metavar="LAYER", help="what if this whole layer failed; repeat it"
    )
    risk.add_argument(
        "--fix-all-below",
        type=float,
        metavar="COST",
        help="what if everything that costs at most so many points were fixed",
    )
    risk.add_argument("--all", action="store_true", help="also closed scenarios, every fix and residual bug")
    risk.add_argument("--force", action="store_true", help="init: replace the file")
    risk.add_argument("--services", type=int, default=3, metavar="N", help="compare: how many services (default 3)")
    risk.add_argument(
        "--baseline", metavar="AUDIT.json", help="what changed since that audit, or between that host and this one"
    )
    add_json(risk)
    risk.add_argument("--jsonl", action="store_true", help="a line for each VM, as soon as it is analysed")
    risk.add_argument("--jobs", type=int, metavar="N", help="--jsonl: so many processes (default: one per core)")
    risk.add_argument(
        "--html", action="store_true", help="one page: attack graph, matrix, plan, evidence; of compare: four columns"
    )
    risk.add_argument("--dot", action="store_true", help="the attack graph for Graphviz")
    risk.add_argument("--sarif", action="store_true", help="for dashboards, with the paths as code flows")
    risk.add_argument(
        "--ebios", nargs="?", const="md", choices=("md", "html", "json"), help="a draft of the five EBIOS RM workshops"
    )
    risk.add_argument("--lang", choices=("en", "fr"), default="en", help="language of the EBIOS draft")
    risk.add_argument("-o", "--output", metavar="FILE", help="write there in place of standard output")
