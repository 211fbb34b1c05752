#!/bin/bash
# One retraining over two nodes: sbatch slurm_torchrun.sh [MORE FLAGS]
#
# Set before submitting: DATA (pictures and labels), RUNS (a folder that all nodes see), MASK (a mask file or a named
# one).
# Submitted again, or requeued, it goes on behind the last checkpoint.
#SBATCH --job-name=retrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
# To the training's own processes: they finish the step and save.
#SBATCH --signal=TERM@120
set -eu
: "${DATA:?the folder with img, gt, train.txt and val.txt}"
: "${RUNS:?a folder that all nodes see}"
: "${MASK:=unet}"
: "${PER_NODE:=1}" # processes of a node: one for each GPU
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / PER_NODE))}"
# Where the host's name leads to another network than the one between the nodes, name its interface:
# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$PER_NODE" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:29400" -m sparsemask.retrain.train \
    --mask_path "$MASK" --name two_nodes --resume --exp_path "$RUNS" \
    --im_path "$DATA/img" --gt_path "$DATA/gt" --training_list "$DATA/train.txt" --eval_list "$DATA/val.txt" \
    --n_class 4 "$@"
