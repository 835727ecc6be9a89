"""The C client of guests on this host: against our server with a real software TPM, built with the sanitizers; and
against a broker and a TPM that lie in every byte."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
from io import BufferedRWPair
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.support.tpm_client import SWTPM, TpmError, software_tpm
from tests.unit.test_release import SECRET, serving, wanted, write_policy

import casemate.release

HERE = Path(__file__).parents[1] / "support" / "keyclient_here.h"
SOURCE = Path(casemate.release.__file__).with_name("client") / "keyclient.c"
RUNS = int(os.environ.get("CASEMATE_FUZZ_RUNS", "30"))
SANITIZER = 99


pytestmark = [
    pytest.mark.skipif(not SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With address and undefined behaviour sanitizers, descriptors in place of files, and this process in place of the
    kernel's cryptography, which not every host has (AF_ALG)."""
    target = tmp_path_factory.mktemp("client") / "keyclient"
    command = [
        "gcc",
        "-std=gnu11",
        "-O1",
        "-g",
        f'-DHANDED_OVER="{HERE}"',
        "-DDEADLINE_S=1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover",
    ]
    done = subprocess.run([*command, "-o", target, SOURCE], capture_output=True, text=True, check=False, timeout=120)
    if "libasan" in done.stderr or "libubsan" in done.stderr:
        pytest.skip(f"gcc came without its sanitizers: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr
    return target


def run(client: Path, broker: socket.socket, tpm: socket.socket, *options: str) -> subprocess.CompletedProcess[bytes]:
    """The client with its descriptors."""
    kernel = cryptography()
    low = [os.dup(broker.fileno()), os.dup(tpm.fileno()), os.dup(kernel.fileno())]
    high = [os.open(os.devnull, os.O_RDONLY) for _ in range(6)]  # so that no copy is 3 or 4 already
    command = f'exec 3<&{low[0]} 4<&{low[1]} 5<&{low[2]} "$0" "$@" port default/disk/web'
    environment = {"PATH": "/usr/bin:/bin", "ASAN_OPTIONS": f"exitcode={SANITIZER}:detect_leaks=0"}
    environment["UBSAN_OPTIONS"] = f"exitcode={SANITIZER}"
    try:
        return subprocess.run(
            ["bash", "-c", command, client, *options],
            capture_output=True,
            pass_fds=low,
            env=environment,
            timeout=120,
            check=False,
        )
    finally:
        kernel.close()
        for descriptor in (*low, *high):
            os.close(descriptor)


def cryptography() -> socket.socket:
    """SHA-384 and AES-256-GCM, as keyclient_here.h asks for them."""
    ours, theirs = socket.socketpair()

    def text(file: BufferedRWPair) -> bytes:
        (length,) = struct.unpack("=I", file.read(4))
        return file.read(length)

    def serve() -> None:
        with contextlib.suppress(OSError, struct.error), theirs, theirs.makefile("rwb") as file:
            while kind := file.read(1):
                if kind == b"H":
                    file.write(hashlib.sha384(text(file)).digest())
                else:
                    key, iv, header, sealed, tag = (text(file) for _ in range(5))
                    try:
                        plain = AESGCM(key).decrypt(iv, sealed + tag, header)
                        file.write(struct.pack("=I", len(plain)) + plain)
                    except InvalidTag:
                        file.write(b"\xff\xff\xff\xff")
                file.flush()

    threading.Thread(target=serve, daemon=True).start()
    return ours


class Recorder:
    """Between the client and the other side: everything that the other side says, message by message."""

    def __init__(self, theirs: socket.socket) -> None:
        self.ours, self._inner = socket.socketpair()
        self._theirs = theirs
        self.answers: list[bytes] = []
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def _relay(self) -> None:
        with contextlib.suppress(OSError):
            while request := self._inner.recv(1 << 20):
                self._theirs.sendall(request)
                if not self._is_whole(request):
                    continue
                answer = self._theirs.recv(1 << 20)
                self.answers.append(answer)
                self._inner.sendall(answer)

    def _is_whole(self, piece: bytes) -> bool:
        self._pending = getattr(self, "_pending", b"") + piece
        head, gap, body = self._pending.partition(b"\r\n\r\n")
        if head[:4] in (b"POST", b"GET "):
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            whole = bool(gap) and len(body) >= length
        else:
            whole = True
        if whole:
            self._pending = b""
        return whole


@pytest.fixture(scope="module")
def recorded(client: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[bytes]]:
    """(answers of the broker, answers of the TPM) of a conversation that went well, and did bring the secret."""
    directory = tmp_path_factory.mktemp("keyclient")
    with software_tpm(directory / "tpm") as tpm:
        handle = tpm.create_key()
        tpm.persist(handle)
        tpm.command(0x165, b"", struct.pack(">I", handle))
        (directory / "ak.der").write_bytes(tpm.public_key(0x81010002))
        write_policy(directory, wanted(tpm), extra='attestation-keys = ["ak.der"]')
        with serving(directory) as place:
            broker, chip = Recorder(place.connect()), Recorder(tpm.channel)
            done = run(client, broker.ours, chip.ours)
            assert (done.returncode, done.stdout) == (0, SECRET), done.stderr.decode()
            assert [item.event for item in place.log()] == ["started", "attested", "released"]
    return broker.answers, chip.answers


def test_after_the_last_key_of_a_boot_there_is_none(client: Path, tmp_path: Path) -> None:
    with software_tpm(tmp_path / "tpm") as tpm:
        handle = tpm.create_key()
        tpm.persist(handle)
        tpm.command(0x165, b"", struct.pack(">I", handle))
        (tmp_path / "ak.der").write_bytes(tpm.public_key(0x81010002))
        write_policy(tmp_path, wanted(tpm), extra='attestation-keys = ["ak.der"]')
        with serving(tmp_path) as place:
            for options, status in (((), 0), (("--last",), 0), ((), 1)):
                done = run(client, Recorder(place.connect()).ours, Recorder(tpm.channel).ours, *options)
                assert done.returncode == status, done.stderr.decode()
                assert done.stdout == (b"" if status else SECRET)
                with contextlib.suppress(TpmError):  # where a resource manager would: the key of that attestation
                    tpm.command(0x165, b"", struct.pack(">I", 0x80000000))
            assert [item.code for item in place.log()[-1].reasons] == ["sha256.pcr8"]


def test_the_client_gets_the_secret(recorded: tuple[list[bytes], list[bytes]]) -> None:
    broker, chip = recorded
    assert len(broker) == 3, "challenge, token, resource"
    assert len(chip) in (7, 8), "key, public part, quote, PCRs three times, decryption; and it may be busy once"


def answering(answers: list[bytes]) -> socket.socket:
    """The other side, which says what was recorded, whatever it is asked; and then hangs up."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(OSError), theirs:
            for answer in answers:
                data = theirs.recv(4 << 20)
                while data[:5] == b"POST " and b"\r\n\r\n" in data and not complete(data):
                    data += theirs.recv(4 << 20)
                theirs.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return ours


def complete(request: bytes) -> bool:
    head, _, body = request.partition(b"\r\n\r\n")
    return len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])


def mutated(answers: list[bytes], dice: random.Random) -> list[bytes]:
    """One answer with a few bytes changed, cut, or doubled."""
    found = list(answers)
    index = dice.randrange(len(found))
    data = bytearray(found[index])
    for _ in range(dice.randint(1, 4)):
        data[dice.randrange(len(data))] = dice.choice((0, 0xFF, 0x22, 0x5C, dice.randrange(256)))
    if dice.random() < 0.3:
        del data[dice.randrange(len(data)) :]
    elif dice.random() < 0.1:
        data += bytes(data)
    found[index] = bytes(data) or b"\0"
    return found


@pytest.mark.parametrize("liar", ["broker", "tpm"])
def test_lies_end_it_and_break_nothing(client: Path, recorded: tuple[list[bytes], list[bytes]], liar: str) -> None:
    """No crash, no undefined behaviour, no hang; and no secret but the one that is authentic."""
    dice = random.Random(f"casemate {liar}")
    for _ in range(RUNS):
        broker, chip = recorded
        broker = mutated(broker, dice) if liar == "broker" else broker
        chip = mutated(chip, dice) if liar == "tpm" else chip
        left, right = answering(broker), answering(chip)
        done = run(client, left, right)
        left.close()
        right.close()
        assert done.returncode in (0, 1), (
            done.returncode,
            done.stderr.decode("utf-8", "replace")[-2000:],
            broker,
            chip,
        )
        assert done.stdout in (b"", SECRET)
        assert done.returncode == 0 or b"keyclient: " in done.stderr
