#!/bin/bash
#SBATCH --job-name=alchemy-copper_
#SBATCH --output='/scratch/copper/copper one/controller/controller.log'
#SBATCH --open-mode=append
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4000M
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@1800
#SBATCH --requeue
#SBATCH --partition=long
#SBATCH --account=chem
#SBATCH --qos=high
trap '' USR1
export ALCHEMY_JOB_STARTED="$(date +%s)"
. /home/user/env.sh || { echo 'alchemy: setup file /home/user/env.sh failed on node' "$(hostname)" >&2; exit 97; }
command -v python3 >/dev/null || { echo 'alchemy: python3 not found on node' "$(hostname)" >&2; exit 98; }
cd '/scratch/copper/copper one' || { echo 'alchemy: /scratch/copper/copper one is not visible on node' "$(hostname)" >&2; exit 99; }
exec python3 -P -m alchemy controller '/scratch/copper/copper one'
