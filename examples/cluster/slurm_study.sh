#!/bin/bash
# Eight workers of one study, each an array task of its own: sbatch slurm_study.sh [MORE FLAGS]
#
# Set before submitting: DATA (pictures and labels), RUNS (a folder that all nodes see), STORAGE (a database that all
# nodes reach, without its password: that stands in ~/.pgpass, or in PGPASSWORD).
#SBATCH --job-name=study
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
# Two minutes before the time is over: the worker saves its trial and gives it back.
#SBATCH --signal=B:TERM@120
set -eu
: "${DATA:?the folder with img, gt, train.txt and val.txt}"
: "${RUNS:?a folder that all nodes see}"
: "${STORAGE:=postgresql://sparsemask@DATABASE_HOST/study}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-2}"

# exec: signals reach the study itself. A requeued task joins again by the same command.
exec sparsemask study --study first --trials 200 --workers 1 --storage "$STORAGE" --exp_path "$RUNS" \
    --im_path "$DATA/img" --gt_path "$DATA/gt" --training_list "$DATA/train.txt" --eval_list "$DATA/val.txt" \
    --n_class 4 "$@"
