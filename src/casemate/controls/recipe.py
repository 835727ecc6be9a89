"""A build recipe for a QEMU with only our devices, from the source package of Debian 12.

These changes and options were built once, with TCG and without; the one with TCG booted the built-in guest (microvm).

Three selections of QEMU 7.2's Kconfig become implications, which --without-default-devices leaves out, and the eight
functions that their code would have provided become stubs that abort: microvm, and q35 with sata=off and usb=off, never
call them.
"""

from __future__ import annotations

from typing import Final

import msgspec

DEVICES: Final = (
    "CONFIG_MICROVM=y",
    "CONFIG_Q35=y",
    "CONFIG_VIRTIO_PCI=y",
    "CONFIG_VIRTIO_BLK=y",
    "CONFIG_VIRTIO_NET=y",
    "CONFIG_VIRTIO_RNG=y",
    "CONFIG_VIRTIO_SERIAL=y",
)
_SCRIPT: Final = r"""#!/bin/sh
# A QEMU 7.2 with only the devices that Casemate uses. As root for the packages, as a user for the rest; needs deb-src.
set -eu
apt-get install -y --no-install-recommends dpkg-dev meson ninja-build pkg-config flex bison clang lld llvm \
  libclang-rt-14-dev libglib2.0-dev libpixman-1-dev libseccomp-dev libfdt-dev
apt-get source qemu=1:7.2*
cd qemu-7.2*/
cat > configs/devices/x86_64-softmmu/casemate.mak <<'END'
@DEVICES@
END
sed -i 's/^    select \(FDC_ISA\|AHCI_ICH9\|USB_XHCI_SYSBUS\)$/    imply \1/' hw/i386/Kconfig
cat > hw/i386/casemate-stubs.c <<'END'
#include "qemu/osdep.h"
#include "hw/block/fdc.h"
#include "hw/ide.h"
#include "hw/ide/internal.h"
#include "hw/ide/pci.h"
#include "hw/ide/ahci.h"
#include "hw/usb/xhci.h"
FloppyDriveType isa_fdc_get_drive_type(ISADevice *fdc, int i) { g_assert_not_reached(); }
void isa_fdc_init_drives(ISADevice *fdc, DriveInfo **fds) { g_assert_not_reached(); }
int32_t ahci_get_num_ports(PCIDevice *dev) { g_assert_not_reached(); }
void ahci_ide_create_devs(PCIDevice *dev, DriveInfo **hd) { g_assert_not_reached(); }
void ide_drive_get(DriveInfo **hd, int n) { g_assert_not_reached(); }
int ide_get_geometry(BusState *b, int u, int16_t *c, int8_t *h, int8_t *s) { g_assert_not_reached(); }
int ide_get_bios_chs_trans(BusState *bus, int unit) { g_assert_not_reached(); }
void xhci_sysbus_build_aml(Aml *scope, uint32_t mmio, unsigned int irq) { g_assert_not_reached(); }
END
sed -i "0,/^  'fw_cfg.c',/s//  'casemate-stubs.c',\n  'fw_cfg.c',/" hw/i386/meson.build
mkdir -p build-casemate
cd build-casemate
AR=llvm-ar RANLIB=llvm-ranlib NM=llvm-nm ../configure --target-list=x86_64-softmmu \
  --without-default-features --without-default-devices --with-devices-x86_64=casemate \
  --cc=clang --cxx=clang++ --enable-cfi --enable-lto --extra-ldflags=-fuse-ld=lld --enable-pie \
  --enable-kvm @TCG@ --enable-seccomp --enable-fdt=system --enable-coroutine-pool --enable-membarrier \
  --disable-docs --disable-user --disable-install-blobs --audio-drv-list=
ninja qemu-system-x86_64
"""


class Measured(msgspec.Struct, frozen=True):
    """One binary, measured: creatable devices without CPU models, size of the stripped file, lines of ldd, and
    vulnerabilities of the table (emulator's side, shipped date) whose component is built in."""

    name: str
    devices: int
    size_bytes: int
    libraries: int
    vulnerabilities: int


class Recipe(msgspec.Struct, frozen=True):
    """The script, and what the same recipe measured on x86-64 Debian 12."""

    distribution: str
    script: str
    before: Measured
    after: Measured


def build_recipe(*, tcg: bool = False) -> Recipe:
    """The recipe for Debian 12; with ``tcg`` for hosts without KVM."""
    script = _SCRIPT.replace("@DEVICES@", "\n".join(DEVICES))
    return Recipe(
        "debian12",
        script.replace("@TCG@", "--enable-tcg" if tcg else "--disable-tcg"),
        Measured("Debian 12, 1:7.2+dfsg-7+deb12u18", 256, 18_397_984, 51, 85),
        Measured("this recipe", 28, 8_225_568 if tcg else 6_878_736, 11, 5),
    )
