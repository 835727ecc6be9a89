"""Build a small Linux guest for tracing: a distribution kernel package unpacked somewhere, busybox, an init of ours.

The init runs the steps named in the kernel argument ``steps=`` (blk, net, rng, flood, then one of off, reboot, panic,
hang) and prints ``TRACE-READY`` and ``TRACE-DONE`` on the console.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path

MODULES = (
    "kernel/drivers/virtio/virtio_ring.ko",
    "kernel/drivers/virtio/virtio.ko",
    "kernel/drivers/virtio/virtio_pci_legacy_dev.ko",
    "kernel/drivers/virtio/virtio_pci_modern_dev.ko",
    "kernel/drivers/virtio/virtio_pci.ko",
    "kernel/drivers/virtio/virtio_mmio.ko",
    "kernel/drivers/block/virtio_blk.ko",
    "kernel/net/core/failover.ko",
    "kernel/drivers/net/net_failover.ko",
    "kernel/drivers/net/virtio_net.ko",
    "kernel/drivers/char/hw_random/virtio-rng.ko",
    "kernel/drivers/char/virtio_console.ko",
)

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /lib/*.ko; do insmod $module; done
steps=$(sed 's/.*steps=\\([a-z,]*\\).*/\\1/' /proc/cmdline)
echo TRACE-READY $steps
for step in $(echo $steps | tr , ' '); do
  echo step $step
  case $step in
  blk) for disk in /dev/vda /dev/vdb /dev/vdc; do [ -b $disk ] || continue
       dd if=$disk of=/dev/null bs=64k count=32 iflag=direct
       dd if=/dev/zero of=$disk bs=64k count=32 oflag=direct conv=fsync
       dd if=/dev/urandom of=$disk bs=4k count=200 seek=500 conv=fsync
       blkdiscard -o 1048576 -l 1048576 $disk
       sync; done ;;
  fill) dd if=/dev/urandom of=/dev/vda bs=64k count=200 oflag=direct conv=fsync ;;
  net) ip link set eth0 up; ip addr add 10.9.8.2/24 dev eth0; ping -c 2 -W 1 10.9.8.1
       wget -T 2 -O /dev/null http://10.9.8.1/ ;;
  passt) ip link set eth0 up; udhcpc -i eth0 -n -q -s /bin/true; ip addr add 10.0.2.15/24 dev eth0
       ip -6 addr add fd00:2::15/64 dev eth0; sleep 2
       ip route add default via 10.0.2.2; ip -6 route add default via fd00:2::2
       ping -c 2 -W 2 10.77.0.2; ping -6 -c 2 -W 2 fd00:77::2
       (echo GET /index.html HTTP/1.0; echo; sleep 3) | nc -w 8 10.77.0.2 8080 | wc -c
       (echo GET /index.html HTTP/1.0; echo; sleep 3) | nc -w 8 fd00:77::2 8080 | wc -c
       dd if=/dev/zero bs=64k count=50 | timeout 6 nc 10.77.0.2 9090 | wc -c
       nslookup name 10.77.0.2; nslookup name fd00:77::2
       nc -l -p 22 -e cat & sleep 12
       nc -w 2 10.77.0.2 9; ping -c 1 -W 1 10.0.2.2 ;;
  rng) dd if=/dev/hwrng of=/dev/null bs=512 count=64 ;;
  flood) dd if=/dev/zero bs=1k count=200 | tr '\\0' x; echo ;;
  vcon) echo hello > /dev/hvc0 ;;
  tpm) cat /sys/class/tpm/tpm0/pcr-sha256/0; dd if=/dev/tpm0 of=/dev/null bs=1 count=0 ;;
  smp) for i in 1 2 3 4; do dd if=/dev/urandom of=/dev/null bs=64k count=40 & done; wait ;;
  wait) read line; echo got $line ;;
  off) echo TRACE-DONE; poweroff -f ;;
  reboot) echo TRACE-DONE; reboot -f ;;
  panic) echo TRACE-DONE; echo c > /proc/sysrq-trigger ;;
  hang) echo TRACE-DONE; sleep 1000 ;;
  esac
done
echo TRACE-DONE
poweroff -f
"""


def build(unpacked: Path, busybox: Path, out: Path) -> tuple[Path, Path]:
    """Write ``out/kernel`` and ``out/initrd`` from an unpacked kernel package; returns both paths."""
    kernel = next((unpacked / "boot").glob("vmlinuz-*"))
    modules = next((unpacked / "lib/modules").iterdir())
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kernel, out / "kernel")
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        (tree / "bin").mkdir()
        (tree / "lib").mkdir()
        shutil.copy2(busybox, tree / "bin/busybox")
        for number, module in enumerate(MODULES):
            shutil.copyfile(modules / module, tree / f"lib/{number:02}-{Path(module).name}")
        (tree / "init").write_text(INIT)
        (tree / "init").chmod(0o755)
        files = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        archive = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=files.encode(), stdout=subprocess.PIPE, check=True
        ).stdout
    (out / "initrd").write_bytes(gzip.compress(archive, 1))
    return out / "kernel", out / "initrd"
