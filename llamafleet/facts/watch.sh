#!/bin/sh
# Tell what GPUs and services do: one record for each digit on standard input. Reads only, runs under
# any POSIX sh, and is killed with all that it began at the end of its input, or LF_WAIT seconds
# after the last byte: nothing stays behind on a host whose controller or network is gone.
#
# Parameters, assigned by the sender in front of this script. A leading "$HOME" in a path is
# expanded here.
#   LF_WAIT       seconds between two digits, at most
#   LF_LIMIT      seconds for one call of nvidia-smi, and for asking the services
#   LF_ONCE       a digit: print one record and read no input
#   LF_FIELDS     fields of nvidia-smi --query-gpu, a list a line, the one with most fields first:
#                 a driver that does not know one of them refuses the whole list
#   LF_CONFIGS, LF_KEYS  files of the services, a * for the profile
#   LF_UNITS      their units, likewise
#   LF_USER       the account; "": that of who runs this
#   LF_NAMES      names of metrics, separated by blanks
#   LF_SERVICES   text of watch_services.py
#
# A digit is the number of the list of fields to begin with: that which the last record told.
#
# Output: "#begin N", lines "TAG|text", "#end N". Tags: level (number of the list of fields), gpu,
# gpu_rc, app, app_rc, owner, unit, service, service_rc.

# shellcheck disable=SC2016,SC2046,SC2086 # '$HOME', and words at blanks and line ends, are meant so
LC_ALL=C
export LC_ALL
# Non-login shells often lack the last ones; WSL has the driver's programs in a folder of its own.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin:/usr/lib/wsl/lib
export PATH
exec 2>/dev/null
case $LF_CONFIGS in '$HOME'/*) LF_CONFIGS=$HOME${LF_CONFIGS#'$HOME'} ;; esac
case $LF_KEYS in '$HOME'/*) LF_KEYS=$HOME${LF_KEYS#'$HOME'} ;; esac

# It stays in this group of processes, which the end kills; busybox knows no other way.
foreground=
timeout --foreground 9 true && foreground=--foreground

# limited COMMAND...: killed after LF_LIMIT seconds, which ends with 137 then (124 from busybox).
limited() {
    if command -v timeout >/dev/null; then
        timeout $foreground -s KILL "$LF_LIMIT" "$@"
    else
        "$@"
    fi </dev/null
}

# tagged TAG COMMAND...: each line that it prints, and its status.
tagged() {
    tag=$1
    shift
    out=$(
        limited "$@" 2>&1
        printf '\n@%s' "$?"
    )
    rc=${out##*"@"}
    out=${out%@*}
    printf '%s' "$out" | sed -n "s/^./$tag|&/p"
    printf '%s_rc|%s\n' "$tag" "$rc"
}

# fields NUMBER: that list.
fields() { printf '%s\n' "$LF_FIELDS" | sed -n "$1p"; }

read_gpus() {
    command -v nvidia-smi >/dev/null || return 0
    while list=$(fields "$level") && [ -n "$list" ]; do
        said=$(tagged gpu nvidia-smi --query-gpu="$list" --format=csv,noheader,nounits)
        case $said in *"is not a valid field to query"*) level=$((level + 1)) ;; *) break ;; esac
    done
    printf 'level|%s\n%s\n' "$level" "$said"
    case $said in *"gpu_rc|137" | *"gpu_rc|124") return 0 ;; esac
    said=$(tagged app nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory,process_name \
        --format=csv,noheader,nounits)
    printf '%s\n' "$said"
    pids=$(printf '%s\n' "$said" | sed -n 's/^app|GPU-[^,]*, \([0-9]\{1,10\}\), .*/\1/p' | sort -u)
    [ -n "$pids" ] || return 0
    stat -c '%n %U' $(printf '/proc/%s ' $pids) | sed 's/^/owner|/'
    grep -H -o 'llamafleet-[a-z0-9@-]*\.service' $(printf '/proc/%s/cgroup ' $pids) |
        sed 's/^/unit|/'
}

read_services() {
    set -- $LF_CONFIGS
    [ -e "$1" ] || return 0
    tagged service python3 -I -S -c "$LF_SERVICES" "$LF_CONFIGS" "$LF_KEYS" "$LF_UNITS" \
        "$LF_USER" "$LF_NAMES"
}

record() {
    printf '#begin %s\n' "$number"
    read_gpus
    read_services
    printf '#end %s\n' "$number"
}

# wanted: another record is, from that list on.
wanted() {
    if command -v timeout >/dev/null; then
        level=$(timeout "$LF_WAIT" dd bs=1 count=1)
    else
        level=$(dd bs=1 count=1)
    fi
    case $level in [1-9]) ;; *) return 1 ;; esac
}

level=${LF_ONCE:-} number=1
if [ -n "$level" ]; then
    record
    exit 0
fi
# In the background, so that the end of the input is seen while nvidia-smi hangs.
while wanted; do
    record &
    number=$((number + 1))
done
# This shell and all that it began: sshd gives each command a session of its own.
kill -s KILL 0
