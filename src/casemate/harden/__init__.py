"""A machine's description in, the hardened description out, with each change, its reason and its cost.

Pure: texts and argument lists go in, the same come out. Three kinds: a libvirt domain, a QEMU command line, and an
``xl.cfg`` that becomes a specification of ours.
"""
