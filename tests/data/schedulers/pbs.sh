#!/bin/bash
# OpenPBS, PBS Professional. Copy this file, change it, and name the copy under run.labels.template.
# Torque wants: #PBS -l nodes=2:ppn=16
#PBS -N al0123456789ab
#PBS -j oe
#PBS -o job.out
#PBS -r n
#PBS -V
#PBS -l select=2:ncpus=16:mpiprocs=4:ompthreads=4:mem=64000mb
#PBS -l walltime=01:30:00
#PBS -q long
#PBS -A p-42
#PBS --reservation=dft

began=$(date +%s)
cd /scratch/pd/job || exit 91
. /BASE/modules.sh || { echo /BASE/modules.sh failed >&2; exit 90; }
export OMP_NUM_THREADS=4
exec PYTHON -P -m alchemy.batch_job --began "$began"
