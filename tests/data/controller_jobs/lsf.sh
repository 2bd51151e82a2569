#!/bin/bash
#BSUB -J alchemy-copper_
#BSUB -o '/scratch/copper/copper one/controller/controller.log'
#BSUB -r
#BSUB -n 2
#BSUB -R "span[hosts=1]"
#BSUB -M 4000
#BSUB -W 24:00
#BSUB -q long
#BSUB -P chem
#BSUB --qos=high
export ALCHEMY_JOB_STARTED="$(date +%s)"
. /home/user/env.sh || { echo 'alchemy: setup file /home/user/env.sh failed on node' "$(hostname)" >&2; exit 97; }
command -v python3 >/dev/null || { echo 'alchemy: python3 not found on node' "$(hostname)" >&2; exit 98; }
cd '/scratch/copper/copper one' || { echo 'alchemy: /scratch/copper/copper one is not visible on node' "$(hostname)" >&2; exit 99; }
exec python3 -P -m alchemy controller '/scratch/copper/copper one'
