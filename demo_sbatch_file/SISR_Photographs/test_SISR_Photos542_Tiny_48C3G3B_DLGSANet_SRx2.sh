#!/bin/sh
#SBATCH --job-name=tPhx2
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
options=options/test/test_SISR_Photos542_Tiny_48C3G3B_DLGSANet_SRx2.yml
repository=$(scontrol show job "${SLURM_JOB_ID:-none}" 2>/dev/null | sed -n 's|^ *Command=\(.*\)/demo_sbatch_file/.*|\1|p')
repository=${DLGSANET_HOME:-${repository:-$(dirname "$0")/../..}}
. "$repository/demo_sbatch_file/run.sh"
