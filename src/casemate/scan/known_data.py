"""What looks like a secret and is in every copy of a distribution: test vectors and samples of documents. No alarm.

SHA-256 over what the check returns (PEM: the body in base 64 without line ends; DER: its first 512 bytes), and where it
stands. All of these are in packages of Debian 12.
"""

from __future__ import annotations

from typing import Final

KNOWN: Final[dict[str, str]] = {
    "b755246fa799108d3c648646e06bac8e2e4b9535e8e3785e2e38deacdcd5ac31": "self-test of the kernel's crypto",
    "bf552d2ff30b20f0b0ee2bcc357a5ab68dbe899ae09a0071b097bee2d2434332": "self-test of GnuTLS",
    "cadf1e62661d5d21a7fce2c80b3319022ee366137e4b302a7ea78b7f17d6f599": "self-test of GnuTLS",
    "6d03bbf47115fad00d6f990593a6465ca693d0f6d797721cfc94b0190349b50d": "self-test of GnuTLS",
    "30db3ea6d728b88c03c56388f64efb5bfe5e8d0ed3640482108ac79645304e6f": "self-test of GnuTLS",
    "518a21fe5a8a54f8f31d8913c3aa5be433ba94871630b3f85009c146bd3b844e": "self-test of GnuTLS",
    "c780c483da21d36753a9662fc03234d3fda795fe0bad451fbfa01dab43321ac5": "self-test of GnuTLS",
    "0abce0c5fd3b863ee4d881dcc5382b334393868cef4c32e687d87ce334d456b8": "self-test of GnuTLS",
    "24a2416c5abbb67327599619c25906553b849d79cbc413e2a061f12de6718838": "self-test of GnuTLS",
    "9ab6db67523ba6071fdb948b3ce38349ec08fb726f359abbbca33a3a84238ba2": "self-test of GnuTLS",
    "00ee0d74bdd6642218a8d7dc1c3d9dd4ec4089c0e42583516df9b04070b16665": "self-test of GnuTLS",
    "26f53d2a7606a9c41c519d8626701659e66f47c88f9445642aba066dc13d9336": "openssl speed",
    "64f8d3c28affb49da65e8826df5250440fc4251c72bed92502bc42dbdfecd6fb": "openssl speed",
    "5bb30cee5f00ef4ef928b54843b7af6c5345f23350dcf3cc12bda5a814e714ce": "openssl speed",
    "dad6d2d844facef3d8cbb4d2ec9036b9384c38cdd012a3009dda29e172c0e709": "openssl speed",
    "01dc858083c4dbde3264b64b0669f3627e99a79151f59a94222553aeed64e8c6": "self-test of GRUB",
    "c9a2250a1f992f2ae6d57f61fee9ab61e43da228d64c99256c36f345fd1dabf8": "self-test of GRUB",
    "39f1f81ed40dc414cfc9cec6f4df57bbffe72706414569ea50252cfd9085e71d": "self-test of GRUB",
    "bf145d9380bbe05bdc1a72525796b224f8a8c93ae0e9e102eafbc255ac1af9e8": "README of PyJWT",
    "bd84b29cf06c0ad65a17a73aae15344f3cf7b2eb79284ecc764b2c1904edf9ed": "example of cloud-init's cc_set_passwords",
    "9c697679dc4b209492e7590a0555670a9421770e3c2993cccc0e63f3036e35a3": "dhclient.conf.example",
}
