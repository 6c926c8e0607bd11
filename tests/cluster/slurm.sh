#!/bin/bash
# A Slurm of one node on loopback, for `pytest -m slurm`; needs root and: apt-get install --no-install-recommends slurm-wlm slurmctld slurmd munge
#   tests/cluster/slurm.sh start FOLDER [CPUS [MEMORY_MB]]    configuration, state and logs go to FOLDER
#   tests/cluster/slurm.sh stop FOLDER
# The configuration is linked to /etc/slurm/slurm.conf (refused where there is one): Snakemake's job step drops SLURM_CONF from the environment.
# Without slurmdbd there is no accounting (sacct); FOLDER/log/jobcomp.txt has a line per finished job.
set -euo pipefail
action=${1:?start or stop} home=$(realpath -m "${2:?folder}") cpus=${3:-1} memory=${4:-6000}
host=$(hostname -s)

start() {
    [ "$(id -u)" = 0 ] || { echo "slurm.sh: the daemons need root" >&2; exit 2; }
    for program in munged slurmctld slurmd sinfo; do
        command -v $program >/dev/null || { echo "slurm.sh: $program is missing; apt-get install slurm-wlm slurmctld slurmd munge" >&2; exit 2; }
    done
    [ ! -e /etc/slurm/slurm.conf ] || { echo "slurm.sh: /etc/slurm/slurm.conf exists: this machine has a Slurm; it is left alone" >&2; exit 2; }
    rm -f /etc/slurm/slurm.conf
    mkdir -p "$home"/{log,spool,state} /run/munge
    chown munge: /run/munge
    chmod 755 /run/munge
    [ -f /etc/munge/munge.key ] || { mungekey --create --bits 1024 && chown munge: /etc/munge/munge.key; }
    # munged is another user, who may not reach FOLDER (pytest's folders are its owner's alone): its files go to /run/munge
    [ -S /run/munge/munge.socket.2 ] && munge -n >/dev/null 2>&1 || {
        runuser -u munge -- munged --force --pid-file=/run/munge/munged.pid --log-file=/run/munge/munged.log --seed-file=/run/munge/munged.seed
        ln -sf /run/munge/munged.pid "$home/munged.pid"; }
    cat > "$home/slurm.conf" <<CONF
ClusterName=mvltest
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmdSpoolDir=$home/spool
StateSaveLocation=$home/state
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd.log
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$home/log/jobcomp.txt
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=UNLIMITED State=UP
CONF
    ln -s "$home/slurm.conf" /etc/slurm/slurm.conf
    slurmctld && slurmd
    for _ in $(seq 60); do
        [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && { echo "the node $host is idle"; return; }
        sleep 1
    done
    echo "slurm.sh: the node did not become idle in 60 s; see $home/log" >&2
    exit 1
}

stop() {
    for daemon in slurmd slurmctld munged; do
        [ -f "$home/$daemon.pid" ] && kill "$(cat "$home/$daemon.pid")" 2>/dev/null || true
    done
    [ "$(readlink /etc/slurm/slurm.conf)" != "$home/slurm.conf" ] || rm /etc/slurm/slurm.conf
}

case $action in start | stop) $action ;; *) echo "slurm.sh: start or stop, not $action" >&2; exit 2 ;; esac
