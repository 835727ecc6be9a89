"""What the TCG accelerator needs beyond the base.

The translator writes its code into one buffer that it makes writable and executable at start (mprotect RWX); after that
no traced workload maps or protects executable memory again, so even TCG loses PROT_EXEC before ``cont``. The buffer
itself stays: TCG is no security boundary.
"""

from __future__ import annotations

from casemate.jail.rules import Phase, Rule
from casemate.jail.rulesets.values import PROT_EXEC, bits_are, int_is

RULES: tuple[Rule, ...] = (
    Rule("getrandom", "the guest executes RDRAND or RDSEED", (int_is(2, 0),)),
    Rule(
        "mprotect",
        "the translator makes its code buffer executable, once, before the guest runs",
        (bits_are(2, PROT_EXEC, PROT_EXEC),),
        Phase.STARTUP,
    ),
)
