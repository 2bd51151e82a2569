#!/bin/bash
#$ -N alchemy-copper_
#$ -S /bin/bash
#$ -j y
#$ -o '/scratch/copper/copper one/controller/controller.log'
#$ -r y
#$ -l h_rt=24:00:00
#$ -l h_vmem=2000M
#$ -pe smp 2
#$ -q long
#$ -P chem
#$ --qos=high
export ALCHEMY_JOB_STARTED="$(date +%s)"
. /home/user/env.sh || { echo 'alchemy: setup file /home/user/env.sh failed on node' "$(hostname)" >&2; exit 97; }
command -v python3 >/dev/null || { echo 'alchemy: python3 not found on node' "$(hostname)" >&2; exit 98; }
cd '/scratch/copper/copper one' || { echo 'alchemy: /scratch/copper/copper one is not visible on node' "$(hostname)" >&2; exit 99; }
exec python3 -P -m alchemy controller '/scratch/copper/copper one'
