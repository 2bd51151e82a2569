#!/usr/bin/env bash

#SBATCH -J alchemy-cpu
#SBATCH -A chem
#SBATCH -n 1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH -t 01:30:00
#SBATCH -o /scratch/copper/workers/cpu-7.log
#SBATCH --no-requeue
. '/home/user/my env.sh' || { echo 'alchemy: setup file /home/user/my env.sh failed on node' "$(hostname)" >&2; exit 97; }
command -v python3 >/dev/null || { echo 'alchemy: python3 not found on node' "$(hostname)" >&2; exit 98; }
cd /scratch/copper/workers || { echo 'alchemy: /scratch/copper/workers is not visible on node' "$(hostname)" >&2; exit 99; }
export OMP_NUM_THREADS=2
export MKL_NUM_THREADS=2
export OPENBLAS_NUM_THREADS=2
export CUDA_VISIBLE_DEVICES=
python3 -P -m distributed.cli.dask_worker tls://10.0.0.1:8786 --name cpu-7 --nthreads 1 --memory-limit 4.00GiB --nworkers 2 --nanny --death-timeout 60 --resources LABEL=1 --memory-limit 0 --no-dashboard --dashboard-address 127.0.0.1:0 --interface ib0 --protocol tls:// --tls-ca-file /scratch/copper/workers/ca --tls-cert /scratch/copper/workers/cert --tls-key '/scratch/copper/workers/my key'
