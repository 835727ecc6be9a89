"""Names that QEMU's command line uses: options and whether they take an argument, short device names, sugar."""

from __future__ import annotations

from typing import Final

TAKES_ARGUMENT: Final = frozenset(
    """M machine cpu accel smp numa add-fd set global boot m mem-path k audio audiodev device name uuid fda fdb hda hdb
    hdc hdd cdrom blockdev drive mtdblock sd fsdev virtfs iscsi usbdevice display spice rotate vga vnc acpitable smbios
    netdev nic net chardev tpmdev bios pflash kernel append initrd dtb compat fw_cfg serial parallel monitor qmp
    qmp-pretty mon debugcon pidfile overcommit gdb d D dfilter seed L xen-domid action loadvm option-rom rtc icount
    watchdog-action echr incoming chroot runas run-with sandbox readconfig writeconfig trace plugin msg dump-vmstate
    object soundhw watchdog virtioconsole bt balloon machine-type tb-size realtime kvm-shadow-memory startdate clock
    tdf-clock prom-env semihosting-config old-net redir smb tftp bootp qtest qtest-log vmstate-size smp-cache shim
    virtfs_synth igd-passthru-device-name xen-create fake enable-fips-file""".split()  # noqa: SIM905  one name a word
)

PLAIN: Final = frozenset(
    """h help version mem-prealloc audio-help snapshot usb nographic portrait full-screen win2k-hack no-fd-bootchk
    no-acpi no-hpet singlestep one-insn-per-tb preconfig S s enable-kvm xen-attach xen-domid-restrict no-reboot
    no-shutdown daemonize only-migratable nodefaults no-user-config nodefconfig async-teardown enable-sync-profile
    sdl curses no-frame alt-grab ctrl-grab no-quit no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection
    semihosting old-param localtime enable-fips enable-hax show-cursor std-vga tdf rtc-td-hack mem-prealloc-all
    virtfs-synth no-tpm""".split()  # noqa: SIM905
)

HARMLESS: Final = frozenset(
    """S name uuid k rtc no-reboot no-shutdown action boot msg seed icount watchdog-action overcommit only-migratable
    mem-prealloc no-fd-bootchk win2k-hack portrait rotate full-screen audio-help echr clock localtime startdate pidfile
    realtime tdf-clock tdf rtc-td-hack no-quit no-frame alt-grab ctrl-grab show-cursor compat async-teardown
    enable-fips tb-size singlestep one-insn-per-tb preconfig no-acpi numa add-fd iscsi smbios dfilter D bios dtb
    enable-sync-profile dump-vmstate kvm-shadow-memory L option-rom acpitable""".split()  # noqa: SIM905
)
"""Options that bring no device, no host file for the guest to write and no interface; they stay in ``options``."""

DEVICE_ALIASES: Final[dict[str, str]] = {
    "ac97": "AC97",
    "ahci": "ich9-ahci",
    "e1000-82540em": "e1000",
    "es1370": "ES1370",
    "lsi": "lsi53c895a",
    "virtio-9p": "virtio-9p-pci",
    "virtio-balloon": "virtio-balloon-pci",
    "virtio-blk": "virtio-blk-pci",
    "virtio-gpu": "virtio-gpu-pci",
    "virtio-gpu-gl": "virtio-gpu-gl-pci",
    "virtio-input-host": "virtio-input-host-pci",
    "virtio-iommu": "virtio-iommu-pci",
    "virtio-keyboard": "virtio-keyboard-pci",
    "virtio-mouse": "virtio-mouse-pci",
    "virtio-net": "virtio-net-pci",
    "virtio-rng": "virtio-rng-pci",
    "virtio-scsi": "virtio-scsi-pci",
    "virtio-serial": "virtio-serial-pci",
    "virtio-sound": "virtio-sound-pci",
    "virtio-tablet": "virtio-tablet-pci",
}
"""Short names that -device accepts on x86 (qemu-system-x86_64 -device help)."""

VGA: Final[dict[str, str]] = {
    "std": "VGA",
    "cirrus": "cirrus-vga",
    "vmware": "vmware-svga",
    "qxl": "qxl-vga",
    "virtio": "virtio-vga",
    "xenfb": "xenfb",
    "tcx": "SUNW,tcx",
    "cg3": "cgthree",
}

SOUND: Final[dict[str, tuple[str, ...]]] = {
    "ac97": ("AC97",),
    "es1370": ("ES1370",),
    "hda": ("intel-hda", "hda-duplex"),
    "sb16": ("sb16",),
    "adlib": ("adlib",),
    "gus": ("gus",),
    "cs4231a": ("cs4231a",),
    "pcspk": ("isa-pcspk",),
    "virtio": ("virtio-sound-pci",),
    "usb-audio": ("usb-audio",),
}

USB: Final[dict[str, str]] = {
    "tablet": "usb-tablet",
    "mouse": "usb-mouse",
    "keyboard": "usb-kbd",
    "wacom-tablet": "usb-wacom-tablet",
    "braille": "usb-braille",
    "serial": "usb-serial",
    "disk": "usb-storage",
    "host": "usb-host",
    "net": "usb-net",
    "audio": "usb-audio",
    "ccid": "usb-ccid",
    "bt": "usb-bt-dongle",
}

WATCHDOGS: Final = frozenset({"i6300esb", "ib700", "diag288", "iTCO"})

PROVIDES: Final[dict[str, str]] = {
    "isa-serial": "serial",
    "isa-parallel": "parallel",
    "isa-fdc": "floppy",
    "floppy": "floppy",
    "ide-cd": "cdrom",
    "ide-hd": "cdrom",
    "scsi-cd": "cdrom",
    "scsi-hd": "cdrom",
    "VGA": "vga",
    "isa-vga": "vga",
    "cirrus-vga": "vga",
    "isa-cirrus-vga": "vga",
    "vmware-svga": "vga",
    "qxl-vga": "vga",
    "virtio-vga": "vga",
    "ati-vga": "vga",
    "vhost-user-vga": "vga",
    "virtio-vga-gl": "vga",
}
"""Device given by -device: the kind of default device that it replaces."""

BACKEND_KEYS: Final = (
    *("netdev", "drive", "chardev", "fsdev", "tpmdev", "memdev", "rng", "audiodev", "cryptodev", "throttle-group"),
    *("host", "hostaddr", "sysfsdev", "vhostfd", "wwpn", "hostbus", "chassis-backend"),
)
"""Properties of a device that name its host's side, in order of preference."""
