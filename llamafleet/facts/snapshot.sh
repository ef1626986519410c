#!/bin/sh
# Print what llamafleet needs to know of this host. Reads only, runs under any POSIX sh, and always
# exits 0 and ends with the line "#end"; what can't be read is left out.
#
# Parameters, assigned by the reader in front of this script. A leading "$HOME" in a path is
# expanded here, since only the host knows it.
#   LF_SCOPE      system or user
#   LF_PREFIX     folder of builds and toolkits
#   LF_STATE      folder of jobs and results
#   LF_FILES      paths to hash, one a line
#   LF_EXTRA      further toolkits, compilers and interpreters to look at, one a line
#   LF_UNITS      names of llamafleet's units, separated by blanks
#   LF_DRIVER     packages of the driver that the verdict looks at, one a line; "*" is any text
#   LF_HELD       packages that a hold of the driver is about, likewise
#   LF_PYTHONS    versions of Python to look for, as "3.13 3.12"
#   LF_SMI_LIMIT  seconds for all calls of nvidia-smi together (10)
#   LF_ROOT       put before every well-known path: reads a recorded host
#
# Output: lines "key=value", fields separated by tabs, and blocks "@begin name" .. "@end" whose
# lines begin with a blank, so that no content can pass for a tag.

LC_ALL=C
export LC_ALL
nl='
'
tab=$(printf '\t')
R=${LF_ROOT:-}

# put KEY VALUE...: one line; a value ends at its first tab or line end.
put() {
    printf '%s=' "$1"
    shift
    separator=
    for value in "$@"; do
        value=${value%%"$nl"*}
        printf '%s%s' "$separator" "${value%%"$tab"*}"
        separator=$tab
    done
    printf '\n'
}

# block NAME...: standard input as a block.
block() {
    (
        IFS=$tab
        printf '@begin %s\n' "$*"
    )
    sed 's/^/ /'
    # The input may lack its last line end.
    printf '\n@end\n'
}

# json NAME... FILE: the file as a block if it can be read, cut at 1 MiB.
json() {
    for file in "$@"; do :; done
    [ -f "$file" ] && [ -r "$file" ] || return 0
    dd if="$file" bs=65536 count=16 | block "$@"
}

# first FILE: its first line.
first() {
    line=
    [ -r "$1" ] && IFS= read -r line <"$1"
    printf '%s' "$line"
}

expand() {
    case $1 in
        '$HOME' | '$HOME'/*) printf '%s' "$HOME${1#'$HOME'}" ;;
        *) printf '%s' "$1" ;;
    esac
}

have() { command -v "$1" >/dev/null; }

# found NAME: every executable file of that name on PATH, one a line.
found() {
    (
        IFS=:
        for folder in $PATH; do
            [ -f "$folder/$1" ] && [ -x "$folder/$1" ] && printf '%s\n' "$folder/$1"
        done
    )
}

# new WORD: true the first time.
new() {
    case $seen in *"$nl$1$nl"*) return 1 ;; esac
    seen=$seen$1$nl
}

# limited SECONDS COMMAND...: its output in $out and its status in $rc, 124 if it did not end in
# time. coreutils' timeout won't do: it waits for its child, and a process stuck in a broken
# driver can't be killed. Here only the reader of the pipe is waited for.
limited() {
    seconds=$1
    shift
    out=$(
        { (
            sh -c 'echo "@pid $$"; exec "$@"' sh "$@" </dev/null 2>&1
            printf '\n@rc %s\n' "$?"
        ) & } | (
            exec 3<&0
            # A loop of the shell passes each line on at once; sed would keep them in its buffer.
            while IFS= read -r line; do
                printf '%s\n' "$line"
                case $line in '@rc '*) break ;; esac
            done <&3 &
            reader=$!
            (
                while [ "$seconds" -gt 0 ]; do
                    sleep 1 || exit
                    seconds=$((seconds - 1))
                done
                kill "$reader"
            ) >/dev/null &
            clock=$!
            wait "$reader"
            kill "$clock"
        )
    )
    rc=${out##*"$nl@rc "}
    pid=${out#"@pid "}
    pid=${pid%%"$nl"*}
    case $rc in
        "" | *[!0-9]*)
            rc=124
            case $pid in *[!0-9]* | "") ;; *) kill -9 "$pid" ;; esac
            ;;
        *) out=${out%"$nl@rc "*} ;;
    esac
    case $out in
        "@pid $pid$nl"*) out=${out#"@pid $pid$nl"} ;;
        *) out= ;;
    esac
}

read_system() {
    put time "$(date +%s)"
    # shellcheck disable=SC2046 # three words wanted
    set -- $(uname -nrm)
    put hostname "$1"
    put kernel "$2"
    put arch "$3"
    put uid "$(id -u)"
    put user "$(id -un)"
    put home "$HOME"
    [ -e "$R/var/lib/systemd/linger/$(id -un)" ] && put linger 1
    id -u llamafleet >/dev/null && put account 1
    for file in "$R/etc/os-release" "$R/usr/lib/os-release"; do
        [ -r "$file" ] && block os-release <"$file" && break
    done
    put glibc "$(getconf GNU_LIBC_VERSION || ldd --version)"

    container=$(first "$R/run/systemd/container")
    if [ -z "$container" ]; then
        if [ -e "$R/.dockerenv" ]; then
            container=docker
        elif [ -e "$R/run/.containerenv" ]; then
            container=podman
        else
            case $(first "$R/proc/version") in *[Mm]icrosoft*) container=wsl ;; esac
        fi
    fi
    put container "$container"
    for pair in apt-get:apt dnf:dnf pacman:pacman zypper:zypper apk:apk; do
        have "${pair%:*}" && put package_manager "${pair#*:}" && break
    done
    for file in "$R"/etc/apt/sources.list "$R"/etc/apt/sources.list.d/* "$R"/etc/yum.repos.d/*.repo; do
        case ${file##*/} in llamafleet-*) continue ;; *.list | *.sources | *.repo) ;; *) continue ;; esac
        # One that is switched off gives nothing.
        [ "$(grep -c -e '^\[' -e '^Types:' "$file")" = 1 ] && grep -q -i \
            -e '^enabled *[:=] *0' -e '^enabled *[:=] *no' -e '^enabled *[:=] *false' "$file" && continue
        # NVIDIA's server or a mirror of it, and what NVIDIA's local-repository packages set up.
        grep -q -e '^[^#]*/compute/cuda/repos/' -e '^[^#]*/var/cuda-repo-' "$file" &&
            put cuda_repository "$file"
    done
}

read_machine() {
    sed '/^$/q' "$R/proc/cpuinfo" | block cpuinfo
    put cores "$(nproc || grep -c '^processor' "$R/proc/cpuinfo")"
    sed -n '/^Mem\(Total\|Available\|Free\):/p' "$R/proc/meminfo" | block meminfo

    # cgroup v2: the limit of this group and of each one above it.
    group=
    while IFS= read -r line; do
        case $line in 0::*) group=${line#0::} ;; esac
    done <"$R/proc/self/cgroup"
    group=${group%/}
    while :; do
        base=$R/sys/fs/cgroup$group
        limit=$(first "$base/memory.max")
        case $limit in
            "" | *[!0-9]*) ;;
            *)
                reclaimable=0
                while read -r name count; do
                    [ "$name" = inactive_file ] && reclaimable=$count && break
                done <"$base/memory.stat"
                put cgroup_memory "$limit" "$(first "$base/memory.current")" "$reclaimable"
                ;;
        esac
        [ -n "$group" ] || break
        group=${group%/*}
    done

    for pair in "prefix:$LF_PREFIX" "state:$LF_STATE" "tmp:${TMPDIR:-/tmp}"; do
        path=${pair#*:}
        until [ -d "$path" ]; do
            case $path in */*) path=${path%/*} ;; esac
            case $path in /*) ;; *) path=/ ;; esac
        done
        put disk "${pair%%:*}" "$(df -Pk "$path" | {
            read -r _
            read -r _ _ _ free _
            echo "$free"
        })"
    done
}

read_gpus() {
    for device in "$R"/sys/bus/pci/devices/*; do
        [ "$(first "$device/vendor")" = 0x10de ] || continue
        case $(first "$device/class") in 0x0300* | 0x0302*) ;; *) continue ;; esac
        driver=$(readlink "$device/driver")
        put pci "${device##*/}" "$(first "$device/device")" "${driver##*/}"
    done

    smi=$(command -v nvidia-smi) || return 0
    put smi "$smi"
    left=${LF_SMI_LIMIT:-10}
    ask_smi query --query-gpu=index,name,uuid,pci.bus_id,memory.total,driver_version,compute_cap \
        --format=csv,noheader,nounits
    case $rc,$out in
        0,* | 124,*) ;;
        # Before driver 510 or so this field is unknown.
        *compute_cap*) ask_smi query \
            --query-gpu=index,name,uuid,pci.bus_id,memory.total,driver_version \
            --format=csv,noheader,nounits ;;
    esac
    # The CUDA version has no query field.
    [ "$rc" = 124 ] || ask_smi banner
}

# ask_smi NAME ARGUMENT...: one call within what is left of the common limit.
ask_smi() {
    name=$1
    shift
    if [ "$left" -gt 0 ]; then
        begin=$(date +%s)
        limited "$left" "$smi" "$@"
        left=$((left - $(date +%s) + begin))
    else
        rc=124 out=
    fi
    put "smi_$name" "$rc"
    printf '%s\n' "$out" | sed 60q | block "smi_$name"
}

read_driver() {
    if [ -r "$R/sys/module/nvidia/version" ]; then
        put module "$(first "$R/sys/module/nvidia/version")"
    else
        put module "$(first "$R/proc/driver/nvidia/version")"
    fi
    # Debian's packages name it nvidia-current.
    for name in nvidia nvidia-current; do
        version=$(modinfo -F version $name) && [ -n "$version" ] || continue
        put module_on_disk "$version"
        # An unsigned module has none.
        put module_signer "$(modinfo -F signer $name)"
        break
    done
    [ -d "$R/sys/module/nouveau" ] && put nouveau 1

    paths=$(ldconfig -p | sed -n -e 's/^.*libnvidia-ml\.so\.1 .*=> //p' -e 's/^.*libcuda\.so\.1 .*=> //p')
    if [ -z "$paths" ]; then
        for path in "$R"/usr/lib/*-linux-gnu "$R/usr/lib64" "$R/usr/lib" \
            "$R/usr/local/nvidia/lib64" "$R/usr/lib/wsl/lib"; do
            for name in libnvidia-ml.so.1 libcuda.so.1; do
                [ -e "$path/$name" ] && paths=$paths$path/$name$nl
            done
        done
    fi
    printf '%s\n' "$paths" | while IFS= read -r path; do
        [ -n "$path" ] && put library "$path" "$(readlink -f "$path")"
    done

    # The patterns stand unquoted, as words, and are no names of files.
    set -f
    # shellcheck disable=SC2086 # words wanted
    if have dpkg-query; then
        dpkg-query -W -f='${db:Status-Status} ${Package} ${Version}\n' $LF_DRIVER |
            sed -n -e 's/^installed //p' -e 's/^triggers-[a-z]* //p' \
                -e 's/^\(unpacked\) \(.*\)/\2 \1/p' -e 's/^\(half-[a-z]*\) \(.*\)/\2 \1/p'
    elif have rpm; then
        rpm -qa --qf '%{NAME} %{VERSION}\n' $LF_DRIVER
    elif have pacman; then
        # It takes no patterns.
        pacman -Q | while read -r name version; do
            for pattern in $LF_DRIVER; do
                # shellcheck disable=SC2254 # a pattern
                case $name in $pattern) echo "$name $version" && break ;; esac
            done
        done
    fi | sed 60q | block packages
    set +f
}

# All installed packages of the driver, and what is held: more than the verdict looks at. A row is
# "wanted state name", as dpkg says it.
read_parts() {
    set -f
    # shellcheck disable=SC2086 # words wanted
    if have dpkg-query; then
        dpkg-query -W -f='${db:Status-Want} ${db:Status-Status} ${binary:Package}\n' $LF_HELD
    elif have rpm; then
        rpm -qa --qf 'install installed %{NAME}\n' $LF_HELD
    fi | sed 300q | block parts
    set +f

    # The files themselves: dnf's own command would load the repositories.
    if have dnf; then
        locks=$R/etc/dnf/plugins/versionlock.list
        [ -e "$R/etc/dnf/plugins/versionlock.conf" ] && put dnf_locks 1
        case $(readlink -f "$(command -v dnf)") in
            *dnf5) locks=$R/etc/dnf/versionlock.toml && put dnf_locks 1 ;;
        esac
        [ -r "$locks" ] && sed 1000q "$locks" | block versionlock
    fi
    [ -r "$LF_PREFIX/held-packages" ] && block hold_record <"$LF_PREFIX/held-packages"
}

# The driver's module for the kernels on disk: what the next boot will find.
read_kernels() {
    seen=$nl
    # The folders that changed last, to bound the calls of modinfo.
    { uname -r && ls -1t "$R/lib/modules"; } | sed 8q | while IFS= read -r kernel; do
        folder=$R/lib/modules/$kernel
        [ -d "$folder" ] && new "$kernel" || continue
        bootable=0 present=0
        for image in "$R/boot/vmlinuz-$kernel" "$R/boot/vmlinux-$kernel" "$folder/vmlinuz"; do
            [ -e "$image" ] && bootable=1
        done
        version=$(modinfo -k "$kernel" -F version nvidia ||
            modinfo -k "$kernel" -F version nvidia-current)
        for file in "$folder"/updates/nvidia*.ko* "$folder"/updates/*/nvidia*.ko* \
            "$folder"/extra/nvidia*.ko* "$folder"/extra/*/nvidia*.ko* \
            "$folder"/extra/*/*/*/nvidia*.ko* "$folder"/weak-updates/*/nvidia*.ko* \
            "$folder"/kernel/nvidia*/nvidia*.ko* "$folder"/kernel/drivers/video/nvidia*.ko*; do
            case ${file##*/} in nvidia.ko* | nvidia-current.ko*) [ -e "$file" ] && present=1 ;; esac
        done
        [ -n "$version" ] && present=1
        put kernel_module "$kernel" $bootable $present "$version"
    done

    for folder in "$R"/var/lib/dkms/nvidia*; do
        [ -d "$folder" ] && have dkms || continue
        limited 5 dkms status
        printf '%s\n' "$out" | grep nvidia | sed 20q | block dkms
        break
    done
}

read_secure_boot() {
    variable=$R/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c
    case $(mokutil --sb-state) in
        *'is disabled in shim'* | *'SecureBoot disabled'*) put secure_boot 0 ;;
        *'SecureBoot enabled'*) put secure_boot 1 ;;
        *)
            # Four bytes of attributes come before the value.
            [ -r "$variable" ] && case $(dd if="$variable" bs=1 skip=4 count=1) in
                "$(printf '\001')") put secure_boot 1 ;;
                *) put secure_boot 0 ;;
            esac
            ;;
    esac
}

read_kernel_log() {
    put uptime "$(first "$R/proc/uptime")"
    # Often only root may read the kernel's buffer; members of some groups may read the journal.
    kernel_log dmesg ||
        kernel_log journalctl -k -b -q -n 2000 -o short-monotonic --no-pager
}

# kernel_log COMMAND...: the lines about the driver of the log that it prints.
kernel_log() {
    have "$1" || return
    # shellcheck disable=SC2016 # expanded by the inner shell
    limited 3 sh -c 'log=$("$@") || exit
        log=$(printf "%s\n" "$log" | tail -n 2000)
        printf "%s\n" "$log" | grep -E "NVRM: Xid|fallen off the bus|API mismatch|\
NVRM:.* has the version|module verification failed|Key was rejected|Loading of .* is rejected|\
module loading is restricted" | tail -n 20
        # Said again at each attempt: it would push out the others.
        printf "%s\n" "$log" | grep "RmInitAdapter failed" | tail -n 1' sh "$@"
    [ "$rc" = 0 ] && printf '%s\n' "$out" | block kernel_log
}

read_compilers() {
    seen=$nl
    names=
    for major in 16 15 14 13 12 11 10 9; do names="$names g++-$major"; done
    names="$names g++"
    for major in 22 21 20 19 18 17 16 15 14; do names="$names clang++-$major"; done
    for name in $names clang++; do found "$name"; done | { cat; extra_files '*++*' '*clang*'; } |
        while IFS= read -r path; do compiler "$path"; done
}

compiler() {
    real=$(readlink -f "$1") || return
    case ${real##*/} in
        # Front ends that stand in for any compiler.
        ccache | sccache | distcc | icecc) return ;;
        *clang*) kind=clang ;;
        *) kind=gcc ;;
    esac
    new "$real" || return
    if [ $kind = gcc ]; then
        version=$("$1" -dumpfullversion -dumpversion </dev/null)
    else
        version=$("$1" -dumpversion </dev/null)
    fi
    case $version in [0-9]*) put compiler "$1" "$kind" "$version" ;; esac
}

# extra_files PATTERN...: those of LF_EXTRA that are executable files with such a name.
extra_files() {
    printf '%s\n' "${LF_EXTRA:-}" | while IFS= read -r path; do
        path=$(expand "$path")
        [ -f "$path" ] && [ -x "$path" ] || continue
        for pattern in "$@"; do
            # shellcheck disable=SC2254 # a pattern is wanted
            case ${path##*/} in $pattern) printf '%s\n' "$path" && break ;; esac
        done
    done
}

read_toolkits() {
    seen=$nl
    case $(uname -m) in
        aarch64) targets="sbsa-linux aarch64-linux" ;;
        *) targets="$(uname -m)-linux" ;;
    esac
    for root in "$R"/usr/local/cuda "$R"/usr/local/cuda-* "$R"/opt/cuda* "$R"/usr/lib/cuda \
        "$LF_PREFIX"/toolkits/*; do
        [ -d "$root/include" ] && toolkit "$root" any
    done
    printf '%s\n' "${LF_EXTRA:-}" | while IFS= read -r root; do
        root=$(expand "$root")
        [ -d "$root/include" ] && toolkit "$root" any
    done
    found nvcc | while IFS= read -r path; do
        real=$(readlink -f "$path")
        root=${real%/bin/nvcc}
        # A real toolkit's nvcc has its profile beside it; a wrapper script on PATH has not.
        if [ -e "${real%/*}/nvcc.profile" ]; then
            toolkit "$root" any
        else
            # Debian's own package spreads the parts over /usr.
            toolkit "$root" complete
        fi
    done
}

# toolkit ROOT any|complete: prints one line, or none where only a complete one counts.
toolkit() {
    real=$(readlink -f "$1") || return
    nvcc=0 version= cudart=0 cublas=0 cccl=0 libdir=
    includes=$real/include
    libdirs=$real/lib64$nl$real/lib
    for target in $targets; do
        includes=$includes$nl$real/targets/$target/include
        libdirs=$libdirs$nl$real/targets/$target/lib
    done
    libdirs=$libdirs$nl$real/lib/$(uname -m)-linux-gnu
    old_ifs=$IFS
    IFS=$nl
    runtime_h= blas_h= blas_so=
    for folder in $includes; do
        [ -e "$folder/cuda_runtime.h" ] && runtime_h=1
        [ -e "$folder/cublas_v2.h" ] && blas_h=1
        [ -d "$folder/cccl" ] || [ -d "$folder/cub" ] && cccl=1
    done
    for folder in $libdirs; do
        [ -e "$folder/libcudart.so" ] || continue
        if [ -e "$folder/libcublas.so" ]; then
            libdir=$folder blas_so=1
            break
        fi
        libdir=${libdir:-$folder}
    done
    IFS=$old_ifs
    [ -n "$libdir" ] && [ -n "$runtime_h" ] && cudart=1
    [ -n "$blas_so" ] && [ -n "$blas_h" ] && cublas=1
    [ -x "$real/bin/nvcc" ] && nvcc=1
    [ "$2" = complete ] && [ $nvcc$cudart$cublas$cccl != 1111 ] && return
    # Asked once for each real folder.
    if new "$real" && [ $nvcc = 1 ]; then
        version=$("$real/bin/nvcc" --version </dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    fi
    put toolkit "$1" "$real" "$version" $nvcc $cudart $cublas $cccl "$libdir"
}

read_tools() {
    seen=$nl
    # The interpreter behind a virtual environment or a version manager's shim, and whether every
    # user may run it.
    # shellcheck disable=SC2016 # Python, not shell
    program='
import os, sys
path = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
part, everyone = path, 1
while True:
    everyone &= os.stat(part).st_mode
    if part == "/":
        break
    part = os.path.dirname(part)
print("%s\t%d.%d.%d\t%d" % ((path,) + tuple(sys.version_info[:3]) + (everyone,)))'
    names=
    for minor in ${LF_PYTHONS:-}; do names="$names python$minor"; done
    for name in $names python3; do
        found "$name" | while IFS= read -r path; do
            # A shim script is asked by its plain name only: each run of it is slow.
            case $name,$(first "$path") in python3.*,'#!'*) ;; *) printf '%s\n' "$path" ;; esac
        done
    done | { cat; extra_files 'python*'; } | while IFS= read -r path; do
        new "$(readlink -f "$path")" || continue
        line=$("$path" -I -S -c "$program" </dev/null) && printf 'python=%s\n' "${line%%"$nl"*}"
    done

    path=$(command -v cmake) && put cmake "$path" "$(cmake --version </dev/null)"
}

read_units() {
    [ -d "$R/run/systemd/system" ] && have systemctl || return 0
    manager=--system
    if [ "$LF_SCOPE" = user ]; then
        manager=--user
        # A shell without a login session lacks it.
        XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
        export XDG_RUNTIME_DIR
    fi
    # A pattern finds none but those in memory; one that is named is loaded for the answer.
    # shellcheck disable=SC2086 # words are wanted
    limited 5 systemctl $manager show \
        --property=Id,LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload \
        $LF_UNITS 'llamafleet-*'
    put systemctl "$rc"
    [ "$rc" = 0 ] || return 0
    printf '%s\n' "$out" | block units
    # Distributions write 252.39-1~deb12u2 and more.
    limited 5 systemctl $manager show --property=Version
    out=${out#Version=}
    put systemd "${out%%[!0-9]*}"
}

# number NAME: sets $number from "NAME": 123 in $line.
number() {
    case $line in *"\"$1\":"*) ;; *) return 1 ;; esac
    number=${line#*"\"$1\":"}
    number=${number# }
    number=${number%%[!0-9]*}
}

# Field 22 of proc(5)'s stat; the second may hold blanks and brackets.
start_ticks() {
    stat=$(first "$R/proc/$1/stat")
    # shellcheck disable=SC2086 # words are wanted
    set -- ${stat##*) }
    printf %s "${20}"
}

# job KIND KEY FOLDER
job() {
    alive=0 pid= ticks=
    if [ -f "$3/progress.json" ] && [ -r "$3/progress.json" ]; then
        while IFS= read -r line || [ -n "$line" ]; do
            number pid && pid=$number
            number start_ticks && ticks=$number
        done <"$3/progress.json"
        # A pid alone says nothing: it may be another process's by now.
        [ -n "$ticks" ] && [ -n "$pid" ] && [ "$(start_ticks "$pid")" = "$ticks" ] &&
            grep -q llamafleet-host "$R/proc/$pid/cmdline" && alive=1
    fi
    put job "$1" "$2" $alive
    json progress "$1" "$2" "$3/progress.json"
    json stamp "$1" "$2" "$3/stamp.json"
}

read_managed() {
    current=$(readlink "$LF_PREFIX/current")
    current=${current%/}
    current=${current##*/}
    put current "$current"
    for path in "$LF_PREFIX"/versions/*; do
        [ -d "$path" ] && put built "${path##*/}"
    done

    # Jobs of root lie apart.
    for folder in "$LF_STATE/build" "$LF_STATE/toolkit" "$LF_PREFIX/jobs/toolkit"; do
        count=0
        # shellcheck disable=SC2012 # newest first; names are checked
        ls -1t "$folder" | while IFS= read -r key; do
            case $key in "" | .* | *[!A-Za-z0-9._+-]*) continue ;; esac
            [ -d "$folder/$key" ] || continue
            count=$((count + 1))
            # The ten newest, to bound the output, and always the one in use.
            if [ $count -le 10 ] || [ "$key" = "$current" ]; then
                job "${folder##*/}" "$key" "$folder/$key"
            fi
        done
    done
    for name in progress stamp; do
        if [ -e "$LF_STATE/verify/run/$name.json" ]; then
            job verify run "$LF_STATE/verify/run"
            break
        fi
    done
    json latest "$LF_STATE/results/latest.json"

    # Word splitting at line ends makes the arguments of one sha256sum.
    files=$(printf '%s\n' "${LF_FILES:-}" | while IFS= read -r path; do
        path=$(expand "$path")
        [ -f "$path" ] && [ -r "$path" ] && printf '%s\n' "$path"
    done)
    manifest=$LF_STATE/wheelhouse/manifest.json
    old_ifs=$IFS
    IFS=$nl
    set -f
    # shellcheck disable=SC2086
    [ -n "$files" ] && sha256sum $files | block files
    set +f
    IFS=$old_ifs
    [ -r "$manifest" ] && sha256sum "$manifest" | block wheelhouse
    return 0
}

main() {
    exec 2>/dev/null
    if [ -z "${HOME:-}" ]; then
        HOME=$(sed -n "s/^$(id -un):.*:\([^:]*\):[^:]*\$/\1/p" /etc/passwd)
    fi
    LF_PREFIX=$(expand "$LF_PREFIX")
    LF_STATE=$(expand "$LF_STATE")
    # Non-login shells often lack the last ones; the driver's own folders are seldom on PATH.
    for folder in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin \
        /usr/local/nvidia/bin /opt/nvidia/bin /usr/lib/wsl/lib; do
        case :$PATH: in *":$R$folder:"*) ;; *) PATH=$PATH:$R$folder ;; esac
    done
    for folder in "$R"/opt/rh/gcc-toolset-*/root/usr/bin; do
        [ -d "$folder" ] && PATH=$PATH:$folder
    done
    export PATH
    read_system
    read_machine
    read_gpus
    read_driver
    read_parts
    read_kernels
    read_secure_boot
    read_kernel_log
    read_compilers
    read_toolkits
    read_tools
    read_units
    read_managed
    # Proof for the reader that no step above ended the shell.
    put complete 1
}

# clean: drop what is not UTF-8, which the connection's reader would refuse.
clean() {
    if have iconv; then
        iconv -c -f UTF-8 -t UTF-8
    elif have tr; then
        tr -cd '\011\012\040-\176'
    else
        cat
    fi 2>/dev/null
}

echo '#llamafleet-snapshot 1'
(main) | clean
echo '#end'
exit 0
