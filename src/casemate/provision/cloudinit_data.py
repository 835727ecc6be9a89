"""Top-level keys of a ``#cloud-config`` document and the YAML kinds that each takes.

Source: cloud-init 22.4 to 25.1, cloudinit/config/schemas/schema-cloud-config-v1.json. Only this level: modules change
from release to release, and the guest's own ``cloud-init schema --system`` judges the rest by its own version.
``s`` scalar, ``l`` list, ``m`` mapping, ``0`` nothing at all.
"""

from __future__ import annotations

from typing import Final

CLOUD_CONFIG_KEYS: Final[dict[str, str]] = {
    **dict.fromkeys(
        """allow_public_ssh_keys apt_pipelining apt_reboot_if_required apt_update apt_upgrade authkey_hash
        byobu_by_default create_hostname_file disable_ec2_metadata disable_root disable_root_opts final_message fqdn
        hostname locale locale_configfile manage_etc_hosts manage_resolv_conf no_ssh_fingerprints
        package_reboot_if_required package_update package_upgrade password prefer_fqdn_over_hostname preserve_hostname
        resize_rootfs ssh_deletekeys ssh_pwauth ssh_quiet_keygen timezone yum_repo_dir""".split(),  # noqa: SIM905
        "s",
    ),
    **dict.fromkeys(
        """bootcmd cloud_config_modules cloud_final_modules cloud_init_modules datasource_list fs_setup
        mount_default_fields mounts packages runcmd ssh_authorized_keys ssh_fp_console_blacklist ssh_genkeytypes
        ssh_import_id ssh_key_console_blacklist write_files""".split(),  # noqa: SIM905
        "l",
    ),
    **dict.fromkeys(
        """ansible apk_repos apt autoinstall ca-certs ca_certs chef chpasswd datasource device_aliases disk_setup
        drivers fan growpart grub-dpkg grub_dpkg keyboard landscape lxd mcollective merge_how migrate phone_home
        power_state puppet random_seed reporting resolv_conf rh_subscription rpi rsyslog salt_minion snap spacewalk ssh
        ssh_keys ssh_publish_hostkeys swap system_info ubuntu_advantage ubuntu_pro updates user vendor_data wireguard
        yum_repos zypper""".split(),  # noqa: SIM905
        "m",
    ),
    "groups": "slm",
    "locale": "s",
    "merge_how": "slm",
    "merge_type": "slm",
    "migrate": "sm",
    "network": "m",
    "ntp": "0m",
    "output": "m",
    "packages": "lm",
    "user": "sm",
    "users": "slm",
    "wireguard": "0m",
}

NETWORK_KEYS: Final[dict[int, dict[str, str]]] = {
    1: {"version": "s", "config": "ls"},
    2: {
        "version": "s",
        "renderer": "s",
        **dict.fromkeys(
            ("bonds", "bridges", "dummy-devices", "ethernets", "modems", "tunnels", "virtual-ethernets", "vlans"), "m"
        ),
        "vrfs": "m",
        "wifis": "m",
    },
}
"""docs.cloud-init.io, reference/network-config-format-v1 and -v2; netplan's types for version 2."""
