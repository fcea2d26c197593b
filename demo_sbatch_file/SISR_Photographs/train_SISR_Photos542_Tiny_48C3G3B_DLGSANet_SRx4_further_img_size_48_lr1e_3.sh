#!/bin/sh
#SBATCH --job-name=train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx4_further_img_size_48_lr1e_3
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=3-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
# One task a GPU. Five minutes before the time limit training saves its state and is queued again.
# Slurm runs a copy of this file in its spool folder: scontrol knows where it came from; DLGSANET_HOME overrules it.
script=$0
[ -z "$SLURM_JOB_ID" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p')
for repository in "$DLGSANET_HOME" "$(dirname "$script")/../.." "$SLURM_SUBMIT_DIR" .; do
    [ ! -f "$repository/demo_sbatch_file/run.sh" ] || break
done

command=train
options=options/train/train_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx4_further_img_size_48_lr1e_3.yml
. "$repository/demo_sbatch_file/run.sh"
