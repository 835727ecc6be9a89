"""The fixed parts of the capture script: POSIX sh. Words in capitals are filled in (`capture_script.py`)."""

from __future__ import annotations

from typing import Final

HEAD: Final = """\
#!/bin/sh
# Collect what "casemate audit" needs to judge this host elsewhere: files of /proc, /sys and /etc, no secrets.
# Written by "casemate capture --script" (TOOL). It only reads; what it takes stands in the table at the end.
#
#   sh capture.sh OUT.tar         shows what would be written, asks, writes (mode 0600; OUT.tar.gz is packed)
#   sh capture.sh --yes OUT.tar   without asking
#   sh capture.sh --list          only shows it
set -u
umask 077
LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
list= yes= out=
while [ $# -gt 0 ]; do
    case $1 in
    --list) list=1 ;;
    --yes) yes=1 ;;
    -*) echo "capture.sh: unknown option $1; options are --list and --yes" >&2; exit 2 ;;
    *) [ -z "$out" ] || { echo "capture.sh: one file only" >&2; exit 2; }; out=$1 ;;
    esac
    shift
done
if [ -z "$out" ] && [ -z "$list" ]; then
    echo "usage: sh capture.sh [--yes] OUT.tar, or sh capture.sh --list" >&2
    exit 2
fi
if [ -n "$out" ] && { [ -h "$out" ] || { [ -e "$out" ] && [ ! -f "$out" ]; }; }; then
    echo "capture.sh: $out is there and no regular file" >&2
    exit 2
fi
if [ -z "$list$yes" ] && [ ! -t 0 ]; then
    echo "capture.sh: nobody to ask; look at --list first, then use --yes" >&2
    exit 2
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/casemate-capture.XXXXXX") || exit 3
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
tree=$work/root
raw=$work/raw
tab=$(printf '\\t')
bounded=
if command -v timeout >/dev/null; then bounded="timeout 10"; fi
mkdir "$tree" || exit 3
for rows in looked names status unread filtered; do : >"$work/$rows"; done
now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
host=$(cat /proc/sys/kernel/hostname 2>/dev/null) || host=
release=$(cat /proc/sys/kernel/osrelease 2>/dev/null) || release=-
case $release in *[!A-Za-z0-9._+~-]* | '') release=- ;; esac
"""

TOOLS: Final = r"""
unread() { # PATH ERRNO
    printf '%s\t%s\n' "$1" "$2" >>"$work/unread"
}
unread_as() { # PATH MESSAGE
    case $2 in
    *"o such file"* | *"o such process"* | *"ot a directory"* | *"o such device or"*) ;;
    *"ermission denied"*) unread "$1" EACCES ;;
    *"peration not permitted"*) unread "$1" EPERM ;;
    *"nvalid argument"* | *"s a directory"*) unread "$1" EINVAL ;;
    *) unread "$1" EIO ;;
    esac
}
plain() { # PATH: nothing but printable ASCII
    case $1 in *[!\ -~]*) return 1 ;; esac
}
unpackable() { # PATH
    case $1 in
    *.gz) command -v gzip >/dev/null ;;
    *.xz) command -v xz >/dev/null ;;
    *.lz4) command -v lz4 >/dev/null ;;
    *.bz2) command -v bzip2 >/dev/null ;;
    *.zst) command -v zstd >/dev/null ;;
    *.lzma | *.zck) return 1 ;;
    esac
}
unpack_as() { # PATH
    case $1 in
    *.gz) gzip -dc ;;
    *.xz) xz -dc ;;
    *.lz4) lz4 -dc ;;
    *.bz2) bzip2 -dc ;;
    *.zst) zstd -dcq ;;
    *) cat ;;
    esac
}
folder() { # a directory and all above it, as far as they are there
    d=$1
    while [ -n "$d" ] && [ ! -d "$tree$d" ]; do
        if [ -d "$d" ]; then
            mkdir -p "$tree$d"
            if [ ! -x "$d" ]; then unread "$d" EACCES; fi
            return
        fi
        d=${d%/*}
    done
}
take_c() { # PATH LIMIT FILTER
    if [ -e "$tree$1" ] || [ ! -e "$1" ]; then return; fi
    if denied "$1"; then unread "$1" EPERM; return; fi
    if [ ! -f "$1" ]; then unread "$1" EINVAL; return; fi
    case $1 in
    /proc/* | /sys/*) ;;
    *) if denied "$(readlink -f "$1")"; then unread "$1" EPERM; return; fi ;;
    esac
    $bounded head -c $(($2 + 1)) "$1" >"$raw" 2>/dev/null
    case $? in
    0) ;;
    124 | 143) unread "$1" ETIMEDOUT; return ;; # its process does not answer
    *)
        unread_as "$1" "$($bounded cat "$1" 2>&1 >/dev/null)" # head of busybox does not say why
        return
        ;;
    esac
    if [ "$(wc -c <"$raw")" -gt "$2" ]; then unread "$1" EFBIG; return; fi
    mkdir -p "$tree${1%/*}"
    if [ "$3" = whole ]; then
        mv "$raw" "$tree$1"
    elif through_"$3" "$1" <"$raw" >"$tree$1"; then
        if ! cmp -s "$raw" "$tree$1"; then printf '%s\t%s\n' "$1" "$3" >>"$work/filtered"; fi
    else
        rm -f "$tree$1"
        unread "$1" EBADMSG
    fi
}
take_n() { # DIRECTORY
    if [ ! -e "$1" ]; then return; fi
    if ! said=$(ls -1A "$1" 2>&1 >"$raw"); then unread_as "$1" "$said"; return; fi
    if [ ! -d "$1" ]; then return; fi
    mkdir -p "$tree$1"
    awk -v dir="$1" 'BEGIN { print dir "\t" } !/[^ -~]/ { print dir "\t" $0 }' "$raw" >>"$work/names"
}
take_s() { # PATH
    if ! said=$(stat -L -c '%f %u %g %t %T %d %i %s' "$1" 2>&1); then unread_as "$1" "$said"; return; fi
    s_path=$1
    set -- $said
    major=$((0x$4)) minor=$((0x$5))
    rdev=$(((major & 4095) << 8 | minor & 255 | (minor & ~255) << 12 | (major & ~4095) << 32))
    printf '%s\t%s,%s,%s,%s,%s,%s,%s\n' "$s_path" $((0x$1)) "$2" "$3" "$rdev" "$6" "$7" "$8" >>"$work/status"
}
take_l() { # PATH
    if [ ! -h "$1" ] || [ -h "$tree$1" ]; then return; fi
    if ! text=$(readlink "$1" 2>/dev/null); then unread "$1" EACCES; return; fi
    mkdir -p "$tree${1%/*}"
    ln -s -- "$text" "$tree$1"
}
t() { # KIND LIMIT FILTER PATTERN: one line of the table
    kind=$1 limit=$2 filter=$3 pattern=$4
    printf '%s %s\n' "$kind" "$pattern" >>"$work/looked"
    each_match
}
each_match() { # uses kind, limit, filter, pattern
    first=${pattern#/}
    first=/${first%%/*}
    if [ -h "$tree$first" ]; then
        to=$(readlink "$tree$first")
        pattern=/${to#/}${pattern#"$first"}
    fi
    case $pattern in
    *'*'*)
        prefix=${pattern%%'*'*}
        prefix=${prefix%/*}
        folder "$prefix"
        if [ -d "$prefix" ] && [ ! -r "$prefix" ]; then unread "$prefix" EACCES; fi
        ;;
    *) folder "${pattern%/*}" ;;
    esac
    for path in $pattern; do
        if [ ! -e "$path" ] && [ ! -h "$path" ]; then continue; fi
        if ! plain "$path"; then continue; fi
        case $kind in
        c) take_c "$path" "$limit" "$filter" ;;
        n) take_n "$path" ;;
        s) take_s "$path" ;;
        l) take_l "$path" ;;
        esac
    done
}
groups_up() { # TOP GROUP
    g=$1${2%/}
    while :; do
        if [ -d "$g" ]; then
            folder "$g"
            for file in CGROUP_FILES; do take_c "$g/$file" 65536 whole; done
        fi
        if [ "${#g}" -le "${#1}" ]; then return; fi
        g=${g%/*}
    done
}
groups_of() { # PROCESS-DIRECTORY
    if [ ! -f "$tree$1/cgroup" ]; then return; fi
    while IFS=: read -r _ controllers group; do
        case /$group/ in */../*) continue ;; esac
        if [ -z "$controllers" ]; then
            groups_up CGROUP_TOP "$group"
            groups_up CGROUP_TOP/unified "$group"
            continue
        fi
        for mounted in CGROUP_TOP/*; do
            case ",${mounted##*/}," in
            *",${controllers%%,*},"* | *",${controllers#name=},"*) groups_up "$mounted" "$group" ;;
            esac
        done
    done <"$tree$1/cgroup"
}
start_of() { # PID: when it began, in clock ticks; nothing when it is gone
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return
    line=${line##*) }
    set -- $line
    echo "${20-}"
}
is_emulator() { # NAME
    case ${1%" (deleted)"} in
    EMULATOR_NAMES) return 0 ;;
    esac
    return 1
}
process() { # PID
    pid=$1
    { read -r line <"/proc/$pid/stat"; } 2>/dev/null || return
    name=${line#*\(}
    name=${name%)*}
    rest=${line##*) }
    set -- $rest
    if [ $((${7:-0} & 2097152)) -ne 0 ]; then return; fi # a thread of the kernel
    exe=$(readlink "/proc/$pid/exe" 2>/dev/null)
    if ! is_emulator "${exe##*/}" && ! is_emulator "$name"; then
        if ! ls -l "/proc/$pid/fd" >"$raw" 2>/dev/null; then
            if [ -d "/proc/$pid" ] && [ ! -r "/proc/$pid/fd" ]; then unread "/proc/$pid/fd" EACCES; fi
            return
        fi
        if ! grep -q anon_inode:kvm-vm "$raw"; then
            printf '/proc/%s/fd\t\n' "$pid" >>"$work/names"
            return
        fi
    fi
    began=$(start_of "$pid")
    vm_process "$pid"
    if [ -z "$began" ] || [ "$(start_of "$pid")" != "$began" ]; then
        rm -rf "$tree/proc/$pid"
        for rows in names status unread filtered; do
            awk -F "$tab" -v p="/proc/$pid" '$1 != p && index($1, p "/") != 1' "$work/$rows" >"$raw"
            cp "$raw" "$work/$rows"
        done
        return
    fi
    groups_of "/proc/$pid"
}
"""

TAIL: Final = r"""
for directory in /proc/[0-9]*; do process "${directory##*/}"; done
groups_of /proc/self
find "$tree" -type f -exec grep -lE -e 'PRIVATE_KEY' {} + | while IFS= read -r path; do
    rm -f "$path"
    unread "${path#"$tree"}" EPERM
done
total=$(du -sk "$tree" | awk '{ print $1 }')
if [ "$total" -gt TOTAL_KIB ]; then
    echo "capture.sh: what would be captured is larger than TOTAL_KIB KiB" >&2
    exit 3
fi
answer=$(uname -m)
: >"$work/rpm"
if [ ! -e DPKG_STATUS ] && [ -x RPM_PROGRAM ]; then # busybox has another rpm
    if ${bounded:+timeout RPM_DEADLINE} RPM_PROGRAM -qa --qf 'RPM_QUERY' >"$raw" 2>/dev/null; then
        { awk 'END { print "all " NR " kept RPM_MARK" }' "$raw"; awk '$1 ~ /^(RPM_KEPT)$/' "$raw" | sort; } >"$work/rpm"
    fi
fi
awk -F "$tab" -v now="$now" -v host="$host" -v uid="$(id -u)" -v machine="$answer" -v work="$work" '
function plain(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); gsub(/[^ -~]/, "?", s); return s }
function text(s) { return "\"" plain(s) "\"" }
function rpm(   line, n) {
    while ((getline line < (work "/rpm")) > 0) printf "%s%s", n++ ? "\\n" : ",\"RPM_NAME\":\"", plain(line)
    if (n) printf "\""
}
function rows(name, kind,   line, parts, n, last) {
    n = 0; last = ""
    while ((getline line < (work "/" name)) > 0) {
        split(line, parts, "\t")
        if (kind == "list") { printf "%s%s", n++ ? "," : "", text(line) }
        else if (kind == "status") { printf "%s[%s,%s]", n++ ? "," : "", text(parts[1]), parts[2] }
        else if (kind == "pair" && !((name, parts[1]) in seen)) {
            printf "%s%s:%s", n++ ? "," : "", text(parts[1]), text(parts[2])
            seen[name, parts[1]] = 1
        }
        else if (kind == "names") {
            if (parts[1] != last) {
                printf "%s%s:[", n++ ? "]," : "", text(parts[1])
                last = parts[1]
                m = 0
            }
            if (parts[2] != "") printf "%s%s", m++ ? "," : "", text(parts[2])
        }
    }
    if (kind == "names" && n) printf "]"
}
BEGIN {
    printf "{\"casemate_capture\":VERSION,\"time\":%s,\"host\":%s,", text(now), text(host)
    printf "\"tool\":%s,\"uid\":%s,", text("TOOL (script)"), uid
    printf "\"looked_for\":["; rows("looked", "list")
    printf "],\"names\":{"; rows("names", "names")
    printf "},\"status\":["; rows("status", "status")
    printf "],\"unread\":{"; rows("unread", "pair")
    printf "},\"answers\":{\"machine\":%s", text(machine); rpm()
    printf "},\"filtered\":{"; rows("filtered", "pair")
    printf "}}\n"
}' >"$work/MANIFEST" || exit 3

if [ -n "$list" ] || [ -z "$yes" ]; then
    (cd "$tree" && find . -type f -o -type l | sed 's/^\.//' | sort)
    echo "and the names, modes and reasons in MANIFEST:"
    awk -F "$tab" '{ print "not read: " $1 " (" $2 ")" }' "$work/unread"
    awk '{ print "rpm says: " $0 }' "$work/rpm"
fi
if [ -n "$list" ]; then exit 0; fi
if [ -z "$yes" ]; then
    printf 'Write this to %s? [y/N] ' "$out"
    read -r answer
    case $answer in y | Y | yes) ;; *) exit 1 ;; esac
fi
owner=
if tar --help 2>&1 | grep -q -e --owner; then owner="--owner=0 --group=0 --numeric-owner"; fi
case $out in
*/*) temporary=${out%/*}/.${out##*/}.$$ ;;
*) temporary=.$out.$$ ;;
esac
trap 'rm -rf "$work" "$temporary"' EXIT
set -C # a file of this name that somebody else put there is never written to
exec 3>"$temporary"
set +C
case $out in
*.gz | *.tgz) (cd "$work" && tar $owner -cf - MANIFEST root) | gzip -c >&3 ;;
*) (cd "$work" && tar $owner -cf - MANIFEST root) >&3 ;;
esac || exit 3
exec 3>&-
mv -f "$temporary" "$out" || exit 3
echo "$out: written" >&2
"""
