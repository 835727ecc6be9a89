"""Arguments of every command. Only argparse: this file is read before anything else and must cost little.

A command names the function that runs it as ``module:function`` below ``casemate.cli``; it is imported on use.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, TypeAlias

    Commands: TypeAlias = argparse._SubParsersAction["Parser"]

SPEC_HELP = "a specification (TOML), a disk image (qcow2 or raw, told by content), or builtin"
VM_HELP = "name, id, or unique beginning of the id"
LAYERS = ("namespaces", "root", "identity", "capabilities", "cgroup", "rlimits", "landlock", "seccomp")

ASSESS: dict[str, tuple[str, ...]] = {
    "args_audit": ("audit", "controls"),
    "args_capture": ("capture",),
    "args_risk": ("risk",),
    "args_harden": ("harden",),
    "args_surface": ("surface", "detect"),
    "args_emulator": ("emulator",),
    "args_measure": ("measure",),
    "args_attest": ("attest",),
    "args_serve_keys": ("serve-keys",),
    "args_image": ("image",),
    "args_save": ("save",),
}
"""Modules with the arguments of the commands that assess, and these commands; each has ``add(commands)``."""

EPILOG = """\
first steps:
  casemate doctor                     what this host can do, and what to install
  casemate run builtin                boot the built-in guest, console attached; Ctrl-] leaves it running
  casemate run -d --name web IMAGE    boot a cloud image in the background; prints the id
  casemate inspect web                the wall around it, as read back from the live process
  casemate stop web && casemate rm web

exit codes:
  0 done   1 findings or a failed check   2 wrong use or bad input   3 the host cannot do it
  4 refused by a control   5 a VM or helper failed   6 time-out
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse makes one for each argument, and would ask shutil, which brings three unpackers, how wide it may be."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """As `shutil.get_terminal_size` has it."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # closed, or no terminal
        return 80


class Parser(argparse.ArgumentParser):
    """Errors look like every other error of ours, and say where the help is."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """A word out of a list: say which was perhaps meant."""
        if action.choices is None or value in action.choices:
            return
        import difflib

        words = [str(choice) for choice in action.choices]
        close = difflib.get_close_matches(str(value), words, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; expected {', '.join(words)}"
        raise argparse.ArgumentError(action, f"there is no {value!r}{hint}")

    def parse_known_args(  # type: ignore[override]  # its overloads name the namespace's type, which is ours
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """What a command does not know is its own fault, and its own help says what it knows."""
        found, rest = super().parse_known_args(args, namespace)
        if rest and not self._take_late(found, rest):
            import difflib

            flags = [word for word in self._option_string_actions if word.startswith("--")]
            close = difflib.get_close_matches(rest[0].partition("=")[0], flags, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return found, rest

    def _take_late(self, found: argparse.Namespace, rest: list[str]) -> bool:
        """Names behind an option, which argparse does not add to a list that it has closed: ``stop a -t 5 b``."""
        if any(word.startswith("-") for word in rest):
            return False
        last = next((action for action in reversed(self._actions) if not action.option_strings), None)
        if last is None or last.nargs not in ("*", "+"):
            return False
        late = self._get_values(last, list(rest))  # types and choices
        setattr(found, last.dest, [*(getattr(found, last.dest) or ()), *late])
        rest.clear()
        return True

    def error(self, message: str) -> NoReturn:
        from casemate.cli.output import print_error
        from casemate.errors import InputError

        print_error(InputError(message, next_step=f"{self.prog} --help"))
        sys.exit(2)


def build_parser(word: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; or, when ``word`` is a command, no more of it than that command needs.

    argparse takes 10 ms for all of it, which every launch would pay.
    """
    parser = Parser(
        prog="casemate",
        description="Run virtual machines in a confined emulator, and prove that the confinement is in force.",
        epilog=EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, prog=parser.prog
    )
    own = {
        _host_commands: ("doctor", "plan"),
        _start_commands: ("run", "create", "start", "restart"),
        _end_commands: ("stop", "kill", "rm", "pause", "unpause", "wait"),
        _look_commands: ("ps", "inspect", "logs", "console", "events", "stats"),
        _trust_commands: ("prove", "key", "verify-record", "unit", "spec", "completion", "version"),
    }
    is_command = any(word in names for names in (*own.values(), *ASSESS.values()))
    for add, names in own.items():
        if not is_command or word in names:
            add(commands)
    for module, names in ASSESS.items():
        if not is_command or word in names:
            importlib.import_module(f"casemate.cli.{module}").add(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when asked."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, *_: object) -> NoReturn:
        from casemate.installed import installed_version

        print(f"casemate {installed_version()}")
        sys.exit(0)


def add_command(commands: Commands, name: str, handler: str, text: str, epilog: str | None = None) -> Parser:
    """One command; ``text`` is its line in the list and, as a sentence, the head of its own help."""
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=_Formatter,
        allow_abbrev=False,
        epilog=epilog,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON (docs/json.md)")


def _vm(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    if several:
        parser.add_argument("vms", nargs="*", metavar="VM", help=VM_HELP)
        parser.add_argument("-a", "--all", action="store_true", help="every VM")
    else:
        parser.add_argument("vm", metavar="VM", help=VM_HELP)


def _policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy", metavar="FILE", help="host policy, in place of /etc/casemate/policy.toml: what may be waived"
    )


def _overrides(parser: argparse.ArgumentParser) -> None:
    """Flags that replace or add to what the specification says."""
    group = parser.add_argument_group("instead of what the specification says")
    group.add_argument("--name", help="name of the VM")
    group.add_argument("--machine", metavar="TYPE", help="microvm (for a given kernel) or q35")
    group.add_argument("--memory-mib", metavar="N", help="guest RAM in MiB, or with a unit: 2G")
    group.add_argument("--vcpus", type=int, metavar="N", help="number of virtual CPUs")
    group.add_argument("--accel", metavar="WHICH", help="auto (KVM where it runs at speed), kvm or tcg")
    group.add_argument("--kernel", metavar="FILE", help="boot this kernel")
    group.add_argument("--initrd", metavar="FILE", help="its initial RAM disk")
    group.add_argument("--cmdline", metavar="TEXT", help="its command line")
    group.add_argument("--firmware", metavar="WHICH", help="uefi, uefi-secure or bios: boot what the first disk holds")
    group.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="PATH[:OPT,..]",
        help="add a disk; OPT: raw, qcow2, overlay (default: writes die with the VM), persistent, read-only",
    )
    group.add_argument(
        "--saveable", action="store_true", default=None, help="let casemate save write its state (docs/save.md)"
    )
    group.add_argument("--net", metavar="MODE", help="none, or user (rootless, through passt)")
    group.add_argument("--egress", metavar="WHICH", help="what the guest may reach: none, internet or list")
    group.add_argument("--ipv6", action="store_true", default=None, help="the guest gets IPv6 beside IPv4")
    group.add_argument(
        "--allow", action="append", default=[], metavar="CIDR", help="an address block for --egress list; repeat it"
    )
    group.add_argument(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[ADDR:]HOST:GUEST[/udp]",
        help="publish a port of the guest on 127.0.0.1 (or ADDR); implies --net user",
    )


def _host_commands(commands: Commands) -> None:
    doctor = add_command(
        commands, "doctor", "host:doctor", "show what this host can do, and how to mend what it cannot"
    )
    doctor.add_argument("--kvm", action="store_true", help="what KVM offers, emulates itself and how fast it is")
    add_json(doctor)
    plan = add_command(
        commands, "plan", "plans:plan", "show everything about a launch, and start nothing", epilog=_PLAN_EPILOG
    )
    plan.add_argument("target", nargs="?", metavar="SPEC|IMAGE|builtin", help=SPEC_HELP)
    _overrides(plan)
    _policy(plan)
    add_json(plan)


_PLAN_EPILOG = """\
Shows arguments, descriptors, mounts, identity, system calls, limits and the controls of the launch.
Exit code 4 when a control would refuse it.
"""

_RUN_EPILOG = """\
examples:
  casemate run builtin
  casemate run -d --name web -p 2222:22 debian-12-genericcloud-amd64.qcow2
  casemate run --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0" --memory-mib 512
  casemate run vm.toml --rm --timeout-s 60

In the foreground the console is attached: Ctrl-] leaves it and the VM goes on. Without a terminal, Ctrl-C stops the
VM, and a second Ctrl-C kills it. Exit code: 0 the guest powered off, 5 panic, killed or emulator failure, 6 time-out.
"""


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="SPEC|IMAGE|builtin", help=SPEC_HELP)
    parser.add_argument("--rm", action="store_true", help="delete the VM when it has ended")
    parser.add_argument(
        "--timeout-s", type=_positive, metavar="S", help="kill it after S seconds of running (exit code 6)"
    )
    _policy(parser)
    add_json(parser)
    _overrides(parser)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _grace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t", "--time", type=_count, default=10, metavar="S", help="seconds to wait before killing it (default 10)"
    )


def _start_commands(commands: Commands) -> None:
    run = add_command(commands, "run", "runs:run", "define a VM and start it", epilog=_RUN_EPILOG)
    run.add_argument("-d", "--detach", action="store_true", help="print the id and return once the guest runs")
    group = run.add_argument_group("go on from a saved state")
    group.add_argument("--from", dest="from_file", metavar="FILE", help="what casemate save wrote, instead of a target")
    group.add_argument("--age-identity", metavar="FILE", help="opens a state that was sealed with --age-recipient")
    group.add_argument("--key-file", metavar="FILE", help="the key that it was sealed with, mode 0600")
    group.add_argument("--key-fd", type=int, metavar="N", help="the key comes from this open descriptor")
    _run_options(run)
    create = add_command(commands, "create", "runs:create", "define a VM without starting it; prints its id")
    _run_options(create)
    start = add_command(commands, "start", "runs:start", "start a defined VM")
    _vm(start)
    how = start.add_mutually_exclusive_group()
    how.add_argument("-a", "--attach", action="store_true", help="attach the console, as run does")
    how.add_argument("--foreground", action="store_true", help="wait for its end; for systemd (Type=notify)")
    _policy(start)
    restart = add_command(commands, "restart", "runs:restart", "stop VMs and start them again")
    _vm(restart, several=True)
    _grace(restart)


def _end_commands(commands: Commands) -> None:
    stop = add_command(
        commands, "stop", "life:stop", "press the power button of VMs, and kill them after a grace period"
    )
    _vm(stop, several=True)
    _grace(stop)
    kill = add_command(commands, "kill", "life:kill", "kill the emulators of VMs at once")
    _vm(kill, several=True)
    remove = add_command(commands, "rm", "life:remove", "delete VMs with their logs; disk images stay")
    _vm(remove, several=True)
    remove.add_argument("-f", "--force", action="store_true", help="kill running ones first")
    for name, text in (("pause", "stop the virtual CPUs of VMs"), ("unpause", "let paused VMs go on")):
        _vm(add_command(commands, name, f"life:{name}", text), several=True)
    wait = add_command(commands, "wait", "life:wait", "wait until VMs have ended; prints their exit codes")
    _vm(wait, several=True)
    wait.add_argument("--timeout-s", type=_positive, metavar="S", help="give up after S seconds (exit code 6)")


def _look_commands(commands: Commands) -> None:
    ps = add_command(commands, "ps", "listing:ps", "list VMs that run")
    ps.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    ps.add_argument("-q", "--quiet", action="store_true", help="ids only")
    ps.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="name, id, state, accel; values of one key are alternatives, keys must all hold",
    )
    add_json(ps)
    inspect = add_command(commands, "inspect", "listing:inspect", "show everything about a VM: state, wall, exit, spec")
    _vm(inspect)
    inspect.add_argument(
        "--attestation-key",
        action="store_true",
        help="only the public key that quotes of its TPM are signed with (PEM)",
    )
    add_json(inspect)
    logs = add_command(commands, "logs", "listing:logs", "print the console's log of a VM")
    _vm(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the VM ends")
    logs.add_argument("-n", "--tail", type=_count, metavar="N", help="only the last N lines")
    logs.add_argument("--emulator", action="store_true", help="the emulator's own messages instead")
    console = add_command(commands, "console", "runs:console", "attach to the console of a running VM; Ctrl-] leaves")
    _vm(console)
    events = add_command(commands, "events", "listing:events", "print what happened to VMs, oldest first")
    events.add_argument("vm", nargs="?", metavar="VM", help=f"{VM_HELP}; all VMs without it")
    events.add_argument("-f", "--follow", action="store_true", help="go on until interrupted, or until that VM ends")
    add_json(events)
    stats = add_command(commands, "stats", "listing:stats", "show what running VMs use, once")
    _vm(stats, several=True)
    add_json(stats)


def _trust_commands(commands: Commands) -> None:
    prove = add_command(
        commands, "prove", "proofs:prove", "attack the wall from inside with a hostile probe, and list what it reached"
    )
    prove.add_argument("target", metavar="VM|SPEC|builtin", help="a defined VM, running or not; or what run takes")
    prove.add_argument("--without", choices=LAYERS, metavar="LAYER", help=f"leave one layer out: {', '.join(LAYERS)}")
    prove.add_argument("--quick", action="store_true", help="only what takes a moment")
    _policy(prove)
    add_json(prove)
    key = add_command(commands, "key", "misc:key", "show the public key that signs launch records")
    key.add_argument("action", choices=("show",), metavar="show", help="print it as an OpenSSH line")
    key.add_argument(
        "--jwk", action="store_true", help="as a JSON Web Key, with which attestation results are verified"
    )
    verify = add_command(commands, "verify-record", "proofs:verify_record", "verify signed launch records")
    verify.add_argument("files", nargs="*", metavar="FILE|VM", help="records; without any, this host's whole chain")
    verify.add_argument("--key", metavar="KEY", help="public key, or a file that holds it; default: this host's")
    add_json(verify)
    unit = add_command(commands, "unit", "misc:unit", "print a systemd unit for a defined VM")
    _vm(unit)
    spec = add_command(commands, "spec", "misc:spec", "print the JSON Schema of specifications")
    spec.add_argument("--schema", action="store_true", required=True, help="the schema, for editors")
    completion = add_command(commands, "completion", "misc:completion", "print the completion script of a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), metavar="SHELL", help="bash, zsh or tcsh")
    version = add_command(commands, "version", "misc:version", "print the version")
    add_json(version)
