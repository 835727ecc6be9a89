"""Rules by content: what configuration, provisioning and programs leave in files, told by the form of the file."""

from __future__ import annotations

from casemate.scan.model import Level, Rule

_CHANGE = "change the password, then remove it from the image; give secrets to the machine when it starts"
_CLEAN = "run the image's clean-up before it is published (cloud-init clean --logs --seed, virt-sysprep)"

RULES: tuple[Rule, ...] = (
    Rule(
        id="cred.url",
        title="Password in a URL",
        severity=Level.HIGH,
        regex=r"(?<![A-Za-z0-9+.-])(?:https?|ftps?|ssh|git|smb|ldaps?|imaps?|smtps?|amqps?|mqtts?|redis|mongodb(?:\+srv)?"
        r"|mysql|mariadb|postgres(?:ql)?)://[A-Za-z0-9._%+-]{1,64}:(?P<secret>[^\s:/@\"'<>{}$()\[\]|\\\x00-\x1f\x7f-\xff]{6,128})"
        r"@[A-Za-z0-9.-]{2,128}",
        prefilter=r"://[A-Za-z0-9._%+-]{1,64}:[^\s:/@\"'<>{}$()\[\]|\\\x00-\x1f\x7f-\xff]{6,128}@[A-Za-z0-9]{2}",
        keywords=("://",),
        check="no_placeholder",
        entropy=2.5,
        remedy=_CHANGE,
    ),
    Rule(
        id="cred.netrc",
        title="Password for a server (.netrc)",
        severity=Level.HIGH,
        regex=r"(?:^|[\n\x00])[ \t]*(?:machine[ \t\r\n]+[\w.:-]{3,128}|default)[ \t\r\n]+login[ \t\r\n]+"
        r"(?!anonymous\s)[^\s\x00]{1,128}"
        r"[ \t\r\n]+password[ \t\r\n]+(?P<secret>[^\s\x00]{4,128})",
        prefilter=r"\blogin[ \t\r\n]{1,8}[^\s\x00]{1,128}[ \t\r\n]{1,8}password[ \t\r\n]{1,8}[^\s\x00]{4}",
        keywords=("password",),
        check="no_placeholder",
        before=512,
        remedy=_CHANGE,
    ),
    Rule(
        id="cred.pgpass",
        title="Password for PostgreSQL (.pgpass)",
        severity=Level.HIGH,
        regex=r"(?:^|[\n\x00])(?:[A-Za-z0-9.-]{1,128}|\*):(?:5432|6432|\*):(?:[\w-]{1,63}|\*):[\w-]{1,63}:(?P<secret>[^\s:\x00]{4,128})(?=[\n\x00])",
        prefilter=r":(?:5432|6432|\*):(?:[\w-]{1,63}|\*):[\w-]{1,63}:[^\s:\x00]{4}",
        keywords=(":5432:", ":6432:", ":*:"),
        check="no_placeholder",
        remedy=_CHANGE,
    ),
    Rule(
        id="cred.mysql",
        title="Password of a MySQL client",
        severity=Level.HIGH,
        regex=r"\[client\][^\[\x00]{0,400}?\n[ \t]*password[ \t]*=[ \t]*(?P<secret>[^\s\x00]{4,128})",
        prefilter=r"\[client\]",
        keywords=("[client]",),
        check="no_placeholder",
        after=640,
        remedy=_CHANGE,
    ),
    Rule(
        id="cred.docker",
        title="Docker registry credentials",
        severity=Level.HIGH,
        regex=r"\"auths\"\s*:\s*\{[^\x00]{1,2048}?\"auth\"\s*:\s*\"(?P<secret>[A-Za-z0-9+/]{8,1024}={0,2})\"",
        prefilter=r"\"auths\"\s{0,8}:\s{0,8}\{",
        keywords=('"auths"',),
        check="docker_auth",
        after=4096,
        remedy=_CHANGE,
    ),
    Rule(
        id="cred.kubeconfig",
        title="Kubernetes client key",
        severity=Level.CRITICAL,
        regex=r"client-key-data:\s*\"?(?P<secret>[A-Za-z0-9+/]{64,8192}={0,2})",
        prefilter=r"client-key-data:\s{0,4}\"?[A-Za-z0-9+/]{64}",
        keywords=("client-key-data:",),
        check="base64_pem",
        after=9000,
        remedy="replace the client certificate at the cluster, then remove it from the image",
    ),
    Rule(
        id="cred.kube-token",
        title="Kubernetes bootstrap token",
        severity=Level.HIGH,
        regex=r"(?:--token[ =]|\btoken:\s{0,4}\"?)(?P<secret>[a-z0-9]{6}\.[a-z0-9]{16})(?![a-z0-9])",
        keywords=("token",),
        entropy=3.0,
        check="has_digit",
        remedy="kubeadm token delete, then remove it from the image",
    ),
    Rule(
        id="cred.browser",
        title="Saved password of a browser",
        severity=Level.HIGH,
        regex=r"\"encryptedPassword\"\s*:\s*\"(?P<secret>MD[A-Za-z0-9+/]{24,512}={0,2})\"",
        keywords=('"encryptedpassword"',),
        remedy="remove the browser's profile from the image and change the passwords saved in it",
    ),
    Rule(
        id="cred.command-line",
        title="Password on a command line",
        severity=Level.MEDIUM,
        regex=r"(?:^|[\n\x00;&| ])(?:sshpass[ ]+-p[ ]*|curl[ ][^\n\x00]{0,120}?(?:-u|--user)[ =]+[\w.@-]{1,64}:"
        r"|(?:mysql|mysqldump|mysqladmin)[ ][^\n\x00]{0,120}?(?<=[ ])(?:--password=|-p)"
        r"|echo[ ]+[\"']?[a-z_][\w-]{0,31}:)"
        r"[\"']?(?P<secret>[^\s\"'$<>{}\x00|:;-][^\s\"'$<>{}\x00|;]{4,127})"
        r"(?P<rest>[\"']?[ ]*\|[ ]*(?:sudo[ ]+)?chpasswd)?",
        prefilter=r"sshpass -p|curl [^\n\x00]{0,120}(?:-u|--user)[ =][\w.@-]{1,64}:"
        r"|mysql(?:dump|admin)? [^\n\x00]{0,120}(?:--password=|-p)[^\s]"
        r"|\|[ ]{0,3}(?:sudo )?chpasswd",
        keywords=("sshpass", "curl", "mysql", "chpasswd"),
        check="command_line",
        before=256,
        remedy=_CHANGE,
    ),
    Rule(
        id="cred.environment",
        title="Secret in an environment variable",
        severity=Level.MEDIUM,
        regex=r"(?:^|[\n\x00 ])(?:export[ ]+|Environment=\"?)?[A-Z][A-Z0-9_]{1,40}"
        r"(?:PASSWORD|PASSWD|SECRET|TOKEN|API_KEY|SECRET_KEY)="
        r"[\"']?(?P<secret>[^\s\"'$<>{}()\x00%*\x80-\xff]{12,200})(?=[\s\"'\x00]|$)",
        prefilter=r"(?:PASSWORD|PASSWD|SECRET|TOKEN|API_KEY|SECRET_KEY)=[\"']?[^\s\"'$<>{}()\x00%*\x80-\xff]{12}",
        keywords=("password=", "passwd=", "secret=", "token=", "api_key=", "secret_key="),
        check="mixed",
        entropy=3.3,
        remedy=_CHANGE,
    ),
    Rule(
        id="cloud-init.user-data",
        title="cloud-init user-data with a password",
        severity=Level.HIGH,
        regex=r"#cloud-config[ \t\r]*\n[^\x00]{0,4096}?\n[ \t-]*"
        r"(?:plain_text_passwd|hashed_passwd|passwd|password)[ \t]*:"
        r"[ \t]*"
        r"(?P<secret>[^\s#\x00][^\s\x00]{3,127})",
        prefilter=r"#cloud-config[ \t\r]{0,4}\n",
        keywords=("#cloud-config",),
        check="no_placeholder",
        after=6000,
        remedy=_CLEAN,
    ),
    Rule(
        id="cloud-init.instance-data",
        title="cloud-init instance data of another machine",
        severity=Level.MEDIUM,
        regex=r"\"base64_encoded_keys\"\s*:\s*\[[\s\S]{1,8192}?\"(?:instance[-_]id)\"\s*:\s*\"(?P<secret>[^\"\n]{3,80})\"",
        prefilter=r"\"base64_encoded_keys\"\s{0,4}:\s{0,4}\[",
        keywords=("base64_encoded_keys",),
        after=10_000,
        remedy=_CLEAN,
    ),
    Rule(
        id="ignition.config",
        title="Ignition configuration",
        severity=Level.MEDIUM,
        regex=r"\{\s*\"ignition\"\s*:\s*\{[^\x00]{0,400}?\"version\"\s*:\s*\"(?P<secret>[23]\.\d\.\d(?:-[a-z]+)?)\"",
        prefilter=r"\"ignition\"\s{0,8}:\s{0,8}\{",
        keywords=('"ignition"',),
        after=1024,
        remedy="remove /config.ign, /boot/ignition and what the platform's agent keeps; it holds the machine's secrets",
    ),
    Rule(
        id="dhcp.lease",
        title="DHCP lease of another machine",
        severity=Level.LOW,
        regex=r"lease \{\s+(?:bootp;\s+)?interface \"[\w.-]{1,16}\";\s+fixed-address (?P<secret>[0-9.]{7,15});",
        keywords=("lease {",),
        remedy="remove /var/lib/dhcp/*.leases: they tell the network that the image was made in",
    ),
    Rule(
        id="machine-id.block",
        title="machine-id in a block of its own",
        severity=Level.LOW,
        regex=r"(?P<secret>[0-9a-f]{12}[1-5][0-9a-f]{3}[89ab][0-9a-f]{15})\n(?=\x00{64})",
        prefilter=r"[0-9a-f]{4}\n\x00\x00\x00",
        check="block_start",
        before=64,
        after=128,
        remedy="machines with one machine-id share addresses: leave /etc/machine-id empty, and wipe free space",
    ),
)
