#!/bin/bash
#PBS -N alchemy-copper_
#PBS -j oe
#PBS -o '/scratch/copper/copper one/controller/controller.log'
#PBS -r y
#PBS -l select=1:ncpus=2:mem=4000mb
#PBS -l walltime=24:00:00
#PBS -q long
#PBS -A chem
#PBS --qos=high
export ALCHEMY_JOB_STARTED="$(date +%s)"
. /home/user/env.sh || { echo 'alchemy: setup file /home/user/env.sh failed on node' "$(hostname)" >&2; exit 97; }
command -v python3 >/dev/null || { echo 'alchemy: python3 not found on node' "$(hostname)" >&2; exit 98; }
cd '/scratch/copper/copper one' || { echo 'alchemy: /scratch/copper/copper one is not visible on node' "$(hostname)" >&2; exit 99; }
exec python3 -P -m alchemy controller '/scratch/copper/copper one'
