"""A Debian whose root is a LUKS2 volume, and the initrd that opens it with a key that a broker releases.

initrd      busybox, modules, cryptsetup and `keyclient`: everything that runs before the root is opened, all of it
            measured by the boot loader
volume      a LUKS2 header that the command line names by its digest, and Debian's root file system, encrypted here
            with the volume key: no device mapper on the host, nothing mounted
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from tests.support.debian_image import debian_images

from casemate.cell.tools import tool_files
from casemate.engine.paths import default_paths
from casemate.image.cpio import directory, regular, write_cpio
from casemate.image.guest_modules import load_order
from casemate.image.guest_source import kernel_tree
from casemate.plan.argv import KEYS_PORT as PORT_NAME
from casemate.release.keyclient import compile_client

HEADER_BYTES = 32768
"""Two copies of 16 KiB: what the digest is over."""
DATA_BYTES = 1 << 20
RESOURCE = "default/disk/web"
_SECTOR = 1024
"""As small as the blocks of the file system: mke2fs makes them of 1 KiB in an image below 512 MiB."""
_MODULES = (
    *(("virtio_pci", "devices"), ("virtio_blk", "disks"), ("virtio_console", "the port of the broker")),
    *(("dm_crypt", "the root"), ("xts", "its cipher"), ("ext4", "its file system")),
    *(("algif_hash", "keyclient, cryptsetup"), ("algif_aead", "keyclient"), ("algif_skcipher", "cryptsetup")),
    *(("gcm", "keyclient"), ("sha512_generic", "keyclient")),
)
_OPTIONAL = (("aes_generic", ""), ("ecb", ""), ("ghash_generic", ""), ("ctr", ""))
_FOLDERS = (
    *("/kernel/drivers/virtio/", "/kernel/drivers/block/virtio", "/kernel/drivers/char/virtio_console"),
    *("/kernel/fs/ext4/", "/kernel/fs/jbd2/", "/kernel/fs/mbcache", "/kernel/drivers/md/", "/kernel/crypto/"),
    *("/kernel/lib/", "/kernel/arch/x86/crypto/"),
)
INIT = f"""#!/bin/sh
# What runs before the root is opened. Nothing of the disk is believed but a header whose digest was measured.
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t securityfs sec /sys/kernel/security; mount -t tmpfs run /run
mkdir -p /run/cryptsetup /root
say() {{ echo "casemate-initrd: $*" >/dev/ttyS0; }}
end() {{ say "$*"; poweroff -f; }}
for name in $(cat /m/order); do insmod /m/$name.ko 2>/dev/null || say "module $name does not load"; done
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name)" = {PORT_NAME} ] && port=/dev/${{port##*/}} && break
done
for disk in /sys/block/vd*; do [ "$(cat $disk/serial)" = disk1 ] && disk=/dev/${{disk##*/}} && break; done
# Copy, compare, and open the copy: the disk may change in between.
dd if=$disk of=/run/header bs=64k count={DATA_BYTES // 65536} 2>/dev/null
found=$(head -c {HEADER_BYTES} /run/header | sha256sum | cut -d' ' -f1)
grep -q "casemate.luks=$found" /proc/cmdline || end "the LUKS header is another: $found"
say "the LUKS header is the one that was measured"
keyclient --last $port {RESOURCE} >/run/key 2>/run/why || end "no key: $(cat /run/why)"
say "a key of $(wc -c </run/key) bytes was released"
cryptsetup open --type luks2 --header /run/header --key-file /run/key $disk root 2>/run/why || end "$(cat /run/why)"
rm /run/key
mount -t ext4 /dev/mapper/root /root || end "no file system in the volume"
say "the root is open"
umount /sys/kernel/security
for there in dev proc sys; do mount --move /$there /root/$there; done
umount /run
exec switch_root /root /sbin/init
"""


@dataclass(frozen=True)
class Boot:
    """What a disk's boot loader starts."""

    kernel: Path
    initrd: Path


def attested_boot(where: Path) -> Boot:
    """Debian's signed kernel, and the initrd that fetches the key."""
    cache = Path(default_paths().cache)
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        tree = kernel_tree(Path(scratch), lambda _: None, _FOLDERS)
        modules = load_order(tree.available, tree.builtin, tree.read_elf, _MODULES, _OPTIONAL)
        client = compile_client(Path(scratch))
    from casemate.image.builtin import find_builtin

    guest = find_builtin([cache])
    assert guest is not None, "the built-in guest is not built: casemate run builtin"
    entries = [directory(name) for name in ("m", "usr", "usr/sbin", "sys", "proc", "dev", "run")]
    entries += [
        regular("init", INIT.encode(), 0o755),
        regular("bin/keyclient", client, 0o755),
        regular("m/order", "".join(f"{name}\n" for name, _ in modules).encode()),
        *(regular(f"m/{name}.ko", elf) for name, elf in modules),
    ]
    made: set[str] = set()
    for path, content in tool_files("cryptsetup-bin", cache):
        for parent in reversed(Path(path).parents):
            name = str(parent).lstrip("/")
            if name and name not in made and name not in ("bin", "usr", "usr/sbin"):
                entries.append(directory(name))
                made.add(name)
        entries.append(regular(path.lstrip("/"), content, 0o755))
    whole = guest.initrd.read_bytes()
    kernel, initrd = where / "linux", where / "initrd"
    kernel.write_bytes(tree.image)
    initrd.write_bytes(whole + bytes(-len(whole) % 512) + write_cpio(entries))
    return Boot(kernel, initrd)


def encrypted_root(target: Path, key: bytes) -> Path:
    """Debian's root file system in a LUKS2 volume that ``key`` opens."""
    root = debian_images().root
    volume_key = os.urandom(64)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        secret = Path(scratch) / "volume-key"
        secret.touch(mode=0o600)
        secret.write_bytes(volume_key)
        with target.open("wb") as file:
            file.truncate(DATA_BYTES + root.stat().st_size)
        command = [
            shutil.which("cryptsetup") or "/usr/sbin/cryptsetup",
            "luksFormat",
            "--type",
            "luks2",
            "--batch-mode",
        ]
        command += ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", "--key-size", "512"]
        command += ["--volume-key-file", str(secret), "--sector-size", str(_SECTOR), "--offset", str(DATA_BYTES // 512)]
        command += ["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k", str(target)]
        subprocess.run(command, input=key, check=True, timeout=120)
    with root.open("rb") as plain, target.open("r+b") as sealed:
        sealed.seek(DATA_BYTES)
        for sector in range(root.stat().st_size // _SECTOR):
            # plain64: the number of the first 512-byte sector, also where sectors are larger.
            tweak = (sector * _SECTOR // 512).to_bytes(16, "little")
            data = plain.read(_SECTOR)
            sealed.write(Cipher(algorithms.AES(volume_key), modes.XTS(tweak)).encryptor().update(data))
    return target
