"""Compile the small KVM guest (kvm_guest.c) into a PVH image that ``-kernel`` takes."""

from __future__ import annotations

import subprocess
from pathlib import Path


def build(out: Path) -> Path:
    """Write ``out/kvm-guest``; needs gcc and ld. Returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    image = out / "kvm-guest"
    flags = "-m32 -march=i686 -O1 -mno-sse -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables"
    linking = "-nostdlib -static -no-pie -Wl,--build-id=none -Wl,-Ttext=0x100000 -Wl,-e,start"
    source = str(Path(__file__).with_suffix(".c"))
    subprocess.run(["gcc", *flags.split(), *linking.split(), source, "-o", str(image)], check=True)
    return image
