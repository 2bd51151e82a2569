#!/usr/bin/env bash

#BSUB -J alchemy-gpu
#BSUB -q gpu
#BSUB -P "chem"
#BSUB -n 8
#BSUB -R "span[hosts=1]"
#BSUB -M 32000
#BSUB -W 12:00
#BSUB -o /scratch/copper/workers/gpu-7.log
#BSUB -rn
#BSUB -gpu "num=2:gmodel=a100"
#BSUB --qos=high
. '/home/user/my env.sh' || { echo 'alchemy: setup file /home/user/my env.sh failed on node' "$(hostname)" >&2; exit 97; }
command -v python3 >/dev/null || { echo 'alchemy: python3 not found on node' "$(hostname)" >&2; exit 98; }
cd /scratch/copper/workers || { echo 'alchemy: /scratch/copper/workers is not visible on node' "$(hostname)" >&2; exit 99; }
export OMP_NUM_THREADS=8
export MKL_NUM_THREADS=8
export OPENBLAS_NUM_THREADS=8
python3 -P -m distributed.cli.dask_worker tls://10.0.0.1:8786 --name gpu-7 --nthreads 1 --memory-limit 29.80GiB --nanny --death-timeout 60 --resources GPU=1 --memory-limit 0 --no-dashboard --dashboard-address 127.0.0.1:0 --interface ib0 --protocol tls:// --tls-ca-file /scratch/copper/workers/ca --tls-cert /scratch/copper/workers/cert --tls-key '/scratch/copper/workers/my key'
