"""The image store: what it finds, names, keeps and removes; kills at every step, a full disk, strangers."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.children import children

from casemate.engine.imagestore import PREFIX, look_up, open_reference, read_settings
from casemate.errors import CasemateError, HostError, ImageError, InputError, RefusedError
from casemate.image import store_import
from casemate.image.overlay import write_empty_qcow2
from casemate.image.store import Store
from casemate.image.store_files import try_lock
from casemate.image.store_import import add, digest_of, room
from casemate.image.store_model import StoredImage, check_name, is_name, name_from

MIB = 1 << 20


def nobody(_image: StoredImage) -> str:
    return ""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """In memory where that can be: hundreds of fsyncs on a busy disk are what these tests would wait for."""
    memory = "/dev/shm"
    if not os.access(memory, os.W_OK):
        yield Store(str(tmp_path / "images"))
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="casemate-test-") as directory:
        yield Store(f"{directory}/images")


@pytest.fixture
def disk(tmp_path: Path) -> Callable[..., int]:
    """Makes raw disks of two MiB with a boot sector and a mark; their descriptors."""
    made: list[int] = []

    def make(mark: str = "a", size: int = 2 * MIB) -> int:
        path = tmp_path / f"disk-{mark}-{len(made)}.raw"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, b"\x55\xaa" + mark.encode(), 510)
        made.append(descriptor)
        return descriptor

    return make


def put(store: Store, fd: int, name: str | None = "web") -> StoredImage:
    return add(store, fd, name=name, image_format="raw", origin={"source": "/x"})


def whole(store: Store) -> None:
    """Everything in the store is what its name says, and nothing is left over."""
    for image in store.images():
        descriptor = store.open(image)
        assert digest_of(descriptor) == image.digest
        os.close(descriptor)
    known = {image.digest for image in store.images()}
    for name in os.listdir(f"{store.directory}/names"):
        assert Path(store.directory, "names", name).read_text().strip() in known
    for part in ("incoming", "trash"):
        assert os.listdir(f"{store.directory}/{part}") == []
    assert store.strangers() == []


def test_an_added_image_is_found_by_name_and_digest(store: Store, disk: Callable[..., int]) -> None:
    fd = disk()
    before = time.time()
    image = put(store, fd)
    assert image.digest == hashlib.sha256(os.pread(fd, 4 * MIB, 0)).hexdigest()
    assert (image.names, image.format, image.virtual_size_bytes, image.size_bytes) == (
        ("web",),
        "raw",
        2 * MIB,
        2 * MIB,
    )
    assert before - 1 < image.added_at <= time.time()
    assert image.origin == {"source": "/x"}
    for word in ("web", image.digest, image.digest[:8], f"sha256:{image.digest}"):
        assert store.find(word) == image, word
    for word in ("", "we", image.digest[:7], "0" * 64, "../web", "web/", "WEB", "sha256:web"):
        assert store.lookup(word) is None, word
        with pytest.raises(InputError, match="there is no image"):
            store.find(word)
    whole(store)


def test_what_is_kept_is_read_only_private_and_sparse(store: Store, disk: Callable[..., int]) -> None:
    image = put(store, disk(size=64 * MIB))
    info = os.stat(store.path(image))
    assert info.st_mode & 0o777 == 0o400
    assert image.disk_bytes == info.st_blocks * 512 < MIB
    for directory, _, _ in os.walk(store.directory):
        assert os.stat(directory).st_mode & 0o077 == 0


def test_blocks_of_zeros_become_holes_and_holes_are_hashed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "zeros.raw"
    with path.open("wb") as file:
        file.write(bytes(510) + b"\x55\xaa" + bytes(8 * MIB - 512))
    with path.open("rb") as file:
        image = put(store, file.fileno())
    assert image.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert image.disk_bytes <= MIB + 65536


def test_the_same_bytes_are_kept_once_and_get_both_names(store: Store, disk: Callable[..., int]) -> None:
    first, second = put(store, disk(), "a-one"), put(store, disk(), "b-two")
    assert first.digest == second.digest
    assert second.names == ("a-one", "b-two")
    assert second.added_at == first.added_at
    assert len(store.images()) == 1
    whole(store)


def test_a_name_moves_and_the_old_image_stays_without_it(store: Store, disk: Callable[..., int]) -> None:
    old, new = put(store, disk("a")), put(store, disk("b"))
    assert store.find("web") == new
    assert store.find(old.digest).names == ()
    assert store.prune(in_use=nobody, dry_run=True) == (store.find(old.digest),)
    assert store.prune(in_use=nobody)
    assert [image.digest for image in store.images()] == [new.digest]
    assert store.prune(in_use=nobody) == ()
    assert store.prune(in_use=nobody, named=True) == (new,)
    whole(store)


def test_prune_takes_interrupted_downloads_and_leaves_running_ones(store: Store) -> None:
    store.prepare()
    for name in ("dead", "alive"):
        os.mkdir(f"{store.directory}/downloads/{name}")
        Path(store.directory, "downloads", name, "part").write_bytes(b"x")
    held = try_lock(f"{store.directory}/downloads/alive/lock")
    assert held is not None
    store.prune(in_use=nobody, dry_run=True)
    assert sorted(os.listdir(f"{store.directory}/downloads")) == ["alive", "dead"]
    store.prune(in_use=nobody)
    assert os.listdir(f"{store.directory}/downloads") == ["alive"]
    os.close(held)
    os.utime(f"{store.directory}/downloads/alive", (1, 1))
    with store.changing():
        pass
    assert os.listdir(f"{store.directory}/downloads") == [], "a week is enough"


def test_remove_takes_the_name_first_and_the_image_with_the_last_one(store: Store, disk: Callable[..., int]) -> None:
    image = put(store, disk())
    store.tag("web", "www")
    with pytest.raises(InputError, match="has 2 names"):
        store.remove(image.digest, in_use=nobody)
    assert store.remove("web", in_use=nobody) == ("web",)
    assert store.find("www").digest == image.digest
    assert store.remove("www", in_use=nobody) == ("www", f"sha256:{image.digest}")
    assert store.images() == []
    put(store, disk())
    store.tag("web", "www")
    assert store.remove(image.short, in_use=nobody, force=True) == ("web", "www", f"sha256:{image.digest}")
    put(store, disk(), None)
    assert store.remove(image.digest, in_use=nobody) == (f"sha256:{image.digest}",)
    whole(store)


def test_in_use_is_refused_and_nothing_goes(store: Store, disk: Callable[..., int]) -> None:
    image = put(store, disk())
    with pytest.raises(RefusedError, match="VM web") as refused:
        store.remove("web", in_use=lambda _: "VM web", force=True)
    assert refused.value.control == "img.in-use"
    assert store.prune(in_use=lambda _: "VM web", named=True) == ()
    assert store.find("web") == image
    store.tag("web", "www")
    assert store.remove("www", in_use=lambda _: "VM web") == ("www",), "one name less does not hurt the VM"


def test_an_image_that_a_launch_holds_open_is_in_use(store: Store, disk: Callable[..., int]) -> None:
    import fcntl

    image = put(store, disk())
    held = store.open(image)
    fcntl.flock(held, fcntl.LOCK_SH)
    with pytest.raises(RefusedError, match="in use"):
        store.remove("web", in_use=nobody)
    assert store.prune(in_use=nobody, named=True) == ()
    os.close(held)
    assert store.remove("web", in_use=nobody)


def test_annotate_adds_words_and_keeps_the_others(store: Store, disk: Callable[..., int]) -> None:
    image = put(store, disk())
    changed = store.annotate(image, {"verified_as": "ana"}, verity_digest="sha256:00")
    assert changed.origin == {"source": "/x", "verified_as": "ana"}
    assert changed.verity_digest == "sha256:00"
    assert store.annotate(image).origin == changed.origin
    with pytest.raises(InputError, match="too much"):
        store.annotate(image, {"k": "x" * 70_000})
    whole(store)


def test_prefixes_that_fit_several_images_are_refused(store: Store, disk: Callable[..., int]) -> None:
    image = put(store, disk())
    twin = image.digest[:10] + "".join("0" if digit != "0" else "1" for digit in image.digest[10:])
    (Path(store.directory) / "images" / twin).mkdir()
    with pytest.raises(InputError, match="2 images begin with"):
        store.find(image.digest[:8])


@pytest.mark.parametrize("name", ["web", "a", "debian-12.qcow2", "deadbee", "9x", "w" * 63])
def test_names_that_are_allowed(name: str) -> None:
    assert check_name(name) == name
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "builtin", "deadbeef", "0" * 64, ".", "..", "-a", "a/b", "A", "w" * 64, "a\n", "é", "a:b", "a b", "/etc"],
)
def test_names_that_are_not(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(InputError, match="cannot name an image"):
        check_name(name)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("https://example.org/a/Debian-12-amd64.qcow2.xz?x=1#y", "debian-12-amd64"),
        ("/srv/web.raw", "web"),
        ("disk.tar.qcow2", "disk.tar"),
        ("/", "image"),
        (".qcow2", "qcow2"),
        ("deadbeefcafe.img", "image-deadbeefcafe"),
        ("builtin", "image-builtin"),
        ("\x1b[2Jü.img", "2j"),
        ("x" * 200, "x" * 63),
    ],
)
def test_names_made_from_sources(source: str, name: str) -> None:
    assert name_from(source) == name
    assert is_name(name_from(source))


def test_a_promise_that_does_not_hold_leaves_nothing(store: Store, disk: Callable[..., int]) -> None:
    with pytest.raises(ImageError, match="not what was promised"):
        add(store, disk(), name="web", image_format="raw", expected_digest="0" * 64)
    assert store.images() == []
    whole(store)
    fd = disk()
    add(store, fd, name="web", image_format="raw", expected_digest=digest_of(fd).upper())


def test_refused_headers_leave_nothing(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "q").open("w+b") as file:
        write_empty_qcow2(file.fileno(), MIB)
        with pytest.raises(ImageError, match="qcow2 header"):
            add(store, file.fileno(), name="web", image_format="raw")
        os.pwrite(file.fileno(), (4096).to_bytes(8, "big"), 8)
        with pytest.raises(ImageError, match="backing file"):
            add(store, file.fileno(), name="web", image_format="qcow2")
    assert not Path(store.directory).exists(), "what is refused before it is copied makes no store"


def test_the_header_is_read_again_from_what_was_copied(store: Store, disk: Callable[..., int]) -> None:
    """A source that turns hostile while it is copied."""
    fd = disk()

    with room(store) as place:
        digest = place.copy(fd, 2 * MIB)
        os.chmod(place.path, 0o600)
        with open(place.path, "r+b") as file:
            file.write(b"QFI\xfb")
        with pytest.raises(ImageError, match="qcow2 header"):
            place.publish(digest, name="web", image_format="raw")
    assert store.images() == []
    whole(store)


def test_a_source_that_changes_meanwhile_is_an_error(store: Store, disk: Callable[..., int]) -> None:
    """Shorter with data cut off, shorter in a hole, or only written to."""
    for size, more in ((2 * MIB, True), (3 * MIB, False), (4 * MIB, False)):
        fd = disk("a", 4 * MIB)
        if more:
            os.pwrite(fd, os.urandom(4 * MIB - 512), 512)

        def change(done: int, _of: int, fd: int = fd, size: int = size) -> None:
            if done <= MIB:
                os.ftruncate(fd, size)
                os.utime(fd, ns=(1, 1))

        with pytest.raises(ImageError, match=r"became shorter|changed between"):
            add(store, fd, name="web", image_format="raw", progress=change)
    assert store.images() == []
    whole(store)


def test_quota_and_settings(store: Store, disk: Callable[..., int], tmp_path: Path) -> None:
    settings = read_settings(store)
    assert settings.quota_bytes is None
    with pytest.raises(RefusedError, match=r"image store is full") as refused:
        add(store, disk(), name="web", image_format="raw", quota_bytes=4096)
    assert refused.value.control == "img.quota"
    whole(store)
    place = Path(store.directory) / "store.toml"
    place.write_text('quota = "50G"\nmax_virtual_size = 1048576\n')
    settings = read_settings(store)
    assert (settings.quota_bytes, settings.max_virtual_bytes) == (50 << 30, MIB)
    with pytest.raises(ImageError, match="larger than a disk may be"):
        add(store, disk(), name="web", image_format="raw", max_virtual_bytes=settings.max_virtual_bytes)
    for text in ("quota = ", 'quota = "many"', "quota = 0", "qouta = 1", "quota = [1]", "\xff", "x" * 20000):
        place.write_text(text)
        with pytest.raises(InputError, match=r"store\.toml"):
            read_settings(store)


def test_strangers_are_named_and_left_alone(store: Store, disk: Callable[..., int], tmp_path: Path) -> None:
    image = put(store, disk())
    base = Path(store.directory)
    (base / "notes.txt").write_text("mine")
    (base / "images" / "README").write_text("mine")
    (base / "images" / ("f" * 64)).mkdir()
    (base / "names" / "Odd").write_text("mine")
    (base / "names" / "link").symlink_to("/etc/passwd")
    os.mkfifo(base / "names" / "fifo")
    (base / "names" / "text").write_text("../../etc")
    assert store.strangers() == ["images/README", "names/Odd", "names/fifo", "names/link", "names/text", "notes.txt"]
    assert store.images() == [image]
    assert store.lookup("f" * 64) is None
    store.prune(in_use=nobody)
    assert (base / "notes.txt").read_text() == "mine"
    assert store.strangers()


def test_a_damaged_image_is_said_and_can_be_removed(store: Store, disk: Callable[..., int]) -> None:
    other, image = put(store, disk("b"), "other"), put(store, disk())
    assert store.damaged() == {}
    about = Path(store.directory) / "images" / image.digest / "about.json"
    good = about.read_bytes()
    for text in (b"", b"{", b"[]", good.replace(b'"version":1', b'"version":2'), b"x" * 70_000, good + b" x"):
        about.write_bytes(text)
        with pytest.raises(ImageError, match="damaged"):
            store.find("web")
        assert list(store.damaged()) == [image.digest]
        assert store.images() == [other], "one damaged image hides no other"
    assert store.remove("web", in_use=nobody, force=True)
    assert (store.images(), store.damaged()) == ([other], {})
    whole(store)


def test_bytes_that_changed_size_or_owner_are_not_opened(store: Store, disk: Callable[..., int]) -> None:
    image = put(store, disk())
    os.chmod(store.path(image), 0o600)
    os.truncate(store.path(image), MIB)
    with pytest.raises(ImageError, match="not what was put into the store"):
        store.open(image)
    os.unlink(store.path(image))
    os.symlink("/etc/passwd", store.path(image))
    with pytest.raises(ImageError, match="cannot be opened"):
        store.open(image)


def test_a_store_of_others_is_refused(store: Store, disk: Callable[..., int]) -> None:
    os.makedirs(store.directory, mode=0o755)
    os.chmod(store.directory, 0o755)
    with pytest.raises(HostError, match="not a private directory"):
        put(store, disk())
    os.rmdir(store.directory)
    os.symlink("/tmp", store.directory)
    with pytest.raises(HostError, match="not a private directory"):
        put(store, disk())


def test_words_on_the_command_line(store: Store, disk: Callable[..., int], tmp_path: Path) -> None:
    image = put(store, disk(), "web")
    assert look_up(store, "web", tmp_path) == image
    assert look_up(store, f"{PREFIX}web", tmp_path) == image
    assert look_up(store, "./web", tmp_path) is None
    assert look_up(store, "nothing", tmp_path) is None
    (tmp_path / "web").write_bytes(bytes(510) + b"\x55\xaa")
    with pytest.raises(InputError, match="image of the store and a file"):
        look_up(store, "web", tmp_path)
    assert look_up(store, f"{PREFIX}web", tmp_path) == image
    with pytest.raises(InputError, match="no image"):
        look_up(store, f"{PREFIX}wbe", tmp_path)
    opened = open_reference(f"{PREFIX}web", store=store, base_dir=tmp_path)
    assert (opened.stored, opened.header.format, opened.name) == (image, "raw", "image web")
    os.close(opened.fd)
    opened = open_reference("./web", store=store, base_dir=tmp_path)
    assert (opened.stored, opened.header.virtual_size_bytes) == (None, 512)
    os.close(opened.fd)


# Kills. A child makes one call of the store and kills itself, with SIGKILL, before its n-th call of the system.

_CALLS = ("open", "mkdir", "rename", "unlink", "fsync", "pwrite", "write", "ftruncate", "fchmod", "close", "rmdir")


def killed(action: Callable[[], object], before: int) -> bool:
    """Run ``action`` in a child that dies before its ``before``-th call; False when it came through to its end."""
    child = os.fork()
    if child == 0:
        left = before

        def count(original: Callable[..., object]) -> Callable[..., object]:
            def call(*words: object, **more: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*words, **more)

            return call

        for name in _CALLS:
            setattr(os, name, count(getattr(os, name)))
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def every_kill(action: Callable[[], object], after: Callable[[], None]) -> int:
    """Kill ``action`` at each of its calls, looking after each; the number of kills."""
    for before in range(1, 500):
        if not killed(action, before):
            return before - 1
        after()
    raise AssertionError("it never came to its end")


def test_kill_at_every_step_of_add(store: Store, disk: Callable[..., int]) -> None:
    kept = put(store, disk("kept"), "kept")
    fd = disk("new")
    digest = digest_of(fd)

    def look() -> None:
        seen = store.images()  # without a lock, before anybody sweeps
        assert {image.digest for image in seen} <= {kept.digest, digest}
        store.prune(in_use=lambda _: "the test")
        whole(store)
        found = store.lookup("new")
        assert found is None or found.digest == digest
        assert store.find("kept") == kept
        if store.lookup(digest) is not None:
            store.remove(digest, in_use=nobody, force=True)

    assert every_kill(lambda: put(store, fd, "new"), look) > 40
    assert store.find("new").digest == digest
    whole(store)


def test_kill_at_every_step_of_rm_tag_and_annotate(store: Store, disk: Callable[..., int]) -> None:
    fd, other = disk("new"), put(store, disk("other"), "other")
    digest = put(store, fd, "new").digest

    def look() -> None:
        store.images()
        store.prune(in_use=lambda _: "the test")
        whole(store)
        assert put(store, fd, "new").digest == digest

    def look_again() -> None:
        look()
        store.tag(other.digest, "other")

    assert every_kill(lambda: store.remove("new", in_use=nobody), look) > 10
    put(store, fd, "new")
    assert every_kill(lambda: store.tag("new", "other"), look_again) > 5
    image = store.find("new")
    assert every_kill(lambda: store.annotate(image, {"k": "v"}), look) > 5
    assert store.find("new").origin == {"source": "/x", "k": "v"}


_ADD = """
import os, sys
sys.path.insert(0, {source!r})
from casemate.image.store import Store
from casemate.image.store_import import add
fd = os.open({path!r}, os.O_RDONLY)
add(Store({directory!r}), fd, name={name!r}, image_format="raw")
"""


def adding(store: Store, fd: int, name: str) -> subprocess.Popen[bytes]:
    source = str(Path(store_import.__file__).parents[2])
    path = os.readlink(f"/proc/self/fd/{fd}")
    text = _ADD.format(source=source, path=path, directory=store.directory, name=name)
    return subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE)


def finish(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()


def test_many_add_the_same_and_different_images_at_once(store: Store, disk: Callable[..., int]) -> None:
    fds = [disk("a"), disk("a"), disk("a"), disk("b"), disk("c"), disk("d")]
    finish([adding(store, fd, f"n{number % 4}") for number, fd in enumerate(fds)])
    assert len(store.images()) == 4
    assert sorted(name for image in store.images() for name in image.names) == ["n0", "n1", "n2", "n3"]
    whole(store)


def test_an_import_that_runs_is_not_swept_and_one_that_died_is(store: Store, disk: Callable[..., int]) -> None:
    fd = disk()
    with room(store) as place:
        digest = place.copy(fd, 2 * MIB)
        Store(store.directory).prune(in_use=nobody, named=True)
        put(store, disk("other"), "other")
        assert os.path.exists(place.path)
        assert place.publish(digest, name="web", image_format="raw").names == ("web",)
    whole(store)


def test_kills_at_random_moments_of_real_commands(store: Store, disk: Callable[..., int]) -> None:
    fd = disk("big", 64 * MIB)
    for at in range(0, 64 * MIB, 4096 * 64):
        os.pwrite(fd, at.to_bytes(8, "big"), at)
    for number in range(6):
        child = adding(store, fd, "big")
        time.sleep(0.04 + 0.04 * number)
        child.kill()
        child.communicate()
        store.prune(in_use=nobody)
        whole(store)
    finish([adding(store, fd, "big")])
    assert store.find("big").size_bytes == 64 * MIB


_FULL = """
import os, sys, json
sys.path.insert(0, {source!r})
from casemate.errors import CasemateError
from casemate.image.store import Store
from casemate.image.store_import import add
store = Store({directory!r})
fd = os.open({path!r}, os.O_RDONLY)
try:
    add(store, fd, name="web", image_format="raw")
except CasemateError as error:
    left = [os.listdir(store.directory + "/" + part) for part in ("images", "names", "incoming", "trash")]
    print(json.dumps([type(error).__name__, str(error), left]))
"""


@pytest.mark.wall
def test_a_full_disk_is_said_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "big.raw"
    with path.open("wb") as file:
        file.write(bytes(510) + b"\x55\xaa" + os.urandom(4 * MIB - 512))
    text = _FULL.format(
        source=str(Path(store_import.__file__).parents[2]), path=str(path), directory=f"{tmp_path}/small/images"
    )
    (tmp_path / "small").mkdir(mode=0o700)
    mount = f"mount -t tmpfs -o size=1m,mode=700 t {tmp_path}/small && exec {sys.executable} -c {shlex.quote(text)}"
    spaces = ["unshare", "--user", "--map-root-user", "--mount"] if os.geteuid() else ["unshare", "--mount"]
    done = subprocess.run([*spaces, "sh", "-c", mount], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    kind, message, left = json.loads(done.stdout)
    assert kind == "HostError"
    assert "no room for the image" in message
    assert "no space left" in message
    assert left == [[], [], [], []]


def test_a_limit_on_file_sizes_is_no_traceback(store: Store, disk: Callable[..., int]) -> None:
    import resource

    fd = disk("x", 4 * MIB)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        code = 1
        try:
            put(store, fd)
        except CasemateError as error:
            code = 0 if isinstance(error, HostError) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    whole(store)


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    before = children()  # other tests of this process may have left helpers of the standard library
    yield
    assert children() - before == set()
