# Sets up this checkout: Debian packages, a virtual environment, the built-in guest. Sourced by ./demo and ./check (bash).
#
# Afterwards: $ROOT is the checkout, $VENV the environment. Runs as root or as an ordinary user, from any directory, any number of times; without a terminal
# and without standard input. Installs nothing that is there, asks for nothing, and says what and why before it installs.
# Exits: 3 when this host cannot do it.

# Debian packages, one a line: name|why. The second list comes on top of the first. The guest's kernel and busybox-static are not here: they are taken out
# of their packages without being installed (busybox-static would push out an installed busybox).
DEMO_PACKAGES='
qemu-system-x86|the emulator
libseccomp2|compiles the system call filters
uidmap|newuidmap: a subordinate uid per VM for ordinary users
passt|the network of a VM, without a bridge or root
swtpm|the TPM of VMs that have one
ovmf|UEFI firmware for disk images with a boot loader
python3-venv|the virtual environment
ca-certificates|lets pip verify where it downloads from
'
CHECK_PACKAGES='
qemu-utils|qemu-img makes images for tests, and converts imported ones inside a wall
strace|traces workloads against the system call rules
cpio|the reference reader for our initramfs writer
mmdebstrap|builds the Debian guest of the boot tests
dosfstools|EFI system partition of the boot tests
fdisk|sfdisk writes the partition table of the boot tests
mtools|copies the boot loader into that partition without mounting it
e2fsprogs|root file system of the boot tests, filled without mounting it
systemd-boot-efi|boot loader of the boot tests, and the stub of unified kernel images
sbsigntool|sbsign signs what keys of an owner start under Secure Boot, in tests
iproute2|network namespaces of the tests
libvirt-daemon-system|starts hardened domains in a boot test, and its schemas judge them
libvirt-clients|virsh for that test
xorriso|the reference reader for our cloud-init seeds
rpm|builds packages and writes their database, which our readers are held against
age|secrets encrypted with age, in tests
gnupg|makes the OpenPGP signatures that tests verify
openssh-client|ssh-keygen makes and judges the SSH signatures of tests
minisign|makes the minisign signatures of tests
docker-registry|the registry that tests pull disks from
cryptsetup-bin|veritysetup judges our hash trees
fsverity|judges our fs-verity digests
binutils|as assembles the listings beside machine code
gcc|compiles the agent of the cell, once (src/casemate/cell/agent)
libc6-dev|headers and static C library: compiles the key client of guests (src/casemate/release/client)
xfsprogs|makes the XFS image of the tests of the cell
btrfs-progs|makes the btrfs image of the tests of the cell
exfatprogs|makes the exFAT image of the tests of the cell
ntfs-3g|makes the NTFS image of the tests of the cell
udftools|makes the UDF image of the tests of the cell
squashfs-tools|makes the squashfs image of the tests of the cell
erofs-utils|makes the erofs image of the tests of the cell
db5.3-util|writes the Berkeley DB of older rpms in tests
genisoimage|makes the ISO 9660 image of the tests of the cell
'

MIN_DEBIAN=12
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if ! { true <&0; } 2>/dev/null; then exec </dev/null; fi

say() { printf '%s\n' "$*" >&2; }

cannot() { # the host cannot do it: what, next step
    say "casemate: $1"
    if [ -n "${2-}" ]; then say "  next: $2"; fi
    exit 3
}

require_debian() {
    local id='' version='' machine
    if [ -r /etc/os-release ]; then
        id=$(. /etc/os-release && printf '%s' "${ID-}")
        version=$(. /etc/os-release && printf '%s' "${VERSION_ID-}")
    fi
    machine=$(uname -m)
    if [ "$id" != debian ] || ! command -v dpkg-query >/dev/null; then
        cannot "this script sets up Debian $MIN_DEBIAN or newer; this is ${id:-an unknown system} ${version}" \
            "install QEMU, passt, uidmap, libseccomp and a static busybox by hand, then: pip install --require-hashes -r requirements/lock.txt"
    fi
    # testing and unstable have no VERSION_ID
    if [ -n "$version" ] && [ "${version%%.*}" -lt "$MIN_DEBIAN" ]; then
        cannot "Debian $version is too old: Python 3.11 and QEMU 7.2 come with Debian $MIN_DEBIAN" "upgrade to Debian $MIN_DEBIAN or newer"
    fi
    if [ "$machine" != x86_64 ]; then cannot "Casemate runs on x86_64 hosts; this is $machine"; fi
}

names_of() { # package list -> names
    local line
    while IFS= read -r line; do
        if [ -n "$line" ]; then printf '%s\n' "${line%%|*}"; fi
    done <<<"$1"
}

missing_packages() { # package list -> the lines whose package is not installed
    local installed line
    # shellcheck disable=SC2046
    installed=$(dpkg-query -W -f '${db:Status-Abbrev}:${Package}\n' $(names_of "$1") 2>/dev/null | sed -n 's/^ii *://p' || true)
    while IFS= read -r line; do
        if [ -n "$line" ] && ! grep -qxF -- "${line%%|*}" <<<"$installed"; then printf '%s\n' "$line"; fi
    done <<<"$1"
}

can_be_root() { # sudo must not have to ask, or somebody must be there to answer
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && [ -t 2 ]; }; }; }
}

as_root() { # runs a command as root; 1 when that is impossible
    can_be_root || return 1
    if [ "$(id -u)" = 0 ]; then
        "$@" </dev/null
    else
        say "  with sudo: $*"
        sudo "$@"
    fi
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

install_packages() { # package list
    local missing names line what=missing
    missing=$(missing_packages "$1")
    if [ -z "$missing" ]; then return; fi
    names=$(names_of "$missing" | tr '\n' ' ')
    if can_be_root; then what='missing and will be installed'; fi
    say "casemate: these Debian packages are $what:"
    while IFS= read -r line; do say "  ${line%%|*}: ${line#*|}"; done <<<"$missing"
    if ! can_be_root; then
        cannot "installing them needs root, or sudo" "as root: apt-get update && apt-get install --no-install-recommends $names"
    fi
    # shellcheck disable=SC2086
    if ! { apt_install update && apt_install install --yes --no-install-recommends $names; } >&2; then
        cannot "apt-get could not install them" "sudo apt-get update && sudo apt-get install --no-install-recommends $names"
    fi
}

system_python() { # prints a Python >= 3.11 that every user of this host can run (a version manager's shim in somebody's home is not)
    local candidate
    for candidate in /usr/bin/python3 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 /usr/local/bin/python3; do
        if [ -x "$candidate" ] && "$candidate" -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    cannot "no system Python 3.11 or newer with venv" "sudo apt-get install python3-venv"
}

choose_venv() { # sets VENV: in the checkout when that is ours to write, in the user's cache otherwise
    local uid cache home key
    uid=$(id -u)
    if [ -w "$ROOT" ] && [ "$(stat -c %u "$ROOT")" = "$uid" ] && { [ ! -e "$ROOT/.venv" ] || [ "$(stat -c %u "$ROOT/.venv")" = "$uid" ]; }; then
        VENV=$ROOT/.venv
        return
    fi
    home=${HOME:-$(getent passwd "$uid" | cut -d: -f6)}
    cache=${XDG_CACHE_HOME:-$home/.cache}/casemate
    key=$(printf '%s' "$ROOT" | sha256sum | cut -c1-12)
    VENV=$cache/venv-$key
    mkdir -p "${cache%/*}" && { [ -d "$cache" ] || mkdir -m 700 "$cache"; } || cannot "cannot write $cache" "set XDG_CACHE_HOME to a directory of yours"
    # The checkout is somebody else's: the tools' caches go beside the environment.
    export MYPY_CACHE_DIR=$VENV/cache/mypy RUFF_CACHE_DIR=$VENV/cache/ruff PYTHONPYCACHEPREFIX=$VENV/cache/pycache
    export PYTEST_ADDOPTS="${PYTEST_ADDOPTS-} -o cache_dir=$VENV/cache/pytest" HYPOTHESIS_STORAGE_DIRECTORY=$VENV/cache/hypothesis
}

quietly() { # runs pip; its output is shown only when it fails
    local log=$VENV/setup.log
    if ! "$@" </dev/null >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        cannot "failed: ${*:0:6} ... (all of it in $log)" "run it again; it continues where it stopped"
    fi
}

make_venv() {
    local python stamp wanted pip
    python=$(system_python) || exit 3
    choose_venv
    mkdir -p "$VENV"
    exec {lock}>"$VENV/.setup.lock"
    flock "$lock"
    stamp=$VENV/.setup.stamp
    # The environment is the product of these; when one changes, it is brought up to date.
    wanted=$(printf '%s\n' "$ROOT" "$("$python" -I -V)" && sha256sum <"$ROOT/requirements/lock.txt" && sha256sum <"$ROOT/pyproject.toml")
    if [ ! -e "$stamp" ] || [ "$(<"$stamp")" != "$wanted" ] || ! "$VENV/bin/python" -I -c 'import casemate' 2>/dev/null; then
        pip=("$VENV/bin/python" -I -m pip --quiet --disable-pip-version-check --no-input)
        if ! "$VENV/bin/python" -I -c 'import pip' 2>/dev/null; then
            say "casemate: making the virtual environment $VENV"
            # What is left of an environment of another Python goes; the lock and the log, both open, stay.
            find "$VENV" -mindepth 1 -maxdepth 1 ! -name .setup.lock ! -name setup.log ! -name cache -exec rm -rf {} +
            quietly "$python" -I -m venv "$VENV"
        fi
        say "casemate: installing the locked Python packages"
        quietly "${pip[@]}" install --require-hashes --no-deps --only-binary :all: -r "$ROOT/requirements/lock.txt"
        quietly "${pip[@]}" install --no-deps --no-build-isolation --editable "$ROOT"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    # Where the environment forbids Python to write its byte code, every start of ours would compile 200 files anew.
    "$VENV/bin/python" -I -m compileall -q "$ROOT/src" >/dev/null 2>&1 || true # a tree that is not ours to write
    exec {lock}>&-
}

build_guest() { # the built-in guest, into the user's cache
    local status=0
    "$VENV/bin/python" -I "$ROOT/tools/build_guest.py" </dev/null || status=$?
    if [ "$status" = 3 ]; then
        say "casemate: refreshing apt's package lists, which hold the signed digests of the guest's kernel"
        apt_install update >&2 || exit 3
        "$VENV/bin/python" -I "$ROOT/tools/build_guest.py" </dev/null || exit $?
    elif [ "$status" != 0 ]; then
        exit "$status"
    fi
}
