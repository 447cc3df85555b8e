#!/bin/sh
# Start a real SLURM of one node on this machine, for the tests marked `slurm`. Needs root and Debian's or
# Ubuntu's packages: apt-get install -y --no-install-recommends slurm-wlm munge
# Usage: start_slurm.sh [start|stop]. Starting twice is harmless.
set -eu

state=/var/lib/sae-test-slurm
configuration=/etc/slurm/slurm.conf
host=$(hostname -s)

stop() {
    for name in slurmd slurmctld; do
        [ -f "$state/$name.pid" ] && kill "$(cat "$state/$name.pid")" 2>/dev/null || true
        rm -f "$state/$name.pid"
    done
}

if [ "${1:-start}" = stop ]; then
    stop
    exit 0
fi

for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || { echo "missing $program: install slurm-wlm and munge" >&2; exit 1; }
done
if timeout 5 sinfo --noheader --format=%T 2>/dev/null | grep -q -E 'idle|mixed|allocated'; then
    echo "SLURM already runs"
    exit 0
fi
if [ -f "$configuration" ] && ! grep -q '^ClusterName=sae-test$' "$configuration"; then
    echo "$configuration belongs to another SLURM: left alone" >&2
    exit 1
fi
stop

mkdir -p "$state/controller" "$state/node" /run/munge /etc/slurm
chown munge: /run/munge
chmod 755 /run/munge
if ! munge --no-input >/dev/null 2>&1; then
    [ -s /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 2>/dev/null; }
    chown munge: /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
    su -s /bin/sh munge -c munged
fi

# A job that is put back into the queue waits for its credential to expire and for the scheduler: minutes otherwise.
# Job processes are found through /proc and not confined: cgroups are rarely writable in a container.
cat >"$configuration" <<EOF
ClusterName=sae-test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF

slurmctld
slurmd
for _ in $(seq 30); do
    if timeout 5 sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then
        sinfo
        exit 0
    fi
    sleep 1
done
echo "SLURM did not become idle in 30 s; its logs:" >&2
tail -n 20 "$state"/*.log >&2
exit 1
