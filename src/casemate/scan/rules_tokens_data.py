"""Rules by content: credentials and tokens of services, in the forms that the services document themselves.

Where a form has a checksum or an inner structure, ``check`` verifies it; where it has neither and is short, the name of
the service must stand before it.
"""

from __future__ import annotations

import re

from casemate.scan.model import Level, Rule

_REVOKE = "revoke it at the service, then remove it from the image; give secrets to the machine when it starts"
_END = r"(?![A-Za-z0-9_-])"
_START = r"(?<![A-Za-z0-9_-])"
_ASSIGN = r"[\w .\-\"'\]]{0,24}[=:>,\s\"'`]{1,6}"
"""From the name of a variable to its value, in shells, TOML, YAML, JSON."""


def _token(
    name: str,
    title: str,
    form: str,
    *,
    severity: Level = Level.HIGH,
    check: str = "",
    entropy: float = 3.0,
    keywords: tuple[str, ...],
    long: bool = False,
) -> Rule:
    """A token with a prefix of its own. ``long``: its end is open, so the prefilter stops after the prefix."""
    return Rule(
        id=f"token.{name}",
        title=title,
        severity=severity,
        regex=f"{_START}(?P<secret>{form}){_END}",
        prefilter=f"(?i)(?:{'|'.join(map(re.escape, keywords))})" if long else "",
        keywords=keywords,
        check=check,
        entropy=entropy,
        before=96,
        after=2048 if long else 160,
        remedy=_REVOKE,
    )


def _named(name: str, title: str, service: str, form: str, *, entropy: float = 3.0, check: str = "") -> Rule:
    """A value without a form of its own, behind the name of its service."""
    return Rule(
        id=f"token.{name}",
        title=title,
        severity=Level.HIGH,
        regex=f"(?i:{service}){_ASSIGN}(?P<secret>{form})(?![A-Za-z0-9_+/=-])",
        keywords=(service.split("[")[0].split("(")[0].lower(),) if service[:4].isalpha() else (),
        check=check or "no_placeholder",
        entropy=entropy,
        before=192,
        after=160,
        remedy=_REVOKE,
    )


_B62 = "[A-Za-z0-9]"
_URL = "[A-Za-z0-9_-]"

RULES: tuple[Rule, ...] = (
    # ---- clouds
    _token("aws-key-id", "AWS access key", "(?:AKIA|ASIA)[A-Z2-7]{16}", check="aws_key_id", keywords=("akia", "asia")),
    _named(
        "aws-secret",
        "AWS secret access key",
        r"aws_?(?:secret)?_?(?:access)?_?(?:secret|key)(?:_access_key)?",
        "[A-Za-z0-9/+]{40}",
        entropy=4.2,
        check="mixed",
    ),
    _token("gcp-api-key", "Google API key", f"AIza{_URL}{{35}}", keywords=("aiza",), entropy=3.5),
    _token("gcp-oauth-secret", "Google OAuth client secret", f"GOCSPX-{_URL}{{28}}", keywords=("gocspx-",)),
    _token("gcp-access", "Google access token", r"ya29\.[A-Za-z0-9_-]{60,1200}", keywords=("ya29.",), long=True),
    Rule(
        id="cloud.gcp-service-account",
        title="Google service account file",
        severity=Level.CRITICAL,
        regex=r"\"type\"\s*:\s*\"service_account\"[\s\S]{1,800}?\"private_key_id\"\s*:\s*\"(?P<secret>[0-9a-f]{40})\"",
        prefilter=r"\"type\"\s{0,4}:\s{0,4}\"service_account\"",
        keywords=("service_account",),
        after=1024,
        remedy=_REVOKE,
    ),
    Rule(
        id="cloud.azure-storage",
        title="Azure storage or service bus key",
        severity=Level.CRITICAL,
        regex=r"(?:AccountKey|SharedAccessKey)=(?P<secret>[A-Za-z0-9+/]{43}=|[A-Za-z0-9+/]{86}==)",
        keywords=("accountkey=", "sharedaccesskey="),
        entropy=4.0,
        remedy=_REVOKE,
    ),
    Rule(
        id="cloud.azure-client-secret",
        title="Azure client secret",
        severity=Level.CRITICAL,
        regex=r"(?<![A-Za-z0-9_~.-])(?P<secret>[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34})(?![A-Za-z0-9_~.-])",
        keywords=("q~",),
        entropy=4.0,
        remedy=_REVOKE,
    ),
    Rule(
        id="cloud.azure-sas",
        title="Azure shared access signature",
        severity=Level.HIGH,
        regex=r"[?&]sv=20\d\d-\d\d-\d\d&[A-Za-z0-9=&%:._-]{8,400}?sig=(?P<secret>[A-Za-z0-9%+/]{40,80}(?:%3D|=))",
        prefilter=r"[?&]sv=20\d\d-\d\d-\d\d&",
        keywords=("sv=20",),
        after=800,
        remedy=_REVOKE,
    ),
    _token("digitalocean", "DigitalOcean token", "do[opr]_v1_[a-f0-9]{64}", keywords=("dop_v1_", "doo_v1_", "dor_v1_")),
    _token("heroku", "Heroku token", f"HRKU-AA{_URL}{{58}}", keywords=("hrku-aa",)),
    _named(
        "heroku-legacy",
        "Heroku API key",
        "heroku",
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    ),
    _named(
        "cloudflare", "Cloudflare API token", "cloudflare", f"{_URL}{{40}}|[a-f0-9]{{37}}", entropy=3.5, check="mixed"
    ),
    _token("alibaba", "Alibaba Cloud access key", f"LTAI{_B62}{{20}}", keywords=("ltai",), entropy=3.5),
    # ---- code and packages
    _token(
        "github",
        "GitHub token",
        f"gh[pousr]_{_B62}{{36}}",
        check="crc_base62",
        keywords=tuple(f"gh{c}_" for c in "pousr"),
    ),
    _token(
        "github-fine-grained",
        "GitHub token (fine-grained)",
        f"github_pat_{_B62}{{22}}_{_B62}{{59}}",
        keywords=("github_pat_",),
    ),
    _token(
        "gitlab",
        "GitLab token",
        rf"gl(?:pat|ptt|dt|rt|cbt|soat|imt|ft|oas|agent)-{_URL}{{20,64}}(?:\.[0-9a-z]{{2}}\.?[0-9a-z]{{7}})?",
        keywords=("glpat-", "glptt-", "gldt-", "glrt-", "glcbt-", "glsoat-", "glimt-", "glft-", "gloas-", "glagent-"),
        long=True,
    ),
    _token("npm", "npm token", f"npm_{_B62}{{36}}", check="crc_base62", keywords=("npm_",)),
    _token("pypi", "PyPI token", "pypi-AgE[A-Za-z0-9_-]{40,1000}", check="pypi", keywords=("pypi-age",), long=True),
    _token("rubygems", "RubyGems key", "rubygems_[a-f0-9]{48}", keywords=("rubygems_",)),
    _token("crates", "crates.io token", f"cio{_B62}{{32}}", keywords=("cio",), entropy=4.0, check="mixed"),
    _token(
        "docker-hub",
        "Docker Hub token",
        f"dckr_(?:pat|oat)_{_URL}{{27,32}}",
        keywords=("dckr_pat_", "dckr_oat_"),
        long=True,
    ),
    _token("atlassian", "Atlassian token", r"ATATT3[A-Za-z0-9_\-=]{180,220}", keywords=("atatt3",), long=True),
    # ---- language models
    _token(
        "openai",
        "OpenAI key",
        rf"sk-(?:(?:proj|svcacct|admin|None)-)?{_URL}{{20,120}}T3BlbkFJ{_URL}{{20,120}}",
        keywords=("t3blbkfj",),
        long=True,
    ),
    _token(
        "anthropic",
        "Anthropic key",
        f"sk-ant-(?:api|admin|sid|oat)\\d\\d-{_URL}{{80,120}}",
        keywords=("sk-ant-",),
        long=True,
    ),
    _token(
        "hugging-face",
        "Hugging Face token",
        "(?:hf_|api_org_)[A-Za-z]{34}",
        keywords=("hf_", "api_org_"),
        entropy=3.5,
        check="mixed_case",
    ),
    # ---- messages and mail
    _token(
        "slack",
        "Slack token",
        r"xox[abeoprs]-(?:\d-)?[A-Za-z0-9-]{20,250}|xapp-\d-[A-Za-z0-9-]{40,160}",
        keywords=("xox", "xapp-"),
        long=True,
        check="has_digit",
    ),
    Rule(
        id="token.slack-webhook",
        title="Slack webhook",
        severity=Level.MEDIUM,
        regex=r"hooks\.slack\.com/(?P<secret>(?:services|workflows|triggers)/T[A-Za-z0-9]{6,12}/[A-Za-z0-9]{6,14}/[A-Za-z0-9]{16,40})",
        keywords=("hooks.slack.com/",),
        entropy=3.5,
        remedy=_REVOKE,
    ),
    _token("telegram", "Telegram bot token", r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}", keywords=(":aa",), entropy=4.0),
    _token(
        "discord",
        "Discord bot token",
        r"[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}",
        keywords=(),
        entropy=4.5,
        check="discord",
    ),
    _token("sendgrid", "SendGrid key", rf"SG\.{_URL}{{22}}\.{_URL}{{43}}", keywords=("sg.",)),
    _token("mailgun", "Mailgun key", "key-[0-9a-f]{32}", keywords=("key-",), entropy=3.2),
    _named("mailgun-new", "Mailgun key", "mailgun", "[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8}"),
    _token("mailchimp", "Mailchimp key", "[0-9a-f]{32}-us[0-9]{1,2}", keywords=("-us",), entropy=3.2),
    _named("twilio-auth", "Twilio auth token", "twilio", "[0-9a-f]{32}", entropy=3.2),
    _named("twilio-key", "Twilio API key", "twilio", "SK[0-9a-f]{32}", entropy=3.2),
    # ---- payment
    _token(
        "stripe",
        "Stripe secret key",
        f"(?:sk|rk)_(?:live|test)_{_B62}{{20,247}}",
        keywords=("sk_live_", "rk_live_", "sk_test_", "rk_test_"),
        long=True,
    ),
    _token("stripe-webhook", "Stripe webhook secret", f"whsec_{_B62}{{32,64}}", keywords=("whsec_",), long=True),
    _token(
        "square",
        "Square token",
        f"(?:EAAA{_URL}{{60}}|sq0csp-{_URL}{{43}})",
        keywords=("eaaa", "sq0csp-"),
        entropy=4.2,
        check="mixed",
    ),
    _token(
        "shopify",
        "Shopify token",
        "shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
        keywords=("shpat_", "shpca_", "shppa_", "shpss_"),
    ),
    # ---- operations
    _token(
        "vault",
        "Vault token",
        r"hv[sbr]\.[A-Za-z0-9_-]{80,400}",
        keywords=("hvs.", "hvb.", "hvr."),
        long=True,
        entropy=4.0,
    ),
    _named("vault-legacy", "Vault token", "vault_token", rf"s\.{_B62}{{24}}"),
    _token(
        "terraform",
        "Terraform Cloud token",
        rf"{_B62}{{14}}\.atlasv1\.[A-Za-z0-9_=-]{{60,70}}",
        keywords=(".atlasv1.",),
    ),
    _token("grafana", "Grafana token", f"glsa_{_B62}{{32}}_[0-9a-fA-F]{{8}}", keywords=("glsa_",)),
    _token("databricks", "Databricks token", r"dapi[a-f0-9]{32}(?:-\d)?", keywords=("dapi",), entropy=3.2),
    _token(
        "doppler",
        "Doppler token",
        rf"dp\.(?:pt|st|ct|sa)\.(?:[a-z0-9_-]{{2,35}}\.)?{_B62}{{40,44}}",
        keywords=("dp.pt.", "dp.st.", "dp.ct.", "dp.sa."),
        long=True,
    ),
    _token(
        "tailscale",
        "Tailscale key",
        f"tskey-(?:auth|api|client|scim|webhook)-{_B62}{{6,20}}-{_B62}{{20,40}}",
        keywords=("tskey-",),
        long=True,
    ),
    _token("new-relic", "New Relic key", "NRAK-[A-Z0-9]{27}", keywords=("nrak-",)),
    _token("pulumi", "Pulumi token", "pul-[a-f0-9]{40}", keywords=("pul-",), entropy=3.2),
    Rule(
        id="token.jwt",
        title="JSON Web Token",
        severity=Level.MEDIUM,
        regex=rf"{_START}(?P<secret>eyJ[A-Za-z0-9_-]{{10,1500}}\.eyJ[A-Za-z0-9_-]{{4,6000}}\.[A-Za-z0-9_-]{{16,1400}}){_END}",
        prefilter=r"\.eyJ[A-Za-z0-9_-]{4}",
        keywords=(".eyj",),
        check="jwt",
        before=1600,
        after=8192,
        remedy="let the service that issued it revoke it or wait until it expires; remove it from the image",
    ),
)
