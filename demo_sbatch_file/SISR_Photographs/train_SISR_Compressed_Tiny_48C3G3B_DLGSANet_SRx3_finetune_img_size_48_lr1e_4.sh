#!/bin/sh
#SBATCH --job-name=jpegx3
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
options=options/train/train_SISR_Compressed_Tiny_48C3G3B_DLGSANet_SRx3_finetune_img_size_48_lr1e_4.yml
repository=$(scontrol show job "${SLURM_JOB_ID:-none}" 2>/dev/null | sed -n 's|^ *Command=\(.*\)/demo_sbatch_file/.*|\1|p')
repository=${DLGSANET_HOME:-${repository:-$(dirname "$0")/../..}}
. "$repository/demo_sbatch_file/run.sh"
