#!/bin/bash
# Grid Engine. Copy this file, change it, and name the copy under run.labels.template:
# the parallel environment (here mpi, for more than one core) is called differently everywhere.
#$ -S /bin/bash
#$ -N al0123456789ab
#$ -wd /scratch/pd/job
#$ -o job.out
#$ -j y
#$ -r n
#$ -V
#$ -pe mpi 32
#$ -l h_rt=01:30:00
#$ -l h_vmem=4000M
#$ -q long
#$ -P p-42
#$ --reservation=dft

began=$(date +%s)
. /BASE/modules.sh || { echo /BASE/modules.sh failed >&2; exit 90; }
export OMP_NUM_THREADS=4
exec PYTHON -P -m alchemy.batch_job --began "$began"
