"""serve-keys: the face of `casemate.releases`."""

from __future__ import annotations

import argparse
import signal

from casemate import measures, releases
from casemate.cli import output
from casemate.errors import ExitCode, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.evidence.policy import Policy


def serve_keys(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; or check the log."""
    if arguments.check_log:
        return _check_log(arguments)
    if arguments.write_client:
        releases.write_client(arguments.write_client)
        print(arguments.write_client)
        return ExitCode.DONE
    if arguments.policy is None or not (arguments.socket or arguments.listen or arguments.vm):
        raise InputError(
            "serve-keys", expected="a policy, and where to listen", next_step="casemate serve-keys FILE --socket PATH"
        )
    address = _address(arguments)
    releases.keep_memory_private()
    server = releases.KeyServer(arguments.policy, measure=_measure)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    try:
        if arguments.socket:
            server.listen_unix(arguments.socket)
            output.note(f"listening on {arguments.socket}")
        if address is not None:
            host, port = address
            port = server.listen_tls(
                host, port, certificate=arguments.cert, key=arguments.key, client_ca=arguments.client_ca or ""
            )
            output.note(f"listening on {host} port {port}")
        for vm in arguments.vm:
            output.note(f"serving the port of {server.serve_vm(vm)}")
        output.note(f"{len(server.resources)} resources: {', '.join(server.resources)}")
        server.run()
    finally:
        server.close()
    return ExitCode.DONE


def _measure(spec: str) -> tuple[Policy, str]:
    """The policy of the launch that a specification describes: the values are those of `casemate measure`."""
    found = measures.measure(spec, measures.Choices()).expected
    return found.policy(), f"{spec} ({found.identity()[:16]})"


def _check_log(arguments: argparse.Namespace) -> int:
    count = 0
    for count, found in enumerate(releases.check_log(public_key=arguments.public_key), start=1):  # noqa: B007
        if arguments.json:
            print(releases.decision_json(found))
        else:
            print(output.plain(releases.render_decision(found), keep_lines=True))
    output.note(f"{count} entries: each signed by this key, none missing before the last, none moved")
    return ExitCode.DONE


def _address(arguments: argparse.Namespace) -> tuple[str, int] | None:
    text = arguments.listen
    if text is None:
        return None
    if not arguments.cert or not arguments.key:
        raise InputError("--listen goes with --cert and --key", next_step="secrets are served over TLS only")
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"--listen {text}", expected="ADDRESS:PORT, such as 127.0.0.1:8443 or [::1]:8443")
    return host, int(port)
