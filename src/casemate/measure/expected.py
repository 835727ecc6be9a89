"""What a launch will measure, as one object: its values, the policy that evidence has to meet, and what decides about
a key come from the same numbers, so that they cannot drift apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from casemate.errors import InputError
from casemate.evidence.policy import NitroPolicy, Policy, SePolicy, TpmPolicy
from casemate.measure.registers import Prediction, Step

KINDS: Final = ("sev-snp", "sev-es", "tdx", "tpm", "nitro", "se")
_REGISTER: Final = re.compile(r"(?:[a-z0-9]+\.|rtmr|pcr)([0-9]+)")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement before the launch.

    ``values``: lower-case hexadecimal by name: ``measurement`` (SEV-SNP, SEV-ES), ``sha256.4`` (bank and PCR of a
    TPM), ``mrtd`` and ``rtmr1`` (TDX), ``pcr0`` (Nitro), ``image`` (Secure
    Execution: what its evidence knows of an image). ``unpredictable``: by the same names, why there is no value.
    ``inputs``: what it was made from. ``steps``: the events that give the values, of kinds that have a log. ``wanted``:
    what evidence has to say beside the values.
    """

    kind: str
    values: dict[str, str]
    inputs: dict[str, str | int]
    unpredictable: dict[str, str] = {}
    steps: tuple[Step, ...] = ()
    wanted: Policy = Policy()

    def registers(self) -> tuple[int, ...]:
        """The registers that something is said of: by a value, which without events is zeros, or by an event."""
        named = (_REGISTER.fullmatch(name) for name in self.values)
        return tuple(sorted({int(name[1]) for name in named if name} | {step.register for step in self.steps}))

    def policy(self) -> Policy:
        """What evidence of this launch has to say.

        Raises:
            InputError: nothing verifies evidence of this kind, or not one value could be computed.
        """
        if not self.values:
            raise InputError("there is nothing to want", got="no value that can be computed", expected="one at least")
        if self.kind == "sev-snp":
            return Policy(sev_snp=replace(self.wanted.sev_snp, measurement=(self.values["measurement"],)))
        if self.kind == "tdx":
            rtmrs = {name.removeprefix("rtmr"): value for name, value in self.values.items() if name != "mrtd"}
            mrtd = (self.values["mrtd"],) if "mrtd" in self.values else ()
            return Policy(tdx=replace(self.wanted.tdx, mrtd=mrtd, rtmr=rtmrs))
        if self.kind == "nitro":
            return Policy(nitro=NitroPolicy({name.removeprefix("pcr"): value for name, value in self.values.items()}))
        if self.kind == "se":
            return Policy(se=SePolicy(image=(self.values["image"],)))
        if self.kind == "tpm":
            return Policy(tpm=self._tpm())
        raise InputError(f"there is no policy for {self.kind}", got="evidence that its own firmware checks")

    def _tpm(self) -> TpmPolicy:
        pcrs: dict[str, dict[str, str]] = {}
        for name, value in self.values.items():
            bank, _, number = name.partition(".")
            pcrs.setdefault(bank, {})[number] = value
        strong = {int(number) for bank, values in pcrs.items() if bank != "sha1" for number in values}
        return TpmPolicy(pcrs=pcrs, required_pcrs=tuple(sorted(strong)))

    def policy_text(self) -> str:
        """The policy as the file that ``attest verify --policy`` and key release read.

        Raises:
            InputError: as `policy`.
        """
        lines = [f"# {self.kind}, computed by casemate measure from:"]
        lines += [f"#   {name}: {_comment(value)}" for name, value in self.inputs.items()]
        lines += [f"# not predictable: {name}: {_comment(why)}" for name, why in self.unpredictable.items()]
        return "\n".join([*lines, *policy_lines(self.policy())]) + "\n"

    def identity(self) -> str:
        """SHA-256 of what is wanted, for logs of decisions: the same values have the same identity."""
        return policy_identity(self.policy())

    def document(self) -> dict[str, Any]:
        """As JSON: schema ``casemate.measure/1``."""
        found: dict[str, Any] = {"schema": "casemate.measure/1", "kind": self.kind}
        if "measurement" in self.values:
            found["digest"] = self.values["measurement"]
        found |= {"values": self.values, "unpredictable": self.unpredictable, "inputs": self.inputs}
        if self.steps:
            found["events"] = [_event(step) for step in self.steps]
        return found


def of_tpm(prediction: Prediction, registers: tuple[int, ...], inputs: dict[str, str | int]) -> Expected:
    """A TPM's registers as expected values, in every bank of the prediction."""
    values = {
        f"{bank}.{number}": value.hex()
        for bank in prediction.banks
        for number, value in prediction.values(bank, registers).items()
    }
    unknown = {number: why for number, why in prediction.unpredictable().items() if number in registers}
    return Expected(
        kind="tpm",
        values=values,
        inputs=inputs,
        unpredictable={f"{bank}.{number}": why for bank in prediction.banks for number, why in unknown.items()},
        steps=prediction.steps,
    )


def of_registers(
    kind: str,
    prefix: str,
    prediction: Prediction,
    inputs: dict[str, str | int],
    registers: tuple[int, ...] = (),
) -> Expected:
    """Registers of SHA-384 that a kind has by name (``pcr0`` of Nitro, ``rtmr1`` of TDX); without ``registers`` those
    that anything is measured into."""
    registers = registers or tuple(sorted({step.register for step in prediction.steps}))
    return Expected(
        kind=kind,
        values={f"{prefix}{n}": value.hex() for n, value in prediction.values("sha384", registers).items()},
        inputs=inputs,
        unpredictable={f"{prefix}{number}": why for number, why in prediction.unpredictable().items()},
        steps=prediction.steps,
    )


def policy_lines(policy: Policy) -> list[str]:
    """A policy as TOML, without what is default; `parse_policy` gives the same policy."""
    plain = msgspec.to_builtins(policy)
    default = msgspec.to_builtins(Policy())
    lines = [f"format = {policy.format}"]
    for name, section in plain.items():
        if name == "format" or section == default[name]:
            continue
        changed = {key: value for key, value in section.items() if value != default[name][key]}
        lines += ["", f"[{name}]"]
        lines += [line for key, value in changed.items() if not _is_nested(value) for line in _assign(key, value)]
        for key, value in changed.items():
            if _is_nested(value):
                for inner, table in value.items():
                    lines += ["", f"[{name}.{key}.{inner}]", *(x for k, v in table.items() for x in _assign(k, v))]
    return lines


def policy_identity(policy: Policy) -> str:
    """SHA-256 of what a policy wants, wherever it came from."""
    return hashlib.sha256("\n".join(policy_lines(policy)).encode()).hexdigest()


def _is_nested(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(item, dict) for item in value.values())


def _assign(key: str, value: object) -> Iterator[str]:
    if not _BARE_KEY.fullmatch(key):
        raise RuntimeError(f"policy key {key!r}")
    if isinstance(value, dict):
        inner = ", ".join(f"{name} = {_scalar(item)}" for name, item in value.items())
        yield f"{key} = {{ {inner} }}"
    elif isinstance(value, list | tuple):
        yield f"{key} = [{', '.join(map(_scalar, value))}]"
    else:
        yield f"{key} = {_scalar(value)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    # JSON's strings are TOML's, with DEL escaped as well.
    return msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")


def _comment(value: object) -> str:
    """One line of TOML comment: no control characters."""
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _event(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = {"register": step.register, "what": step.what}
    if step.unknown:
        return found | {"unpredictable": step.unknown}
    return found | {"digests": {bank: digest.hex() for bank, digest in step.digests.items()}}
