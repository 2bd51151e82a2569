#!/bin/bash
# Slurm. Copy this file, change it, and name the copy under run.labels.template.
#SBATCH --job-name=al0123456789ab
#SBATCH --chdir=/scratch/pd/job
#SBATCH --output=job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --nodes=2
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=4
#SBATCH --time=90
#SBATCH --mem=64000M
#SBATCH --partition=long
#SBATCH --account=p-42
#SBATCH --reservation=dft

began=$(date +%s)
. /BASE/modules.sh || { echo /BASE/modules.sh failed >&2; exit 90; }
export OMP_NUM_THREADS=4
exec PYTHON -P -m alchemy.batch_job --began "$began"
