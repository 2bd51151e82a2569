#!/bin/bash
# LSF. Copy this file, change it, and name the copy under run.labels.template.
#BSUB -J al0123456789ab
#BSUB -cwd /scratch/pd/job
#BSUB -o job.out
#BSUB -rn
#BSUB -n 32
#BSUB -R "span[ptile=16]"
#BSUB -W 90
#BSUB -M 64000MB
#BSUB -q long
#BSUB -P p-42
#BSUB --reservation=dft

began=$(date +%s)
cd /scratch/pd/job || exit 91
. /BASE/modules.sh || { echo /BASE/modules.sh failed >&2; exit 90; }
export OMP_NUM_THREADS=4
exec PYTHON -P -m alchemy.batch_job --began "$began"
